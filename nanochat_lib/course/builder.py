# Generated from chapters/90_course_tool.py by `course build`; edit that file.
"""Run what changed, and write each chapter whole or not at all."""

import shutil
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from nanochat_lib.course.cells import Cell
from nanochat_lib.course.exporter import PACKAGE, module_path
from nanochat_lib.course.manifest import CourseError
from nanochat_lib.course.notebooks import make_notebook, notebook_text, run_notebook
from nanochat_lib.course.planner import (
    Plan,
    Source,
    current_stamp,
    fresh_outputs,
    make_plan,
    read_notebook,
)

__all__ = ["Runner", "GENERATED", "write_changed", "stray_files", "build"]

Runner = Callable[[str, list[Cell], Path], list[list[dict]]]
GENERATED = "# Generated "


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
        yield stage


def _notebook_file(
    root: Path, source: Source, plan: Plan, force: bool, run: Runner, say: Callable[[str], object]
) -> str:
    stamp = current_stamp(source, plan)
    outputs = fresh_outputs(read_notebook(root / source.notebook), stamp)
    if outputs is None or force:
        say(f"running {source.path}")
        files = plan.packages | {module_path(name): text for name, text in plan.modules.items()}
        with _staged_library(root, files) as library:
            outputs = run(source.path, source.cells, library)
    return notebook_text(make_notebook(source.cells, outputs, stamp))


def write_changed(root: Path, files: dict[str, str]) -> list[str]:
    """Write the files whose content changes, each atomically, and return their paths."""
    from nanochat_lib.common import atomic_write  # here, so that checking works when it is broken

    changed = []
    for path, text in files.items():
        if not (root / path).is_file() or (root / path).read_text(encoding="utf-8") != text:
            atomic_write(root / path, text)
            changed.append(path)
    return changed


def stray_files(root: Path, plan: Plan) -> list[str]:
    """List files in the generated folders that follow from no source."""
    expected = set(plan.packages)
    for source in plan.sources:
        expected |= {source.path, source.notebook, *source.files}
    expected |= {problem.path for problem in plan.problems}
    stray = []
    for folder in (PACKAGE, "chapters", "solutions", "exercises"):
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root).as_posix()
            hidden = any(part.startswith((".", "__pycache__")) for part in Path(name).parts)
            asset = name.startswith(f"{PACKAGE}/serving/static/")
            if path.is_file() and not hidden and not asset and name not in expected:
                stray.append(name)
    return stray


def _remove_orphans(root: Path, plan: Plan, chosen: list[Source], everything: bool) -> list[str]:
    """Delete generated files whose source is gone; what a person may have written stays."""
    removed = []
    for name in stray_files(root, plan):
        first = (root / name).read_text(errors="replace", encoding="utf-8").partition("\n")[0]
        ours = any(first.startswith(f"{GENERATED}from {s.path} ") for s in chosen)
        generated = first.startswith(GENERATED) or name.endswith(".ipynb")
        if ours or (everything and (generated or name.startswith("exercises/"))):
            (root / name).unlink()
            removed.append(name)
            if not any((root / name).parent.iterdir()):
                (root / name).parent.rmdir()
    return removed


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
        slugs: the chapters to build; none means all of them, and only then orphans are removed.
        execute: False leaves executed notebooks as they are.
        force: run notebooks whose sources did not change, too.
        run: executes the cells of one source; tests pass a quick one.
        say: gets one line for each notebook run and each file written or removed.

    Returns:
        The paths written or removed.

    Raises:
        CourseError: something is wrong with the sources, or a cell raised.
    """
    plan = make_plan(root)
    names = [plan.manifest.find(slug).slug for slug in slugs]
    wanted = {c.path: c.slug for c in plan.manifest.chapters if c.slug in names}
    wanted |= {f"solutions/{slug}.py": slug for slug in names}
    problems = [p for p in plan.problems if not slugs or p.path in wanted]
    if problems:
        raise CourseError(*problems)
    chosen = [source for source in plan.sources if not slugs or source.path in wanted]
    touched = []
    for source in chosen:
        files = dict(source.files)
        if execute:
            files[source.notebook] = _notebook_file(root, source, plan, force, run, say)
        for path in write_changed(root, plan.packages | files):
            say(f"wrote {path}")
            touched.append(path)
    for path in _remove_orphans(root, plan, chosen, everything=not slugs):
        say(f"removed {path}")
        touched.append(path)
    return touched
