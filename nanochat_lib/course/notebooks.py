# Generated from chapters/90_course_tool.py by `course build`; edit that file.
"""Notebooks from cells: one JSON form, cleaned outputs, and a stamp that says what they came from."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from nanochat_lib.course.cells import Cell, cell_ids
from nanochat_lib.course.manifest import CourseError, Problem

__all__ = [
    "STAMP_VERSION",
    "digest",
    "source_stamp",
    "keep_lines",
    "make_notebook",
    "notebook_text",
    "stored_outputs",
    "clean_outputs",
    "run_notebook",
]

STAMP_VERSION = 1  # raise it when outputs are cleaned in a new way: every notebook runs again


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
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
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
