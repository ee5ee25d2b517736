"""Cells: strict for authors, lenient for learners, and lines end where Python ends them."""

import json

import jupytext
import pytest

from nanochat_lib.course.cells import HEADER, lines_of, read_cells
from nanochat_lib.course.exercises import load_exercise
from nanochat_lib.course.exporter import export_chapter
from nanochat_lib.course.manifest import CourseError

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
