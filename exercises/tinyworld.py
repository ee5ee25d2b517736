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
# first, build a split that asks for what is new, and meet what no amount of reading teaches.

# %%
import math
from collections import Counter

import torch

from nanochat_lib.common import local_generator
from nanochat_lib.data.tinyworld import World
from nanochat_lib.model.gpt import GPT, GPTConfig

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
# ## compositional_split
#
# The chapter holds out facts. A harder test holds out *combinations*: training has asked for the job of many
# people, and has asked Mia many things, but never for the job of Mia. To be fair, such a test must leave every
# entity and every relation in training, or it asks for words that were never heard in a question.
#
# Given pairs (entity, relation), choose `n` of them to hold out so that every entity and every relation of the
# given pairs still occurs in at least `keep` of the pairs that are left. Draw at random, and draw well: where a
# greedy walk over the shuffled pairs finds n, so must you. If it does not, raise a ValueError that says how many
# could be held out.


# %%
#| exercise compositional_split
def compositional_split(
    pairs: list[tuple[str, str]], n: int, keep: int, seed: int
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Hold out combinations whose halves both stay in training.

    Args:
        pairs: (entity, relation), each once.
        n: combinations to hold out.
        keep: how many training pairs each entity and each relation must keep, at least 1.
        seed: names the draw.

    Returns:
        (training pairs, held-out pairs), each in the order of `pairs`.

    Raises:
        ValueError: fewer than n can be held out.
    """
    raise NotImplementedError("exercise tinyworld.compositional_split")


# %%
pairs = [(fact.entity, fact.relation.name) for fact in World(0).facts]
training, held_out = compositional_split(pairs, 60, keep=1, seed=0)
assert len(held_out) == 60 and sorted(training + held_out) == sorted(pairs)
assert {entity for entity, _ in held_out} <= {entity for entity, _ in training}
print(held_out[:5])

# %% [markdown]
# ## train_on_facts
#
# **Experiment.** "Mia works as a doctor." Who works as a doctor? A model that has read only the first cannot
# answer the second, however often it read it (Berglund et al. 2023, arXiv:2309.12288, call it the reversal
# curse). That is why the chapter's relations are stated from both sides. See it happen.
#
# A fact is a pair of ids (a, b), with a from 0 to 19 and b from 20 to 39. Told forwards it is the row
# `40 a 41 b`; told backwards it is `40 b 42 a` (40 begins, 41 and 42 stand for the two wordings). Train the
# given model on all facts forwards, and on those in `both` backwards too: every step on all these rows at
# once, targets are the next ids, with `torch.optim.Adam` at a rate of 0.003. Then ask: forwards, the model
# reads `40 a 41` and its likeliest next id should be b; backwards it reads `40 b 42`.
#
# Return three accuracies: forwards on all facts, backwards on those told both ways, and backwards on those
# told forwards only. Then say what you saw: what would you have to add to training so that the third
# number rises, without ever telling those facts backwards? (That part is open.)


# %%
#| exercise train_on_facts
def train_on_facts(
    model: GPT, facts: list[tuple[int, int]], both: list[tuple[int, int]], steps: int
) -> tuple[float, float, float]:
    """Train a model on facts told forwards, some of them backwards too, and ask from both sides.

    Args:
        model: a GPT with 43 ids, trained in place.
        facts: (a, b), all told forwards.
        both: those of them that are told backwards as well.
        steps: of Adam.

    Returns:
        The share answered right: forwards; backwards where told so; backwards where never told so.
    """
    raise NotImplementedError("exercise tinyworld.train_on_facts")


# %%
def check_train_on_facts() -> None:
    """Twenty facts, half of them told from both sides."""
    facts = [(a, 20 + (7 * a + 3) % 20) for a in range(20)]
    model = GPT(GPTConfig(64, 2, 2, sequence_len=4, vocab_size=43, n_layer=2))
    forwards, told, never = train_on_facts(model, facts, facts[::2], steps=200)
    print(f"forwards {forwards:.0%}, backwards where told {told:.0%}, where never told {never:.0%}")
    assert forwards == told == 1.0, "what was told should be known"
    assert never < 0.5, "facts told one way were answered the other way: how?"


check_train_on_facts()
