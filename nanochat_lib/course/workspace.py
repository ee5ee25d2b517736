# Generated from chapters/96_learner.py by `course build`; edit that file.
"""Where a learner works, and what is remembered there."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from nanochat_lib.common import atomic_write
from nanochat_lib.course.exercises import learner_cells
from nanochat_lib.course.manifest import CourseError, Exercise, Manifest, Problem, read_manifest

__all__ = ["PROGRESS", "DEFAULT", "OURS", "Workspace", "start_workspace", "find_workspace", "pick"]

PROGRESS = ".course/progress.json"
DEFAULT = "my-course"
OURS = (
    "chapters",
    "exercises",
    "solutions",
    "nanochat_lib",
    "rustbpe",
    "tests",
    "records",
    ".venv",
    ".git",
)


@dataclass(frozen=True)
class Workspace:
    """Hold where the course is, and where the learner writes.

    Args:
        root: the folder of course.toml.
        folder: the learner's own.
    """

    root: Path
    folder: Path

    @property
    def manifest(self) -> Manifest:
        """What course.toml says."""
        return read_manifest(self.root)

    def file(self, slug: str) -> Path:
        """Return the learner's file of a chapter: script or notebook, the one that was saved last.

        Raises:
            CourseError: there is none.
        """
        both = [self.folder / f"{slug}{ending}" for ending in (".py", ".ipynb")]
        found = [path for path in both if path.is_file()]
        if not found:
            where = str(self.folder / f"{slug}.py")
            way_out = "`course start` adds what is missing"
            raise CourseError(Problem(where, 1, "is not there", way_out))
        return max(found, key=lambda path: path.stat().st_mtime)

    def progress(self) -> dict:
        """Read what was passed ("done"), asked ("hints") and tried ("tries"), and the "last" exercise.

        Raises:
            CourseError: the file is damaged.
        """
        path = self.folder / PROGRESS
        empty = {"done": {}, "hints": {}, "tries": {}, "last": ""}
        try:
            said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            if any(
                not isinstance(said.get(key, value), type(value)) for key, value in empty.items()
            ):
                raise ValueError("a field has the wrong type")
        except (ValueError, AttributeError) as error:
            way_out = "mend it, or remove it: only what is remembered there is forgotten"
            raise CourseError(Problem(str(path), 1, f"damaged: {error}", way_out)) from None
        return empty | said

    def remember(self, progress: dict) -> None:
        """Write what `progress` returned and somebody changed."""
        text = json.dumps(progress, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        atomic_write(self.folder / PROGRESS, text)


def start_workspace(
    root: Path, folder: Path, notebooks: bool = False
) -> tuple[list[str], list[str]]:
    """Create what is missing in a workspace, and touch nothing else.

    Args:
        root: the folder of course.toml.
        folder: the workspace, new or not.
        notebooks: copy the exercises as notebooks, not as scripts.

    Returns:
        The names of the files that were created, and the exercises that files already there lack.

    Raises:
        CourseError: the folder is a part of the course itself, or a file.
    """
    inside = folder.resolve()
    for name in OURS:
        if inside == root.resolve() or inside.is_relative_to(root.resolve() / name):
            way_out = f"choose a folder of your own, such as {DEFAULT}"
            raise CourseError(Problem(str(folder), 1, "is a part of the course", way_out))
    if folder.exists() and not folder.is_dir():
        raise CourseError(Problem(str(folder), 1, "is a file", "name a folder"))
    space, created, lacking = Workspace(root, folder), [], []
    exercises = space.manifest.exercises
    for slug in dict.fromkeys(exercise.chapter for exercise in exercises):
        name = f"{slug}.ipynb" if notebooks else f"{slug}.py"
        if os.path.lexists(folder / name):
            text = "\n".join(cell.source for cell in learner_cells(folder / name))
            own = [e.name for e in exercises if e.chapter == slug]
            lacking += [f"{slug}.{n}" for n in own if f"def {n}(" not in text]
        else:
            text = (root / "exercises" / name).read_text(encoding="utf-8")
            atomic_write(folder / name, text)
            created.append(name)
    if not (folder / PROGRESS).exists():
        space.remember(space.progress())
    return created, lacking


def find_workspace(root: Path, place: Path) -> Workspace:
    """Return the workspace around `place`, or the default one of the course.

    Raises:
        CourseError: there is neither.
    """
    for folder in (place, *place.parents, root / DEFAULT):
        if (folder / PROGRESS).is_file():
            return Workspace(root, folder)
    what = "no workspace here or above"
    raise CourseError(
        Problem(str(place), 1, what, "`course start` makes one; or go to yours first")
    )


def pick(manifest: Manifest, wanted: str) -> list[Exercise]:
    """Return the exercises that "slug" or "slug.name" stands for.

    Raises:
        CourseError: none; the message lists those that could be meant.
    """
    slug, _, name = wanted.partition(".")
    own = [e for e in manifest.exercises if e.chapter == slug]
    chosen = [e for e in own if name in ("", e.name)]
    if not chosen:
        known = [f"{e.chapter}.{e.name}" for e in own or manifest.exercises]
        way_out = f"choose from {', '.join(known)}"
        raise CourseError(Problem("course.toml", 1, f"no exercise {wanted!r}", way_out))
    return chosen
