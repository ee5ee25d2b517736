# Generated from chapters/12_tasks.py by `course build`; edit that file.
"""Multiple choice: options with letters, and a grader that wants exactly one."""

import re
from abc import abstractmethod
from string import ascii_uppercase

from nanochat_lib.tasks.base import Task, validate_conversation

__all__ = ["render_choices", "extract_letter", "MultipleChoice"]


def render_choices(question: str, choices: list[str]) -> str:
    """Write a question and its options, a letter after each: "Which? / - iron (A) / - gold (B)"."""
    options = [f"- {choice} ({letter})" for choice, letter in zip(choices, ascii_uppercase)]
    return "\n".join([question, *options, "Answer with the letter."])


def extract_letter(response: str, letters: list[str]) -> str | None:
    """Read the one letter that a response settles on, or None.

    Example: "B", "(B)." and "Fe(II), so (B)" -> "B"; "Because" and "b" -> None.

    A response that names two different options in brackets has not settled, and gets None.
    """
    bare = response.strip().rstrip(".").strip("()")
    if bare in letters:
        return bare
    named = set(re.findall(r"\(([A-Z])\)", response)) & set(letters)
    return named.pop() if len(named) == 1 else None


class MultipleChoice(Task):
    """Questions with lettered options; a subclass reads one row of its data set."""

    def __init__(self, rows, split: str):
        super().__init__(split)
        self.rows = rows

    @abstractmethod
    def read_row(self, row: dict) -> tuple[str, list[str], int]:
        """Return the question, its options, and the index of the right one."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        """Build the conversation; "letters" beside the messages lists what to choose from."""
        question, choices, answer = self.read_row(self.rows[self.check_index(index)])
        if not 2 <= len(choices) <= 26 or not 0 <= answer < len(choices):
            raise ValueError(
                f"row {index}: option {answer} of {len(choices)}, expected 2 to 26 options"
            )
        letters = list(ascii_uppercase[: len(choices)])
        user = {"role": "user", "content": render_choices(question, choices)}
        messages = [user, {"role": "assistant", "content": letters[answer]}]
        return validate_conversation({"messages": messages, "letters": letters})

    @property
    def floor(self) -> float:
        """The accuracy of guessing: the mean of 1 / number of options."""
        counts = [len(self.read_row(row)[1]) for row in self.rows]
        return sum(1 / count for count in counts) / len(counts)

    def evaluate(self, conversation: dict, response: str) -> bool:
        """Compare the letter that the response settles on with the reference."""
        letter = extract_letter(response, conversation["letters"])
        return letter == conversation["messages"][-1]["content"]
