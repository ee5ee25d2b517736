"""Cells: strict for authors, lenient for learners, and lines end where Python ends them."""

import json
from textwrap import dedent

import jupytext
import pytest

from nanochat_lib.course.cells import HEADER, lines_of, read_cells
from nanochat_lib.course.exercises import BEGIN, load_exercise, strip_solutions
from nanochat_lib.course.exporter import export_chapter
from nanochat_lib.course.manifest import CourseError, read_manifest
from nanochat_lib.course.planner import make_plan

EXERCISE = """
# %% [markdown]
# # Exercises

# %%
#| exercise triple
def triple(x):
    return 3 * x

# %%
assert triple(2) == 7, "a visible check is not run by a grader"
"""


@pytest.mark.parametrize(
    "character", ["\f", "\v", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
)
def test_a_line_ends_where_python_ends_it(character):
    body = (
        f'# %%\n#| default_exp x\n\n# %%\n#| export\nTEXT = """one{character}two"""\n\n\ndef f(:\n'
    )
    with pytest.raises(CourseError, match=r"x.py:15: syntax error"):
        export_chapter("x.py", read_cells(HEADER + body, "x.py"))
    cells = read_cells(HEADER + body.replace("\n\n\ndef f(:\n", "\n"), "x.py")
    names: dict = {}
    exec(export_chapter("x.py", cells)["x"], names)
    assert names["TEXT"] == f"one{character}two"
    assert lines_of(f"a{character}b\nc\r\nd\re\n") == [f"a{character}b", "c", "d", "e"]


@pytest.mark.parametrize("marker", ["#%%", "#  %%", "#%% [markdown]", "# %%x", "# %% tags=[1]"])
def test_what_authors_may_not_write_is_never_swallowed(marker):
    text = HEADER + "\n# %%\nx = 1\n" + marker + "\ny = 2\n"
    with pytest.raises(CourseError, match="x.py:10: cell marker"):
        read_cells(text, "x.py")


MARKS = {
    "no space": ("# %%", "#%%"),
    "tags": ("# %%\n#| exercise", '# %% tags=["mine"]\n#| exercise'),
    "title": ("# %%\n#| exercise", "# %% My title\n#| exercise"),
    "collapsed": ("# %% [markdown]", "# %% [markdown] jp-MarkdownHeadingCollapsed=true"),
    "raw": ("# %% [markdown]", "# %% [raw]"),
    "windows": ("\n", "\r\n"),
}


@pytest.mark.parametrize("name", MARKS)
@pytest.mark.parametrize(
    "head", ["", HEADER, "\ufeff" + HEADER, "# -*- coding: utf-8 -*-\n" + HEADER]
)
def test_what_a_learner_saves_grades(tmp_path, name, head):
    path = tmp_path / "my [v2] x.py"
    path.write_bytes((head + EXERCISE).replace(*MARKS[name]).encode("utf-8"))
    assert load_exercise(path).triple(2) == 6


def test_a_file_that_jupyterlab_saves_through_jupytext_grades(tmp_path):
    notebook = jupytext.reads(HEADER + EXERCISE, fmt="py:percent")
    notebook.metadata["kernelspec"] = {"display_name": "x", "language": "python", "name": "x"}
    notebook.cells[1].metadata["tags"] = ["a"]
    notebook.cells[0].metadata["jp-MarkdownHeadingCollapsed"] = True
    (tmp_path / "x.py").write_text(jupytext.writes(notebook, "py:percent"), encoding="utf-8")
    assert load_exercise(tmp_path / "x.py").triple(2) == 6
    (tmp_path / "x.ipynb").write_text(json.dumps(dict(notebook)), encoding="utf-8")
    assert load_exercise(tmp_path / "x.ipynb").triple(2) == 6


def test_a_learners_mistake_is_at_the_learners_line(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(EXERCISE.replace("return 3 * x", "return 3 *"), encoding="utf-8")
    with pytest.raises(SyntaxError) as error:
        load_exercise(path)
    assert (error.value.filename, error.value.lineno) == (str(path), 8)
    path.write_bytes(b"# %%\nx = 'caf\xe9'\n")
    with pytest.raises(ValueError, match="x.py is not UTF-8 at byte 13"):
        load_exercise(path)


def test_a_byte_order_mark_is_no_text_and_another_encoding_is_named(course):
    for name in ("course.toml", "chapters/00_one.py", "solutions/one.py"):
        path = course.root / name
        whole = path.read_bytes()
        path.write_bytes(b"\xef\xbb\xbf" + whole)
        assert not make_plan(course.root).problems, name
        path.write_bytes(whole + b"# caf\xe9\n")
        try:
            problems = make_plan(course.root).problems
        except CourseError as error:  # course.toml alone stops everything
            problems = error.problems
        assert (name, "not UTF-8") in {(p.path, p.what) for p in problems}
        path.write_bytes(whole)


def test_the_library_on_disk_may_be_broken(course):
    (course.root / "nanochat_lib/numbers/double.py").write_bytes(b"x = '\xff'\n")
    broken = course.root / "chapters/00_one.py"
    broken.write_text(broken.read_text(encoding="utf-8") + "\n# %%\n(\n", encoding="utf-8")
    assert [p.path for p in make_plan(course.root).problems] == ["chapters/00_one.py"]


@pytest.mark.parametrize("header", ["[[ exercise ]]", "[[exercise]] # one", "  [[exercise]]"])
def test_every_exercise_is_read_however_its_table_is_written(course, header):
    manifest = course.root / "course.toml"
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(text.replace("[[exercise]]", header), encoding="utf-8")
    found = read_manifest(course.root).exercises
    assert [(e.name, text.split("\n")[e.line - 1]) for e in found] == [("triple", "[[exercise]]")]
    manifest.write_text(
        text.partition("[[exercise]]")[0] + "[exercise]\nname = 1\n", encoding="utf-8"
    )
    with pytest.raises(CourseError, match="write ..exercise.."):
        read_manifest(course.root)


def test_an_inline_exercise_is_read_too(course):
    manifest = course.root / "course.toml"
    before, _, table = manifest.read_text(encoding="utf-8").partition("[[exercise]]")
    inline = ", ".join(table.strip().split("\n"))
    manifest.write_text(f"exercise = [{{{inline}}}]\n{before}", encoding="utf-8")
    assert [exercise.name for exercise in read_manifest(course.root).exercises] == ["triple"]


@pytest.mark.parametrize("line", ["#| default_exp class", "#| export a.None", "#| exercise def"])
def test_a_keyword_is_no_name(line):
    with pytest.raises(CourseError, match="is no name"):
        read_cells(f"{HEADER}\n# %%\n{line}\n", "x.py")


def test_solution_marks_inside_a_string_are_text():
    text = dedent('''
        # %%
        #| exercise triple
        def triple(x):
            """Show the marks.

            ### BEGIN SOLUTION
            ### END SOLUTION
            """
            ### BEGIN SOLUTION
            return 3 * x
            ### END SOLUTION
        ''')
    stub = strip_solutions("solutions/one.py", "one", HEADER + text)
    assert stub.count(BEGIN) == 1 and "return 3 * x" not in stub and "NotImplementedError" in stub
