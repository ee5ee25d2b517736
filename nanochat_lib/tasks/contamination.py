# Generated from chapters/16_tinyworld.py by `course build`; edit that file.
"""Find test questions in training text."""

import re
from collections.abc import Iterable, Iterator

from nanochat_lib.tasks.base import Task

__all__ = ["words_of", "contamination", "training_texts"]


def words_of(text: str) -> list[str]:
    """Cut a text into lower-case words and numbers."""
    return re.findall(r"\w+", text.lower())


def contamination(texts: Iterable[str], tasks: dict[str, Task]) -> list[str]:
    """List the test questions that occur in training text, ignoring case and punctuation.

    Args:
        texts: training documents and messages.
        tasks: the tests; the first message of each conversation is the question.

    Returns:
        The questions found, each once, sorted.
    """
    questions: dict[tuple[str, ...], list[tuple[list[str], str]]] = {}
    for task in tasks.values():
        for i in range(len(task)):
            question = task[i]["messages"][0]["content"]
            words = words_of(question)
            questions.setdefault(tuple(words[:3]), []).append((words, question))
    found = set()
    for text in texts:
        words = words_of(text)
        for start in range(len(words) - 2):
            for wanted, question in questions.get(tuple(words[start : start + 3]), ()):
                if words[start : start + len(wanted)] == wanted:
                    found.add(question)
    return sorted(found)


def training_texts(task: Task) -> Iterator[str]:
    """Yield every message of a task's conversations as text."""
    for i in range(len(task)):
        for message in task[i]["messages"]:
            content = message["content"]
            yield content if isinstance(content, str) else " ".join(p["text"] for p in content)
