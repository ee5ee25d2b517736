# Generated from chapters/96_learner.py by `course build`; edit that file.
"""The learner's commands, and `grade` for notebooks."""

import argparse
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from nanochat_lib.course.cli import main as run_command
from nanochat_lib.course.grading import grade_file
from nanochat_lib.course.manifest import (
    CourseError,
    Exercise,
    find_root,
    library_root,
    read_manifest,
)
from nanochat_lib.course.one_exercise import function_source, reset_exercise
from nanochat_lib.course.talk import in_order, key_of, say, shortest, show
from nanochat_lib.course.workspace import DEFAULT, Workspace, find_workspace, pick, start_workspace

__all__ = ["changed_files", "grade", "main"]


def _root() -> Path:
    """Return the course around this folder, or the one that the library belongs to."""
    try:
        return find_root(Path.cwd())
    except CourseError:
        return library_root()


def _space() -> Workspace:
    return find_workspace(_root(), Path.cwd())


def _chosen(space: Workspace, wanted: str | None) -> list[Exercise]:
    """Take the exercises that were named, or the last one, or the next."""
    progress = space.progress()
    waiting = [e for e in in_order(space.manifest) if key_of(e) not in progress["done"]]
    last = [e for e in waiting if key_of(e) == progress["last"]]
    if not wanted and not waiting:
        print("every exercise is done")
    return pick(space.manifest, wanted) if wanted else (last or waiting)[:1]


def _graded(space: Workspace, exercises: list[Exercise], limits: dict) -> int:
    """Grade, show and remember; return 0 when all passed."""
    wrong = 0
    for exercise in exercises:
        path, key = space.file(exercise.chapter), key_of(exercise)
        verdict = grade_file(space.root, path, exercise.chapter, exercise.name, **limits)
        show(exercise, path, verdict)
        progress = space.progress()  # read late: a second terminal may have written meanwhile
        progress["tries"][key] = progress["tries"].get(key, 0) + (verdict.outcome != "todo")
        progress["last"] = key
        if verdict.outcome == "passed":
            progress["done"].setdefault(key, date.today().isoformat())
        else:
            wrong += 1
        space.remember(progress)
    return 1 if wrong else 0


def _grade(arguments: argparse.Namespace) -> int:
    space = _space()
    limits = {"seconds": arguments.seconds, "memory_mb": arguments.memory_mb}
    return _graded(space, _chosen(space, arguments.exercise), limits)


def _start(arguments: argparse.Namespace) -> int:
    root = _root()
    folder = Path(arguments.folder) if arguments.folder else root / DEFAULT
    created, lacking = start_workspace(root, folder, arguments.notebooks)
    folder = shortest(folder)
    print(f"{folder}: {len(created)} new files; what was there is as it was")
    for key in lacking:
        print(f"  your file has no {key}: course reset {key} appends it")
    if created:
        print(
            f"go on: cd {folder}, open start.py, then `course grade start`; `course status` is the map"
        )
    return 0


def _hint(arguments: argparse.Namespace) -> int:
    space = _space()
    for exercise in _chosen(space, arguments.exercise):
        progress, key = space.progress(), key_of(exercise)
        rung = min(progress["hints"].get(key, 0) + 1, len(exercise.hints))
        progress["hints"][key], progress["last"] = rung, key
        for number, hint in enumerate(exercise.hints[:rung], 1):
            say(f"{key}, hint {number} of {len(exercise.hints)}: {hint}", "cyan")
        if rung == len(exercise.hints):
            say(f"that was the last; course solution {key} --anyway shows an answer")
        space.remember(progress)
    return 0


def _solution(arguments: argparse.Namespace) -> int:
    space, hidden = _space(), 0
    for exercise in pick(space.manifest, arguments.exercise):
        key = key_of(exercise)
        if key not in space.progress()["done"] and not arguments.anyway:
            print(
                f"{key}: shown once you passed it, or with --anyway; course hint {key} helps first"
            )
            hidden = 1
            continue
        mine = function_source(space.file(exercise.chapter), exercise.name)
        other = function_source(space.root / f"solutions/{exercise.chapter}.py", exercise.name)
        say(f"--- yours: {key}", "bold")
        say(mine or "(not there)")
        say(f"--- one solution: {key}", "bold")
        say(other)
    return hidden


def _reset(arguments: argparse.Namespace) -> int:
    space = _space()
    chosen = pick(space.manifest, arguments.exercise)
    if "." not in arguments.exercise:
        names = " or ".join(map(key_of, chosen))
        print(f"one exercise at a time: {names}", file=sys.stderr)
        return 2
    exercise = chosen[0]
    path = space.file(exercise.chapter)
    fresh = space.root / f"exercises/{exercise.chapter}.py"
    backup = reset_exercise(path, fresh, exercise.name)
    progress = space.progress()
    for table in ("done", "hints", "tries"):
        progress[table].pop(key_of(exercise), None)
    space.remember(progress)
    print(f"{key_of(exercise)} is as new in {path}; your file as it was: {backup}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    space = _space()
    manifest, done = space.manifest, space.progress()["done"]
    ordered = in_order(manifest)
    waiting = [e for e in ordered if key_of(e) not in done]
    for part, chapters in manifest.by_part().items():
        own = {c.slug: [e for e in ordered if e.chapter == c.slug] for c in chapters}
        if arguments.markdown and any(own.values()):
            print(f"\n**{part}**\n")
        elif not arguments.markdown:
            say(part if chapters else f"{part}: to come", "bold")
        for slug, exercises in own.items():
            if not exercises and not arguments.markdown:
                print(f"  {slug:14}to read")
            for e in exercises:
                mark = "x" if key_of(e) in done else " "
                if arguments.markdown:
                    print(f"- [{mark}] {key_of(e)}")
                else:
                    arrow = "  <- next" if waiting and e is waiting[0] else ""
                    row = f"  {slug:14}[{mark}] {e.name:24}{e.minutes:>3} min{arrow}"
                    say(row, "green" if mark == "x" else None)
    left = sum(e.minutes for e in waiting)
    print(f"\n{len(ordered) - len(waiting)} of {len(ordered)} done, about {left} minutes left")
    if waiting and not arguments.markdown:
        path = shortest(space.folder / f"{waiting[0].chapter}.py")
        print(f"next: {path}, then course grade {key_of(waiting[0])}")
    return 0


def changed_files(folder: Path, seen: dict[Path, tuple]) -> list[Path]:
    """List the scripts and notebooks that were saved since the last call.

    Args:
        folder: where to look.
        seen: path -> time and size; updated in place.
    """
    now = {}
    for ending in ("*.py", "*.ipynb"):
        for path in folder.glob(ending):
            try:
                stat = path.stat()
            except FileNotFoundError:  # an editor is just replacing it
                continue
            now[path] = (stat.st_mtime_ns, stat.st_size)
    changed = [path for path, state in now.items() if seen.get(path) != state]
    seen.update(now)
    return sorted(changed)


def _watch(arguments: argparse.Namespace) -> int:
    space, seen = _space(), {}
    changed_files(space.folder, seen)
    print(f"watching {space.folder}: save a file and it is graded; Ctrl-C ends", flush=True)
    while True:
        time.sleep(0.5)
        for path in changed_files(space.folder, seen):
            own = [e for e in space.manifest.exercises if e.chapter == path.stem]
            try:
                _graded(space, own, {})
            except (CourseError, ValueError) as error:
                print(error)
            sys.stdout.flush()


def grade(wanted: str) -> None:
    """Grade, in a notebook, what its cells define so far; shows what `course grade` shows.

    Args:
        wanted: "slug.name".

    Raises:
        CourseError: no such exercise.
        RuntimeError: called outside IPython.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        raise RuntimeError("grade() reads a notebook's cells; in a terminal use `course grade`")
    history = shell.history_manager.input_hist_parsed
    text = "".join(
        f"# %%\n{source}\n\n" for source in history if "def " in source or "import" in source
    )
    root = library_root()
    with tempfile.TemporaryDirectory(prefix="course-cells-") as place:
        path = Path(place, "notebook.py")
        path.write_text(text, encoding="utf-8")
        for exercise in pick(read_manifest(root), wanted):
            verdict = grade_file(root, path, exercise.chapter, exercise.name)
            show(exercise, path, verdict)


def _commands(commands: argparse._SubParsersAction) -> None:
    """Add the learner's commands to those of the course tool."""
    command = commands.add_parser("start", help="make a workspace, or add what is new to it")
    command.add_argument("folder", nargs="?", metavar="DIR", help=f"{DEFAULT} when none is given")
    command.add_argument("--notebooks", action="store_true", help="notebooks instead of scripts")
    command.set_defaults(run=_start)
    command = commands.add_parser("status", help="what is done, what is next, what is left")
    command.add_argument("--markdown", action="store_true", help="a list to share")
    command.set_defaults(run=_status)
    command = commands.add_parser("grade", help="grade a chapter's exercises, or one")
    command.add_argument(
        "exercise", nargs="?", metavar="SLUG[.NAME]", help="the last one, or the next"
    )
    command.add_argument("--seconds", type=float, default=60.0, help="the time limit")
    command.add_argument("--memory-mb", type=int, default=4000, help="the limit on memory")
    command.set_defaults(run=_grade)
    command = commands.add_parser("hint", help="the next hint")
    command.add_argument("exercise", nargs="?", metavar="SLUG[.NAME]")
    command.set_defaults(run=_hint)
    command = commands.add_parser("solution", help="an answer beside yours")
    command.add_argument("exercise", metavar="SLUG[.NAME]")
    command.add_argument("--anyway", action="store_true", help="before you passed it")
    command.set_defaults(run=_solution)
    command = commands.add_parser("reset", help="one exercise as new; your file is kept")
    command.add_argument("exercise", metavar="SLUG.NAME")
    command.set_defaults(run=_reset)
    command = commands.add_parser("watch", help="grade whatever you save")
    command.set_defaults(run=_watch)


def main(arguments: list[str] | None = None) -> int:
    """Run the `course` command with everything it can do.

    Args:
        arguments: the words after `course`; None takes them from the command line.

    Returns:
        0 for passed, 1 for not yet, 2 when the command could not do what was asked.
    """
    return run_command(arguments, _commands)


if __name__ == "__main__":
    raise SystemExit(main())
