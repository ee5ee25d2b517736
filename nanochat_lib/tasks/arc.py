# Generated from chapters/15_tasks.py by `course build`; edit that file.
"""ARC: science questions of American school exams."""

from pathlib import Path

from nanochat_lib.tasks.multiple_choice import MultipleChoice
from nanochat_lib.tasks.rows import required

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
        super().__init__(path, "allenai/ai2_arc", subset, split)

    def read_question(self, row: dict) -> tuple[str, list, int]:
        """Find the answer by its label: some rows count 1, 2, 3, 4 instead of A, B, C, D."""
        question, choices, answer = required(row, question=str, choices=dict, answerKey=str)
        texts, labels = required(choices, text=list, label=list)
        if answer not in labels:
            raise ValueError(f"answer {answer!r} is not among the labels {labels}")
        return question, texts, labels.index(answer)
