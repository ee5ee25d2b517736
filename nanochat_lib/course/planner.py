# Generated from chapters/90_course_tool.py by `course build`; edit that file.
"""Read everything that people write and work out every file that follows from it, in memory."""

import ast
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from nanochat_lib.course.cells import HEADER, Cell, parse_cell, read_cells
from nanochat_lib.course.exercises import strip_solutions
from nanochat_lib.course.exporter import (
    PACKAGE,
    export_chapter,
    format_python,
    module_path,
    package_files,
)
from nanochat_lib.course.layers import (
    cycle_problems,
    import_graph,
    imported_modules,
    order_problems,
    reachable,
)
from nanochat_lib.course.manifest import (
    CourseError,
    Manifest,
    Problem,
    read_manifest,
    read_source_text,
)
from nanochat_lib.course.notebooks import (
    digest,
    make_notebook,
    notebook_text,
    source_stamp,
    stored_outputs,
)

__all__ = ["Source", "Plan", "make_plan", "current_stamp", "read_notebook", "fresh_outputs"]


@dataclass
class Source:
    """Hold one file that people write, and the files that follow from it without running it."""

    path: str
    slug: str
    index: int
    text: str
    cells: list[Cell]
    files: dict[str, str] = field(default_factory=dict)

    @property
    def notebook(self) -> str:
        return self.path.removesuffix(".py") + ".ipynb"

    @property
    def is_chapter(self) -> bool:
        return self.path.startswith("chapters/")


@dataclass
class Plan:
    """Hold all sources in build order, all that follows from them, and what is wrong with them."""

    manifest: Manifest
    sources: list[Source]
    modules: dict[str, str]  # name to source, for the whole library
    imports: dict[str, set[str]]  # name to the modules it imports
    packages: dict[str, str]
    problems: list[Problem]
    records: str = ""  # what lies in records/, hashed
    data: str = ""  # in data/
    web: str = ""  # and in web/


def _listing_problems(root: Path, manifest: Manifest) -> list[Problem]:
    listed = {chapter.path for chapter in manifest.chapters}
    found = {f"chapters/{path.name}" for path in root.glob("chapters/*.py")}
    way_out = "write it, or take its [[chapter]] table out of course.toml"
    problems = [Problem(path, 1, "listed but missing", way_out) for path in sorted(listed - found)]
    way_out = "add a [[chapter]] table to course.toml"
    problems += [Problem(path, 1, "not listed", way_out) for path in sorted(found - listed)]
    slugs = {chapter.slug for chapter in manifest.chapters}
    for path in sorted(root.glob("solutions/*.py")):
        if path.stem not in slugs:
            way_out = "name the file after a chapter's slug"
            problems.append(Problem(f"solutions/{path.name}", 1, "no such chapter", way_out))
    return problems


def _read_source(root: Path, path: str, slug: str, index: int) -> Source:
    """Read one file, and refuse directives that belong in the other kind of file."""
    text = read_source_text(root, path)
    if not text.startswith(HEADER):
        way_out = "copy the first lines of chapters/00_start.py"
        raise CourseError(Problem(path, 1, "the header differs", way_out))
    cells = read_cells(text, path)
    wrong = {"exercise"} if path.startswith("chapters/") else {"default_exp", "export"}
    for cell in cells:
        if cell.kind == "code":
            parse_cell(path, cell)
        for directive in cell.directives:
            if directive.name in wrong:
                what = f"`#| {directive.name}` in this file"
                way_out = "exports go to chapters/, exercises to solutions/"
                raise CourseError(Problem(path, directive.line, what, way_out))
    return Source(path, slug, index, text, cells)


def _exercise_files(source: Source) -> dict[str, str]:
    path = f"exercises/{source.slug}.py"
    text = strip_solutions(source.path, source.slug, source.text)
    notebook = notebook_text(make_notebook(read_cells(text, path)))
    return {path: text, f"exercises/{source.slug}.ipynb": notebook}


def _read_sources(root: Path, manifest: Manifest) -> tuple[list[Source], list[Problem]]:
    """Read what people wrote; a broken file is reported and left out."""
    sources, problems = [], []
    for index, chapter in enumerate(manifest.chapters):
        for path in (chapter.path, f"solutions/{chapter.slug}.py"):
            if not (root / path).is_file():
                continue
            try:
                source = _read_source(root, path, chapter.slug, index)
                if source.is_chapter:
                    exported = export_chapter(path, source.cells)
                    source.files = {module_path(m): text for m, text in exported.items()}
                else:
                    source.files = _exercise_files(source)
                sources.append(source)
            except CourseError as error:
                problems += error.problems
    return sources, problems


def _module_name(path: str) -> str:
    return path.removeprefix(f"{PACKAGE}/").removesuffix(".py").replace("/", ".")


def _owners(sources: list[Source], problems: list[Problem]) -> dict[str, Source]:
    owners: dict[str, Source] = {}
    for source in sources:
        for module in map(_module_name, source.files) if source.is_chapter else ():
            first = owners.setdefault(module, source)
            if first is not source:
                what = f"exports to {module}, which belongs to {first.path}"
                problems.append(Problem(source.path, 1, what, "choose another module"))
    for module in owners:
        package = module.rsplit(".", 1)[0]
        if package != module and package in owners:
            what = f"exports {package}, which is also the folder of {module}"
            problems.append(Problem(owners[package].path, 1, what, f"name it {package}.base"))
    return owners


def _modules_on_disk(root: Path) -> dict[str, str]:
    """Read the library as it is: it stands in for chapters that are broken at the moment."""
    modules = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        try:
            text = path.read_text(encoding="utf-8")
            ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        if path.name != "__init__.py":
            modules[_module_name(path.relative_to(root).as_posix())] = text
    return modules


def make_plan(root: Path) -> Plan:
    """Work out every generated file but the executed notebooks, without writing anything.

    Args:
        root: the folder of course.toml.

    Returns:
        The plan; its `problems` are for the caller to judge.

    Raises:
        CourseError: course.toml cannot be read.
    """
    manifest = read_manifest(root)
    sources, problems = _read_sources(root, manifest)
    problems = _listing_problems(root, manifest) + problems
    chapters = [source for source in sources if source.is_chapter]
    formatted = format_python({k: v for source in chapters for k, v in source.files.items()})
    for source in chapters:
        source.files = {path: formatted[path] for path in source.files}
    owners = _owners(sources, problems)
    places = {module: source.index for module, source in owners.items()}
    complete = not problems
    for source in sources:
        problems += order_problems(source.path, source.index, source.cells, places, complete)
    made = {_module_name(path): text for path, text in formatted.items()}
    packages = package_files({module: source.path for module, source in owners.items()})
    modules = made if complete else _modules_on_disk(root) | made
    imports = import_graph(modules)
    for source in chapters:
        problems += cycle_problems(source.path, set(map(_module_name, source.files)), imports)
    hashed = [_digest_folder(root / folder) for folder in ("records", "data", "web")]
    return Plan(manifest, sources, modules, imports, packages, problems, *hashed)


def _digest_folder(folder: Path) -> str:
    """Digest the texts in a folder."""
    paths = sorted(path for path in folder.glob("**/*") if path.is_file())
    return digest([path.read_text(encoding="utf-8", errors="replace") for path in paths])


def current_stamp(source: Source, plan: Plan) -> str:
    """Digest what this source's notebook depends on now."""
    starts: set[str] = set()
    for cell in source.cells:
        if cell.kind == "code" and PACKAGE in cell.source:
            found = imported_modules(parse_cell(source.path, cell), set(plan.modules))
            starts |= {name for name, _ in found}
    reached = {name: plan.modules[name] for name in reachable(starts, plan.imports)}
    if any("library_root()" in cell.source for cell in source.cells if not cell.has("export")):
        reached["course.toml"] = repr(plan.manifest.chapters) + plan.records
    texts = [*reached.values(), *(cell.source for cell in source.cells)]
    for folder, made in (("data", plan.data), ("web", plan.web)):
        if any(re.search(rf'/ "{folder}["/]', text) for text in texts):  # it is read
            reached[folder] = made
    return source_stamp(source.cells, reached)


def read_notebook(path: Path) -> dict | None:
    """Read a notebook, or return None where there is none or it is no notebook of ours."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        sound = notebook["metadata"]["course"].keys() == {"sources", "outputs"}
        stored_outputs(notebook)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return notebook if sound else None


def fresh_outputs(notebook: dict | None, stamp: str) -> list[list[dict]] | None:
    """Return a notebook's outputs if they came from these very sources and nobody edited them."""
    if notebook is None or notebook["metadata"]["course"]["sources"] != stamp:
        return None
    outputs = stored_outputs(notebook)
    return outputs if digest(outputs) == notebook["metadata"]["course"]["outputs"] else None
