"""The command: short answers, and no torch on the way to them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat_lib.course.check import check
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
    assert lines[0] == "I" and lines[1].split() == ["one", "what", "is", "twice", "x?"]
    assert lines[2].strip() == "gentle; 5 min, 1 exercise in 5 min"
    assert lines[4].strip() == "steady; 5 min; after one"
    assert "Workshop: to come" in lines


def test_shares_are_counted(course, monkeypatch, capsys):
    monkeypatch.chdir(course.root)
    assert main(["list", "--shares"]) == 0
    one, two = capsys.readouterr().out.splitlines()[1:]
    assert one.split()[:2] == ["one", "8"] and one.split()[4].endswith("%")
    exported = [int(line.split()[3]) for line in (one, two)]
    assert exported[0] > exported[1] > 0


def test_the_map_in_the_readme_is_built_and_the_rest_is_left_alone(course):
    mine = "mine\n<!-- map:start -->\nold\n<!-- map:end -->\nalso mine\n"
    course.write("README.md", mine)
    assert [p.path for p in check(course.root)["drift"]] == ["README.md"]
    assert course.build() == ["README.md"] and course.build() == []
    text = course.read("README.md")
    assert text.startswith("mine\n<!--") and text.endswith("-->\nalso mine\n")
    assert "[one](chapters/00_one.ipynb) | what is twice x? | gentle" in text
    course.write("README.md", "no marks\n")
    assert course.build() == [] and course.read("README.md") == "no marks\n"


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
    stems = ("93_ground", "90_course_tool", "96_learner")
    for stem in stems:
        shutil.copy(ROOT / f"chapters/{stem}.py", tmp_path / "chapters")
    manifest = (ROOT / "course.toml").read_text(encoding="utf-8")
    before, *tables = manifest.partition("[[exercise]]")[0].split("[[chapter]]")
    kept = [table for table in tables if any(stem in table for stem in stems)]
    (tmp_path / "course.toml").write_text("[[chapter]]".join([before, *kept]), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    rest = ["-m", "nanochat_lib.course.cli", "build", "--no-execute"]
    for words in (["chapters/90_course_tool.py", "--rebuild"], rest):
        command = [sys.executable, *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8"
        )
        assert done.returncode == 0, done.stderr
    made = {
        path.name: path.read_text(encoding="utf-8")
        for path in (tmp_path / "nanochat_lib/course").glob("*.py")
    }
    committed = (ROOT / "nanochat_lib/course").glob("*.py")
    assert made == {path.name: path.read_text(encoding="utf-8") for path in committed}


def test_set_up_leaves_an_environment_that_it_did_not_make(tmp_path):
    for name in (".ci/setup", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for mine in (".venv/pyvenv.cfg", ".venv/bin/python", ".venv/lib/mine.py"):
        (tmp_path / mine).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / mine).write_text("mine", encoding="utf-8")
    done = subprocess.run(
        ["bash", str(tmp_path / ".ci/setup")], capture_output=True, encoding="utf-8", timeout=60
    )
    assert done.returncode == 1 and "this script did not make it" in done.stderr
    assert {p.name for p in (tmp_path / ".venv").rglob("*") if p.is_file()} == {
        "pyvenv.cfg",
        "python",
        "mine.py",
    }


@pytest.mark.parametrize("columns", ["0", "1"])
def test_a_terminal_of_no_width_shows_a_chapter_all_the_same(course, monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.chdir(course.root)
    assert main(["read", "one"]) == 0
    assert "It doubles numbers." in capsys.readouterr().out


def test_a_course_lives_in_any_folder_and_any_locale(course, tmp_path_factory):
    """A checkout with brackets, spaces and a quote; a terminal and a locale that know no accents."""
    root = tmp_path_factory.mktemp("x") / "a [v2] b'c"
    course.replace("chapters/00_one.py", "It doubles numbers.", "It doubles café numbers.")
    shutil.copytree(course.root, root)
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    environment = os.environ | plain | {"PYTHONIOENCODING": "latin-1:strict"}
    for command in (["build", "--no-execute"], ["build"], ["check"], ["list"], ["read", "one"]):
        done = subprocess.run(
            [sys.executable, "-m", "nanochat_lib.course.cli", *command],
            cwd=root,
            env=environment | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            encoding="latin-1",
        )
        assert done.returncode == 0, (command, done.stdout + done.stderr)
    notebook = (root / "chapters/00_one.ipynb").read_text(encoding="utf-8")
    assert "café numbers" in notebook and "café" in done.stdout


def test_a_layout_problem_is_found_in_any_folder(course, tmp_path_factory):
    root = tmp_path_factory.mktemp("x") / "a [v2]: b"
    course.replace("chapters/00_one.py", "print(double(2))", "print( double(2) )")
    shutil.copytree(course.root, root)
    [problem] = check(root)["format"]
    assert problem.path == "chapters/00_one.py" and "ruff format" in problem.way_out


def test_ctrl_c_is_one_line(course, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("nanochat_lib.course.cli.build", interrupted)
    monkeypatch.chdir(course.root)
    assert main(["build"]) == 130 and capsys.readouterr().err.count("\n") == 2
