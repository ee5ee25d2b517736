# Generated from chapters/90_course_tool.py by `course build`; edit that file.
"""The `course` command."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nanochat_lib.course.builder import build
from nanochat_lib.course.cells import read_cells
from nanochat_lib.course.check import check
from nanochat_lib.course.manifest import CourseError, find_root, read_manifest, read_source_text
from nanochat_lib.course.map import reading_minutes, shares
from nanochat_lib.course.notebooks import stored_outputs
from nanochat_lib.course.planner import make_plan, read_notebook
from nanochat_lib.course.reader import advice, rendered
from nanochat_lib.terminal import as_command

__all__ = ["main"]


def _build(arguments: argparse.Namespace) -> int:
    start = time.monotonic()
    root = find_root(Path.cwd())
    touched = build(root, arguments.slug, not arguments.no_execute, arguments.force)
    print(f"{len(touched)} files changed, {time.monotonic() - start:.1f} s")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    start = time.monotonic()
    found = check(find_root(Path.cwd()))
    for gate, problems in found.items():
        for problem in problems:
            print(f"[{gate}] {problem}")
    total = sum(map(len, found.values()))
    seconds = time.monotonic() - start
    print(f"{len(found)} gates, {total or 'no'} problems, {seconds:.1f} s")
    return 1 if total else 0


def _list(arguments: argparse.Namespace) -> int:
    plan = make_plan(find_root(Path.cwd()))
    if arguments.shares:
        rows, total = shares(plan), sum(row[3] for row in shares(plan))
        print(f"{'':14}{'words':>7}{'cells':>7}{'exported':>10}{'of all':>8}{'of its code':>13}")
        for slug, words, cells, lines, share in rows:
            row = f"{slug:14}{words:>7,}{cells:>7}{lines:>10,}"
            print(f"{row}{lines / max(1, total):>8.0%}{share:>13.0%}")
        return 0
    cells = {source.slug: source.cells for source in plan.sources if source.is_chapter}
    for part, chapters in plan.manifest.by_part().items():
        print(part if chapters else f"{part}: to come")
        for chapter in chapters:
            own = [e.minutes for e in plan.manifest.exercises if e.chapter == chapter.slug]
            work = f"{reading_minutes(cells.get(chapter.slug, []))} min"
            exercises = "exercise" if len(own) == 1 else "exercises"
            work += f", {len(own)} {exercises} in {sum(own)} min" if own else ""
            needs = f"; after {', '.join(chapter.needs)}" if chapter.needs else ""
            print(f"  {chapter.slug:14}{chapter.asks}")
            print(f"  {'':14}{chapter.level}; {work}{needs}")
        print()
    print("read one: course read SLUG, or open its notebook in chapters/")
    return 0


def _read(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    root = find_root(Path.cwd())
    chapter = read_manifest(root).find(arguments.slug)
    cells = read_cells(read_source_text(root, chapter.path), chapter.path)
    notebook = read_notebook((root / chapter.path).with_suffix(".ipynb"))
    console = Console(width=min(104, Console().width))
    for part in rendered(cells, stored_outputs(notebook) if notebook else None):
        console.print(part)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from nanochat_lib.machine import machine_summary

    summary = machine_summary()
    for key, value in summary.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        print(f"{key:14}{'none' if shown in (None, '') else shown}")
    print()
    for line in advice(summary):
        print(line)
    return 0


def _parser() -> tuple[argparse.ArgumentParser, argparse._SubParsersAction]:
    parser = argparse.ArgumentParser(prog="course", description="Build, check and read the course.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("build", help="export, execute and pair what changed")
    command.add_argument("slug", nargs="*", metavar="SLUG", help="chapters; all when none is given")
    command.add_argument("--no-execute", action="store_true", help="leave notebooks as they are")
    command.add_argument("--force", action="store_true", help="execute even what did not change")
    command.set_defaults(run=_build)
    command = commands.add_parser("check", help="look for drift and broken rules; executes nothing")
    command.set_defaults(run=_check)
    command = commands.add_parser("list", help="the chapters and their exercises")
    command.add_argument("--shares", action="store_true", help="words, cells and exported lines")
    command.set_defaults(run=_list)
    command = commands.add_parser("read", help="read a chapter in the terminal")
    command.add_argument("slug", metavar="SLUG")
    command.set_defaults(run=_read)
    command = commands.add_parser("doctor", help="what this machine has, and what that means here")
    command.set_defaults(run=_doctor)
    return parser, commands


def main(arguments: list[str] | None = None, more: Callable | None = None) -> int:
    """Run the `course` command.

    Args:
        arguments: the words after `course`; None takes them from the command line.
        more: adds commands of a later chapter, given what argparse's `add_subparsers` returns.

    Returns:
        0 when all is well, 1 when a check found problems, 2 when the sources are wrong.
    """
    with as_command("course"):
        parser, commands = _parser()
        if more:
            more(commands)
        parsed = parser.parse_args(arguments)
        try:
            return parsed.run(parsed)
        except CourseError as error:
            print(error, file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\ncourse: stopped; nothing is half written", file=sys.stderr)
            return 130


if __name__ == "__main__":
    raise SystemExit(main())
