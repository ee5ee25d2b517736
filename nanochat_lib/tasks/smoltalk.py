# Generated from chapters/15_tasks.py by `course build`; edit that file.
"""SmolTalk: general conversations to train on."""

from pathlib import Path

from nanochat_lib.tasks.rows import RowTask

__all__ = ["SmolTalk"]


class SmolTalk(RowTask):
    """General conversations of several turns, some with a system message; for training only.

    Args:
        split: "train" (460,000 conversations) or "test" (24,000).
        path: a local file with the hub's column messages.

    Source: Allal et al. 2025 (arXiv:2502.02737); hub: HuggingFaceTB/smol-smoltalk.
    """

    def __init__(self, split: str = "train", path: str | Path | None = None):
        super().__init__(path, "HuggingFaceTB/smol-smoltalk", None, split)

    def read_row(self, row: dict) -> dict:
        """Return the row's messages, as they are."""
        return {"messages": row.get("messages")}
