"""Building: only what changed, whole or not at all, and the same bytes every time."""

import pytest
from tiny_tables import TABLE_TWO

from nanochat_lib.course.check import check
from nanochat_lib.course.cli import main
from nanochat_lib.course.manifest import CourseError, Problem

ONE, TWO = "chapters/00_one.py", "chapters/01_two.py"
LIBRARY = "nanochat_lib/numbers/double.py"


def test_a_second_build_changes_nothing(course):
    before = course.files()
    assert course.build() == []
    assert course.ran == [] and course.files() == before


def test_two_builds_give_the_same_bytes(course, tmp_path_factory):
    before = course.files()
    for path in before:
        if path.endswith(".ipynb") or path.startswith(("nanochat_lib/", "exercises/")):
            (course.root / path).unlink()
    course.build()
    assert course.files() == before


def test_only_what_depends_on_a_change_runs(course):
    course.replace(TWO, "FOUR = double(2)", "FOUR = double(2) + 0")
    course.build()
    assert course.ran == [TWO]
    course.ran.clear()
    course.replace(ONE, "fsum([x, x])", "fsum([x, x, 0])")
    course.build()
    assert course.ran == [ONE, TWO]  # chapter two imports double; the solutions do not


@pytest.mark.parametrize("folder", ["data", "web"])
def test_a_file_beside_the_library_counts_for_the_chapters_that_read_it(course, folder):
    file = course.root / folder / "page.txt"
    file.parent.mkdir()
    file.write_text("one", encoding="utf-8")
    read = f'fsum([x, x, 0 * len(str(Path(".") / "{folder}/page.txt"))])'
    course.replace(ONE, "fsum([x, x])", read)
    course.replace(ONE, "import math\n", "import math\nfrom pathlib import Path\n")
    course.build()
    course.ran.clear()
    file.write_text("two", encoding="utf-8")
    course.build()
    assert course.ran == [ONE, TWO]


def test_prose_reaches_the_notebook_without_running_it(course):
    course.replace(ONE, "It doubles numbers.", "It doubles every number.")
    assert course.build() == ["chapters/00_one.ipynb"]
    assert course.ran == [] and "every number" in course.read("chapters/00_one.ipynb")


def test_force_runs_everything(course):
    course.build(force=True)
    assert course.ran == [ONE, "solutions/one.py", TWO]


def test_without_execution_notebooks_stay_as_they_are(course):
    before = course.read("chapters/00_one.ipynb")
    course.replace(ONE, "fsum([x, x])", "fsum([x, x, 0])")
    assert course.build(execute=False) == [LIBRARY]
    assert course.ran == [] and course.read("chapters/00_one.ipynb") == before


def test_one_chapter_builds_while_another_is_broken(course):
    course.replace(TWO, "FOUR = double(2)", "FOUR = double(2")
    course.replace(ONE, "fsum([x, x])", "fsum([x, x, 0])")
    course.build("one")
    assert "fsum([x, x, 0])" in course.read(LIBRARY)
    with pytest.raises(CourseError, match="01_two.py"):
        course.build()


def test_orphans_go_and_hand_written_files_stay(course):
    course.replace(ONE, "#| default_exp numbers.names", "#| default_exp words.names")
    course.write("nanochat_lib/mine.py", "x = 1\n")
    touched = course.build()
    assert "nanochat_lib/words/names.py" in touched and "nanochat_lib/numbers/names.py" in touched
    assert not (course.root / "nanochat_lib/numbers/names.py").exists()
    assert (course.root / "nanochat_lib/mine.py").exists()


def test_an_orphan_leaves_no_trace_in_stamps(course):
    course.replace(TWO, "FOUR = double(2)", "import nanochat_lib  # all of it\n\nFOUR = double(2)")
    course.build()
    course.replace(ONE, "#| default_exp numbers.names", "#| default_exp words.names")
    assert "nanochat_lib/numbers/names.py" in course.build()
    assert course.build() == [] and not any(check(course.root).values())


def test_everything_of_a_removed_chapter_goes(course):
    (course.root / TWO).unlink()
    course.replace("course.toml", TABLE_TWO, "")
    course.build()
    left = course.files()
    assert not any("two" in path or "later" in path for path in left)
    assert not (course.root / "nanochat_lib/later").exists()


def test_new_modules_run_before_they_land(course):
    """The kernel sees the planned library, while the real one is still the old one."""
    course.replace(ONE, "fsum([x, x])", "fsum([x, x, 0])")
    seen = []

    def run(path, cells, library):
        seen.append(((library / LIBRARY).read_text(encoding="utf-8"), course.read(LIBRARY)))
        return [[] for cell in cells if cell.kind == "code"]

    course.run = run
    course.build("one")
    staged, landed = seen[0]
    assert "fsum([x, x, 0])" in staged and "fsum([x, x, 0])" not in landed


def test_a_cell_that_fails_leaves_the_chapter_alone(course):
    before = course.files()
    course.replace(ONE, "fsum([x, x])", "fsum([x, x, 0])")
    edited = course.files()

    def run(path, cells, library):
        raise CourseError(Problem(path, 1, "ZeroDivisionError", "mend it"))

    course.run = run
    with pytest.raises(CourseError):
        course.build()
    assert course.files() == edited != before


@pytest.mark.parametrize("survivors", range(14))
def test_a_kill_at_any_write_leaves_whole_files_and_the_next_build_ends_the_same(
    unbuilt, course, monkeypatch, survivors
):
    """The process dies after some of the writes; building again gives an undisturbed build's bytes."""
    import nanochat_lib.common as common

    undisturbed = course.files()
    for path in list(unbuilt.files()):
        if path not in ("course.toml", ONE, TWO, "solutions/one.py") and "grade_" not in path:
            (unbuilt.root / path).unlink()
    real, written = common.atomic_write, []

    def dies(path, data):
        if len(written) == survivors:
            raise KeyboardInterrupt
        written.append(path)
        real(path, data)

    monkeypatch.setattr(common, "atomic_write", dies)
    with pytest.raises(KeyboardInterrupt):
        unbuilt.build()
    left = unbuilt.files()
    left.pop("generated.json", None)
    assert all(undisturbed[path] == data for path, data in left.items())
    monkeypatch.undo()
    unbuilt.build()
    assert unbuilt.files() == undisturbed


@pytest.mark.parametrize("survivors", range(4))
def test_a_kill_leaves_no_file_that_is_nobodys(course, monkeypatch, survivors):
    """Killed while it replaces files, and the source changes again: both contents are ours."""
    import nanochat_lib.common as common

    real, written = common.atomic_write, []

    def dies(path, data):
        if len(written) == survivors:
            raise KeyboardInterrupt
        written.append(path)
        real(path, data)

    course.replace(ONE, "fsum([x, x])", "fsum([x, x, 0])")
    monkeypatch.setattr(common, "atomic_write", dies)
    with pytest.raises(KeyboardInterrupt):
        course.build()
    monkeypatch.undo()
    course.replace(ONE, "fsum([x, x, 0])", "fsum([0, x, x])")
    course.build()
    assert "fsum([0, x, x])" in course.read(LIBRARY) and not any(check(course.root).values())


WORK = {
    "a solved exercise": ("exercises/one.py", "def triple(x):\n    return 3 * x\n"),
    "a solved notebook": ("exercises/one.ipynb", "{}"),
    "a notebook saved after playing": ("chapters/00_one.ipynb", '{"cells": []}'),
    "a module mended by hand": (LIBRARY, "def double(x):\n    return x + x\n"),
    "a package file": ("nanochat_lib/numbers/__init__.py", "import math\n"),
}


@pytest.mark.parametrize("name", WORK)
@pytest.mark.parametrize("options", [{}, {"force": True}, {"execute": False}])
def test_what_a_person_changed_stops_the_build_before_anything_runs(course, name, options):
    path, text = WORK[name]
    course.write(path, text)
    course.replace(ONE, "It doubles numbers.", "It doubles every number.")
    course.replace("solutions/one.py", "Exercises: one", "Exercises: 1")
    before = course.files()
    if options == {"execute": False} and path == "chapters/00_one.ipynb":
        course.build(**options)  # it leaves notebooks alone
        assert course.read(path) == text
        return
    with pytest.raises(CourseError, match="was changed since `course build` wrote it") as stopped:
        course.build(**options)
    assert path in str(stopped.value) and "move it to a folder of your own" in str(stopped.value)
    assert course.files() == before and course.ran == []
    (course.root / path).rename(course.root / "mine")
    course.build(**options)
    assert course.read("mine") == text


NOTES = ["exercises/notes.md", "chapters/scratch.ipynb", "solutions/x.txt", "nanochat_lib/mine.py"]
NOTES += ["exercises/my [v2]/one.py", "nanochat_lib/numbers/old.py", "exercises/two.py"]


@pytest.mark.parametrize("path", NOTES)
def test_what_no_build_wrote_survives_every_build(course, path):
    text = "# Generated from chapters/00_one.py by `course build`; edit that file.\n"
    course.write(path, text)
    course.build()
    course.build("one", force=True)
    (course.root / TWO).unlink()
    course.replace("course.toml", TABLE_TWO, "")
    course.build()
    assert course.read(path) == text
    problem = next(p for p in check(course.root)["drift"] if p.path == path)
    assert "no build removes it" in problem.way_out


def test_an_orphan_that_somebody_changed_stays(course):
    course.write("nanochat_lib/later/use.py", "FOUR = 5\n")
    (course.root / TWO).unlink()
    course.replace("course.toml", TABLE_TWO, "")
    assert "nanochat_lib/later/use.py" not in course.build()
    assert course.read("nanochat_lib/later/use.py") == "FOUR = 5\n"
    assert not (course.root / "chapters/01_two.ipynb").exists()


@pytest.mark.parametrize("kind", ["link", "folder", "broken link"])
def test_what_is_no_file_stands_in_the_way(course, tmp_path_factory, kind):
    path, elsewhere = course.root / LIBRARY, tmp_path_factory.mktemp("x") / "mine.py"
    text = path.read_text(encoding="utf-8")
    path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(elsewhere)
    if kind == "link":
        elsewhere.write_text(text, encoding="utf-8")
    course.replace(ONE, "fsum([x, x])", "fsum([x, x, 0])")
    with pytest.raises(CourseError, match=LIBRARY):
        course.build()
    assert kind != "link" or elsewhere.read_text(encoding="utf-8") == text


def test_a_lost_record_adopts_what_is_as_it_should_be_and_nothing_else(course):
    record = course.read("generated.json")
    (course.root / "generated.json").unlink()
    assert course.build() == [] and course.read("generated.json") == record
    (course.root / "generated.json").unlink()
    course.write(LIBRARY, "mine = 1\n")
    with pytest.raises(CourseError, match="was not written by `course build`"):
        course.build()
    assert course.read(LIBRARY) == "mine = 1\n"


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1}', '{\n<<<<<<< HEAD\n"a": "b"\n}'])
def test_a_damaged_record_is_named_and_nothing_is_written(course, text):
    course.write("generated.json", text)
    before = course.files()
    with pytest.raises(CourseError, match=r"generated.json:\d+: damaged"):
        course.build()
    assert course.files() == before


def test_the_record_is_checked_too(course):
    course.replace("generated.json", f'"{LIBRARY}": "', f'"{LIBRARY}": "0')
    assert "does not know" in check(course.root)["drift"][0].what
    course.build()
    assert not any(check(course.root).values())


def test_check_advises_a_build_only_where_a_build_would_do_it(course):
    course.write("exercises/one.py", "solved = 1\n")
    (course.root / "exercises/one.ipynb").unlink()
    found = {p.path: p.way_out for p in check(course.root)["drift"]}
    assert "move it to a folder of your own" in found["exercises/one.py"]
    assert "course build one" in found["exercises/one.ipynb"]


# what is wrong: (file to edit, old, new, what the message must say)
MISTAKES = {
    "syntax": (TWO, "FOUR = double(2)", "FOUR = double(2", "01_two.py:18: syntax error"),
    "directive": (TWO, "#| export", "#| exprot", "did you mean `#| export`?"),
    "words": (TWO, "#| export\n", "#| export a b\n", "takes 0 or 1"),
    "late directive": (TWO, "# a constant", "\n#| hide", "after code"),
    "no module yet": (TWO, "#| default_exp later.use\n", "x = 1\n", "before any `#| default_exp`"),
    "wrong folder": (TWO, "#| default_exp", "#| exercise x\n#| default_exp", "solutions/"),
    "later chapter": (ONE, "print(double(2))", "import nanochat_lib.later.use", "a later chapter"),
    "same module": (TWO, "default_exp later.use", "default_exp numbers.double", "belongs to"),
    "module and folder": (TWO, "default_exp later.use", "default_exp numbers", "folder"),
    "no such chapter": ("course.toml", '"01_two"', '"01_tow"', "chapters/01_tow.py:1: listed"),
    "twice": ("course.toml", '"01_two"', '"02_one"', "course.toml:11: chapter '02_one'"),
    "stem": ("course.toml", '"01_two"', '"two"', "file is a stem such as"),
    "late": ("course.toml", "needs = []", 'needs = ["two"]', "two is no chapter above it"),
    "part": ("course.toml", 'part = "I"', 'part = "II"', "part is one of I, Workshop"),
    "level": ("course.toml", '"gentle"', '"easy"', "level one of gentle, steady, steep"),
    "asks": ("course.toml", 'asks = "who', 'ask = "who', "chapter '01_two': asks is None"),
    "manifest": ("course.toml", "minutes = 5", "minutes = ", "course.toml:24"),
    "field": ("course.toml", "minutes = 5", "hours = 1", "minutes is None"),
    "marks": ("solutions/one.py", "    ### END SOLUTION\n", "", "solutions/one.py"),
    "name": ("solutions/one.py", "exercise triple", "exercise quadruple", "quadruple"),
    "no cell": (ONE, "# %% [markdown]\n# # One", "x = 1\n# %% [markdown]\n# # One", "header"),
    "markdown": (ONE, "# It doubles", "It doubles", "start every line"),
    "marker": (ONE, "# %%\n#| default_exp numbers.double", "# %% code\n", "cell marker"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_names_its_place_and_the_way_out(course, monkeypatch, capsys, name):
    path, old, new, words = MISTAKES[name]
    course.replace(path, old, new)
    before = course.files()
    monkeypatch.chdir(course.root)
    assert main(["build", "--no-execute"]) == 2
    said = capsys.readouterr().err
    assert words in said and "way out: " in said, said
    assert course.files() == before
