# Generated from chapters/90_course_tool.py by `course build`; edit that file.
"""Run what changed, and write each chapter whole or not at all."""

import shutil
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from nanochat_lib.course.cells import Cell
from nanochat_lib.course.exporter import PACKAGE, module_path
from nanochat_lib.course.manifest import CourseError, read_source_text
from nanochat_lib.course.map import with_map
from nanochat_lib.course.notebooks import make_notebook, notebook_text, run_notebook
from nanochat_lib.course.ownership import (
    RECORD,
    file_hash,
    obstacles,
    read_record,
    record_text,
    text_hash,
)
from nanochat_lib.course.planner import (
    Plan,
    Source,
    current_stamp,
    fresh_outputs,
    make_plan,
    read_notebook,
)

__all__ = [
    "Runner",
    "BESIDE",
    "fresh_notebook",
    "write_changed",
    "expected_files",
    "stray_files",
    "build",
]

Runner = Callable[[str, list[Cell], Path], list[list[dict]]]
BESIDE = ("course.toml", "data", "records", "web")  # what chapters read beside the library


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
