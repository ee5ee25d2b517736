# Generated from chapters/90_course_tool.py by `course build`; edit that file.
"""Turn a chapter's export cells into modules of the library."""

import ast
import builtins
import re
import subprocess
import symtable
import sys
import tempfile
from pathlib import Path

from nanochat_lib.course.cells import Cell, lines_of, parse_cell
from nanochat_lib.course.manifest import CourseError, Problem

__all__ = [
    "PACKAGE",
    "ALLOWED",
    "place_exports",
    "module_purposes",
    "split_imports",
    "defined_names",
    "free_names",
    "export_chapter",
    "module_path",
    "package_files",
    "format_python",
]

PACKAGE = "nanochat_lib"
ALLOWED = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
ALLOWED += (ast.AugAssign, ast.If, ast.Try, ast.AsyncFunctionDef)


def place_exports(path: str, cells: list[Cell]) -> list[tuple[str, Cell]]:
    """Pair every export cell with the module it goes to.

    Raises:
        CourseError: an `#| export` that no `#| default_exp` precedes.
    """
    current, placed = "", []
    for cell in cells:
        for directive in cell.directives:
            if directive.name == "default_exp":
                current = directive.argument
            elif directive.name == "export":
                target = directive.argument or current
                if not target:
                    way_out = "name a module in a cell above: `#| default_exp some.module`"
                    what = "`#| export` before any `#| default_exp`"
                    raise CourseError(Problem(path, directive.line, what, way_out))
                placed.append((target, cell))
    return placed


def _headings(cell: Cell) -> list[str]:
    lines = lines_of(re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL))
    return [line.lstrip("#").strip() for line in lines if re.match(r"#+ ", line)]


def module_purposes(cells: list[Cell]) -> dict[str, str]:
    """Find the sentence that each module's docstring will say.

    It is the comment right below `#| default_exp module`. Without one, it is the chapter's title for
    the first module, and for others the heading above the first cell that exports to them.
    """
    prose = [cell for cell in cells if cell.kind == "markdown"]
    title = next((text for cell in prose for text in _headings(cell)), "")
    heading, current = "", ""
    purposes: dict[str, str] = {}
    for cell in cells:
        if cell.kind == "markdown":
            heading = (_headings(cell) or [heading])[-1]
            continue
        comment = re.match(r"#\| *default_exp (\S+)\n((?:# .*\n?)+)", cell.source)
        if comment:
            purposes[comment[1]] = " ".join(comment[2].replace("\n# ", " ")[2:].split())
        for directive in cell.directives:
            current = directive.argument or current
            if directive.name == "export":
                purposes.setdefault(current, heading if purposes else title)
    return {m: text if text.endswith((".", "?")) else f"{text}." for m, text in purposes.items()}


def split_imports(code: str) -> tuple[list[str], str]:
    """Part the top-level imports of a cell, with the comments right above them, from the rest."""
    lines = lines_of(code)
    imports, taken, body = [], set(), ast.parse(code).body
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            first, last = node.lineno - 1, node.end_lineno
            sharing = [
                n for n in body if n is not node and n.lineno <= last and first < n.end_lineno
            ]
            others = [n for n in sharing if not isinstance(n, ast.Import | ast.ImportFrom)]
            if sharing:  # import os; SEP = os.sep
                imports.append(ast.unparse(node))
                kept = [ast.get_source_segment(code, n) or "" for n in others]
                lines[first] = "\n".join(kept)
                taken |= set(range(first + 1, max(n.end_lineno or 0 for n in [node, *others])))
                continue
            while first > 0 and lines[first - 1].startswith("#"):
                first -= 1
            imports.append("\n".join(lines[first:last]))
            taken |= set(range(first, last))
    rest = "\n".join(line for number, line in enumerate(lines) if number not in taken)
    return imports, rest.strip("\n")


def _check_statements(path: str, cell: Cell) -> None:
    for node in parse_cell(path, cell).body:
        star = isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
        if star or getattr(node, "level", 0):
            what = f"an export cell has `{ast.unparse(node)}`"
            way_out = "name the module in full, and each thing that it brings"
            raise CourseError(Problem(path, cell.line + node.lineno - 1, what, way_out))
        if not isinstance(node, ALLOWED):
            what = f"an export cell runs code: {ast.unparse(node).splitlines()[0]}"
            way_out = (
                "export only imports, constants, functions and classes; move it to a cell below"
            )
            raise CourseError(Problem(path, cell.line + node.lineno - 1, what, way_out))


def defined_names(tree: ast.Module) -> list[str]:
    """List the constants, functions and classes that a module defines, in their order."""
    names: dict[str, None] = {}
    imported, waiting = set(), list(tree.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[node.name] = None
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imported |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            bound = [n for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
            names |= {n.id: None for n in bound if isinstance(n.ctx, ast.Store)}
        elif isinstance(node, ast.If | ast.Try | ast.ExceptHandler):  # their blocks bind names too
            waiting[:0] = [n for n in ast.iter_child_nodes(node) if not isinstance(n, ast.expr)]
    return [name for name in names if name not in imported]


def free_names(source: str) -> set[str]:
    """Find the names that a module reads but neither defines nor imports nor has as builtins."""
    top = symtable.symtable(source, "module", "exec")
    bound = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
    bound |= {"__file__", *dir(builtins)}
    read, tables = set(), [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        read |= {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_referenced() and (table is top or symbol.is_global())
        }
    return read - bound


def _providers(parts: dict[str, list[Cell]]) -> dict[str, str]:
    """Map every name that a chapter's export cells define or import to the import that brings it."""
    providers: dict[str, str] = {}
    for module, cells in parts.items():
        tree = ast.parse("\n\n".join(cell.code for cell in cells))
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    statement = ast.unparse(type(node)(**{**vars(node), "names": [alias]}))
                    name = alias.asname or alias.name.split(".")[0]
                    # xml.dom and xml.etree both bring xml: whoever needs one gets both.
                    known = providers.get(name, "").split("\n")
                    providers[name] = "\n".join(dict.fromkeys([*filter(None, known), statement]))
        for name in defined_names(tree):
            providers[name] = f"from {PACKAGE}.{module} import {name}"
    return providers


def _borrow(path: str, module: str, parts: list[Cell], providers: dict[str, str]) -> list[str]:
    """Write the imports of names that other export cells of the same chapter define or import."""
    missing = free_names("\n\n".join(cell.code for cell in parts))
    nowhere = missing - providers.keys()
    for cell in parts if nowhere else ():
        for node in ast.walk(ast.parse(cell.code)):
            if isinstance(node, ast.Name) and node.id in nowhere:
                what = f"{module} uses {node.id}, which no export cell defines or imports"
                way_out = f"put `#| export` on the cell that brings {node.id}"
                raise CourseError(Problem(path, cell.line + node.lineno - 1, what, way_out))
    return [providers[name] for name in sorted(missing & providers.keys())]


def export_chapter(path: str, cells: list[Cell]) -> dict[str, str]:
    """Write the modules that a chapter exports, before formatting.

    Args:
        path: the chapter, for the provenance line and in messages.
        cells: the whole chapter.

    Returns:
        Module name, such as "model.gpt", to its source.

    Raises:
        CourseError: a syntax error, a directive out of place, or code that cannot be exported.
    """
    parts: dict[str, list[Cell]] = {}
    for module, cell in place_exports(path, cells):
        _check_statements(path, cell)
        parts.setdefault(module, []).append(cell)
    providers = _providers(parts)
    purposes = module_purposes(cells)
    return {
        module: _module(path, purposes[module], group, _borrow(path, module, group, providers))
        for module, group in parts.items()
    }


def _runs_main(code: str) -> bool:
    tests = [node.test for node in ast.parse(code).body if isinstance(node, ast.If)]
    return any(ast.unparse(test) == "__name__ == '__main__'" for test in tests)


def _module(path: str, purpose: str, parts: list[Cell], borrowed: list[str]) -> str:
    imports, bodies = borrowed, []
    for cell in parts:
        more, body = split_imports(cell.code)
        imports, bodies = imports + more, [*bodies, body]
    body = "\n\n".join(filter(None, bodies))
    names = defined_names(ast.parse(body))
    public = [name for name in names if not name.startswith("_")]
    if "main" in names and not _runs_main(body):
        body += '\n\n\nif __name__ == "__main__":\n    raise SystemExit(main())'
    head = f"# Generated from {path} by `course build`; edit that file.\n"
    listed = ", ".join(f'"{name}"' for name in public)
    parts_of_text = [
        f'{head}"""{purpose}"""',
        "\n".join(dict.fromkeys(imports)),
        f"__all__ = [{listed}]" if public else "__all__: list[str] = []",
        body,
    ]
    return "\n\n".join(filter(None, parts_of_text)) + "\n"


def module_path(module: str) -> str:
    """Return the file of a module, relative to the repository."""
    return f"{PACKAGE}/{module.replace('.', '/')}.py"


def package_files(modules: dict[str, str]) -> dict[str, str]:
    """Write an `__init__.py` for every package.

    Args:
        modules: module name to the path of the chapter that exports it.
    """
    said = f'# Generated by `course build`.\n"""{PACKAGE}: exported chapter by chapter from chapters/."""\n'
    files = {f"{PACKAGE}/__init__.py": said}
    for package in sorted({m.rsplit(".", 1)[0] for m in modules if "." in m}):
        sources = sorted({p for m, p in modules.items() if m.startswith(package + ".")})
        text = f'# Generated by `course build`.\n"""Exported from {", ".join(sources)}."""\n'
        files[f"{PACKAGE}/{package.replace('.', '/')}/__init__.py"] = text
    return files


def format_python(files: dict[str, str]) -> dict[str, str]:
    """Sort imports, drop unused ones and format, as `ruff` does; two runs for any number of files."""
    rules = [
        "--select",
        "I,F401",
        "--fix",
        "--config",
        f"lint.isort.known-first-party=['{PACKAGE}']",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for path, text in files.items():
            target = Path(folder, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        for command in (["check", *rules], ["format"]):
            options = ["--isolated", "--no-cache", "--line-length", "100", "--quiet", folder]
            ruff = [sys.executable, "-m", "ruff", *command, *options]
            done = subprocess.run(ruff, capture_output=True, text=True, encoding="utf-8")
            if done.returncode not in (0, 1):  # 1: it found what it cannot mend
                raise OSError(f"ruff could not format the library: {done.stderr.strip()}")
        return {path: Path(folder, path).read_text(encoding="utf-8") for path in files}
