"""Measure one contender at one job, in a process of its own, and print the result as JSON.

The published rustbpe and ours have the same import name, so each interpreter sees one of them.
"""

import argparse
import base64
import hashlib
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)  # tiktoken's cl100k_base, which all contenders know
DOCUMENT = 4000  # characters, then on to the end of the line: about a web page's length


def documents(corpus: Path) -> Iterator[str]:
    """Read the corpus document by document, never all of it."""
    with corpus.open(encoding="utf-8", newline="") as file:
        while text := file.read(DOCUMENT):
            yield text + file.readline()


def read_ranks(path: Path) -> dict[bytes, int]:
    """Read a .tiktoken file: base64 and rank, a line a token."""
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def write_ranks(path: Path, ranks: dict[bytes, int]) -> None:
    """Write a .tiktoken file."""
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    path.write_text("".join(lines), encoding="utf-8")


def train_rustbpe(corpus: Path, vocab_size: int) -> list[bytes]:
    """Train ours or the published crate, whichever this interpreter has: the calls are the same."""
    import rustbpe

    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(documents(corpus), vocab_size, pattern=PATTERN)
    return [bytes(token) for token, _ in tokenizer.get_mergeable_ranks()]


def train_huggingface(corpus: Path, vocab_size: int) -> list[bytes]:
    """Train Hugging Face tokenizers' BPE on bytes with the same pattern."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=0,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(documents(corpus), trainer)
    return [
        b""
    ] * tokenizer.get_vocab_size()  # its spelling of bytes differs: only the size is used


def train_gigatoken(corpus: Path, vocab_size: int) -> list[bytes]:
    """Train gigatoken, which reads the file itself and knows GPT-2's pattern only."""
    import gigatoken

    tokens, _ = gigatoken.train_bpe(corpus, vocab_size, [])
    return list(tokens.values())


Encoders = tuple[Callable[[list[str]], list], Callable[[list[str]], list]]


def ours(ranks: Path) -> Encoders:
    """Return our encoder on one thread, and on two."""
    import rustbpe

    tokenizer = rustbpe.Tokenizer.from_mergeable_ranks(read_ranks(ranks), PATTERN)
    tokenizer.encode("warm up")
    return (
        lambda texts: [tokenizer.encode(text) for text in texts],
        lambda texts: tokenizer.batch_encode(texts, 2),
    )


def ours_numpy(ranks: Path) -> Encoders:
    """Return our encoder with arrays in place of lists."""
    import rustbpe

    tokenizer = rustbpe.Tokenizer.from_mergeable_ranks(read_ranks(ranks), PATTERN)
    tokenizer.encode_to_numpy("warm up")
    return (
        lambda texts: [tokenizer.encode_to_numpy(text) for text in texts],
        lambda texts: tokenizer.batch_encode_to_numpy(texts, 2),
    )


def tiktoken(ranks: Path) -> Encoders:
    """Return tiktoken's encoder."""
    import tiktoken

    encoding = tiktoken.Encoding(
        "bench", pat_str=PATTERN, mergeable_ranks=read_ranks(ranks), special_tokens={}
    )
    return (
        lambda texts: [encoding.encode_ordinary(text) for text in texts],
        lambda texts: encoding.encode_ordinary_batch(texts, num_threads=2),
    )


def gigatoken(ranks: Path) -> Encoders:
    """Return gigatoken's encoder, with lists."""
    from gigatoken import Tokenizer

    tokenizer = Tokenizer.from_tiktoken(ranks, pretokenizer="cl100k")
    return (
        lambda texts: tokenizer.encode_batch_list(texts, parallel=False),
        lambda texts: tokenizer.encode_batch_list(texts, parallel=True),
    )


def gigatoken_numpy(ranks: Path) -> Encoders:
    """Return gigatoken's encoder, with arrays; its batch is one awkward array."""
    from gigatoken import Tokenizer

    tokenizer = Tokenizer.from_tiktoken(ranks, pretokenizer="cl100k")
    return (
        lambda texts: [tokenizer.encode(text) for text in texts],
        lambda texts: tokenizer.encode_batch(texts, parallel=True),
    )


def digest(ids: list) -> str:
    """Fingerprint lists of ids, so that contenders can be seen to agree."""
    found = hashlib.sha256()
    for text in ids:
        found.update(json.dumps([int(i) for i in text]).encode())
    return found.hexdigest()[:16]


def peak_bytes() -> int:
    """Return the most memory that this process has held."""
    status = Path("/proc/self/status")
    if not status.exists():  # macOS, which counts in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not ru_maxrss: on Linux a child begins with its parent's.
    (line,) = (
        line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024


def measure_training(name: str, corpus: Path, vocab_size: int) -> dict:
    """Time one training, with the peak memory of the whole process."""
    start = time.perf_counter()
    tokens = globals()[f"train_{name}"](corpus, vocab_size)
    seconds = time.perf_counter() - start
    peak = peak_bytes()
    merges = hashlib.sha256(b"\0".join(tokens)).hexdigest()[:16]
    return {"seconds": seconds, "peak_bytes": peak, "tokens": len(tokens), "merges": merges}


def measure_encoding(name: str, corpus: Path, ranks: Path, threads: int) -> dict:
    """Time the first encoding of the corpus: nothing but a warm-up word was seen before."""
    texts = list(documents(corpus))
    encode = globals()[name](ranks)[threads - 1]
    start = time.perf_counter()
    ids = encode(texts)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "tokens": sum(map(len, ids)), "ids": digest(ids[:2000])}


def measure_growth(corpus: Path, ranks: Path) -> dict:
    """Time 10 MB as one text and as many, and one letter a million and ten million times.

    Each time with a new tokenizer, so that none has seen the text before.
    """
    texts = list(documents(corpus))
    text = "".join(texts)[:10_000_000]
    samples = {
        "one_text": [text],
        "documents": [text[at : at + DOCUMENT] for at in range(0, len(text), DOCUMENT)],
        "letter_1": ["a" * 1_000_000],
        "letter_10": ["a" * 10_000_000],
    }
    found = {}
    for name, sample in samples.items():
        times = []
        for _ in range(5):
            encode = ours(ranks)[0]
            start = time.perf_counter()
            encode(sample)
            times.append(time.perf_counter() - start)
        found[name] = statistics.median(times)
    return found


def main() -> None:
    """Run the job that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=("train", "encode", "growth"))
    parser.add_argument("name")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--ranks", type=Path)
    parser.add_argument("--vocab-size", type=int)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.job == "train":
        result = measure_training(options.name, options.corpus, options.vocab_size)
    elif options.job == "encode":
        result = measure_encoding(options.name, options.corpus, options.ranks, options.threads)
    else:
        result = measure_growth(options.corpus, options.ranks)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
