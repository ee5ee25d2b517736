# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: inference
#
# Another way to cut the tail of the odds, how many people fit into a machine's memory, and what temperature
# does to repetition.

# %%
from collections.abc import Callable

import torch
from torch import Tensor

from nanochat_lib.inference.sampling import sample

# %% [markdown]
# ## typical_filter
#
# Top-p keeps the likeliest tokens. People do not always say the likeliest thing: they say about as much as
# the moment calls for. *Typical* sampling (Meister et al. 2022, arXiv:2202.00666) measures each token's
# surprise, $-\ln p$, and compares it with the entropy of the row, the surprise that is to be expected. It
# keeps the tokens whose surprise is nearest to the entropy, nearest first, until the tokens kept hold a
# probability of at least `p`. The token that lifts the sum to `p` or over it belongs to them; so at least one
# is kept. Return the logits with every other token at minus infinity. `logits` has shape (B, V), `0 < p <= 1`.


# %%
#| exercise typical_filter
def typical_filter(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens of each row whose surprise is nearest to what is expected, until they hold probability p."""
    ### BEGIN SOLUTION
    odds = logits.log_softmax(-1)
    entropy = -(odds.exp() * odds).sum(-1, keepdim=True)  # (B, 1)
    order = (-odds - entropy).abs().argsort(dim=-1, stable=True)
    probabilities = odds.exp().gather(1, order)
    before = probabilities.cumsum(-1) - probabilities  # held by the tokens that are nearer
    kept = torch.empty_like(before, dtype=torch.bool).scatter(1, order, before < p)
    return logits.masked_fill(~kept, float("-inf"))
    ### END SOLUTION


# %%
# surprises 0.51, 1.61, 2.30, 2.30 and an entropy of 1.09: the likeliest token is not the nearest by much
odds = torch.tensor([[0.6, 0.2, 0.1, 0.1]]).log()
assert typical_filter(odds, 0.15).isfinite().tolist() == [[False, True, False, False]]
assert typical_filter(odds, 0.5).isfinite().tolist() == [[True, True, False, False]]

# %% [markdown]
# ## rows_that_fit
#
# A machine has `memory` bytes. The weights take `weights` of them. Each row of the cache holds `tokens`
# tokens, and each token a key and a value in every layer: `n_kv_head` heads of `head_dim` numbers of
# `number_bytes` bytes. Layers listed in `windows` look back only so many tokens and need no more than those;
# None stands for a layer that looks at all. How many rows fit?


# %%
#| exercise rows_that_fit
def rows_that_fit(
    memory: int,
    weights: int,
    windows: list[int | None],
    n_kv_head: int,
    head_dim: int,
    tokens: int,
    number_bytes: int = 2,
) -> int:
    """Count the rows of `tokens` tokens whose keys and values fit beside the weights; never below 0."""
    ### BEGIN SOLUTION
    kept = sum(tokens if window is None else min(window, tokens) for window in windows)
    row = 2 * kept * n_kv_head * head_dim * number_bytes
    return max(0, (memory - weights) // row)
    ### END SOLUTION


# %%
# d20: 20 layers of 10 heads of 128 in bfloat16, contexts of 2,048, 1.1 GB of weights, 80 GB of memory
assert rows_that_fit(80 * 10**9, 1_122_000_000, [None] * 20, 10, 128, 2048) == 376

# %% [markdown]
# ## repetition_curve
#
# **Experiment.** Greedy answers fall into repeating themselves more often than drawn ones. How does it depend
# on temperature? `logits_of(tokens)` gives the logits (V,) that follow a text. For each temperature draw
# `n_texts` texts of `length` tokens with `sample`, all from the same first token 0, with numbers from
# `torch.Generator().manual_seed(i)` for text i. Report for each temperature the mean share of tokens (the
# first excepted) that stand in a pair of neighbours seen before in the same text.
#
# Then say what you saw, and think about it: is the most repetitive setting the one with the likeliest text?


# %%
#| exercise repetition_curve
def repetition_curve(
    logits_of: Callable[[list[int]], Tensor],
    temperatures: list[float],
    n_texts: int = 10,
    length: int = 50,
) -> list[float]:
    """Measure, for each temperature, the mean share of neighbouring pairs that a text has said before."""
    ### BEGIN SOLUTION
    curve = []
    for temperature in temperatures:
        shares = []
        for i in range(n_texts):
            generator, text = torch.Generator().manual_seed(i), [0]
            for _ in range(length):
                uniform = torch.rand(1, generator=generator)
                text.append(int(sample(logits_of(text)[None], uniform, temperature)[0]))
            pairs = list(zip(text, text[1:]))
            shares.append(1 - len(set(pairs)) / len(pairs))
        curve.append(sum(shares) / len(shares))
    return curve
    ### END SOLUTION


# %%
table = 2 * torch.randn(20, 20, generator=torch.Generator().manual_seed(0))
curve = repetition_curve(lambda text: table[text[-1]], [0.0, 0.5, 1.0, 2.0])
print([f"{share:.2f}" for share in curve])
assert curve == sorted(curve, reverse=True)
