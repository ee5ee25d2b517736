# Generated from chapters/96_learner.py by `course build`; edit that file.
"""Grade one answer, in a process that may die of it."""

import ast
import faulthandler
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from traceback import walk_tb
from types import ModuleType

from nanochat_lib.common import atomic_write
from nanochat_lib.course.exercises import learner_cells, load_exercise

__all__ = ["load_answer", "describe", "likely_mistake", "judge", "main"]


def _quiet(node: ast.stmt) -> bool:
    """Say whether a statement only names something: an import, a definition, a constant."""
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return not any(isinstance(part, ast.Call | ast.Await) for part in ast.walk(node))
    return isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)


def load_answer(path: Path, name: str) -> ModuleType:
    """Load a learner's file for the sake of one function; what is broken elsewhere does not matter.

    Args:
        path: a script or a notebook.
        name: the function.

    Raises:
        SyntaxError: in its own cell.
        LookupError: no cell defines it.
    """
    module, cells, trouble = ModuleType(path.stem), learner_cells(path), None
    module.__file__, module.__cells__ = str(path), []
    first = next((n for n, cell in enumerate(cells) if cell.has("exercise")), 0)
    for number, cell in enumerate(cells):
        try:
            tree = ast.parse("\n" * (cell.line - 1) + cell.code, str(path))
            if number >= first:
                tree.body = [node for node in tree.body if _quiet(node)]
            exec(compile(tree, str(path), "exec"), module.__dict__)
            module.__cells__.append(ast.unparse(tree))
        except Exception as error:
            trouble = trouble or error
            if f"def {name}(" in cell.source:
                raise
    if not hasattr(module, name):
        also = f"; a cell ended in {type(trouble).__name__}: {trouble}" if trouble else ""
        raise LookupError(f"no function {name} in {path.name}{also}")
    return module


def _comparison(path: str, line: int, frame) -> str:
    """Say what an assertion without a message compared."""
    source = Path(path).read_text(encoding="utf-8")
    asserts = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]
    test = next((n.test for n in asserts if n.lineno <= line <= n.end_lineno), None)
    if test is None:
        return "an assertion failed"
    try:
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
            names = {**frame.f_globals, **frame.f_locals}
            sides = [eval(ast.unparse(s), names) for s in (test.left, *test.comparators)]
            got, expected = [f"{side!r:.300}" for side in sides]
            return f"{ast.unparse(test.left)} gave {got}, expected {expected}"
    except Exception:
        pass  # then the text of the assertion must do
    return f"this does not hold: {ast.unparse(test)}"


def _arguments(frame) -> str:
    """Say with what a function was called: the counter-example when it raised."""
    names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    values = [
        f"{name}={frame.f_locals.get(name)!r:.60}" for name in names if name in frame.f_locals
    ]
    return f"; called with {', '.join(values)}" if values else ""


def describe(error: BaseException, answer: str, grader: str, stub: str) -> dict:
    """Turn what ended a grading into a verdict.

    Args:
        error: what was raised.
        answer: the learner's file.
        grader: the grader's file.
        stub: what the untouched exercise raises.

    Returns:
        outcome ("todo" or "failed"), message, line (of the answer, or None), and at (of the grader).
    """
    frames = [
        (frame, frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)
    ]
    lines = [line for _, file, line in frames if file == answer]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
    judged = [(frame, line) for frame, file, line in frames if file == grader]
    kind, text = type(error).__name__, str(error)
    if isinstance(error, NotImplementedError) and stub in text:
        return {"outcome": "todo", "message": "not written yet", "line": line, "at": None}
    if isinstance(error, SystemExit):
        message = "it calls sys.exit: a function answers with `return`"
    elif isinstance(error, RecursionError):
        message = "it calls itself without end"
    elif isinstance(error, AssertionError) and frames and frames[-1][1] == grader:
        message = text or _comparison(grader, frames[-1][2], frames[-1][0])
    else:
        message = text if isinstance(error, LookupError) and not lines else f"{kind}: {text}"
        calls = [
            f for f, file, _ in frames if file == answer and stub.endswith(f".{f.f_code.co_name}")
        ]
        message += _arguments(calls[0]) if calls else ""
    at = judged[-1][1] if judged else None
    return {"outcome": "failed", "message": message, "line": line, "at": at}


def likely_mistake(
    root: Path, slug: str, name: str, rules: ModuleType, verdict: dict
) -> str | None:
    """Find the known mistake that ends as this answer ended.

    Args:
        root: the folder of course.toml.
        slug: the chapter.
        name: the exercise.
        rules: its grader's module.
        verdict: from `describe`.
    """
    near, same = [], []
    for mutant in getattr(rules, "MUTANTS", {}).get(name, []):
        try:
            getattr(rules, f"grade_{name}")(load_exercise(root / f"solutions/{slug}.py", mutant))
        except BaseException as error:
            other = describe(error, "", rules.__file__, f"exercise {slug}.{name}")
            node = ast.parse(mutant).body[0]
            said = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
            if said and other["at"] == verdict["at"] is not None:
                (same if other["message"] == verdict["message"] else near).append(said)
    found = same or near
    return found[0] if len(found) == 1 else None


def judge(root: Path, path: Path, slug: str, name: str, result: Path) -> None:
    """Grade, and write the verdict as soon as it stands; the likely mistake follows if time is left.

    Args:
        root: the folder of course.toml.
        path: the learner's file.
        slug: the chapter.
        name: the exercise.
        result: the file for the verdict, in JSON.
    """
    begin, grader = time.monotonic(), root / f"tests/exercises/grade_{slug}.py"
    rules = None
    try:
        answer = load_answer(path, name)
        spec = importlib.util.spec_from_file_location(grader.stem, grader)
        rules = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(rules)
        begin = time.monotonic()
        getattr(rules, f"grade_{name}")(answer)
        verdict = {"outcome": "passed", "message": "", "line": None, "at": None}
    except BaseException as error:
        verdict = describe(error, str(path), str(grader), f"exercise {slug}.{name}")
    verdict["seconds"] = time.monotonic() - begin
    atomic_write(result, json.dumps(verdict))
    if rules and verdict["outcome"] == "failed":
        verdict["mistake"] = likely_mistake(root, slug, name, rules, verdict)
        atomic_write(result, json.dumps(verdict))


def main(arguments: list[str] | None = None) -> int:
    """Grade in this process, under a time limit, and end it.

    Args:
        arguments: root, answer, slug, name, verdict's file, trace's file, seconds; None takes them
            from the command line.
    """
    root, path, slug, name, result, trace, limit = arguments or sys.argv[1:]
    with open(trace, "w", encoding="utf-8") as file:
        faulthandler.enable(file)  # a crash says its line
        faulthandler.dump_traceback_later(float(limit), exit=True, file=file)
        judge(Path(root), Path(path), slug, name, Path(result))
        sys.stdout.flush()
        os._exit(0)  # threads that the answer left behind do not keep us


if __name__ == "__main__":
    raise SystemExit(main())
