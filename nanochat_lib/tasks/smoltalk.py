# Generated from chapters/12_tasks.py by `course build`; edit that file.
"""SmolTalk: general conversations to train on."""

from pathlib import Path

from nanochat_lib.tasks.base import Task, validate_conversation
from nanochat_lib.tasks.rows import load_rows

__all__ = ["SmolTalk"]


class SmolTalk(Task):
    """General conversations of several turns, some with a system message; for training only.

    Args:
        split: "train" (460,000 conversations) or "test" (24,000).
        path: a local file with the hub's column messages.

    Source: Allal et al. 2025 (arXiv:2502.02737); hub: HuggingFaceTB/smol-smoltalk.
    """

    def __init__(self, split: str = "train", path: str | Path | None = None):
        super().__init__(split)
        self.rows = load_rows(path, "HuggingFaceTB/smol-smoltalk", None, split)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        """Return one conversation, checked; the error names the row."""
        messages = self.rows[self.check_index(index)]["messages"]
        try:
            return validate_conversation({"messages": messages})
        except ValueError as error:
            raise ValueError(f"row {index}: {error}") from error
