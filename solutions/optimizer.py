# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: optimizer
#
# How large is a step, and how little can an optimizer remember?

# %%
import math

import torch
from torch import Tensor

from nanochat_lib.training.optim import newton_schulz

# %% [markdown]
# ## rms_matched_scale
#
# AdamW's rates do not fit Muon: AdamW moves each weight by about 0.2 to 0.4 times its rate, whatever
# the shape; Muon's orthogonalized update gets smaller numbers the larger the matrix. If one rate is
# to serve both, Muon's update has to be scaled so that its *root-mean-square entry* equals a target.
#
# An update of shape (rows, columns) has only singular values of 1. Derive the factor that gives its
# entries a root-mean-square of `target`. On paper first: what is the sum of the squares of all
# entries of a matrix, in terms of its singular values, and how many singular values are there?


# %%
#| exercise rms_matched_scale
def rms_matched_scale(rows: int, columns: int, target: float) -> float:
    """Compute the factor that brings an orthogonalized update to a wanted root-mean-square.

    Args:
        rows: of the matrix.
        columns: of the matrix.
        target: wanted root-mean-square of the scaled update's entries.

    Returns:
        The factor, above 0.
    """
    ### BEGIN SOLUTION
    # min(rows, columns) singular values of 1: the squares add up to min(rows, columns)
    mean_square = min(rows, columns) / (rows * columns)
    return target / math.sqrt(mean_square)
    ### END SOLUTION


# %%
q = torch.linalg.qr(torch.randn(96, 32, generator=torch.Generator().manual_seed(0))).Q
scaled = q * rms_matched_scale(96, 32, 0.2)
got = float(scaled.square().mean().sqrt())
assert math.isclose(got, 0.2, rel_tol=1e-4), (
    f"root-mean-square {got:.4f}: how many singular values?"
)

# %% [markdown]
# Newton-Schulz leaves singular values between 0.7 and 1.2, so the real update comes out close.

# %%
update = newton_schulz(torch.randn(96, 32, generator=torch.Generator().manual_seed(1)))
rms = float(update.square().mean().sqrt()) * rms_matched_scale(96, 32, 0.2)
assert 0.14 < rms < 0.24

# %% [markdown]
# ## lion_step
#
# Lion (Chen et al. 2023, arXiv:2302.06675, algorithm 2) was found by a program that searched among
# programs. It keeps one state, has no division and no eps: every weight moves by exactly the rate,
# up or down. For gradient $g$ and momentum $m$, with $\beta_1 < \beta_2$:
#
# 1. the direction is the sign of $\beta_1 m + (1 - \beta_1) g$, from the *old* momentum;
# 2. weight decay is decoupled, as in AdamW: $p$ loses rate · decay · $p$ besides rate · direction;
# 3. then, and only then, the momentum becomes $\beta_2 m + (1 - \beta_2) g$.
#
# Write `lion_step`, which updates `p` and `momentum` in place and returns nothing.


# %%
#| exercise lion_step
def lion_step(
    p: Tensor,
    grad: Tensor,
    momentum: Tensor,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
) -> None:
    """Make one Lion update in place.

    Args:
        p: the weights, any shape.
        grad: their gradient.
        momentum: running mean of gradients, zeros before the first step.
        lr: how far every weight moves.
        betas: weight of the old momentum in the direction, and in the new momentum.
        weight_decay: decoupled.
    """
    ### BEGIN SOLUTION
    direction = (betas[0] * momentum + (1 - betas[0]) * grad).sign()
    p.sub_(lr * (direction + weight_decay * p))
    momentum.mul_(betas[1]).add_(grad, alpha=1 - betas[1])
    ### END SOLUTION


# %%
p, momentum = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.0, 1.0, 0.0])
lion_step(p, torch.tensor([5.0, -1.0, 0.0]), momentum, lr=0.1)
assert torch.allclose(p, torch.tensor([0.9, -2.1, 3.0])), f"got {p.tolist()}: old momentum first?"
assert torch.allclose(momentum, torch.tensor([0.05, 0.98, 0.0])), f"got {momentum.tolist()}"
