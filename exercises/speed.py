# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: speed
#
# Fewer passes, fewer bits, and what they do to a training run.

# %%
from collections.abc import Callable
from itertools import islice

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat_lib.data.documents import python_docs
from nanochat_lib.model.gpt import GPT, GPTConfig

# %% [markdown]
# ## gated_backward
#
# Most models of others have a gate where ours has squared ReLU: two products of the same input give a and
# b, and the MLP goes on with
#
# $$ y = \text{silu}(a)\, b \qquad \text{silu}(a) = a\,\sigma(a) \qquad \sigma(a) = \frac{1}{1 + e^{-a}} $$
#
# number by number (SwiGLU, Shazeer 2020, arXiv:2002.05202). Left to autograd, a GPU or CPU keeps a, b, σ(a)
# or silu(a), each four times as wide as the stream. Keep a and b alone, and work out the rest again on the
# way back: given the gradient g of the loss with respect to y, derive the gradients with respect to a and
# to b. On paper first. You need $\sigma' = \sigma\,(1 - \sigma)$ and the rule for products. A check for the
# paper: at a = 0, silu has the slope ½.


# %%
#| exercise gated_backward
def gated_backward(a: Tensor, b: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients of silu(a) * b.

    Args:
        a: the gate before its silu, any shape.
        b: what is gated, the same shape.
        grad: the gradient of the loss with respect to silu(a) * b, the same shape.

    Returns:
        The gradients with respect to a and to b; the arguments are left as they are.
    """
    raise NotImplementedError("exercise speed.gated_backward")


# %%
def check_gated_backward() -> None:
    """Autograd's own gradients, in float64, and the slope at zero."""
    a, b = torch.randn(
        2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).unbind()
    a.requires_grad_(), b.requires_grad_()
    grad = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (F.silu(a) * b).backward(grad)
    for name, x, ours in zip("ab", (a, b), gated_backward(a.detach(), b.detach(), grad)):
        worst = float((ours - x.grad).abs().max())
        assert worst < 1e-10, f"the gradient of {name} is off by {worst:.1e}"
    one = torch.ones(1)
    assert gated_backward(0 * one, one, one)[0].item() == 0.5


check_gated_backward()

# %% [markdown]
# ## stochastic_round
#
# A weight stored in bfloat16 cannot hear an update below half a step of the format: rounding to the
# nearest number undoes it, every time. Let chance round instead. A number that lies a quarter of the way
# from its lower neighbour to its upper one goes up with probability ¼ and down with ¾. Then a thousand
# small updates arrive on average, though each of them arrives whole or not at all.
#
# Round float32 to bfloat16 that way. Numbers that bfloat16 has stay as they are; the mean over many
# draws is the number itself; positive and negative numbers are treated alike. A bfloat16 is the upper
# half of a float32's 32 bits, which suggests a very short solution; there are others.


# %%
#| exercise stochastic_round
def stochastic_round(x: Tensor, generator: torch.Generator) -> Tensor:
    """Round to one of the two neighbouring bfloat16 numbers, by chance, so that the mean is right.

    Args:
        x: float32, finite, any shape.
        generator: where chance comes from.

    Returns:
        bfloat16, x's shape.
    """
    raise NotImplementedError("exercise speed.stochastic_round")


# %%
def check_stochastic_round() -> None:
    """The mean of many draws, and a thousand updates that rounding to nearest would lose."""
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor([1.001, -1.001, 0.3, -70.1, 1e-20])
    mean = torch.stack([stochastic_round(x, generator).float() for _ in range(4000)]).mean(0)
    assert torch.allclose(mean, x, rtol=5e-4), f"means {mean.tolist()}"
    weight = torch.tensor(1.0)
    for _ in range(1000):
        weight = stochastic_round(weight + 0.001, generator).float()
    print(f"1 + 1000 times 0.001 = {weight.item():.2f} by chance, 1.0 by rounding to nearest")
    assert abs(weight.item() - 2) < 0.3


check_stochastic_round()

# %% [markdown]
# ## stored_losses
#
# **Experiment.** How much of a training run does each way of storing weights cost? Train the same model
# from the same start, once for each way: after every update, each weight is replaced by what its
# storage makes of it. Adam's rate falls linearly from `lr` at the first batch to lr / n at the last of n,
# as a cooldown would, because small updates are what gets lost.
#
# Then say what you saw: which way stores without loss? Does the cheap one lose more at the start or at
# the end, and does the gap grow if you halve the rate and double the steps?


# %%
#| exercise stored_losses
def stored_losses(
    make_model: Callable[[], nn.Module],
    batches: list[tuple[Tensor, Tensor]],
    storages: dict[str, Callable[[Tensor], Tensor]],
    lr: float,
) -> dict[str, list[float]]:
    """Train one model for each way of storing weights, always from the same start.

    Args:
        make_model: builds the model; called as model(inputs, targets), it returns the loss.
        batches: one for each step, the same for every storage.
        storages: name -> what is kept of a float32 tensor, in any dtype.
        lr: Adam's rate at the first step; step i of n has lr * (n - i) / n, i from 0.

    Returns:
        For each storage the loss of each batch, before its step.
    """
    raise NotImplementedError("exercise speed.stored_losses")


# %%
# alt: Loss over steps for three ways to store weights: float32 and chance run together, nearest stays above.
def check_stored_losses() -> None:
    """A small GPT on Python's manual, in three storages."""
    text = torch.tensor(list("\n".join(islice(python_docs(), 40)).encode()))
    starts = torch.randint(len(text) - 33, (200, 16, 1), generator=torch.Generator().manual_seed(0))
    rows = [text[start + torch.arange(33)] for start in starts]
    chance = torch.Generator().manual_seed(1)
    storages = {
        "float32": lambda w: w,
        "bfloat16, nearest": lambda w: w.bfloat16(),
        "bfloat16, by chance": lambda w: stochastic_round(w, chance),
    }
    found = stored_losses(
        lambda: GPT(GPTConfig(64, 2, 2, sequence_len=32, vocab_size=256, n_layer=1)),
        [(row[:, :-1], row[:, 1:]) for row in rows],
        storages,
        lr=1e-3,
    )
    figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
    for (name, losses), colour in zip(found.items(), ("tab:blue", "tab:orange", "tab:green")):
        smooth = torch.tensor(losses).unfold(0, 20, 1).mean(1)
        axes.plot(range(20, 201), smooth, color=colour, label=name)
        print(f"{name:20} {float(smooth[-1]):.3f} nats over the last 20 steps")
    axes.set(xlabel="step", ylabel="loss (nats), mean of 20")
    axes.legend(frameon=False)
    plt.show()
    last = {name: sum(losses[-20:]) for name, losses in found.items()}
    assert last["float32"] <= last["bfloat16, nearest"], (
        f"{last}: are weights stored after each step?"
    )


check_stored_losses()
