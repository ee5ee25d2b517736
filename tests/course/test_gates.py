"""Every gate is fed something wrong, and seen to fail at the right place."""

import json

import pytest
from tiny_tables import TABLE_TWO

from nanochat_lib.course.check import check
from nanochat_lib.course.cli import main

ONE, TWO = "chapters/00_one.py", "chapters/01_two.py"
SOLUTIONS, GRADER = "solutions/one.py", "tests/exercises/grade_one.py"
LIBRARY = "nanochat_lib/numbers/double.py"


def test_a_built_course_passes(course):
    assert {
        gate: [str(p) for p in found] for gate, found in check(course.root).items() if found
    } == {}


# what is spoiled: (gate, the file it must name, a word of its message, file to edit, old, new)
EDITS = {
    "exported line": ("drift", LIBRARY, "differs", LIBRARY, "fsum([x, x])", "fsum([x, x, 0])"),
    "package file": (
        "drift",
        "nanochat_lib/numbers/__init__.py",
        "differs",
        "nanochat_lib/numbers/__init__.py",
        "Exported",
        "exported",
    ),
    "chapter without a build": ("drift", LIBRARY, "differs", ONE, "Double a number", "Double it"),
    "exercise": ("drift", "exercises/one.py", "differs", "exercises/one.py", "three times", "3 x"),
    "exercise notebook": (
        "drift",
        "exercises/one.ipynb",
        "differs",
        "exercises/one.ipynb",
        "three times",
        "3 x",
    ),
    "notebook input": (
        "run",
        "chapters/00_one.ipynb",
        "differs",
        "chapters/00_one.ipynb",
        "print(double(2))",
        "print(double(3))",
    ),
    "solution notebook": (
        "run",
        "solutions/one.ipynb",
        "differs",
        "solutions/one.ipynb",
        "assert triple(2)",
        "assert triple(1)",
    ),
    "code newer than its notebook": (
        "run",
        "chapters/00_one.ipynb",
        "older",
        ONE,
        "print(double(2))",
        "print(double(3))",
    ),
    "library newer than a notebook": (
        "run",
        "chapters/01_two.ipynb",
        "older",
        ONE,
        "fsum([x, x])",
        "fsum([x, x, 0])",
    ),
    "header": (
        "sources",
        ONE,
        "header",
        ONE,
        "display_name: Python 3",
        "display_name: Python 3.11",
    ),
    "layout": ("format", ONE, "ruff format", ONE, "print(double(2))", "print( double(2) )"),
    "later import": (
        "sources",
        ONE,
        "a later chapter",
        ONE,
        "print(double(2))",
        "from nanochat_lib.later.use import FOUR",
    ),
    "import of nothing": (
        "sources",
        TWO,
        "which no chapter exports",
        TWO,
        "print(FOUR)",
        "import nanochat_lib.nowhere",
    ),
    "directive": ("sources", TWO, "did you mean `#| export`", TWO, "#| export", "#| exprot"),
    "syntax": ("sources", TWO, "syntax error", TWO, "FOUR = double(2)", "FOUR = double(2"),
    "unlisted chapter": ("sources", TWO, "not listed", "course.toml", TABLE_TWO, ""),
    "missing chapter": (
        "sources",
        "chapters/02_three.py",
        "missing",
        "course.toml",
        TABLE_TWO,
        TABLE_TWO + "\n" + TABLE_TWO.replace("01_two", "02_three"),
    ),
    "cycle": (
        "sources",
        ONE,
        "import each other",
        ONE,
        "    return math.fsum([x, x])",
        "    name_of_double(x)\n    return math.fsum([x, x])",
    ),
    "code in an export": ("sources", TWO, "runs code", TWO, "FOUR = double(2)", "print(1)"),
    "name from nowhere": ("sources", TWO, "uses triple", TWO, "double(2)", "triple(2)"),
    "figure without words": (
        "cells",
        TWO,
        "alt text",
        TWO,
        "# alt: a line",
        "plt.show()\n# a line",
    ),
    "skip without reason": (
        "cells",
        ONE,
        "without a reason",
        ONE,
        "# NBVAL_CHECK_OUTPUT\n",
        "# NBVAL_CHECK_OUTPUT\n# NBVAL_SKIP\n",
    ),
    "nothing compared": ("cells", ONE, "compares nothing", ONE, "# NBVAL_CHECK_OUTPUT\n", ""),
    "argument names": ("docs", ONE, "documents ['y']", ONE, "x: any number", "y: any number"),
    "no docstring": (
        "docs",
        ONE,
        "no docstring",
        ONE,
        '    """Say what twice a number is."""\n',
        "",
    ),
    "unlisted exercise": (
        "exercises",
        SOLUTIONS,
        "not listed",
        "course.toml",
        'name = "triple"',
        'name = "quadruple"',
    ),
    "exercise without solution": (
        "exercises",
        "course.toml",
        "no `#| exercise quadruple`",
        "course.toml",
        'name = "triple"',
        'name = "quadruple"',
    ),
    "missing hint": ("exercises", "course.toml", "2 hints", "course.toml", ', "multiply"', ""),
    "importance": (
        "exercises",
        "course.toml",
        "importance 9",
        "course.toml",
        "importance = 3",
        "importance = 9",
    ),
    "minutes": (
        "exercises",
        "course.toml",
        "0 minutes",
        "course.toml",
        "minutes = 5",
        "minutes = 0",
    ),
    "one mutant": (
        "exercises",
        "course.toml",
        "1 mutants",
        GRADER,
        ', "def triple(x): return 2 * x"',
        "",
    ),
    "no grader": (
        "exercises",
        "course.toml",
        "no grade_triple",
        GRADER,
        "grade_triple",
        "grade_it",
    ),
    "leak": (
        "exercises",
        "exercises/one.py",
        "gives away",
        SOLUTIONS,
        "# ## triple",
        "# ## triple\n#\n# return math.fsum([x, x, x])",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_gate_fails(course, name):
    gate, path, words, edited, old, new = EDITS[name]
    course.replace(edited, old, new)
    found = [problem for problem in check(course.root)[gate] if problem.path == path]
    assert any(words in problem.what for problem in found) or any(
        words in problem.way_out for problem in found
    ), f"{gate} says {[str(problem) for problem in found]}"


def test_the_place_is_exact(course):
    course.replace(LIBRARY, "fsum([x, x])", "fsum([x, x, 0])")
    problem = check(course.root)["drift"][0]
    assert "fsum([x, x, 0])" in course.read(LIBRARY).splitlines()[problem.line - 1]
    assert "move it to a folder of your own" in problem.way_out
    course.replace(TWO, "FOUR = double(2)", "FOUR = double(2))")
    problem = next(p for p in check(course.root)["sources"] if p.path == TWO)
    assert "double(2))" in course.read(TWO).splitlines()[problem.line - 1]


@pytest.mark.parametrize(
    "path",
    ["nanochat_lib/extra.py", "exercises/extra.py", "chapters/extra.ipynb", "solutions/x.txt"],
)
def test_a_file_without_a_source_is_drift(course, path):
    course.write(path, "x = 1\n")
    assert [problem.path for problem in check(course.root)["drift"]] == [path]


def test_the_web_page_is_the_one_asset(course):
    course.write("nanochat_lib/serving/static/index.html", "<p>hello</p>")
    assert check(course.root)["drift"] == []


@pytest.mark.parametrize("path", ["chapters/00_one.ipynb", "exercises/one.ipynb", LIBRARY])
def test_a_missing_file_is_found(course, path):
    (course.root / path).unlink()
    found = [problem for problems in check(course.root).values() for problem in problems]
    assert any(problem.path == path and "missing" in problem.what for problem in found)


def test_outputs_edited_by_hand_are_found(course):
    notebook = json.loads(course.read("chapters/00_one.ipynb"))
    cell = next(cell for cell in notebook["cells"] if cell.get("outputs"))
    cell["outputs"][0]["text"] = ["a better result\n"]
    course.write("chapters/00_one.ipynb", json.dumps(notebook))
    assert "outputs were edited" in check(course.root)["run"][0].what


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ({"output_type": "error", "ename": "E", "evalue": "", "traceback": []}, "error"),
        ({"output_type": "stream", "name": "stdout", "text": ["see /home/me/x\n"]}, "one machine"),
    ],
)
def test_errors_and_local_paths_in_outputs_are_found(course, output, words):
    def run(path, cells, library):
        return [[output] for cell in cells if cell.kind == "code"]

    course.run = run
    course.build(force=True)
    assert words in check(course.root)["run"][0].what


def test_long_functions_modules_and_wrong_shapes_are_found(course):
    lines = "".join(f"    x = x + {n}\n" for n in range(40))
    long = (
        f'\n\n# %%\n#| export\ndef long(x: float) -> float:\n    """Add."""\n{lines}    return x\n'
    )
    course.write(ONE, course.read(ONE) + long)
    constants = "\n".join(f"C{n} = {n}" for n in range(300))
    course.write(TWO, course.read(TWO) + f"\n# %%\n#| export\n{constants}\n")
    shaped = '''

# %%
#| export
def shaped(x: "Tensor", y: Float[Tensor, "B T"]) -> None:
    """Do nothing.

    Args:
        x: a tensor, shape (B, C).
        y: a tensor, shape (B, C).
    """
'''
    course.write(ONE, course.read(ONE) + shaped)
    course.replace(
        ONE,
        "import math\n",
        "import math\n\nfrom jaxtyping import Float\nfrom torch import Tensor\n",
    )
    said = " ".join(problem.what for problem in check(course.root)["docs"])
    assert "long has 42 lines" in said
    assert "300 is the most" in said
    assert "shaped: y is documented as (B, C)" in said and "shaped: x" not in said


def test_the_command_lists_every_problem_and_fails(course, monkeypatch, capsys):
    monkeypatch.chdir(course.root)
    assert main(["check"]) == 0
    assert "no problems" in capsys.readouterr().out
    course.replace(LIBRARY, "fsum([x, x])", "fsum([x, x, 0])")
    course.replace("exercises/one.py", "three times", "3 x")
    assert main(["check"]) == 1
    said = capsys.readouterr().out
    assert f"[drift] {LIBRARY}:" in said and "exercises/one.py:" in said and "2 problems" in said
