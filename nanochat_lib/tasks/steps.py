# Generated from chapters/18_contact.py by `course build`; edit that file.
"""Word problems of two steps: the task that is left for reinforcement learning."""

import random
import re

from nanochat_lib.data.phrases import as_typed, phrases
from nanochat_lib.data.tinyworld import World
from nanochat_lib.data.words import is_heldout
from nanochat_lib.tasks.base import TaskSlice
from nanochat_lib.tasks.contact import OPERATIONS, any_number, cast, worked
from nanochat_lib.tasks.tinyworld import TinyWorldTask, exchange

__all__ = ["TwoSteps", "CHOOSING", "two_step_tests"]


class TwoSteps(TinyWorldTask):
    """Ask a problem in which something happens twice; the answer calls the calculator for each step."""

    title = "word problems of two steps"
    floor = 0.0
    floor_name = "guessing"

    def make(self, rng: random.Random) -> dict:
        first, second = rng.choices(OPERATIONS[:2], k=2)
        result = -1
        while result < 0:
            a, b, between = first.draw(rng, rng.choice((9, 20, 60)), self.heldout)
            c = any_number(rng, rng.choice((9, 20, 60)))
            result = between + c if second.sign == "+" else between - c
        lists = ["scene", *("more" if step.sign == "+" else "less" for step in (first, second))]
        while True:
            story = [rng.choice(phrases("problems", name)) for name in lists]
            if is_heldout("story", *story) == self.heldout:
                break
        ask = rng.choice(phrases("problems", "now" if second.sign == "+" else "left"))
        names = cast(rng)
        question = " ".join(
            piece.format(a=a, b=number, **names)
            for piece, number in zip([*story, ask], (0, b, c, 0))
        )
        calls = worked(f"{a}{first.sign}{b}", between, "")[:2]
        calls += worked(f"{between}{second.sign}{c}", result, f"The answer is {result}.")
        question = as_typed(rng, question, slips=0.02)
        return {"messages": exchange(question, calls), "result": result}

    def evaluate(self, conversation: dict, response: str) -> bool:
        """Decide whether the only number said after the last call is the result."""
        said = response.rpartition("<|output_end|>")[2]
        return re.findall(r"-?[0-9]+(?:[.,:/][0-9]+)*", said) == [str(conversation["result"])]


CHOOSING = 160  # held-out questions that may choose a checkpoint; what is reported is none of them


def two_step_tests(world: World, size: int) -> tuple[TaskSlice, TaskSlice]:
    """Return the held-out questions that choose a checkpoint, and `size` others that measure it."""
    tests = TwoSteps(world, "test", CHOOSING + size)
    return tests.slice(0, CHOOSING), tests.slice(CHOOSING)
