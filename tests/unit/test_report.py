"""The report card's tables and texts, from a report made by hand."""

import copy
import io
import struct

import pytest
from rich.console import Console

from nanochat_lib.capstone.layout import (
    MODELS,
    bits_rows,
    hard_rows,
    loss_figure,
    markdown_table,
    percent,
    render_report,
    reward_figure,
    stage_rows,
    task_rows,
    terminal_table,
    transcript_text,
)


def score(accuracy: float, low: float, high: float, n: int) -> dict:
    return {"accuracy": accuracy, "low": low, "high": high, "n": n}


REPORT = {
    "profile": "mini",
    "machine": {
        "platform": "Linux x86_64",
        "cpu": "A CPU",
        "cores": 2,
        "features": [],
        "memory_gb": 8.0,
        "gpus": [],
        "python": "3.11.7",
        "torch": "2.15.0",
    },
    "stages": {"data": 1.26, "base": 60.0},
    "model": {"parameters": 1_048_601, "flops_per_token": 7_000_000, "config": {}},
    "data": {"parts": {"train": {"documents": 10, "bytes": 2_500_000}}, "english_share": 0.25},
    "bits_per_byte": {
        "tinyworld": {
            "uniform": 5.0,
            "bigram": 2.5,
            "untrained": 5.001,
            "base": 1.0,
            "mid": 0.9,
            "sft": 0.75,
            "rl": 0.76,
        }
    },
    "tasks": {
        "word_problems": {
            "title": "word problems with the calculator",
            "chance": {"accuracy": 0.125, "name": "the likeliest answer"},
            "untrained": score(0.0, 0.0, 0.0714, 50),
            "base": score(0.02, 0.003, 0.105, 50),
            "mid": score(0.5, 0.432, 0.568, 200),
            "sft": score(0.925, 0.8799, 0.954, 200),
            "rl": score(0.93, 0.886, 0.958, 200),
        }
    },
    "hard": {
        "sft": {
            "greedy": score(0.5, 0.47, 0.53, 1000),
            "sampled": score(0.4, 0.38, 0.42, 1000),
            "pass_at": {"1": 0.4, "4": 0.701},
        },
        "rl": {
            "greedy": score(0.8, 0.77, 0.83, 1000),
            "sampled": score(0.75, 0.73, 0.77, 1000),
            "pass_at": {"1": 0.75, "4": 0.9},
        },
    },
    "contamination": {"count": 0, "examples": []},
    "samples": [{"opening": "One day Vera", "continuation": "ran.\n| # *home*"}],
    "transcript": [
        {"task": "facts", "question": "What?", "response": "This.", "correct": True},
        {"task": "facts", "question": "Who?", "response": "", "correct": False},
    ],
    "contact": {
        "wrong": [{"question": "hi", "response": "Goodbye!"}],
        "endless": 3,
        "refused": 2,
        "known": 900,
    },
}


def test_accuracy_is_never_written_without_its_interval_and_floor():
    assert percent(score(0.925, 0.8799, 0.954, 200)) == "92.5% [88, 95]"
    header, row = task_rows(REPORT)
    columns = ["untrained, n=50", "base, n=50", "mid, n=200", "sft, n=200", "rl, n=200"]
    assert header == ["task", "floor", *columns]
    assert row == [
        "word problems",
        "12.5%",
        "0.0% [0, 7]",
        "2.0% [0, 10]",
        "50.0% [43, 57]",
        "92.5% [88, 95]",
        "93.0% [89, 96]",
    ]


def test_tasks_with_other_numbers_of_questions_show_both():
    report = copy.deepcopy(REPORT)
    report["tasks"]["identity"] = copy.deepcopy(report["tasks"]["word_problems"])
    report["tasks"]["identity"]["rl"]["n"] = 24
    assert task_rows(report)[0][-1] == "rl, n=24-200"


def test_bits_stand_under_the_model_they_belong_to():
    header, row = bits_rows(REPORT)
    assert dict(zip(header, row)) == {
        "bits per byte": "tinyworld",
        "uniform": "5.000",
        "bigram": "2.500",
        "untrained": "5.001",
        "base": "1.000",
        "mid": "0.900",
        "sft": "0.750",
        "rl": "0.760",
    }


def test_reinforcement_is_shown_by_ways_to_answer():
    assert hard_rows(REPORT) == [
        ["problems of two steps", "sft, n=1000", "rl, n=1000"],
        ["greedy", "50.0% [47, 53]", "80.0% [77, 83]"],
        ["sampled", "40.0% [38, 42]", "75.0% [73, 77]"],
        ["right in 1 try", "40.0%", "75.0%"],
        ["right in 4 tries", "70.1%", "90.0%"],
    ]


def test_reward_figure_repeats_and_skips_steps_that_learned_nothing():
    history = [{"step": i, "reward": i / 9, "length": 20.0, "entropy": 0.1} for i in range(1, 9)]
    del history[3]["entropy"]
    png = reward_figure(history)
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and png == reward_figure(history)
    assert png != reward_figure(history[:-1])


def test_seconds_are_summed_before_rounding():
    assert stage_rows(REPORT)[1:] == [["data", "1"], ["base", "60"], ["sum", "61"]]


def test_markdown_table_aligns_numbers_to_the_right():
    assert markdown_table([["a", "b"], ["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_wrong_answers_are_marked_and_right_ones_not():
    right, wrong = transcript_text(REPORT["transcript"]).split("\n\n")
    assert "(wrong)" in wrong and "(wrong)" not in right


def test_calculator_calls_read_as_sums():
    called = "<|python_start|>3*4<|python_end|><|output_start|>12<|output_end|>That is 12."
    turn = {"question": "Q", "response": called, "correct": True}
    assert transcript_text([turn]) == "> Q\n[3*4 = 12] That is 12."


def test_report_shows_every_measured_part_and_model_text_cannot_become_markup():
    text = render_report(REPORT, "mini")
    for part in (
        "1,048,601 parameters",
        "10 documents (2.5 MB, 25.0% of it real English)",
        "The run took",
        "1.0 minutes",
        "92.5% [88, 95]",
        "floor: the likeliest answer",
        "asked in training: 0",
        "A CPU, 2 cores, 8.0 GB, Linux x86_64, Python 3.11.7, torch 2.15.0",
        "figures/loss.png",
        "refused: 2 of 900",
        "by themselves: 3",
        "> hi\nGoodbye!\n```",
    ):
        assert part in text, f"{part!r} is missing"
    assert ">     | # *home*" in text, "four spaces make it a code block"
    assert text == render_report(copy.deepcopy(REPORT), "mini")


@pytest.mark.parametrize("stages", [1, 2])
def test_figure_is_a_png_of_the_course_size_and_repeats_to_the_byte(stages):
    losses = {"base": [7.0, 5.0, 4.0, 3.5], "sft": [3.0, 2.0]}
    losses = dict(list(losses.items())[:stages])
    png = loss_figure(losses, untrained_loss=6.93)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) == (780, 360)  # 6.5 x 3 inches at 120 dots
    assert png == loss_figure(losses, untrained_loss=6.93)
    assert png != loss_figure({**losses, "base": [7.0, 6.9]}, untrained_loss=6.93)


def test_every_column_of_the_largest_table_fits_a_terminal():
    report = copy.deepcopy(REPORT)
    row = report["tasks"].pop("word_problems")
    for n, task in ((34, "identity"), (200, "multiple_choice"), (265, "first_contact")):
        report["tasks"][task] = copy.deepcopy(row)
        for model in MODELS:
            few = model in ("untrained", "base")
            report["tasks"][task][model] = score(1.0, 0.98, 1.0, min(n, 100) if few else n)
    console = Console(width=80, file=io.StringIO())
    console.print(terminal_table(task_rows(report, MODELS[1:])))
    shown = console.file.getvalue()
    for part in ("multiple choice", "first contact", "n=34-265", "[98, 100]", "100.0%"):
        assert part in shown, shown
