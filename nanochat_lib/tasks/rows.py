# Generated from chapters/15_tasks.py by `course build`; edit that file.
"""Open a Hugging Face data set, from local files or from the hub."""

from abc import abstractmethod
from pathlib import Path

from nanochat_lib.data.files import json_rows
from nanochat_lib.data.parquet import open_parquet
from nanochat_lib.tasks.base import Task
from nanochat_lib.tokenizer.conversation import validate_conversation

__all__ = ["load_rows", "required", "RowTask"]


def load_rows(
    path: str | Path | None, hub_name: str, subset: str | None = None, split: str = "train"
):
    """Open a Hugging Face data set: from local files, or from the hub by name.

    Args:
        path: a .json, .jsonl or .parquet file with the hub's columns; None downloads from the hub.
        hub_name: such as "openai/gsm8k".
        subset: the hub's configuration, such as "main".
        split: the hub's split; a local file has only one, whatever it is called.

    Returns:
        A `datasets.Dataset`: rows, each a dict.

    Raises:
        ValueError: the file is missing, empty, damaged or of another kind, with its name.
    """
    import datasets  # takes a second to import; most chapters that import tasks never read files

    if path is None:
        return datasets.load_dataset(hub_name, subset, split=split)
    path = Path(path)  # read literally; load_dataset would take it as a pattern
    if path.suffix not in (".json", ".jsonl", ".parquet") or not path.is_file():
        raise ValueError(
            f"{path} is not a .json, .jsonl or .parquet file; omit path to use the hub"
        )
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    if path.suffix == ".parquet":
        return datasets.Dataset(open_parquet(path).read())
    rows = []
    for place, row in json_rows(path):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, {place} is no JSON object: {row!r:.60}")
        rows.append(row)
    return datasets.Dataset.from_list(rows)


def required(row: dict, **kinds: type) -> list:
    """Return the named columns of a row, in order; ValueError names one of another kind."""
    for name, kind in kinds.items():
        if not isinstance(row.get(name), kind):
            found = repr(row[name]) if name in row else f"missing, among {', '.join(row)}"
            raise ValueError(f"column {name} is {found:.80}, expected {kind.__name__}")
    return [row[name] for name in kinds]


class RowTask(Task):
    """A task over the rows of a data set; a subclass reads one row. Errors name data set and row."""

    def __init__(self, path: str | Path | None, hub_name: str, subset: str | None, split: str):
        super().__init__(split)
        self.rows = load_rows(path, hub_name, subset, split)
        self.source = path or hub_name

    @abstractmethod
    def read_row(self, row: dict) -> dict:
        """Build the conversation; ValueError where the row does not hold one."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[self.check_index(index)]
        try:
            return validate_conversation(self.read_row(row))
        except ValueError as error:
            raise ValueError(f"{self.source}, row {index}: {error}") from error
