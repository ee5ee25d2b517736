# Generated from chapters/96_learner.py by `course build`; edit that file.
"""Find, show and reset one exercise of a learner's file."""

import ast
import json
from datetime import datetime
from pathlib import Path

from nanochat_lib.common import atomic_write
from nanochat_lib.course.cells import lines_of, read_cells
from nanochat_lib.course.exercises import BEGIN, END, learner_cells

__all__ = ["function_source", "missing_cells", "as_script", "as_notebook_cell", "reset_exercise"]


def function_source(path: Path, name: str) -> str:
    """Return the cell or the part of it that defines a function, without solution marks; "" if none.

    Args:
        path: a script or a notebook.
        name: the function.
    """
    for cell in learner_cells(path):
        try:
            tree = ast.parse(cell.code)
        except SyntaxError:
            if f"def {name}(" in cell.source:
                return cell.source.strip("\n")
            continue
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                lines = lines_of(cell.code)[node.lineno - 1 : node.end_lineno]
                return "\n".join(line for line in lines if line.strip() not in (BEGIN, END))
    return ""


def _backed_up(path: Path, data: bytes) -> Path:
    """Keep a copy beside the progress, under a name of its own."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    backup = path.parent / ".course/backup" / f"{path.stem}-{stamp}{path.suffix}"
    atomic_write(backup, data)
    return backup


def missing_cells(fresh: Path, name: str, known: str) -> list[tuple[str, str]]:
    """Return (kind, source) of the cells that a file needs for an exercise it lacks.

    Args:
        fresh: the exercise file, a script.
        name: the exercise.
        known: the text of the learner's file; set-up that stands in it is left out.
    """
    cells = read_cells(fresh.read_text(encoding="utf-8"), str(fresh))
    first = next(n for n, cell in enumerate(cells) if cell.has("exercise"))
    set_up = []
    for cell in cells[:first]:
        for node in ast.parse(cell.code).body if cell.kind == "code" else []:
            statement = ast.get_source_segment(cell.code, node)
            set_up += [statement] if f"\n{statement}\n" not in f"\n{known}\n" else []
    heads = [n for n, c in enumerate(cells) if c.kind == "markdown" and c.source.startswith("## ")]
    stub = next(n for n, cell in enumerate(cells) if f"def {name}(" in cell.source)
    begin = max((n for n in heads if n < stub), default=stub)
    end = min((n for n in heads if n > stub), default=len(cells))
    found = [("code", "\n".join(set_up))] if set_up else []
    return found + [(cell.kind, cell.source.strip("\n")) for cell in cells[begin:end]]


def as_script(cells: list[tuple[str, str]]) -> str:
    """Write cells in percent format."""
    blocks = []
    for kind, source in cells:
        if kind == "markdown":
            lines = [f"# {line}".rstrip() for line in source.split("\n")]
            blocks.append("\n".join(["# %% [markdown]", *lines]))
        else:
            blocks.append(f"# %%\n{source}")
    return "\n\n".join(blocks)


def as_notebook_cell(kind: str, source: str) -> dict:
    """Write one cell as a notebook holds it."""
    cell = {"cell_type": kind, "metadata": {}, "source": source.splitlines(keepends=True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def reset_exercise(path: Path, fresh: Path, name: str) -> Path:
    """Put the stub of one exercise back; everything else in the file stays as it is.

    Args:
        path: the learner's script or notebook.
        fresh: the exercise file that the stub comes from, a script.
        name: the exercise; if the file has lost it, or never had it, it is appended with its task.

    Returns:
        The backup of the file as it was.
    """
    data = path.read_bytes()
    stub = next(cell for cell in learner_cells(fresh) if f"def {name}(" in cell.source)
    source, cells = stub.source.strip("\n"), learner_cells(path)
    found = [n for n, cell in enumerate(cells) if f"def {name}(" in cell.source]
    known = "\n".join(cell.source for cell in cells)
    more = [] if found else missing_cells(fresh, name, known)
    if path.suffix == ".ipynb":
        notebook = json.loads(data.decode("utf-8-sig"))
        if found:
            codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
            codes[found[0]] |= {"source": source.splitlines(keepends=True), "outputs": []}
        notebook["cells"] += [as_notebook_cell(*cell) for cell in more]
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    else:
        lines = lines_of(data.decode("utf-8-sig"))
        begin, end = len(lines), len(lines)
        block = ["", as_script(more)]
        if found:
            block = ["", "", "# %%", *source.split("\n")]
            if len(cells) > 1:
                begin = cells[found[0]].line - 1
                end = begin + len(lines_of(cells[found[0]].source))
                block = [*source.split("\n"), "", ""]
        text = "\n".join([*lines[:begin], *block, *lines[end:]]).rstrip("\n") + "\n"
    backup = _backed_up(path, data)
    atomic_write(path, text)
    return backup
