# Generated from chapters/16_capstone.py by `course build`; edit that file.
"""Run stages in order, skipping what is up to date and continuing what was stopped."""

import ast
import contextlib
import dataclasses
import difflib
import fcntl
import inspect
import json
import shutil
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nanochat_lib
from nanochat_lib.common import atomic_write, fingerprint

__all__ = [
    "Stage",
    "code_skeleton",
    "imported_modules",
    "module_source",
    "code_fingerprints",
    "stage_inputs",
    "read_record",
    "file_sizes",
    "reason_to_run",
    "forget",
    "stopwatch",
    "run_stage",
    "only_one",
    "nearest",
    "run_stages",
]


@dataclass(frozen=True)
class Stage:
    """Name one step of a run: a function from settings and folders to a filled folder.

    Args:
        name: also the name of its folder.
        run: called as run(folder, inputs, *settings): its own folder, and name -> folder of what it needs;
            returns a JSON record.
        needs: stages whose folders it reads.
        settings: parts of the profile that it is given; it sees no others.
        resumes: True if `run` continues from what it finds in its folder; else the folder is emptied first.
    """

    name: str
    run: Callable[..., dict]
    needs: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    resumes: bool = False


def code_skeleton(source: str) -> str:
    """Reduce source to what can change a result: comments, docstrings and layout fall away."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list) or not body or not isinstance(body[0], ast.Expr):
            continue
        if isinstance(getattr(body[0].value, "value", None), str):
            body[0].value.value = ""
    return ast.dump(tree)


def imported_modules(source: str, package: str) -> set[str]:
    """List the modules of `package` that a source imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.startswith(f"{package}.")}


def module_source(module: str) -> str | None:
    """Read a module of the library without importing it; None if it is a name and no module."""
    path = Path(nanochat_lib.__file__).parents[1] / (module.replace(".", "/") + ".py")
    return path.read_text(encoding="utf-8") if path.exists() else None


def code_fingerprints(run: Callable) -> dict[str, str]:
    """Fingerprint all library code that a stage can reach: its module, what that imports, and so on.

    Returns:
        Module name -> fingerprint. A function from outside the library counts as a module of its own.
    """
    waiting, found = {run.__module__}, {}
    if module_source(run.__module__) is None:
        source = textwrap.dedent(inspect.getsource(run))
        found[run.__qualname__] = fingerprint(code_skeleton(source))
        waiting = imported_modules(source, "nanochat_lib")
    while waiting:
        module = waiting.pop()
        source = module_source(module)
        if module in found or source is None:
            continue
        found[module] = fingerprint(code_skeleton(source))
        waiting |= imported_modules(source, "nanochat_lib")
    return dict(sorted(found.items()))


def stage_inputs(stage: Stage, profile: object, upstream: dict[str, str]) -> dict:
    """Collect everything that may change a stage's result, as JSON.

    Args:
        stage: the stage.
        profile: holds the settings.
        upstream: fingerprints of the stages before it.

    Returns:
        "settings" (name -> value), "inputs" (stage -> fingerprint) and "code" (module -> fingerprint).
    """
    settings = {}
    for name in stage.settings:
        part = getattr(profile, name)
        part = dataclasses.asdict(part) if dataclasses.is_dataclass(part) else {"": part}
        settings |= {f"{name}.{key}".rstrip("."): value for key, value in part.items()}
    inputs = {name: upstream[name] for name in stage.needs}
    everything = {"settings": settings, "inputs": inputs, "code": code_fingerprints(stage.run)}
    return json.loads(json.dumps(everything))  # tuples become lists, as in the stored record


def read_record(folder: Path) -> dict | None:
    """Read what a stage left in its folder, None if it never started."""
    path = folder / "stage.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def file_sizes(folder: Path) -> dict[str, int]:
    """Map each file of a stage to its size in bytes, without the pipeline's own and half-written ones."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    own = ("stage.json", "seconds.json")
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in files
        if path.name not in own and not path.name.endswith(".tmp")
    }


def reason_to_run(folder: Path, wanted: dict) -> str | None:
    """Say why a stage has to run; None if the result in its folder still stands.

    Args:
        folder: the stage's folder.
        wanted: what its result depends on now, from `stage_inputs`.
    """
    record = read_record(folder)
    if record is None:
        return "not run yet"
    for part in ("settings", "inputs", "code"):
        old, new = record["wanted"][part], wanted[part]
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            return f"{part} changed: {', '.join(changed[:3])}{more}"
    if record["state"] != "done":
        return "continues where it was stopped"
    present = file_sizes(folder)
    broken = [name for name, size in record["files"].items() if present.get(name) != size]
    return f"{broken[0]} is missing or has another size" if broken else None


def forget(folder: Path) -> None:
    """Empty a stage's folder; its record goes first, so that half a deletion cannot pass for a result."""
    (folder / "stage.json").unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


@contextlib.contextmanager
def stopwatch(path: Path, seconds_before: float) -> Iterator[Callable[[], float]]:
    """Keep the seconds spent in `path`, once a second, so that even kill -9 loses no more than one."""
    start, done = time.perf_counter(), threading.Event()

    def seconds() -> float:
        return seconds_before + time.perf_counter() - start

    def keep_writing() -> None:
        while not done.wait(1.0):
            atomic_write(path, json.dumps(seconds()))

    writer = threading.Thread(target=keep_writing, daemon=True)
    writer.start()
    try:
        yield seconds
    finally:
        done.set()
        writer.join()
        atomic_write(path, json.dumps(seconds()))


def run_stage(stage: Stage, profile: object, run_folder: Path, wanted: dict) -> dict:
    """Run one stage, or continue it, and record its result.

    The record is written twice: before the work with state "running", after it with "done". Whatever
    is in the folder without "done" is unfinished; whatever has other inputs is removed.

    Returns:
        The record: fingerprint, state, wanted, seconds over all attempts, files and what `run` returned.
    """
    folder, path = run_folder / stage.name, run_folder / stage.name / "stage.json"
    before = read_record(folder)
    clock, seconds_before = folder / "seconds.json", 0.0
    unfinished = before is not None and before["wanted"] == wanted and before["state"] == "running"
    if unfinished and clock.exists():
        seconds_before = json.loads(clock.read_text(encoding="utf-8"))
    if not (unfinished and stage.resumes):
        forget(folder)
    record = {"stage": stage.name, "fingerprint": fingerprint(wanted), "wanted": wanted}
    atomic_write(path, json.dumps(record | {"state": "running"}, indent=1))
    with stopwatch(clock, seconds_before) as seconds:
        settings = [getattr(profile, name) for name in stage.settings]
        inputs = {name: run_folder / name for name in stage.needs}
        result = stage.run(folder, inputs, *settings)
        spent = seconds()
    record |= {"state": "done", "seconds": spent, "files": file_sizes(folder), "result": result}
    atomic_write(path, json.dumps(record, indent=1))
    return record


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Let one process at a time work in a run folder; the lock dies with its holder, even by kill -9.

    Raises:
        ValueError: another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is working in {folder}: wait for it, or stop it"
            ) from None
        yield


def nearest(word: str, known: Iterable[str]) -> str:
    """Name the known words that somebody who wrote `word` may have meant."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def run_stages(
    stages: tuple[Stage, ...],
    profile: object,
    run_folder: Path,
    start: str | None = None,
    announce: Callable[[str], None] = print,
) -> dict[str, dict]:
    """Bring every stage of a run up to date, in order, doing only the work that is missing.

    Args:
        stages: in order; a stage needs only earlier ones.
        profile: the settings.
        run_folder: holds one folder a stage.
        start: this stage and all after it run again, whatever their state.
        announce: receives one line a stage.

    Returns:
        Stage name -> record.

    Raises:
        ValueError: no stage is called `start`, or another process is at work in the folder.
    """
    names = [stage.name for stage in stages]
    if start is not None and start not in names:
        raise ValueError(f"no stage {start!r}: {nearest(start, names)}")
    records = {}
    with only_one(run_folder):
        for name in names[names.index(start) :] if start else ():
            (run_folder / name / "stage.json").unlink(missing_ok=True)
        for number, stage in enumerate(stages, start=1):
            upstream = {name: record["fingerprint"] for name, record in records.items()}
            wanted = stage_inputs(stage, profile, upstream)
            reason = reason_to_run(run_folder / stage.name, wanted)
            line = f"[{number}/{len(stages)}] {stage.name}"
            if reason is None:
                records[stage.name] = read_record(run_folder / stage.name)
                announce(f"{line}: up to date")
            else:
                announce(f"{line}: {reason}")
                records[stage.name] = run_stage(stage, profile, run_folder, wanted)
                announce(f"{line}: done, {records[stage.name]['seconds']:.1f} s")
    return records
