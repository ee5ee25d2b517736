# Generated from chapters/01_text.py by `course build`; edit that file.
"""Parquet files of text: a shard written whole, one row group read alone."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat_lib.common import Ranks, replace_surrogates

__all__ = [
    "PROOF",
    "SCHEMA",
    "open_parquet",
    "is_ours",
    "write_shard",
    "row_groups",
    "read_row_group",
]

# The metadata travel inside each file, and prove later that we wrote it.
PROOF = {b"written_by": b"nanochat_lib write_shards"}
SCHEMA = pa.schema([pa.field("text", pa.string(), nullable=False)], metadata=PROOF)


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a parquet file.

    Raises:
        ValueError: it is something else, or cut short, with its name and the way out.
    """
    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        with open(path, "rb") as file:
            start = file.read(100).lstrip()
        what = f"it starts with {start[:12]!r}"
        if start.startswith(b"version https://git-lfs"):
            what = "it is a Git LFS pointer: run git lfs pull"
        elif start.startswith(b"<"):
            what = "it is a web page: download the file itself"
        elif start.startswith(b"PAR1"):
            what = "it is cut short: download or write it again"
        elif not start:
            what = "it is empty: download or write it again"
        raise ValueError(f"{path} is no parquet file; {what}") from error


def is_ours(path: Path) -> bool:
    """True if write_shards wrote this file."""
    try:
        with open_parquet(path) as file:
            return PROOF.items() <= (file.schema_arrow.metadata or {}).items()
    except ValueError:
        return False


def write_shard(path: Path, documents: Iterable[str], row_group_size: int) -> None:
    """Write one parquet file, a row group at a time; the name appears when the file is whole.

    Args:
        path: the file; its folder must exist.
        documents: the texts, in order.
        row_group_size: documents a row group; the last may have fewer.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
            documents = iter(documents)
            while batch := list(islice(documents, row_group_size)):
                batch = [replace_surrogates(text) for text in batch]
                writer.write_table(pa.table({"text": batch}, schema=SCHEMA))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def row_groups(shards: list[Path], ranks: Ranks) -> Iterator[tuple[int, int, int, int]]:
    """List (shard, group, first row, end row) of the row groups that belong to a rank.

    Groups count through all shards, so that a corpus of many one-group shards still feeds every
    rank.
    """
    n_groups = 0
    for shard, path in enumerate(shards):
        with open_parquet(path) as file:
            metadata, row = file.metadata, 0
        for group in range(metadata.num_row_groups):
            end = row + metadata.row_group(group).num_rows
            if n_groups % ranks.world_size == ranks.rank:
                yield shard, group, row, end
            row, n_groups = end, n_groups + 1
    if n_groups <= ranks.rank:
        raise ValueError(
            f"{n_groups} row groups for {ranks.world_size} ranks leave rank {ranks.rank} "
            "without text: write the shards with a smaller row_group_size"
        )


def read_row_group(path: Path, group: int, column: str = "text") -> list[str]:
    """Read the texts of one row group and nothing else of the file.

    Raises:
        ValueError: there is no such column, or one without text; the message names file and row.
    """
    with open_parquet(path) as file:
        if column not in file.schema_arrow.names:
            raise ValueError(f"{path} has columns {file.schema_arrow.names}, but no {column!r}")
        kind, start = file.schema_arrow.field(column).type, 0
        try:
            texts = file.read_row_group(group, columns=[column]).column(column).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{path} is damaged ({error}): download or write it again") from error
        for before in range(group):
            start += file.metadata.row_group(before).num_rows
    for row, text in enumerate(texts, start):
        if not isinstance(text, str):
            raise ValueError(
                f"{path}, row {row}: no text in {column!r}, which holds {kind}: {text!r:.60}"
            )
    return texts
