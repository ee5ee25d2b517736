# Generated from chapters/90_course_tool.py by `course build`; edit that file.
"""The gates: what `course check` looks at, without running any notebook and without writing."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from nanochat_lib.course.builder import stray_files
from nanochat_lib.course.cells import parse_cell
from nanochat_lib.course.docs import MOST_MODULE_LINES, cell_faults
from nanochat_lib.course.exporter import place_exports
from nanochat_lib.course.manifest import Problem
from nanochat_lib.course.notebooks import make_notebook, notebook_text, stored_outputs
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
    command += ["--exclude", "*.ipynb", "--line-length", "100", "--output-format", "concise"]
    done = subprocess.run([*command, *folders], cwd=root, capture_output=True, encoding="utf-8")
    places = re.findall(r"^(\S+?\.py):(\d+):\d+: (.*)$", done.stdout, re.MULTILINE)
    return [
        Problem(path, int(line), f"ruff format: {what}", f"`ruff format --line-length 100 {path}`")
        for path, line, what in places
    ]


def first_difference(old: str, new: str) -> int:
    """Return the number of the first line that differs."""
    before, after = old.splitlines(), new.splitlines()
    same = [a == b for a, b in zip(before, after)]
    return same.index(False) + 1 if False in same else min(len(before), len(after)) + 1


def drift_gate(root: Path, plan: Plan) -> list[Problem]:
    """Find generated files that differ from what their sources give, or that have no source."""
    expected = dict(plan.packages)
    slugs = {}
    for source in plan.sources:
        expected |= source.files
        slugs |= dict.fromkeys(source.files, source.slug)
    problems = []
    for path, text in expected.items():
        found = (root / path).read_text(encoding="utf-8") if (root / path).is_file() else ""
        if found != text:
            what = "differs from what its source gives" if found else "is missing"
            way_out = f"edit the source, then run `course build {slugs.get(path, '')}`".rstrip(" `")
            line = first_difference(found, text)
            problems.append(Problem(path, line, what, way_out + "`"))
    broken = {problem.path for problem in plan.problems}
    for path in [] if broken else stray_files(root, plan):
        way_out = "run `course build`, or move it out of the generated folders"
        problems.append(Problem(path, 1, "follows from no source", way_out))
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
            problems.append(Problem(source.notebook, 1, "was not written by `course build`", again))
            continue
        stamp = current_stamp(source, plan)
        outputs = fresh_outputs(notebook, stamp)
        if outputs is None:
            same = notebook["metadata"]["course"]["sources"] == stamp
            what = "its outputs were edited" if same else "is older than its code or the library"
            line = (
                path.read_text(encoding="utf-8")[
                    : path.read_text(encoding="utf-8").rfind('"course": {')
                ].count("\n")
                + 1
            )
            problems.append(Problem(source.notebook, line, what, again))
            continue
        expected, found = (
            notebook_text(make_notebook(source.cells, outputs, stamp)),
            path.read_text(encoding="utf-8"),
        )
        if found != expected:
            line = first_difference(found, expected)
            problems.append(Problem(source.notebook, line, f"differs from {source.path}", again))
        problems += _output_problems(source, notebook)
    return problems


def cells_gate(root: Path, plan: Plan) -> list[Problem]:
    """Find figures without alt text, skips without a reason, and chapters that check no output."""
    problems = []
    for source in plan.sources:
        codes = [cell for cell in source.cells if cell.kind == "code"]
        for cell in codes:
            if re.search(r"^\s*plt\.show\(\)", cell.source, re.MULTILINE) and not cell.comment(
                "alt"
            ):
                way_out = "start the cell with `# alt: what the figure shows`"
                problems.append(
                    Problem(source.path, cell.line, "a figure without alt text", way_out)
                )
            comments = re.findall(r"^# (?!NBVAL)(.*)$", cell.source, re.MULTILINE)
            skipped = "# NBVAL_SKIP" in cell.source.splitlines()
            if skipped and not re.search(r"\b(GPU|CUDA|network)\b", " ".join(comments)):
                what, way_out = "NBVAL_SKIP without a reason", "say which GPU or network it needs"
                problems.append(Problem(source.path, cell.line, what, way_out))
        marked = any("# NBVAL_CHECK_OUTPUT" in cell.source for cell in codes)
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
