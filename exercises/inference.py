# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: inference
#
# Two ways to spend randomness better: cut the tail of the odds where the odds say so, and let a
# small model guess for a large one.

# %%
import torch
from torch import Tensor

# %% [markdown]
# ## nucleus_filter
#
# Top-k keeps the same number of tokens whether the model is sure or has no idea. Nucleus sampling
# (top-p) keeps, in each row, the smallest set of most likely tokens whose probabilities add up to
# at least `p`, and so it keeps few tokens when the model is sure. Return the logits with every
# other token at minus infinity. The token that lifts the sum to `p` or over it belongs to the set;
# so at least one token is always kept. `logits` has shape (B, V), and `0 < p <= 1`. Probabilities
# are those at temperature 1.


# %%
#| exercise nucleus_filter
def nucleus_filter(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of most likely tokens of each row that holds probability p."""
    raise NotImplementedError("exercise inference.nucleus_filter")


# %%
odds = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.97, 0.01, 0.01, 0.01]]).log()
kept = nucleus_filter(odds, 0.7).isfinite()
assert kept.tolist() == [[False, True, False, True], [True, False, False, False]], kept.tolist()

# %% [markdown]
# ## accept_draft
#
# A large model decodes one token a step and leaves most of the machine idle, but it can *check*
# several tokens in one step, as in a prefill. So let a small model draft tokens $t_1 \ldots t_n$,
# each drawn from its own odds $q_i$, then run the large model once over all of them to get its odds
# $p_i$ at the same places. Walk from the left: accept $t_i$ when $u_i < p_i(t_i) / q_i(t_i)$, where
# $u_i$ is a uniform number. At the first refusal stop and draw one token from the positive part of
# $p_i - q_i$, scaled to sum 1. If nothing is refused, draw one more token from $p_{n+1}$. The
# astonishing part, which the grader checks by counting: the result is distributed exactly as if the
# large model had drawn every token itself (Leviathan et al. 2022, arXiv:2211.17192).
#
# `draft` holds n ids, `q` has shape (n, V), `p` has shape (n + 1, V), `uniforms` holds n + 1
# numbers in [0, 1): number i is for the test of token i, the last is for the draw at the end. Draw
# as the chapter does: the first token whose cumulative probability is above the number. Return the
# accepted ids with the drawn one at the end, 1 to n + 1 of them.


# %%
#| exercise accept_draft
def accept_draft(draft: list[int], q: Tensor, p: Tensor, uniforms: list[float]) -> list[int]:
    """Accept a prefix of the draft, then add one token, so that the result follows the odds p."""
    raise NotImplementedError("exercise inference.accept_draft")


# %%
q = torch.tensor([[0.5, 0.5, 0.0]])
p = torch.tensor([[0.25, 0.5, 0.25], [0.0, 0.0, 1.0]])
assert accept_draft([1], q, p, [0.99, 0.5]) == [
    1,
    2,
]  # 0.5 / 0.5: always accepted, then drawn from p[1]
assert accept_draft([0], q, p, [0.40, 0.5]) == [0, 2]  # 0.25 / 0.5: accepted below 0.5
assert accept_draft([0], q, p, [0.60, 0.5]) == [
    2
]  # refused; only token 2 is likelier in p than in q
