# Generated from chapters/15_tasks.py by `course build`; edit that file.
"""A task: conversations with a grader; checks, slices and mixtures of them."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from itertools import accumulate

import torch

from nanochat_lib.tokenizer.conversation import MARKERS

__all__ = [
    "content_text",
    "part_text",
    "Task",
    "TaskSlice",
    "TaskSequence",
    "share_out",
    "TaskMixture",
]


def content_text(content: str | list[dict]) -> str:
    """Write a message's content as one text, with the markers of tool calls and their outputs.

    Example: a python part "6*7" -> "<|python_start|>6*7<|python_end|>".
    A decoded response has the same form, so one grader reads both.
    """
    if isinstance(content, str):
        return content
    return "".join(part_text(part) for part in content)


def part_text(part: dict) -> str:
    """Write one part as text, between its markers."""
    start, end, _ = MARKERS[part["type"]]
    return start + part["text"] + end


class Task(ABC):
    """A data set of conversations together with the grader of an answer.

    A subclass gives `__len__`, `__getitem__` and, if its answers can be graded, `evaluate`.
    `title` says what it asks, `floor` is the accuracy of guessing (None where guessing gets nothing), and
    `floor_name` says what guessing means. Where `must_end` is true,
    an answer that was cut off counts as wrong.
    """

    title = ""
    floor: float | None = None
    floor_name = "chance"
    must_end = False

    def __init__(self, split: str = "train"):
        """Remember which part of the data this is: "train", "test", ..."""
        self.split = split

    @abstractmethod
    def __len__(self) -> int:
        """Count the conversations."""

    @abstractmethod
    def __getitem__(self, index: int) -> dict:
        """Build conversation number `index`; it ends with the reference answer."""

    def evaluate(self, conversation: dict, response: str) -> bool:
        """Decide whether a response is right; `conversation` is what `__getitem__` returned.

        Raises:
            ValueError: the task is for training only.
        """
        raise ValueError(f"{type(self).__name__} has no grader: it is for training only")

    def reward(self, conversation: dict, response: str) -> float:
        """Score a response for reinforcement learning: 1.0 if right, else 0.0."""
        return float(self.evaluate(conversation, response))

    def slice(self, start: int = 0, stop: int | None = None, step: int = 1) -> "TaskSlice":
        """View the rows `start:stop:step` of this task as a task."""
        return TaskSlice(self, start, stop, step)

    def check_index(self, index: int) -> int:
        """Return a valid index; negative ones raise too, so that `for c in task` ends."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of a task with {len(self)} conversations")
        return index


class TaskSlice(Task):
    """The rows `start:stop:step` of another task, graded by that task."""

    def __init__(self, task: Task, start: int = 0, stop: int | None = None, step: int = 1):
        super().__init__(task.split)
        self.task, self.title, self.must_end = task, task.title, task.must_end
        self.floor, self.floor_name = task.floor, task.floor_name
        self.rows = range(len(task))[start:stop:step]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.task[self.rows[self.check_index(index)]]

    def evaluate(self, conversation: dict, response: str) -> bool:
        return self.task.evaluate(conversation, response)

    def reward(self, conversation: dict, response: str) -> float:
        return self.task.reward(conversation, response)


class TaskSequence(Task):
    """Several tasks one after another, in order: a curriculum."""

    def __init__(self, tasks: list[Task], split: str = "train"):
        if not tasks:
            raise ValueError("a sequence or mixture needs at least one task")
        super().__init__(split)
        self.tasks = list(tasks)
        self.ends = list(accumulate(len(task) for task in self.tasks))

    def __len__(self) -> int:
        return self.ends[-1]

    def locate(self, index: int) -> tuple[int, int]:
        """Find (number of the task, index in it) of one conversation, without building it."""
        self.check_index(index)
        which = bisect_right(self.ends, index)
        return which, index - (self.ends[which - 1] if which else 0)

    def __getitem__(self, index: int) -> dict:
        which, inner = self.locate(index)
        return self.tasks[which][inner]


def share_out(size: int, weights: list[int | float]) -> list[int]:
    """Cut `size` into whole numbers proportional to weights that add up to it exactly.

    Example: 10 by [1, 1, 1] -> [3, 4, 3].

    Raises:
        ValueError: a weight is negative, or all are 0.
    """
    if any(not weight >= 0 for weight in weights) or not 0 < sum(weights) < float("inf"):
        raise ValueError(f"weights must be finite, none negative, one positive: got {weights}")
    cuts = [0, *(round(size * part / sum(weights)) for part in accumulate(weights))]
    return [high - low for low, high in zip(cuts, cuts[1:])]


class TaskMixture(TaskSequence):
    """Several tasks shuffled into one, the same way every time.

    Without weights every conversation comes once. `weights` alone are repetitions: 2 shows a task
    twice, 0.5 shows every second conversation. With `size`, weights are shares of `size`
    conversations.

    Args:
        tasks: the tasks to mix; an empty one must have share 0.
        weights: one number a task, none negative.
        size: conversations in the mixture.
        seed: of the shuffle.
    """

    def __init__(
        self,
        tasks: list[Task],
        weights: list[int | float] | None = None,
        size: int | None = None,
        seed: int = 0,
        split: str = "train",
    ):
        super().__init__(tasks, split)
        weights = [1.0] * len(tasks) if weights is None and size is None else weights
        weights = [float(len(task)) for task in tasks] if weights is None else list(weights)
        if len(weights) != len(tasks):
            raise ValueError(f"{len(weights)} weights for {len(tasks)} tasks")
        if size is None:
            size = round(sum(weight * len(task) for weight, task in zip(weights, tasks)))
            weights = [weight * len(task) for weight, task in zip(weights, tasks)]
        self.counts = share_out(size, weights)
        for k, (count, task) in enumerate(zip(self.counts, tasks)):
            if count and not len(task):
                raise ValueError(f"task {k} ({type(task).__name__}) is empty but has a weight")
        self.ends = list(accumulate(self.counts))
        self.order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))

    def locate(self, index: int) -> tuple[int, int]:
        """Find (number of the task, index in it): whole passes, then an evenly spread rest."""
        self.check_index(index)
        which, draw = super().locate(int(self.order[index]))
        rows, count = len(self.tasks[which]), self.counts[which]
        whole = count - count % rows
        return which, draw % rows if draw < whole else (draw - whole) * rows // (count - whole)
