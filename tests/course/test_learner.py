"""A simulated learner: start, fail, be told why, solve, go on; and nothing written is ever lost."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat_lib.course.grading import grade_file
from nanochat_lib.course.learn import changed_files, main
from nanochat_lib.course.manifest import CourseError
from nanochat_lib.course.one_exercise import function_source, reset_exercise
from nanochat_lib.course.workspace import PROGRESS, Workspace, find_workspace, start_workspace

ROOT = Path(__file__).parents[2]
DONE = function_source(ROOT / "solutions/ground.py", "split_of")


def mutants(slug: str, name: str) -> list[str]:
    path = ROOT / f"tests/exercises/grade_{slug}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MUTANTS[name]


def write_answer(path: Path, name: str, answer: str) -> None:
    text = path.read_text(encoding="utf-8")
    old = function_source(path, name)
    assert old and old in text
    path.write_text(text.replace(old, answer.rstrip()), encoding="utf-8")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "my [first] course, ü"
    start_workspace(ROOT, folder)
    monkeypatch.chdir(folder)
    return folder


def test_a_learner_goes_through_a_chapter(tmp_path, monkeypatch, capsys):
    def said() -> str:
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    assert main(["start", "mine"]) == 0
    assert "cd mine" in said()
    inner = tmp_path / "mine/notes"
    inner.mkdir()
    monkeypatch.chdir(inner)  # any folder of the workspace will do
    path = tmp_path / "mine/ground.py"
    assert main(["grade", "ground.split_of"]) == 1
    assert "not written yet" in said()

    forgets = next(m for m in mutants("ground", "split_of") if "Forget the seed" in m)
    write_answer(path, "split_of", forgets)
    assert main(["grade", "ground.split_of"]) == 1
    told = said()
    assert "another seed draws nearly the same documents" in told and "Forget the seed." in told

    assert main(["hint"]) == 0  # of the exercise graded last
    assert "hint 1 of 3" in said()
    assert main(["hint"]) == 0
    assert "hint 2 of 3" in said()
    assert main(["solution", "ground.split_of"]) == 1
    assert "fingerprint(" not in said()

    write_answer(path, "split_of", DONE)
    assert main(["grade", "ground.split_of"]) == 0
    assert said().startswith("ground.split_of: passed")
    assert main(["status"]) == 0
    shown = said()
    assert "[x] split_of" in shown and "1 of " in shown and shown.count("<- next") == 1
    assert "\x1b" not in shown, "no colours in a pipe"
    assert main(["status", "--markdown"]) == 0
    assert "- [x] ground.split_of" in said()
    assert main(["solution", "ground.split_of"]) == 0
    assert said().count("def split_of") == 2
    assert main(["grade"]) == 1  # goes on to the next one
    assert said().startswith("start.context_curve: not written yet")

    before = {p: p.read_bytes() for p in (tmp_path / "mine").glob("*.py")}
    (tmp_path / "mine/text.py").unlink()
    monkeypatch.chdir(tmp_path)
    assert main(["start", "mine"]) == 0
    assert "1 new files" in said()
    assert {p: p.read_bytes() for p in (tmp_path / "mine").glob("*.py")} == before
    done = json.loads((tmp_path / "mine" / PROGRESS).read_text(encoding="utf-8"))["done"]
    assert list(done) == ["ground.split_of"]


def test_start_refuses_the_course_itself_and_files(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for place in (ROOT, ROOT / "chapters", ROOT / "tests/deep/er", ROOT / "my-course/../exercises"):
        with pytest.raises(CourseError, match="part of the course"):
            start_workspace(ROOT, place)
    with pytest.raises(CourseError, match="is a file"):
        start_workspace(ROOT, tmp_path / "file")
    with pytest.raises(CourseError, match="no workspace"):
        find_workspace(tmp_path, tmp_path)


def test_the_edits_survive_a_build_and_new_exercises_are_named(course, monkeypatch, capsys):
    monkeypatch.chdir(course.root)
    assert main(["start"]) == 0
    course.replace("my-course/one.py", "# ## triple", "# ## triple, says me")
    course.write("my-course/two.py", "mine\n")
    mine = {k: v for k, v in course.files().items() if k.startswith("my-course/")}
    course.replace("chapters/00_one.py", "It doubles", "It always doubles")
    assert course.build() and main(["start"]) == 0
    assert {k: v for k, v in course.files().items() if k.startswith("my-course/")} == mine
    course.write("my-course/one.py", "# nothing left\n")
    capsys.readouterr()
    assert main(["start"]) == 0
    assert "your file has no one.triple: course reset one.triple" in capsys.readouterr().out
    assert main(["reset", "one.triple"]) == 0
    text = course.read("my-course/one.py")
    assert text.startswith("# nothing left\n") and "def triple(x" in text
    (backup,) = (course.root / "my-course/.course/backup").iterdir()
    assert backup.read_text(encoding="utf-8") == "# nothing left\n"


def test_reset_changes_one_exercise_and_keeps_the_rest(folder):
    path = folder / "ground.py"
    untouched = path.read_text(encoding="utf-8")
    write_answer(path, "split_of", DONE)
    edited = path.read_text(encoding="utf-8").replace("# ## split_of", "# ## split_of (my notes)")
    path.write_text(edited, encoding="utf-8")
    backup = reset_exercise(path, ROOT / "exercises/ground.py", "split_of")
    assert backup.read_text(encoding="utf-8") == edited
    kept = path.read_text(encoding="utf-8").replace("# ## split_of (my notes)", "# ## split_of")
    assert kept.split() == untouched.split()
    assert main(["grade", "ground.split_of"]) == 1


@pytest.mark.parametrize(
    "body, message",
    [
        ("while True:\n        pass", "still running after 3 seconds"),
        ("import sys\n    sys.exit(0)", "it calls sys.exit"),
        ("import os\n    os._exit(0)", "it ended Python itself"),
        ("import os\n    os.abort()", "crashed Python itself .SIGABRT"),
        ("while True:\n        print('x' * 1_000_000)", "prints more than 10 MB"),
        ("x = b'1' * 900_000_000\n    while True:\n        pass", "more than 700 MB of memory"),
        ("return split_of(document, held_out, seed)", "calls itself without end"),
        (
            "return nowhere",
            "NameError: name 'nowhere'.*called with document='page 0 ü', held_out=0.1",
        ),
        ("return (", "SyntaxError"),
        ("return None", "asked for 0.1, held out 0.000"),
    ],
)
def test_whatever_an_answer_does_becomes_a_message(folder, body, message):
    path = folder / "ground.py"
    write_answer(path, "split_of", f"def split_of(document, held_out, seed):\n    {body}\n")
    verdict = grade_file(ROOT, path, "ground", "split_of", seconds=3.0, memory_mb=700)
    assert verdict.outcome == "failed"
    assert re.search(message, verdict.message), verdict
    if "seconds" in message or "SIGABRT" in message or "SyntaxError" in message:
        source = path.read_text(encoding="utf-8").split("\n")[verdict.line - 1]
        assert source.strip() and source.strip() in body, "the line that was running"


def test_what_is_broken_elsewhere_does_not_matter(folder):
    path = folder / "ground.py"
    write_answer(path, "split_of", DONE.replace("fingerprint(", "helper("))
    text = path.read_text(encoding="utf-8")
    text = text.replace("check_publish_folder()\n", "check_publish_folder(\n")  # broken syntax
    text = text.replace("#| exercise publish_folder\n", "")  # a lost marker
    text += "\n\n# %%\nimport zlib\n\ndef helper(*parts):\n    return fingerprint(*parts)\n\nprint(1 / 0)\n"
    path.write_text("\ufeff" + text.replace("\n", "\r\n"), encoding="utf-8", newline="")
    assert grade_file(ROOT, path, "ground", "split_of").outcome == "passed"
    renamed = text.replace("def split_of(", "def split(")
    path.write_text(renamed, encoding="utf-8")
    assert "no function split_of" in grade_file(ROOT, path, "ground", "split_of").message


def test_a_notebook_is_graded_and_reset_as_well(tmp_path):
    start_workspace(ROOT, tmp_path, notebooks=True)
    space = Workspace(ROOT, tmp_path)
    path = space.file("ground")
    assert path.suffix == ".ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cell = next(c for c in notebook["cells"] if "def split_of(" in "".join(c["source"]))
    cell["source"] = DONE
    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert grade_file(ROOT, path, "ground", "split_of").outcome == "passed"
    reset_exercise(path, ROOT / "exercises/ground.py", "split_of")
    assert grade_file(ROOT, path, "ground", "split_of").outcome == "todo"


@pytest.mark.parametrize("suffix", [".py", ".ipynb"])
def test_an_exercise_that_came_later_is_appended_with_all_it_needs(tmp_path, suffix):
    start_workspace(ROOT, tmp_path, notebooks=suffix == ".ipynb")
    path = Workspace(ROOT, tmp_path).file("text")
    old = path.read_text(encoding="utf-8")
    if suffix == ".py":
        cut = old[: old.index("# %% [markdown]\n# ## leak_curve")].replace("import math\n", "")
    else:
        notebook = json.loads(old)
        cells = ["".join(cell["source"]) for cell in notebook["cells"]]
        at = next(n for n, source in enumerate(cells) if source.startswith("## leak_curve"))
        notebook["cells"] = notebook["cells"][:at]
        cut = json.dumps(notebook).replace("import math\\n", "")
    path.write_text(cut, encoding="utf-8")
    reset_exercise(path, ROOT / "exercises/text.py", "leak_curve")
    text = path.read_text(encoding="utf-8")
    assert "## leak_curve" in text and "check_leak_curve()" in text and "import math" in text
    assert text.count("from collections import Counter") == 1, "set-up that is there comes twice"
    assert grade_file(ROOT, path, "text", "leak_curve").outcome == "todo"
    answer = function_source(ROOT / "solutions/text.py", "leak_curve")
    stub = function_source(path, "leak_curve")
    if suffix == ".py":
        path.write_text(text.replace(stub, answer), encoding="utf-8")
        assert grade_file(ROOT, path, "text", "leak_curve").outcome == "passed"


def test_grade_in_a_notebook_reads_its_cells():
    cells = ["from nanochat_lib.common import fingerprint", DONE]
    cells += ["from nanochat_lib.course.learn import grade", "grade('ground.split_of')"]
    code = (
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        f"for cell in {cells!r}:\n    shell.run_cell(cell, store_history=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert "ground.split_of: passed" in done.stdout, done.stdout + done.stderr


def test_wrong_names_and_damaged_progress_end_with_a_way_out(folder, capsys):
    assert main(["grade", "grund"]) == 2
    assert "no exercise 'grund'" in capsys.readouterr().err
    assert main(["grade", "ground.split"]) == 2
    assert "ground.publish_folder, ground.split_of" in capsys.readouterr().err
    assert main(["reset", "ground"]) == 2
    (folder / PROGRESS).write_text("{", encoding="utf-8")
    assert main(["status"]) == 2
    assert "damaged" in capsys.readouterr().err
    assert (folder / PROGRESS).read_text(encoding="utf-8") == "{"


def test_watch_sees_what_was_saved(folder):
    seen = {}
    assert len(changed_files(folder, seen)) > 10
    assert changed_files(folder, seen) == []
    with open(folder / "text.py", "a", encoding="utf-8") as file:
        file.write("# more\n")
    assert changed_files(folder, seen) == [folder / "text.py"]
    shutil.copy(folder / "text.py", folder / "new.py")
    assert changed_files(folder, seen) == [folder / "new.py"]
