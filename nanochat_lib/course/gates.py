# Generated from chapters/90_course_tool.py by `course build`; edit that file.
"""The gates: what `course check` looks at, without running any notebook and without writing."""

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from nanochat_lib.course.builder import stray_files
from nanochat_lib.course.cells import parse_cell
from nanochat_lib.course.docs import MOST_MODULE_LINES, cell_faults
from nanochat_lib.course.exporter import place_exports
from nanochat_lib.course.manifest import Problem
from nanochat_lib.course.map import with_map
from nanochat_lib.course.notebooks import make_notebook, notebook_text, stored_outputs
from nanochat_lib.course.ownership import RECORD, file_hash, obstacles, read_record, text_hash
from nanochat_lib.course.planner import Plan, Source, current_stamp, fresh_outputs, read_notebook

__all__ = [
    "Gate",
    "LOCAL_PATH",
    "sources_gate",
    "format_gate",
    "first_difference",
    "drift_gate",
    "run_gate",
    "cells_gate",
    "docs_gate",
]

Gate = Callable[[Path, Plan], list[Problem]]
LOCAL_PATH = re.compile(r"(?<![\w.~/-])/(?:home|root|tmp|Users|work|private|mnt)/\w+")


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
