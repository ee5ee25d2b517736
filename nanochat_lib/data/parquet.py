# Generated from chapters/01_text.py by `course build`; edit that file.
"""Parquet files of text: a shard written whole, one row group read alone."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat_lib.common import Ranks

__all__ = ["SCHEMA", "write_shard", "row_groups", "read_row_group"]

SCHEMA = pa.schema([pa.field("text", pa.string(), nullable=False)])


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
        metadata, row = pq.read_metadata(path), 0
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


def read_row_group(path: Path, group: int) -> list[str]:
    """Read the texts of one row group and nothing else of the file."""
    with pq.ParquetFile(path) as file:
        if "text" not in file.schema_arrow.names:
            raise ValueError(f"{path} has columns {file.schema_arrow.names}, but no 'text'")
        return file.read_row_group(group, columns=["text"]).column("text").to_pylist()
