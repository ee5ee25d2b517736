"""Take one idea at a time out of the crate, and measure what it bought: `make bench-ideas`.

Each idea is undone by a small patch to a copy of the sources, which is built and measured beside the
whole. A patch that no longer fits the sources is an error, so the table cannot outlive the code.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from run import FOLDER, debian_corpus, heading, markdown, prepare_ranks, write_readme

CRATE = Path(__file__).parents[1]
ROUNDS = 5
REGEX = "regex"  # in place of a patch: the pattern in a spelling that the scanner does not know


@dataclass(frozen=True)
class Idea:
    """One idea: what it is, how to undo it, and which of the measured seconds it is about."""

    title: str
    seconds: str  # a key of what measure_all prints
    file: str = REGEX
    old: str = ""
    new: str = ""


PUT = "        *older = std::mem::replace(newer, slot);\n"
SLOT = "        let slot = &mut self.slots[word::hash(key) as usize % SLOTS];\n"
SHARED = "        return self.shared.add(&text[start..end], word::hash(key), 1);\n"
LIST = "        let ints = self.ints.get_or_try_init(py, || {\n"
IDEAS = (
    Idea("a scanner for known patterns, not a regex engine: counting", "count"),
    Idea("the same: encoding", "encode"),
    Idea(
        *("a small table of words for each thread", "count"),
        *("count.rs", SLOT, SHARED + SLOT),
    ),
    Idea(
        *("prefetching the places of a merge", "merge"),
        *("prefetch.rs", 'target_arch = "x86_64")]\n    {', 'target_arch = "none")]\n    {'),
    ),
    Idea(
        *("only frequent pairs in the heap", "merge"),
        *("train.rs", "self.threshold = (most / 4).max(1);", "self.threshold = most.min(1);"),
    ),
    Idea(
        *("a cache from words to ids", "encode"),
        *("encode.rs", PUT, "        let _ = (newer, older, slot);\n"),
    ),
    Idea(
        *("looking 32 words up together", "encode"),
        *("encode.rs", "const AHEAD: usize = 32;", "const AHEAD: usize = 1;"),
    ),
    Idea(
        *("Python ints made once: lists, on two threads", "lists"),
        *("python/mod.rs", LIST, "        return PyList::new(py, ids.iter().copied());\n" + LIST),
    ),
)


def measure_all(folder: str, pattern: str) -> None:
    """Print the seconds of counting, merging and encoding with the build in `folder`, as JSON."""
    sys.path.insert(0, folder)
    import measure

    import rustbpe

    assert rustbpe.__file__.startswith(folder), f"{rustbpe.__file__} is another build"
    if pattern == REGEX:
        measure.PATTERN = f"(?:{measure.PATTERN})"
    corpus, ranks = FOLDER / "corpus.txt", FOLDER / "ranks.tiktoken"
    short = measure.measure_training("rustbpe", corpus, 257)["seconds"]
    whole = measure.measure_training("rustbpe", corpus, 65_536)["seconds"]
    encode = measure.measure_encoding("ours_numpy", corpus, ranks, 1)["seconds"]
    lists = measure.measure_encoding("ours", corpus, ranks, 2)["seconds"]
    print(json.dumps({"count": short, "merge": whole - short, "encode": encode, "lists": lists}))


def build(number: int, idea: Idea | None) -> Path:
    """Build the crate without one idea, or the whole of it, and return the folder of the module."""
    source, found = FOLDER / "ideas" / "source", FOLDER / "ideas" / str(number)
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(CRATE, source, ignore=shutil.ignore_patterns("target"))
    if idea is not None:
        path = source / "src" / idea.file
        text = path.read_text(encoding="utf-8")
        assert text.count(idea.old) == 1, f"{idea.title}: its patch no longer fits {idea.file}"
        path.write_text(text.replace(idea.old, idea.new), encoding="utf-8")
    target = FOLDER / "ideas" / "target"
    environment = {**os.environ, "PYO3_PYTHON": sys.executable, "CARGO_TARGET_DIR": str(target)}
    environment["RUSTFLAGS"] = "-Awarnings"  # a patch may leave code unused
    command = ["cargo", "build", "--release", "--quiet"]
    subprocess.run(command, cwd=source, env=environment, check=True)
    found.mkdir(parents=True, exist_ok=True)
    (library,) = (p for p in (target / "release").iterdir() if p.suffix in (".so", ".dylib"))
    shutil.copy(library, found / "rustbpe.so")
    return found


def main() -> None:
    """Build, measure in turns, and write the table into the README."""
    if len(sys.argv) == 3:
        return measure_all(*sys.argv[1:])
    corpus = debian_corpus()
    prepare_ranks(corpus)
    whole = build(0, None)
    builds = [
        (whole if idea.file == REGEX else build(number, idea), idea.file)
        for number, idea in enumerate(IDEAS, start=1)
    ]
    runs: list[list[dict]] = [[] for _ in range(len(IDEAS) + 1)]
    for number in range(ROUNDS):
        print(f"round {number + 1}/{ROUNDS}", file=sys.stderr, flush=True)
        for found, (folder, file) in zip(runs, [(whole, ""), *builds], strict=True):
            command = [sys.executable, __file__, str(folder), REGEX if file == REGEX else "known"]
            done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True)
            found.append(json.loads(done.stdout))
    rows = [["idea", "seconds without", "with", "times as fast"]]
    for idea, without in zip(IDEAS, runs[1:], strict=True):
        slow = statistics.median(run[idea.seconds] for run in without)
        fast = statistics.median(run[idea.seconds] for run in runs[0])
        rows.append([idea.title, f"{slow:.2f}", f"{fast:.2f}", f"{slow / fast:.1f}"])
    text = f"{heading('bench-ideas', corpus, ROUNDS)}\n\n{markdown(rows)}"
    print(text)
    write_readme("ideas", text)


if __name__ == "__main__":
    main()
