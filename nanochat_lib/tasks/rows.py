# Generated from chapters/12_tasks.py by `course build`; edit that file.
"""Open a Hugging Face data set, from local files or from the hub."""

from pathlib import Path

__all__ = ["load_rows"]


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
        A `datasets.Dataset`: memory-mapped rows, each a dict.

    Raises:
        ValueError: the file is missing, empty or of another kind.
    """
    import datasets  # takes a second to import; most chapters that import tasks never read files

    if path is None:
        return datasets.load_dataset(hub_name, subset, split=split)
    path = Path(path)
    kind = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}.get(path.suffix)
    if kind is None or not path.is_file():
        raise ValueError(
            f"{path} is not a .json, .jsonl or .parquet file; omit path to use the hub"
        )
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    return datasets.load_dataset(kind, data_files=str(path), split="train")
