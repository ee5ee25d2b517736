"""A tiny course in a temporary folder: two chapters, one exercise, built without a kernel."""

import shutil
from pathlib import Path
from textwrap import dedent

import pytest

from nanochat_lib.course.builder import build
from nanochat_lib.course.cells import HEADER

MANIFEST = """\
title = "a tiny course"
parts = ["I", "Workshop"]

[[chapter]]
file = "00_one"
part = "I"
asks = "what is twice x?"
level = "gentle"
needs = []

[[chapter]]
file = "01_two"
part = "I"
asks = "who uses it?"
level = "steady"
needs = ["one"]

[profile.small]
steps = 3

[[exercise]]
chapter = "one"
name = "triple"
minutes = 5
importance = 3
hints = ["what is three times x?", "multiply", "the operator *"]
"""

ONE = '''
# %% [markdown]
# # One: the first chapter
#
# It doubles numbers.

# %%
#| default_exp numbers.double

# %%
#| export
import math


# %%
#| export
def double(x: float) -> float:
    """Double a number.

    Args:
        x: any number.
    """
    return math.fsum([x, x])


# %%
# NBVAL_CHECK_OUTPUT
print(double(2))

# %%
#| default_exp numbers.names
# Words for numbers.


# %%
#| export
def name_of_double(x: float) -> str:
    """Say what twice a number is."""
    return f"twice {x} is {double(x)}"
'''

TWO = """
# %% [markdown]
# # Two: the second chapter

# %%
#| default_exp later.use

# %%
#| export
from nanochat_lib.numbers.double import double

FOUR = double(2)  # a constant

# %%
# NBVAL_CHECK_OUTPUT
print(FOUR)

# %%
# alt: a line that rises from 0 to 1
# plt.plot([0, 1])
"""

SOLUTIONS = '''
# %% [markdown]
# # Exercises: one

# %%
import math

# %% [markdown]
# ## triple


# %%
#| exercise triple
def triple(x: float) -> float:
    """Return three times x."""
    ### BEGIN SOLUTION
    return math.fsum([x, x, x])
    ### END SOLUTION


# %%
assert triple(2) == 6
'''

GRADER = """
def grade_triple(module) -> None:
    assert module.triple(2) == 6


MUTANTS = {"triple": ["def triple(x): return x", "def triple(x): return 2 * x"]}
"""


class TinyCourse:
    """The folder, with short names for what tests do to it."""

    def __init__(self, root: Path):
        self.root = root
        self.ran: list[str] = []

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text, encoding="utf-8")

    def read(self, path: str) -> str:
        return (self.root / path).read_text(encoding="utf-8")

    def replace(self, path: str, old: str, new: str) -> None:
        text = self.read(path)
        assert old in text, f"{path} does not hold {old!r}"
        self.write(path, text.replace(old, new, 1))

    def run(self, path, cells, library):
        """Stand in for the kernel: every code cell prints how long it is."""
        self.ran.append(path)
        sizes = [len(cell.source) for cell in cells if cell.kind == "code"]
        stream = {"output_type": "stream", "name": "stdout"}
        return [[{**stream, "text": [f"{size} characters\n"]}] for size in sizes]

    def build(self, *slugs: str, **options) -> list[str]:
        return build(self.root, list(slugs), run=self.run, say=lambda line: None, **options)

    def files(self) -> dict[str, bytes]:
        found = (p for p in self.root.rglob("*") if p.is_file())
        return {p.relative_to(self.root).as_posix(): p.read_bytes() for p in found}


def _written(root: Path) -> TinyCourse:
    course = TinyCourse(root)
    course.write("course.toml", MANIFEST)
    course.write("chapters/00_one.py", HEADER + ONE)
    course.write("chapters/01_two.py", HEADER + TWO)
    course.write("solutions/one.py", HEADER + SOLUTIONS)
    course.write("tests/exercises/grade_one.py", dedent(GRADER).lstrip())
    return course


@pytest.fixture
def unbuilt(tmp_path):
    return _written(tmp_path)


@pytest.fixture(scope="session")
def _built_once(tmp_path_factory):
    course = _written(tmp_path_factory.mktemp("course"))
    course.build()
    return course.root


@pytest.fixture
def course(_built_once, tmp_path):
    """A freshly built tiny course; each test gets a copy to spoil."""
    shutil.copytree(_built_once, tmp_path, dirs_exist_ok=True)
    return TinyCourse(tmp_path)
