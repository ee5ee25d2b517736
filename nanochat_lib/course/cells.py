# Generated from chapters/90_course_tool.py by `course build`; edit that file.
"""Read a percent script into cells, and the directives that say where a cell goes."""

import ast
import difflib
import hashlib
import io
import keyword
import re
import tokenize
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest

from nanochat_lib.course.manifest import CourseError, Problem

__all__ = [
    "HEADER",
    "MARKER",
    "DIRECTIVES",
    "lines_of",
    "comment_lines",
    "Directive",
    "Cell",
    "read_cells",
    "parse_cell",
    "cell_ids",
]

HEADER = """\
# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---
"""
MARKER = re.compile(r"# %%(?P<markdown> \[markdown\])?$")
DIRECTIVES = {  # name: the fewest and the most words that may follow it
    "default_exp": (1, 1),
    "export": (0, 1),
    "exercise": (1, 1),
    "hide": (0, 0),
}


def lines_of(text: str) -> list[str]:
    """Cut a source into lines where Python ends them, which a form feed or U+2028 does not."""
    lines = re.split(r"\r\n|\r|\n", text)
    return lines if lines[-1] else lines[:-1]


@cache
def comment_lines(source: str, indented: bool = False) -> frozenset[int]:
    """Number the lines that are comments, from their first column or (indented) anywhere.

    A line inside a string is no comment, whatever it looks like.
    """
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source, newline="").readline))
    except (tokenize.TokenError, SyntaxError):  # reported where the cell is parsed
        return frozenset(range(1, len(lines_of(source)) + 1))
    comments = [t for t in tokens if t.type == tokenize.COMMENT]
    return frozenset(t.start[0] for t in comments if indented or t.start[1] == 0)


@dataclass(frozen=True)
class Directive:
    """Hold one `#| name argument` line."""

    name: str
    argument: str
    line: int


@dataclass(frozen=True)
class Cell:
    """Hold one cell as a notebook shows it, and the line of the file where it starts."""

    kind: str
    source: str
    line: int
    directives: tuple[Directive, ...] = ()

    def has(self, name: str) -> bool:
        return any(directive.name == name for directive in self.directives)

    def comment(self, key: str) -> str | None:
        """Return what follows `# key:` on a line of its own, or None."""
        for line in self.comments:
            if line.startswith(f"# {key}:"):
                return line.removeprefix(f"# {key}:").strip()
        return None

    @property
    def comments(self) -> list[str]:
        """The lines that are comments."""
        lines = lines_of(self.source)
        return [lines[number - 1] for number in sorted(comment_lines(self.source))]

    @property
    def code(self) -> str:
        """The source without directives and nbval marks; line numbers stay as they are."""
        lines = lines_of(self.source)
        comments = comment_lines(self.source)
        return "\n".join(
            "" if number in comments and re.match(r"#\||# NBVAL_", line) else line
            for number, line in enumerate(lines, 1)
        )


def _directive(path: str, number: int, line: str) -> Directive:
    words = line[2:].split()
    name = words[0] if words else ""
    if name not in DIRECTIVES:
        nearest = difflib.get_close_matches(name, DIRECTIVES, n=1, cutoff=0.0)[0]
        raise CourseError(
            Problem(path, number, f"unknown directive {line!r}", f"did you mean `#| {nearest}`?")
        )
    fewest, most = DIRECTIVES[name]
    if not fewest <= len(words) - 1 <= most:
        expected = f"{fewest}" if fewest == most else f"{fewest} or {most}"
        what = f"{line!r} has {len(words) - 1} words after its name"
        raise CourseError(Problem(path, number, what, f"`#| {name}` takes {expected}"))
    argument = words[1] if len(words) > 1 else ""
    named = re.fullmatch(r"[a-z_]\w*(\.[a-z_]\w*)*", argument)
    if argument and not (named and not any(map(keyword.iskeyword, argument.split(".")))):
        raise CourseError(
            Problem(path, number, f"{argument!r} is no name", "write it like model.gpt")
        )
    return Directive(name, argument, number)


def _directives(path: str, source: str, first: int) -> tuple[Directive, ...]:
    found, in_code, comments = [], False, comment_lines(source)
    for number, line in enumerate(lines_of(source), first):
        if line.startswith("#|") and number - first + 1 in comments:
            if in_code:
                way_out = "directives come first in their cell"
                raise CourseError(Problem(path, number, f"{line!r} after code", way_out))
            found.append(_directive(path, number, line))
        elif line.strip() and not line.startswith("#"):
            in_code = True
    return tuple(found)


def _markdown(path: str, lines: list[str], first: int) -> str:
    for number, line in enumerate(lines, first):
        if line != "#" and not line.startswith("# "):
            way_out = "start every line of a markdown cell with `# `"
            raise CourseError(Problem(path, number, f"{line!r} in a markdown cell", way_out))
    return "\n".join(line[2:] for line in lines)


def _cell(path: str, kind: str, lines: list[str], first: int) -> Cell:
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    while lines and not lines[0].strip():
        lines, first = lines[1:], first + 1
    if kind == "markdown":
        return Cell(kind, _markdown(path, lines, first), first)
    source = "\n".join(lines)
    return Cell(kind, source, first, _directives(path, source, first))


def read_cells(text: str, path: str) -> list[Cell]:
    """Cut a percent script into its cells.

    Args:
        text: the script.
        path: its name in messages.

    Returns:
        The cells in order; the header is not a cell.

    Raises:
        CourseError: a line outside every cell, markdown that is no comment, or a bad directive.
    """
    lines = lines_of(text)
    for number, line in enumerate(lines, 1):
        if re.match(r"#\s*%%", line) and not line.startswith("# %%"):
            way_out = "write `# %%` at the start of the line"
            raise CourseError(Problem(path, number, f"cell marker {line!r}", way_out))
    marks = [number for number, line in enumerate(lines) if line.startswith("# %%")]
    top = lines[: marks[0]] if marks else lines
    while top and not top[-1]:
        top.pop()
    for number, (line, expected) in enumerate(zip_longest(top, lines_of(HEADER)), 1):
        if top and line != expected:
            way_out = f"write {expected!r} there" if expected else "begin a cell above it: `# %%`"
            raise CourseError(Problem(path, number, f"the header differs: {line!r}", way_out))
    cells = []
    for begin, end in zip(marks, [*marks[1:], len(lines)]):
        mark = MARKER.fullmatch(lines[begin])
        if mark is None:
            way_out = "write `# %%` or `# %% [markdown]`"
            raise CourseError(Problem(path, begin + 1, f"cell marker {lines[begin]!r}", way_out))
        kind = "markdown" if mark["markdown"] else "code"
        cells.append(_cell(path, kind, lines[begin + 1 : end], begin + 2))
    return cells


def parse_cell(path: str, cell: Cell) -> ast.Module:
    """Parse a code cell.

    Raises:
        CourseError: a syntax error, with its line in the file.
    """
    try:
        return ast.parse(cell.code)
    except SyntaxError as error:
        line = cell.line + (error.lineno or 1) - 1
        problem = Problem(path, line, f"syntax error: {error.msg}", "mend this line")
        raise CourseError(problem) from None


def cell_ids(cells: list[Cell]) -> list[str]:
    """Derive an id for each cell from its content; equal cells are told apart by their order."""
    seen: dict[str, int] = {}
    ids = []
    for cell in cells:
        key = f"{cell.kind}\n{cell.source}"
        seen[key] = seen.get(key, 0) + 1
        ids.append(hashlib.sha256(f"{key}\n{seen[key]}".encode()).hexdigest()[:8])
    return ids
