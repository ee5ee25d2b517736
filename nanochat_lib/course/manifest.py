# Generated from chapters/90_course_tool.py by `course build`; edit that file.
"""What the course consists of, read from course.toml, and how a problem in it is told."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Problem",
    "CourseError",
    "Chapter",
    "Exercise",
    "Manifest",
    "read_source_text",
    "find_root",
    "read_manifest",
]


@dataclass(frozen=True)
class Problem:
    """Say what is wrong, where it stands, and the way out."""

    path: str
    line: int
    what: str
    way_out: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}\n    way out: {self.way_out}"


class CourseError(Exception):
    """Stop a command because of problems in the files that people write."""

    def __init__(self, *problems: Problem):
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


@dataclass(frozen=True)
class Chapter:
    """Name one chapter: "04_attention" orders the folder, "attention" is its slug everywhere else."""

    stem: str

    @property
    def slug(self) -> str:
        return self.stem.split("_", 1)[1]

    @property
    def path(self) -> str:
        return f"chapters/{self.stem}.py"


@dataclass(frozen=True)
class Exercise:
    """Hold one `[[exercise]]` table: what it is worth, and three hints that give away more each time."""

    chapter: str
    name: str
    minutes: int
    importance: int
    hints: tuple[str, ...]
    line: int


@dataclass(frozen=True)
class Manifest:
    """Hold what course.toml says, in its order; run profiles belong to the capstone."""

    title: str
    chapters: tuple[Chapter, ...]
    exercises: tuple[Exercise, ...]

    def find(self, slug: str) -> Chapter:
        """Return the chapter with this slug.

        Raises:
            CourseError: no chapter has it; the message lists those that exist.
        """
        for chapter in self.chapters:
            if slug in (chapter.slug, chapter.stem):
                return chapter
        known = ", ".join(chapter.slug for chapter in self.chapters)
        raise CourseError(Problem("course.toml", 1, f"no chapter {slug!r}", f"choose from {known}"))


def read_source_text(root: Path, path: str) -> str:
    """Read a file that people write; a byte order mark, which some editors put first, is no text.

    Raises:
        CourseError: it is not UTF-8.
    """
    try:
        return (root / path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise CourseError(Problem(path, line, "not UTF-8", "save the file as UTF-8")) from None


def find_root(start: Path) -> Path:
    """Return the nearest folder, from `start` upwards, that holds a course.toml.

    Raises:
        CourseError: there is none.
    """
    for folder in (start, *start.parents):
        if (folder / "course.toml").is_file():
            return folder
    raise CourseError(
        Problem("course.toml", 1, "not found here or above", "run inside the repository")
    )


def _exercise(table: dict, line: int) -> Exercise:
    expected = {"chapter": str, "name": str, "minutes": int, "importance": int, "hints": list}
    for key, kind in expected.items():
        if not isinstance(table.get(key), kind):
            what = f"exercise {table.get('name', '?')!r}: {key} is {table.get(key)!r}"
            raise CourseError(Problem("course.toml", line, what, f"give a {kind.__name__}"))
    hints = tuple(str(hint) for hint in table["hints"])
    return Exercise(
        table["chapter"], table["name"], table["minutes"], table["importance"], hints, line
    )


def _chapters(stems: object, line: int) -> tuple[Chapter, ...]:
    ok = isinstance(stems, list) and all(
        isinstance(stem, str) and re.fullmatch(r"\d\d_[a-z][a-z0-9_]*", stem) for stem in stems
    )
    if not ok or stems != sorted(set(stems)):
        way_out = 'list file stems such as "04_attention", each once, in the order of their numbers'
        raise CourseError(Problem("course.toml", line, f"chapters = {stems!r}", way_out))
    return tuple(Chapter(stem) for stem in stems)


def read_manifest(root: Path) -> Manifest:
    """Read course.toml.

    Args:
        root: the folder that holds course.toml.

    Returns:
        The title, the chapters in order, and the exercises; other tables are left alone.

    Raises:
        CourseError: no valid TOML, or a field is missing or has the wrong type.
    """
    text = read_source_text(root, "course.toml")
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"line (\d+)", str(error))
        line = int(place[1]) if place else 1
        raise CourseError(Problem("course.toml", line, str(error), "mend the TOML")) from None
    lines = text.split("\n")
    chapters_at = next((n for n, x in enumerate(lines, 1) if x.startswith("chapters")), 1)
    exercises = tables.get("exercise", [])
    if not isinstance(exercises, list) or not all(isinstance(table, dict) for table in exercises):
        raise CourseError(Problem("course.toml", 1, "exercise is no table", "write [[exercise]]"))
    found = [n for n, x in enumerate(lines, 1) if re.match(r"\s*\[\[\s*exercise\s*\]\]", x)]
    places = found if len(found) == len(exercises) else [1] * len(exercises)  # only for messages
    return Manifest(
        str(tables.get("title", "")),
        _chapters(tables.get("chapters"), chapters_at),
        tuple(map(_exercise, exercises, places)),
    )
