# Generated from chapters/90_course_tool.py by `course build`; edit that file.
"""What exported code says about itself: docstrings that agree with signatures, and small pieces."""

import ast
import re

__all__ = [
    "MOST_FUNCTION_LINES",
    "MOST_MODULE_LINES",
    "documented_arguments",
    "signature",
    "function_faults",
    "size_faults",
    "cell_faults",
]

MOST_FUNCTION_LINES, MOST_MODULE_LINES = 40, 300


def documented_arguments(docstring: str) -> dict[str, str]:
    """Read the `Args:` section of a docstring: argument name to what is said about it."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", docstring, re.MULTILINE)
    found: dict[str, str] = {}
    if section:
        lines = section[1].split("\n")
        indent = len(lines[0]) - len(lines[0].lstrip())
        for line in lines:
            entry = re.match(rf"[ ]{{{indent}}}\*{{0,2}}(\w+(?:, \*{{0,2}}\w+)*):(.*)", line)
            if entry:
                names = [name.strip(" *") for name in entry[1].split(",")]
                found |= dict.fromkeys(names, entry[2])
            elif line.strip() and found:
                found[next(reversed(found))] += " " + line.strip()
    return found


def signature(function: ast.FunctionDef) -> dict[str, ast.expr | None]:
    """Map a function's parameters, in order and without self or cls, to their annotations."""
    kinds = function.args
    several = [kinds.vararg] if kinds.vararg else []
    last = [kinds.kwarg] if kinds.kwarg else []
    every = [*kinds.posonlyargs, *kinds.args, *several, *kinds.kwonlyargs, *last]
    return {a.arg: a.annotation for a in every if a.arg not in ("self", "cls")}


def _shape(annotation: ast.expr | None) -> list[str] | None:
    """Return ["B", "T"] for `Float[Tensor, "B T"]`, and None for what is no tensor."""
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple):
        last = annotation.slice.elts[-1]
        if isinstance(last, ast.Constant) and isinstance(last.value, str):
            return last.value.split()
    return None


def _same_shape(told: list[str], real: list[str]) -> bool:
    """Compare the documented shape with the real one: as many dimensions, and the same letters.

    Words such as n_head may stand for a letter; "..." stands for any number of dimensions.
    """
    any_rank = [size.startswith(("*", ".")) for size in real]
    if any(any_rank):
        keep = len(real) - 1 - any_rank.index(True)
        told, real = told[len(told) - keep :], real[len(real) - keep :]
    letters = [(a, b) for a, b in zip(told, real) if len(a) == len(b) == 1 and b.isupper()]
    return len(told) == len(real) and all(a == b for a, b in letters)


def function_faults(function: ast.FunctionDef) -> list[str]:
    """List where a function's docstring and its signature disagree."""
    docstring = ast.get_docstring(function) or ""
    faults = [] if docstring else [f"{function.name} has no docstring"]
    said, real = documented_arguments(docstring), signature(function)
    if said and list(said) != list(real):
        faults.append(f"{function.name} documents {list(said)} but takes {list(real)}")
    for name, text in said.items():
        shape = _shape(real.get(name))
        told = re.search(r"\bshape \(([^)]*)\)", text)
        if shape and told and not _same_shape(re.findall(r"[^,\s]+", told[1]), shape):
            faults.append(f"{function.name}: {name} is documented as ({told[1]}) but takes {shape}")
    return faults


def size_faults(function: ast.FunctionDef) -> list[str]:
    """Say whether a function has more lines than a reader takes in, its docstring aside."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function):
        lines -= (function.body[0].end_lineno or 0) - function.body[0].lineno + 1
    most = MOST_FUNCTION_LINES
    return [f"{function.name} has {lines} lines; {most} is the most"] if lines > most else []


def cell_faults(tree: ast.Module) -> list[tuple[int, str]]:
    """Collect the faults of all functions in an export cell, with line numbers."""
    faults = []
    for node in tree.body:
        methods = node.body if isinstance(node, ast.ClassDef) else []
        for function in (node, *methods):
            if isinstance(function, ast.FunctionDef):
                found = size_faults(function)
                if function is node and not function.name.startswith("_"):
                    found += function_faults(function)
                elif ast.get_docstring(function):
                    found += function_faults(function)
                faults += [(function.lineno, fault) for fault in found]
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                faults.append((node.lineno, f"{node.name} has no docstring"))
    return faults
