# Generated from chapters/90_course_tool.py by `course build`; edit that file.
"""A chapter for the terminal, and advice that fits a machine."""

from collections.abc import Iterator

from nanochat_lib.course.cells import Cell, lines_of

__all__ = ["rendered", "module_title", "advice"]


def _shown(output: dict) -> str:
    """Return an output as text: what was printed, a value, or the words for a figure."""
    if output["output_type"] == "stream":
        return "".join(output["text"]).rstrip()
    alts = [about["alt"] for about in output["metadata"].values() if "alt" in about]
    return f"[figure: {alts[0]}]" if alts else "".join(output["data"].get("text/plain", ""))


def rendered(cells: list[Cell], outputs: list[list[dict]] | None) -> Iterator[object]:
    """Turn cells into what `rich` prints: prose, highlighted code, results in grey.

    Args:
        cells: the chapter; cells marked `#| hide` are left out.
        outputs: one list for each code cell, or None for a chapter that was never built.
    """
    from rich.markdown import Markdown
    from rich.padding import Padding
    from rich.syntax import Syntax
    from rich.text import Text

    results = iter(outputs or [])
    for cell in cells:
        shown = next(results, []) if cell.kind == "code" else []
        if cell.has("hide"):
            continue
        if cell.kind == "markdown":
            yield Padding(Markdown(cell.source), (0, 0, 1, 0))
        elif cell.code.strip():
            code = Syntax(cell.code.strip("\n"), "python", theme="ansi_light", word_wrap=True)
            yield Padding(code, (0, 0, 1, 4))
        for output in shown:
            yield Padding(Text(_shown(output), style="bright_black"), (0, 0, 1, 4))


def module_title(cells: list[Cell]) -> str:
    """Return a chapter's title: its first heading."""
    lines = [line for cell in cells if cell.kind == "markdown" for line in lines_of(cell.source)]
    return next((line[2:].strip() for line in lines if line.startswith("# ")), "not written yet")


def advice(summary: dict) -> list[str]:
    """Say what a machine means for this course.

    Args:
        summary: what `nanochat_lib.machine.machine_summary` returns.
    """
    gpus = summary.get("gpus") or []
    lines = [
        f"{len(gpus)} GPU: `nanochat plan` says which profiles fit."
        if gpus
        else "No GPU: every chapter runs, and so does `make speedrun` with the laptop profile."
    ]
    if (summary.get("memory_gb") or 0) < 4:
        lines.append("Under 4 GB of memory: close other programs before you build notebooks.")
    if (summary.get("disk_free_gb") or 0) < 5:
        lines.append("Under 5 GB of free disk: set NANOCHAT_BASE_DIR to a larger one.")
    needs = {
        "cargo": "the tokenizer trains with the plain Python version, which is slow",
        "compiler": "torch.compile stays off on the CPU, and training runs eagerly",
        "browser": "the browser tests are skipped",
    }
    return lines + [f"No {key}: {what}." for key, what in needs.items() if not summary.get(key)]
