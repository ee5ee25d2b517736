# Generated from chapters/20_capstone.py by `course build`; edit that file.
"""Stage 1: write the corpus."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nanochat_lib.common import local_generator
from nanochat_lib.data.documents import list_shards, python_docs, stream_documents, write_shards
from nanochat_lib.data.synthetic import curriculum, validation_documents
from nanochat_lib.data.tinyworld import World

__all__ = [
    "DataConfig",
    "passages",
    "english_passages",
    "spread",
    "prepare_data",
    "training_shards",
    "validation_sets",
]


@dataclass(frozen=True)
class DataConfig:
    """Size the corpus: synthetic documents, and a share of real English.

    The warm-up documents come first, then `documents` of the mix, with the English spread evenly among them.
    English is cut into passages of about `passage_bytes`, because a packed row crops what does not fit it.
    """

    world_seed: int = 0
    seed: int = 0
    warmup_documents: int = 1000
    documents: int = 4000
    validation_documents: int = 200
    english_bytes: int = 100_000
    english_validation_bytes: int = 20_000
    passage_bytes: int = 500


def passages(text: str, most_bytes: int) -> Iterator[str]:
    """Cut a text between lines into pieces of at most `most_bytes`; a longer line stays whole."""
    piece, size = [], 0
    for line in re.findall(r".*\n|.+", text):  # splitlines() would cut at form feeds and others too
        n_bytes = len(line.encode("utf-8"))
        if piece and size + n_bytes > most_bytes:
            yield "".join(piece)
            piece, size = [], 0
        piece.append(line)
        size += n_bytes
    if piece:
        yield "".join(piece)


def english_passages(config: DataConfig) -> tuple[list[str], list[str]]:
    """Take passages of Python's documentation for training and for validation, never from one document.

    Returns:
        Training passages, shuffled, and validation passages (from every tenth document).
    """
    parts = {"train": [], "validation": []}
    room = {"train": config.english_bytes, "validation": config.english_validation_bytes}
    for i, text in enumerate(python_docs()):
        if max(room.values()) <= 0:
            break
        part = "validation" if i % 10 == 9 else "train"
        for passage in passages(text, config.passage_bytes):
            if room[part] > 0:
                parts[part].append(passage)
                room[part] -= len(passage.encode("utf-8"))
    local_generator("english", config.seed).shuffle(parts["train"])
    return parts["train"], parts["validation"]


def spread(documents: Iterable[str], extras: list[str], total: int) -> Iterator[str]:
    """Mix extras evenly into a stream of about `total` documents.

    Example: documents a b c d, extras x y, total 4 -> a b x c d y.
    """
    given = 0
    for number, document in enumerate(documents, start=1):
        yield document
        due = number * len(extras) // max(total, 1)
        yield from extras[given:due]
        given = max(given, due)


def prepare_data(folder: Path, inputs: dict[str, Path], config: DataConfig) -> dict:
    """Write the training shards and two validation sets; count documents and bytes of each."""
    world = World(config.world_seed)
    english, english_held_out = english_passages(config)
    if config.warmup_documents:
        warmup = curriculum(world, config.warmup_documents, 0, config.seed)
        write_shards(warmup, folder / "warmup")
    mixture = curriculum(world, 0, config.documents, config.seed)
    write_shards(spread(mixture, english, config.documents), folder / "train")
    # Another seed: validation asks for documents of the same kinds, not for the same documents.
    validation = validation_documents(world, config.validation_documents, config.seed + 1)
    write_shards(validation, folder / "validation_tinyworld")
    if english_held_out:
        write_shards(english_held_out, folder / "validation_english")
    counts = {}
    for part in ("train", "validation_english", "validation_tinyworld", "warmup"):
        shards = list_shards(folder / part) if (folder / part).exists() else []
        sizes = (
            [len(text.encode()) for text, _ in stream_documents(shards, loop=False)]
            if shards
            else []
        )
        counts[part] = {"documents": len(sizes), "bytes": sum(sizes)}
    english_bytes = sum(len(text.encode()) for text in english)
    return {"parts": counts, "english_share": english_bytes / counts["train"]["bytes"]}


def training_shards(data: Path) -> list[Path]:
    """List the shards of pretraining text in reading order: the warm-up, if any, then the mixture."""
    warmup = data / "warmup"
    return (list_shards(warmup) if warmup.exists() else []) + list_shards(data / "train")


def validation_sets(data: Path) -> dict[str, list[Path]]:
    """Map the name of each validation set that was written to its shards."""
    names = ("validation_english", "validation_tinyworld")
    return {name: list_shards(data / name) for name in names if (data / name).exists()}
