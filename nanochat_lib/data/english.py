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
from nanochat_lib.tokenizer.tokenizer import Tokenizer

__all__ = [
    "DATA",
    "first_messages",
    "asked_words",
    "documentation",
    "real_words",
    "world_words",
    "Pieces",
    "word_pieces",
    "joined_word",
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
    """List English words; held out are a tenth of those that occur twice, and what the first messages ask."""
    counts, _ = documentation()
    words = sorted(word for word, count in counts.items() if count >= (2 if heldout else 1))
    return tuple(w for w in words if (is_heldout("word", w) or w in asked_words()) == heldout)


@cache
def world_words() -> tuple[str, ...]:
    """List the words of the world, lower case, but for what is held out."""
    words = {word.lower() for kind in WORDS.values() for word in kind}
    return tuple(sorted(words - asked_words() - set(real_words(heldout=True))))


Pieces = tuple[tuple[str, ...], tuple[str, ...]]


def word_pieces(tokenizer: Tokenizer) -> Pieces:
    """List the tokens in lower case that begin a word, without their space, and those that go on with one."""
    texts = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    starts = [text[1:] for text in texts if re.fullmatch(r" [a-z]{2,}", text)]
    return tuple(starts), tuple(text for text in texts if re.fullmatch(r"[a-z]+", text))


def joined_word(rng: random.Random, pieces: Pieces | None = None) -> str:
    """Make up a word out of the parts of others, or out of tokens, of which one may be repeated."""
    words = real_words() + world_words()
    while True:
        if pieces and rng.random() < 0.5:
            start, ends = rng.choice(pieces[0]), rng.choices(pieces[1], k=rng.choice((1, 1, 2)))
            word = start + ends[0] * rng.choice((1, 1, 1, 2, 2, 3)) + "".join(ends[1:])
        else:
            first, second = rng.choice(words), rng.choice(words)
            word = first[: rng.randint(1, len(first))] + second[rng.randrange(len(second)) :]
        if 3 <= len(word) <= 12 and not is_heldout("word", word) and word not in asked_words():
            return word


def spelled_word(rng: random.Random, pieces: Pieces | None = None) -> str:
    """Draw a word to spell in training: half of them real, the rest of the world, joined or made up."""
    kind = rng.random()
    if kind < 0.5:
        return rng.choice(real_words())
    if kind < 0.65:
        return rng.choice(world_words())
    return joined_word(rng, pieces) if kind < 0.93 else made_up_word(rng, heldout=False)
