# Generated from chapters/15_tasks.py by `course build`; edit that file.
"""MMLU: exam questions in 57 subjects."""

from pathlib import Path

from nanochat_lib.tasks.multiple_choice import MultipleChoice
from nanochat_lib.tasks.rows import required

__all__ = ["MMLU"]


class MMLU(MultipleChoice):
    """Exam questions in 57 subjects, four options each.

    Args:
        subset: "all", or one subject such as "astronomy".
        split: "dev", "validation", "test", or "auxiliary_train" (about 100,000 from other exams).
        path: a local file with the hub's columns question, subject, choices, answer.

    Source: Hendrycks et al. 2021 (arXiv:2009.03300); hub: cais/mmlu.
    """

    def __init__(self, subset: str = "all", split: str = "test", path: str | Path | None = None):
        if split == "auxiliary_train":  # the hub keeps it as a configuration of its own
            super().__init__(path, "cais/mmlu", "auxiliary_train", "train")
        else:
            super().__init__(path, "cais/mmlu", subset, split)

    def read_question(self, row: dict) -> tuple[str, list, int]:
        """Return the row's fields; auxiliary_train wraps them once more, in "train"."""
        question, choices, answer = required(
            row.get("train") or row, question=str, choices=list, answer=int
        )
        return question, choices, answer
