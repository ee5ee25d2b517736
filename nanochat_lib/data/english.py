# Generated from chapters/16_tinyworld.py by `course build`; edit that file.
"""Real words, the words that training spells, and the first messages that are kept for a test."""

import random
import re
from collections import Counter
from functools import cache
from pathlib import Path

import nanochat_lib
from nanochat_lib.data.documents import python_docs
from nanochat_lib.data.tinyworld import WORDS
from nanochat_lib.data.words import is_heldout, made_up_word

__all__ = [
    "DATA",
    "first_messages",
    "asked_words",
    "documentation",
    "real_words",
    "world_words",
    "spelled_word",
]

DATA = Path(nanochat_lib.__file__).parents[1] / "data"


@cache
def first_messages() -> tuple[tuple[str, str], ...]:
    """Read the kept-back messages: pairs of a kind, such as "sum 42", and a message.

    Raises:
        ValueError: a line of the file is no such pair, with its number.
    """
    path, rows = DATA / "first_messages.tsv", []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        kind, tab, message = line.partition("\t")
        if tab and kind and message:
            rows.append((kind, message))
        elif line:
            raise ValueError(f"{path}, line {number}: {line!r} is not KIND<tab>MESSAGE")
    return tuple(rows)


@cache
def asked_words() -> frozenset[str]:
    """List the words that the first messages ask to spell or to count letters in."""
    parts = [kind.split() for kind, _ in first_messages()]
    place = {"spell": 1, "length": 1, "count": 2}
    return frozenset(part[place[part[0]]] for part in parts if part[0] in place)


@cache
def documentation() -> tuple[dict[str, int], tuple[str, ...]]:
    """Read Python's documentation: its lower-case words of 3 to 12 letters, counted, and plain sentences."""
    words, sentences = Counter(), set()
    for text in python_docs():
        words.update(re.findall(r"(?<![\w`.'_])[a-z]{3,12}(?![\w`'_(])", text))
        sentences.update(re.findall(r"(?:(?<=\. )|(?<=\n\n))[A-Z][a-z][^.\n>`|=_]{15,90}\.", text))
    return words, tuple(sorted(sentences))


@cache
def real_words(heldout: bool = False) -> tuple[str, ...]:
    """List English words that occur twice or more; held out are a tenth and what the first messages ask."""
    counts, _ = documentation()
    words = sorted(word for word, count in counts.items() if count >= 2)
    return tuple(w for w in words if (is_heldout("word", w) or w in asked_words()) == heldout)


@cache
def world_words() -> tuple[str, ...]:
    """List the words of the world, lower case, but for what is held out."""
    words = {word.lower() for kind in WORDS.values() for word in kind}
    return tuple(sorted(words - asked_words() - set(real_words(heldout=True))))


def spelled_word(rng: random.Random) -> str:
    """Draw a word to spell in training: half of them real, the rest of the world or made up."""
    kind = rng.random()
    if kind < 0.55:
        return rng.choice(real_words())
    return rng.choice(world_words()) if kind < 0.8 else made_up_word(rng, heldout=False)
