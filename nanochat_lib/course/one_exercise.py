# Generated from chapters/96_learner.py by `course build`; edit that file.
"""Find, show and reset one exercise of a learner's file."""

import ast
import json
from datetime import datetime
from pathlib import Path

from nanochat_lib.common import atomic_write
from nanochat_lib.course.cells import lines_of
from nanochat_lib.course.exercises import BEGIN, END, learner_cells

__all__ = ["function_source", "reset_exercise"]


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


def reset_exercise(path: Path, fresh: Path, name: str) -> Path:
    """Put the stub of one exercise back; everything else in the file stays as it is.

    Args:
        path: the learner's script or notebook.
        fresh: the exercise file that the stub comes from.
        name: the exercise; if the file has lost it, it is appended.

    Returns:
        The backup of the file as it was.
    """
    data = path.read_bytes()
    stub = next(cell for cell in learner_cells(fresh) if f"def {name}(" in cell.source)
    source = stub.source.strip("\n")
    cells = learner_cells(path)
    found = [n for n, cell in enumerate(cells) if f"def {name}(" in cell.source]
    if path.suffix == ".ipynb":
        notebook = json.loads(data.decode("utf-8-sig"))
        codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        if found:
            target = codes[found[0]]
        else:
            target = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": []}
            notebook["cells"].append(target)
        target["source"], target["outputs"] = source.splitlines(keepends=True), []
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    else:
        lines = lines_of(data.decode("utf-8-sig"))
        begin, end = len(lines), len(lines)
        block = ["", "", "# %%", *source.split("\n")]
        if found and len(cells) > 1:
            begin = cells[found[0]].line - 1
            end = begin + len(lines_of(cells[found[0]].source))
            block = [*source.split("\n"), "", ""]
        text = "\n".join([*lines[:begin], *block, *lines[end:]]).rstrip("\n") + "\n"
    backup = _backed_up(path, data)
    atomic_write(path, text)
    return backup
