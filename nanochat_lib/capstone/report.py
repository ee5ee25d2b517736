# Generated from chapters/92_report.py by `course build`; edit that file.
"""The report card: what a run measured, gathered from its records."""

import json
import math
import shlex
from pathlib import Path
from urllib.parse import quote as url_quote

from nanochat_lib.capstone.layout import (
    MODELS,
    TRAININGS,
    bits_rows,
    loss_figure,
    machine_line,
    markdown_table,
    render_report,
    reward_figure,
    task_rows,
    transcript_text,
)
from nanochat_lib.capstone.record import read_json
from nanochat_lib.common import atomic_write, fingerprint
from nanochat_lib.tasks.unknown import REFUSAL

__all__ = [
    "collect_tasks",
    "collect_transcript",
    "collect_contact",
    "collect_report",
    "read_losses",
    "keep_edited",
    "write_report",
    "EXPLANATION",
    "fill_between",
    "fill_readme",
    "KEPT_POINTS",
    "rounded",
    "write_run_record",
]


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


def collect_transcript(evaluation: Path, tasks: dict[str, dict], questions: int = 2) -> list[dict]:
    """Take the first held-out questions of each task with the finished model's answers, right or wrong."""
    keys = ("question", "response", "correct")
    return [
        {"task": task, **{key: answer[key] for key in keys}}
        for task in tasks
        for answer in read_json(evaluation / f"rl.{task}.json")["answers"][:questions]
    ]


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
