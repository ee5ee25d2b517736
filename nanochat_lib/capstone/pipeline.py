# Generated from chapters/91_pipeline.py by `course build`; edit that file.
"""Run stages in order, skipping what is up to date and continuing what was stopped."""

import ast
import contextlib
import dataclasses
import difflib
import fcntl
import inspect
import json
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nanochat_lib
from nanochat_lib.capstone.record import (
    check_no_strangers,
    file_sizes,
    forget,
    read_json,
    read_record,
    reason_to_run,
)
from nanochat_lib.common import atomic_write, fingerprint

__all__ = [
    "Stage",
    "code_skeleton",
    "imported_modules",
    "module_source",
    "data_files",
    "code_fingerprints",
    "stage_inputs",
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
        writes: patterns of the names of its files; other files in its folder are somebody else's.
    """

    name: str
    run: Callable[..., dict]
    needs: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    resumes: bool = False
    writes: tuple[str, ...] = ("*",)


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


def data_files() -> list[Path]:
    """List the files of `data/`, which code reads by name."""
    folder = Path(nanochat_lib.__file__).parents[1] / "data"
    return sorted(path for path in folder.glob("*") if path.is_file())


def code_fingerprints(run: Callable) -> dict[str, str]:
    """Fingerprint all library code that a stage can reach: its module, what that imports, and so on.

    Returns:
        Module name -> fingerprint, and the same for the files of `data/` that this code names. A function
        from outside the library counts as a module of its own.
    """
    waiting, found, code = {run.__module__}, {}, ""
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
        code += source
    for path in data_files():
        if f'"{path.name}"' in code:
            found[f"data/{path.name}"] = fingerprint(path.read_text(encoding="utf-8"))
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


@contextlib.contextmanager
def stopwatch(path: Path, seconds_before: float) -> Iterator[Callable[[], float]]:
    """Keep the seconds spent in `path`, once a second, so that even kill -9 loses no more than one."""
    start, done = time.perf_counter(), threading.Event()

    def seconds() -> float:
        return seconds_before + time.perf_counter() - start

    def write() -> None:
        with contextlib.suppress(OSError):  # a full disk stops the stage itself, not its clock
            atomic_write(path, json.dumps(seconds()))

    def keep_writing() -> None:
        while not done.wait(1.0):
            write()

    writer = threading.Thread(target=keep_writing, daemon=True)
    writer.start()
    try:
        yield seconds
    finally:
        done.set()
        writer.join()
        write()


def run_stage(stage: Stage, profile: object, run_folder: Path, wanted: dict) -> dict:
    """Run one stage, or continue it, and record its result.

    The record is written twice: before the work with state "running", after it with "done". Whatever
    is in the folder without "done" is unfinished; what the stage made of other inputs is removed.

    Returns:
        The record: fingerprint, state, wanted, seconds over all attempts, files and what `run` returned.
    """
    folder, path = run_folder / stage.name, run_folder / stage.name / "stage.json"
    before = read_record(folder)
    clock, seconds_before = folder / "seconds.json", 0.0
    unfinished = before is not None and before["wanted"] == wanted and before["state"] == "running"
    if unfinished and clock.exists():
        seconds_before = read_json(clock)
    if not (unfinished and stage.resumes):
        forget(folder, stage.writes)
    record = {"stage": stage.name, "fingerprint": fingerprint(wanted), "wanted": wanted}
    atomic_write(path, json.dumps(record | {"state": "running"}, indent=1))
    with stopwatch(clock, seconds_before) as seconds:
        settings = [getattr(profile, name) for name in stage.settings]
        inputs = {name: run_folder / name for name in stage.needs}
        result = stage.run(folder, inputs, *settings)
        spent = seconds()
    record |= {"state": "done", "seconds": spent, "result": result}
    record["files"] = file_sizes(folder, stage.writes)
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
        ValueError: no stage is called `start`, another process is at work in the folder, or files
            of somebody else are in the way.
    """
    names = [stage.name for stage in stages]
    if start is not None and start not in names:
        raise ValueError(f"no stage {start!r}: {nearest(start, names)}")
    records, upstream, todo = {}, {}, []
    with only_one(run_folder):
        for stage in stages:  # look at all before any works for hours
            folder = run_folder / stage.name
            record = read_record(folder)
            if record and start and stage.name in names[names.index(start) :]:
                atomic_write(folder / "stage.json", json.dumps(record | {"state": "again"}))
            wanted = stage_inputs(stage, profile, upstream)
            upstream[stage.name] = fingerprint(wanted)
            reason = reason_to_run(folder, wanted)
            todo.append((stage, wanted, reason))
            continues = stage.resumes and record and record["state"] == "running"
            if reason and not continues:
                check_no_strangers(folder, stage.writes)
        for number, (stage, wanted, reason) in enumerate(todo, start=1):
            line = f"[{number}/{len(stages)}] {stage.name}"
            if reason is None:
                records[stage.name] = read_record(run_folder / stage.name)
                announce(f"{line}: up to date")
            else:
                announce(f"{line}: {reason}")
                records[stage.name] = run_stage(stage, profile, run_folder, wanted)
                announce(f"{line}: done, {records[stage.name]['seconds']:.1f} s")
    return records
