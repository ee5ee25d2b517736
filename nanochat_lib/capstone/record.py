# Generated from chapters/91_pipeline.py by `course build`; edit that file.
"""What a stage leaves in its folder: a record, files, and the proof that the files are its own."""

import json
from fnmatch import fnmatchcase
from pathlib import Path

from nanochat_lib.common import atomic_write, remove_files

__all__ = [
    "read_json",
    "read_record",
    "file_sizes",
    "reason_to_run",
    "strangers",
    "check_no_strangers",
    "forget",
]


def read_json(path: Path) -> dict | list | float:
    """Read one stored piece of a run.

    Raises:
        ValueError: it is no JSON, with its name.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        way_out = "move its folder away, and nanochat run makes it again"
        raise ValueError(f"{path} is damaged ({error}): {way_out}") from error


def read_record(folder: Path) -> dict | None:
    """Read what a stage left in its folder, None if it never started.

    Raises:
        ValueError: there is a stage.json, but it is no record.
    """
    path = folder / "stage.json"
    record = read_json(path) if path.exists() else None
    if record is not None and not (
        isinstance(record, dict) and {"wanted", "state"} <= record.keys()
    ):
        raise ValueError(f"{path} is not the record of a stage: move {folder} away")
    return record


def file_sizes(folder: Path, patterns: tuple[str, ...] = ("*",)) -> dict[str, int]:
    """Map each file that matches a pattern to its size in bytes, without records and hidden ones."""
    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): path.stat().st_size
        for name, path in files.items()
        if name.as_posix() not in ("stage.json", "seconds.json")
        and not any(part.startswith(".") for part in name.parts)
        and any(fnmatchcase(name.as_posix(), pattern) for pattern in patterns)
    }


def reason_to_run(folder: Path, wanted: dict) -> str | None:
    """Say why a stage has to run; None if the result in its folder still stands.

    Args:
        folder: the stage's folder.
        wanted: what its result depends on now, from `stage_inputs`.
    """
    record = read_record(folder)
    if record is None:
        return "not run yet"
    for part in ("settings", "inputs", "code"):
        old, new = record["wanted"][part], wanted[part]
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            return f"{part} changed: {', '.join(changed[:3])}{more}"
    if record["state"] not in ("running", "done"):
        return "not run yet"
    if record["state"] == "running":
        return "continues where it was stopped"
    present = file_sizes(folder)
    broken = [name for name, size in record["files"].items() if present.get(name) != size]
    return f"{broken[0]} is missing or has another size" if broken else None


def strangers(folder: Path, writes: tuple[str, ...] = ("*",)) -> list[str]:
    """List the files in a stage's folder that the stage did not write; hidden ones do not count."""
    record = read_record(folder)
    if record is None:
        own = {}
    else:
        own = record["files"] if "files" in record else file_sizes(folder, writes)
    return sorted(file_sizes(folder).keys() - own.keys())


def check_no_strangers(folder: Path, writes: tuple[str, ...] = ("*",)) -> None:
    """Raise ValueError if files of somebody else stand where a stage is going to work."""
    found = strangers(folder, writes)
    if found:
        way_out = "move it away, or give the run another --name"
        raise ValueError(f"{folder / found[0]} was not written by this run: {way_out}")


def forget(folder: Path, writes: tuple[str, ...] = ("*",)) -> None:
    """Remove what a stage wrote. Its record stays, as the proof, until the next one replaces it.

    Args:
        folder: the stage's.
        writes: patterns of what the stage writes, for one that never finished.

    Raises:
        ValueError: there is a file that it did not write; then nothing is removed.
    """
    check_no_strangers(folder, writes)
    record = read_record(folder)
    if record is not None:
        atomic_write(folder / "stage.json", json.dumps(record | {"state": "removing"}))
        remove_files(folder, [*file_sizes(folder), "seconds.json"])
