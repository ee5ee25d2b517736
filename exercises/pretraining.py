# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: pretraining
#
# When should the rate fall, how large should a batch be, and what would a larger model reach?

# %%
import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nanochat_lib.model.gpt import GPT, GPTConfig

# %% [markdown]
# ## cooldown_curve
#
# **Experiment.** Why does the rate fall at the end of a run? Near a minimum, a constant rate keeps jumping
# about it, as far as its noise throws it; a falling rate lets it settle. Measure what that is worth. For each
# fraction build a fresh model and train it with `torch.optim.SGD(parameters, lr)`, no momentum, one step a
# batch. The rate stays at `lr` and falls in a straight line over the last `fraction` of the n steps: at step
# t (from 0) it is `lr * min(1, (n - t) / (fraction * n))`, and with a fraction of 0 it never falls. Return the
# mean loss on the held-out batches after each training.
#
# Then say what you saw: how much does the cooldown buy? Is a longer one always better, and what does it
# cost that is not in this curve?


# %%
#| exercise cooldown_curve
def cooldown_curve(
    make_model: Callable[[], nn.Module],
    batches: list[tuple[Tensor, Tensor]],
    held_out: list[tuple[Tensor, Tensor]],
    lr: float,
    fractions: list[float],
) -> list[float]:
    """Measure the loss after trainings that differ only in the length of their cooldown.

    Args:
        make_model: builds the model; called as model(inputs, targets), it returns the loss.
        batches: what to train on, one step each.
        held_out: what to measure on afterwards.
        lr: the rate before the cooldown.
        fractions: of the steps, from 0 to 1.

    Returns:
        For each fraction the mean loss on the held-out batches.
    """
    raise NotImplementedError("exercise pretraining.cooldown_curve")


# %%
def counting_rows(n: int, noise: float, seed: int = 0) -> Tensor:
    """Write rows of 17 numbers that count up from a random start, with some replaced by others."""
    generator = torch.Generator().manual_seed(seed)
    rows = (torch.randint(32, (n, 1), generator=generator) + torch.arange(17)) % 32
    other = torch.randint(32, rows.shape, generator=generator)
    return other.where(torch.rand(rows.shape, generator=generator) < noise, rows)


def counting_gpt() -> GPT:
    """Build the same small GPT again."""
    return GPT(GPTConfig(32, 2, 2, sequence_len=16, vocab_size=32, n_layer=1))


def train_counting(model: GPT, steps: int) -> None:
    """Train on rows that count, with AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        rows = counting_rows(16, noise=0.3, seed=step + 1)
        optimizer.zero_grad()
        model(rows[:, :-1], rows[:, 1:]).backward()
        optimizer.step()


def check_cooldown_curve() -> None:
    """Go on with a model that knows the task, at a rate that is too large to settle."""
    trained = counting_gpt()
    train_counting(trained, 150)
    rows = [counting_rows(4, noise=0.3, seed=1_000 + i) for i in range(150)]
    held_out = counting_rows(200, noise=0.3, seed=5)
    fractions = [0.0, 0.1, 0.3, 0.6, 1.0]
    curve = cooldown_curve(
        lambda: copy.deepcopy(trained),
        [(r[:, :-1], r[:, 1:]) for r in rows],
        [(held_out[:, :-1], held_out[:, 1:])],
        lr=1.0,
        fractions=fractions,
    )
    for fraction, loss in zip(fractions, curve):
        print(f"cooldown over the last {fraction:.0%}: {loss:.3f} nats")
    assert min(curve[1:]) < curve[0], "no cooldown helped"


check_cooldown_curve()

# %% [markdown]
# ## noise_scale
#
# How large should a batch be? The gradient of a batch is the true gradient plus noise, and noise shrinks as
# batches grow. While noise dominates, twice the batch is worth twice the steps; once it does not, more
# tokens a step buy nothing. The turning point is about the *noise scale*: the variance of one token's
# gradient, summed over all weights, divided by the squared length of the true gradient (McCandlish et al.
# 2018, arXiv:1812.06162).
#
# Nobody knows the true gradient, but the micro-batches of one step give two measurements. On paper: the
# expected squared length of the mean gradient of B tokens is $|G|^2 + S / B$. You have it at two sizes, one
# micro-batch (average over all of them) and all micro-batches together. Solve the two equations for
# $|G|^2$ and $S$, and return $S / |G|^2$, in tokens. Where the estimate of $|G|^2$ is not above 0, all is
# noise: return infinity.


# %%
#| exercise noise_scale
def noise_scale(gradients: list[Tensor], tokens: int) -> float:
    """Estimate from the gradients of micro-batches how many tokens a batch should hold.

    Args:
        gradients: of each micro-batch the mean gradient over its tokens, flattened, shape (P,).
        tokens: in each micro-batch.

    Returns:
        The noise scale in tokens; math.inf where no gradient can be told from the noise.

    Raises:
        ValueError: fewer than two micro-batches.
    """
    raise NotImplementedError("exercise pretraining.noise_scale")


# %%
# Two micro-batches of 1 token, (3, 0) and (1, 0): lengths 9 and 1, the mean has 4. |G|^2 = 3, S = 2.
assert math.isclose(noise_scale([torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0])], 1), 2 / 3)


def check_noise_scale() -> None:
    """A small GPT before and after some training: as the gradient shrinks, larger batches pay."""
    model, rows = counting_gpt(), counting_rows(64, noise=0.3)
    for steps in (0, 40, 160):
        train_counting(model, steps)
        gradients = []
        for i in range(0, 64, 8):
            model.zero_grad()
            model(rows[i : i + 8, :-1], rows[i : i + 8, 1:]).backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        print(f"after {steps:3} more steps: {noise_scale(gradients, 8 * 16):,.0f} tokens")


check_noise_scale()

# %% [markdown]
# ## fit_scaling_law
#
# Three small runs are cheap; the large one is not. What would it reach? Losses fall with the size N of a
# model roughly as $L(N) = E + A N^{-\alpha}$ (Hoffmann et al. 2022, arXiv:2203.15556, section 3.3): $E$ is
# what no size removes. Fit the three numbers to measured pairs of (N, L).
#
# For a fixed $\alpha$ the law is a straight line in $x = N^{-\alpha}$, and the best $E$ and $A$ are those of an
# ordinary least-squares line. So try every $\alpha$ from 0.05 to 1.00 in steps of 0.01, fit the line, and
# keep the $\alpha$ with the smallest sum of squared errors. Fewer than three different sizes cannot decide
# three numbers: raise a ValueError.


# %%
#| exercise fit_scaling_law
def fit_scaling_law(sizes: list[float], losses: list[float]) -> tuple[float, float, float]:
    """Fit L(N) = E + A * N**-alpha by least squares over a grid of alpha.

    Args:
        sizes: parameters of each model, above 0.
        losses: what each of them reached.

    Returns:
        (E, A, alpha).

    Raises:
        ValueError: fewer than three different sizes.
    """
    raise NotImplementedError("exercise pretraining.fit_scaling_law")


# %%
sizes = [1e6, 4e6, 16e6, 64e6]
E, A, alpha = fit_scaling_law(sizes, [1.69 + 406 * size**-0.34 for size in sizes])
assert alpha == 0.34 and math.isclose(E, 1.69) and math.isclose(A, 406), f"got {E}, {A}, {alpha}"
print(f"a model of a billion would reach {E + A * 1e9**-alpha:.2f}; none goes below {E:.2f}")
