"""A whole run of the smallest profile: left alone, killed at random moments, read again, damaged."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat_lib.capstone.pipeline import read_record
from nanochat_lib.capstone.profiles import load_profile
from nanochat_lib.capstone.report import collect_report, fill_readme, write_report

HERE = Path(__file__).parent
MANIFEST = HERE / "nano.toml"
KILLS = 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run left alone and one killed again and again; and how each attempt ended."""
    folder = tmp_path_factory.mktemp("runs")
    command = [
        sys.executable,
        str(HERE / "attempts.py"),
        str(MANIFEST),
        str(folder),
        "1",
        str(KILLS),
    ]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env={**os.environ})
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert done.returncode == 0 and len(lines) == KILLS + 2, done.stdout + done.stderr
    return folder / "undisturbed", folder / "disturbed", [line.split()[1] for line in lines]


def without_seconds(report: dict) -> dict:
    """Drop what may differ between two runs: how long things took."""
    kept = {key: value for key, value in report.items() if key != "stages"}
    kept["rl"] = {k: v for k, v in report["rl"].items() if k != "seconds"}
    kept["training"] = {
        stage: {k: v for k, v in summary.items() if k not in ("seconds", "tokens_per_second")}
        for stage, summary in report["training"].items()
    }
    return kept


def test_kills_leave_no_trace(runs):
    undisturbed, disturbed, outcomes = runs
    assert outcomes[0] == outcomes[-1] == "finished" and "failed" not in outcomes
    assert outcomes.count("killed") >= 2, f"too few attempts were cut short: {outcomes}"
    reports = [
        json.loads((run / "report.json").read_text(encoding="utf-8"))
        for run in (undisturbed, disturbed)
    ]
    assert without_seconds(reports[0]) == without_seconds(reports[1])
    for stage in ("base", "mid", "sft", "rl", "rl/training"):
        weights = [sorted((run / stage).glob("step_*"))[-1] for run in (undisturbed, disturbed)]
        first, second = ((step / "model.safetensors").read_bytes() for step in weights)
        assert weights[0].name == weights[1].name and first == second


def test_report_has_what_the_design_promises(runs):
    report = json.loads((runs[0] / "report.json").read_text(encoding="utf-8"))
    trained = ["base", "mid", "sft", "rl"]
    assert list(report["stages"]) == ["data", "tokenizer", *trained, "evaluation"]
    names = {"facts", "word_problems", "multiple_choice", "spelling", "identity"}
    names |= {"real_words", "two_steps", "first_contact", "third_turn"}
    assert set(report["tasks"]) == names
    for row in report["tasks"].values():
        assert 0 <= row["chance"]["accuracy"] < 1
        for model in ("untrained", *trained):
            assert row[model]["low"] <= row[model]["accuracy"] <= row[model]["high"]
            assert row[model]["n"] > 0
    for bits in report["bits_per_byte"].values():
        assert abs(bits["untrained"] - bits["uniform"]) < 0.1, "an untrained model knows nothing"
        assert 0 < bits["base"] < bits["uniform"]
    assert report["contamination"]["count"] == 0
    assert len(report["transcript"]) >= 5


def test_report_is_a_function_of_the_stored_records(runs, tmp_path):
    copy = tmp_path / runs[0].name
    shutil.copytree(runs[0], copy)
    names = ["report.json", "report.md", "figures/loss.png", "figures/reward.png"]
    before = {name: (copy / name).read_bytes() for name in names}
    for name in names:
        (copy / name).unlink()
    write_report(copy)
    assert {name: (copy / name).read_bytes() for name in names} == before


def test_a_report_that_somebody_wrote_into_is_kept_beside_the_new_one(runs, tmp_path):
    copy = tmp_path / runs[0].name
    shutil.copytree(runs[0], copy)
    fresh = (copy / "report.md").read_bytes()
    write_report(copy)
    assert not list(copy.glob("report-edited-*")), "nothing was edited"
    for note in (b"my notes\n", "caf\u00e9".encode("latin-1")):
        (copy / "report.md").write_bytes(fresh + note)
        write_report(copy)
        assert (copy / "report.md").read_bytes() == fresh
    kept = [path.read_bytes() for path in copy.glob("report-edited-*.md")]
    assert sorted(kept) == sorted([fresh + b"my notes\n", fresh + "caf\u00e9".encode("latin-1")])


def test_report_refuses_an_unfinished_run(runs, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(runs[0], copy)
    record = read_record(copy / "sft")
    (copy / "sft/stage.json").write_text(
        json.dumps(record | {"state": "running"}), encoding="utf-8"
    )
    with pytest.raises(ValueError, match="stage 'sft' of .* is not done"):
        collect_report(copy)


def test_readme_is_filled_between_its_marks_again_and_again(runs, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(
        "before\n<!-- talk:start -->\nold\n<!-- talk:end -->\nbetween\n"
        "<!-- measured:start -->\nold\n<!-- measured:end -->\nafter\n",
        encoding="utf-8",
    )
    fill_readme(readme, runs[0])
    first = readme.read_text(encoding="utf-8")
    assert first.startswith("before\n<!-- talk:start -->") and first.endswith("end -->\nafter\n")
    assert "\n<!-- talk:end -->\nbetween\n<!-- measured:start -->\n" in first
    assert "\nold\n" not in first and "| word problems |" in first
    assert (tmp_path / "figures/undisturbed_loss.png").exists()
    fill_readme(readme, runs[0])
    assert readme.read_text(encoding="utf-8") == first
    readme.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="no <!-- talk:start"):
        fill_readme(readme, runs[0])


def test_the_readme_shows_the_record(tmp_path):
    root = Path(__file__).parents[2]
    text = (root / "README.md").read_text(encoding="utf-8")
    readme = tmp_path / "README.md"
    readme.write_text(text, encoding="utf-8")
    fill_readme(readme, root / "records/laptop")
    assert readme.read_text(encoding="utf-8") == text, "nanochat report laptop --record --readme"


def test_nano_is_a_profile(runs):
    assert json.loads((runs[0] / "run.json").read_text(encoding="utf-8"))["profile"] == "nano"
    assert load_profile("nano", MANIFEST).evaluation.questions == 4
