"""Notebooks: valid, clean of one machine and one run, and really executed."""

import json
from pathlib import Path

import nbformat
import pytest

from nanochat_lib.course.cells import HEADER, read_cells
from nanochat_lib.course.manifest import CourseError
from nanochat_lib.course.notebooks import (
    clean_outputs,
    make_notebook,
    notebook_text,
    run_notebook,
    source_stamp,
    stored_outputs,
)

SCRIPT = """# %% [markdown]
# # A notebook

# %%
import os, sys, warnings
import nanochat_lib.marker
print("one")
warnings.warn("noise")
print(os.getcwd(), object())
nanochat_lib.marker.__file__

# %%
# alt: a dot at the origin
import matplotlib.pyplot as plt
plt.plot([0], [0], "o")
plt.show()

# %%
# NBVAL_SKIP
# needs a GPU
raise SystemError

# %%
os.environ["HF_HUB_OFFLINE"], os.path.basename(os.environ["NANOCHAT_BASE_DIR"])
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    (folder / "nanochat_lib").mkdir()
    (folder / "nanochat_lib/__init__.py").touch()
    (folder / "nanochat_lib/marker.py").touch()
    return folder


@pytest.fixture(scope="module")
def outputs(library):
    return run_notebook("x.py", read_cells(SCRIPT, "x.py"), library)


def test_a_kernel_runs_the_given_library_in_an_empty_folder(outputs):
    assert outputs[0] == [
        {
            "output_type": "stream",
            "name": "stdout",
            "text": ["one\n", ". <object object at 0x...>\n"],
        },
        {
            "output_type": "execute_result",
            "metadata": {},
            "data": {"text/plain": ["'nanochat/nanochat_lib/marker.py'"]},
            "execution_count": None,
        },
    ]
    assert outputs[3][0]["data"]["text/plain"] == ["('1', 'base')"]


def test_figures_carry_their_words_and_skipped_cells_nothing(outputs):
    figure = next(output for output in outputs[1] if "image/png" in output["data"])
    assert figure["metadata"] == {"image/png": {"alt": "a dot at the origin"}}
    assert outputs[2] == []


def test_a_notebook_is_valid_and_round_trips(outputs, tmp_path):
    cells = read_cells(SCRIPT, "x.py")
    text = notebook_text(make_notebook(cells, outputs, "stamp"))
    nbformat.validate(nbformat.reads(text, as_version=4))
    assert stored_outputs(json.loads(text)) == outputs
    counts = [c["execution_count"] for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    assert counts == [1, 2, 3, 4]
    nbformat.write(nbformat.reads(text, as_version=4), tmp_path / "x.ipynb")
    assert (tmp_path / "x.ipynb").read_text(
        encoding="utf-8"
    ) == text  # Jupyter would save the same bytes


def test_a_failing_cell_is_named_by_its_line(library):
    cells = read_cells("# %%\nx = 1\n\n# %%\nx += 1\nx / 0\n", "chapters/00_x.py")
    with pytest.raises(CourseError, match=r"chapters/00_x.py:6: ZeroDivisionError: division"):
        run_notebook("chapters/00_x.py", cells, library)


def test_outputs_of_two_runs_are_cleaned_to_the_same():
    def stream(text, name="stdout"):
        return {"output_type": "stream", "name": name, "text": text}

    first = [stream("a"), stream("warning", "stderr"), stream("b <X at 0x7f3a2b1c4d5e>\n")]
    second = [stream("ab "), stream("<X at 0x7f0000000000>\n")]
    assert clean_outputs(first, None, {}) == clean_outputs(second, None, {})
    widget = {
        "output_type": "display_data",
        "metadata": {},
        "data": {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "w"},
    }
    assert clean_outputs([widget], None, {}) == []


def test_the_stamp_follows_code_and_library_but_not_prose():
    cells = read_cells("# %% [markdown]\n# a\n\n# %%\nx = 1\n", "x")
    prose = read_cells("# %% [markdown]\n# b\n\n# %%\nx = 1\n", "x")
    code = read_cells("# %% [markdown]\n# a\n\n# %%\nx = 2\n", "x")
    stamp = source_stamp(cells, {"m": "y"})
    assert stamp == source_stamp(prose, {"m": "y"})
    assert stamp != source_stamp(code, {"m": "y"}) and stamp != source_stamp(cells, {"m": "z"})


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[2].glob("*/*.ipynb")), ids=lambda path: path.name
)
def test_committed_notebooks_are_valid(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.display_name == "Python 3"
    assert path.stat().st_size < 1_500_000, "draw fewer or smaller figures"


NEUTRAL = [
    # HOME, printed, stored
    ("/", "3/4 and /usr", "3/4 and /usr"),
    ("/app", "/application /app/x /app. /app", "/application ~/x ~. ~"),
    ("/app", "/srv/app/x /my-app /app-2 /app.txt", "/srv/app/x /my-app /app-2 /app.txt"),
    ("/home/me", "see /home/me/x and /home/me2", "see ~/x and /home/me2"),
    ("/home/a+b (c)", "/home/a+b (c)/x", "~/x"),
    ("", "a b", "a b"),
    ("~", "~ 3~4", "~ 3~4"),
    ("/home/me", "0xdeadbeef01 at 0xdeadbeef01", "0xdeadbeef01 at 0xdeadbeef01"),
    ("/home/me", "<A at 0x7f3a2b1c4d5e> 0x7f3a2b1c4d5e", "<A at 0x...> 0x7f3a2b1c4d5e"),
    ("/home/me", "<bound f of <A at 0x7f3a2b1c4d5e>>", "<bound f of <A at 0x...>>"),
    ("/home/me", "a < b at 0x7f3a2b1c4d5e", "a < b at 0x7f3a2b1c4d5e"),
]


@pytest.mark.parametrize(("home", "printed", "stored"), NEUTRAL)
def test_only_places_and_addresses_are_edited(home, printed, stored):
    shown = [{"output_type": "stream", "name": "stdout", "text": printed}]
    assert clean_outputs(shown, None, {home: "~"})[0]["text"] == [stored]


def test_a_line_of_a_notebook_ends_at_a_newline_only():
    text = "a\fb\x0b\x1c\x85c\u2028d\ne"
    shown = [{"output_type": "stream", "name": "stdout", "text": text}]
    assert clean_outputs(shown, None, {})[0]["text"] == [text[:-1], "e"]


def test_another_kernel_of_the_same_name_is_not_taken(tmp_path, monkeypatch, library):
    folder = tmp_path / "kernels" / "python3"
    folder.mkdir(parents=True)
    argv = ["/no/such/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"})
    (folder / "kernel.json").write_text(spec, encoding="utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    cells = read_cells(HEADER + "\n# %%\nimport sys\n\nprint(sys.executable)\n", "x.py")
    assert run_notebook("x.py", cells, library)[0][0]["text"] == [".venv/bin/python\n"]
