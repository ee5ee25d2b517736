"""Grade the exercises of the chapter on TinyWorld."""

import math
import random
import zlib
from types import SimpleNamespace

import pytest


def grade_bits_per_word(module) -> None:
    assert math.isclose(module.bits_per_word(["a b a c"]), 2 / 3)
    assert module.bits_per_word(["one two", "one two"]) == 0.0
    assert module.bits_per_word(["a", "b c"]) == 0.0, "a lone word has no neighbour"
    assert math.isclose(module.bits_per_word(["a a b"]), 1.0)
    # The last word of a document is followed by nothing, and must not count as a first.
    assert module.bits_per_word(["a b a"]) == 0.0, "is the last word counted as a first?"
    assert math.isclose(module.bits_per_word(["a b", "a c"]), 1.0), "within a document only"
    rng = random.Random(0)
    text = " ".join(rng.choice("abcd") for _ in range(20_000))
    assert abs(module.bits_per_word([text]) - 2.0) < 0.01, "four equally likely words are 2 bits"
    with pytest.raises(ValueError):
        module.bits_per_word(["one", ""])


def grade_split_by_value(module) -> None:
    rng = random.Random(1)
    facts = [SimpleNamespace(value=f"v{rng.randint(0, 60)}", entity=i) for i in range(400)]
    for parts in (2, 5):
        asked, held_out = module.split_by_value(facts, parts)
        wanted = [f for f in facts if zlib.crc32(f.value.encode()) % parts == 0]
        assert held_out == wanted, "one side is not what the checksum of the value says"
        assert asked == [f for f in facts if f not in wanted], "the other side is not the rest"
    for parts in (0, 1):
        with pytest.raises(ValueError):
            module.split_by_value(facts, parts)


MUTANTS = {
    "bits_per_word": [
        # counts the last word of each document as if something followed it
        """def bits_per_word(documents):
    pairs, firsts = Counter(), Counter()
    for text in documents:
        words = text.split()
        pairs.update(zip(words, words[1:]))
        firsts.update(words)
    if not pairs:
        raise ValueError("no pairs")
    return sum(-n * math.log2(n / firsts[a]) for (a, _), n in pairs.items()) / sum(pairs.values())
""",
        # the entropy of pairs, not of a word given the one before
        """def bits_per_word(documents):
    pairs = Counter()
    for text in documents:
        words = text.split()
        pairs.update(zip(words, words[1:]))
    total = sum(pairs.values())
    if not total:
        raise ValueError("no pairs")
    return sum(-n / total * math.log2(n / total) for n in pairs.values())
""",
        # neighbours across documents
        """def bits_per_word(documents):
    words = " ".join(documents).split()
    pairs, firsts = Counter(zip(words, words[1:])), Counter(words[:-1])
    if not pairs:
        raise ValueError("no pairs")
    return sum(-n * math.log2(n / firsts[a]) for (a, _), n in pairs.items()) / sum(pairs.values())
""",
    ],
    "split_by_value": [
        # splits facts, so that a value stands on both sides
        """def split_by_value(facts, parts):
    if parts < 2:
        raise ValueError(parts)
    return [f for i, f in enumerate(facts) if i % parts], facts[::parts]
""",
        # the sides the wrong way round
        """def split_by_value(facts, parts):
    if parts < 2:
        raise ValueError(parts)
    held = [f for f in facts if zlib.crc32(f.value.encode()) % parts == 0]
    return held, [f for f in facts if f not in held]
""",
    ],
}
