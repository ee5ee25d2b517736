# Generated from chapters/90_course_tool.py by `course build`; edit that file.
"""Exercises are solutions with the answers taken out; graders load them by path."""

import ast
import json
import re
from pathlib import Path
from types import ModuleType

from nanochat_lib.course.cells import Cell, _cell, comment_lines, lines_of, parse_cell, read_cells
from nanochat_lib.course.manifest import CourseError, Problem

__all__ = ["BEGIN", "END", "strip_solutions", "learner_cells", "load_exercise"]

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"


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
