# Generated from chapters/01_text.py by `course build`; edit that file.
"""Documents: where text comes from, and how to store, stream and resume a corpus."""

import ast
import hashlib
import os
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path

from nanochat_lib.common import Ranks, replace_surrogates
from nanochat_lib.data.files import data_files, json_rows, numbered_json
from nanochat_lib.data.parquet import is_ours, open_parquet, read_row_group, row_groups, write_shard

__all__ = [
    "Position",
    "docstrings",
    "SKIPPED_FOLDERS",
    "python_docs",
    "drop_duplicates",
    "read_json_lines",
    "read_text_files",
    "write_shards",
    "list_shards",
    "stream_documents",
    "from_datasets",
]


@dataclass(frozen=True, order=True)
class Position:
    """Say which document of a corpus comes next; positions compare in reading order.

    Args:
        epoch: how many times the corpus has been read to its end.
        shard: index in the list of shards.
        row: index of the document in the shard.
    """

    epoch: int = 0
    shard: int = 0
    row: int = 0


def docstrings(source: bytes | str) -> Iterator[str]:
    """Read the docstrings of a Python file, its classes and their functions, top to bottom."""
    nodes: list[ast.AST] = [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        text = ast.get_docstring(node)
        if text:
            yield text
        inner = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        nodes.extend(child for child in reversed(node.body) if isinstance(child, inner))


SKIPPED_FOLDERS = frozenset(
    "site-packages dist-packages test tests idle_test idlelib lib2to3 distutils ensurepip "
    "turtledemo encodings pydoc_data __pycache__".split()
)


def python_docs() -> Iterator[str]:
    """Read the English that every Python installation carries: help topics, then docstrings.

    The documents come in an order that depends on the Python version only: topics by name, then
    docstrings by file and line. Nothing is imported or run: each source file of the standard
    library is parsed.

    Returns:
        About 7,000 documents, 2 MB. The first 80 (topics) take no time, the rest 3 seconds.
    """
    from pydoc_data.topics import topics  # half a megabyte that nobody else needs

    for name in sorted(topics):
        yield topics[name]
    library = Path(sysconfig.get_path("stdlib"))
    for entry in sorted(library.iterdir()):
        if entry.name not in SKIPPED_FOLDERS:  # never walk site-packages, which may be huge
            for source in [entry] if entry.suffix == ".py" else sorted(entry.rglob("*.py")):
                if not SKIPPED_FOLDERS & set(source.relative_to(library).parts):
                    yield from docstrings(source.read_bytes())


def drop_duplicates(documents: Iterable[str]) -> Iterator[str]:
    """Pass each different document once, the first time it comes.

    Keeps 16 bytes a document instead of its text, so the memory grows with the number of documents
    alone.
    """
    seen = set()
    for text in documents:
        digest = hashlib.blake2b(replace_surrogates(text).encode("utf-8"), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            yield text


def read_json_lines(path: Path | str) -> Iterator[dict | list]:
    """Read a file with one JSON value a line, as the Hugging Face hub spells data sets.

    Args:
        path: taken literally; .gz, .bz2 and .zst are decompressed.

    Raises:
        ValueError: a line is no JSON or not UTF-8, with its number.

    Source: https://jsonlines.org: the line end is "\\n", not every character Unicode calls a line
        end.
    """
    for _, value in numbered_json(path):
        yield value


def read_text_files(paths: Iterable[Path | str]) -> Iterator[str]:
    """Read each file as one document.

    Raises:
        ValueError: a file is not UTF-8, with its name and the first wrong byte.
    """
    for path in paths:
        try:
            yield Path(path).read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} is not UTF-8 at byte {error.start}: convert it first"
            ) from error


def write_shards(
    documents: Iterable[str],
    folder: Path | str,
    documents_per_shard: int = 10_000,
    row_group_size: int = 256,
) -> list[Path]:
    """Write documents as parquet files shard_00000.parquet, ... with one column, "text".

    Holds one row group in memory at a time. The new shards replace those of an earlier corpus when
    all are written, so documents may come from these. A kill during that last step, which only
    renames, can leave shards of both.

    Args:
        documents: any number of texts, in the order to keep.
        folder: created if missing.
        documents_per_shard: length of every shard but the last.
        row_group_size: documents that a reader loads at once, and that one rank takes at a time.

    Returns:
        The shards' paths in order.

    Raises:
        ValueError: there are no documents, a size is below 1, or the folder holds shards that
            write_shards did not write. An earlier corpus is then as it was.
    """
    if documents_per_shard < 1 or row_group_size < 1:
        raise ValueError(f"sizes start at 1: got {documents_per_shard} and {row_group_size}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    old = sorted(folder.glob("shard_*.parquet"))
    for path in old:
        if not is_ours(path):
            raise ValueError(f"{path} was not written by write_shards: choose another folder")
    with tempfile.TemporaryDirectory(prefix=".new_shards_", dir=folder) as place:
        documents, names = iter(documents), []
        for first in documents:
            shard = chain([first], islice(documents, documents_per_shard - 1))
            names.append(f"shard_{len(names):05d}.parquet")
            write_shard(Path(place, names[-1]), shard, row_group_size)
        if not names:
            raise ValueError(
                f"no documents to write to {folder}: is the source an iterator already used up?"
            )
        for name in names:
            os.replace(Path(place, name), folder / name)
    for path in old:
        if path.name not in names:
            path.unlink()
    return [folder / name for name in names]


def list_shards(folder: Path | str) -> list[Path]:
    """List the finished parquet files of a folder by name; one that Spark wrote as a folder counts.

    Raises:
        ValueError: there are none.
    """
    paths = [path for path in Path(folder).glob("*.parquet") if path.name[0] not in "._"]
    parts = [part for path in paths if path.is_dir() for part in path.glob("[!._]*.parquet")]
    shards = sorted(path for path in [*paths, *parts] if path.is_file())
    if not shards:
        raise ValueError(f"no parquet files in {folder}: write_shards makes them")
    return shards


def _stream(
    shards: list[Path], start: Position, ranks: Ranks, loop: bool
) -> Iterator[tuple[str, Position]]:
    """Yield what stream_documents promises; apart, so that wrong arguments fail at the call."""
    for epoch in count(start.epoch) if loop else [start.epoch]:
        for shard, group, row, end in row_groups(shards, ranks):
            if Position(epoch, shard, end) <= start:
                continue
            for i, text in enumerate(read_row_group(shards[shard], group), start=row):
                if Position(epoch, shard, i) >= start:
                    yield text, Position(epoch, shard, i + 1)


def stream_documents(
    shards: Iterable[Path | str],
    start: Position = Position(),
    ranks: Ranks = Ranks(),
    loop: bool = True,
) -> Iterator[tuple[str, Position]]:
    """Read a corpus document by document, each with the position to resume from after it.

    Rank r of w reads row groups r, r + w, r + 2w, ... so that no two ranks read the same document.
    Keep one position a rank, and resume with the same shards and the same number of ranks.

    Args:
        shards: parquet files with a column "text", in reading order.
        start: the first document to yield: a position that came with the last one used.
        ranks: this process among all.
        loop: start over at the end, for ever, with the epoch one higher.

    Returns:
        Pairs of the text and the position AFTER it.

    Raises:
        ValueError: no shards; a start beyond them; more ranks than row groups; a shard without
            "text".
    """
    shards = [Path(shard) for shard in shards]
    if not shards:
        raise ValueError("no shards to read: list_shards finds them in a folder")
    if start.shard >= len(shards):
        raise ValueError(f"{start} in a corpus of {len(shards)} shards: is it another corpus?")
    return _stream(shards, start, ranks, loop)


def _local_texts(path: Path, column: str) -> Iterator[str]:
    """Read a column of a file or folder; parquet files where there are any, else JSON."""
    parquet, lines = data_files(path)
    if not parquet and not lines:
        raise ValueError(f"{path} holds no parquet and no JSON files")
    for file in parquet:
        for group in range(open_parquet(file).num_row_groups):
            yield from read_row_group(file, group, column)
    for file in [] if parquet else lines:
        for place, row in json_rows(file):
            if not isinstance(row, dict) or not isinstance(row.get(column), str):
                shown = (
                    f"its columns are {sorted(row)}"
                    if isinstance(row, dict)
                    else f"it is {row!r:.60}"
                )
                raise ValueError(f"{file}, {place} has no text in {column!r}; {shown}")
            yield row[column]


def from_datasets(
    name_or_path: str | Path,
    split: str = "train",
    column: str = "text",
    config: str | None = None,
    streaming: bool = True,
) -> Iterator[str]:
    """Read one text column of a Hugging Face data set: local files, or a name on the hub.

    Args:
        name_or_path: a file or a folder of parquet or JSON files, taken literally, or a name such
            as "HuggingFaceFW/fineweb-edu".
        split: which part of a data set on the hub; local files are one part, whatever its name.
        column: the column that holds the text.
        config: the subset on the hub, such as "sample-10BT".
        streaming: read as we go; False downloads and converts the whole data set first.

    Raises:
        ValueError: a row has no text in that column, or a folder holds no data files.
    """
    if Path(name_or_path).exists():
        yield from map(replace_surrogates, _local_texts(Path(name_or_path), column))
        return
    from datasets import load_dataset  # takes a second or two

    rows = load_dataset(str(name_or_path), config, split=split, streaming=streaming)
    for number, row in enumerate(rows):
        if not isinstance(row.get(column), str):
            raise ValueError(
                f"row {number} has no text in {column!r}; its columns are {sorted(row)}"
            )
        yield replace_surrogates(row[column])
