# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The report: records become tables, a curve and one page
#
# A run ends, and somebody asks how good the model is. The answer should hold no number that a
# person typed, and no accuracy without its interval. So every stage leaves records, and a report is
# a function of these records alone:
#
# ```python
# write_report(run_folder)    # report.json, report.md, figures/
# ```
#
# You need the records of the pipeline chapter. On a laptop the chapter takes about 5 seconds.

# %% [markdown]
# ## How it looks

# %%
#| default_exp capstone.layout
# How a report looks: tables, texts and a figure made of its numbers.

# %%
#| export
import io
import re
from matplotlib.figure import Figure
from rich.table import Table

TRAININGS = ("base", "mid", "sft")
MODELS = ("untrained", *TRAININGS, "rl")

# %% [markdown]
# One layout for the terminal and for Markdown: a list of rows, the first of them the header.
# Every accuracy is written with its interval, because there is no function that writes it
# without.


# %%
#| export
def percent(score: dict) -> str:
    """Write a score with its interval: 41.5% [35, 48]."""
    low, high = 100 * score["low"], 100 * score["high"]
    return f"{100 * score['accuracy']:.1f}% [{low:.0f}, {high:.0f}]"


# %%
# NBVAL_CHECK_OUTPUT
print(percent({"accuracy": 0.3, "low": 0.108, "high": 0.603}))


# %%
#| export
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


# %%
#| export
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


# %%
#| export
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


# %%
# NBVAL_CHECK_OUTPUT
print(markdown_table([["stage", "seconds"], ["data", "3"]]))


# %%
#| export
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


# %%
#| export
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


# %%
#| export
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


# %%
#| export
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


# %%
#| export
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


# %%
#| default_exp capstone.report
# The report card: what a run measured, gathered from its records.

# %%
#| export
import json
import math
import shlex
from pathlib import Path
from urllib.parse import quote as url_quote

from nanochat_lib.capstone.record import read_json
from nanochat_lib.common import atomic_write, fingerprint
from nanochat_lib.tasks.unknown import REFUSAL

# %% [markdown]
# The report reads records and nothing else. It measures nothing, so it can be written again at
# any time, and the same records give the same bytes. That makes it safe to improve: nobody has to
# retrain to correct a table.


# %%
#| export
def collect_tasks(evaluation: Path, tasks: dict[str, dict]) -> dict[str, dict]:
    """Put the score of every model beside the floor of each task.

    Returns:
        Task -> {"title", "chance": {"accuracy", "name"}, model -> {"accuracy", "low", "high", "n"}}.
    """
    found = {}
    for key, task in tasks.items():
        row = {"title": task["title"]}
        row["chance"] = {"accuracy": task["floor"], "name": task["floor_name"]}
        for model in MODELS:
            row[model] = read_json(evaluation / f"{model}.{key}.json")["score"]
        found[key] = row
    return found


# %%
#| export
def collect_transcript(evaluation: Path, tasks: dict[str, dict], questions: int = 2) -> list[dict]:
    """Take the first held-out questions of each task with the finished model's answers, right or wrong."""
    keys = ("question", "response", "correct")
    return [
        {"task": task, **{key: answer[key] for key in keys}}
        for task in tasks
        for answer in read_json(evaluation / f"rl.{task}.json")["answers"][:questions]
    ]


# %% [markdown]
# A report that shows only what went well deceives. So it lists every first message that was handled
# wrong, with the reply, and counts two things that a score hides: replies that did not end by
# themselves, and questions about the known world that were refused.


# %%
#| export
def collect_contact(evaluation: Path, tasks: dict[str, dict]) -> dict:
    """Gather how the finished model met the first messages, and how often it refused what it should know.

    Returns:
        "wrong": question and response of each message handled wrong; "endless": replies cut off, of
        all tasks; "refused", "known": refusals among questions about what is known, and their number;
        "stages": some of the messages with the response of every stage.
    """
    answers = {task: read_json(evaluation / f"rl.{task}.json")["answers"] for task in tasks}
    known = [a for task in tasks for a in answers[task] if a["expected"] != "unknown"]
    wrong = [a for a in answers.get("first_contact", []) if not a["correct"]]
    paths = {stage: evaluation / f"{stage}.first_contact.json" for stage in TRAININGS}
    some = {
        stage: read_json(path)["answers"][:12] for stage, path in paths.items() if path.exists()
    }
    stages = [
        {"question": rows[0]["question"], **{s: row["response"] for s, row in zip(some, rows)}}
        for rows in zip(*some.values())
    ]
    return {
        "stages": stages,
        "wrong": [{key: a[key] for key in ("question", "response")} for a in wrong],
        "endless": sum(not a["ended"] for part in answers.values() for a in part),
        "refused": sum(a["response"] == REFUSAL for a in known),
        "known": len(known),
    }


# %%
#| export
def collect_report(run_folder: Path) -> dict:
    """Gather everything a run measured, from its stored records alone: the same files, the same report.

    Raises:
        ValueError: a stage is missing or unfinished.
    """
    records = {}
    for stage in ("data", "tokenizer", *TRAININGS, "rl", "evaluation"):
        path = run_folder / stage / "stage.json"
        records[stage] = read_json(path) if path.exists() else {"state": "missing"}
        if records[stage]["state"] != "done":
            raise ValueError(
                f"stage {stage!r} of {run_folder} is not done: nanochat run finishes it"
            )
    evaluation, results = run_folder / "evaluation", {k: r["result"] for k, r in records.items()}
    tasks, machine = results["evaluation"].pop("tasks"), results["base"]["machine"]
    leaks = read_json(evaluation / "contamination.json")
    return {
        "profile": read_json(run_folder / "run.json")["profile"],
        "machine": {key: value for key, value in machine.items() if key != "disk_free_gb"},
        "stages": {stage: round(record["seconds"], 1) for stage, record in records.items()},
        "model": results["evaluation"],
        "data": results["data"],
        "tokenizer": results["tokenizer"],
        "training": {stage: results[stage].get("summary", results[stage]) for stage in TRAININGS},
        "bits_per_byte": read_json(evaluation / "bits_per_byte.json"),
        "tasks": collect_tasks(evaluation, tasks),
        "hard": {model: read_json(evaluation / f"{model}.hard.json") for model in ("sft", "rl")},
        "rl": results["rl"],
        "contamination": {"count": len(leaks), "examples": leaks[:3]},
        "samples": read_json(evaluation / "samples.json"),
        "transcript": collect_transcript(evaluation, tasks),
        "contact": collect_contact(evaluation, tasks),
    }


# %%
#| export
def read_losses(folder: Path) -> list[float]:
    """Read the loss of every training step of a stage, in nats a token."""
    return read_json(folder / "losses.json")["losses"]


def keep_edited(run_folder: Path) -> None:
    """Copy a report.md that somebody wrote into, so that the next one does not take its place."""
    page, data = run_folder / "report.md", run_folder / "report.json"
    if page.exists() and data.exists():
        text = page.read_bytes()
        if text != render_report(read_json(data), run_folder.name).encode():
            atomic_write(run_folder / f"report-edited-{fingerprint(text.hex())}.md", text)


def write_report(run_folder: Path) -> dict:
    """Write report.json, report.md and two figures of a finished run, and return the report."""
    report = collect_report(run_folder)
    keep_edited(run_folder)
    losses = {stage: read_losses(run_folder / stage) for stage in TRAININGS}
    log_vocab = math.log(report["model"]["config"]["vocab_size"])
    atomic_write(run_folder / "figures" / "loss.png", loss_figure(losses, log_vocab))
    history = read_json(run_folder / "rl" / "rl.json")
    atomic_write(run_folder / "figures" / "reward.png", reward_figure(history))
    atomic_write(run_folder / "report.json", json.dumps(report, indent=1))
    atomic_write(run_folder / "report.md", render_report(report, run_folder.name))
    return report


# %% [markdown]
# The project's README shows results too: a conversation near its top, for whoever wonders what this is,
# and the tables further down. Each place has two marks, and the program replaces what stands between
# them, so nobody copies numbers by hand, and nobody forgets to.

# %%
#| export
EXPLANATION = """\
*floor* is what guessing gets; *n* counts the questions (identity has no more new phrasings, first contact a
list of its own), and in brackets stands the 95% interval that so few allow. *untrained* is the model before
its first step, *base* after pretraining, *mid* after practising skills, *sft* after fine-tuning on
conversations of every kind, *rl* after practising problems of two steps for a reward. *bits per byte* says how well a model predicts text it has not seen: how many
bits it needs to say which byte comes next, fewer is better. *uniform* takes all tokens to be equally likely,
*bigram* counts which follows which."""


def fill_between(text: str, name: str, block: str) -> str:
    """Replace what stands between <!-- name:start --> and <!-- name:end -->.

    Raises:
        ValueError: the text lacks one of the marks.
    """
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"no {start} ... {end} in it: add both lines where it should stand")
    return before + start + "\n" + block + "\n" + end + after


def fill_readme(readme: Path, run_folder: Path) -> None:
    """Put a run's conversation and its tables between the marks of a README.

    Args:
        readme: holds the marks "talk" and "measured".
        run_folder: a finished run, or its record.

    Raises:
        ValueError: the README lacks a mark.
    """
    report, name = read_json(run_folder / "report.json"), run_folder.name
    minutes = sum(report["stages"].values()) / 60
    figure = f"figures/{url_quote(name)}_loss.png"
    talk = f"""\
```text
{transcript_text(report["transcript"][::2])}
```

![Training loss of each stage over its steps]({figure})

*Above: a question of each kind that the model was never asked in training, with its answer. Below: its training
loss, {minutes:.1f} minutes on {machine_line(report)}.*"""
    measured = f"""\
{markdown_table(task_rows(report))}

{markdown_table(bits_rows(report))}

{EXPLANATION}

Written by `nanochat report {shlex.quote(name)} --readme README.md`."""
    text = readme.read_text(encoding="utf-8")
    try:
        text = fill_between(fill_between(text, "talk", talk), "measured", measured)
    except ValueError as error:
        raise ValueError(f"{readme}: {error}") from error
    picture = (run_folder / "figures" / "loss.png").read_bytes()
    atomic_write(readme.parent / "figures" / f"{name}_loss.png", picture)
    atomic_write(readme, text)


# %% [markdown]
# ## Use it: the record of a laptop run
#
# One command keeps a small part of a run in the repository, as evidence: the report, the loss of
# every step, thinned, and nothing that is large.


# %%
#| export
KEPT_POINTS = 400  # points of a loss curve that a record keeps


def rounded(history: list[dict]) -> list[dict]:
    """Write the numbers of each note with four places."""
    return [{name: round(value, 4) for name, value in note.items()} for note in history]


def write_run_record(run_folder: Path, records: Path) -> list[str]:
    """Keep what is small of a run: report.json, report.md, figures, rl.json, and losses.json, thinned.

    Args:
        run_folder: a finished run.
        records: the folder that gets them, created if missing; files of these names are replaced.

    Returns:
        The names written.
    """
    report = read_json(run_folder / "report.json")
    losses = {}
    for stage in TRAININGS:
        values = read_losses(run_folder / stage)
        every = max(1, len(values) // KEPT_POINTS)
        losses[stage] = {"every": every, "losses": [round(v, 4) for v in values[::every]]}
    texts = {
        "report.json": json.dumps(report, indent=1) + "\n",
        "report.md": render_report(report, run_folder.name),
        "losses.json": json.dumps(losses) + "\n",
        "rl.json": json.dumps(rounded(read_json(run_folder / "rl" / "rl.json"))) + "\n",
    }
    for name, text in texts.items():
        atomic_write(records / name, text)
    pictures = ("figures/loss.png", "figures/reward.png")
    for name in pictures:
        atomic_write(records / name, (run_folder / name).read_bytes())
    return [*texts, *pictures]


# %%
from nanochat_lib.course.manifest import library_root

record = library_root() / "records" / "laptop"
told = read_json(record / "report.json")
print(markdown_table(task_rows(told)))
print(markdown_table(stage_rows(told)))

# %%
# alt: training loss of the three trainings of the recorded laptop run, falling from the logarithm of the vocabulary
from IPython.display import Image

kept = read_json(record / "losses.json")
losses = {stage: kept[stage]["losses"] for stage in kept}
every = {stage: kept[stage]["every"] for stage in kept}
Image(loss_figure(losses, math.log(told["model"]["config"]["vocab_size"]), every))

# %% [markdown]
# *The recorded run: every point is one of the kept steps. The curve of the base model jumps where the
# warm-up lists end and the mixture of stories begins: new text, not a broken run. It falls again
# from there.*
#
# ## Recap
#
# Records in, page out: the report measures nothing, so it can be written again at any time, and a
# page that somebody wrote into is kept beside the new one. `capstone.layout` holds how it looks,
# `capstone.report` what it says, and `nanochat report NAME --record` what stays in the repository.
