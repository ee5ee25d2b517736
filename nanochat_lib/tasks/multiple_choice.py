# Generated from chapters/15_tasks.py by `course build`; edit that file.
"""Multiple choice: options with letters, and a grader that wants exactly one."""

import re
from abc import abstractmethod
from string import ascii_uppercase

from nanochat_lib.tasks.rows import RowTask

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


class MultipleChoice(RowTask):
    """Questions with lettered options; a subclass reads one row of its data set."""

    @abstractmethod
    def read_question(self, row: dict) -> tuple[str, list, int]:
        """Return the question, its options as they stand (unchecked), and the index of the right one."""

    def read_row(self, row: dict) -> dict:
        """Build the conversation; "letters" beside the messages lists what to choose from."""
        question, choices, answer = self.read_question(row)
        if not all(isinstance(choice, str) for choice in choices):
            raise ValueError(f"the options are {choices!r:.80}, expected text")
        if not 2 <= len(choices) <= 26 or not 0 <= answer < len(choices):
            raise ValueError(f"option {answer} of {len(choices)}, expected 2 to 26 options")
        letters = list(ascii_uppercase[: len(choices)])
        user = {"role": "user", "content": render_choices(question, choices)}
        messages = [user, {"role": "assistant", "content": letters[answer]}]
        return {"messages": messages, "letters": letters}

    @property
    def floor(self) -> float:
        """The accuracy of guessing: the mean of 1 / number of options."""
        return sum(1 / len(conversation["letters"]) for conversation in self) / len(self)

    def evaluate(self, conversation: dict, response: str) -> bool:
        """Compare the letter that the response settles on with the reference."""
        letter = extract_letter(response, conversation["letters"])
        return letter == conversation["messages"][-1]["content"]
