# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: the ground
#
# Two small tools that the rest of the course would miss.

# %%
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from nanochat_lib.common import fingerprint

# %% [markdown]
# ## publish_folder
#
# A checkpoint is several files that belong together: weights, optimizer state, a description.
# `atomic_write` protects each of them and not the set. A process killed between two files leaves
# new weights beside an old optimizer.
#
# Write `publish_folder(path, files)`. Afterwards `path` is a folder that holds exactly the given
# files. Until the last of them is written, `path` does not exist. If something fails half-way,
# nothing is left behind. If `path` exists already, raise a `ValueError` that names it, and touch
# nothing.


# %%
#| exercise publish_folder
def publish_folder(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Create a folder with these files, whole or not at all.

    Args:
        path: the folder to appear; its parents are created where missing.
        files: pairs of a file name and its content, consumed once, in order.

    Raises:
        ValueError: the path exists.
    """
    raise NotImplementedError("exercise ground.publish_folder")


# %%
def check_publish_folder() -> None:
    """Publish two files, and look for the folder while the second is on its way."""
    path = Path(tempfile.mkdtemp()) / "runs" / "step_000100"

    def files() -> Iterable[tuple[str, bytes]]:
        yield "model", b"weights"
        assert not path.exists(), "the folder is visible before it is complete"
        yield "meta.json", b"{}"

    publish_folder(path, files())
    found = {file.name: file.read_bytes() for file in path.iterdir()}
    assert found == {"model": b"weights", "meta.json": b"{}"}, f"got {found}"
    assert [folder.name for folder in path.parent.iterdir()] == ["step_000100"], (
        "what is left over?"
    )


check_publish_folder()

# %% [markdown]
# ## split_of
#
# A held-out document must stay held out: also when the corpus grows next month, arrives in another
# order, or is read by another process. Shuffling and cutting breaks all three, because a document's
# side depends on all the others.
#
# Write `split_of(document, held_out, seed)` so that the side depends on the document and the seed
# alone. Over many documents the share on the "held_out" side is `held_out`; another seed draws
# another split. A larger share must *add* documents to the held-out side and never free one.


# %%
#| exercise split_of
def split_of(document: str, held_out: float, seed: int) -> str:
    """Say on which side of a split a document belongs.

    Args:
        document: the text.
        held_out: the share of documents to hold out, from 0 to 1.
        seed: names the split.

    Returns:
        "held_out" or "train".

    Raises:
        ValueError: the share lies outside 0 to 1.
    """
    raise NotImplementedError("exercise ground.split_of")


# %%
def check_split_of() -> None:
    """Count the held-out share, and grow the corpus."""
    texts = [f"document {i}" for i in range(5_000)]
    sides = {text: split_of(text, held_out=0.1, seed=1) for text in texts}
    share = sum(side == "held_out" for side in sides.values()) / len(texts)
    assert 0.08 < share < 0.12, f"got a share of {share}"
    again = [split_of(text, held_out=0.1, seed=1) for text in reversed(texts)]
    assert again == list(sides.values())[::-1], "does the side depend on the order?"


check_split_of()
