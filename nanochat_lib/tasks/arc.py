# Generated from chapters/12_tasks.py by `course build`; edit that file.
"""ARC: science questions of American school exams."""

from pathlib import Path

from nanochat_lib.tasks.multiple_choice import MultipleChoice
from nanochat_lib.tasks.rows import load_rows

__all__ = ["ARC"]


class ARC(MultipleChoice):
    """Science questions of American school exams, grades 3 to 9.

    Args:
        subset: "ARC-Easy" or "ARC-Challenge" (questions that simple retrieval got wrong).
        split: "train", "validation" or "test".
        path: a local file with the hub's columns question, choices {text, label}, answerKey.

    Source: Clark et al. 2018 (arXiv:1803.05457); hub: allenai/ai2_arc.
    """

    def __init__(
        self, subset: str = "ARC-Easy", split: str = "train", path: str | Path | None = None
    ):
        super().__init__(load_rows(path, "allenai/ai2_arc", subset, split), split)

    def read_row(self, row: dict) -> tuple[str, list[str], int]:
        """Find the answer by its label: some rows count 1, 2, 3, 4 instead of A, B, C, D."""
        labels = row["choices"]["label"]
        if row["answerKey"] not in labels:
            raise ValueError(f"answer {row['answerKey']!r} is not among the labels {labels}")
        return row["question"], row["choices"]["text"], labels.index(row["answerKey"])
