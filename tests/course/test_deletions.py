"""Nothing in the tree deletes or replaces a file that it cannot prove to be its own.

Every use of a deleting or replacing call stands here with its proof; a new one fails until it has one.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CALLS = {
    "rmtree",
    "unlink",
    "rmdir",
    "rename",
    "renames",
    "replace",
    "remove",
    "removedirs",
    "move",
}

PROOFS = {
    "nanochat_lib/common.py": {
        "os.replace(temporary, path)": "the caller names the file to write, and proves it there",
        "temporary.unlink(missing_ok=True)": "created just before, with a random name and mode x",
        "path.unlink(missing_ok=True)": "remove_files: the caller lists the names that it wrote",
        "path.rmdir()": "fails on a folder that is not empty",
    },
    "nanochat_lib/training/checkpoint.py": {
        "os.replace(final, replaced)": "a rename; only our three files are removed from it later",
        "os.replace(temporary, final)": "final was moved aside; a folder with files refuses",
    },
    "nanochat_lib/data/documents.py": {
        "os.replace(Path(place, name), folder / name)": "every old shard carries our mark",
        "path.unlink()": "every old shard carries our mark: is_ours looked at all of them before",
    },
    "nanochat_lib/data/parquet.py": {
        "os.replace(temporary, path)": "write_shards calls it in a folder that it just made",
    },
    "nanochat_lib/serving/hugging_face.py": {
        "os.replace(whole, folder)": "folder was not there; one with files would refuse",
    },
    "nanochat_lib/course/builder.py": {
        "(root / name).unlink()": "generated.json has it, and obstacles() found its hash unchanged",
        "(root / name).parent.rmdir()": "only where nothing is left in it",
    },
    "rustbpe/bench/ideas.py": {
        "shutil.rmtree(source, ignore_errors=True)": "the copy that the benchmark makes for itself",
    },
    "rustbpe/bench/run.py": {
        "unfinished.rename(corpus)": "the benchmark's own corpus in its own cache folder",
    },
    "solutions/ground.py": {
        "os.rename(temporary, path)": "a rename onto a folder with files fails",
        "shutil.rmtree(temporary, ignore_errors=True)": "the hidden folder made just before",
    },
}


def deleting_calls(source: str) -> set[str]:
    """Find calls that delete or replace files; str.replace and list.remove are told apart."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name, owner = node.func.attr, ast.unparse(node.func.value)
            modules = owner in ("os", "shutil")
            of_a_path = name in ("unlink", "rmdir", "rmtree", "rename") or (
                name == "replace" and len(node.args) == 1 and not node.keywords
            )
            if name in CALLS and owner != "dataclasses" and (modules or of_a_path):
                found.add(ast.unparse(node))
    return found


def test_every_deletion_has_a_proof():
    folders = ("nanochat_lib", "solutions", "exercises", "rustbpe/bench")
    found = {}
    for path in sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py")):
        calls = deleting_calls(path.read_text(encoding="utf-8"))
        if calls:
            found[path.relative_to(ROOT).as_posix()] = calls
    assert found == {path: set(proofs) for path, proofs in PROOFS.items()}


def test_the_walk_sees_what_it_looks_for():
    source = (
        "import os, shutil\nPath(p).unlink()\nshutil.rmtree(p)\nos.replace(a, b)\np.replace(b)\n"
    )
    assert len(deleting_calls(source + "'a'.replace('b', 'c')\n[1].remove(1)\n")) == 4


def test_chapters_delete_only_in_folders_that_they_made():
    """What a chapter exports is in the library; what it shows works below a temporary folder."""
    for path in sorted((ROOT / "chapters").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        exported = {call for proofs in PROOFS.values() for call in proofs}
        if deleting_calls(source) - exported:
            assert "tempfile" in source, path.name


def test_scripts_remove_an_environment_only_with_its_mark():
    setup = (ROOT / ".ci/setup").read_text(encoding="utf-8")
    first = setup.index("rm -rf .venv")
    assert setup.index("did not make it") < first
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in make.splitlines():
        if re.search(r"rm -rf.*\.venv", line):
            assert ".venv/.made-by-nanochat-course" in line


def text_without_encoding(source: str) -> list[int]:
    """Find calls that read or write text in whatever encoding the locale has."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg for keyword in node.keywords}
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        reads = name == "read_text" and not node.args
        opens = isinstance(node.func, ast.Name) and name == "open"
        binary = any("b" in str(getattr(argument, "value", "")) for argument in node.args[1:2])
        process = name in ("run", "Popen", "check_output") and given & {
            "text",
            "universal_newlines",
        }
        if (reads or name == "write_text" or process or (opens and not binary)) and (
            "encoding" not in given
        ):
            lines.append(node.lineno)
    return lines


def test_no_text_is_read_or_written_in_the_encoding_of_the_locale():
    folders = ("chapters", "solutions", "tests", "rustbpe/bench", "nanochat_lib")
    for path in sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py")):
        found = text_without_encoding(path.read_text(encoding="utf-8"))
        assert not found, f"{path.relative_to(ROOT)}, lines {found}: say encoding='utf-8'"
    wrong = (
        "p.read_text()\np.write_text('x')\nopen(p)\nopen(p, 'w')\nsubprocess.run(c, text=True)\n"
    )
    right = "open(p, 'rb')\np.read_text(encoding='utf-8')\nsubprocess.run(c, encoding='utf-8')\n"
    assert text_without_encoding(wrong + right) == [1, 2, 3, 4, 5]
