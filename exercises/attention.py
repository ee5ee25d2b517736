# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: attention
#
# A mask that no textbook figure shows and every training run needs, and the algorithm inside the
# fused kernel.

# %%
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_lib.model.attention import (
    apply_rope,
    causal_mask,
    naive_attention,
    rms_norm,
    rope_tables,
)

# %% [markdown]
# ## document_mask
#
# Rows of training data are packed: several documents follow one another in one row, and each starts
# with the token `bos_id`. With a plain causal mask a document reads the ones before it, which have
# nothing to do with it.
#
# Build the mask that is causal *and* stays inside the document, for a batch of rows. A `bos_id`
# belongs to the document that it starts. Tokens before the first `bos_id` of a row, the end of a
# document that was cut, form a document of their own.


# %%
#| exercise document_mask
def document_mask(idx: Tensor, bos_id: int) -> Tensor:
    """Mark which position may read which: earlier ones of the same document.

    Example: one row [7, 0, 7, 7] with bos_id=0 -> rows 1000, 0100, 0110, 0111.

    Args:
        idx: packed rows of token ids, int64, shape (B, T).
        bos_id: the id that starts a document.

    Returns:
        True where the row's position may read the column's, bool, shape (B, T, T).
    """
    raise NotImplementedError("exercise attention.document_mask")


# %%
row = torch.tensor([[7, 0, 7, 7]])
by_hand = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
assert document_mask(row, bos_id=0)[0].int().tolist() == by_hand
assert torch.equal(document_mask(torch.ones(1, 5, dtype=torch.int64), 0)[0], causal_mask(5))

# %% [markdown]
# ## streaming_attention
#
# `naive_attention` holds a row of T weights for every query before it can divide by their sum. The
# fused kernel never does: it meets the keys in blocks and keeps, for each query, three things about
# the keys so far: the largest score, the sum of the exponentials of the scores, and the weighted sum
# of the values. When a block brings a larger score, what was summed before was measured against the
# old maximum and must be scaled to the new one.
#
# Write causal attention that way. No table larger than (B, H, T, block) may exist, and scores of
# several hundred must not overflow: subtract the maximum before every exponential.


# %%
#| exercise streaming_attention
def streaming_attention(q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:
    """Compute causal attention over blocks of keys, with a running softmax.

    Args:
        q: queries, shape (B, H, T, D).
        k: keys, the same shape.
        v: values, the same shape.
        block: how many keys to meet at a time, at least 1; need not divide T.

    Returns:
        What naive_attention returns first, shape (B, H, T, D).
    """
    raise NotImplementedError("exercise attention.streaming_attention")


# %%
q, k, v = torch.randn(3, 1, 2, 10, 4, generator=torch.Generator().manual_seed(0))
expected, _ = naive_attention(q, k, v, causal_mask(10))
for block in (1, 3, 10):
    assert torch.allclose(streaming_attention(q, k, v, block), expected, atol=1e-5), (
        f"block={block}"
    )

# %% [markdown]
# ## train_copier
#
# **Experiment.** What are rotations for? Train the smallest reader there is to repeat what stood `distance`
# places back, once with rotations and once without. Rows are 24 random tokens out of 16; the target at
# place t is the token at place t - `distance`, and the first `distance` places have none.
#
# The reader: embed (32 channels), make q, k and v by one matrix each, normalize q and k by `rms_norm`,
# rotate both by `apply_rope` if `rotated`, let `naive_attention` read with one head under a causal mask,
# and score the 16 tokens by one more matrix. Initialize every weight by `randn / 32**0.5` and train with
# `torch.optim.Adam` at a rate of 0.01 on fresh rows, 32 a step. Return a function from ids (B, 24) to
# logits (B, 24, 16).
#
# Then say what you saw: which tokens can the reader without rotations not tell apart? And why is it still
# better than guessing?


# %%
#| exercise train_copier
def train_copier(distance: int, rotated: bool, steps: int) -> Callable[[Tensor], Tensor]:
    """Train one head to say which token stood a fixed distance back.

    Args:
        distance: places back, 1 to 12.
        rotated: rotate queries and keys by their positions.
        steps: updates on 32 fresh rows each.

    Returns:
        The trained reader: ids, int64, shape (B, 24) -> logits, shape (B, 24, 16).
    """
    raise NotImplementedError("exercise attention.train_copier")


# %%
# alt: share of places copied right over the distance: near 1 with rotations, near one in eight without
def check_train_copier() -> None:
    """Train both kinds for three distances, and count on fresh rows."""
    idx = torch.randint(16, (200, 24), generator=torch.Generator().manual_seed(9))
    figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
    for rotated, name in ((True, "rotated"), (False, "not rotated")):
        shares = []
        for distance in (1, 3, 6):
            said = train_copier(distance, rotated, steps=300)(idx).argmax(-1)[:, distance:]
            shares.append(float((said == idx[:, : 24 - distance]).float().mean()))
        print(f"{name}: {shares}")
        axes.plot((1, 3, 6), shares, marker="o")
        axes.annotate(f" {name}", (6, shares[-1]), annotation_clip=False)
        assert (min(shares) > 0.6) if rotated else (max(shares) < 0.5), f"{name}: {shares}"
    axes.set(xlabel="distance (places)", ylabel="copied right", ylim=(0, 1.05), xlim=(0.8, 7.5))
    plt.show()


check_train_copier()
