# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: TinyWorld
#
# A generator of data has two ways to deceive its author: it says less than it seems to, and it leaks. Here you measure the
# first and build a split that cannot do the second.

# %%
import math
import zlib
from collections import Counter

from nanochat_lib.data.tinyworld import World

# %% [markdown]
# ## bits_per_word
#
# How much does a text say? Predict each word from the word before it, with the best table of probabilities that the text itself
# allows: count how often word b follows word a, divide by how often a is followed by anything, and average the surprise
# $-\log_2 p(b \mid a)$ over all pairs of neighbours within a document. A text that repeats one sentence gets close to 0.
# Words are what `str.split` gives. Without any pair raise a ValueError.


# %%
#| exercise bits_per_word
def bits_per_word(documents: list[str]) -> float:
    """Return the conditional entropy of a word given the word before it, in bits.

    Example: ["a b a c"] -> 2/3: after a come b and c (1 bit each), after b always a (0 bits).

    Args:
        documents: texts; neighbours are counted within each, never across two.

    Returns:
        The mean of -log2 p(next | word) over all pairs of neighbours.

    Raises:
        ValueError: no document has two words.
    """
    raise NotImplementedError("exercise tinyworld.bits_per_word")


# %%
assert math.isclose(bits_per_word(["a b a c"]), 2 / 3)
assert bits_per_word(["one two", "one two"]) == 0.0
rich, poor = bits_per_word(["the cat saw the dog see the cow"]), bits_per_word(["the cat"] * 9)
assert rich > poor

# %% [markdown]
# ## split_by_value
#
# The chapter holds out facts. A harder test holds out *values*: no training question has the answer "cook", for anybody, so
# the model must say a word that it never said in an answer. Split the facts of a world into those that may be asked and
# those that may not, such that no value stands on both sides, in any relation ("bread" is a food of people, countries and
# animals: one side only). Decide by a checksum of the value, `zlib.crc32(value.encode()) % parts == 0` for the held-out
# side, so that the split does not depend on the order of the facts or on the process.


# %%
#| exercise split_by_value
def split_by_value(facts: list, parts: int) -> tuple[list, list]:
    """Split facts into (may be asked, held out) so that no value is on both sides.

    Args:
        facts: objects with a `value`, as in `World.facts`.
        parts: about one in `parts` values is held out, 2 or more.

    Returns:
        The two lists, each in the order of `facts`.

    Raises:
        ValueError: parts is below 2.
    """
    raise NotImplementedError("exercise tinyworld.split_by_value")


# %%
asked, held_out = split_by_value(World(0).facts, 4)
assert len(asked) + len(held_out) == len(World(0).facts)
assert not {fact.value for fact in asked} & {fact.value for fact in held_out}
