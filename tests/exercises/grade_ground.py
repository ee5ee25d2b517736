"""Grade the exercises of the ground."""

import errno
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock


def _near(rename, moved):
    """Wrap a rename as if every folder were a file system of its own, which /tmp often is."""

    def call(source, target, **options):
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, "a rename cannot leave its file system", str(source))
        moved.append(Path(target))
        return rename(source, target, **options)

    return call


def grade_publish_folder(module) -> None:
    """Whole or absent, in order, with parents; an existing folder is left as it is."""
    root = Path(tempfile.mkdtemp())
    path = root / "deep" / "er" / "step_1"

    def watched():
        for name in ("a", "b", "c"):
            assert not path.exists(), "the folder was visible before its last file was written"
            yield name, name.encode() * 1_000

    moved = []
    near = {name: _near(getattr(os, name), moved) for name in ("rename", "replace")}
    with mock.patch.multiple(os, **near):
        module.publish_folder(path, watched())
    assert path in moved, "the folder was copied into place: only a rename appears in one step"
    found = {file.name: file.read_bytes() for file in path.iterdir()}
    assert found == {name: name.encode() * 1_000 for name in "abc"}, f"files: {sorted(found)}"
    assert os.listdir(path.parent) == ["step_1"], "something else was left beside the folder"

    def breaks():
        yield "a", b"new"
        raise RuntimeError("the disk is full")

    try:
        module.publish_folder(root / "broken" / "step_2", breaks())
    except RuntimeError:
        pass
    else:
        raise AssertionError("an error in the middle was swallowed")
    left = [str(p.relative_to(root)) for p in (root / "broken").rglob("*")]
    assert not left, f"after a failure these were left: {left}"
    (path / "a").write_bytes(b"old")
    try:
        module.publish_folder(path, [("z", b"new")])
    except ValueError as error:
        assert "step_1" in str(error), f"the message names no folder: {error}"
    else:
        raise AssertionError("an existing folder was accepted")
    assert (path / "a").read_bytes() == b"old" and not (path / "z").exists()


def grade_split_of(module) -> None:
    """A fair share, fixed for each document, nested in the share, different for each seed."""
    texts = [f"page {i} ü" for i in range(4_000)]
    state = random.getstate()
    small = {t for t in texts if module.split_of(t, 0.1, 1) == "held_out"}
    large = {t for t in texts if module.split_of(t, 0.3, 1) == "held_out"}
    other = {t for t in texts if module.split_of(t, 0.1, 2) == "held_out"}
    assert random.getstate() == state, "the global generator was used"
    for share, found in ((0.1, small), (0.3, large), (0.1, other)):
        got = len(found) / len(texts)
        assert abs(got - share) < 0.025, f"asked for {share}, held out {got:.3f}"
    assert small < large, "a larger share must keep what was held out"
    expected = len(small) * len(other) / len(texts)
    assert len(small & other) < 3 * expected, "another seed draws nearly the same documents"
    assert {t for t in reversed(texts) if module.split_of(t, 0.1, 1) == "held_out"} == small
    assert {module.split_of(t, 0.0, 1) for t in texts} == {"train"}
    assert {module.split_of(t, 1.0, 1) for t in texts} == {"held_out"}
    for wrong in (-0.1, 1.5):
        try:
            module.split_of("page", wrong, 1)
        except ValueError:
            continue
        raise AssertionError(f"a share of {wrong} was accepted")
    sides = [_sides_in_another_process(module, seed) for seed in ("1", "2")]
    assert sides[0] == sides[1], "two processes put the same documents on different sides"


def _sides_in_another_process(module, salt: str) -> str:
    """Python salts the hash of a text anew in each process, which no run inside one can show."""
    asked = "\nprint([split_of(f'page {i}', 0.5, 1) for i in range(64)])"
    code = "\n\n".join(module.__cells__) + asked
    settings = os.environ | {"PYTHONHASHSEED": salt}
    done = subprocess.run(
        [sys.executable, "-c", code], env=settings, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, f"in another process: {done.stderr[-300:]}"
    return done.stdout


MUTANTS = {
    "publish_folder": [
        '''def publish_folder(path, files):
    """Work in the system's temporary folder, which may be another file system: no rename leaves it."""
    if path.exists():
        raise ValueError(f"{path} exists")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        temporary = Path(place, "whole")
        temporary.mkdir()
        for name, data in files:
            (temporary / name).write_bytes(data)
        os.rename(temporary, path)
''',
        '''def publish_folder(path, files):
    """Let shutil.move copy from another file system, file by file, in everybody's sight."""
    if path.exists():
        raise ValueError(f"{path} exists")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        temporary = Path(place, "whole")
        temporary.mkdir()
        for name, data in files:
            (temporary / name).write_bytes(data)
        shutil.move(temporary, path)
''',
        '''def publish_folder(path, files):
    """Write in place: visible too early."""
    if path.exists():
        raise ValueError(f"{path} exists")
    path.mkdir(parents=True)
    for name, data in files:
        (path / name).write_bytes(data)
''',
        '''def publish_folder(path, files):
    """Rename at the end, but leave the half-written folder behind."""
    if path.exists():
        raise ValueError(f"{path} exists")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name("." + path.name)
    temporary.mkdir()
    for name, data in files:
        (temporary / name).write_bytes(data)
    os.rename(temporary, path)
''',
        '''def publish_folder(path, files):
    """Replace what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name("." + path.name)
    temporary.mkdir()
    try:
        for name, data in files:
            (temporary / name).write_bytes(data)
        shutil.rmtree(path, ignore_errors=True)
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
''',
    ],
    "split_of": [
        '''def split_of(document, held_out, seed):
    """Call document.__hash__(), which each process salts in its own way."""
    if not 0 <= held_out <= 1:
        raise ValueError(f"{held_out}")
    place = f"{seed} {document}".__hash__() % 10_000
    return "held_out" if place < held_out * 10_000 else "train"
''',
        '''def split_of(document, held_out, seed):
    """Trust hash(), which is salted in each process."""
    if not 0 <= held_out <= 1:
        raise ValueError(f"{held_out}")
    return "held_out" if hash((document, seed)) % 10_000 < held_out * 10_000 else "train"
''',
        '''def split_of(document, held_out, seed):
    """Draw from a global generator: the side depends on the order."""
    if not 0 <= held_out <= 1:
        raise ValueError(f"{held_out}")
    import random

    return "held_out" if random.random() < held_out else "train"
''',
        '''def split_of(document, held_out, seed):
    """Forget the seed."""
    if not 0 <= held_out <= 1:
        raise ValueError(f"{held_out}")
    place = int(fingerprint(document), 16) / 16**16
    return "held_out" if place < held_out else "train"
''',
        '''def split_of(document, held_out, seed):
    """Let the share take part in the hash: a larger one frees documents."""
    if not 0 <= held_out <= 1:
        raise ValueError(f"{held_out}")
    place = int(fingerprint(document, held_out, seed), 16) / 16**16
    return "held_out" if place < held_out else "train"
''',
    ],
}
