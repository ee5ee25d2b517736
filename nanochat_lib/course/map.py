# Generated from chapters/90_course_tool.py by `course build`; edit that file.
"""The map of the course: parts, chapters, their questions, and how long they take."""

from nanochat_lib.course.cells import Cell, lines_of
from nanochat_lib.course.exporter import place_exports
from nanochat_lib.course.planner import Plan

__all__ = [
    "MAP_START",
    "MAP_END",
    "prose_words",
    "code_lines",
    "reading_minutes",
    "shares",
    "map_markdown",
    "with_map",
]

MAP_START, MAP_END = "<!-- map:start -->", "<!-- map:end -->"


def prose_words(cells: list[Cell]) -> int:
    """Count the words of the prose."""
    return sum(len(cell.source.split()) for cell in cells if cell.kind == "markdown")


def code_lines(cells: list[Cell]) -> int:
    """Count the lines of code that are not blank."""
    codes = [cell.code for cell in cells if cell.kind == "code"]
    return sum(bool(line.strip()) for code in codes for line in lines_of(code))


def reading_minutes(cells: list[Cell]) -> int:
    """Estimate the minutes to read a chapter: 180 words, or 30 lines of code, a minute; in fives."""
    return 5 * max(1, round((prose_words(cells) / 180 + code_lines(cells) / 30) / 5))


def shares(plan: Plan) -> list[tuple[str, int, int, int, float]]:
    """Measure each chapter: slug, words, cells, exported lines, and the share of its code they are."""
    rows = []
    for source in plan.sources:
        if source.is_chapter:
            exported = [cell for _, cell in place_exports(source.path, source.cells)]
            lines, every = code_lines(exported), code_lines(source.cells)
            sizes = (prose_words(source.cells), len(source.cells), lines, lines / max(1, every))
            rows.append((source.slug, *sizes))
    return rows


def map_markdown(plan: Plan) -> str:
    """Write the parts and their chapters as Markdown tables."""
    cells = {source.slug: source.cells for source in plan.sources if source.is_chapter}
    blocks = []
    for part, chapters in plan.manifest.by_part().items():
        rows = [f"**{part}**", "", "| chapter | the question | level | reading, exercises |"]
        rows.append("|---|---|---|---|")
        for chapter in chapters:
            own = [e.minutes for e in plan.manifest.exercises if e.chapter == chapter.slug]
            work = f"{reading_minutes(cells.get(chapter.slug, []))} min"
            work += f", {len(own)} in {sum(own)} min" if own else ""
            link = f"[{chapter.slug.replace('_', ' ')}](chapters/{chapter.stem}.ipynb)"
            rows.append(f"| {link} | {chapter.asks} | {chapter.level} | {work} |")
        blocks.append("\n".join(rows) if chapters else f"**{part}**: to come.")
    return "\n\n".join(blocks)


def with_map(readme: str, plan: Plan) -> str:
    """Return a README with the map between its two marks; without marks it stays as it is."""
    before, start, rest = readme.partition(MAP_START)
    _, end, after = rest.partition(MAP_END)
    if not (start and end):
        return readme
    return f"{before}{start}\n{map_markdown(plan)}\n{end}{after}"
