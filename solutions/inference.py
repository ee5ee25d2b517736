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
    ### BEGIN SOLUTION
    ordered, order = logits.sort(dim=-1, descending=True)  # (B, V)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # held by the tokens that are more likely
    ordered = ordered.masked_fill(before >= p, float("-inf"))
    return torch.empty_like(logits).scatter(1, order, ordered)
    ### END SOLUTION


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
    ### BEGIN SOLUTION
    n_accepted = 0
    for i, token in enumerate(draft):
        # multiplied out: u < p / q without a division by zero
        if uniforms[i] * q[i, token] >= p[i, token]:
            break
        n_accepted += 1
    odds = p[n_accepted]
    if n_accepted < len(draft):
        odds = (p[n_accepted] - q[n_accepted]).clamp(min=0)
    cumulative = odds.cumsum(0) / odds.sum()
    # rounding may leave the last sum below the number: stop at the last token that adds anything
    drawn = min((cumulative <= uniforms[-1]).sum(), (cumulative < cumulative[-1]).sum())
    return [*draft[:n_accepted], int(drawn)]
    ### END SOLUTION


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
