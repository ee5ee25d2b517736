# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---
# %% [markdown]
# # The course tool: how this course builds and checks itself
#
# You have read a notebook, imported a library and, perhaps, solved an exercise. All three say the same things, and
# nobody typed them three times. How do we keep a text, its results and a library in step, so that no reader ever meets
# a number that the code no longer prints? This chapter builds the tool that does it:
#
# ```python
# build(root, [])     # chapters -> library, executed notebooks, exercises
# check(root)         # {'sources': [], 'format': [], 'drift': [], ...}
# ```
#
# You need functions, dataclasses, and the idea that a program is also data: Python parses Python. No model is
# trained here, and torch is never imported, so that `course check` answers at once. On a laptop the chapter takes
# about 10 seconds, a good part of them in a kernel that it starts.
#
# One cell comes before everything else. It is for emergencies, and the last section but one explains it.


# %%
import re
import sys
from pathlib import Path

if sys.argv[1:] == ["--rebuild"]:
    script = re.split(r"^# %%.*\n", Path(__file__).read_text(encoding="utf-8"), flags=re.MULTILINE)
    exec("\n\n".join(cell for cell in script if cell.startswith("#| export")))
    print(build(find_root(Path.cwd()), ["course_tool"], execute=False))
    raise SystemExit


# %% [markdown]
#
# ## Ten lines are a chapter
#
# A chapter is one Python script. Lines that start with `# %%` cut it into cells, comments in a `[markdown]` cell are
# prose, and comments that start with `#|` are *directives*: orders to the tool. Here is a whole chapter, small enough
# to check by hand. (It is indented, so that its marks do not cut the chapter you are reading.)


# %%
from textwrap import dedent

small = dedent("""\
    # %% [markdown]
    # # Doubling: one number becomes two

    # %%
    #| default_exp numbers

    # %%
    #| export
    def double(x: float) -> float:
        return x + x


    # %%
    print(double(2))
    """)


# %% [markdown]
# It should become four cells, one module with one function, and a notebook that prints 4. Three other things can
# happen to such a file, and each needs an answer: it can be wrong, it can change, and the program can die halfway.
# We build for the wrong one first, since every other part reports mistakes.
#
# ## A mistake has a place and a way out
#
# Whoever reads an error message wants to know where to look and what to do. We make a message impossible to write
# without both.


# %%
#| default_exp course.manifest
# What the course consists of, read from course.toml, and how a problem in it is told.

# %%
#| export
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path


# %%
#| export
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


# %%
# NBVAL_CHECK_OUTPUT
print(
    Problem(
        "chapters/07_transformer.py",
        12,
        "unknown directive '#| exprot'",
        "did you mean `#| export`?",
    )
)


# %% [markdown]
# `Problem` is a value, so a check can collect many; `CourseError` carries problems up from where nothing sensible can
# follow. The pattern `path:line:` is the one that editors turn into a link.
#
# ## What the course consists of
#
# One file, `course.toml`, lists the chapters in the order of their imports, and the exercises. A folder listing would do
# for the chapters; a list that somebody wrote lets us notice a chapter that is missing, and say what each one asks.


# %%
#| export
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


# %% [markdown]
# Numbers stand in file names only. Everything else uses the slug, so a chapter can move without breaking a link.


# %%
#| export
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


# %%
#| export
def library_root() -> Path:
    """Return the folder of course.toml beside the library: the course, wherever one stands.

    Raises:
        CourseError: the library was installed without its course.
    """
    return find_root(Path(__file__).resolve().parents[2])


# %%
manifest = Manifest("toy", (Chapter("00_start"), Chapter("06_attention")), ())
assert manifest.find("attention").path == "chapters/06_attention.py"


# %% [markdown]
# Tables of a TOML file arrive as dictionaries of anything. We check them by hand, field by field: a dozen lines, and the
# message says which exercise and which line.


# %%
#| export
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


# %% [markdown]
# A chapter's table gets the same care: a stem of the right form, each slug once, a part that exists, and only needs that
# come earlier.


# %%
#| export
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


# %% [markdown]
# Tables that the course tool does not know are left alone: `[profile.laptop]`, say, belongs to the capstone.


# %%
# NBVAL_CHECK_OUTPUT
import tempfile

toml = """\
title = "toy"
parts = ["I"]

[[chapter]]
file = "00_small"
part = "I"
asks = "what is twice x?"
level = "gentle"
needs = []
"""
more = '\n[profile.laptop]\nsteps = 3\n\n[[exercise]]\nchapter = "small"\nname = "add"\n'
with tempfile.TemporaryDirectory() as folder:
    Path(folder, "course.toml").write_text(toml + more, encoding="utf-8")
    try:
        read_manifest(Path(folder))
    except CourseError as error:
        print(error)


# %% [markdown]
# ## Cutting a script into cells
#
# The format is called *percent*, and jupytext reads it. We write the reader again for one reason: a message needs the
# line where a cell starts, and jupytext does not tell. A test compares the two readers on every chapter of the course.


# %%
#| default_exp course.cells
# Read a percent script into cells, and the directives that say where a cell goes.

# %%
#| export
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


# %%
#| export
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


# %% [markdown]
# `Cell.code` blanks directives out instead of deleting them. Then line 3 of the code is line 3 of the cell, and a syntax
# error can be told with its line in the file.
#
# There are four directives. A misspelled one must not pass as a comment: the cell would silently drop out of the
# library. So any other word after `#|` is an error, and it names the nearest word that exists.


# %%
#| export
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


# %%
#| export
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


# %%
#| export
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


# %%
# NBVAL_CHECK_OUTPUT
cells = read_cells(small, "small.py")
for cell in cells:
    print(
        cell.line,
        cell.kind,
        [directive.name for directive in cell.directives],
        cell.source.split("\n")[0],
    )


# %% [markdown]
# Four cells, as expected. And a typing mistake:


# %%
# NBVAL_CHECK_OUTPUT
try:
    read_cells(small.replace("#| export", "#| exprot"), "small.py")
except CourseError as error:
    print(error)


# %% [markdown]
# A notebook stores an id for each cell. Jupyter draws them at random, so that two builds of one chapter would differ
# everywhere. We derive the id from the content; equal cells are counted.


# %%
#| export
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


# %%
# NBVAL_CHECK_OUTPUT
twins = read_cells("# %%\nx = 1\n\n# %%\nx = 1\n\n# %%\ny = 2\n", "twins.py")
print(cell_ids(twins))
assert len(set(cell_ids(twins))) == 3 and cell_ids(twins)[2] == cell_ids(twins[2:])[0]


# %% [markdown]
# ## From cells to a module
#
# Now the export. First we pair each export cell with its module.


# %%
#| default_exp course.exporter
# Turn a chapter's export cells into modules of the library.

# %%
#| export
import ast
import builtins
import re
import subprocess
import sys
import symtable
import tempfile
from pathlib import Path

PACKAGE = "nanochat_lib"
ALLOWED = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
ALLOWED += (ast.AugAssign, ast.If, ast.Try, ast.AsyncFunctionDef)


# %%
#| export
def place_exports(path: str, cells: list[Cell]) -> list[tuple[str, Cell]]:
    """Pair every export cell with the module it goes to.

    Raises:
        CourseError: an `#| export` that no `#| default_exp` precedes.
    """
    current, placed = "", []
    for cell in cells:
        for directive in cell.directives:
            if directive.name == "default_exp":
                current = directive.argument
            elif directive.name == "export":
                target = directive.argument or current
                if not target:
                    way_out = "name a module in a cell above: `#| default_exp some.module`"
                    what = "`#| export` before any `#| default_exp`"
                    raise CourseError(Problem(path, directive.line, what, way_out))
                placed.append((target, cell))
    return placed


# %%
assert [(module, cell.line) for module, cell in place_exports("small.py", cells)] == [
    ("numbers", 8)
]


# %% [markdown]
# A module should read as if written by hand, and a hand would begin with its purpose. The first module takes the chapter's
# title; a comment right below `#| default_exp` says it better where there are several.


# %%
#| export
def _headings(cell: Cell) -> list[str]:
    lines = lines_of(re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL))
    return [line.lstrip("#").strip() for line in lines if re.match(r"#+ ", line)]


def module_purposes(cells: list[Cell]) -> dict[str, str]:
    """Find the sentence that each module's docstring will say.

    It is the comment right below `#| default_exp module`. Without one, it is the chapter's title for
    the first module, and for others the heading above the first cell that exports to them.
    """
    prose = [cell for cell in cells if cell.kind == "markdown"]
    title = next((text for cell in prose for text in _headings(cell)), "")
    heading, current = "", ""
    purposes: dict[str, str] = {}
    for cell in cells:
        if cell.kind == "markdown":
            heading = (_headings(cell) or [heading])[-1]
            continue
        comment = re.match(r"#\| *default_exp (\S+)\n((?:# .*\n?)+)", cell.source)
        if comment:
            purposes[comment[1]] = " ".join(comment[2].replace("\n# ", " ")[2:].split())
        for directive in cell.directives:
            current = directive.argument or current
            if directive.name == "export":
                purposes.setdefault(current, heading if purposes else title)
    return {m: text if text.endswith((".", "?")) else f"{text}." for m, text in purposes.items()}


# %%
assert module_purposes(cells) == {"numbers": "Doubling: one number becomes two."}


# %% [markdown]
# A chapter imports a name where the reader first needs it; a module imports on top. So imports are taken out of the
# cells. A comment right above an import explains it, and travels along.


# %%
#| export
def split_imports(code: str) -> tuple[list[str], str]:
    """Part the top-level imports of a cell, with the comments right above them, from the rest."""
    lines = lines_of(code)
    imports, taken, body = [], set(), ast.parse(code).body
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            first, last = node.lineno - 1, node.end_lineno
            sharing = [
                n for n in body if n is not node and n.lineno <= last and first < n.end_lineno
            ]
            others = [n for n in sharing if not isinstance(n, ast.Import | ast.ImportFrom)]
            if sharing:  # import os; SEP = os.sep
                imports.append(ast.unparse(node))
                kept = [ast.get_source_segment(code, n) or "" for n in others]
                lines[first] = "\n".join(kept)
                taken |= set(range(first + 1, max(n.end_lineno or 0 for n in [node, *others])))
                continue
            while first > 0 and lines[first - 1].startswith("#"):
                first -= 1
            imports.append("\n".join(lines[first:last]))
            taken |= set(range(first, last))
    rest = "\n".join(line for number, line in enumerate(lines) if number not in taken)
    return imports, rest.strip("\n")


def _check_statements(path: str, cell: Cell) -> None:
    for node in parse_cell(path, cell).body:
        star = isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
        if star or getattr(node, "level", 0):
            what = f"an export cell has `{ast.unparse(node)}`"
            way_out = "name the module in full, and each thing that it brings"
            raise CourseError(Problem(path, cell.line + node.lineno - 1, what, way_out))
        if not isinstance(node, ALLOWED):
            what = f"an export cell runs code: {ast.unparse(node).splitlines()[0]}"
            way_out = (
                "export only imports, constants, functions and classes; move it to a cell below"
            )
            raise CourseError(Problem(path, cell.line + node.lineno - 1, what, way_out))


# %%
imports, rest = split_imports("import math\n\n# a full turn\nTAU = 2 * math.pi")
assert (imports, rest) == (["import math"], "# a full turn\nTAU = 2 * math.pi")


# %% [markdown]
# ## What goes wrong: a name is not a name
#
# One chapter may feed several modules, and in the chapter they share everything. In the library they do not: when
# `other` uses a function that went to `numbers`, its module needs an import that no cell contains. Which names does a
# module lack? Our first exporter collected every name it read and subtracted those it defined:


# %%
def names_read(source: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


other = "def mean(double):\n    total = sum(double)\n    return total / len(double)"
print(sorted(names_read(other)))


# %% [markdown]
# Here `double` is a parameter, a name of its own that has nothing to do with the function `double`. The generated module
# imported that function all the same, and `total` looked like a missing name. Python knows better: its compiler decides for
# every name in which scope it lives, and the module `symtable` tells.


# %%
#| export
def defined_names(tree: ast.Module) -> list[str]:
    """List the constants, functions and classes that a module defines, in their order."""
    names: dict[str, None] = {}
    imported, waiting = set(), list(tree.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[node.name] = None
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imported |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            bound = [n for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
            names |= {n.id: None for n in bound if isinstance(n.ctx, ast.Store)}
        elif isinstance(node, ast.If | ast.Try | ast.ExceptHandler):  # their blocks bind names too
            waiting[:0] = [n for n in ast.iter_child_nodes(node) if not isinstance(n, ast.expr)]
    return [name for name in names if name not in imported]


def free_names(source: str) -> set[str]:
    """Find the names that a module reads but neither defines nor imports nor has as builtins."""
    top = symtable.symtable(source, "module", "exec")
    bound = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
    bound |= {"__file__", *dir(builtins)}
    read, tables = set(), [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        read |= {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_referenced() and (table is top or symbol.is_global())
        }
    return read - bound


# %%
# NBVAL_CHECK_OUTPUT
print(free_names(other), free_names("def four():\n    return double(2)"))


# %% [markdown]
# With the free names known, each is looked up in the chapter's other export cells: a definition becomes
# `from nanochat_lib.numbers import double`, an import is repeated. A name that no export cell brings would fail only
# when somebody imports the module, so it is an error now.


# %%
#| export
def _providers(parts: dict[str, list[Cell]]) -> dict[str, str]:
    """Map every name that a chapter's export cells define or import to the import that brings it."""
    providers: dict[str, str] = {}
    for module, cells in parts.items():
        tree = ast.parse("\n\n".join(cell.code for cell in cells))
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    statement = ast.unparse(type(node)(**{**vars(node), "names": [alias]}))
                    name = alias.asname or alias.name.split(".")[0]
                    # xml.dom and xml.etree both bring xml: whoever needs one gets both.
                    known = providers.get(name, "").split("\n")
                    providers[name] = "\n".join(dict.fromkeys([*filter(None, known), statement]))
        for name in defined_names(tree):
            providers[name] = f"from {PACKAGE}.{module} import {name}"
    return providers


def _borrow(path: str, module: str, parts: list[Cell], providers: dict[str, str]) -> list[str]:
    """Write the imports of names that other export cells of the same chapter define or import."""
    missing = free_names("\n\n".join(cell.code for cell in parts))
    nowhere = missing - providers.keys()
    for cell in parts if nowhere else ():
        for node in ast.walk(ast.parse(cell.code)):
            if isinstance(node, ast.Name) and node.id in nowhere:
                what = f"{module} uses {node.id}, which no export cell defines or imports"
                way_out = f"put `#| export` on the cell that brings {node.id}"
                raise CourseError(Problem(path, cell.line + node.lineno - 1, what, way_out))
    return [providers[name] for name in sorted(missing & providers.keys())]


# %%
#| export
def export_chapter(path: str, cells: list[Cell]) -> dict[str, str]:
    """Write the modules that a chapter exports, before formatting.

    Args:
        path: the chapter, for the provenance line and in messages.
        cells: the whole chapter.

    Returns:
        Module name, such as "model.gpt", to its source.

    Raises:
        CourseError: a syntax error, a directive out of place, or code that cannot be exported.
    """
    parts: dict[str, list[Cell]] = {}
    for module, cell in place_exports(path, cells):
        _check_statements(path, cell)
        parts.setdefault(module, []).append(cell)
    providers = _providers(parts)
    purposes = module_purposes(cells)
    return {
        module: _module(path, purposes[module], group, _borrow(path, module, group, providers))
        for module, group in parts.items()
    }


# %% [markdown]
# Writing the text is then a matter of order: provenance, purpose, imports, `__all__`, and the cells' code as it stands, with its
# comments.


# %%
#| export
def _runs_main(code: str) -> bool:
    tests = [node.test for node in ast.parse(code).body if isinstance(node, ast.If)]
    return any(ast.unparse(test) == "__name__ == '__main__'" for test in tests)


def _module(path: str, purpose: str, parts: list[Cell], borrowed: list[str]) -> str:
    imports, bodies = borrowed, []
    for cell in parts:
        more, body = split_imports(cell.code)
        imports, bodies = imports + more, [*bodies, body]
    body = "\n\n".join(filter(None, bodies))
    names = defined_names(ast.parse(body))
    public = [name for name in names if not name.startswith("_")]
    if "main" in names and not _runs_main(body):
        body += '\n\n\nif __name__ == "__main__":\n    raise SystemExit(main())'
    head = f"# Generated from {path} by `course build`; edit that file.\n"
    listed = ", ".join(f'"{name}"' for name in public)
    parts_of_text = [
        f'{head}"""{purpose}"""',
        "\n".join(dict.fromkeys(imports)),
        f"__all__ = [{listed}]" if public else "__all__: list[str] = []",
        body,
    ]
    return "\n\n".join(filter(None, parts_of_text)) + "\n"


# %% [markdown]
# A module that defines `main` can be run with `python -m`: the last lines are the same in each, so the exporter writes them.
# What is left is layout. Ruff sorts the imports, drops those that nothing uses, and formats; we call it twice for
# any number of files.


# %%
#| export
def module_path(module: str) -> str:
    """Return the file of a module, relative to the repository."""
    return f"{PACKAGE}/{module.replace('.', '/')}.py"


def package_files(modules: dict[str, str]) -> dict[str, str]:
    """Write an `__init__.py` for every package.

    Args:
        modules: module name to the path of the chapter that exports it.
    """
    said = f'# Generated by `course build`.\n"""{PACKAGE}: exported chapter by chapter from chapters/."""\n'
    files = {f"{PACKAGE}/__init__.py": said}
    for package in sorted({m.rsplit(".", 1)[0] for m in modules if "." in m}):
        sources = sorted({p for m, p in modules.items() if m.startswith(package + ".")})
        text = f'# Generated by `course build`.\n"""Exported from {", ".join(sources)}."""\n'
        files[f"{PACKAGE}/{package.replace('.', '/')}/__init__.py"] = text
    return files


# %%
#| export
def format_python(files: dict[str, str]) -> dict[str, str]:
    """Sort imports, drop unused ones and format, as `ruff` does; two runs for any number of files."""
    rules = [
        "--select",
        "I,F401",
        "--fix",
        "--config",
        f"lint.isort.known-first-party=['{PACKAGE}']",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for path, text in files.items():
            target = Path(folder, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        for command in (["check", *rules], ["format"]):
            options = ["--isolated", "--no-cache", "--line-length", "100", "--quiet", folder]
            ruff = [sys.executable, "-m", "ruff", *command, *options]
            done = subprocess.run(ruff, capture_output=True, text=True, encoding="utf-8")
            if done.returncode not in (0, 1):  # 1: it found what it cannot mend
                raise OSError(f"ruff could not format the library: {done.stderr.strip()}")
        return {path: Path(folder, path).read_text(encoding="utf-8") for path in files}


# %%
# NBVAL_CHECK_OUTPUT
exported = export_chapter("chapters/00_small.py", cells)
exported = format_python({module_path(module): text for module, text in exported.items()})
print(exported["nanochat_lib/numbers.py"])


# %% [markdown]
# ## Who imports whom
#
# The chapters are in an order, and we promise that nothing from a later chapter is needed earlier. A program keeps the
# promise: imports are read from the syntax tree, whether they stand on top or inside a function.


# %%
#| default_exp course.layers
# Who imports whom: the order of the chapters is the order of the imports.

# %%
#| export
import ast


# %%
#| export
def imported_modules(tree: ast.AST, known: set[str]) -> list[tuple[str, int]]:
    """List the library modules that a tree imports, with line numbers.

    Args:
        tree: a parsed module or cell.
        known: names of the modules that exist, such as "model.gpt".

    Returns:
        Pairs of module and line; "" stands for the bare package, which is the whole library.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names]
            names = [n if n.removeprefix(PACKAGE + ".") in known else base for n in names]
        else:
            continue
        for name in dict.fromkeys(names):
            if name == PACKAGE or name.startswith(PACKAGE + "."):
                found.append((name[len(PACKAGE) + 1 :], node.lineno))
    return found


# %%
#| export
def import_graph(texts: dict[str, str]) -> dict[str, set[str]]:
    """Map each module to those it imports.

    Args:
        texts: module name to source; imports of other modules are left out.
    """
    known = set(texts)
    return {
        module: {name for name, _ in imported_modules(ast.parse(text), known)} & known
        for module, text in texts.items()
    }


def reachable(start: set[str], graph: dict[str, set[str]]) -> set[str]:
    """Follow imports from `start` to the end.

    Args:
        start: module names; "" reaches every module.
        graph: module to the modules it imports.
    """
    waiting, reached = list(graph if "" in start else start & graph.keys()), set()
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += graph[module]
    return reached


# %%
texts = {
    "numbers": "import math",
    "words": "from nanochat_lib.numbers import double",
    "songs": "def sing():\n    import nanochat_lib.words",
}
graph = import_graph(texts)
assert graph == {"numbers": set(), "words": {"numbers"}, "songs": {"words"}}
assert reachable({"songs"}, graph) == {"songs", "words", "numbers"}


# %% [markdown]
# Two kinds of arrow are forbidden: one that points to a later chapter, and two that point at each other.


# %%
#| export
def order_problems(
    path: str, index: int, cells: list[Cell], owners: dict[str, int], complete: bool
) -> list[Problem]:
    """Find imports that point to a later chapter or to nowhere.

    Args:
        path: the file the cells are from.
        index: its chapter's place in the course.
        cells: the cells.
        owners: module name to the place of the chapter that exports it.
        complete: whether `owners` lists every module, so that an unknown one is a mistake.
    """
    problems = []
    for cell in cells:
        if cell.kind != "code" or PACKAGE not in cell.source:
            continue
        for module, line in imported_modules(parse_cell(path, cell), set(owners)):
            at = cell.line + line - 1
            if owners.get(module, -1) > index:
                what = f"imports {PACKAGE}.{module}, which a later chapter exports"
                way_out = "move the code to the later chapter, or what it needs to an earlier one"
                problems.append(Problem(path, at, what, way_out))
            elif complete and module and module not in owners:
                if not any(known.startswith(module + ".") for known in owners):
                    what = f"imports {PACKAGE}.{module}, which no chapter exports"
                    problems.append(Problem(path, at, what, "mend the name, or export the module"))
    return problems


# %%
#| export
def cycle_problems(path: str, modules: set[str], graph: dict[str, set[str]]) -> list[Problem]:
    """Find modules of one chapter that import each other.

    Args:
        path: the chapter.
        modules: the modules it exports.
        graph: module to the modules it imports, for the whole library.
    """
    for module in sorted(modules):
        for other in sorted(graph[module] & modules):
            if module in reachable({other}, graph):
                what = f"{module} and {other} import each other"
                way_out = "export what both need to a third module, above the two"
                return [Problem(path, 1, what, way_out)]
    return []


# %%
# NBVAL_CHECK_OUTPUT
early = read_cells("# %%\nfrom nanochat_lib.words import name_of\n", "chapters/00_small.py")
for problem in order_problems("chapters/00_small.py", 0, early, {"words": 1}, complete=True):
    print(problem)

# %%
circle = import_graph({"a": "import nanochat_lib.b", "b": "from nanochat_lib.a import x"})
assert "import each other" in str(cycle_problems("chapters/00_small.py", {"a", "b"}, circle)[0])


# %% [markdown]
# ## Use it: the layers of our own library
#
# The library that you have installed went through this exporter. Its first lines tell which chapter each module came
# from, so we can draw the arrows between chapters. (Importing the bare package tells the tool that this notebook depends on
# all of it: when any module changes, the picture is drawn again.)


# %%
import nanochat_lib

library = Path(nanochat_lib.__file__).parent
files = [path for path in sorted(library.rglob("*.py")) if path.name != "__init__.py"]
modules = {
    path.relative_to(library).with_suffix("").as_posix().replace("/", "."): path for path in files
}
origin = {
    m: re.search(r"chapters/(\w+)\.py", path.read_text(encoding="utf-8"))[1]
    for m, path in modules.items()
}
library_graph = import_graph(
    {module: path.read_text(encoding="utf-8") for module, path in modules.items()}
)
course_order = [chapter.stem for chapter in read_manifest(library.parent).chapters]
chapters = [stem for stem in course_order if stem in origin.values()]
arrows = {
    (origin[a], origin[b])
    for a in library_graph
    for b in library_graph[a]
    if origin[a] != origin[b]
}
assert all(course_order.index(a) > course_order.index(b) for a, b in arrows)
assert {imported for importer, imported in arrows if importer == "90_course_tool"} == {"93_ground"}
print(
    f"{len(modules)} modules from {len(set(origin.values()))} chapters, {len(arrows)} arrows between chapters"
)

# %%
# alt: Chapters stand in a row, in order. Arcs lead from each chapter to the earlier ones it imports; none leads forward.
import matplotlib.pyplot as plt
import numpy as np

figure, axes = plt.subplots(figsize=(6.5, 3))
half_circle = np.linspace(0, np.pi, 40)
for importer, imported in sorted(arrows):
    right, left = chapters.index(importer), chapters.index(imported)
    x = (left + right) / 2 + (right - left) / 2 * np.cos(half_circle)
    colour = "tab:orange" if imported == "93_ground" else "tab:blue"
    axes.plot(x, (right - left) / 2 * np.sin(half_circle), color=colour, alpha=0.7, linewidth=1)
axes.plot(range(len(chapters)), [0] * len(chapters), "o", color="0.3")
axes.set_xticks(
    range(len(chapters)), [name.split("_", 1)[1] for name in chapters], rotation=60, ha="right"
)
axes.set_yticks([])
axes.set_xlabel("chapter, in the order of imports")
axes.spines[["top", "left", "right"]].set_visible(False)
plt.show()


# %% [markdown]
# *Every arc leads from a chapter back to an earlier one. Orange arcs end at the ground: the files, devices and seeds that
# nearly everything rests on. The course tool reaches nothing but that: it must work when a model does not.*
#
# ## A notebook that does not change by itself
#
# A notebook in Jupyter's format is JSON: cells, outputs, metadata. Run it twice and the file differs, because times,
# addresses and random ids are in it. We want a file that changes when its content changes, so that a difference means
# something. The source side is easy:


# %%
#| default_exp course.notebooks
# Notebooks from cells: one JSON form, cleaned outputs, and a stamp that says what they came from.

# %%
#| export
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

STAMP_VERSION = 1  # raise it when outputs are cleaned in a new way: every notebook runs again


# %%
#| export
def digest(value: object) -> str:
    """Return 16 hex digits that change when the JSON form of `value` does."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def source_stamp(cells: list[Cell], modules: dict[str, str]) -> str:
    """Digest all that decides a notebook's outputs: its code and the library code it imports.

    Args:
        cells: the notebook's cells; prose does not count.
        modules: name to source of the modules that the code reaches.
    """
    return digest([STAMP_VERSION, [c.source for c in cells if c.kind == "code"], modules])


# %% [markdown]
# The *stamp* answers the question of every build: do these outputs still belong to this code? It covers the notebook's
# code and every module that the code can reach. It leaves prose out: to mend a comma we need no kernel.


# %%
code = [cell for cell in cells if cell.kind == "code"]
stamp = source_stamp(cells, {"numbers": "v1"})
assert stamp == source_stamp(code, {"numbers": "v1"})
assert stamp != source_stamp(code[:-1], {"numbers": "v1"}) and stamp != source_stamp(
    code, {"numbers": "v2"}
)


# %%
#| export
def keep_lines(text: str) -> list[str]:
    """Cut a text behind each "\\n", and nowhere else: a form feed ends no line of a notebook."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _cell_json(cell: Cell, cell_id: str, count: int | None, outputs: list[dict]) -> dict:
    made: dict = {"cell_type": cell.kind, "id": cell_id, "metadata": {}}
    made["source"] = keep_lines(cell.source)
    if cell.kind == "code":
        numbered = [
            {**output, "execution_count": count}
            if output["output_type"] == "execute_result"
            else output
            for output in outputs
        ]
        made |= {"execution_count": count, "outputs": numbered}
    return made


def make_notebook(
    cells: list[Cell], outputs: list[list[dict]] | None = None, stamp: str | None = None
) -> dict:
    """Lay out a notebook as JSON data.

    Args:
        cells: the cells.
        outputs: one list for each code cell, cleaned; None for a notebook that has not run.
        stamp: the `source_stamp` of what ran.
    """
    made, ran = [], 0
    for cell, cell_id in zip(cells, cell_ids(cells)):
        shown: list[dict] = []
        if outputs is not None and cell.kind == "code":
            shown, ran = outputs[ran], ran + 1
        made.append(_cell_json(cell, cell_id, ran if outputs is not None else None, shown))
    metadata: dict = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    if outputs is not None:
        metadata["course"] = {"sources": stamp, "outputs": digest(outputs)}
    return {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


# %%
#| export
def notebook_text(notebook: dict) -> str:
    """Write a notebook the way Jupyter saves it."""
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def stored_outputs(notebook: dict) -> list[list[dict]]:
    """Take the outputs back out of a notebook, one list for each code cell."""
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    lists = [[dict(output) for output in cell["outputs"]] for cell in codes]
    for output in (output for outputs in lists for output in outputs):
        if output["output_type"] == "execute_result":
            output["execution_count"] = None
    return lists


# %%
# NBVAL_CHECK_OUTPUT
print(notebook_text(make_notebook(cells[-1:])))


# %% [markdown]
# Outputs are harder. Four things in them belong to one machine or one run: what libraries print to stderr, addresses such as
# `0x7f3a...`, paths of this computer, and the way a print is cut into pieces, which depends on when the kernel
# flushes. We also write a figure's alt text into its metadata here, from the cell's `# alt:` line.


# %%
#| export
def _neutral(text: object, places: dict[str, str]) -> object:
    """Take what belongs to one machine or one run out of a text."""
    if not isinstance(text, str):
        return text
    for path in sorted(places, key=len, reverse=True):
        if len(Path(path).parts) > 1:  # a root is no place; and only whole names are replaced
            whole = rf"(?<![\w.~+-]){re.escape(path)}(?![\w~+-]|\.\w)"
            text = re.sub(whole, places[path].replace("\\", r"\\"), text)
    text = re.sub(r"\S*/ipykernel_\d+/\d+\.py", "cell.py", text)
    # The address of an object, <... at 0x7f...>; any other hexadecimal number is a result.
    return re.sub(r"(<[^\n]*? at )0x[0-9a-f]{6,}\b(?=[^\n]*>)", r"\g<1>0x...", text)


def _lines(mime: str, text: object) -> object:
    split = isinstance(text, str) and (mime.startswith("text/") or mime == "image/svg+xml")
    return keep_lines(text) if split else text


# %%
#| export
def clean_outputs(outputs: list[dict], alt: str | None, places: dict[str, str]) -> list[dict]:
    """Keep of a cell's outputs what the next run would print again.

    Args:
        outputs: as the kernel sent them.
        alt: what the cell's figure shows, in words, for readers who do not see it.
        places: paths of this machine, and what to print instead.

    Returns:
        Outputs without stderr, widget state, timings and addresses; neighbouring prints merged.
    """
    kept: list[dict] = []
    for output in outputs:
        if output["output_type"] == "stream":
            if output["name"] == "stdout":
                if kept and kept[-1]["output_type"] == "stream":
                    kept[-1]["text"] += output["text"]
                else:
                    kept.append({"output_type": "stream", "name": "stdout", "text": output["text"]})
        elif not any("widget-view" in mime for mime in output.get("data", {})):
            data = output["data"]
            images = [mime for mime in data if mime.startswith("image/")] if alt else []
            new = {"output_type": output["output_type"]}
            new["metadata"] = {mime: {"alt": alt} for mime in images}
            new["data"] = {m: _lines(m, _neutral(t, places)) for m, t in data.items()}
            if output["output_type"] == "execute_result":
                new["execution_count"] = None
            kept.append(new)
    for output in kept:
        if output["output_type"] == "stream":
            output["text"] = _lines("text/plain", _neutral(output["text"], places))
    return kept


# %%
def stream(text: str, name: str = "stdout") -> dict:
    return {"output_type": "stream", "name": name, "text": text}


monday = [stream("loaded "), stream("Warning: slow", "stderr"), stream("<Model at 0x7f3a2b1c4d5e>")]
tuesday = [stream("loaded <Model at 0x55d0c0ffee00>")]
assert clean_outputs(monday, None, {}) == clean_outputs(tuesday, None, {})


# %% [markdown]
# Execution needs a kernel: a second Python process that runs one cell after the other. Ours starts in an empty folder,
# offline, with no settings of the user, and with a `nanochat_lib` of our choice first on its path.


# %%
#| export
def _kernel_environment(library: Path, folder: Path) -> dict[str, str]:
    """Make the kernel offline, independent of this user's files, and see this library first."""
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    return environment | {
        "PYTHONPATH": str(library),
        "NANOCHAT_BASE_DIR": str(folder / "base"),
        "IPYTHONDIR": str(folder / "ipython"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", "2"),
        "COLUMNS": "100",
    }


def _failure(path: str, cells: list[Cell], raw: list[dict]) -> Problem:
    codes = [cell for cell in cells if cell.kind == "code"]
    ran = [cell for cell in raw if cell["cell_type"] == "code"]
    for cell, made in zip(codes, ran):
        for output in made["outputs"]:
            if output["output_type"] == "error":
                trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output["traceback"]))
                at = re.search(r"Cell In\[\d+\], line (\d+)", trace)
                line = cell.line + (int(at[1]) - 1 if at else 0)
                what = f"{output['ename']}: {output['evalue']}"
                return Problem(path, line, what, f"run `python {path}` and mend the cell")
    return Problem(path, 1, "the kernel died or ran out of time", f"run `python {path}`")


# %%
#| export
def run_notebook(
    path: str, cells: list[Cell], library: Path, seconds: int = 600
) -> list[list[dict]]:
    """Execute cells in a fresh kernel, in an empty folder, offline.

    Args:
        path: the source file, for messages.
        cells: the cells.
        library: the folder that holds the `nanochat_lib` to import.
        seconds: the longest a single cell may take.

    Returns:
        Cleaned outputs, one list for each code cell.

    Raises:
        CourseError: a cell raised, or took too long.
    """
    import nbformat  # slow to import; only a build that executes needs these two
    from nbclient import NotebookClient
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook = nbformat.from_dict(make_notebook(cells))
    for made in notebook.cells:
        made.source = "".join(made.source)
        if any(line == "# NBVAL_SKIP" for line in Cell("code", made.source, 1).comments):
            made.metadata["tags"] = ["skip-execution"]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        # Look in no folder: a kernel called python3 on JUPYTER_PATH may be another interpreter.
        ours = KernelSpecManager(kernel_dirs=[])
        client = NotebookClient(
            notebook,
            km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ours),
            timeout=seconds,
            record_timing=False,
            resources={"metadata": {"path": str(place)}},
        )
        try:
            environment = _kernel_environment(library, place)
            client.execute(env=environment, stderr=subprocess.DEVNULL)
        except (CellExecutionError, CellTimeoutError, DeadKernelError):
            raise CourseError(_failure(path, cells, notebook.cells)) from None
    places = {str(place): ".", str(library): "nanochat", sys.prefix: ".venv"}
    places[os.path.expanduser("~")] = "~"
    codes = [(c, m) for c, m in zip(cells, notebook.cells) if c.kind == "code"]
    return [clean_outputs(made.outputs, cell.comment("alt"), places) for cell, made in codes]


# %% [markdown]
# Does it run the library that we give it, and not the installed one? A kernel within a kernel can tell.


# %%
# NBVAL_CHECK_OUTPUT
with tempfile.TemporaryDirectory() as folder:
    package = Path(folder, "nanochat_lib")
    package.mkdir()
    Path(package, "__init__.py").touch()
    Path(package, "numbers.py").write_text(exported["nanochat_lib/numbers.py"], encoding="utf-8")
    using = "# %%\nfrom nanochat_lib.numbers import double\n\nprint(double(21))\n"
    print(run_notebook("small.py", read_cells(using, "small.py"), Path(folder)))


# %% [markdown]
# ## An exercise is a solution with a hole
#
# If the exercise and its solution were two files, they would drift apart within a month. So the solution is the source, and
# two marks say what to cut out.


# %%
#| default_exp course.exercises
# Exercises are solutions with the answers taken out; graders load them by path.

# %%
#| export
import ast
import json
import re
from pathlib import Path
from types import ModuleType

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"


# %%
#| export
def _strip_cell(path: str, slug: str, cell: Cell) -> str:
    names = [d.argument for d in cell.directives if d.name == "exercise"]
    lines = lines_of(cell.source)
    comments = [n - 1 for n in sorted(comment_lines(cell.source, indented=True))]
    marks = [(n, lines[n].strip()) for n in comments if lines[n].strip() in (BEGIN, END)]
    if not names and not marks:
        return cell.source
    if len(names) != 1 or [mark for _, mark in marks] != [BEGIN, END]:
        what = f"a cell with {len(names)} `#| exercise` and {len(marks)} solution marks"
        way_out = f"one `#| exercise NAME`, one {BEGIN}, one {END} in each cell that has any"
        raise CourseError(Problem(path, cell.line, what, way_out))
    functions = {n.name: n for n in parse_cell(path, cell).body if isinstance(n, ast.FunctionDef)}
    (begin, _), (end, _) = marks
    function = functions.get(names[0])
    if len(functions) != 1 or function is None or not function.lineno <= begin < end:
        what = f"exercise {names[0]}: its cell defines {sorted(functions) or 'no function'}"
        way_out = f"define {names[0]} alone in the cell, with the solution marks inside it"
        raise CourseError(Problem(path, cell.line, what, way_out))
    indent = lines[begin][: -len(BEGIN)]
    stub = f'{indent}raise NotImplementedError("exercise {slug}.{names[0]}")'
    return "\n".join([*lines[:begin], stub, *lines[end + 1 :]])


# %%
#| export
def strip_solutions(path: str, slug: str, text: str) -> str:
    """Take the answers out of a solutions file.

    Args:
        path: the solutions file, for messages.
        slug: its chapter.
        text: its content.

    Returns:
        The exercise file: the same text, with `raise NotImplementedError` for every answer.

    Raises:
        CourseError: the marks do not pair up, or enclose no function of the exercise's name.
    """
    lines = lines_of(text)
    for cell in reversed(read_cells(text, path)):  # from the end: earlier line numbers stay true
        if cell.kind == "code":
            end = cell.line - 1 + len(lines_of(cell.source))
            lines[cell.line - 1 : end] = lines_of(_strip_cell(path, slug, cell))
    return "\n".join(lines) + "\n"


# %%
# NBVAL_CHECK_OUTPUT
solution = dedent("""\
    # %%
    #| exercise triple
    def triple(x: float) -> float:
        \"\"\"Return three times x.\"\"\"
        ### BEGIN SOLUTION
        return 3 * x
        ### END SOLUTION

    # %%
    assert triple(2) == 6
    """)
print(strip_solutions("solutions/small.py", "small", solution))


# %% [markdown]
# A learner's file cannot be imported: its visible checks fail until the work is done. The grader loads the set-up and
# the functions, and leaves the rest. Its third use is to test the grader: a *mutant*, a plausible wrong answer, runs last
# and replaces the function, and a grader that accepts it is no grader.


# %%
#| export
def learner_cells(path: Path) -> list[Cell]:
    """Read the code cells of a file as editors save it: any header, markers with titles and tags.

    Args:
        path: a percent script or a notebook.

    Raises:
        ValueError: the file is not UTF-8, with its name.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 at byte {error.start}: save it as UTF-8") from error
    if path.suffix == ".ipynb":
        codes = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        sources = ["".join(cell["source"]) for cell in codes]
        return [_cell(str(path), "code", lines_of(source), 1) for source in sources]
    lines = lines_of(text)
    marks = [n for n, line in enumerate(lines) if re.match(r"#[ \t]*%%", line)]
    cells = []
    for begin, end in zip([-1, *marks], [*marks, len(lines)]):
        prose = begin >= 0 and re.search(r"\[(markdown|md|raw)\]", lines[begin])
        if not prose:
            cells.append(_cell(str(path), "code", lines[begin + 1 : end], begin + 2))
    return cells


def load_exercise(path: Path, extra: str = "") -> ModuleType:
    """Load the set-up and the functions of an exercise file, without running its visible checks.

    Args:
        path: an exercise or a solutions file.
        extra: source to run last, in the same namespace; a mutant replaces a function this way.

    Returns:
        A module with the functions as attributes; `__cells__` holds the sources that made it.
    """
    module = ModuleType(path.stem)
    module.__file__, module.__cells__ = str(path), []
    cells = learner_cells(path)
    first = next((n for n, cell in enumerate(cells) if cell.has("exercise")), len(cells))
    for number, cell in enumerate(cells):
        if number < first or cell.has("exercise"):
            lines = "\n" * (cell.line - 1) + cell.code
            exec(compile(lines, str(path), "exec"), module.__dict__)
            module.__cells__.append(cell.code)
    module.__cells__.append(extra)
    exec(compile(extra, f"{path} (mutant)", "exec"), module.__dict__)
    return module


# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "small.py")
    path.write_text(solution, encoding="utf-8")
    right, mutant = load_exercise(path), load_exercise(path, extra="def triple(x): return 2 * x")
assert (right.triple(5), mutant.triple(5)) == (15, 10)


# %% [markdown]
# ## The plan: everything in memory first
#
# A build that stops in the middle must not leave half a library behind. The usual cure is to be careful; a better one is
# to separate thinking from writing. A *plan* holds every source and every file that follows from it, and making it
# writes nothing. Then `build` writes what differs, `check` reports what differs, and they cannot disagree.


# %%
#| default_exp course.planner
# Read everything that people write and work out every file that follows from it, in memory.

# %%
#| export
import ast
import json
import re
from dataclasses import dataclass, field
from pathlib import Path


# %%
#| export
@dataclass
class Source:
    """Hold one file that people write, and the files that follow from it without running it."""

    path: str
    slug: str
    index: int
    text: str
    cells: list[Cell]
    files: dict[str, str] = field(default_factory=dict)

    @property
    def notebook(self) -> str:
        return self.path.removesuffix(".py") + ".ipynb"

    @property
    def is_chapter(self) -> bool:
        return self.path.startswith("chapters/")


@dataclass
class Plan:
    """Hold all sources in build order, all that follows from them, and what is wrong with them."""

    manifest: Manifest
    sources: list[Source]
    modules: dict[str, str]  # name to source, for the whole library
    imports: dict[str, set[str]]  # name to the modules it imports
    packages: dict[str, str]
    problems: list[Problem]
    records: str = ""  # what lies in records/, hashed
    data: str = ""  # in data/
    web: str = ""  # and in web/


# %%
#| export
def _listing_problems(root: Path, manifest: Manifest) -> list[Problem]:
    listed = {chapter.path for chapter in manifest.chapters}
    found = {f"chapters/{path.name}" for path in root.glob("chapters/*.py")}
    way_out = "write it, or take its [[chapter]] table out of course.toml"
    problems = [Problem(path, 1, "listed but missing", way_out) for path in sorted(listed - found)]
    way_out = "add a [[chapter]] table to course.toml"
    problems += [Problem(path, 1, "not listed", way_out) for path in sorted(found - listed)]
    slugs = {chapter.slug for chapter in manifest.chapters}
    for path in sorted(root.glob("solutions/*.py")):
        if path.stem not in slugs:
            way_out = "name the file after a chapter's slug"
            problems.append(Problem(f"solutions/{path.name}", 1, "no such chapter", way_out))
    return problems


def _read_source(root: Path, path: str, slug: str, index: int) -> Source:
    """Read one file, and refuse directives that belong in the other kind of file."""
    text = read_source_text(root, path)
    if not text.startswith(HEADER):
        way_out = "copy the first lines of chapters/00_start.py"
        raise CourseError(Problem(path, 1, "the header differs", way_out))
    cells = read_cells(text, path)
    wrong = {"exercise"} if path.startswith("chapters/") else {"default_exp", "export"}
    for cell in cells:
        if cell.kind == "code":
            parse_cell(path, cell)
        for directive in cell.directives:
            if directive.name in wrong:
                what = f"`#| {directive.name}` in this file"
                way_out = "exports go to chapters/, exercises to solutions/"
                raise CourseError(Problem(path, directive.line, what, way_out))
    return Source(path, slug, index, text, cells)


def _exercise_files(source: Source) -> dict[str, str]:
    path = f"exercises/{source.slug}.py"
    text = strip_solutions(source.path, source.slug, source.text)
    notebook = notebook_text(make_notebook(read_cells(text, path)))
    return {path: text, f"exercises/{source.slug}.ipynb": notebook}


# %% [markdown]
# A broken chapter is reported and left out, so that its author's neighbours can still build theirs. Two chapters must not
# write the same module, and no module may be a folder at once.


# %%
#| export
def _read_sources(root: Path, manifest: Manifest) -> tuple[list[Source], list[Problem]]:
    """Read what people wrote; a broken file is reported and left out."""
    sources, problems = [], []
    for index, chapter in enumerate(manifest.chapters):
        for path in (chapter.path, f"solutions/{chapter.slug}.py"):
            if not (root / path).is_file():
                continue
            try:
                source = _read_source(root, path, chapter.slug, index)
                if source.is_chapter:
                    exported = export_chapter(path, source.cells)
                    source.files = {module_path(m): text for m, text in exported.items()}
                else:
                    source.files = _exercise_files(source)
                sources.append(source)
            except CourseError as error:
                problems += error.problems
    return sources, problems


def _module_name(path: str) -> str:
    return path.removeprefix(f"{PACKAGE}/").removesuffix(".py").replace("/", ".")


def _owners(sources: list[Source], problems: list[Problem]) -> dict[str, Source]:
    owners: dict[str, Source] = {}
    for source in sources:
        for module in map(_module_name, source.files) if source.is_chapter else ():
            first = owners.setdefault(module, source)
            if first is not source:
                what = f"exports to {module}, which belongs to {first.path}"
                problems.append(Problem(source.path, 1, what, "choose another module"))
    for module in owners:
        package = module.rsplit(".", 1)[0]
        if package != module and package in owners:
            what = f"exports {package}, which is also the folder of {module}"
            problems.append(Problem(owners[package].path, 1, what, f"name it {package}.base"))
    return owners


# %%
#| export
def _modules_on_disk(root: Path) -> dict[str, str]:
    """Read the library as it is: it stands in for chapters that are broken at the moment."""
    modules = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        try:
            text = path.read_text(encoding="utf-8")
            ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        if path.name != "__init__.py":
            modules[_module_name(path.relative_to(root).as_posix())] = text
    return modules


# %%
#| export
def make_plan(root: Path) -> Plan:
    """Work out every generated file but the executed notebooks, without writing anything.

    Args:
        root: the folder of course.toml.

    Returns:
        The plan; its `problems` are for the caller to judge.

    Raises:
        CourseError: course.toml cannot be read.
    """
    manifest = read_manifest(root)
    sources, problems = _read_sources(root, manifest)
    problems = _listing_problems(root, manifest) + problems
    chapters = [source for source in sources if source.is_chapter]
    formatted = format_python({k: v for source in chapters for k, v in source.files.items()})
    for source in chapters:
        source.files = {path: formatted[path] for path in source.files}
    owners = _owners(sources, problems)
    places = {module: source.index for module, source in owners.items()}
    complete = not problems
    for source in sources:
        problems += order_problems(source.path, source.index, source.cells, places, complete)
    made = {_module_name(path): text for path, text in formatted.items()}
    packages = package_files({module: source.path for module, source in owners.items()})
    modules = made if complete else _modules_on_disk(root) | made
    imports = import_graph(modules)
    for source in chapters:
        problems += cycle_problems(source.path, set(map(_module_name, source.files)), imports)
    hashed = [_digest_folder(root / folder) for folder in ("records", "data", "web")]
    return Plan(manifest, sources, modules, imports, packages, problems, *hashed)


def _digest_folder(folder: Path) -> str:
    """Digest the texts in a folder."""
    paths = sorted(path for path in folder.glob("**/*") if path.is_file())
    return digest([path.read_text(encoding="utf-8", errors="replace") for path in paths])


# %% [markdown]
# A notebook is fresh when its stamp is the current one and its outputs are those that were written: a second digest sees to
# that, for nobody should improve a result with an editor.


# %%
#| export
def current_stamp(source: Source, plan: Plan) -> str:
    """Digest what this source's notebook depends on now."""
    starts: set[str] = set()
    for cell in source.cells:
        if cell.kind == "code" and PACKAGE in cell.source:
            found = imported_modules(parse_cell(source.path, cell), set(plan.modules))
            starts |= {name for name, _ in found}
    reached = {name: plan.modules[name] for name in reachable(starts, plan.imports)}
    if any("library_root()" in cell.source for cell in source.cells if not cell.has("export")):
        reached["course.toml"] = repr(plan.manifest.chapters) + plan.records
    texts = [*reached.values(), *(cell.source for cell in source.cells)]
    for folder, made in (("data", plan.data), ("web", plan.web)):
        if any(re.search(rf'/ "{folder}["/]', text) for text in texts):  # it is read
            reached[folder] = made
    return source_stamp(source.cells, reached)


def read_notebook(path: Path) -> dict | None:
    """Read a notebook, or return None where there is none or it is no notebook of ours."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        sound = notebook["metadata"]["course"].keys() == {"sources", "outputs"}
        stored_outputs(notebook)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return notebook if sound else None


def fresh_outputs(notebook: dict | None, stamp: str) -> list[list[dict]] | None:
    """Return a notebook's outputs if they came from these very sources and nobody edited them."""
    if notebook is None or notebook["metadata"]["course"]["sources"] != stamp:
        return None
    outputs = stored_outputs(notebook)
    return outputs if digest(outputs) == notebook["metadata"]["course"]["outputs"] else None


# %% [markdown]
# ## Build: whole or not at all
#
# Now the order of events matters. Suppose a chapter's new module landed first and its notebook ran afterwards. A failing
# cell would leave the new module in the library next to the old notebook. Suppose the notebook ran first: it would import the
# *old* module, and print results that the new one never gives. Neither order is right, so we run the notebook against a
# copy of the library that holds the planned modules. When it succeeds, everything of that chapter lands, each file by
# one atomic rename.


# %% [markdown]
# Whose is a file? Folder and name prove nothing: a reader solves `exercises/x.py`, or saves a notebook. The proof is a
# record, `generated.json`, of the hash of each file that a build wrote. Whatever has another hash is somebody's, and stays.

# %%
#| default_exp course.ownership
# Whose a file is: the record of what a build wrote.

# %%
#| export
import hashlib
import json
from pathlib import Path

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


# %% [markdown]
# The README shows a map of the chapters. It is nobody's to type: it comes from `course.toml` and from the chapters, and
# stands between two marks, which is all that a build touches there.


# %%
#| default_exp course.map
# The map of the course: parts, chapters, their questions, and how long they take.

# %%
#| export
MAP_START, MAP_END = "<!-- map:start -->", "<!-- map:end -->"


def prose_words(cells: list[Cell]) -> int:
    """Count the words of the prose."""
    return sum(len(cell.source.split()) for cell in cells if cell.kind == "markdown")


def code_lines(cells: list[Cell]) -> int:
    """Count the lines of code that are not blank."""
    codes = [cell.code for cell in cells if cell.kind == "code"]
    return sum(bool(line.strip()) for code in codes for line in lines_of(code))


def reading_minutes(cells: list[Cell]) -> int:
    """Estimate the minutes to read a chapter: 180 words, or 30 lines of code, a minute; in fives."""
    return 5 * max(1, round((prose_words(cells) / 180 + code_lines(cells) / 30) / 5))


def shares(plan: Plan) -> list[tuple[str, int, int, int, float]]:
    """Measure each chapter: slug, words, cells, exported lines, and the share of its code they are."""
    rows = []
    for source in plan.sources:
        if source.is_chapter:
            exported = [cell for _, cell in place_exports(source.path, source.cells)]
            lines, every = code_lines(exported), code_lines(source.cells)
            sizes = (prose_words(source.cells), len(source.cells), lines, lines / max(1, every))
            rows.append((source.slug, *sizes))
    return rows


def map_markdown(plan: Plan) -> str:
    """Write the parts and their chapters as Markdown tables."""
    cells = {source.slug: source.cells for source in plan.sources if source.is_chapter}
    blocks = []
    for part, chapters in plan.manifest.by_part().items():
        rows = [f"**{part}**", "", "| chapter | the question | level | reading, exercises |"]
        rows.append("|---|---|---|---|")
        for chapter in chapters:
            own = [e.minutes for e in plan.manifest.exercises if e.chapter == chapter.slug]
            work = f"{reading_minutes(cells.get(chapter.slug, []))} min"
            work += f", {len(own)} in {sum(own)} min" if own else ""
            link = f"[{chapter.slug.replace('_', ' ')}](chapters/{chapter.stem}.ipynb)"
            rows.append(f"| {link} | {chapter.asks} | {chapter.level} | {work} |")
        blocks.append("\n".join(rows) if chapters else f"**{part}**: to come.")
    return "\n\n".join(blocks)


def with_map(readme: str, plan: Plan) -> str:
    """Return a README with the map between its two marks; without marks it stays as it is."""
    before, start, rest = readme.partition(MAP_START)
    _, end, after = rest.partition(MAP_END)
    if not (start and end):
        return readme
    return f"{before}{start}\n{map_markdown(plan)}\n{end}{after}"


# %%
#| default_exp course.builder
# Run what changed, and write each chapter whole or not at all.

# %%
#| export
import shutil
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

Runner = Callable[[str, list[Cell], Path], list[list[dict]]]
BESIDE = ("course.toml", "data", "records", "web")  # what chapters read beside the library


# %%
#| export
@contextmanager
def _staged_library(root: Path, files: dict[str, str]):
    """Lend a copy of the library with the planned modules, so that they run before they land."""
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder).resolve()
        if (root / PACKAGE).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(root / PACKAGE, stage / PACKAGE, ignore=ignored)
        for path, text in files.items():
            (stage / path).parent.mkdir(parents=True, exist_ok=True)
            (stage / path).write_text(text, encoding="utf-8")
        for name in BESIDE:
            if (root / name).is_dir():
                shutil.copytree(root / name, stage / name)
            elif (root / name).is_file():
                shutil.copy(root / name, stage / name)
        yield stage


def fresh_notebook(root: Path, source: Source, plan: Plan) -> str | None:
    """Return the notebook that a build would write without running it; None if it has to run."""
    stamp = current_stamp(source, plan)
    outputs = fresh_outputs(read_notebook(root / source.notebook), stamp)
    if outputs is None:
        return None
    return notebook_text(make_notebook(source.cells, outputs, stamp))


def _run(root: Path, source: Source, plan: Plan, run: Runner) -> str:
    """Run a source's cells against the planned library, and return the notebook."""
    files = plan.packages | {module_path(name): text for name, text in plan.modules.items()}
    with _staged_library(root, files) as library:
        outputs = run(source.path, source.cells, library)
    return notebook_text(make_notebook(source.cells, outputs, current_stamp(source, plan)))


# %%
#| export
def write_changed(root: Path, files: dict[str, str], record: dict[str, str]) -> list[str]:
    """Write the files whose content changes, each atomically, and return their paths.

    Args:
        root: the folder of course.toml.
        files: path -> content.
        record: from `read_record`; the files are added to it, here and on the disk.

    Raises:
        CourseError: a file is somebody's work; then nothing is written.
    """
    from nanochat_lib.common import atomic_write  # here, so that checking works when it is broken

    problems = obstacles(root, files, record)
    if problems:
        raise CourseError(*problems)
    new = {path: text_hash(text) for path, text in files.items()}
    changed = [path for path in files if file_hash(root / path) != new[path]]
    if changed:  # a kill in between must leave no file that is nobody's: for now both hashes count
        both = {path: f"{record.get(path, '')} {new[path]}".strip() for path in changed}
        atomic_write(root / RECORD, record_text(record | both))
    for path in changed:
        atomic_write(root / path, files[path])
    if changed or record != record | new:
        record |= new
        atomic_write(root / RECORD, record_text(record))
    return changed


def expected_files(plan: Plan) -> set[str]:
    """List the sources, and all that follows from them."""
    expected = set(plan.packages)
    for source in plan.sources:
        expected |= {source.path, source.notebook, *source.files}
    return expected


def stray_files(root: Path, plan: Plan) -> list[str]:
    """List files in the generated folders that follow from no source."""
    expected = expected_files(plan) | {problem.path for problem in plan.problems}
    stray = []
    for folder in (PACKAGE, "chapters", "solutions", "exercises"):
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root).as_posix()
            hidden = any(part.startswith((".", "__pycache__")) for part in Path(name).parts)
            asset = name.startswith(f"{PACKAGE}/serving/static/")
            if path.is_file() and not hidden and not asset and name not in expected:
                stray.append(name)
    return stray


# %% [markdown]
# A file of ours without a source is an orphan: the module of a renamed chapter, say. It would still import, and hide the
# mistake for months.


# %%
#| export
def _remove_orphans(
    root: Path, plan: Plan, chosen: list[Source], everything: bool, record: dict[str, str]
) -> list[str]:
    """Remove files that a build wrote, nobody touched, and no source gives any more."""
    from nanochat_lib.common import atomic_write

    removed, before = [], dict(record)
    for name in stray_files(root, plan):
        if name not in record or obstacles(root, {name: None}, record):
            continue
        first = (root / name).read_text(encoding="utf-8").partition("\n")[0]
        if everything or any(first.startswith(f"# Generated from {s.path} ") for s in chosen):
            (root / name).unlink()
            removed.append(name)
            if not any((root / name).parent.iterdir()):
                (root / name).parent.rmdir()
    for name in set(record) - expected_files(plan):
        if not (root / name).exists():
            del record[name]
    if record != before:
        atomic_write(root / RECORD, record_text(record))
    return removed


def _write_map(root: Path, plan: Plan, say: Callable[[str], object]) -> list[str]:
    """Bring the map in the README up to date; the rest of the file is somebody's."""
    from nanochat_lib.common import atomic_write

    old = read_source_text(root, "README.md") if (root / "README.md").is_file() else ""
    if with_map(old, plan) == old:
        return []
    atomic_write(root / "README.md", with_map(old, plan))
    say("wrote README.md")
    return ["README.md"]


def build(
    root: Path,
    slugs: list[str],
    execute: bool = True,
    force: bool = False,
    run: Runner = run_notebook,
    say: Callable[[str], object] = print,
) -> list[str]:
    """Bring everything generated up to date; a chapter lands whole or not at all.

    Args:
        root: the folder of course.toml.
        slugs: the chapters to build; none means all of them.
        execute: False leaves executed notebooks as they are.
        force: run notebooks whose sources did not change, too.
        run: executes the cells of one source; tests pass a quick one.
        say: gets one line for each notebook run and each file written or removed.

    Returns:
        The paths written or removed.

    Raises:
        CourseError: something is wrong with the sources, a cell raised, or a file to be replaced is
            somebody's work; then nothing was run or written.
    """
    plan, record = make_plan(root), read_record(root)
    names = [plan.manifest.find(slug).slug for slug in slugs]
    wanted = {c.path: c.slug for c in plan.manifest.chapters if c.slug in names}
    wanted |= {f"solutions/{slug}.py": slug for slug in names}
    problems = [p for p in plan.problems if not slugs or p.path in wanted]
    if problems:
        raise CourseError(*problems)
    chosen = [source for source in plan.sources if not slugs or source.path in wanted]
    notebooks = {s.notebook: fresh_notebook(root, s, plan) for s in chosen} if execute else {}
    known = {path: text for source in chosen for path, text in source.files.items()}
    in_the_way = obstacles(root, plan.packages | known | notebooks, record)
    if in_the_way:
        raise CourseError(*in_the_way)
    touched = []
    for source in chosen:
        files = plan.packages | source.files
        if execute and (force or notebooks[source.notebook] is None):
            say(f"running {source.path}")
            files[source.notebook] = _run(root, source, plan, run)
        elif execute:
            files[source.notebook] = notebooks[source.notebook]
        for path in write_changed(root, files, record):
            say(f"wrote {path}")
            touched.append(path)
    for path in _remove_orphans(root, plan, chosen, not slugs, record):
        say(f"removed {path}")
        touched.append(path)
    return touched if slugs else touched + _write_map(root, plan, say)


# %% [markdown]
# Let us build a course of one chapter. A runner that starts no kernel will do: it pretends that the only print printed 4.


# %%
# NBVAL_CHECK_OUTPUT
def pretend(path: str, cells: list[Cell], library: Path) -> list[list[dict]]:
    shown = [stream("4\n")]
    return [
        shown if cell.source.startswith("print") else [] for cell in cells if cell.kind == "code"
    ]


toy = Path(tempfile.mkdtemp())
(toy / "chapters").mkdir()
(toy / "course.toml").write_text(toml, encoding="utf-8")
(toy / "chapters/00_small.py").write_text(HEADER + "\n" + small, encoding="utf-8")
assert [chapter.slug for chapter in read_manifest(toy).by_part()["I"]] == ["small"]
build(toy, [], run=pretend)
print("again:", build(toy, [], run=pretend))


# %% [markdown]
# Three files, and the second time none. A test kills the process after every single write, builds again and compares the
# end with an undisturbed build, byte by byte.
#
# ## Check: seven gates
#
# A rule that nobody checks is a wish. The first gate reads docstrings, because a wrong one is worse than none: do its
# `Args` name what the function takes, in the same order, with the same shapes?


# %%
#| default_exp course.docs
# What exported code says about itself: docstrings that agree with signatures, and small pieces.

# %%
#| export
import ast
import re

MOST_FUNCTION_LINES, MOST_MODULE_LINES = 40, 300


# %%
#| export
def documented_arguments(docstring: str) -> dict[str, str]:
    """Read the `Args:` section of a docstring: argument name to what is said about it."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", docstring, re.MULTILINE)
    found: dict[str, str] = {}
    if section:
        lines = section[1].split("\n")
        indent = len(lines[0]) - len(lines[0].lstrip())
        for line in lines:
            entry = re.match(rf"[ ]{{{indent}}}\*{{0,2}}(\w+(?:, \*{{0,2}}\w+)*):(.*)", line)
            if entry:
                names = [name.strip(" *") for name in entry[1].split(",")]
                found |= dict.fromkeys(names, entry[2])
            elif line.strip() and found:
                found[next(reversed(found))] += " " + line.strip()
    return found


def signature(function: ast.FunctionDef) -> dict[str, ast.expr | None]:
    """Map a function's parameters, in order and without self or cls, to their annotations."""
    kinds = function.args
    several = [kinds.vararg] if kinds.vararg else []
    last = [kinds.kwarg] if kinds.kwarg else []
    every = [*kinds.posonlyargs, *kinds.args, *several, *kinds.kwonlyargs, *last]
    return {a.arg: a.annotation for a in every if a.arg not in ("self", "cls")}


# %%
#| export
def _shape(annotation: ast.expr | None) -> list[str] | None:
    """Return ["B", "T"] for `Float[Tensor, "B T"]`, and None for what is no tensor."""
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple):
        last = annotation.slice.elts[-1]
        if isinstance(last, ast.Constant) and isinstance(last.value, str):
            return last.value.split()
    return None


def _same_shape(told: list[str], real: list[str]) -> bool:
    """Compare the documented shape with the real one: as many dimensions, and the same letters.

    Words such as n_head may stand for a letter; "..." stands for any number of dimensions.
    """
    any_rank = [size.startswith(("*", ".")) for size in real]
    if any(any_rank):
        keep = len(real) - 1 - any_rank.index(True)
        told, real = told[len(told) - keep :], real[len(real) - keep :]
    letters = [(a, b) for a, b in zip(told, real) if len(a) == len(b) == 1 and b.isupper()]
    return len(told) == len(real) and all(a == b for a, b in letters)


def function_faults(function: ast.FunctionDef) -> list[str]:
    """List where a function's docstring and its signature disagree."""
    docstring = ast.get_docstring(function) or ""
    faults = [] if docstring else [f"{function.name} has no docstring"]
    said, real = documented_arguments(docstring), signature(function)
    if said and list(said) != list(real):
        faults.append(f"{function.name} documents {list(said)} but takes {list(real)}")
    for name, text in said.items():
        shape = _shape(real.get(name))
        told = re.search(r"\bshape \(([^)]*)\)", text)
        if shape and told and not _same_shape(re.findall(r"[^,\s]+", told[1]), shape):
            faults.append(f"{function.name}: {name} is documented as ({told[1]}) but takes {shape}")
    return faults


# %%
# NBVAL_CHECK_OUTPUT
wrong = dedent('''\
    def scale(x: Float[Tensor, "B T"], by: float) -> Float[Tensor, "B T"]:
        """Multiply.

        Args:
            x: numbers, shape (B, C).
            factor: what to multiply with.
        """
        return x * by
    ''')
print("\n".join(function_faults(ast.parse(wrong).body[0])))


# %%
#| export
def size_faults(function: ast.FunctionDef) -> list[str]:
    """Say whether a function has more lines than a reader takes in, its docstring aside."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function):
        lines -= (function.body[0].end_lineno or 0) - function.body[0].lineno + 1
    most = MOST_FUNCTION_LINES
    return [f"{function.name} has {lines} lines; {most} is the most"] if lines > most else []


def cell_faults(tree: ast.Module) -> list[tuple[int, str]]:
    """Collect the faults of all functions in an export cell, with line numbers."""
    faults = []
    for node in tree.body:
        methods = node.body if isinstance(node, ast.ClassDef) else []
        for function in (node, *methods):
            if isinstance(function, ast.FunctionDef):
                found = size_faults(function)
                if function is node and not function.name.startswith("_"):
                    found += function_faults(function)
                elif ast.get_docstring(function):
                    found += function_faults(function)
                faults += [(function.lineno, fault) for fault in found]
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                faults.append((node.lineno, f"{node.name} has no docstring"))
    return faults


# %% [markdown]
# The other gates compare the plan with the disk. Each returns problems and changes nothing. Those that planning has
# found come first, then layout, then the two that this chapter began with: generated files and notebooks that are not what
# their sources give.


# %%
#| default_exp course.gates
# The gates: what `course check` looks at, without running any notebook and without writing.

# %%
#| export
import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Gate = Callable[[Path, Plan], list[Problem]]
LOCAL_PATH = re.compile(r"(?<![\w.~/-])/(?:home|root|tmp|Users|work|private|mnt)/\w+")


# %%
#| export
def sources_gate(root: Path, plan: Plan) -> list[Problem]:
    """Pass on what planning found: headers, directives, syntax, exports, the order of imports."""
    return plan.problems


def format_gate(root: Path, plan: Plan) -> list[Problem]:
    """Find files that `ruff format` would change."""
    folders = [name for name in ("chapters", "solutions", "tests") if (root / name).is_dir()]
    command = [sys.executable, "-m", "ruff", "format", "--check", "--isolated", "--no-cache"]
    command += ["--exclude", "*.ipynb", "--line-length", "100", "--output-format", "json"]
    done = subprocess.run([*command, *folders], cwd=root, capture_output=True, encoding="utf-8")
    problems = []
    for found in json.loads(done.stdout or "[]"):
        path = Path(found["filename"]).resolve().relative_to(root.resolve()).as_posix()
        way_out = "`" + shlex.join(["ruff", "format", "--line-length", "100", path]) + "`"
        line = (found["location"] or {"row": 1})["row"]
        problems.append(Problem(path, line, f"ruff format: {found['message']}", way_out))
    return problems


# %%
#| export
def first_difference(old: str, new: str) -> int:
    """Return the number of the first line that differs."""
    before, after = old.split("\n"), new.split("\n")
    same = [a == b for a, b in zip(before, after)]
    return same.index(False) + 1 if False in same else min(len(before), len(after)) + 1


def _stale(root: Path, path: str, line: int, what: str, again: str, text: str | None) -> Problem:
    """Tell what is wrong with a generated file; advise a build only where it would not refuse."""
    for problem in obstacles(root, {path: text}, read_record(root)):
        return Problem(path, line, f"{what}; it {problem.what}", problem.way_out)
    return Problem(path, line, what, again)


def _text(path: Path) -> str:
    """Read what stands there, whatever it is; "" where there is no file."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def drift_gate(root: Path, plan: Plan) -> list[Problem]:
    """Find generated files that differ from what their sources give, or that have no source."""
    expected = dict(plan.packages)
    slugs = {}
    for source in plan.sources:
        expected |= source.files
        slugs |= dict.fromkeys(source.files, source.slug)
    problems, record = [], read_record(root)
    for path, text in expected.items():
        if file_hash(root / path) != text_hash(text):
            found = _text(root / path)
            what = "differs from what its source gives" if found else "is missing"
            way_out = f"edit the source, then run `course build {slugs.get(path, '')}`".rstrip(" `")
            line = first_difference(found, text)
            problems.append(_stale(root, path, line, what, way_out + "`", text))
        elif record.get(path) != text_hash(text):
            what = f"does not know that {path} is generated"
            problems.append(Problem(RECORD, 1, what, "run `course build`"))
    for path in [] if plan.problems else stray_files(root, plan):
        again = "run `course build`, which removes it"
        problem = _stale(root, path, 1, "follows from no source", again, None)
        way_out = "move it out of the generated folders; no build removes it"
        removable = problem.way_out == again
        problems.append(problem if removable else Problem(path, 1, problem.what, way_out))
    readme = _text(root / "README.md")
    if not plan.problems and with_map(readme, plan) != readme:
        what = "its map differs from course.toml and the chapters"
        problems.append(Problem("README.md", 1, what, "run `course build`"))
    return problems


# %% [markdown]
# For a notebook, three questions: were its outputs edited, is it older than its code or the library, does its text differ?
# A gate that executed notebooks would take minutes and be skipped; the stamp answers in milliseconds, and `make test`
# executes them all the same.


# %%
#| export
def _output_problems(source: Source, notebook: dict) -> list[Problem]:
    problems = []
    codes = [cell for cell in source.cells if cell.kind == "code"]
    for cell, outputs in zip(codes, stored_outputs(notebook)):
        if any(output["output_type"] == "error" for output in outputs):
            way_out = f"mend it, then run `course build {source.slug}`"
            problems.append(
                Problem(source.path, cell.line, "this cell's output is an error", way_out)
            )
        texts = [o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in outputs]
        found = LOCAL_PATH.search(str(texts))
        if found:
            what = f"prints a path of one machine: {found[0]}"
            problems.append(Problem(source.path, cell.line, what, "print only the file's name"))
    return problems


# %%
#| export
def run_gate(root: Path, plan: Plan) -> list[Problem]:
    """Find notebooks that are missing, edited by hand, or older than their sources."""
    problems = []
    for source in plan.sources:
        again = f"run `course build {source.slug}`"
        path = root / source.notebook
        if not path.is_file():
            problems.append(Problem(source.notebook, 1, "is missing", again))
            continue
        notebook = read_notebook(path)
        if notebook is None:
            what = "is no notebook that `course build` wrote"
            problems.append(_stale(root, source.notebook, 1, what, again, None))
            continue
        stamp = current_stamp(source, plan)
        outputs = fresh_outputs(notebook, stamp)
        if outputs is None:
            same = notebook["metadata"]["course"]["sources"] == stamp
            what = "its outputs were edited" if same else "is older than its code or the library"
            line = _text(path)[: _text(path).rfind('"course": {')].count("\n") + 1
            problems.append(_stale(root, source.notebook, line, what, again, None))
            continue
        expected, found = notebook_text(make_notebook(source.cells, outputs, stamp)), _text(path)
        if found != expected:
            line, what = first_difference(found, expected), f"differs from {source.path}"
            problems.append(_stale(root, source.notebook, line, what, again, expected))
        elif read_record(root).get(source.notebook) != text_hash(expected):
            what = f"does not know that {source.notebook} is generated"
            problems.append(Problem(RECORD, 1, what, "run `course build`"))
        problems += _output_problems(source, notebook)
    return problems


# %% [markdown]
# Two gates look at the sources themselves: a figure needs words for those who do not see it, a skipped cell needs a reason, and a
# chapter in which nbval compares nothing is not checked at all.


# %%
#| export
def cells_gate(root: Path, plan: Plan) -> list[Problem]:
    """Find figures without alt text, skips without a reason, and chapters that check no output."""
    problems = []
    for source in plan.sources:
        codes = [cell for cell in source.cells if cell.kind == "code"]
        for cell in codes:
            calls = [n for n in ast.walk(parse_cell(source.path, cell)) if isinstance(n, ast.Call)]
            shown = any(ast.unparse(call.func) == "plt.show" for call in calls)
            if shown and not cell.comment("alt"):
                way_out = "start the cell with `# alt: what the figure shows`"
                problems.append(
                    Problem(source.path, cell.line, "a figure without alt text", way_out)
                )
            comments = [line for line in cell.comments if not line.startswith("# NBVAL")]
            skipped = "# NBVAL_SKIP" in cell.comments
            if skipped and not re.search(r"\b(GPU|CUDA|network)\b", " ".join(comments)):
                what, way_out = "NBVAL_SKIP without a reason", "say which GPU or network it needs"
                problems.append(Problem(source.path, cell.line, what, way_out))
        marked = any("# NBVAL_CHECK_OUTPUT" in cell.comments for cell in codes)
        if source.is_chapter and not marked:
            way_out = "mark cells whose output is deterministic with `# NBVAL_CHECK_OUTPUT`"
            problems.append(Problem(source.path, 1, "nbval compares nothing here", way_out))
    return problems


# %%
#| export
def docs_gate(root: Path, plan: Plan) -> list[Problem]:
    """Find docstrings that disagree with the code, and pieces too large to read."""
    problems = []
    for source in plan.sources:
        for _, cell in place_exports(source.path, source.cells):
            for line, fault in cell_faults(parse_cell(source.path, cell)):
                at = cell.line + line - 1
                problems.append(Problem(source.path, at, fault, "make text and code agree"))
        for path, text in source.files.items() if source.is_chapter else ():
            lines = text.count("\n")
            if lines > MOST_MODULE_LINES:
                what = f"{lines} lines; {MOST_MODULE_LINES} is the most"
                problems.append(
                    Problem(path, lines, what, "export a part of it to a second module")
                )
    return problems


# %% [markdown]
# Exercises have a gate of their own. An answer *leaks* when one of its lines stands somewhere else in the exercise
# file: in the prose, or in a check that computes the expected value by the same formula.


# %%
#| default_exp course.exercise_gate
# The gate for exercises: listed, hinted, graded, and no answer given away.

# %%
#| export
import ast
from pathlib import Path


# %%
#| export
def solution_lines(cell: Cell) -> list[str]:
    """Return the telling lines between the solution marks: 25 characters or more, no comments."""
    lines = [line.strip() for line in lines_of(cell.source)]
    if BEGIN not in lines or END not in lines:
        return []
    answer = lines[lines.index(BEGIN) + 1 : lines.index(END)]
    return [line for line in answer if len(line) >= 25 and not line.startswith("#")]


def _leaks(source: Source) -> list[Problem]:
    problems = []
    text = source.files.get(f"exercises/{source.slug}.py", "")
    for cell in source.cells:
        for line in solution_lines(cell):
            if line in text:
                at = text[: text.index(line)].count("\n") + 1
                what = f"gives away a line of the answer: {line}"
                way_out = f"take it out of {source.path}, outside the solution marks"
                problems.append(Problem(f"exercises/{source.slug}.py", at, what, way_out))
    return problems


# %%
#| export
def _listing(exercise: Exercise) -> list[str]:
    faults = []
    if len(exercise.hints) != 3 or not all(hint.strip() for hint in exercise.hints):
        faults.append(f"{len(exercise.hints)} hints: give a question, a plan and a name")
    if not 1 <= exercise.importance <= 5:
        faults.append(f"importance {exercise.importance}: give 1 to 5")
    if exercise.minutes < 1:
        faults.append(f"{exercise.minutes} minutes: give what it takes you, times three")
    return faults


def _grader_faults(root: Path, slug: str, name: str) -> list[str]:
    path = root / f"tests/exercises/grade_{slug}.py"
    if not path.is_file():
        return [f"no grader tests/exercises/grade_{slug}.py"]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    graders = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    faults = [] if f"grade_{name}" in graders else [f"{path.name} has no grade_{name}"]
    mutants = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values):
                if isinstance(key, ast.Constant) and key.value == name:
                    mutants = len(getattr(value, "elts", []))
    return faults if mutants >= 2 else [*faults, f"{path.name} has {mutants} mutants, not 2"]


# %%
#| export
def exercises_gate(root: Path, plan: Plan) -> list[Problem]:
    """Compare solutions, course.toml and graders, and look for answers that leak."""
    problems = []
    solved = {}
    for source in plan.sources:
        for cell in source.cells:
            for directive in cell.directives:
                if directive.name == "exercise":
                    solved[source.slug, directive.argument] = (source.path, directive.line)
        problems += [] if source.is_chapter else _leaks(source)
    listed = {(e.chapter, e.name): e for e in plan.manifest.exercises}
    for slug, name in sorted(solved.keys() - listed.keys()):
        way_out = "add an [[exercise]] table to course.toml"
        problems.append(Problem(*solved[slug, name], f"{slug}.{name} is not listed", way_out))
    for (slug, name), exercise in listed.items():
        faults = _listing(exercise)
        if (slug, name) not in solved:
            faults.append(f"no `#| exercise {name}` in solutions/{slug}.py")
        else:
            faults += _grader_faults(root, slug, name)
        for fault in faults:
            what = f"exercise {slug}.{name}: {fault}"
            problems.append(
                Problem("course.toml", exercise.line, what, "mend the one or the other")
            )
    return problems


# %%
#| default_exp course.check
# Run every gate and tell what is wrong.

# %%
#| export
from pathlib import Path

GATES: dict[str, Gate] = {
    "sources": sources_gate,
    "format": format_gate,
    "drift": drift_gate,
    "run": run_gate,
    "cells": cells_gate,
    "docs": docs_gate,
    "exercises": exercises_gate,
}


# %%
#| export
def check(root: Path) -> dict[str, list[Problem]]:
    """Run every gate; nothing is executed and nothing is written.

    Args:
        root: the folder of course.toml.

    Returns:
        Gate name to its problems, empty where all is well.

    Raises:
        CourseError: course.toml cannot be read.
    """
    plan = make_plan(root)
    return {name: gate(root, plan) for name, gate in GATES.items()}


# %% [markdown]
# Our toy course is not perfect: `double` has no docstring. And now somebody mends the library by hand.


# %%
# NBVAL_CHECK_OUTPUT
by_hand = toy / "nanochat_lib/numbers.py"
by_hand.write_text(by_hand.read_text(encoding="utf-8").replace("x + x", "2 * x"), encoding="utf-8")
for gate, problems in check(toy).items():
    for problem in problems:
        print(f"[{gate}] {problem}")


# %% [markdown]
# The gates found the missing docstring, that nbval has nothing to compare, and the edit, with its line. Out of the way:


# %%
# NBVAL_CHECK_OUTPUT
by_hand.unlink()
print(build(toy, [], run=pretend), check(toy)["drift"])


# %% [markdown]
# ## Cost
#
# What does a check cost? It starts three processes (ruff twice to format the plan, once to look at layout) and otherwise
# parses text. Starting a process is the expensive part. We predict: one call for eight modules is about eight times faster
# than eight calls.


# %%
import time

some = {f"{name}.py": modules[name].read_text(encoding="utf-8") for name in list(modules)[:8]}
start = time.perf_counter()
together = format_python(some)
one_call = time.perf_counter() - start
start = time.perf_counter()
apart = {path: format_python({path: text})[path] for path, text in some.items()}
many_calls = time.perf_counter() - start
assert together == apart
print(f"{len(some)} modules: {one_call:.2f} s in one call, {many_calls:.2f} s in {len(some)} calls")

# %%
assert many_calls > 2 * one_call, f"got {many_calls / one_call:.1f} times: is the machine busy?"
start = time.perf_counter()
import_graph({module: path.read_text(encoding="utf-8") for module, path in modules.items()})
print(f"{(time.perf_counter() - start) * 1000:.0f} ms to parse all {len(modules)} modules")


# %% [markdown]
# ## The command
#
# Two small helpers first: a chapter for the terminal, and what a machine means for this course.


# %%
#| default_exp course.reader
# A chapter for the terminal, and advice that fits a machine.

# %%
#| export
from collections.abc import Iterator


# %%
#| export
def _shown(output: dict) -> str:
    """Return an output as text: what was printed, a value, or the words for a figure."""
    if output["output_type"] == "stream":
        return "".join(output["text"]).rstrip()
    alts = [about["alt"] for about in output["metadata"].values() if "alt" in about]
    return f"[figure: {alts[0]}]" if alts else "".join(output["data"].get("text/plain", ""))


def rendered(cells: list[Cell], outputs: list[list[dict]] | None) -> Iterator[object]:
    """Turn cells into what `rich` prints: prose, highlighted code, results in grey.

    Args:
        cells: the chapter; cells marked `#| hide` are left out.
        outputs: one list for each code cell, or None for a chapter that was never built.
    """
    from rich.markdown import Markdown
    from rich.padding import Padding
    from rich.syntax import Syntax
    from rich.text import Text

    results = iter(outputs or [])
    for cell in cells:
        shown = next(results, []) if cell.kind == "code" else []
        if cell.has("hide"):
            continue
        if cell.kind == "markdown":
            yield Padding(Markdown(cell.source), (0, 0, 1, 0))
        elif cell.code.strip():
            code = Syntax(cell.code.strip("\n"), "python", theme="ansi_light", word_wrap=True)
            yield Padding(code, (0, 0, 1, 4))
        for output in shown:
            yield Padding(Text(_shown(output), style="bright_black"), (0, 0, 1, 4))


# %%
#| export
def module_title(cells: list[Cell]) -> str:
    """Return a chapter's title: its first heading."""
    lines = [line for cell in cells if cell.kind == "markdown" for line in lines_of(cell.source)]
    return next((line[2:].strip() for line in lines if line.startswith("# ")), "not written yet")


def advice(summary: dict) -> list[str]:
    """Say what a machine means for this course.

    Args:
        summary: what `nanochat_lib.machine.machine_summary` returns.
    """
    gpus = summary.get("gpus") or []
    lines = [
        f"{len(gpus)} GPU: `nanochat plan` says which profiles fit."
        if gpus
        else "No GPU: every chapter runs, and so does `make speedrun` with the laptop profile."
    ]
    if (summary.get("memory_gb") or 0) < 4:
        lines.append("Under 4 GB of memory: close other programs before you build notebooks.")
    if (summary.get("disk_free_gb") or 0) < 5:
        lines.append("Under 5 GB of free disk: set NANOCHAT_BASE_DIR to a larger one.")
    needs = {
        "cargo": "the tokenizer trains with the plain Python version, which is slow",
        "compiler": "torch.compile stays off on the CPU, and training runs eagerly",
        "browser": "the browser tests are skipped",
    }
    return lines + [f"No {key}: {what}." for key, what in needs.items() if not summary.get(key)]


# %%
# NBVAL_CHECK_OUTPUT
laptop = {"gpus": [], "memory_gb": 8, "disk_free_gb": 100, "compiler": "g++", "browser": "chromium"}
print("\n".join(advice(laptop)))


# %% [markdown]
# The command line is `argparse`, one function a command. What a person got wrong ends with code 2 and a message, what a check
# found ends with code 1; a traceback is left for our own mistakes.


# %%
#| default_exp course.cli
# The `course` command.

# %%
#| export
import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nanochat_lib.terminal import as_command


# %%
#| export
def _build(arguments: argparse.Namespace) -> int:
    start = time.monotonic()
    root = find_root(Path.cwd())
    touched = build(root, arguments.slug, not arguments.no_execute, arguments.force)
    print(f"{len(touched)} files changed, {time.monotonic() - start:.1f} s")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    start = time.monotonic()
    found = check(find_root(Path.cwd()))
    for gate, problems in found.items():
        for problem in problems:
            print(f"[{gate}] {problem}")
    total = sum(map(len, found.values()))
    seconds = time.monotonic() - start
    print(f"{len(found)} gates, {total or 'no'} problems, {seconds:.1f} s")
    return 1 if total else 0


# %%
#| export
def _list(arguments: argparse.Namespace) -> int:
    plan = make_plan(find_root(Path.cwd()))
    if arguments.shares:
        rows, total = shares(plan), sum(row[3] for row in shares(plan))
        print(f"{'':14}{'words':>7}{'cells':>7}{'exported':>10}{'of all':>8}{'of its code':>13}")
        for slug, words, cells, lines, share in rows:
            row = f"{slug:14}{words:>7,}{cells:>7}{lines:>10,}"
            print(f"{row}{lines / max(1, total):>8.0%}{share:>13.0%}")
        return 0
    cells = {source.slug: source.cells for source in plan.sources if source.is_chapter}
    for part, chapters in plan.manifest.by_part().items():
        print(part if chapters else f"{part}: to come")
        for chapter in chapters:
            own = [e.minutes for e in plan.manifest.exercises if e.chapter == chapter.slug]
            work = f"{reading_minutes(cells.get(chapter.slug, []))} min"
            exercises = "exercise" if len(own) == 1 else "exercises"
            work += f", {len(own)} {exercises} in {sum(own)} min" if own else ""
            needs = f"; after {', '.join(chapter.needs)}" if chapter.needs else ""
            print(f"  {chapter.slug:14}{chapter.asks}")
            print(f"  {'':14}{chapter.level}; {work}{needs}")
        print()
    print("read one: course read SLUG, or open its notebook in chapters/")
    return 0


def _read(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    root = find_root(Path.cwd())
    chapter = read_manifest(root).find(arguments.slug)
    cells = read_cells(read_source_text(root, chapter.path), chapter.path)
    notebook = read_notebook((root / chapter.path).with_suffix(".ipynb"))
    console = Console(width=min(104, Console().width))
    for part in rendered(cells, stored_outputs(notebook) if notebook else None):
        console.print(part)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from nanochat_lib.machine import machine_summary

    summary = machine_summary()
    for key, value in summary.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        print(f"{key:14}{'none' if shown in (None, '') else shown}")
    print()
    for line in advice(summary):
        print(line)
    return 0


# %%
#| export
def _parser() -> tuple[argparse.ArgumentParser, argparse._SubParsersAction]:
    parser = argparse.ArgumentParser(prog="course", description="Build, check and read the course.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("build", help="export, execute and pair what changed")
    command.add_argument("slug", nargs="*", metavar="SLUG", help="chapters; all when none is given")
    command.add_argument("--no-execute", action="store_true", help="leave notebooks as they are")
    command.add_argument("--force", action="store_true", help="execute even what did not change")
    command.set_defaults(run=_build)
    command = commands.add_parser("check", help="look for drift and broken rules; executes nothing")
    command.set_defaults(run=_check)
    command = commands.add_parser("list", help="the chapters and their exercises")
    command.add_argument("--shares", action="store_true", help="words, cells and exported lines")
    command.set_defaults(run=_list)
    command = commands.add_parser("read", help="read a chapter in the terminal")
    command.add_argument("slug", metavar="SLUG")
    command.set_defaults(run=_read)
    command = commands.add_parser("doctor", help="what this machine has, and what that means here")
    command.set_defaults(run=_doctor)
    return parser, commands


def main(arguments: list[str] | None = None, more: Callable | None = None) -> int:
    """Run the `course` command.

    Args:
        arguments: the words after `course`; None takes them from the command line.
        more: adds commands of a later chapter, given what argparse's `add_subparsers` returns.

    Returns:
        0 when all is well, 1 when a check found problems, 2 when the sources are wrong.
    """
    with as_command("course"):
        parser, commands = _parser()
        if more:
            more(commands)
        parsed = parser.parse_args(arguments)
        try:
            return parsed.run(parsed)
        except CourseError as error:
            print(error, file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\ncourse: stopped; nothing is half written", file=sys.stderr)
            return 130


# %%
import os

here = Path.cwd()
os.chdir(toy)
assert main(["list"]) == 0 and main(["build", "no_such_chapter"]) == 2
os.chdir(here)


# %% [markdown]
# ## What goes wrong: the tool that builds itself
#
# The tool is a part of the library that it builds, like a compiler written in its own language. It is committed,
# so a fresh clone has one that works. But a mistake in this chapter, once exported, breaks the program that would
# export the mended one. The way out is the script you are reading. With one word after it,
#
# ```
# python chapters/90_course_tool.py --rebuild
# ```
#
# the emergency cell at the top runs the export cells of its own file and nothing else, whatever state
# `nanochat_lib/course/` is in; the tool that they define builds this chapter. `python -m nanochat_lib.course.cli build`
# does the rest, the learner's commands among it. A test deletes the folder and calls both. Only
# `nanochat_lib.common`, which writes files atomically, must be sound; `git checkout nanochat_lib/common.py` brings the last
# committed one back.
#
# ## What goes wrong: a tool that knows files by name
#
# An earlier version removed whatever stood in its folders: solved exercises, notes. The record stops it:

# %%
# NBVAL_CHECK_OUTPUT
by_hand.write_text("somebody's evening of work", encoding="utf-8")
try:
    build(toy, [], run=pretend)
except CourseError as error:
    print(error)
by_hand.rename(toy / "kept.py")
build(toy, [], run=pretend)
assert check(toy)["drift"] == []
shutil.rmtree(toy)


# %% [markdown]
# ## Recap
#
# People write chapters and solutions; a plan in memory says what follows from them; a build writes the plan, whole or not at
# all, and a check compares it with the disk without running anything. Notebooks carry a stamp of their code and of the library
# they reach, so that only what changed runs again. Names, imports and docstrings are read from syntax trees and symbol tables, since a
# program's text does not tell what a name means.
#
# Now in the library: `nanochat_lib.course.*`, and the commands `course build`, `check`, `list`, `read` and `doctor`. The
# learner's commands are a chapter of their own.
# The exercises ask for the order in which a change travels upwards, and for the digits that all machines agree on. What
# comes next is yours to add, in a file with a number, a slug, and a line in `course.toml`.
