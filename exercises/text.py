# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: text
#
# What a stream cannot do by itself: mix, and compare.

# %%
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import count, islice

import matplotlib.pyplot as plt

from nanochat_lib.common import local_generator
from nanochat_lib.data.documents import python_docs

# %% [markdown]
# ## shuffle_stream
#
# Documents that stand together are alike: all pages of one site, all docstrings of one module.
# Batches should be mixed. But the corpus is longer than memory, even endless, so nobody can shuffle
# it.
#
# Write `shuffle_stream(documents, size, seed)`: hold at most `size` documents; whenever one more
# arrives, give out a random one of those held. Every document comes out exactly once, also at the
# end of a finite stream. The same seed gives the same order. Then ask yourself: how far forward,
# and how far back, can a document move?


# %%
#| exercise shuffle_stream
def shuffle_stream(documents: Iterable[str], size: int, seed: int) -> Iterator[str]:
    """Shuffle a stream through a buffer.

    Args:
        documents: any number of texts, perhaps without end.
        size: how many to hold at most, at least 1; 1 leaves the order alone.
        seed: names the order.

    Returns:
        All documents, each once.

    Raises:
        ValueError: the size is below 1.
    """
    raise NotImplementedError("exercise text.shuffle_stream")


# %%
def check_shuffle_stream() -> None:
    """Look for losses, for mixing, and for a hunger that exceeds the buffer."""
    texts = [str(i) for i in range(1_000)]
    shuffled = list(shuffle_stream(texts, size=50, seed=1))
    assert sorted(shuffled, key=int) == texts, "are some lost at the end?"
    assert shuffled != texts
    endless = shuffle_stream((str(i) for i in count()), size=50, seed=1)
    first = list(islice(endless, 10))
    assert max(map(int, first)) < 60, f"got {first}: who read so far ahead?"


check_shuffle_stream()

# %% [markdown]
# ## resemblance
#
# `drop_duplicates` misses copies with one changed word, and most copies on the web are such. To
# find them we compare what two texts consist of: all runs of n words in a row (*shingles*), as a
# set. Their resemblance is the number of shingles they share, divided by the number that at least
# one of them has.
#
# Write `resemblance(a, b, n)`. Words are separated by white space, and case does not matter. A text
# shorter than n words has one shingle: all its words. Two empty texts are the same. Before you run
# the check, guess: one changed word in a hundred, at n = 5, leaves how much?


# %%
#| exercise resemblance
def resemblance(a: str, b: str, n: int) -> float:
    """Compute the share of word runs that two texts have in common.

    Args:
        a: one text.
        b: the other.
        n: words in a run, at least 1.

    Returns:
        From 0 (nothing in common) to 1 (the same runs).

    Source: Broder 1997, "On the resemblance and containment of documents".
    """
    raise NotImplementedError("exercise text.resemblance")


# %%
def check_resemblance() -> None:
    """Change one word of a hundred: 5 of 96 shingles differ on each side, 91 of 101 are shared."""
    words = [f"word{i}" for i in range(100)]
    changed = [*words[:50], "other", *words[51:]]
    got = resemblance(" ".join(words), " ".join(changed), n=5)
    assert abs(got - 91 / 101) < 1e-12, f"got {got}, not {91 / 101}: sets, or counts?"
    assert resemblance("the cat", "The  cat", n=5) == 1.0


check_resemblance()

# %% [markdown]
# ## leak_curve
#
# **Experiment.** What does a copy of the test in the training text do to a score? Take the smallest model
# there is: count which letter follows each run of four, and call the probability of a letter
# $p = (n + 1) / (N + 256)$, with $n$ its count after this run and $N$ the count of the run. Fill the
# table from `training` and, besides, from `copies` copies of each document of `test`. Then measure bits
# per letter twice: on `test`, which leaked, and on `fresh`, documents of the same kind that did not.
# Runs stay inside a document, and the first four letters of a document cost nothing and do not count.
#
# Then say what you saw: more text to count helps both scores, so which part of the gain is memory? After
# how many copies does the leaked score look like a breakthrough? (Your words are yours; the grader looks
# at the numbers.)


# %%
#| exercise leak_curve
def leak_curve(
    training: list[str], test: list[str], fresh: list[str], copies: list[int]
) -> list[tuple[float, float]]:
    """Measure what copies of a test in the training text do to its score.

    Args:
        training: documents that fill the table.
        test: documents that leak into it.
        fresh: documents that never do.
        copies: how often each test document is read in training, at least 0.

    Returns:
        For each number of copies: bits per letter of `test`, and of `fresh`.
    """
    raise NotImplementedError("exercise text.leak_curve")


# %%
# alt: bits per letter over copies of the test in training: both fall, the leaked test far below fresh text
def check_leak_curve() -> None:
    """A case by hand, then the curve on docstrings."""
    [(got, other)] = leak_curve(["abcde"], ["abcde"], ["zzzzz"], [1])
    assert math.isclose(got, -math.log2(3 / 258)), f"got {got}: seen in training and in one copy"
    assert math.isclose(other, 8.0), f"got {other}: nothing was ever counted after 'zzzz'"
    documents = list(islice(python_docs(), 80, 480))
    copies = [0, 1, 2, 4, 8, 16, 32]
    curve = leak_curve(documents[:300], documents[300:350], documents[350:], copies)
    figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
    for column, name in enumerate(("the test that leaked", "fresh text")):
        values = [bits[column] for bits in curve]
        axes.plot(range(len(copies)), values, marker="o")
        axes.annotate(f" {name}", (len(copies) - 1, values[-1]), annotation_clip=False)
    axes.set_xticks(range(len(copies)), copies)
    axes.set(xlabel="copies of the test in training", ylabel="bits per letter", xlim=(-0.2, 8))
    plt.show()


check_leak_curve()
