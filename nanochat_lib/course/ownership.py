# Generated from chapters/90_course_tool.py by `course build`; edit that file.
"""Whose a file is: the record of what a build wrote."""

import hashlib
import json
from pathlib import Path

from nanochat_lib.course.manifest import CourseError, Problem

__all__ = ["RECORD", "text_hash", "file_hash", "read_record", "record_text", "obstacles"]

RECORD = "generated.json"


def text_hash(text: str) -> str:
    """Return 16 hex digits of a file with this text."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def file_hash(path: Path) -> str | None:
    """Return 16 hex digits of a file's bytes; None for a link, a folder and what is not there."""
    if path.is_symlink() or not path.is_file():
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read_record(root: Path) -> dict[str, str]:
    """Read path -> hash of what builds wrote; two hashes stand there while a file is being replaced.

    Raises:
        CourseError: the record is damaged, by a merge for example.
    """
    path = root / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not all(isinstance(value, str) for value in dict(record).values()):
            raise ValueError("every value must be a string of hex digits")
    except (ValueError, TypeError) as error:
        way_out = (
            f"`git checkout -- {RECORD}`, or keep either side of a merge; a build mends the rest"
        )
        line = getattr(error, "lineno", 1)
        raise CourseError(Problem(RECORD, line, f"damaged: {error}", way_out)) from None
    return record


def record_text(record: dict[str, str]) -> str:
    """Write the record with a line a path, so that git merges it."""
    return json.dumps(record, indent=0, sort_keys=True, ensure_ascii=False) + "\n"


def obstacles(root: Path, files: dict[str, str | None], record: dict[str, str]) -> list[Problem]:
    """Find the files that may not be replaced, because nothing proves that a build wrote them.

    Args:
        root: the folder of course.toml.
        files: path -> what would be written there; None where that is not known, or nothing.
        record: from `read_record`.
    """
    problems = []
    for path, text in files.items():
        found = file_hash(root / path)
        if found in record.get(path, "").split() or (text is not None and found == text_hash(text)):
            continue
        if found is not None or (root / path).is_symlink() or (root / path).exists():
            what = "was changed since `course build` wrote it" if path in record else ""
            what = what or "was not written by `course build`"
            way_out = "move it to a folder of your own, then run `course build` again"
            problems.append(Problem(path, 1, what, way_out))
    return problems
