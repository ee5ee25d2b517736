# Generated from chapters/15_tasks.py by `course build`; edit that file.
"""Made-up words, and the rule that gives every key its side of a split."""

import random
import zlib

__all__ = ["any_word", "is_heldout", "made_up_word"]


def any_word(rng: random.Random) -> str:
    """Make up a pronounceable word of 4 to 7 letters."""
    word = "".join(
        rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.choice((2, 2, 3)))
    )
    return word + rng.choice(("", "l", "m", "n", "r", "s", "t"))


def is_heldout(*key: object) -> bool:
    """Assign a fixed tenth of all keys to the tests, by checksum.

    Example: is_heldout("word", "banana") -> the same answer on every machine.
    """
    return zlib.crc32(repr(key).encode()) % 10 == 0


def made_up_word(rng: random.Random, heldout: bool) -> str:
    """Make up a word of 4 to 7 letters, from the test's tenth or from the rest."""
    while True:
        word = any_word(rng)
        if is_heldout("word", word) == heldout:
            return word
