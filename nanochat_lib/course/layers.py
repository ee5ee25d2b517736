# Generated from chapters/90_course_tool.py by `course build`; edit that file.
"""Who imports whom: the order of the chapters is the order of the imports."""

import ast

from nanochat_lib.course.cells import Cell, parse_cell
from nanochat_lib.course.exporter import PACKAGE
from nanochat_lib.course.manifest import Problem

__all__ = ["imported_modules", "import_graph", "reachable", "order_problems", "cycle_problems"]


def imported_modules(tree: ast.AST, known: set[str]) -> list[tuple[str, int]]:
    """List the library modules that a tree imports, with line numbers.

    Args:
        tree: a parsed module or cell.
        known: names of the modules that exist, such as "model.gpt".

    Returns:
        Pairs of module and line; "" stands for the bare package, which is the whole library.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names]
            names = [n if n.removeprefix(PACKAGE + ".") in known else base for n in names]
        else:
            continue
        for name in dict.fromkeys(names):
            if name == PACKAGE or name.startswith(PACKAGE + "."):
                found.append((name[len(PACKAGE) + 1 :], node.lineno))
    return found


def import_graph(texts: dict[str, str]) -> dict[str, set[str]]:
    """Map each module to those it imports.

    Args:
        texts: module name to source; imports of other modules are left out.
    """
    known = set(texts)
    return {
        module: {name for name, _ in imported_modules(ast.parse(text), known)} & known
        for module, text in texts.items()
    }


def reachable(start: set[str], graph: dict[str, set[str]]) -> set[str]:
    """Follow imports from `start` to the end.

    Args:
        start: module names; "" reaches every module.
        graph: module to the modules it imports.
    """
    waiting, reached = list(graph if "" in start else start & graph.keys()), set()
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += graph[module]
    return reached


def order_problems(
    path: str, index: int, cells: list[Cell], owners: dict[str, int], complete: bool
) -> list[Problem]:
    """Find imports that point to a later chapter or to nowhere.

    Args:
        path: the file the cells are from.
        index: its chapter's place in the course.
        cells: the cells.
        owners: module name to the place of the chapter that exports it.
        complete: whether `owners` lists every module, so that an unknown one is a mistake.
    """
    problems = []
    for cell in cells:
        if cell.kind != "code" or PACKAGE not in cell.source:
            continue
        for module, line in imported_modules(parse_cell(path, cell), set(owners)):
            at = cell.line + line - 1
            if owners.get(module, -1) > index:
                what = f"imports {PACKAGE}.{module}, which a later chapter exports"
                way_out = "move the code to the later chapter, or what it needs to an earlier one"
                problems.append(Problem(path, at, what, way_out))
            elif complete and module and module not in owners:
                if not any(known.startswith(module + ".") for known in owners):
                    what = f"imports {PACKAGE}.{module}, which no chapter exports"
                    problems.append(Problem(path, at, what, "mend the name, or export the module"))
    return problems


def cycle_problems(path: str, modules: set[str], graph: dict[str, set[str]]) -> list[Problem]:
    """Find modules of one chapter that import each other.

    Args:
        path: the chapter.
        modules: the modules it exports.
        graph: module to the modules it imports, for the whole library.
    """
    for module in sorted(modules):
        for other in sorted(graph[module] & modules):
            if module in reachable({other}, graph):
                what = f"{module} and {other} import each other"
                way_out = "export what both need to a third module, above the two"
                return [Problem(path, 1, what, way_out)]
    return []
