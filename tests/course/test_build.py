"""Building: only what changed, whole or not at all, and the same bytes every time."""

import pytest

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
    course.write("nanochat_lib/old.py", "# Generated from chapters/09_old.py by `course build`\n")
    assert "nanochat_lib/old.py" in course.build()
    assert course.build() == [] and not any(check(course.root).values())


def test_everything_of_a_removed_chapter_goes(course):
    (course.root / TWO).unlink()
    course.replace("course.toml", ', "01_two"', "")
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


@pytest.mark.parametrize("survivors", range(8))
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
    assert all(undisturbed[path] == data for path, data in unbuilt.files().items())
    monkeypatch.undo()
    unbuilt.build()
    assert unbuilt.files() == undisturbed


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
    "numbers": ("course.toml", '"00_one", "01_two"', '"01_two", "00_one"', "course.toml:2"),
    "manifest": ("course.toml", "minutes = 5", "minutes = ", "course.toml:10"),
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
