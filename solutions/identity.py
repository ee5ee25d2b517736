# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: identity
#
# Estimate how alike two texts are without comparing them, draw four levers evenly, and find how diversity depends
# on how much one looks at.

# %%
import random
import zlib
from itertools import product

from nanochat_lib.data.identity import conversations
from nanochat_lib.evaluation.diversity import distinct_n, ngrams

# %% [markdown]
# ## minhash_similarity
#
# Comparing a thousand texts pair by pair is half a million comparisons; a million texts cannot be compared so at all.
# MinHash (Broder 1997) needs one small *signature* a text. Take a hash function, hash all n-grams of a text, keep
# the smallest value. Two texts have the same smallest value with a probability that is exactly their Jaccard
# similarity, since the smallest hash of all n-grams that either has is equally likely to be any of them. Repeat
# with `k` hash functions, and the share of equal entries estimates the similarity.
#
# Hash function number `i` of an n-gram is `zlib.crc32(repr((i, gram)).encode())`. Return the estimate.


# %%
#| exercise minhash_similarity
def minhash_similarity(first: str, second: str, k: int = 128, n: int = 2) -> float:
    """Estimate the Jaccard similarity of two texts' word n-grams from k smallest hashes.

    Args:
        first: a text with at least one word.
        second: another.
        k: number of hash functions.
        n: words of an n-gram.

    Returns:
        The share of hash functions whose smallest values are equal.

    Raises:
        ValueError: k is below 1.
    """
    ### BEGIN SOLUTION
    if k < 1:
        raise ValueError(f"k={k}: use at least one hash function")

    def signature(text: str) -> list[int]:
        grams = set(ngrams(text, n))
        return [min(zlib.crc32(repr((i, gram)).encode()) for gram in grams) for i in range(k)]

    pairs = zip(signature(first), signature(second))
    return sum(a == b for a, b in pairs) / k
    ### END SOLUTION


# %%
one = "what is your name and who made you"
other = "tell me what is your name and who made this"
a, b = set(ngrams(one, 2)), set(ngrams(other, 2))
estimate, exact = minhash_similarity(one, other, 400), len(a & b) / len(a | b)
print(f"{estimate:.3f}, exactly {exact:.3f}")
assert abs(estimate - exact) < 0.1

# %% [markdown]
# ## draw_evenly
#
# Independent draws are uneven: of 100 draws over 25 combinations of persona and style, some combinations come nine
# times and some never. For a small data set it is better to *deal* combinations than to draw them. Write a plan of `count` tuples, one
# option of each lever, in which every combination comes equally often, or once more than another. Which ones come more often, and
# the order, is random.


# %%
#| exercise draw_evenly
def draw_evenly(levers: list[list[str]], count: int, rng: random.Random) -> list[tuple[str, ...]]:
    """Deal combinations of levers, each about equally often, in random order.

    Args:
        levers: the options of each lever, all different.
        count: combinations wanted; fewer than there are is fine.
        rng: of the draws.

    Returns:
        `count` tuples; the numbers of times that two combinations come differ by one at most.

    Raises:
        ValueError: a lever has no option, or a negative count.
    """
    ### BEGIN SOLUTION
    if count < 0 or not levers or not all(levers):
        raise ValueError(f"{count} draws of {levers}: each lever needs an option")
    cells = list(product(*levers))
    whole, rest = divmod(count, len(cells))
    plan = cells * whole + rng.sample(cells, rest)
    rng.shuffle(plan)
    return plan
    ### END SOLUTION


# %%
plan = draw_evenly([["child", "sceptic"], ["plain", "shouted", "hasty"]], 8, random.Random(0))
print(plan)

# %% [markdown]
# ## diversity_curve
#
# **Experiment.** "Our data has a distinct-2 of 0.31, theirs has 0.12, so ours is more varied." Is it? Distinct-n falls as
# one looks at more texts, because new words run out. Measure `distinct_n` of the first `size` texts for several sizes.
#
# Then compare two sets of different sizes fairly, with `draws` random samples of the smaller size out of the larger one.
# Try it on `conversations(...)` with levers on and off: at which sample size do you see the difference most clearly? (That part is open.)


# %%
#| exercise diversity_curve
def diversity_curve(texts: list[str], sizes: list[int], n: int = 2) -> list[float]:
    """Measure distinct-n of the first `size` texts, for each size.

    Raises:
        ValueError: a size is below 1 or above the number of texts.
    """
    ### BEGIN SOLUTION
    if not all(1 <= size <= len(texts) for size in sizes):
        raise ValueError(f"sizes {sizes}: each from 1 to the number of texts, {len(texts)}")
    return [distinct_n(texts[:size], n) for size in sizes]
    ### END SOLUTION


# %%
#| exercise diversity_gap
def diversity_gap(
    small: list[str], large: list[str], rng: random.Random, draws: int = 20, n: int = 2
) -> float:
    """Subtract the mean distinct-n of samples of `large`, each as many as `small` has, from that of `small`.

    Args:
        small: texts.
        large: at least as many texts.
        rng: of the samples, which are drawn without repetition.
        draws: number of samples.
        n: words of an n-gram.

    Returns:
        Above 0 if `small` is the more varied set.

    Raises:
        ValueError: `large` has fewer texts than `small`, or there are no draws.
    """
    ### BEGIN SOLUTION
    if len(large) < len(small) or draws < 1:
        raise ValueError(f"{len(large)} texts to sample {len(small)} from, {draws} times")
    samples = [distinct_n(rng.sample(large, len(small)), n) for _ in range(draws)]
    return distinct_n(small, n) - sum(samples) / draws
    ### END SOLUTION


# %%
texts = [" ".join(m["content"] for m in talk["messages"]) for talk in conversations(800)]
print([round(share, 3) for share in diversity_curve(texts, [50, 200, 800])])
print(
    f"{diversity_gap(texts[:100], texts[100:], random.Random(0)):+.3f} between two parts of one set"
)
