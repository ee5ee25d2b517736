# Generated from chapters/18_contact.py by `course build`; edit that file.
"""What people type: phrases from a file, the ways they are typed, and real words."""

import random
import tomllib
import zlib
from functools import cache

from nanochat_lib.data.english import DATA

__all__ = ["phrase_table", "phrases", "slip", "as_typed"]


@cache
def phrase_table() -> dict[str, dict[str, tuple[str, ...]]]:
    """Read every list of phrases: section -> name -> phrases."""
    table = tomllib.loads((DATA / "phrases.toml").read_text(encoding="utf-8"))
    return {
        section: {name: tuple(text.strip().split("\n")) for name, text in lists.items()}
        for section, lists in table.items()
    }


@cache
def phrases(section: str, name: str, heldout: bool = False) -> tuple[str, ...]:
    """List one side of a list: the tenth that is kept for tests (at least one), or the rest."""
    ranked = sorted(phrase_table()[section][name], key=lambda phrase: zlib.crc32(phrase.encode()))
    cut = max(1, len(ranked) // 10)
    return tuple(ranked[:cut] if heldout else ranked[cut:])


def slip(rng: random.Random, text: str) -> str:
    """Swap, lose or double one letter inside a word, if there is one."""
    places = [i for i in range(1, len(text) - 1) if text[i : i + 2].isalpha()]
    if not places:
        return text
    i = rng.choice(places)
    here, there = text[i], text[i + 1]
    return text[:i] + rng.choice((there + here, there, here + here + there)) + text[i + 2 :]


def as_typed(rng: random.Random, text: str, slips: float = 0.05) -> str:
    """Write a phrase as people do: often lower case, often without its mark, now and then with a slip."""
    case = rng.random()
    if case < 0.45:
        text = text.lower()
    elif case < 0.53:
        text = text.upper()
    end = rng.random()
    if text[-1:] in ".?!":
        if end < 0.35:
            text = text[:-1]
        elif end < 0.42:
            text = text[:-1] + rng.choice(("??", "!", " ?", "...", "!!", "."))
    elif end < 0.2:
        text += rng.choice("?.!")
    return slip(rng, text) if rng.random() < slips else text
