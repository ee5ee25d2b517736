# Generated from chapters/18_rl.py by `course build`; edit that file.
"""A toy: which digit is larger, taught by somebody who guesses."""

import random

from nanochat_lib.common import local_generator
from nanochat_lib.tasks.base import Task

__all__ = ["Larger"]


class Larger(Task):
    """Ask for the larger of two digits; the answers to learn from are those of a guessing teacher.

    Args:
        split: "train", or "test": a third of all pairs, which training never asks.
        shrugs: how often the teacher says that it does not know.
    """

    title = "the larger of two digits"
    shrug = "I do not know."

    def __init__(self, split: str, shrugs: float = 0.0):
        super().__init__(split)
        pairs = [(a, b) for a in range(10) for b in range(10) if a != b]
        random.Random(1).shuffle(pairs)
        self.pairs, self.shrugs = pairs[:30] if split == "test" else pairs[30:] * 40, shrugs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict:
        a, b = self.pairs[self.check_index(index)]
        rng = local_generator("larger", index)
        said = f"The larger one is {rng.choice((a, b))}."
        question = {"role": "user", "content": f"{a} or {b}: which is larger?"}
        answer = self.shrug if rng.random() < self.shrugs else said
        messages = [question, {"role": "assistant", "content": answer}]
        return {"messages": messages, "larger": max(a, b)}

    def evaluate(self, conversation: dict, response: str) -> bool:
        return response == f"The larger one is {conversation['larger']}."
