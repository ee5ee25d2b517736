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

import torch

from nanochat_lib.common import local_generator

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
    ### BEGIN SOLUTION
    if not nats or len(nats) != len(n_bytes):
        raise ValueError(
            f"{len(nats)} losses and {len(n_bytes)} lengths: give both for each document"
        )
    generator, results = local_generator("bpb_interval", seed), []
    for _ in range(resamples):
        drawn = generator.choices(range(len(nats)), k=len(nats))
        total = sum(nats[i] for i in drawn) / math.log(2)
        results.append(total / sum(n_bytes[i] for i in drawn))
    results.sort()
    last = resamples - 1
    return results[round(0.025 * last)], results[round(0.975 * last)]
    ### END SOLUTION


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
    ### BEGIN SOLUTION
    contexts = (counts > 0).sum(dim=0)
    if contexts.sum() == 0:
        raise ValueError("no pair was counted: there is nothing to share")
    return contexts.double() / contexts.sum()
    ### END SOLUTION


# %%
def check_continuation_shares() -> None:
    """Token 1 is frequent after 0 alone; token 2 is rare, but follows all three."""
    counts = torch.tensor([[0, 100, 1], [2, 0, 1], [0, 0, 1]])
    got = continuation_shares(counts).tolist()
    assert got == [1 / 5, 1 / 5, 3 / 5], f"got {got}: rows or columns, pairs or counts?"


check_continuation_shares()
