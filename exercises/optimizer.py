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
from collections.abc import Callable, Iterable
from itertools import islice

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from nanochat_lib.data.documents import python_docs
from nanochat_lib.model.gpt import GPT, GPTConfig
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
    raise NotImplementedError("exercise optimizer.rms_matched_scale")


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
# ## lion_losses
#
# Lion (Chen et al. 2023, arXiv:2302.06675, algorithm 2) was found by a program that searched among
# programs. It keeps one state, has no division and no eps: every weight moves by exactly the rate,
# up or down. For gradient $g$ and momentum $m$ (zeros at first), with $\beta_1 < \beta_2$:
#
# 1. the direction is the sign of $\beta_1 m + (1 - \beta_1) g$, from the *old* momentum;
# 2. weight decay is decoupled, as in AdamW: $p$ loses rate · decay · $p$ besides rate · direction;
# 3. then, and only then, the momentum becomes $\beta_2 m + (1 - \beta_2) g$.
#
# Use it on a model: train on the batches, one step each, and return the losses before the steps. Weights
# that got no gradient stay where they are. The check trains a small GPT beside AdamW; which rate did each
# of them need, and why is Lion's smaller?


# %%
#| exercise lion_losses
def lion_losses(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
) -> list[float]:
    """Train a model with Lion, in place.

    Args:
        model: called as model(inputs, targets), returns the loss, a scalar.
        batches: pairs of inputs and targets, one a step.
        lr: how far every weight moves in a step.
        betas: weight of the old momentum in the direction, and in the new momentum.
        weight_decay: decoupled.

    Returns:
        The loss of each batch, before its step.
    """
    raise NotImplementedError("exercise optimizer.lion_losses")


# %%
text = torch.tensor(list("\n".join(islice(python_docs(), 40)).encode()))


def tiny_gpt() -> GPT:
    """Build the same small GPT again."""
    return GPT(GPTConfig(64, 2, 2, sequence_len=32, vocab_size=256, n_layer=1))


def draw_batches(steps: int) -> list[tuple[Tensor, Tensor]]:
    """Cut the same windows out of Python's manual again."""
    generator, batches = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        starts = torch.randint(len(text) - 33, (16, 1), generator=generator)
        rows = text[starts + torch.arange(33)]
        batches.append((rows[:, :-1], rows[:, 1:]))
    return batches


def check_lion_losses() -> None:
    """Two steps by hand on one weight, then a GPT."""

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(1.0))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return (self.w * x - y).square().mean()

    line, pair = Line(), (torch.tensor([1.0]), torch.tensor([3.0]))
    assert lion_losses(line, [pair, pair], lr=0.5) == [4.0, 2.25], "towards 3, half a unit a step"
    assert line.w.item() == 2.0
    for lr in (1e-4, 1e-3, 1e-2):
        losses = lion_losses(tiny_gpt(), draw_batches(80), lr)
        print(f"rate {lr}: {losses[0]:.2f} -> {sum(losses[-10:]) / 10:.2f} nats a byte")


check_lion_losses()

# %% [markdown]
# ## rate_curve
#
# **Experiment.** "Optimizer A beats optimizer B" means little until both had the rate that suits them. Measure
# the curve: for each rate build a fresh model, give its weights to `make_optimizer`, take one step on each
# batch, and note the mean loss of the last ten batches (before their steps). A run whose loss stops being
# a finite number is over; its result is infinity, never NaN, and no exception.
#
# Then say what you saw: how wide is the valley of each optimizer? Which one forgives a wrong guess?


# %%
#| exercise rate_curve
def rate_curve(
    make_model: Callable[[], nn.Module],
    make_optimizer: Callable[[list[Tensor], float], torch.optim.Optimizer],
    batches: list[tuple[Tensor, Tensor]],
    rates: list[float],
) -> list[float]:
    """Measure how well an optimizer trains at each of several rates, always from the same start.

    Args:
        make_model: builds the model; called as model(inputs, targets), it returns the loss.
        make_optimizer: takes the parameters and a rate.
        batches: at least ten, the same for each rate.
        rates: what to try.

    Returns:
        For each rate the mean loss of the last ten batches; math.inf where training blew up.
    """
    raise NotImplementedError("exercise optimizer.rate_curve")


# %%
# alt: loss over the rate for three optimizers, each a valley: SGD needs the largest rate, AdamW a smaller one
def check_rate_curve() -> None:
    """SGD and AdamW over three powers of ten."""
    rates = [10.0**k for k in (-4, -3, -2, -1, 0)]
    makers = {
        "SGD": lambda params, rate: torch.optim.SGD(params, lr=rate, momentum=0.9),
        "AdamW": lambda params, rate: torch.optim.AdamW(params, lr=rate, betas=(0.8, 0.95)),
    }
    figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
    for name, make in makers.items():
        curve = rate_curve(tiny_gpt, make, draw_batches(60), rates)
        print(name, [round(loss, 2) for loss in curve])
        axes.semilogx(rates, curve, marker="o", label=name)
        assert curve.index(min(curve)) not in (0, 4), f"{name}: no valley in {curve}"
    axes.set(xlabel="rate", ylabel="loss (nats)", ylim=(2, 6.5))
    axes.legend(frameon=False)
    plt.show()


check_rate_curve()
