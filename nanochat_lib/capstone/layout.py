# Generated from chapters/92_report.py by `course build`; edit that file.
"""How a report looks: tables, texts and a figure made of its numbers."""

import io
import re

from matplotlib.figure import Figure
from rich.table import Table

__all__ = [
    "TRAININGS",
    "MODELS",
    "percent",
    "task_rows",
    "floor_lines",
    "bits_rows",
    "hard_rows",
    "stage_rows",
    "markdown_table",
    "terminal_table",
    "quote",
    "show_tools",
    "transcript_text",
    "machine_line",
    "loss_figure",
    "reward_figure",
    "REPORT",
    "render_report",
]

TRAININGS = ("base", "mid", "sft")
MODELS = ("untrained", *TRAININGS, "rl")


def percent(score: dict) -> str:
    """Write a score with its interval: 41.5% [35, 48]."""
    low, high = 100 * score["low"], 100 * score["high"]
    return f"{100 * score['accuracy']:.1f}% [{low:.0f}, {high:.0f}]"


def task_rows(report: dict, models: tuple[str, ...] = MODELS) -> list[list[str]]:
    """Lay out the table of tasks: a header with the fewest and most questions, then a row a task."""
    tasks = report["tasks"]
    counts = {model: sorted(row[model]["n"] for row in tasks.values()) for model in models}
    spans = {m: sorted({*n[:1], *n[-1:]}) for m, n in counts.items()}
    names = [f"{model}, n={'-'.join(map(str, spans[model]))}" for model in models]
    rows = [["task", "floor", *names]]
    for key, row in tasks.items():
        scores = [percent(row[model]) for model in models]
        rows.append([key.replace("_", " "), f"{100 * row['chance']['accuracy']:.1f}%", *scores])
    return rows


def floor_lines(report: dict) -> list[str]:
    """Say what each task asks, and what its floor is."""
    return [
        f"- {key.replace('_', ' ')}: {row['title']}; floor: {row['chance']['name']}."
        for key, row in report["tasks"].items()
    ]


def bits_rows(report: dict) -> list[list[str]]:
    """Lay out the table of bits per byte: a header, then a row a text."""
    texts = report["bits_per_byte"]
    columns = ["uniform", "bigram", *MODELS]
    header = ["bits per byte", *columns]
    return [header, *([text, *(f"{texts[text][c]:.3f}" for c in columns)] for text in texts)]


def hard_rows(report: dict) -> list[list[str]]:
    """Lay out what reinforcement changed: a header, then a row a way to answer."""
    hard = report["hard"]
    header = [
        "problems of two steps",
        *(f"{model}, n={row['greedy']['n']}" for model, row in hard.items()),
    ]
    rows = [[way, *(percent(row[way]) for row in hard.values())] for way in ("greedy", "sampled")]
    for k in next(iter(hard.values()))["pass_at"]:
        chances = [f"{100 * row['pass_at'][k]:.1f}%" for row in hard.values()]
        rows.append([f"right in {k} {'try' if k == '1' else 'tries'}", *chances])
    return [header, *rows]


def stage_rows(report: dict) -> list[list[str]]:
    """Lay out the table of seconds: a header, a row a stage, the sum."""
    rows = [[stage, f"{seconds:.0f}"] for stage, seconds in report["stages"].items()]
    return [["stage", "seconds"], *rows, ["sum", f"{sum(report['stages'].values()):.0f}"]]


def markdown_table(rows: list[list[str]]) -> str:
    """Write rows, the first of them the header, as a Markdown table; numbers stand to the right."""
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]])


def terminal_table(rows: list[list[str]]) -> Table:
    """Build the same table for the terminal; what follows a comma in the header, and intervals, go below."""
    table = Table(*(name.replace(", ", "\n") for name in rows[0]))
    for row in rows[1:]:
        table.add_row(*(cell.replace(" [", "\n[") for cell in row))
    for column in table.columns:
        column.justify, column.no_wrap = "right", True
    table.columns[0].justify = "left"
    return table


def quote(text: str) -> str:
    """Show what a model wrote as a Markdown quotation, line by line, with no character taken as markup."""
    return "\n".join(f">     {line}" for line in re.split(r"\r\n|\r|\n", text))


def show_tools(text: str) -> str:
    """Write calls of the calculator for people: [3*4 = 12] instead of four markers."""
    text = text.replace("<|python_end|><|output_start|>", " = ")
    return text.replace("<|python_start|>", "[").replace("<|output_end|>", "] ")


def transcript_text(transcript: list[dict]) -> str:
    """Write questions and answers as they stand in a terminal."""
    turns = []
    for turn in transcript:
        mark = "" if turn.get("correct", True) else "      (wrong)"
        turns.append(f"> {turn['question']}\n{show_tools(turn['response'])}{mark}")
    return "\n\n".join(turns)


def machine_line(report: dict) -> str:
    """Name the machine in a line."""
    machine = report["machine"]
    gpus = f", {', '.join(machine['gpus'])}" if machine["gpus"] else ""
    return (
        f"{machine['cpu']}, {machine['cores']} cores{gpus}, {machine['memory_gb']} GB, "
        f"{machine['platform']}, Python {machine['python']}, torch {machine['torch']}"
    )


def loss_figure(
    losses: dict[str, list[float]], untrained_loss: float, every: dict[str, int] | None = None
) -> bytes:
    """Draw the training loss of each stage over its steps, beside the loss of knowing nothing.

    Args:
        losses: stage -> loss of each step, in nats a token.
        untrained_loss: log of the vocabulary size, in nats.
        every: stage -> steps between two losses; 1 if None.

    Returns:
        A PNG of 6.5 x 3 inches; the same losses give the same bytes.
    """
    figure = Figure(figsize=(6.5, 3), layout="constrained")
    axes = figure.subplots(1, len(losses), sharey=True, squeeze=False)[0]
    for ax, colour, (stage, values) in zip(axes, ("C0", "C1", "C2", "C3"), losses.items()):
        width = max(1, len(values) // 50)
        smooth = [
            sum(values[max(0, i - width) : i + 1]) / len(values[max(0, i - width) : i + 1])
            for i in range(len(values))
        ]
        steps = [i * (every[stage] if every else 1) for i in range(len(values))]
        ax.plot(steps, values, color="0.8", linewidth=0.5)
        ax.plot(steps, smooth, color=colour)
        ax.axhline(untrained_loss, color="0.5", linestyle=":")
        ax.set_title(stage)
        ax.set_xlabel("step")
    axes[0].set_ylabel("loss (nats per token)")
    axes[0].text(0, untrained_loss, " log(vocabulary)", color="0.5", va="top")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()


def reward_figure(history: list[dict]) -> bytes:
    """Draw what reinforcement learning saw at each step: reward, entropy, length of the answers.

    Args:
        history: one note a step, as in rl.json.

    Returns:
        A PNG of 6.5 x 3 inches; the same history gives the same bytes.
    """
    figure = Figure(figsize=(6.5, 3), layout="constrained")
    axes = figure.subplots(1, 3)
    parts = {"reward": "mean reward", "entropy": "entropy (nats)", "length": "length (tokens)"}
    for ax, colour, (name, label) in zip(axes, ("C0", "C1", "C2"), parts.items()):
        notes = [note for note in history if name in note]  # a step without spread learns nothing
        steps, values = [n["step"] for n in notes], [n[name] for n in notes]
        width = max(1, len(values) // 10)
        recent = [values[max(0, i - width) : i + 1] for i in range(len(values))]
        ax.plot(steps, values, color="0.8", linewidth=0.5)
        ax.plot(steps, [sum(part) / len(part) for part in recent], color=colour)
        ax.set(title=label, xlabel="step")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()


REPORT = """# Report of the run `{name}`

Every number here was measured by this run, or derived from its settings; `report.json` holds them all.
Machine: {machine}.

The model has {parameters:,} parameters and costs {flops:,} floating-point operations a token in training.
Its corpus has {documents:,} documents ({megabytes:.1f} MB, {english:.1%} of it real English). The run took {minutes:.1f} minutes.

## What it can do

Answers to held-out questions, greedy, graded by program. In brackets: the 95% Wilson interval.

{tasks}

{floors}

Held-out questions found in any training text, and first messages asked in training: {leaks}.
Questions about what is known that were refused: {refused} of {known}. Replies that did not end by themselves: {endless}.

## What reinforcement learning changed

Questions of which none chose the checkpoint, answered greedily, and in {tries} tries each at temperature 1.

{hard}

![Reward, entropy and length of the answers over the steps](figures/reward.png)

## How well it predicts text

Lower is better. `uniform` finds all tokens equally likely, `bigram` counts pairs in the training text.

{bits}

![Training loss of each stage over its steps](figures/loss.png)

## Where the time went

{stages}

## The base model continues a story

{samples}

## The first messages that were handled wrong

```text
{wrong}
```

## The first held-out questions of each task, answered

```text
{transcript}
```
"""


def render_report(report: dict, name: str) -> str:
    """Write the report card in Markdown."""
    samples = [f"{s['opening']} ...\n\n{quote(s['continuation'])}" for s in report["samples"]]
    parts = [report["data"]["parts"].get(part, {}) for part in ("warmup", "train")]
    documents, n_bytes = (sum(p.get(unit, 0) for p in parts) for unit in ("documents", "bytes"))
    return REPORT.format(
        name=name,
        machine=machine_line(report),
        parameters=report["model"]["parameters"],
        flops=report["model"]["flops_per_token"],
        documents=documents,
        megabytes=n_bytes / 1e6,
        english=report["data"]["english_share"] * parts[1]["bytes"] / n_bytes,
        minutes=sum(report["stages"].values()) / 60,
        tasks=markdown_table(task_rows(report)),
        floors="\n".join(floor_lines(report)),
        leaks=report["contamination"]["count"],
        hard=markdown_table(hard_rows(report)),
        tries=len(report["hard"]["rl"]["pass_at"]),
        bits=markdown_table(bits_rows(report)),
        stages=markdown_table(stage_rows(report)),
        samples="\n\n".join(samples),
        transcript=transcript_text(report["transcript"]),
        wrong=transcript_text(report["contact"]["wrong"]) or "none",
        **{key: report["contact"][key] for key in ("refused", "known", "endless")},
    )
