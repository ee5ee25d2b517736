"""Compare our tokenizer with its peers, on real text, in one run: `make bench-tokenizer`.

Every measurement is a process of its own. Contenders take turns, so that a busy moment of the machine
hits all of them; figures are medians over the rounds, and ratios are ratios of medians. Exits with 1
where a ratio falls short of its bar.
"""

import argparse
import datetime
import gzip
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure

from nanochat_lib.common import machine_summary

FOLDER = Path(__file__).parents[1] / "target" / "bench"
README = Path(__file__).parents[1] / "README.md"
PEERS = ("rustbpe==0.1.0", "tokenizers==0.23.3", "tiktoken==0.14.0", "gigatoken==0.10.0")
PACKAGES = ("dict-gcide", "dict-foldoc", "wordnet-base")
VOCAB_SIZES = (32_768, 65_536)


def debian_corpus() -> Path:
    """Bring 54.5 MB of English from Debian's dictionaries: GCIDE, FOLDOC and WordNet's glosses.

    Raises:
        SystemExit: this machine has no apt.
    """
    corpus = FOLDER / "corpus.txt"
    if corpus.exists():
        return corpus
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        sys.exit("bench: the corpus comes from Debian's packages and there is no apt-get here: "
                 "name a large English text with --corpus FILE")  # fmt: skip
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder).returncode:
            subprocess.run(["apt-get", "update"], check=True)
            subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder, check=True)
        for package in Path(folder).glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, folder], check=True)
        share = Path(folder) / "usr" / "share"
        texts = []
        for name in ("gcide", "foldoc"):
            with gzip.open(share / "dictd" / f"{name}.dict.dz") as file:
                texts.append(file.read().decode("utf-8", errors="replace"))
        for name in ("noun", "verb", "adj", "adv"):
            lines = (share / "wordnet" / f"data.{name}").read_text(encoding="utf-8").splitlines()
            glosses = (line.split("|", 1)[1].strip() for line in lines if "|" in line[2:])
            texts.append("".join(f"{gloss}\n" for gloss in glosses))
    unfinished = corpus.with_suffix(".tmp")
    unfinished.write_text("".join(texts), encoding="utf-8", newline="")
    return unfinished.rename(corpus)


def peers_python() -> str:
    """Make an environment of their own for the peers: one of them is called rustbpe, as ours is."""
    python = FOLDER / "peers" / "bin" / "python"
    stamp = FOLDER / "peers" / "installed.txt"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != "\n".join(PEERS):
        subprocess.run([sys.executable, "-m", "venv", "--clear", FOLDER / "peers"], check=True)
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, "numpy", *PEERS], check=True)
        stamp.write_text("\n".join(PEERS), encoding="utf-8")
    return str(python)


def run_job(python: str, job: str, name: str, corpus: Path, *options: str) -> dict:
    """Run measure.py once."""
    script = Path(__file__).with_name("measure.py")
    command = [python, str(script), job, name, str(corpus), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    return json.loads(done.stdout.splitlines()[-1])  # gigatoken prints lines of its own


def in_turns(rounds: int, jobs: dict[str, tuple]) -> dict[str, list[dict]]:
    """Run every job once a round."""
    found = {key: [] for key in jobs}
    for number in range(rounds):
        for key, job in jobs.items():
            print(f"round {number + 1}/{rounds}: {key}", file=sys.stderr, flush=True)
            found[key].append(run_job(*job))
    return found


def median(runs: list[dict], key: str = "seconds") -> float:
    """Return the median of one figure over the rounds."""
    return statistics.median(run[key] for run in runs)


def interrupt_seconds(corpus: Path) -> float:
    """Return how long Ctrl-C takes to end training: the longest over moments of both stages."""
    code = """
import sys
from itertools import cycle
from rustbpe import Tokenizer
texts = open(sys.argv[1], encoding="utf-8").read().splitlines(keepends=True)
seen = set()

def progress(stage, done, total):
    if stage not in seen:
        seen.add(stage)
        print(stage, flush=True)

try:
    documents = cycle(texts) if sys.argv[2] == "count" else texts
    Tokenizer().train_from_iterator(documents, 2**24, progress=progress)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""
    longest = 0.0
    for stage in ("count", "merge"):
        for wait in (0.0, 0.05, 0.1, 0.2):
            command = [sys.executable, "-c", code, str(corpus), stage]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
            while process.stdout.readline() != f"{stage}\n":
                pass
            time.sleep(wait)
            start = time.perf_counter()
            process.send_signal(signal.SIGINT)
            said = process.stdout.readline()
            if said != "stopped\n":
                raise RuntimeError(f"Ctrl-C in {stage!r} came too late: training said {said!r}")
            longest = max(longest, time.perf_counter() - start)
            process.communicate()
    return longest


def training(rounds: int, corpus: Path, peers: str, bars: list) -> list[list[str]]:
    """Compare training, and return the rows of its table."""
    contenders = {
        "ours": (sys.executable, "rustbpe"),
        "rustbpe 0.1.0": (peers, "rustbpe"),
        "Hugging Face tokenizers 0.23.3": (peers, "huggingface"),
        "gigatoken 0.10.0 (GPT-2's pattern)": (peers, "gigatoken"),
    }
    size = corpus.stat().st_size
    rows = [["training", "vocabulary", "MB/s", "seconds", "peak MB", "ours is faster by"]]
    for vocab_size in VOCAB_SIZES:
        jobs = {
            f"{name}, {vocab_size}": (python, "train", job, corpus, "--vocab-size", str(vocab_size))
            for name, (python, job) in contenders.items()
        }
        found = dict(zip(contenders, in_turns(rounds, jobs).values()))
        merges = {run["merges"] for name in list(found)[:2] for run in found[name]}
        bars.append(("merges equal to the published rustbpe's", float(len(merges) == 1), 1))
        for name, runs in found.items():
            ratio = median(runs) / median(found["ours"])
            peak = median(runs, "peak_bytes")
            figures = [
                f"{size / 1e6 / median(runs):.1f}",
                f"{median(runs):.2f}",
                f"{peak / 1e6:.0f}",
            ]
            rows.append(
                [name, f"{vocab_size:,}", *figures, "" if name == "ours" else f"{ratio:.1f}"]
            )
        for name, bar in (("rustbpe 0.1.0", 4), ("Hugging Face tokenizers 0.23.3", 6)):
            ratio = median(found[name]) / median(found["ours"])
            bars.append((f"training {vocab_size:,} against {name}", ratio, bar))
            peak = median(found[name], "peak_bytes") / median(found["ours"], "peak_bytes")
            bars.append((f"peak memory of {name} over ours at {vocab_size:,}", peak, 1))
    return rows


def encoding(rounds: int, corpus: Path, ranks: Path, peers: str, bars: list) -> list[list[str]]:
    """Compare encoding, and return the rows of its table."""
    contenders = {
        "ours": (sys.executable, "ours"),
        "tiktoken 0.14.0": (peers, "tiktoken"),
        "gigatoken 0.10.0": (peers, "gigatoken"),
        "ours, numpy": (sys.executable, "ours_numpy"),
        "gigatoken 0.10.0, numpy": (peers, "gigatoken_numpy"),
    }
    jobs = {
        f"{name}, {threads} threads": (
            *(python, "encode", job, corpus, "--ranks", str(ranks), "--threads", str(threads)),
        )
        for name, (python, job) in contenders.items()
        for threads in (1, 2)
    }
    found = in_turns(rounds, jobs)
    size = corpus.stat().st_size
    rows = [["encoding", "MB/s, 1 thread", "MB/s, 2 threads", "2 threads over 1"]]
    seconds = {name: [median(found[f"{name}, {n} threads"]) for n in (1, 2)] for name in contenders}
    for name, (one, two) in seconds.items():
        figures = [f"{size / 1e6 / one:.1f}", f"{size / 1e6 / two:.1f}", f"{one / two:.2f}"]
        rows.append([name, *figures])
    for name in list(contenders)[1:]:
        runs = found["ours, 1 threads"] + found[f"{name}, 1 threads"]
        equal = len({(run["ids"], run["tokens"]) for run in runs}) == 1
        bars.append((f"ids equal to those of {name}", float(equal), 1))
    one, two = seconds["ours"]
    bars.append(("encoding against tiktoken, one thread", seconds["tiktoken 0.14.0"][0] / one, 3))
    bars.append(("two threads against our one", one / two, 1.8))
    return rows


def growth(corpus: Path, ranks: Path, bars: list) -> list[list[str]]:
    """Measure that a long text takes no longer than the same text in many documents."""
    found = run_job(sys.executable, "growth", "ours", corpus, "--ranks", str(ranks))
    titles = {
        "one_text": "10 MB of English as one document",
        "documents": "the same in documents of 4 kB",
        "letter_1": "one letter a million times",
        "letter_10": "one letter ten million times",
    }
    bars.append(
        ("10 MB in documents over 10 MB in one", found["documents"] / found["one_text"], 0.8)
    )
    rows = [[title, f"{found[name] * 1000:.0f}"] for name, title in titles.items()]
    return [["encoding long texts, one thread", "milliseconds"], *rows]


def markdown(rows: list[list[str]]) -> str:
    """Lay rows out as a table of Markdown, numbers to the right."""
    head, *body = rows
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *body))


def heading(target: str, corpus: Path, rounds: int) -> str:
    """Say what was measured, where and when."""
    machine = machine_summary()
    named = "{cpu}, {cores} cores, {memory_gb} GB, {platform}, Python {python}".format_map(machine)
    return (
        f"*Written by `make {target}` on {datetime.date.today()}: {named}; "
        f"{corpus.stat().st_size / 1e6:.1f} MB of English, medians of {rounds} rounds.*"
    )


def write_readme(block: str, text: str) -> None:
    """Put results between two marks of the crate's README."""
    start, end = f"<!-- {block}:start -->", f"<!-- {block}:end -->"
    before, _, rest = README.read_text(encoding="utf-8").partition(start)
    _, _, after = rest.partition(end)
    README.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")


def prepare_ranks(corpus: Path) -> Path:
    """Train the vocabulary that all encoders are measured with."""
    ranks = FOLDER / "ranks.tiktoken"
    tokens = measure.train_rustbpe(corpus, VOCAB_SIZES[0])
    measure.write_ranks(ranks, {token: rank for rank, token in enumerate(tokens)})
    return ranks


def main() -> None:
    """Run all comparisons, print them, and say which bars they meet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--corpus", type=Path, help="a text file in place of Debian's dictionaries")
    parser.add_argument("--readme", action="store_true", help="write the tables into the README")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    corpus, peers = options.corpus or debian_corpus(), peers_python()
    ranks = prepare_ranks(corpus)
    bars: list[tuple[str, float, float]] = []
    tables = [
        training(options.rounds, corpus, peers, bars),
        encoding(options.rounds, corpus, ranks, peers, bars),
        growth(corpus, ranks, bars),
    ]
    stop = interrupt_seconds(corpus)
    bars.append(("0.2 s over the longest wait for Ctrl-C", 0.2 / stop, 1))
    stopped = f"Ctrl-C ended training after at most {stop * 1000:.0f} ms."
    head = heading("bench-tokenizer README=1", corpus, options.rounds)
    text = "\n\n".join([head, *map(markdown, tables), stopped])
    print(text, end="\n\n")
    for name, value, bar in bars:
        print(f"{'ok    ' if value >= bar else 'MISSED'} {name}: {value:.2f} (at least {bar})")
    if options.readme:
        write_readme("measured", text)
    sys.exit(any(value < bar for _, value, bar in bars))


if __name__ == "__main__":
    main()
