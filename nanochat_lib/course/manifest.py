# Generated from chapters/90_course_tool.py by `course build`; edit that file.
"""What the course consists of, read from course.toml, and how a problem in it is told."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Problem",
    "CourseError",
    "LEVELS",
    "WORKSHOP",
    "Chapter",
    "Exercise",
    "Manifest",
    "read_source_text",
    "find_root",
    "library_root",
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


LEVELS = ("gentle", "steady", "steep")
WORKSHOP = "Workshop"  # the part that a reader of ideas can skip


@dataclass(frozen=True)
class Chapter:
    """Hold one `[[chapter]]` table: "06_attention" orders the folder, "attention" is its slug elsewhere.

    Args:
        stem: the file's name without its ending.
        part: the part of the course that it belongs to.
        asks: its question, for the map.
        level: one of LEVELS.
        needs: slugs of chapters to read before it.
        line: where its table stands in course.toml.
    """

    stem: str
    part: str = ""
    asks: str = ""
    level: str = "gentle"
    needs: tuple[str, ...] = ()
    line: int = 1

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
    parts: tuple[str, ...] = ()

    def by_part(self) -> dict[str, list[Chapter]]:
        """Map each part, in the order of the map, to its chapters by number."""
        ordered = sorted(self.chapters, key=lambda chapter: chapter.stem)
        return {part: [c for c in ordered if c.part == part] for part in self.parts}

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


def library_root() -> Path:
    """Return the folder of course.toml beside the library: the course, wherever one stands.

    Raises:
        CourseError: the library was installed without its course.
    """
    return find_root(Path(__file__).resolve().parents[2])


def _fields(table: dict, what: str, line: int, expected: dict[str, type]) -> list:
    """Return the fields of a table in the order of `expected`; lists become tuples of text."""
    for key, kind in expected.items():
        if not isinstance(table.get(key), kind):
            name = table.get("name", table.get("file", "?"))
            said = f"{what} {name!r}: {key} is {table.get(key)!r}"
            raise CourseError(Problem("course.toml", line, said, f"give a {kind.__name__}"))
    values = [table[key] for key in expected]
    return [tuple(map(str, v)) if isinstance(v, list) else v for v in values]


def _tables(tables: dict, name: str, text: str) -> list[tuple[dict, int]]:
    """Pair every [[name]] table with its line, which is only for messages."""
    found = tables.get(name, [])
    if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
        raise CourseError(Problem("course.toml", 1, f"{name} is no table", f"write [[{name}]]"))
    header = re.compile(rf"\s*\[\[\s*{name}\s*\]\]")
    places = [n for n, line in enumerate(text.split("\n"), 1) if header.match(line)]
    return list(zip(found, places if len(places) == len(found) else [1] * len(found)))


def _chapter(table: dict, line: int, parts: tuple[str, ...], earlier: list[Chapter]) -> Chapter:
    expected = {"file": str, "part": str, "asks": str, "level": str, "needs": list}
    stem, part, asks, level, needs = _fields(table, "chapter", line, expected)
    slugs = [chapter.slug for chapter in earlier]
    late = [slug for slug in needs if slug not in slugs]
    way_out = ""
    if not re.fullmatch(r"\d\d_[a-z][a-z0-9_]*", stem):
        way_out = 'file is a stem such as "06_attention"'
    elif stem.split("_", 1)[1] in slugs:
        way_out = "a slug stands once"
    elif part not in parts or level not in LEVELS:
        way_out = f"part is one of {', '.join(parts)}; level one of {', '.join(LEVELS)}"
    elif late:
        way_out = f"{late[0]} is no chapter above it"
    if way_out:
        raise CourseError(Problem("course.toml", line, f"chapter {stem!r}", way_out))
    return Chapter(stem, part, asks, level, needs, line)


def read_manifest(root: Path) -> Manifest:
    """Read course.toml.

    Args:
        root: the folder that holds course.toml.

    Returns:
        The title, the chapters in the order of their imports, and the exercises; other tables are
        left alone.

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
    title, parts = _fields(tables, "course", 1, {"title": str, "parts": list})
    chapters: list[Chapter] = []
    for table, line in _tables(tables, "chapter", text):
        chapters.append(_chapter(table, line, parts, chapters))
    expected = {"chapter": str, "name": str, "minutes": int, "importance": int, "hints": list}
    exercises = [
        Exercise(*_fields(table, "exercise", line, expected), line)
        for table, line in _tables(tables, "exercise", text)
    ]
    return Manifest(title, tuple(chapters), tuple(exercises), parts)
