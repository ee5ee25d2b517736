# Generated from chapters/90_course_tool.py by `course build`; edit that file.
"""The gate for exercises: listed, hinted, graded, and no answer given away."""

import ast
from pathlib import Path

from nanochat_lib.course.cells import Cell, lines_of
from nanochat_lib.course.exercises import BEGIN, END
from nanochat_lib.course.manifest import Exercise, Problem
from nanochat_lib.course.planner import Plan, Source

__all__ = ["solution_lines", "exercises_gate"]


def solution_lines(cell: Cell) -> list[str]:
    """Return the telling lines between the solution marks: 25 characters or more, no comments."""
    lines = [line.strip() for line in lines_of(cell.source)]
    if BEGIN not in lines or END not in lines:
        return []
    answer = lines[lines.index(BEGIN) + 1 : lines.index(END)]
    return [line for line in answer if len(line) >= 25 and not line.startswith("#")]


def _leaks(source: Source) -> list[Problem]:
    problems = []
    text = source.files.get(f"exercises/{source.slug}.py", "")
    for cell in source.cells:
        for line in solution_lines(cell):
            if line in text:
                at = text[: text.index(line)].count("\n") + 1
                what = f"gives away a line of the answer: {line}"
                way_out = f"take it out of {source.path}, outside the solution marks"
                problems.append(Problem(f"exercises/{source.slug}.py", at, what, way_out))
    return problems


def _listing(exercise: Exercise) -> list[str]:
    faults = []
    if len(exercise.hints) != 3 or not all(hint.strip() for hint in exercise.hints):
        faults.append(f"{len(exercise.hints)} hints: give a question, a plan and a name")
    if not 1 <= exercise.importance <= 5:
        faults.append(f"importance {exercise.importance}: give 1 to 5")
    if exercise.minutes < 1:
        faults.append(f"{exercise.minutes} minutes: give what it takes you, times three")
    return faults


def _grader_faults(root: Path, slug: str, name: str) -> list[str]:
    path = root / f"tests/exercises/grade_{slug}.py"
    if not path.is_file():
        return [f"no grader tests/exercises/grade_{slug}.py"]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    graders = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    faults = [] if f"grade_{name}" in graders else [f"{path.name} has no grade_{name}"]
    mutants = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values):
                if isinstance(key, ast.Constant) and key.value == name:
                    mutants = len(getattr(value, "elts", []))
    return faults if mutants >= 2 else [*faults, f"{path.name} has {mutants} mutants, not 2"]


def exercises_gate(root: Path, plan: Plan) -> list[Problem]:
    """Compare solutions, course.toml and graders, and look for answers that leak."""
    problems = []
    solved = {}
    for source in plan.sources:
        for cell in source.cells:
            for directive in cell.directives:
                if directive.name == "exercise":
                    solved[source.slug, directive.argument] = (source.path, directive.line)
        problems += [] if source.is_chapter else _leaks(source)
    listed = {(e.chapter, e.name): e for e in plan.manifest.exercises}
    for slug, name in sorted(solved.keys() - listed.keys()):
        way_out = "add an [[exercise]] table to course.toml"
        problems.append(Problem(*solved[slug, name], f"{slug}.{name} is not listed", way_out))
    for (slug, name), exercise in listed.items():
        faults = _listing(exercise)
        if (slug, name) not in solved:
            faults.append(f"no `#| exercise {name}` in solutions/{slug}.py")
        else:
            faults += _grader_faults(root, slug, name)
        for fault in faults:
            what = f"exercise {slug}.{name}: {fault}"
            problems.append(
                Problem("course.toml", exercise.line, what, "mend the one or the other")
            )
    return problems
