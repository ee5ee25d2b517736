# Generated from chapters/90_course_tool.py by `course build`; edit that file.
"""Exercises are solutions with the answers taken out; graders load them by path."""

import ast
from pathlib import Path
from types import ModuleType

from nanochat_lib.course.cells import Cell, parse_cell, read_cells
from nanochat_lib.course.manifest import CourseError, Problem

__all__ = ["BEGIN", "END", "strip_solutions", "load_exercise"]

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"


def _strip_cell(path: str, slug: str, cell: Cell) -> str:
    names = [d.argument for d in cell.directives if d.name == "exercise"]
    lines = cell.source.splitlines()
    marks = [(n, line.strip()) for n, line in enumerate(lines) if line.strip() in (BEGIN, END)]
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
    lines = text.splitlines()
    for cell in reversed(read_cells(text, path)):  # from the end: earlier line numbers stay true
        if cell.kind == "code":
            end = cell.line - 1 + len(cell.source.splitlines())
            lines[cell.line - 1 : end] = _strip_cell(path, slug, cell).splitlines()
    return "\n".join(lines) + "\n"


def load_exercise(path: Path, extra: str = "") -> ModuleType:
    """Load the set-up and the functions of an exercise file, without running its visible checks.

    Args:
        path: an exercise or a solutions file.
        extra: source to run last, in the same namespace; a mutant replaces a function this way.

    Returns:
        A module with the functions as attributes.
    """
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    cells = [
        cell
        for cell in read_cells(path.read_text(encoding="utf-8"), str(path))
        if cell.kind == "code"
    ]
    first = next((n for n, cell in enumerate(cells) if cell.has("exercise")), len(cells))
    for number, cell in enumerate(cells):
        if number < first or cell.has("exercise"):
            lines = "\n" * (cell.line - 1) + cell.code
            exec(compile(lines, str(path), "exec"), module.__dict__)
    exec(compile(extra, f"{path} (mutant)", "exec"), module.__dict__)
    return module
