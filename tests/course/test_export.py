"""Exporting: cells to modules, and cells as jupytext reads them."""

import ast
from pathlib import Path

import jupytext
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lib.course.cells import HEADER, cell_ids, read_cells
from nanochat_lib.course.docs import documented_arguments
from nanochat_lib.course.exporter import export_chapter, format_python, free_names, split_imports
from nanochat_lib.course.layers import reachable
from nanochat_lib.course.manifest import CourseError

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob("chapters/*.py"), *ROOT.glob("solutions/*.py")])


def exported(*cells: str) -> dict[str, str]:
    text = HEADER + "\n# %% [markdown]\n# # A title: with a colon\n"
    text += "".join(f"\n# %%\n{cell}\n" for cell in cells)
    modules = export_chapter("chapters/00_x.py", read_cells(text, "x"))
    return format_python({f"{name}.py": source for name, source in modules.items()})


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_cells_agree_with_jupytext(path):
    ours = [(c.kind, c.source) for c in read_cells(path.read_text(encoding="utf-8"), path.name)]
    theirs = [(c.cell_type, c.source) for c in jupytext.read(path).cells]
    assert ours == theirs


def test_a_module_reads_as_if_written_by_hand():
    modules = exported(
        "#| default_exp a",
        "#| export\nimport os\nimport math",
        "print('not exported')",
        "#| export\n# Tau is pi, twice.\nTAU = 2 * math.pi\n_HIDDEN = 1",
        "#| export\nfrom math import pi\n\n@cache\ndef area(r):  # of a disc\n    return pi * r * r",
        "#| export\nfrom functools import cache",
    )
    assert modules == {
        "a.py": "# Generated from chapters/00_x.py by `course build`; edit that file.\n"
        '"""A title: with a colon."""\n\n'
        "import math\nfrom functools import cache\nfrom math import pi\n\n"
        '__all__ = ["TAU", "area"]\n\n'
        "# Tau is pi, twice.\nTAU = 2 * math.pi\n_HIDDEN = 1\n\n\n"
        "@cache\ndef area(r):  # of a disc\n    return pi * r * r\n"
    }


def test_names_of_another_module_are_imported():
    modules = exported(
        "#| default_exp a\n# What a is.",
        "#| export\nfrom math import tau\n\ndef half(x):\n    return x / 2",
        "#| default_exp b.c\n# What c\n# is.",
        "#| export\ndef circle(half_turns):\n    half_circle = half(tau)\n    return half_circle",
        "#| export a\nEND = 1",
    )
    assert '"""What a is."""' in modules["a.py"] and "END = 1" in modules["a.py"]
    assert '"""What c is."""' in modules["b.c.py"]
    assert "from math import tau\n\nfrom nanochat_lib.a import half\n" in modules["b.c.py"]


def test_local_names_are_not_mistaken_for_exported_ones():
    modules = exported(
        "#| default_exp a",
        "#| export\ndef half(x):\n    return x / 2",
        "#| export b\ndef other(half):\n    x = [half for half in (half, 2)]\n    return x",
    )
    assert "import" not in modules["b.py"]


def test_a_module_with_main_is_runnable():
    modules = exported("#| default_exp a", "#| export\ndef main():\n    return 0")
    assert modules["a.py"].endswith('if __name__ == "__main__":\n    raise SystemExit(main())\n')


def test_main_is_called_where_a_text_only_speaks_of_it():
    spoken = '#| export\ndef main():\n    """Run as __main__."""\n    return 0'
    modules = exported("#| default_exp a", spoken)
    assert modules["a.py"].endswith("    raise SystemExit(main())\n")
    by_hand = '#| export\ndef main():\n    return 0\n\n\nif __name__ == "__main__":\n    main()'
    assert exported("#| default_exp a", by_hand)["a.py"].count("__main__") == 1


def test_a_formatter_that_fails_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\nexit 2\n", encoding="utf-8")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(OSError, match="ruff could not"):
        exported("#| default_exp a", "#| export\nX = 1")


def test_a_heading_above_stands_in_for_a_purpose():
    text = (
        HEADER
        + "\n# %% [markdown]\n# # Title\n\n# %%\n#| default_exp a\n\n# %%\n#| export\nX = 1\n"
    )
    text += "\n# %% [markdown]\n# ```\n# # no heading\n# ```\n# ## The second part\n"
    text += "\n# %%\n#| export b\nY = 1\n"
    modules = export_chapter("x", read_cells(text, "x"))
    assert '"""Title."""' in modules["a"] and '"""The second part."""' in modules["b"]


def test_imports_take_the_comments_above_them_along():
    code = "# slow to load\nimport torch  # 2.9\n\n# a constant\nX = 1"
    assert split_imports(code) == (["# slow to load\nimport torch  # 2.9"], "# a constant\nX = 1")


def test_free_names_sees_through_every_scope():
    source = """
import a
def f(b, *, c=d):
    e = lambda g: g + h
    class K:
        i = j
        def m(self): return i
    return [k for k in a if b(k, c, e, K)] or len(f)
"""
    assert free_names(source) == {"d", "h", "j", "i"}


def test_reachable_follows_imports_to_the_end():
    graph = {"a": set(), "b": {"a"}, "c": {"b"}, "d": set()}
    assert reachable({"c"}, graph) == {"a", "b", "c"}
    assert reachable({""}, graph) == {"a", "b", "c", "d"}
    assert reachable({"nowhere"}, graph) == set()


def test_documented_arguments_reads_our_docstrings():
    docstring = "Do it.\n\nArgs:\n    x: first,\n        with note: more.\n    a, b: two.\n\nReturns:\n    y: no."
    assert list(documented_arguments(docstring)) == ["x", "a", "b"]


sources = st.lists(st.sampled_from(["x = 1", "x = 2", "", "# a"]), min_size=1, max_size=6)


@settings(max_examples=30)
@given(sources)
def test_cell_ids_are_stable_unique_and_depend_on_content_only(parts):
    text = "".join(f"# %%\n{part}\n\n" for part in parts)
    ids = cell_ids(read_cells(text, "x"))
    assert len(set(ids)) == len(ids)
    assert ids == cell_ids(read_cells("# %% [markdown]\n# above\n\n" + text, "x"))[1:]


def test_every_generated_module_parses_and_lists_only_what_it_defines():
    for path in (ROOT / "nanochat_lib").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        listed = [
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
        ]
        bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        bound |= {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        assert all(name in bound for names in listed for name in names), path


def test_names_bound_in_blocks_are_public_and_can_be_borrowed():
    modules = exported(
        "#| default_exp a",
        "#| export\nimport sys\n\nif sys.version_info > (3,):\n    WIDE = 1\nelse:\n    WIDE = 2",
        "#| export\ntry:\n    import tomllib\n    FAST = True\nexcept ImportError:\n    tomllib = None\n    FAST = False",
        "#| export\nTABLE = {}\nTABLE['x'] = 1\n(FIRST, *REST) = (1, 2)",
        "#| default_exp b",
        "#| export\nBOTH = (WIDE, FAST)",
    )
    assert '__all__ = ["WIDE", "FAST", "TABLE", "FIRST", "REST"]' in modules["a.py"]
    assert "from nanochat_lib.a import FAST, WIDE" in modules["b.py"]


@pytest.mark.parametrize(
    "source",
    [
        "import os; SEP = os.sep",
        "import os; SEP = os.sep  # of paths",
        "import os, sys; SEP = os.sep; END = sys.maxsize",
        "from os import (\n    sep,\n); SEP = sep",
        "SEP = 1; import os\nOTHER = os.sep",
    ],
)
def test_statements_that_share_a_line_with_an_import_stay(source):
    [text] = exported("#| default_exp a", "#| export\n" + source).values()
    ours, theirs = {}, {}
    exec(text, ours)
    exec(source, theirs)
    assert {n: ours.get(n) for n in theirs if n.isupper()} == {
        n: v for n, v in theirs.items() if n.isupper()
    }


def test_a_borrowed_import_brings_the_submodule_that_is_used():
    modules = exported(
        "#| default_exp a",
        "#| export\nimport xml.etree.ElementTree\n\nTREE = xml.etree.ElementTree.Element",
        "#| export\nimport xml.dom\n\nNODE = xml.dom.Node",
        "#| default_exp b",
        "#| export\nOTHER = xml.dom.Node",
    )
    assert "import xml.dom\n" in modules["b.py"]


@pytest.mark.parametrize("line", ["#| export", "# NBVAL_SKIP", "# NBVAL_CHECK_OUTPUT", "#| hide"])
def test_a_directive_inside_a_string_is_text(line):
    [text] = exported("#| default_exp a", f'#| export\nTEXT = """\n{line}\n"""').values()
    names: dict = {}
    exec(text, names)
    assert names["TEXT"] == f"\n{line}\n"


@pytest.mark.parametrize("line", ["from os import *", "from .x import y", "from . import x"])
def test_imports_whose_names_cannot_be_known_are_named(line):
    with pytest.raises(
        CourseError, match="(?s)an export cell has `from .*way out: name the module"
    ):
        exported("#| default_exp a", "#| export\nimport math\n\n" + line)
