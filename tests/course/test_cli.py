"""The command: short answers, and no torch on the way to them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat_lib.course.cli import main
from nanochat_lib.course.reader import advice

ROOT = Path(__file__).parents[2]


def test_the_command_starts_without_torch():
    code = "import sys, nanochat_lib.course.cli; print('torch' in sys.modules, 'jupytext' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.split() == ["False", "False"]


def test_list_shows_chapters_in_order(course, monkeypatch, capsys):
    monkeypatch.chdir(course.root / "chapters")  # it finds the course from a folder inside
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("one") and "the first chapter" in lines[0]
    assert "1 exercises, 5 min" in lines[0] and lines[1].startswith("two")


def test_read_shows_prose_code_and_results(course, monkeypatch, capsys):
    monkeypatch.chdir(course.root)
    assert main(["read", "one"]) == 0
    said = capsys.readouterr().out
    assert "It doubles numbers." in said and "def double" in said and "characters" in said
    assert "#|" not in said


@pytest.mark.parametrize("command", [["read", "three"], ["build", "three"]])
def test_an_unknown_chapter_is_answered_with_the_known_ones(course, monkeypatch, capsys, command):
    monkeypatch.chdir(course.root)
    assert main(command) == 2
    assert "choose from one, two" in capsys.readouterr().err


def test_outside_a_course_there_is_a_way_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["list"]) == 2
    assert "run inside the repository" in capsys.readouterr().err


def test_doctor_reports_this_machine(monkeypatch, capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "cores" in said and "torch" in said


def test_advice_fits_the_machine():
    rich = {"gpus": ["H100"], "memory_gb": 64, "disk_free_gb": 500}
    rich |= {"cargo": "1.9", "compiler": "g++", "browser": "chromium"}
    assert advice(rich) == ["1 GPU: `nanochat plan` says which profiles fit."]
    poor = {"gpus": [], "memory_gb": 2, "disk_free_gb": 1, "cargo": None, "compiler": None}
    said = " ".join(advice(poor))
    for word in ("laptop", "memory", "NANOCHAT_BASE_DIR", "No cargo", "No compiler", "No browser"):
        assert word in said


def test_the_tool_rebuilds_itself_from_its_chapter_alone(tmp_path):
    ignored = shutil.ignore_patterns("course", "__pycache__")
    shutil.copytree(ROOT / "nanochat_lib", tmp_path / "nanochat_lib", ignore=ignored)
    (tmp_path / "chapters").mkdir()
    for stem in ("00_start", "90_course_tool"):
        shutil.copy(ROOT / f"chapters/{stem}.py", tmp_path / "chapters")
    (tmp_path / "course.toml").write_text(
        'chapters = ["00_start", "90_course_tool"]\n', encoding="utf-8"
    )
    command = [sys.executable, "chapters/90_course_tool.py", "--rebuild"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 0, done.stderr
    made = {
        path.name: path.read_text(encoding="utf-8")
        for path in (tmp_path / "nanochat_lib/course").glob("*.py")
    }
    committed = (ROOT / "nanochat_lib/course").glob("*.py")
    assert made == {path.name: path.read_text(encoding="utf-8") for path in committed}
