# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The optimizer: from SGD to AdamW to Muon
#
# We have a model and the gradient of its loss. How far do we move each weight, and in which
# direction? "Against the gradient" is only the first of four answers. Each of the next three
# repairs something that we can watch fail on a problem with two numbers: gradient descent,
# momentum, AdamW, and at last Muon, which treats a matrix as a matrix. The chapter ends with what
# every later training run calls:
#
# ```python
# build_optimizers(model)   # [AdamW for embeddings, head and gates, Muon for the matrices]
# ```
#
# It needs the GPT of the last chapter and what a singular value is. On a laptop the chapter takes
# 15 seconds, most of it three short trainings on real text.

# %%
#| default_exp training.optim
# The optimizers: Muon for matrices, AdamW for the rest.

# %%
#| export
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


# %%
import time
from itertools import islice

import matplotlib.pyplot as plt

# %% [markdown]
# ## A valley with two numbers
#
# Take the loss $\frac12(x^2 + 16y^2)$: a valley that is flat along x and sixteen times steeper
# along y. Its gradient is $(x, 16y)$, so we can follow gradient descent on paper. From (10, 1) with
# a rate of 0.1, x is multiplied by 1 - 0.1 = 0.9 and y by 1 - 1.6 = -0.6.

# %%
CURVATURE = torch.tensor([1.0, 16.0])
START = torch.tensor([10.0, 1.0])


def valley_gradient(point: Tensor) -> Tensor:
    """The gradient of half the curvature-weighted squared distance from zero."""
    return CURVATURE * point


# %%
# NBVAL_CHECK_OUTPUT
point = START.clone()
for _ in range(3):
    print([round(v, 3) for v in point.tolist()])
    point = point - 0.1 * valley_gradient(point)
assert torch.allclose(point, torch.tensor([7.29, -0.216])), (
    f"got {point.tolist()}: is the sign right?"
)

# %% [markdown]
# The two coordinates want different rates. Along y we jump across the valley each time, and at any
# rate above 2/16 = 0.125 the jump grows: `1 - rate * 16` falls below -1. So the steepest direction
# sets the rate, and the flattest one pays for it with small steps. We count the steps until the
# loss is below 0.001, for several rates, with torch's own SGD.


# %%
def steps_until(
    make_optimizer: Callable, hessian: Tensor, start: Tensor, most: int = 300
) -> int | None:
    """Count updates until the loss is below 0.001; None if it never is."""
    point = nn.Parameter(start.clone())
    optimizer = make_optimizer([point])
    for step in range(most):
        if float(0.5 * point.detach() @ hessian @ point.detach()) < 1e-3:
            return step
        point.grad = hessian @ point.detach()
        optimizer.step()
    return None


# %%
# NBVAL_CHECK_OUTPUT
valley = torch.diag(CURVATURE)
for lr in (0.06, 0.10, 0.12, 0.13):
    steps = steps_until(lambda p, lr=lr: torch.optim.SGD(p, lr=lr), valley, START)
    print(f"rate {lr:.2f}: {'diverges' if steps is None else f'{steps} steps'}")

# %% [markdown]
# ## Momentum: let steps that agree add up
#
# Along x all gradients point the same way; along y they alternate. A running sum, in which the past
# fades by a factor of 0.6, makes the first grow towards 1/(1 - 0.6) = 2.5 times its size and lets
# the second cancel.
#
# $$ v \leftarrow 0.6\,v + g \qquad\qquad p \leftarrow p - \text{rate}\cdot v $$

# %%
# NBVAL_CHECK_OUTPUT
velocity_x = velocity_y = 0.0
for step in range(6):
    velocity_x = 0.6 * velocity_x + 1.0
    velocity_y = 0.6 * velocity_y + (-1.0) ** step
print(f"agreeing gradients {velocity_x:.2f}, alternating gradients {abs(velocity_y):.2f}")

# %%
# NBVAL_CHECK_OUTPUT
momentum_steps = steps_until(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.6), valley, START)
print(f"with momentum: {momentum_steps} steps")

# %% [markdown]
# Fifty-two steps became twenty at the same rate, for one extra number a weight. *Nesterov*
# momentum, which Muon will use, steps along $g + \beta v$ instead of $v$: it applies the fading
# once more before it looks, as if the gradient were measured a little ahead.
#
# ## Adam: every number gets its own rate
#
# Momentum still has one rate for all. An embedding row of a rare token sees a gradient once in a
# thousand steps, the head sees one always; their sizes differ by orders of magnitude. Adam divides
# each number's mean gradient by the root of its mean *squared* gradient. What is left has no unit:
# about 1 where gradients agree, about 0 where they are noise.
#
# Both running means start at zero, so early on they are too small: after t steps by the factor $1 -
# \beta^t$. Dividing by that factor removes the bias. Here is the whole algorithm for one tensor,
# written to be read:


# %%
def adamw_step(p, grad, mean, square, step, lr, betas, eps, weight_decay=0.0) -> None:
    """One AdamW update in place; `step` counts from 1."""
    beta1, beta2 = betas
    p.mul_(1 - lr * weight_decay)
    mean.mul_(beta1).add_(grad, alpha=1 - beta1)
    square.mul_(beta2).add_(grad * grad, alpha=1 - beta2)
    unbiased_mean = mean / (1 - beta1**step)
    unbiased_square = square / (1 - beta2**step)
    p.sub_(lr * unbiased_mean / (unbiased_square.sqrt() + eps))


# %% [markdown]
# By hand: at step 1 the unbiased mean is g, the unbiased square is g², and g/√g² is the sign of g.
# So from (10, 1), where the gradient is (10, 16), the first step is the rate in *both* coordinates.
# The factor of 16 is gone.

# %%
point, mean, square = START.clone(), torch.zeros(2), torch.zeros(2)
adamw_step(
    point, valley_gradient(point), mean, square, step=1, lr=0.5, betas=(0.9, 0.99), eps=1e-10
)
assert torch.allclose(point, torch.tensor([9.5, 0.5])), (
    f"got {point.tolist()}: is the bias removed?"
)

# %% [markdown]
# The W in AdamW is *decoupled* weight decay: the parameter itself shrinks by the factor 1 - rate *
# decay. Adding decay * p to the gradient instead would send it through the division, and weights
# with large gradients would hardly decay. Our function puts the shrinking first, so with a zero
# gradient only that remains.

# %%
point, mean, square = START.clone(), torch.zeros(2), torch.zeros(2)
adamw_step(
    point, torch.zeros(2), mean, square, 1, lr=0.5, betas=(0.9, 0.99), eps=1e-10, weight_decay=0.2
)
assert torch.allclose(point, 0.9 * START), f"got {point.tolist()}: is the decay decoupled?"

# %% [markdown]
# The plain function runs ten small operations for each tensor. A model has dozens of tensors, and
# every operation costs a few microseconds of Python before it does any work. The class below does
# the same arithmetic with torch's `_foreach_` operations, which take whole lists of tensors: eight
# calls for all of them. State sits in `self.state[p]` under torch's usual names, so that
# checkpoints can find it.


# %%
#| export
class AdamW(torch.optim.Optimizer):
    """Update each number by its mean gradient over the root of its mean squared gradient.

    Args:
        params: parameters of any shape, or groups of them.
        lr: learning rate.
        betas: weight of the past in the two running means.
        eps: added to the root, in units of the gradient.
        weight_decay: decoupled: shrinks the parameter itself, not through the gradient.

    Raises:
        ValueError: lr, a beta or eps lies outside its range.

    Source: Loshchilov & Hutter 2019 (arXiv:1711.05101), algorithm 2.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        fine = lr >= 0 and eps >= 0 and weight_decay >= 0  # not so for NaN, nor is NaN < 0
        if not (fine and all(0 <= beta < 1 for beta in betas)):
            raise ValueError(
                f"{lr=}, {betas=}, {eps=}, {weight_decay=}: need 0 or more, and betas below 1"
            )
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:
        """Update every parameter that has a gradient; closures are not supported."""
        if closure is not None:
            raise ValueError("AdamW takes no closure: call backward() first, then step()")
        for group in self.param_groups:
            by_step = defaultdict(list)  # one bucket, unless some parameter missed a gradient
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(
                        step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p)
                    )
                state["step"] += 1
                by_step[state["step"]].append(p)
            for step, params in by_step.items():
                self._update(params, step, group)

    def _update(self, params: list[Tensor], step: int, group: dict) -> None:
        """Update parameters that have all seen `step` gradients."""
        beta1, beta2 = group["betas"]
        grads = [p.grad for p in params]
        means = [self.state[p]["exp_avg"] for p in params]
        squares = [self.state[p]["exp_avg_sq"] for p in params]
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, (1 - beta2**step) ** 0.5)
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(params, means, roots, -group["lr"] / (1 - beta1**step))


# %% [markdown]
# Three implementations should now agree: the plain one, the class, and torch's. We give all three
# the same random gradients for five steps, in shapes with one and two dimensions.


# %%
def random_parameters(shapes: list[tuple], seed: int = 0) -> list[nn.Parameter]:
    """Draw parameters from a normal distribution."""
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def give_gradients(params: list[nn.Parameter], step: int) -> None:
    """Fill .grad with the same random numbers for the same step."""
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


# %%
shapes = [(64, 32), (32,), (5, 7)]
options = dict(lr=0.01, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.1)
ours, torchs, plain = (random_parameters(shapes) for _ in range(3))
our_adamw, torch_adamw = AdamW(ours, **options), torch.optim.AdamW(torchs, **options)
means, squares = ([torch.zeros_like(p) for p in plain] for _ in range(2))
for step in range(1, 6):
    for params in (ours, torchs, plain):
        give_gradients(params, step)
    our_adamw.step()
    torch_adamw.step()
    with torch.no_grad():
        for p, m, v in zip(plain, means, squares):
            adamw_step(p, p.grad, m, v, step, **options)

# %%
for a, b, c in zip(ours, torchs, plain):
    assert torch.allclose(a, b, atol=1e-6), "differs from torch: is eps outside the root?"
    assert torch.allclose(a, c, atol=1e-6), "differs from the plain version"

# %% [markdown]
# ## What Adam cannot see
#
# Adam's rates belong to coordinates. Let us turn the valley by 45 degrees: the same landscape,
# described in other axes. Gradient descent and momentum do not notice, because the gradient turns
# along with the valley. Adam does.

# %%
# NBVAL_CHECK_OUTPUT
turn = torch.tensor([[1.0, -1.0], [1.0, 1.0]]) / 2**0.5
candidates = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.6),
    "Adam": lambda p: AdamW(p, lr=1.0, betas=(0.6, 0.95)),
}
for name, make in candidates.items():
    straight = steps_until(make, valley, START)
    turned = steps_until(make, turn @ valley @ turn.T, turn @ START)
    print(f"{name:9s} straight {straight:3d} steps, turned {turned:3d}")


# %%
def path_through(
    make_optimizer: Callable, hessian: Tensor, start: Tensor, steps: int = 16
) -> Tensor:
    """Record the points an optimizer visits, (steps + 1, 2)."""
    point = nn.Parameter(start.clone())
    optimizer, visited = make_optimizer([point]), [start]
    for _ in range(steps):
        point.grad = hessian @ point.detach()
        optimizer.step()
        visited.append(point.detach().clone())
    return torch.stack(visited)


# %%
# alt: A valley straight and turned by 45 degrees. SGD zigzags, momentum swings in, Adam bends.
fig, axes = plt.subplots(1, 2, figsize=(6.5, 3), sharey=True)
across, up = torch.meshgrid(torch.linspace(-4, 11, 80), torch.linspace(-5, 9, 80), indexing="xy")
grid = torch.stack([across, up], dim=-1)
for ax, rotation, title in zip(axes, (torch.eye(2), turn), ("straight", "turned")):
    height = ((grid @ rotation) ** 2 * CURVATURE).sum(-1)
    ax.contour(across, up, height, levels=[4, 20, 60, 140], colors="lightgrey", linewidths=0.8)
    for (name, make), colour in zip(candidates.items(), ("tab:blue", "tab:orange", "tab:green")):
        path = path_through(make, rotation @ valley @ rotation.T, rotation @ START)
        ax.plot(*path.T, ".-", color=colour, label=name, markersize=4, linewidth=1)
    ax.set(xlabel="first weight", title=title, aspect="equal")
axes[0].set_ylabel("second weight")
axes[0].legend(frameon=False, fontsize=8)
plt.tight_layout()
plt.show()

# %% [markdown]
# *Sixteen steps from the same start. Blue and orange cross the valley on the right as they do on the
# left. Green's first step is one unit in each weight, whichever way the valley lies: Adam's rates are
# tied to the axes, and the axes of the right panel mean nothing to the valley.* Turn the paths of the
# right panel back, and lay them over those of the left:

# %%
for name, make in candidates.items():
    straight = path_through(make, valley, START)
    turned_back = path_through(make, turn @ valley @ turn.T, turn @ START) @ turn
    apart = (straight - turned_back).norm(dim=1).max().item()
    print(f"{name:9s} at most {apart:.2f} apart")
    assert (apart > 0.5) if name == "Adam" else (apart < 0.01), f"{name}: {apart}"

# %% [markdown]
# For an embedding table the axes are real: each row belongs to one token. For the matrix of a
# linear layer they are not. Its input can be rotated, and the matrix rotated back, without changing
# what the network computes. An optimizer for matrices should not care about axes. What else could
# it care about?
#
# ## What the gradient of a matrix looks like
#
# A linear layer $y = Wx$ receives as gradient a sum of outer products, one for each token: (error
# at the output) times (input). Inputs resemble each other and so do errors, so a few directions
# collect most of the sum. We look at a real one: a small GPT reading the help topics that come with
# Python, as bytes.

# %%
from nanochat_lib.data.documents import python_docs
from nanochat_lib.model.gpt import GPT, GPTConfig

topics = "\n".join(islice(python_docs(), 79))
ids = torch.tensor(list(topics.encode()))
TINY = GPTConfig(sequence_len=64, vocab_size=256, n_layer=2, n_embd=64, n_head=2, n_kv_head=2)


# %%
def random_batch(
    generator: torch.Generator, rows: int = 16, length: int = 64
) -> tuple[Tensor, Tensor]:
    """Cut random windows out of the text: inputs and targets, (rows, length) each."""
    starts = torch.randint(len(ids) - length - 1, (rows,), generator=generator)
    windows = torch.stack([ids[start : start + length + 1] for start in starts])
    return windows[:, :-1], windows[:, 1:]


# %% [markdown]
# An untrained head passes back next to nothing (its weights start near zero), so we first train for
# a few steps with AdamW and then take the gradient of the first MLP matrix, 256 x 64.


# %%
def train_tiny(make_optimizers: Callable, steps: int) -> tuple[GPT, list[float]]:
    """Train the tiny GPT from one fixed start on one fixed sequence of batches."""
    model, generator, losses = GPT(TINY), torch.Generator().manual_seed(0), []
    optimizers = make_optimizers(model)
    for _ in range(steps):
        model.zero_grad()
        loss = model(*random_batch(generator))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    return model, losses


# %%
model, _ = train_tiny(lambda m: [AdamW(m.parameters(), lr=3e-3, betas=(0.8, 0.95))], steps=10)
gradient = model.blocks[0].mlp.c_fc.weight.grad
sizes = torch.linalg.svdvals(gradient)
share = (sizes[:4] ** 2).sum() / (sizes**2).sum()
print(f"singular values: largest {sizes[0]:.1e}, median {sizes[32]:.1e}, smallest {sizes[-1]:.1e}")
assert share > 0.5, f"the first 4 of 64 directions hold {share:.0%}"

# %% [markdown]
# Four directions of 64 hold more than half of the gradient's squared length. A step along this
# gradient moves the layer in those four directions and leaves the others for later, as gradient
# descent did in the flat direction of the valley.
#
# The repair in the valley was to give all directions the same step. For a matrix, directions are
# singular vectors. With $G = U S V^\top$ ($U$ and $V$ orthogonal, $S$ the diagonal of singular
# values), we keep $U$ and $V$ and put 1 in place of every singular value:
#
# $$ G = U S V^\top \quad\longrightarrow\quad U V^\top $$
#
# There is a second way to arrive here. Ask which update $O$ gains most, to first order, among those
# that stretch no input by more than 1. The gain is $\langle G, O\rangle$; the largest singular
# value of $O$ is at most 1; and the answer is $O = UV^\top$, with a gain equal to the sum of $G$'s
# singular values. By hand: for G = diag(3, 1) the answer is the identity, with gain 3 + 1 = 4. The
# gradient itself, scaled to the same limit, diag(1, 1/3), gains only 3 + 1/3.

# %%
by_hand = torch.diag(torch.tensor([3.0, 1.0]))
u, s, vt = torch.linalg.svd(by_hand)
assert torch.allclose(u @ vt, torch.eye(2)) and (by_hand * (u @ vt)).sum() == 4.0

# %% [markdown]
# ## Newton-Schulz: the same without an SVD
#
# An SVD at every step is slow, above all on a GPU. But odd powers of a matrix are cheap, and they
# act on singular values alone: since $U^\top U = 1$ and $V^\top V = 1$,
#
# $$ aX + b\,XX^\top X + c\,(XX^\top)^2 X \;=\; U\,(aS + bS^3 + cS^5)\,V^\top. $$
#
# So we look for a polynomial $p(s) = as + bs^3 + cs^5$ that drives every s between 0 and 1 towards
# 1 when we apply it again and again. The textbook choice, $\frac32 s - \frac12 s^3$, converges to
# exactly 1 but multiplies small values by only 1.5 a round. Keller Jordan's coefficients give up on
# exactly 1 and multiply by 3.4445.

# %%
#| export
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b, c of p(s) = a s + b s^3 + c s^5


# %%
def push(s: Tensor, coefficients: tuple[float, float, float], rounds: int) -> Tensor:
    """Apply the polynomial to singular values, again and again."""
    a, b, c = coefficients
    for _ in range(rounds):
        s = a * s + b * s**3 + c * s**5
    return s


# %%
# NBVAL_CHECK_OUTPUT
for s in (0.001, 0.01, 0.1, 1.0):
    textbook, quintic = (push(torch.tensor(s), k, 5) for k in ((1.5, -0.5, 0.0), NEWTON_SCHULZ))
    print(f"{s:5.3f} -> textbook {textbook:.3f}, Muon's {quintic:.3f}")

# %%
# alt: Singular values after 1, 3, 5 rounds. After 5, all above 0.003 lie between 0.68 and 1.2.
start = torch.logspace(-3, 0, 400)
fig, ax = plt.subplots(figsize=(6.5, 3))
for rounds, colour in ((1, "tab:blue"), (3, "tab:orange"), (5, "tab:green")):
    ax.plot(start, push(start, NEWTON_SCHULZ, rounds), color=colour, label=f"{rounds} rounds")
ax.plot(start, push(start, (1.5, -0.5, 0.0), 5), color="grey", label="textbook, 5 rounds")
ax.axhline(1, color="lightgrey", linewidth=0.8)
ax.set(xscale="log", xlabel="singular value before (1 = the matrix's norm)", ylabel="after")
ax.legend(frameon=False, fontsize=8)
plt.tight_layout()
plt.show()

# %% [markdown]
# *After five rounds (green) the curve wobbles between 0.68 and 1.2 instead of settling at 1. In
# exchange, a direction that had a hundredth of the norm takes part as fully as the first. Grey is
# the textbook polynomial with the same number of products.*

# %%
spread = push(torch.linspace(0.01, 1, 10_000), NEWTON_SCHULZ, 5)
assert 0.68 < spread.min() and spread.max() < 1.21, f"{spread.min():.3f} to {spread.max():.3f}"

# %% [markdown]
# Three details make it a function. The singular values must start at or below 1: dividing by the
# Frobenius norm (the root of the sum of all squares) guarantees that. The product $XX^\top$ should
# have the *short* side, so a tall matrix is transposed first. And the function takes a whole batch
# of matrices, because a GPT has many of one shape, and a call for all of them is one call to wait for.


# %%
#| export
def newton_schulz(
    g: Float[Tensor, "... M N"], steps: int = 5, dtype: torch.dtype | None = None
) -> Float[Tensor, "... M N"]:
    """Push every singular value of each matrix towards 1 and keep its singular vectors.

    Example: diag(3, 1) -> about diag(0.7, 1.1), with five steps.

    Args:
        g: one matrix or a batch of them, any float dtype, shape (..., M, N).
        steps: iterations of the polynomial; 5 reach singular values between about 0.7 and 1.2.
        dtype: what to compute in; None means bfloat16 on a GPU, float32 elsewhere.

    Returns:
        g's shape, in the dtype computed in. A matrix of zeros stays zero.

    Raises:
        ValueError: g has fewer than two dimensions.

    Source: Jordan et al. 2024, "Muon", https://kellerjordan.github.io/posts/muon/
    """
    if g.ndim < 2:
        raise ValueError(
            f"newton_schulz needs matrices, got shape {tuple(g.shape)}: use AdamW there"
        )
    if dtype is None:
        dtype = torch.bfloat16 if g.device.type == "cuda" else torch.float32
    a, b, c = NEWTON_SCHULZ
    tall = g.size(-2) > g.size(-1)
    batch, (rows, columns) = g.shape[:-2], g.shape[-2:]
    x = g.to(dtype).reshape(-1, rows, columns)
    x = x.mT if tall else x  # the Gram matrix below gets the short side
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # no singular value above 1
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).reshape(*batch, rows, columns)


# %% [markdown]
# Checks: the case by hand; that singular vectors are kept, which means that $U^\top O V$ is
# diagonal; that rotating the input rotates the output, the property that Adam lacks; and agreement
# with torch's function, which computes in bfloat16, so we do as well.

# %%
by_hand = newton_schulz(torch.diag(torch.tensor([3.0, 1.0])))
expected = push(torch.tensor([3.0, 1.0]) / 10**0.5, NEWTON_SCHULZ, 5)
assert torch.allclose(by_hand, torch.diag(expected), atol=1e-5), (
    f"got {by_hand}: divided by the norm?"
)

# %%
u, s, vt = torch.linalg.svd(gradient, full_matrices=False)
inside = u.T @ newton_schulz(gradient) @ vt.T
off_diagonal = inside - torch.diag(inside.diagonal())
assert off_diagonal.abs().max() < 1e-3, f"{off_diagonal.abs().max()}: are the vectors kept?"
assert newton_schulz(torch.zeros(3, 2)).abs().max() == 0

# %%
rotation = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(1))).Q
there_and_back = newton_schulz(gradient @ rotation) @ rotation.T
assert torch.allclose(there_and_back, newton_schulz(gradient), atol=1e-3)

# %%
reference = torch.optim._muon._zeropower_via_newtonschulz(gradient, NEWTON_SCHULZ, 5, 1e-7)
difference = (newton_schulz(gradient, dtype=torch.bfloat16) - reference).abs().max()
assert difference < 0.02, f"{difference}: same coefficients and order of operations?"

# %% [markdown]
# ## Muon
#
# *Momentum, orthogonalized*: keep the running mean of gradients, look ahead as Nesterov does, push
# the singular values to 1, step. One more factor. An input of C numbers of size 1 has length $\sqrt
# C$, and an update with singular values of 1 keeps that length at most. If the output has more
# numbers than the input, R > C, each of them is only $\sqrt{C/R}$ large. Multiplying the step by
# $\sqrt{\max(1, R/C)}$ makes up for it. There is one state tensor for each weight instead of Adam's
# two.


# %%
#| export
class Muon(torch.optim.Optimizer):
    """Update matrices by momentum whose singular values Newton-Schulz has evened out.

    Matrices of one shape are stacked and go through one batched Newton-Schulz.

    Args:
        params: parameters with two dimensions, or groups of them.
        lr: learning rate; the update of an (M, N) matrix is also scaled by max(1, M/N)**0.5.
        momentum: weight of the past in the running mean of gradients.
        nesterov: look one step ahead along the momentum.
        weight_decay: decoupled, as in AdamW.
        ns_steps: iterations of Newton-Schulz.

    Raises:
        ValueError: a parameter is not a matrix, or lr or momentum lies outside its range.

    Source: Jordan et al. 2024, "Muon", https://kellerjordan.github.io/posts/muon/
    """

    orthogonalize = staticmethod(newton_schulz)  # called with (matrices, ns_steps)

    def __init__(
        self,
        params: Iterable,
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
    ) -> None:
        if not (lr >= 0 and weight_decay >= 0 and 0 <= momentum < 1):
            raise ValueError(
                f"{lr=}, {momentum=}, {weight_decay=}: need 0 or more, momentum below 1"
            )
        defaults = dict(lr=lr, momentum=momentum, nesterov=nesterov)
        super().__init__(params, defaults | dict(weight_decay=weight_decay, ns_steps=ns_steps))
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.ndim != 2:
                raise ValueError(
                    f"Muon got a parameter of shape {tuple(p.shape)}: use AdamW for it"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:
        """Update every parameter that has a gradient; closures are not supported."""
        if closure is not None:
            raise ValueError("Muon takes no closure: call backward() first, then step()")
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape, p.dtype, p.device].append(p)
            for same_shape in by_shape.values():
                self._update(same_shape, group)

    def _update(self, params: list[Tensor], group: dict) -> None:
        """Update parameters that all have one shape."""
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        grads = [p.grad for p in params]
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        if group["nesterov"]:
            buffers = torch._foreach_lerp(grads, buffers, group["momentum"])
        updates = self.orthogonalize(torch.stack(buffers), group["ns_steps"])
        updates = updates.to(params[0].dtype)
        rows, columns = params[0].shape
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        scale = max(1, rows / columns) ** 0.5
        torch._foreach_add_(params, list(updates.unbind()), alpha=-group["lr"] * scale)


# %% [markdown]
# torch ships a Muon since 2.9. Its Newton-Schulz runs in bfloat16 and matrix by matrix; ours in
# float32 on a CPU and stacked. bfloat16 keeps 8 bits of a number, so we expect an agreement to
# about a hundredth of a step, and check for a twentieth.

# %%
shapes = [(64, 64)] * 3 + [(256, 64), (64, 256)]
ours, torchs = random_parameters(shapes), random_parameters(shapes)
our_muon = Muon(ours, lr=0.02, weight_decay=0.1)
torch_muon = torch.optim.Muon(torchs, lr=0.02, weight_decay=0.1, adjust_lr_fn="original")
for step in range(4):
    for params, optimizer in ((ours, our_muon), (torchs, torch_muon)):
        give_gradients(params, step)
        optimizer.step()

# %%
before = random_parameters(shapes)
for a, b, start in zip(ours, torchs, before):
    error = (a - b).norm() / (b - start).norm()
    assert error < 0.05, f"{tuple(a.shape)} is off by {error:.1%} of the way: scale or Nesterov?"

# %% [markdown]
# ## Which weight gets which optimizer
#
# Muon is for matrices that map vectors to vectors. Everything else goes to AdamW: embeddings (a
# look-up table: its axes are tokens), the output head (rows are tokens too), gates and scalars.
# Four kinds, four rates.


# %%
#| export
@dataclass(frozen=True)
class OptimConfig:
    """Learning rates by kind of parameter, at width 768, and what AdamW and Muon share."""

    matrix_lr: float = 0.02  # Muon: every matrix inside the blocks
    embedding_lr: float = 0.2  # AdamW: token embeddings
    head_lr: float = 0.004  # AdamW: the output head
    scalar_lr: float = 0.02  # AdamW: gates and other parameters without two long sides
    weight_decay: float = 0.0  # of the matrices
    ns_steps: int = 5  # Muon's iterations
    betas: tuple[float, float] = (0.8, 0.95)
    eps: float = 1e-10


# %%
#| export
def parameter_kinds(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Sort a model's trainable parameters into matrix, embedding, head and scalar.

    Args:
        model: has its token embeddings in nn.Embedding modules and its output layer in `lm_head`.

    Returns:
        The four lists; every trainable parameter is in exactly one.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    kinds = {"matrix": [], "embedding": [], "head": [], "scalar": []}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if id(p) in embeddings:
            kinds["embedding"].append(p)
        elif "lm_head" in name.split("."):
            kinds["head"].append(p)
        elif p.ndim == 2 and min(p.shape) > 1:
            kinds["matrix"].append(p)
        else:
            kinds["scalar"].append(p)
    return kinds


# %% [markdown]
# The rates come from nanochat, where they were tuned at width 768. A head that is half as wide adds
# up half as many products; for its output to move as much, each weight has to move more. A rate
# proportional to 1/width would compensate in full (Yang et al. 2022, arXiv:2203.03466); nanochat
# uses the square root, $(\text{width}/768)^{-1/2}$, a gentler correction, and we follow it. Muon's
# update fixes the size of its own output and needs no such factor, and a gate has no width.


# %%
#| export
def build_optimizers(
    model: nn.Module, config: OptimConfig = OptimConfig()
) -> list[torch.optim.Optimizer]:
    """Give each kind of parameter its optimizer and rate.

    Embedding and head rates are scaled by (n_embd / 768)**-0.5. Each group keeps its rate as
    `initial_lr` too, so that a schedule can multiply it.

    Args:
        model: a GPT; its width is read from `model.config.n_embd`.
        config: the rates.

    Returns:
        One AdamW and, where there are matrices, one Muon.

    Raises:
        ValueError: the model has nothing to train, or a weight is not contiguous in memory.
    """
    kinds = parameter_kinds(model)
    for name, p in model.named_parameters():
        if not p.is_contiguous():  # some back ends silently drop in-place updates of such a tensor
            raise ValueError(f"{name} is not contiguous: build it with .contiguous()")
    width_scale = (model.config.n_embd / 768) ** -0.5
    rates = {
        "embedding": config.embedding_lr * width_scale,
        "head": config.head_lr * width_scale,
        "scalar": config.scalar_lr,
    }
    groups = [dict(params=kinds[k], lr=lr, kind=k) for k, lr in rates.items() if kinds[k]]
    optimizers = []
    if groups:
        optimizers.append(AdamW(groups, betas=config.betas, eps=config.eps))
    if kinds["matrix"]:
        group = dict(params=kinds["matrix"], kind="matrix")
        shared = dict(weight_decay=config.weight_decay, ns_steps=config.ns_steps)
        muon = Muon([group], lr=config.matrix_lr, **shared)
        optimizers.append(muon)
    if not optimizers:
        raise ValueError("the model has no trainable parameter: is requires_grad off everywhere?")
    for group in (g for optimizer in optimizers for g in optimizer.param_groups):
        group["initial_lr"] = group["lr"]
    return optimizers


# %%
# NBVAL_CHECK_OUTPUT
model = GPT(TINY)
for optimizer in build_optimizers(model):
    for group in optimizer.param_groups:
        count = sum(p.numel() for p in group["params"])
        print(
            f"{type(optimizer).__name__:6s} {group['kind']:10s} "
            f"rate {group['lr']:.4f}  {count:6d} weights"
        )

# %%
kinds = parameter_kinds(GPT(TINY))
assert sum(p.numel() for group in kinds.values() for p in group) == model.num_params()

# %% [markdown]
# ## Use it: three optimizers on real text
#
# The same tiny GPT, the same 80 batches of 1,024 bytes, three optimizers. A comparison is worth as
# much as the tuning of its loser, so each got the best rate of a small grid: momentum SGD of 0.1,
# 0.3 and 1; AdamW of 0.001, 0.003, 0.01 and 0.03; Muon of 0.01, 0.02 and 0.04 with its other rates
# left at the values of our laptop runs.

# %%
contestants = {
    "SGD with momentum": lambda m: [torch.optim.SGD(m.parameters(), lr=0.3, momentum=0.9)],
    "AdamW": lambda m: [AdamW(m.parameters(), lr=0.01, betas=(0.8, 0.95), eps=1e-10)],
    "Muon + AdamW": lambda m: build_optimizers(m, OptimConfig(0.04, 0.03, 0.002)),
}
curves = {name: train_tiny(make, steps=80)[1] for name, make in contestants.items()}

# %%
final = {name: sum(losses[-10:]) / 10 for name, losses in curves.items()}
for name, loss in final.items():
    print(f"{name:18s} {loss:.3f} nats a byte, mean of the last 10 steps")
assert final["Muon + AdamW"] < final["AdamW"] < final["SGD with momentum"] < 5.0

# %% [markdown]
# And the bar of chapter `baseline`? Counting the pairs of the same text, judged on the windows of the
# last ten steps:

# %%
from nanochat_lib.evaluation.bpb import BigramModel, bigram_counts

generator = torch.Generator().manual_seed(0)
windows = [random_batch(generator) for _ in range(80)][-10:]
counting = BigramModel(bigram_counts(ids, 256))
pairs = sum(counting(x, y).item() for x, y in windows) / 10
print(f"counting pairs {pairs:.3f} nats a byte, on text that it has counted")
assert final["Muon + AdamW"] < pairs

# %% [markdown]
# Eighty steps of Muon pass the bar, although counting has seen all of these windows and the network
# few of them. Did the other two?

# %%
# alt: Loss over 80 steps, three optimizers: Muon with AdamW lowest, then AdamW, then SGD.
fig, ax = plt.subplots(figsize=(6.5, 3))
for (name, losses), colour in zip(curves.items(), ("tab:blue", "tab:green", "tab:orange")):
    ax.plot(losses, color=colour, label=name, linewidth=1)
ax.set(xlabel="step", ylabel="loss, nats a byte", ylim=(2, 5.6))
ax.legend(frameon=False, fontsize=8)
plt.tight_layout()
plt.show()

# %% [markdown]
# *One seed, one size, 80 steps: enough to see an order, not to claim a factor.* Published factors
# differ as well: Liu et al. 2025 (arXiv:2502.16982) report AdamW's loss for 52% of its compute; Wen
# et al. 2025 (arXiv:2509.02046), who tune AdamW harder, find 1.4 times the speed at 0.1 billion
# parameters and 1.1 times at 1.2 billion.
#
# ## Cost
#
# Newton-Schulz on a matrix with short side m and long side n takes, in each round, two products
# with $2m^2n$ operations and one with $2m^3$. The layer itself costs $6mn$ operations a token,
# forward and backward. With five rounds and a batch of B tokens the overhead is
#
# $$ \frac{5\,(4m^2n + 2m^3)}{6\,mn\,B} \;=\; \frac{5\,(4m + 2m^2/n)}{6B}, $$
#
# which grows with the width and shrinks with the batch.


# %%
def newton_schulz_flops(rows: int, columns: int, steps: int = 5) -> int:
    """Count the operations of the three products in each round."""
    short, long = sorted((rows, columns))
    return steps * (4 * short**2 * long + 2 * short**3)


# %%
# NBVAL_CHECK_OUTPUT
for name, width, tokens in (("laptop", 128, 1024), ("d20", 1280, 524_288)):
    extra = 4 * newton_schulz_flops(width, width) + 2 * newton_schulz_flops(4 * width, width)
    print(
        f"{name:6s} width {width:4d}: {extra / (6 * 12 * width**2 * tokens):6.2%} on top of a block"
    )

# %% [markdown]
# So on a GPU node Muon is almost free, and on a laptop, at 1,024 tokens a step, it
# costs half as much again as the blocks; its profile, narrower still, makes three iterations and not five. The same for time: the float32 matrices of a small model (four layers of width 128) hold 2.5 billion
# operations of Newton-Schulz a step. We time them stacked and one by one, and compare with what
# this machine manages in one large product.


# %%
def best_seconds(work: Callable, repeats: int = 5) -> float:
    """Time some work and keep the fastest of several runs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


# %%
stacks = [torch.randn(16, 128, 128), torch.randn(4, 512, 128), torch.randn(4, 128, 512)]
flops = sum(len(stack) * newton_schulz_flops(*stack.shape[1:]) for stack in stacks)
square_matrix = torch.randn(1024, 1024)
peak = 2 * 1024**3 / best_seconds(lambda: square_matrix @ square_matrix)
stacked = best_seconds(lambda: [newton_schulz(stack) for stack in stacks])
one_by_one = best_seconds(lambda: [newton_schulz(g) for stack in stacks for g in stack])
print(f"{flops / 1e9:.1f} GFLOP: {flops / peak * 1e3:.0f} ms at this machine's peak")
print(f"stacked {stacked * 1e3:.0f} ms, one by one {one_by_one * 1e3:.0f} ms")
assert round(flops / 1e9, 1) == 2.5

# %% [markdown]
# Stacking buys little here, because on two cores the products themselves are the work. It is for
# machines on which starting a product costs more than doing it.

# %% [markdown]
# Memory: AdamW keeps two numbers a weight, Muon one. For d20, with its 2 x 83.9 million weights in
# tables and 393 million in matrices, the states take:

# %%
# NBVAL_CHECK_OUTPUT
tables, matrices = 2 * 65_536 * 1280, 12 * 20 * 1280**2
assert tables + matrices == 560_988_160
adamw_bytes, both_bytes = 8 * (tables + matrices), 8 * tables + 4 * matrices
print(f"AdamW alone {adamw_bytes / 1e9:.2f} GB, with Muon {both_bytes / 1e9:.2f} GB")

# %% [markdown]
# ## What goes wrong: a layer that never learns
#
# In 2024 PyTorch's own tests showed that on Apple GPUs `addcdiv_` silently returned wrong results
# when the tensor it should write to was not contiguous (pytorch issue 118115), and that an
# optimizer "does not update noncontiguous params" there (118117). The kernel could only write
# contiguous memory, so a copy was made, the copy was filled, and nobody copied it back. No error,
# and in a large model a loss that still falls, because the other layers learn.
#
# We can rebuild it in three lines. `broken_addcdiv_` computes `out += value * a / b` with the bug:


# %%
def broken_addcdiv_(out: Tensor, a: Tensor, b: Tensor, value: float) -> None:
    """Write into a contiguous copy, and forget the copy."""
    target = out if out.is_contiguous() else out.contiguous()
    target.add_(value * a / b)


# %% [markdown]
# When is a parameter not contiguous? A common start for an autoencoder makes the encoder the
# transpose of the decoder. Transposing only relabels memory, and even `clone()` keeps the layout.
# Here is such a model with an AdamW on the broken kernel.


# %%
def make_autoencoder(contiguous: bool) -> nn.ModuleDict:
    """Two linear layers, 8 -> 3 -> 8; the encoder starts as the decoder's transpose."""
    torch_generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(8, 3, generator=torch_generator)
    encoder = decoder.T.contiguous() if contiguous else decoder.T.clone()
    layers = nn.ModuleDict(
        {"encoder": nn.Linear(8, 3, bias=False), "decoder": nn.Linear(3, 8, bias=False)}
    )
    layers["encoder"].weight = nn.Parameter(encoder)
    layers["decoder"].weight = nn.Parameter(decoder)
    return layers


# %%
def broken_adamw_step(params: list[Tensor], state: dict, step: int, lr: float = 0.02) -> None:
    """AdamW without decay, on the broken kernel."""
    with torch.no_grad():
        for i, p in enumerate(params):
            mean, square = state.setdefault(i, (torch.zeros_like(p), torch.zeros_like(p)))
            mean.lerp_(p.grad, 0.1)
            square.lerp_(p.grad**2, 0.05)
            root = (square / (1 - 0.95**step)).sqrt() + 1e-8
            broken_addcdiv_(p, mean, root, -lr / (1 - 0.9**step))


# %%
def fit(model: nn.ModuleDict, steps: int = 100) -> list[float]:
    """Train the autoencoder to reproduce fixed noise."""
    data, state, losses = torch.randn(64, 8, generator=torch.Generator().manual_seed(1)), {}, []
    for step in range(1, steps + 1):
        model.zero_grad()
        loss = (model["decoder"](model["encoder"](data)) - data).square().mean()
        loss.backward()
        broken_adamw_step(list(model.parameters()), state, step)
        losses.append(loss.item())
    return losses


# %%
autoencoder = make_autoencoder(contiguous=False)
losses = fit(autoencoder)
print(f"the loss falls: {losses[0]:.2f} -> {losses[-1]:.2f}, it looks like training")
assert losses[-1] < 0.5 * losses[0]

# %% [markdown]
# Nothing in the curve gives it away. The check that finds it, and every other bug of this family (a
# frozen layer, a parameter missing from all groups, a detached graph), asks each parameter whether
# it moved although it had a gradient. It costs one copy of the weights, once, at the start of a
# run.


# %%
def stuck_parameters(model: nn.Module, before: dict[str, Tensor]) -> list[str]:
    """Name the parameters that have a gradient and yet are equal to what they were, to the bit."""
    return [
        name
        for name, p in model.named_parameters()
        if p.grad is not None and p.grad.abs().max() > 0 and torch.equal(p.detach(), before[name])
    ]


# %%
# NBVAL_CHECK_OUTPUT
for contiguous in (False, True):
    autoencoder = make_autoencoder(contiguous)
    before = {name: p.detach().clone() for name, p in autoencoder.named_parameters()}
    fit(autoencoder, steps=1)
    print(f"contiguous {contiguous}: stuck {stuck_parameters(autoencoder, before)}")

# %% [markdown]
# One `.contiguous()` at the start repairs it, on every version of every back end. Since a GPT has
# no reason to hold a transposed weight, `build_optimizers` simply refuses one. And our own GPT
# passes the check of movement, but only from the second step on: its output projections start at
# zero, so in the first step the layers before them have a gradient of exactly zero.

# %%
model = GPT(TINY)
optimizers, generator = build_optimizers(model), torch.Generator().manual_seed(0)
for _ in range(3):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model(*random_batch(generator)).backward()
    for optimizer in optimizers:
        optimizer.step()
assert stuck_parameters(model, before) == []

# %%
model.lm_head.weight = nn.Parameter(model.wte.weight.detach().T.contiguous().T)
try:
    build_optimizers(model)
except ValueError as error:
    print(error)
else:
    raise AssertionError("a transposed weight was accepted")

# %% [markdown]
# ## Recap
#
# Momentum adds up the steps that agree; Adam gives every number its own rate and loses sight of
# directions; Muon gives every direction of a matrix the same step, through five rounds of a
# polynomial. `newton_schulz`, `Muon`, `AdamW`, `OptimConfig`, `parameter_kinds` and
# `build_optimizers` are now in `nanochat_lib.training.optim`. The exercises ask you to derive the
# factor that makes Muon's update as large as AdamW's, to train a model with Lion, an optimizer with one
# state and no division, and to measure how an optimizer forgives a wrong rate. Pretraining needs what `build_optimizers` returns, and the `initial_lr` in
# each group.
