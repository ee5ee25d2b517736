# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: baseline
#
# How sure are we of a score, and what should a model believe about pairs it has never seen?

# %%
import math
from itertools import islice

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from nanochat_lib.common import local_generator
from nanochat_lib.data.documents import python_docs
from nanochat_lib.evaluation.bpb import BigramModel, bigram_counts

# %% [markdown]
# ## bpb_interval
#
# A model scores 2.09 bits per byte on 400 documents, another one 2.11. Is the first better, or did
# it have luck with the documents? Tokens are not independent draws (a hard document is hard all the
# way), documents nearly are.
#
# Write `bpb_interval(nats, n_bytes, resamples, seed)` by the bootstrap: draw as many documents as
# there are, with replacement; compute the bits per byte of that draw as a whole; repeat; return the
# 2.5% and the 97.5% point of the results. Take care that a document's nats and its bytes stay
# together, and that a long document weighs more than a short one.


# %%
#| exercise bpb_interval
def bpb_interval(
    nats: list[float], n_bytes: list[int], resamples: int, seed: int
) -> tuple[float, float]:
    """Estimate a 95% interval for the bits per byte of a text source.

    Args:
        nats: summed loss of each document.
        n_bytes: length of each document, above 0.
        resamples: how many times to draw the documents.
        seed: names the draws.

    Returns:
        The lower and the upper end, in bits per byte.

    Raises:
        ValueError: there are no documents, or the lists differ in length.
    """
    raise NotImplementedError("exercise baseline.bpb_interval")


# %%
def check_bpb_interval() -> None:
    """Equal documents give a point; unequal ones an interval around the score of the whole."""
    low, high = bpb_interval([2 * math.log(2)] * 30, [1] * 30, resamples=100, seed=1)
    assert math.isclose(low, 2) and math.isclose(high, 2), f"got {low}, {high}: bits, or nats?"
    nats, n_bytes = [10.0, 900.0, 40.0, 70.0] * 10, [10, 1_000, 20, 50] * 10
    low, high = bpb_interval(nats, n_bytes, resamples=500, seed=1)
    score = sum(nats) / sum(n_bytes) / math.log(2)
    assert low < score < high, f"got {low} to {high} around {score}: do long documents weigh more?"
    assert high - low < 0.35


check_bpb_interval()

# %% [markdown]
# ## continuation_shares
#
# `BigramModel` believes, about successors it has not seen, what the whole text says: it offers
# "Francisco" after any word if the text is about San Francisco. Yet "Francisco" follows one word
# only. What should count for a *new* pair is not how often a token occurs but after how many
# different tokens.
#
# Write `continuation_shares(counts)`: for each token the number of different tokens it was seen
# after, as a share of all such pairs. Tokens seen after none get 0. If you like, put these shares
# in place of `overall` in a copy of `BigramModel` and see whether the held-out bits per byte fall.


# %%
#| exercise continuation_shares
def continuation_shares(counts: torch.Tensor) -> torch.Tensor:
    """Compute in how many contexts each token was seen, as shares of all different pairs.

    Args:
        counts: pairs, int64, shape (V, V): row = the token before, column = the token after.

    Returns:
        Shares that sum to 1, float64, shape (V,).

    Raises:
        ValueError: no pair was counted.

    Source: Kneser & Ney 1995, "Improved backing-off for m-gram language modeling".
    """
    raise NotImplementedError("exercise baseline.continuation_shares")


# %%
def check_continuation_shares() -> None:
    """Token 1 is frequent after 0 alone; token 2 is rare, but follows all three."""
    counts = torch.tensor([[0, 100, 1], [2, 0, 1], [0, 0, 1]])
    got = continuation_shares(counts).tolist()
    assert got == [1 / 5, 1 / 5, 3 / 5], f"got {got}: rows or columns, pairs or counts?"


check_continuation_shares()

# %% [markdown]
# ## choose_prior
#
# **Experiment.** `BigramModel` has one dial: how many imaginary observations the whole text is worth. Turn it.
# Build the model for each prior from the same counts, measure its mean bits a token on a `dev` text, and
# choose the best; only then measure the chosen model on the `test` text, once. (Choosing by the test
# would make the test a part of the training, and its score too good.) Among equals take the first prior.
#
# Then say what you saw: what happens at both ends of the dial, and why does the best prior shrink when
# you count more text?


# %%
#| exercise choose_prior
def choose_prior(
    train_ids: Tensor, dev_ids: Tensor, test_ids: Tensor, vocab_size: int, priors: list[float]
) -> tuple[list[float], float, float]:
    """Choose the prior of a bigram model on one text and judge the choice on another.

    Args:
        train_ids: tokens to count, int64, shape (T,).
        dev_ids: tokens to choose by.
        test_ids: tokens to judge by.
        vocab_size: number of ids.
        priors: what to try, each above 0.

    Returns:
        Bits a token on dev for each prior; the chosen prior; its bits a token on test.
    """
    raise NotImplementedError("exercise baseline.choose_prior")


# %%
# alt: bits a token on dev over the prior, on a logarithmic axis: high at both ends, lowest in between
def check_choose_prior() -> None:
    """Bytes of docstrings: the curve has its lowest point inside."""
    texts = list(islice(python_docs(), 100, 700))
    parts = ["\n".join(texts[i::3]).encode()[:60_000] for i in range(3)]
    train_ids, dev_ids, test_ids = (torch.tensor(list(part)) for part in parts)
    priors = [0.01, 0.1, 1.0, 10.0, 100.0, 1_000.0, 10_000.0]
    curve, best, bits = choose_prior(train_ids, dev_ids, test_ids, 256, priors)
    assert min(curve) < min(curve[0], curve[-1]), "both ends of the dial should be worse"
    print(f"chosen {best}: {min(curve):.3f} bits on dev, {bits:.3f} on test")
    figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
    axes.semilogx(priors, curve, marker="o")
    axes.set(xlabel="prior (imaginary observations)", ylabel="bits a byte on dev")
    plt.show()


check_choose_prior()
