# Generated from chapters/01_text.py by `course build`; edit that file.
"""Which files of a folder hold data, and JSON out of them, line by line."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

__all__ = ["numbered_json", "NO_ROWS", "JSON_NAME", "data_files", "json_rows"]


def numbered_json(path: Path | str) -> Iterator[tuple[int, object]]:
    """Read pairs of line number and JSON value, from a plain or a compressed file."""
    with io.BufferedReader(pa.input_stream(str(path), compression="detect")) as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")  # a BOM is dropped
                if text.strip():
                    yield number, json.loads(text)
            except UnicodeDecodeError as error:
                guess = "UTF-16" if b"\0" in line else "Latin-1"
                raise ValueError(
                    f"{path}, line {number} is not UTF-8 at byte {error.start} ({guess}?): convert it"
                ) from error
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is no JSON: {error}") from error


NO_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
JSON_NAME = re.compile(r".+\.(json|jsonl|ndjson)(\.gz|\.bz2|\.zst)?")


def data_files(folder_or_file: Path) -> tuple[list[Path], list[Path]]:
    """List the parquet files and the JSON files of a local data set, each in order.

    Hidden parts of a path (those that begin with . or _), records about the data, copies and locks
    are no data.
    """
    if folder_or_file.is_file():
        files = [folder_or_file]
    else:
        files = sorted(path for path in folder_or_file.rglob("*") if path.is_file())
        names = {path: path.relative_to(folder_or_file).parts for path in files}
        files = [path for path in files if not any(part[0] in "._" for part in names[path])]
    parquet = [path for path in files if path.suffix == ".parquet"]
    lines = [path for path in files if JSON_NAME.fullmatch(path.name) and path.name not in NO_ROWS]
    return parquet, lines


def json_rows(path: Path) -> Iterator[tuple[str, object]]:
    """Read (place, row) pairs of JSON lines, or of one JSON list of rows."""
    with pa.input_stream(str(path), compression="detect") as file:
        is_list = (
            ".json" in path.suffixes and file.read(100).lstrip(b"\xef\xbb\xbf \r\n\t")[:1] == b"["
        )
    if not is_list:
        for count, (number, row) in enumerate(numbered_json(path)):
            yield f"line {number}, row {count}", row
        return
    with pa.input_stream(str(path), compression="detect") as file:
        try:
            rows = json.loads(file.read().decode("utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON in UTF-8: {error}") from error
    yield from ((f"row {number}", row) for number, row in enumerate(rows))
