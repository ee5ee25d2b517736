# Generated from chapters/96_learner.py by `course build`; edit that file.
"""How verdicts are said, and in which order exercises come."""

import sys
from pathlib import Path

from nanochat_lib.course.grading import Verdict
from nanochat_lib.course.manifest import Exercise, Manifest

__all__ = ["say", "key_of", "shortest", "in_order", "show"]


def say(text: str = "", style: str | None = None) -> None:
    """Print a line, in colour where there is a terminal.

    Args:
        text: the line.
        style: a style of rich.
    """
    if style and sys.stdout is not None and sys.stdout.isatty():
        from rich.console import Console

        Console(highlight=False).print(text, style=style, markup=False, soft_wrap=True)
    else:
        print(text)


def key_of(exercise: Exercise) -> str:
    """Return "slug.name"."""
    return f"{exercise.chapter}.{exercise.name}"


def shortest(path: Path) -> Path:
    """Return the path as seen from here, where that is shorter."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def in_order(manifest: Manifest) -> list[Exercise]:
    """List the exercises as the map lists their chapters."""
    chapters = [chapter.slug for part in manifest.by_part().values() for chapter in part]
    return sorted(manifest.exercises, key=lambda exercise: chapters.index(exercise.chapter))


def show(exercise: Exercise, path: Path, verdict: Verdict) -> None:
    """Print a verdict.

    Args:
        exercise: what was graded.
        path: the learner's file.
        verdict: the referee's.
    """
    key = key_of(exercise)
    if verdict.outcome == "passed":
        return say(f"{key}: passed ({verdict.seconds:.1f} s)", "green")
    place = f"{shortest(path)}:{verdict.line}" if verdict.line else str(shortest(path))
    if verdict.outcome == "todo":
        return say(f"{key}: not written yet, see {place}", "yellow")
    say(f"{key}: not yet ({verdict.seconds:.1f} s)", "red")
    say(f"  {verdict.message}")
    if verdict.line:
        say(f"  at {place}")
    if verdict.mistake:
        say(f"  a known mistake that ends like this: {verdict.mistake}")
    if verdict.printed:
        say("  it printed: " + verdict.printed.replace("\n", "\n    "))
    say(f"  a hint: course hint {key}")
