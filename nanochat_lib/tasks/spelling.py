# Generated from chapters/15_tasks.py by `course build`; edit that file.
"""Spelling and counting letters: a capability from a generator."""

import random
from functools import cache
from pathlib import Path

from nanochat_lib.common import local_generator
from nanochat_lib.data.words import is_heldout, made_up_word
from nanochat_lib.tasks.base import Task
from nanochat_lib.tasks.gsm8k import final_number

__all__ = [
    "read_words",
    "draw_word",
    "count_aloud",
    "count_answer",
    "counted_aloud",
    "QUESTIONS",
    "SpellingBee",
    "SimpleSpelling",
]


@cache
def read_words(path: str | Path, split: str) -> tuple[str, ...]:
    """Read the words of one split from a file, one a line; a to z only, 3 letters or more."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    clean = dict.fromkeys(line.strip().lower() for line in lines)
    words = [word for word in clean if len(word) > 2 and word.isascii() and word.isalpha()]
    chosen = tuple(word for word in words if is_heldout("word", word) == (split == "test"))
    if not chosen:
        raise ValueError(f"{path} has no word for the {split} split: one word a line, a to z")
    return chosen


def draw_word(rng: random.Random, split: str, path: str | Path | None = None) -> str:
    """Draw a word of a split, from a file or made up."""
    if path is not None:
        return rng.choice(read_words(path, split))
    return made_up_word(rng, split == "test")


def count_aloud(word: str, letter: str) -> str:
    """Spell a word and number the hits. Example: "noon", "o" -> "n o1 o2 n"."""
    steps, hits = [], 0
    for character in word:
        hits += character == letter
        steps.append(f"{character}{hits}" if character == letter else character)
    return " ".join(steps)


def count_answer(word: str, letter: str) -> list[dict]:
    """Answer how often a letter occurs: the working, a check with the calculator, the number.

    The letter is named right before the working, so that each step compares with what stands near.
    """
    count = word.count(letter)
    opening = f"I count {letter} in {word}: {count_aloud(word, letter)}. Check: "
    return [
        {"type": "text", "text": opening},
        {"type": "python", "text": f'"{word}".count("{letter}")'},
        {"type": "python_output", "text": str(count)},
        {"type": "text", "text": f"\n#### {count}"},
    ]


def counted_aloud(word: str, letter: str, response: str) -> bool:
    """Decide whether a response has the right letters, in either case, running count and final number."""
    right = final_number(response) == word.count(letter)
    return right and f": {count_aloud(word, letter)}." in response.lower()


QUESTIONS = (
    "How many {letter} are in {word}?",
    "How often does {letter} occur in {word}?",
    "Count the letter {letter} in {word}.",
    "In the word {word}, how many times do you see {letter}?",
    "Find every {letter} in {word}. How many are there?",
    "{word}: number of {letter}?",
)


class SpellingBee(Task):
    """Count a letter in a word: spell it aloud, then check with the calculator.

    Args:
        size: conversations; number i is always the same one.
        split: "train" or "test"; they share no word.
        path: a word list, one a line; None makes words up.
        seed: another seed gives other conversations.
    """

    def __init__(
        self,
        size: int = 1000,
        split: str = "train",
        path: str | Path | None = None,
        seed: int = 0,
    ):
        if split not in ("train", "test") or size < 0:
            raise ValueError(f"split {split!r} of size {size}: expected train or test, size >= 0")
        super().__init__(split)
        self.size, self.path, self.seed = size, path, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        """Build conversation `index`; "word" and "letter" stand beside the messages."""
        rng = local_generator("spelling bee", self.seed, self.split, self.check_index(index))
        word = draw_word(rng, self.split, self.path)
        letter = rng.choice(word) if rng.random() < 0.8 else rng.choice("aeiostrln")
        question = rng.choice(QUESTIONS).format(word=word, letter=letter)
        user = {"role": "user", "content": question}
        messages = [user, {"role": "assistant", "content": count_answer(word, letter)}]
        return {"messages": messages, "word": word, "letter": letter}

    def evaluate(self, conversation: dict, response: str) -> bool:
        """Compare the final number with the true count."""
        return final_number(response) == conversation["word"].count(conversation["letter"])

    def evaluate_working(self, conversation: dict, response: str) -> bool:
        """Ask for the right number and the right spelling: a lucky guess fails."""
        return counted_aloud(conversation["word"], conversation["letter"], response)


class SimpleSpelling(SpellingBee):
    """Spell a word, nothing else; arguments as for SpellingBee."""

    def __getitem__(self, index: int) -> dict:
        """Build conversation `index`; "word" stands beside the messages."""
        rng = local_generator("simple spelling", self.seed, self.split, self.check_index(index))
        word = draw_word(rng, self.split, self.path)
        question = rng.choice(("Spell {}.", "How do you spell {}?", "Give me the letters of {}."))
        user = {"role": "user", "content": question.format(word)}
        answer = {"role": "assistant", "content": f"I spell {word}: {' '.join(word)}."}
        return {"messages": [user, answer], "word": word}

    def evaluate(self, conversation: dict, response: str) -> bool:
        """Compare what follows the last colon, letter by letter."""
        return response.rpartition(":")[2].strip().rstrip(".").split() == list(conversation["word"])

    def evaluate_working(self, conversation: dict, response: str) -> bool:
        """The answer is the working."""
        return self.evaluate(conversation, response)
