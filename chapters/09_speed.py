# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Speed: where a training step goes
#
# The laptop run of this course makes 2,700 training steps, and everything else waits for them. Which
# part of a step should be made faster, how much could that bring at best, and how would we notice if
# it brought nothing? This chapter reads one profile and then changes one thing at a time. At the end
# two calls do what was worth doing:
#
# ```python
# prepare(model, optimizers, torch.bfloat16)   # fewer bits where the processor gains by it
# loss = loss_function(model)(idx, targets)    # the same loss, without a table of all probabilities
# ```
#
# It needs the GPT and its optimizers. The figures come from `records/training/`, written by `make
# study-speed`; cells that measure print what they find on *your* machine. On a laptop the chapter
# takes half a minute.

# %%
#| default_exp training.fused
# The same results by fewer or larger operations: loss, norms, attention's scores, Newton-Schulz.

# %%
#| export training.fused
import ctypes
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from nanochat_lib.model.attention import CausalSelfAttention, apply_rope, fused_attention
from nanochat_lib.model.gpt import GPT
from nanochat_lib.training.optim import NEWTON_SCHULZ, newton_schulz


# %%
import json
import math
import resource
import time

import matplotlib.pyplot as plt

from nanochat_lib.model.attention import rms_norm, rope_tables
from nanochat_lib.model.borders import find_borders
from nanochat_lib.model.gpt import GPTConfig, squared_relu
from nanochat_lib.training.optim import OptimConfig, build_optimizers, newton_schulz

# %% [markdown]
# ## A step on paper
#
# Before a clock, a pencil. A model a little wider than the laptop's has four layers and 128 channels, here with a vocabulary of
# 1,024; a step reads four rows of 256 tokens. Each weight that multiplies costs 6 operations a token: a
# product and a sum, once forward and twice backward. Attention's own part depends on the length.
# And Muon's Newton-Schulz makes 15 products for each matrix, whatever the number of tokens.

# %%
# NBVAL_CHECK_OUTPUT
B, T = 4, 256
laptop = GPTConfig.from_depth(4, 1024, T, "modern", aspect_ratio=32, head_dim=64)
model = GPT(laptop)
optimizers = build_optimizers(model, OptimConfig(embedding_lr=0.03, head_lr=0.002))
matrices = [p for p in optimizers[1].param_groups[0]["params"]]
newton = sum(5 * (4 * min(p.shape) ** 2 * max(p.shape) + 2 * min(p.shape) ** 3) for p in matrices)
on_paper = {
    "matrices": 6 * model.num_scaling_params() * B * T,
    "attention": 12 * laptop.n_layer * laptop.n_embd * T * B * T,
    "Newton-Schulz": newton,
}
for name, flops in on_paper.items():
    print(f"{name:14} {flops / 1e9:4.1f} GFLOP")
assert sum(on_paper.values()) - newton == model.estimate_flops() * B * T

# %% [markdown]
# About ten billion operations. How many can this machine do? The only honest answer is to ask it for
# what it does best, one large matrix product, and take the best of several tries: noise only ever
# adds time.


# %%
#| default_exp training.profile
# Where the time of a training step goes, by kind of operation.

# %%
#| export training.profile
import math
import time
from collections.abc import Callable

import torch


# %%
#| export training.profile
def best_seconds(work: Callable[[], object], repeats: int = 10) -> float:
    """Measure the least time of several runs: what the machine can do when nobody disturbs it."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])  # the first one warms up


# %%
square = torch.randn(1024, 1024)
peak = 2 * 1024**3 / best_seconds(lambda: square @ square)
floor_ms = sum(on_paper.values()) / peak * 1e3
print(f"{peak / 1e9:.0f} GFLOP/s: at least {floor_ms:.0f} ms a step")

# %% [markdown]
# No arrangement of these operations in float32 beats that floor on this machine. Either the real
# step is far above it, then something else takes the time; or it is close, then only less work or
# cheaper work will help. Here is the plain step, as all chapters so far would do it.

# %%
generator = torch.Generator().manual_seed(0)
idx, targets = torch.randint(1024, (2, B, T), generator=generator)


def plain_step() -> None:
    """One update with nothing clever in it."""
    model(idx, targets).backward()
    for optimizer in optimizers:
        optimizer.step()
    model.zero_grad(set_to_none=True)


seconds = best_seconds(plain_step, 8)
print(
    f"{seconds * 1e3:.0f} ms, {B * T / seconds:,.0f} tokens/s, {floor_ms / seconds / 10:.0f}% busy"
)

# %% [markdown]
# ## A small case: what can a change bring?
#
# Suppose a step takes 100 ms, 20 of them in the optimizer. Make the optimizer twice as fast, and 90
# are left: a factor of 1.11. Make it infinitely fast, and 80 are left. Gene Amdahl's argument of 1967
# in one line: with a share $s$ of the time made $f$ times as fast, the whole becomes
#
# $$ \frac{1}{(1 - s) + s/f} \quad\text{times as fast, at most } \frac{1}{1 - s}. $$


# %%
def amdahl(share: float, factor: float) -> float:
    """How many times as fast the whole is when a share of it is made `factor` times as fast."""
    return 1 / (1 - share + share / factor)


# %%
# NBVAL_CHECK_OUTPUT
for share, factor in ((0.2, 2), (0.2, math.inf), (0.6, 2), (0.05, 10)):
    print(f"share {share:4.0%} made {factor} times as fast: {amdahl(share, factor):.2f}")
assert round(amdahl(0.2, 2), 2) == 1.11

# %% [markdown]
# A factor of two on the largest part beats a factor of ten on a small one. So we need the parts.
#
# ## The profile, read aloud
#
# `torch.profiler` notes every operation with its duration. Its table has dozens of lines; we sort
# them into five kinds by name and size. An operation on B·T·V numbers that is no matrix product
# belongs to the loss.


# %%
#| export training.profile
def kind_of(event: torch.autograd.profiler_util.FunctionEventAvg, logits: int) -> str:
    """Sort a profiled operation into one of five kinds, by its name and its largest input.

    Args:
        event: has `key` and `input_shapes`.
        logits: B * T * V; an operation on as many numbers, no product, belongs to the loss.
    """
    sizes = [math.prod(shape) for shape in event.input_shapes if shape]
    if event.key in ("aten::mm", "aten::addmm"):
        return "matrix products"
    if "scaled_dot_product" in event.key:
        return "attention"
    if event.key in ("aten::bmm", "aten::baddbmm"):
        return "Newton-Schulz"
    return "softcap and loss" if max(sizes, default=0) >= logits else "everything else"


def profile_step(step: Callable[[], None], logits: int) -> dict[str, float]:
    """Measure the milliseconds a step spends in each kind of operation, from three profiled steps.

    Args:
        step: makes one update.
        logits: B * T * V of its model and batch.

    Returns:
        Kind -> milliseconds, the largest first.
    """
    step()
    with torch.profiler.profile(record_shapes=True) as profiler:
        for _ in range(3):
            step()
    kinds = {}
    for event in profiler.key_averages(group_by_input_shape=True):
        kind = kind_of(event, logits)
        kinds[kind] = kinds.get(kind, 0) + event.self_cpu_time_total / 3e3
    return {kind: round(kinds[kind], 2) for kind in sorted(kinds, key=kinds.get, reverse=True)}


# %%
for kind, milliseconds in profile_step(plain_step, B * T * 1024).items():
    print(f"{kind:18}{milliseconds:6.1f} ms")

# %% [markdown]
# Profiling has a cost of its own, so the sum is above the step's real time; read the shares. The
# record below was measured alone on a quiet machine.


# %%
from nanochat_lib.course.manifest import library_root


def read_record(name: str) -> dict:
    """Read what a study has measured."""
    path = library_root() / "records/training" / name
    return json.loads(path.read_text(encoding="utf-8"))


record = read_record("step.json")
print(f"measured on {record['machine']['cpu']}, {record['machine']['cores']} cores")

# %%
# alt: Bars of milliseconds by kind of operation; matrix products are the longest, then everything else.
fig, ax = plt.subplots(figsize=(6.5, 3))
kinds = record["profile"]
ax.barh(list(kinds)[::-1], list(kinds.values())[::-1], color="tab:blue")
at_peak = 1e3 * on_paper["matrices"] / (record["peak_gflops"]["float32"] * 1e9)
ax.plot([at_peak, at_peak], [3.6, 4.4], color="white")
ax.annotate("at peak ", (at_peak, 4.0), va="center", ha="right", color="white")
ax.set(xlabel="milliseconds a step (profiled)")
plt.tight_layout()
plt.show()

# %% [markdown]
# *The mark shows what the matrix products would take at the measured peak: they are close to it.*
# Nobody will make them faster in float32. What is left: attention, Newton-Schulz, the loss, and a
# long tail of small things, and each of them has another reason to be slow.
#
# ## What the profile does not show
#
# One reason is shared by all, and no line of the table names it: every operation needs memory for its
# result. Hundreds of tensors come and go in a step; C's allocator gives what lies free at the end of its
# heap back to the operating system, and asks for it again a moment later. The system hands out memory in
# pages, mostly of 4,096 bytes, filled with zeros one by one, when they are first touched: a *page fault*
# each. The system counts them.


# %%
def faults_per_step(step: Callable[[], None], steps: int = 8) -> float:
    """Count the page faults of a step, and print its time."""
    step()
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(steps):
        step()
    milliseconds = 1e3 * (time.perf_counter() - start) / steps
    after = resource.getrusage(resource.RUSAGE_SELF)
    faults = (after.ru_minflt - before.ru_minflt) / steps
    in_system = 1e3 * (after.ru_stime - before.ru_stime) / steps
    print(f"{faults:6,.0f} page faults and {milliseconds:4.0f} ms a step, ", end="")
    print(f"{in_system:.1f} ms of processor time in the system")
    return faults


faults = faults_per_step(plain_step)

# %% [markdown]
# Thousands of pages a step, to hold the same kinds of tensors as in the step before. glibc, the C library of
# most Linux systems, can be told to keep what is freed: `mallopt` sets from which size on a block is
# fetched from the system on its own (and given back at once), and how much may lie free at the end of the
# heap. Elsewhere the function changes nothing and says so.


# %%
#| export training.fused
def keep_freed_memory() -> bool:
    """Let this process reuse the memory of freed tensors instead of giving it back to the system.

    Blocks of up to 1 GiB (32 MiB in an older glibc) come from the heap, whose free end may be 2 GiB.

    Returns:
        True where it could be set: on Linux with glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    trim_threshold, mmap_threshold = -1, -3  # their numbers in malloc.h
    largest = mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25)
    return bool(mallopt(trim_threshold, 2**31 - 1) and largest)


# %%
if keep_freed_memory():
    assert faults_per_step(plain_step) < faults / 4

# %% [markdown]
# One call for the whole process, not a line of the model changed; the record below says what it brings
# on a quiet machine. So before one replaces an operation, one asks whether it is the operation that is
# slow.
#
# ## Two speeds: the roofline
#
# An operation reads numbers, works and writes numbers. If it does many operations for each byte, the
# arithmetic is the limit; if it does few, memory is. The border is a property of the machine: its
# peak divided by its bandwidth (Williams et al. 2009 draw it as a roof).

# %%
# NBVAL_CHECK_OUTPUT
rows, inner, columns = 1024, 128, 512
product = 2 * rows * inner * columns / (4 * (rows * inner + inner * columns + rows * columns))
addition = 1 / (3 * 4)  # one operation; two numbers read, one written
print(f"a product of ({rows}, {inner}) with ({inner}, {columns}): {product:.0f} operations a byte")
print(f"adding two tensors: {addition:.2f} operations a byte")

# %%
large = torch.randn(2**25)  # 128 MB: no cache holds it
copied = torch.empty_like(large)
bandwidth = 2 * large.nbytes / best_seconds(lambda: copied.copy_(large), 5)
print(f"{bandwidth / 1e9:.0f} GB/s; the border lies at {peak / bandwidth:.0f} operations a byte")
del large, copied

# %%
# alt: The roofline, rising and then flat: additions stand far left on the slope, products on the flat part.
ridge = record["peak_gflops"]["float32"] / record["gigabytes_per_second"]
fig, ax = plt.subplots(figsize=(6.5, 3))
across = [0.02, ridge, 300]
ax.plot(across, [min(1, x / ridge) * record["peak_gflops"]["float32"] for x in across], "k-")
for name, (intensity, gflops) in record["roofline"].items():
    ax.plot(intensity, gflops, "o", color="tab:orange")
    place = (5, 6) if name == "squared ReLU" else (5, -11)
    ax.annotate(name, (intensity, gflops), xytext=place, textcoords="offset points", fontsize=8)
ax.set(xscale="log", yscale="log", xlabel="operations for each byte", ylabel="GFLOP/s")
plt.tight_layout()
plt.show()

# %% [markdown]
# *Products sit under the flat roof. Elementwise operations are slower by far, although their numbers,
# which still lie in a cache, bring them above the slope of main memory.* So there are three ways out, and the rest of the chapter takes
# them in turn: do less work, pass over memory fewer times, use fewer bits.
#
# ## Fewer passes: the loss
#
# After the head come B·T·V numbers, here a million. The plain loss divides them by the cap, takes
# tanh, multiplies, subtracts the largest, exponentiates, sums, takes logarithms, and on the way back
# does about as much again; each pass writes a table of the same size. At V = 1,024 that costs some
# milliseconds. At V = 32,768 and 16,384 tokens each table has two gigabytes.
#
# All of it has a short derivative. With capped logits $z = c \tanh(u/c)$ and $p$ = softmax($z$), the
# loss of a token with target $y$ is $-\log p_y$, and
#
# $$ \frac{\partial\,\text{loss}}{\partial u_v} = (p_v - [v = y])\,(1 - \tanh^2(u_v/c)). $$
#
# By hand, for two tokens in the vocabulary, both with logit 0: $p$ = (½, ½), tanh = 0. If the first
# is right, the gradient is (-½, ½).
#
# So a slice of rows can go all the way in one visit: logits, probabilities, gradient of the logits,
# and from it the gradients of the input and of the head. Then its table is overwritten by the next
# slice's. Nothing of size B·T·V is ever kept. Two details make it cheaper still. $\tanh(x) = 2s - 1$
# with $s = \text{sigmoid}(2x)$, which torch computes faster, as the next cell measures; the -1 moves all
# logits of a row alike, so softmax does not see it, and $1 - \tanh^2(x) = 4\,s\,(1 - s)$. And a position
# whose target is -1 needs no row at all: in a chat that is more than half of them.

# %%
table = torch.randn(256, 1024, generator=generator)
for f in (torch.tanh, torch.sigmoid):
    print(f"{f.__name__:8}{1e3 * best_seconds(lambda f=f: f(table)):6.2f} ms")


# %%
#| export training.fused
SLICE = 256  # rows of logits held at once


class SlicedLoss(torch.autograd.Function):
    """Sum the cross-entropy of softcapped logits, with the gradient worked out on the way forward."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Float[Tensor, "N C"],
        weight: Float[Tensor, "V C"],
        targets: Int[Tensor, " N"],
        softcap: float,
    ) -> Float[Tensor, ""]:
        """Return the sum of -log p over all rows, in nats; every target is a token."""
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        total = x.new_zeros(())
        for start in range(0, len(x), SLICE):
            rows = slice(start, start + SLICE)
            right = targets[rows, None]
            logits = x[rows] @ weight.T
            s = logits.mul_(2 / softcap).sigmoid_()
            p = (2 * softcap * s).softmax(dim=1)
            total -= p.gather(1, right).log().sum()
            p.scatter_add_(1, right, torch.full_like(p[:, :1], -1.0))
            p.mul_(s)
            grad = p.addcmul_(p, s, value=-1)  # times s (1 - s), which is (1 - tanh^2) / 4
            torch.mm(grad, weight, out=grad_x[rows])
            grad_weight.addmm_(grad.T, x[rows])
        ctx.save_for_backward(grad_x.mul_(4), grad_weight.mul_(4))
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad_loss: Tensor) -> tuple:
        """Scale what forward has found."""
        grad_x, grad_weight = ctx.saved_tensors
        return grad_x * grad_loss, grad_weight * grad_loss, None, None


# %%
two = torch.zeros(1, 2, requires_grad=True)  # one row of two channels, the head is the identity
SlicedLoss.apply(two, torch.eye(2), torch.tensor([0]), 15.0).backward()
assert torch.allclose(two.grad, torch.tensor([[-0.5, 0.5]])), (
    f"got {two.grad}: is the target subtracted?"
)


# %%
#| export training.fused
def sliced_loss(
    model: GPT,
    hidden: Callable[[Tensor], Tensor],
    idx: Int[Tensor, "B T"],
    targets: Int[Tensor, "B T"],
) -> Float[Tensor, ""]:
    """Compute model(idx, targets), the mean loss over counted targets, in slices of rows.

    Args:
        model: has the head.
        hidden: model.hidden, compiled or not.
        idx: token ids.
        targets: the next ids, -1 where nothing is to be learned.
    """
    x, flat = hidden(idx).flatten(0, 1), targets.flatten()
    counted = (flat != -1).nonzero().flatten()
    if len(counted) < len(flat):
        x, flat = x[counted], flat[counted]
    weight = model.lm_head.weight[: model.config.vocab_size]
    total = SlicedLoss.apply(x, weight, flat, model.config.softcap)
    return total / max(1, len(counted))


def loss_function(model: nn.Module, compiled: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """Choose how to compute the mean loss in training: in slices for a GPT on a CPU.

    Args:
        model: called as model(idx, targets).
        compiled: compile what comes before the head, or all of it where nothing is sliced.
    """
    if not (isinstance(model, GPT) and model.lm_head.weight.device.type == "cpu"):
        return torch.compile(model, dynamic=False) if compiled else model
    hidden = torch.compile(model.hidden, dynamic=False) if compiled else model.hidden
    return partial(sliced_loss, model, hidden)


# %% [markdown]
# On a GPU we leave the plain loss to the compiler, which fuses its passes. The check: every gradient
# of the model, against autograd's own. The head starts tiny, so we give it some size first, and take
# a third of the targets away.

# %%
with torch.no_grad():
    for p in model.parameters():
        p.add_(0.05 * torch.randn(p.shape, generator=generator))
holes = targets.masked_fill(torch.rand(targets.shape, generator=generator) < 0.3, -1)
found = []
for loss_of in (model, loss_function(model)):
    model.zero_grad()
    loss = loss_of(idx, holes)
    loss.backward()
    found.append((loss.item(), [p.grad.clone() for p in model.parameters()]))
worst = max(float((a - b).norm() / a.norm()) for a, b in zip(found[0][1], found[1][1]))
print(f"loss {found[0][0]:.5f} and {found[1][0]:.5f}, gradients differ by {worst:.0e}")
assert worst < 1e-4 and math.isclose(found[0][0], found[1][0], rel_tol=1e-5)

# %% [markdown]
# What does it save? For a vocabulary of 8,192 and 2,048 tokens, the memory for tables alone, counted
# by the saved tensors of autograd, and the time of loss and gradient:


# %%
def head_cost(loss_of: Callable, model: GPT) -> tuple[float, float]:
    """Milliseconds of a loss with its gradient, and megabytes that autograd keeps in between."""
    idx, targets = torch.randint(model.config.vocab_size, (2, 8, 256), generator=generator)
    kept = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss_of(idx, targets).backward()
    return 1e3 * best_seconds(lambda: loss_of(idx, targets).backward(), 3), sum(kept.values()) / 1e6


# %%
wide = GPT(GPTConfig(128, 1, 1, vocab_size=8192, n_layer=1))
for name, loss_of in (("plain", wide), ("in slices", loss_function(wide))):
    milliseconds, megabytes = head_cost(loss_of, wide)
    print(f"{name:10} {milliseconds:4.0f} ms, {megabytes:4.0f} MB kept")
del wide

# %% [markdown]
# ## Fewer passes: the norms
#
# The same thought for the small operations, of which a step has hundreds. A norm multiplies each
# vector by one number, $y = r\,x$ with $r = (\frac1C \sum_i x_i^2)^{-1/2}$. Autograd knows the squares, the
# mean, the root and the product, keeps what each of them needs, and walks back through them one by
# one. What would *we* do with $g$, the gradient with respect to $y$?
#
# Each $x_i$ acts in two ways: on its own $y_i$, and through r on all of them. The second way is
# $\partial r / \partial x_i = -r^3 x_i / C = -r^2 y_i / C$, so
#
# $$ \frac{\partial\,\text{loss}}{\partial x_i} = r\,g_i + \sum_j g_j x_j \frac{\partial r}{\partial x_i}
# = r\,\Big(g_i - y_i \cdot \frac1C \sum_j g_j y_j\Big). $$
#
# Read it: take out of the gradient what points along $y$, for the length of $x$ does not matter, and
# scale the rest. By hand, for x = (3, 4): the mean of squares is 12.5, so r = 0.283 and y = (0.849, 1.131).
# With g = (1, 0) the mean of g·y is 0.424, and the gradient is 0.283 · (1 - 0.849 · 0.424, -1.131 · 0.424)
# = (0.181, -0.136), which is at right angles to (3, 4).
#
# Four passes over vectors, and nothing but y and r to keep. The y is kept anyway, by the product that
# reads it.


# %%
#| export training.fused
def norm_factor(x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows 1"]:
    """Compute what rms_norm multiplies each vector by, in float32."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return length.square().div_(x.size(-1)).add_(torch.finfo(torch.float32).eps).rsqrt_()


def norm_backward(y: Tensor, r: Tensor, grad: Tensor) -> Float[Tensor, "*rows C"]:
    """Take out of a gradient what points along y, and multiply by r."""
    along = (grad * y).mean(dim=-1, keepdim=True)
    return torch.addcmul(grad, y, along, value=-1).mul_(r.to(grad.dtype))


class QuickNorm(torch.autograd.Function):
    """Do what rms_norm does, and return it in a given format."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, dtype: torch.dtype, x: Float[Tensor, "*rows C"]
    ) -> Float[Tensor, "*rows C"]:
        """Return x over its root-mean-square."""
        r = norm_factor(x)
        y = torch.mul(x, r, out=torch.empty_like(x, dtype=dtype))
        ctx.save_for_backward(y, r)
        ctx.dtype = x.dtype
        return y

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple:
        """Return the gradient in x's format."""
        return None, norm_backward(*ctx.saved_tensors, grad).to(ctx.dtype)


# %%
x = torch.tensor([3.0, 4.0], requires_grad=True)
QuickNorm.apply(torch.float32, x).backward(torch.tensor([1.0, 0.0]))
assert torch.allclose(x.grad, torch.tensor([0.181, -0.136]), atol=1e-3), f"got {x.grad.tolist()}"

# %% [markdown]
# Queries and keys are rotated first. A rotation leaves lengths alone, so r is that of the vector before
# it; and the way back is the rotation by the opposite angle. Squared ReLU has a short way back, too:
# the slope of $\max(0, x)^2$ is $2 \max(0, x)$. And nothing says that queries, keys and values need three
# products: with the three matrices side by side it is one, and one rotation and norm for all heads of
# queries and keys. The parameters stay three, as the optimizer and the checkpoints know them.


# %%
#| export training.fused
class QuickRotatedNorm(torch.autograd.Function):
    """Do what apply_rope and then rms_norm do."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Float[Tensor, "B T H D"],
        cos: Float[Tensor, "*rows T half"],
        sin: Float[Tensor, "*rows T half"],
    ) -> Float[Tensor, "B T H D"]:
        """Return x turned and over its root-mean-square."""
        r = norm_factor(x).to(x.dtype)
        y = apply_rope(x, cos, sin).mul_(r)
        ctx.save_for_backward(y, r, cos, sin)
        return y

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple:
        """Go back through the norm, then turn by the opposite angle."""
        y, r, cos, sin = ctx.saved_tensors
        return apply_rope(norm_backward(y, r, grad), cos, -sin), None, None


class JointAttention(CausalSelfAttention):
    """Make queries, keys and values by one product; of its three layers only the weights are used."""

    def project(
        self,
        x: Float[Tensor, "B T C"],
        cos: Float[Tensor, "*rows T half"],
        sin: Float[Tensor, "*rows T half"],
    ) -> tuple[Float[Tensor, "B T H D"], Float[Tensor, "B T G D"], Float[Tensor, "B T G D"]]:
        """Do what CausalSelfAttention.project does, in x's format."""
        weight = torch.cat((self.c_q.weight, self.c_k.weight, self.c_v.weight)).to(x.dtype)
        qkv = F.linear(x, weight).view(*x.shape[:2], -1, self.head_dim)
        n_kv = self.c_k.out_features // self.head_dim
        qk, v = qkv.split((qkv.size(2) - n_kv, n_kv), dim=2)
        q, k = QuickRotatedNorm.apply(qk, cos, sin).split((qk.size(2) - n_kv, n_kv), dim=2)
        return q, k, v


class QuickSquaredReLU(torch.autograd.Function):
    """Do what squared_relu does."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        """Return the square of what is positive."""
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        """Multiply by the slope, twice the positive part."""
        return (grad * ctx.saved_tensors[0]).mul_(2)


# %% [markdown]
# The check, against autograd's way through the plain functions; and what the shorter way
# is worth, forward and back.

# %%
heads, tables = torch.randn(2, 8, 3, 16, generator=generator), rope_tables(8, 16)
pairs = {
    "norm": (rms_norm, lambda x: QuickNorm.apply(x.dtype, x)),
    "rotation and norm": (
        lambda x: rms_norm(apply_rope(x, *tables)),
        lambda x: QuickRotatedNorm.apply(x, *tables),
    ),
    "squared ReLU": (squared_relu, QuickSquaredReLU.apply),
}
for name, ways in pairs.items():
    results = []
    for way in ways:
        x = heads.clone().requires_grad_()
        y = way(x)
        y.backward(heads.cos())  # some gradient
        results.append((y.detach(), x.grad))
    (y, g), (our_y, our_g) = results
    assert torch.allclose(y, our_y, atol=1e-5) and torch.allclose(g, our_g, atol=1e-5), name

# %%
heads = torch.randn(B, T, 2, 64, generator=generator).requires_grad_()
tables = rope_tables(T, 64)
for name, ways in pairs.items():
    plain, ours = (
        best_seconds(lambda way=way: way(heads).backward(heads.detach()), 30) for way in ways
    )
    print(f"{name:18}{1e3 * plain:5.2f} ms, in few passes {1e3 * ours:5.2f} ms")

# %% [markdown]
# ## Less work: Newton-Schulz among small matrices
#
# The MLP's matrices have 512 rows and 128 columns, and each of Muon's five rounds multiplies the long
# matrix twice: once for its Gram matrix $G = XX^\top$ (of the short side), once by the polynomial. Must
# it? A round only ever multiplies X from the left, by a polynomial P of G, which is symmetric and
# commutes with G. So the next Gram matrix is known without X:
#
# $$ P = aI + bG + cG^2 \qquad X' = PX \qquad G' = X'X'^\top = PGP $$
#
# All rounds can happen among matrices of 128 x 128; the long one is multiplied twice in all, for the
# first G and by the product of all P. Counted for a 128 x 512 matrix, in millions of operations:

# %%
# NBVAL_CHECK_OUTPUT
long, small = 2 * 128 * 128 * 512 / 1e6, 2 * 128**3 / 1e6
direct = 5 * (long + small + long)
among_small = long + 5 * small + 4 * small + 4 * 2 * small + long  # P, products of P, G', ends
print(f"direct {direct:.0f}, among small matrices {among_small:.0f}")
print(f"for a square one: {5 * 3 * small:.0f} and {2 * small + 17 * small:.0f}")

# %% [markdown]
# Little more than half for the long ones, but more for square ones, which therefore keep the direct way. The price is
# precision: the small matrices are powers of G, whose entries span the *square* of X's range. float32
# has room for that; bfloat16 has not, so a GPU keeps the direct way, too.


# %%
#| export training.fused
def quick_newton_schulz(g: Float[Tensor, "N R C"], steps: int = 5) -> Float[Tensor, "N R C"]:
    """Do what newton_schulz does; on a CPU, long matrices by way of their small Gram matrices.

    Args:
        g: a batch of matrices, any float dtype, shape (N, R, C).
        steps: iterations of the polynomial, at least 1.

    Returns:
        g's shape; float32 on a CPU, bfloat16 on a GPU. A matrix of zeros stays zero.
    """
    short, long = sorted(g.shape[-2:])
    if long < 2 * short or g.device.type == "cuda":
        return newton_schulz(g, steps)
    a, b, c = NEWTON_SCHULZ
    x = (g.mT if g.size(-2) > g.size(-1) else g).float()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    gram, product = x @ x.mT, None
    for i in range(steps):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        product = polynomial if product is None else polynomial @ product
        if i < steps - 1:
            gram = polynomial @ (gram @ polynomial)
    x = product @ x
    return x.mT if g.size(-2) > g.size(-1) else x


# %% [markdown]
# The check: the same result, on a matrix whose singular values fall to a thousandth of the largest, as
# those of gradients do.

# %%
u = torch.linalg.qr(torch.randn(512, 128, generator=generator)).Q
v = torch.linalg.qr(torch.randn(128, 128, generator=generator)).Q
g = ((u * torch.logspace(0, -3, 128)) @ v.T)[None]
apart = float((quick_newton_schulz(g) - newton_schulz(g)).abs().max())
print(f"largest entry {newton_schulz(g).abs().max():.2f}, largest difference {apart:.0e}")
assert apart < 1e-3, f"{apart:.0e}: the same polynomial?"

# %%
stacks = [torch.randn(16, 128, 128), torch.randn(4, 512, 128), torch.randn(4, 128, 512)]
for f in (newton_schulz, quick_newton_schulz):
    print(f"{f.__name__:20} {1e3 * best_seconds(lambda f=f: [f(s) for s in stacks]):5.1f} ms")

# %% [markdown]
# ## Fewer bits
#
# A float32 has 1 bit for the sign, 8 for the exponent and 23 for the fraction. bfloat16 keeps the
# exponent and 7 bits of the fraction; float16 has 5 and 10; of the two float8 formats one has 4 and
# 3, the other 5 and 2. Products of half the bits cost half the memory and, on processors with units
# for them, half the time or less.

# %%
# NBVAL_CHECK_OUTPUT
for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2):
    info = torch.finfo(dtype)
    smallest = torch.tensor(2.0**-149, dtype=torch.float64)
    while smallest.to(dtype).double() == 0:
        smallest *= 2
    print(f"{str(dtype)[6:]:14} step at 1: {info.eps:.1e}  largest {info.max:.1e}  ", end="")
    print(f"smallest {smallest.item():.1e}")

# %% [markdown]
# Each row is a way to fail. In bfloat16 the next number after 1 is 1.0078, so an update of a
# thousandth disappears:

# %%
# NBVAL_CHECK_OUTPUT
weight = torch.tensor(1.0, dtype=torch.bfloat16)
for _ in range(1000):
    weight = weight + 0.001
print(f"1 + 1000 times 0.001 = {weight.item()} in bfloat16")
tiny = torch.tensor(1e-8)
print(f"a gradient of 1e-8 is {tiny.half().item()} in float16")
print(f"scaled by 65536 before, and back after: {(tiny * 65536).half().float().item() / 65536:.2e}")

# %% [markdown]
# Hence the rules of *mixed precision* (Micikevicius et al. 2018, arXiv:1710.03740). What collects small
# changes stays in float32: the weights, the optimizer with its state, and the residual stream, to which
# every block adds a little. Inside the blocks, products and what lies between them are in the short
# format. The head, softmax and loss are float32 again. float16 has too small an exponent for gradients,
# so the loss is multiplied by a large factor and the gradient divided by it (`torch.amp.GradScaler`
# finds the factor); bfloat16 needs none.
#
# How does our model get there without a second version of itself? By linear layers that shorten
# their input and their weight before they multiply. What they return is short, everything up to the next
# sum follows, and the sum with the float32 stream is float32. `prepare` exchanges the class of the
# layers: the parameters, their names and the checkpoints stay.

# %%
#| default_exp training.precision
# One number format for a whole run: bfloat16 or float16 beside float32 master weights, and float8.

# %%
#| export training.precision
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nanochat_lib.model.attention import CausalSelfAttention, fused_attention, rope_tables
from nanochat_lib.model.gpt import GPT
from nanochat_lib.training.fused import (
    JointAttention,
    QuickNorm,
    QuickSquaredReLU,
    keep_freed_memory,
    quick_newton_schulz,
    scores_attention,
)
from nanochat_lib.training.optim import Muon


# %%
#| export training.precision
class CastLinear(nn.Linear):
    """Multiply in a short format; the weight stays in float32, and so does its gradient."""

    compute_dtype = torch.bfloat16

    def forward(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows D"]:
        """Return x times the transposed weight, in compute_dtype."""
        return F.linear(x.to(self.compute_dtype), self.weight.to(self.compute_dtype))


# %%
layer = nn.Linear(64, 64, bias=False)
layer.__class__ = CastLinear
y = layer(torch.randn(2, 64, generator=generator))
y.float().sum().backward()
assert (y.dtype, layer.weight.grad.dtype) == (torch.bfloat16, torch.float32)

# %% [markdown]
# ## A kernel that is slower than the plain way
#
# `F.scaled_dot_product_attention` was the right choice in float32: it skips the future and never
# writes the weights. Is it still, in bfloat16, on a CPU? We measure rather than believe. The
# contender writes all scores to memory, with one product that adds the mask on the way:


# %%
#| export training.fused
def scores_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B G S D"],
    v: Float[Tensor, "B G S D"],
    mask: Shaped[Tensor, "*rows T S"] | None = None,
) -> Float[Tensor, "B H T D"]:
    """Do what fused_attention does with all scores in memory; with a cache's mask or T > 1024, leave it to that."""
    B, H, T, D = q.shape
    if k.size(2) != T or T > 1024 or (mask is not None and mask.dtype == torch.bool):
        return fused_attention(q, k, v, mask)
    if k.size(1) < H:
        k, v = (part.repeat_interleave(H // k.size(1), dim=1) for part in (k, v))
    q, k, v = (part.reshape(B * H, T, D) for part in (q, k, v))
    if mask is not None:
        scores = mask + (q * D**-0.5 @ k.mT).view(B, H, T, T)
        return (scores.softmax(dim=-1).view(B * H, T, T) @ v).view(B, H, T, D)
    future = torch.full((T, T), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    scores = torch.baddbmm(future, q, k.mT, alpha=D**-0.5)
    return (scores.softmax(dim=-1) @ v).view(B, H, T, D)


# %%
q, k, v = torch.randn(3, 2, 4, 32, 16, generator=generator)
for heads in (4, 2):
    ours, theirs = (
        scores_attention(q, k[:, :heads], v[:, :heads]),
        fused_attention(q, k[:, :heads], v[:, :heads]),
    )
    assert torch.allclose(ours, theirs, atol=1e-5), f"{heads} key heads: is the mask right?"
mask = find_borders(torch.randint(8, (2, 32), generator=generator), first_token=0).mask
ours, theirs = (f(q, k, v, mask) for f in (scores_attention, fused_attention))
assert torch.allclose(ours, theirs, atol=1e-5), "texts that share a row: is the mask right?"

# %%
for dtype in (torch.float32, torch.bfloat16):
    q, k, v = (torch.randn(4, 2, 256, 64, dtype=dtype, requires_grad=True) for _ in range(3))
    for f in (fused_attention, scores_attention):
        seconds = best_seconds(lambda f=f, q=q, k=k, v=v: f(q, k, v).sum().backward())
        print(f"{str(dtype)[6:]:9} {f.__name__:17} {1e3 * seconds:.1f} ms")

# %% [markdown]
# Where the processor multiplies bfloat16, two plain products keep that unit busier than the fused kernel
# does. (Where it does not, the format is out of the question; the account below has a figure.)
#
# ## Eight bits
#
# Hopper GPUs multiply float8, twice as fast as bfloat16. With 3 bits of fraction and a largest value
# of 448 a tensor must be *scaled* into range first: one factor for the whole tensor, so that its
# largest entry lands on the largest float8. Forward products use the format with more fraction;
# gradients, which vary more, the one with more exponent. All three products of a linear layer are
# done this way (Micikevicius et al. 2022, arXiv:2209.05433).


# %%
#| export training.precision
def to_float8(
    x: Float[Tensor, "R C"], dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[Tensor, Float[Tensor, ""]]:
    """Round a tensor to float8 with one scale.

    Example: [1, -4] -> ([112, -448], 1/112), because 448 is the largest number.

    Args:
        x: any float dtype, shape (R, C).
        dtype: torch.float8_e4m3fn or torch.float8_e5m2.

    Returns:
        The rounded numbers, and the float32 scale that multiplies them back.

    Source: Micikevicius et al. 2022 (arXiv:2209.05433), section 3.
    """
    scale = x.abs().max().float().clamp(min=1e-12) / torch.finfo(dtype).max
    return (x.float() / scale).to(dtype), scale


# %%
rounded, scale = to_float8(torch.tensor([[1.0, -4.0]]))
assert rounded.float().tolist() == [[112, -448]], f"got {rounded.float().tolist()}: the largest?"
assert math.isclose(scale.item(), 1 / 112, rel_tol=1e-6)


# %%
#| export training.precision
class Float8Product(torch.autograd.Function):
    """Multiply by a transposed weight with float8 operands, forward and in both products backward.

    torch's kernel wants the first operand stored by rows, the second by columns, and sizes that are
    multiples of 16.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Float[Tensor, "N C"], weight: Tensor
    ) -> Float[Tensor, "N D"]:
        """Return x @ weight.T in x's dtype."""
        (x8, x_scale), (w8, w_scale) = to_float8(x), to_float8(weight)
        ctx.save_for_backward(x8, x_scale, w8, w_scale)
        ctx.dtype = x.dtype
        return torch._scaled_mm(x8, w8.T, x_scale, w_scale, out_dtype=x.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of x, in its dtype, and of the weight, in float32."""
        x8, x_scale, w8, w_scale = ctx.saved_tensors
        g8, g_scale = to_float8(grad, torch.float8_e5m2)
        w_by_columns, x_by_columns = w8.T.contiguous().T, x8.T.contiguous().T
        grad_x = torch._scaled_mm(g8, w_by_columns, g_scale, w_scale, out_dtype=ctx.dtype)
        grad_weight = torch._scaled_mm(
            g8.T.contiguous(), x_by_columns, g_scale, x_scale, out_dtype=ctx.dtype
        )
        return grad_x, grad_weight.float()


class Float8Linear(nn.Linear):
    """Multiply in float8 with tensor-wise scales; the weight stays in float32. Has never run on a GPU."""

    def forward(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows D"]:
        """Return x times the transposed weight, in bfloat16."""
        flat = Float8Product.apply(x.flatten(0, -2).bfloat16(), self.weight)
        return flat.view(*x.shape[:-1], -1)


# %% [markdown]
# torch emulates that kernel on CPUs, slowly, so its arithmetic can be checked here: against the same
# product of the rounded numbers in float32, and the error against the exact product. Rounding to 3
# bits is off by up to 6% an entry, to 2 bits by twice that; a sum of many such terms is off by a few
# percent, because its errors add up as its random terms do.

# %%
x, weight = torch.randn(64, 128, generator=generator), torch.randn(32, 128, generator=generator)
x.requires_grad_(), weight.requires_grad_()
grad = torch.randn(64, 32, generator=generator)
y = Float8Product.apply(x, weight)
y.backward(grad)
(x8, x_scale), (w8, w_scale), (g8, g_scale) = (
    to_float8(x),
    to_float8(weight),
    to_float8(grad, torch.float8_e5m2),
)
by_hand = (x8.float() @ w8.float().T) * x_scale * w_scale
assert torch.allclose(y, by_hand, rtol=0.02, atol=0.05), "not the product of the rounded numbers"
exact = {"y": (y, x @ weight.T), "x": (x.grad, grad @ weight), "weight": (weight.grad, grad.T @ x)}
for name, (ours, wanted) in exact.items():
    error = float((ours - wanted).detach().norm() / wanted.detach().norm())
    print(f"{name}: {error:.1%} off")
    assert error < 0.1, f"{name} is {error:.0%} off: scaled back?"

# %% [markdown]
# ## One switch
#
# All of this is decided once, at the start of a run. `pick_dtype` (chapter `ground`) looks at the
# hardware; `prepare` puts the answer into model and optimizers. The validation inside
# a run computes in the run's format; the evaluation stage and the chat load a fresh model from the
# checkpoint, in float32.


# %%
#| export training.precision
def flash_attention_3() -> Callable[..., Tensor] | None:
    """Load FlashAttention 3 where the `kernels` package and a Hopper GPU are; never run so far."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        return None
    try:
        from kernels import get_kernel

        kernel = get_kernel("kernels-community/flash-attn3")
    except (ImportError, OSError):  # no such package, or no network
        return None

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            return fused_attention(q, k, v, mask)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # it wants (B, T, H, D)
        y = kernel.flash_attn_func(q, k, v, causal=True)
        return (y[0] if isinstance(y, tuple) else y).transpose(1, 2)

    return attend


def best_attention(device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    """Choose the kernel of every attention layer."""
    if device.type == "cuda":
        return (dtype != torch.float32 and flash_attention_3()) or fused_attention
    return scores_attention if dtype == torch.bfloat16 else fused_attention


# %%
#| export training.precision
def prepare(model: nn.Module, optimizers: list[torch.optim.Optimizer], dtype: torch.dtype) -> None:
    """Let a model's blocks compute in a format and, on a CPU, in few passes; weights stay float32.

    The process keeps freed memory from now on.

    Args:
        model: a GPT; any other module is left alone.
        optimizers: of the model.
        dtype: float32, bfloat16, float16, or float8_e4m3fn: products in float8, the rest in bfloat16.
    """
    if not isinstance(model, GPT):
        return
    float8 = dtype == torch.float8_e4m3fn
    dtype = torch.bfloat16 if float8 else dtype
    c, device = model.config, model.wte.weight.device
    keep_freed_memory()
    tables = rope_tables(c.sequence_len, c.head_dim, c.rope_base, device)
    model.cos, model.sin = (table.to(dtype) for table in tables)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        fits = name.startswith("blocks.") and not any(n % 16 for n in module.weight.shape)
        module.__class__ = Float8Linear if float8 and fits else CastLinear
        # A GPU's float32 products are so slow that the head's are short, too; its logits are not.
        short = device.type == "cuda" or not name.startswith("lm_head")
        module.compute_dtype = dtype if short else torch.float32
    for block in model.blocks:
        block.attn.attend = best_attention(device, dtype)
        if device.type == "cpu":  # a GPU has kernels for these
            block.norm = partial(QuickNorm.apply, dtype)
            plain = all(isinstance(part, CastLinear) for part in block.attn.children())
            joint = plain and not float8
            block.attn.__class__ = JointAttention if joint else CausalSelfAttention
            block.mlp.activate = QuickSquaredReLU.apply
    for optimizer in optimizers:
        if isinstance(optimizer, Muon):
            optimizer.orthogonalize = quick_newton_schulz


# %%
wanted = [p.grad.double() for p in model.parameters()]  # of the loss with holes, from above
least = {}
for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
    prepare(model, optimizers, dtype)
    model.zero_grad()
    loss = loss_function(model)(idx, holes)
    loss.backward()
    least[dtype] = min(
        float(F.cosine_similarity(p.grad.double().flatten(), g.flatten(), dim=0))
        for p, g in zip(model.parameters(), wanted)
    )
    print(
        f"{str(dtype)[6:]:14} loss {loss.item():.4f}, worst gradient at cosine {least[dtype]:.4f}"
    )
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
assert least[torch.float32] > 0.9999 and least[torch.bfloat16] > 0.97, least

# %% [markdown]
# Printed is the parameter whose gradient turned most. In float32 nothing changed but rounding; bfloat16
# turns gradients a little; float8 more, which is why those who train with it keep watching it.
#
# ## What each change bought
#
# Now the account, from the record: the laptop's step after each change, all variants taking turns.

# %%
# alt: Bars of milliseconds a step, each change shorter than the one before, down to two thirds.
ladder = record["ladder"]
fig, ax = plt.subplots(figsize=(6.5, 3))
names = list(ladder)[::-1]
ax.barh(names, [ladder[name] for name in names], color="tab:blue")
for place, name in enumerate(names):
    label = f" {ladder[name]:.0f} ms, {ladder['plain'] / ladder[name]:.2f}x"
    ax.annotate(label, (ladder[name], place), va="center")
ax.set(xlabel="milliseconds a step", xlim=(0, 1.3 * ladder["plain"]))
plt.tight_layout()
plt.show()

# %% [markdown]
# *Each bar keeps the changes above it.* Does Amdahl's line agree? The loss was a known share of the
# profile; if slices make it twice as fast, the whole should gain this much. (Part of what its tables
# cost was page faults, though, and keeping the memory has saved those already.)

# %%
share = record["profile"]["softcap and loss"] / sum(record["profile"].values())
print(f"loss: {share:.0%} of the profile; twice as fast would give {amdahl(share, 2):.2f}x,")
print(f"measured {ladder['memory kept'] / ladder['loss in slices']:.2f}x")
fastest = min(ladder, key=ladder.get)
print(f"all changes: {ladder['plain'] / ladder[fastest]:.2f}x, from the last bar, {fastest!r}")

# %% [markdown]
# And on a processor without bfloat16? We can imitate one: the same machine with torch and its
# libraries told to use nothing newer than AVX2.

# %%
older = record["older"]
for name in list(ladder)[:5] + ["bfloat16, emulated"]:
    print(f"{name:20} {older[name]:5.0f} ms, {older['plain'] / older[name]:.2f}x")
print(f"a product reaches {older['peak_gflops']['float32']:.0f} GFLOP/s in float32,", end=" ")
print(f"{older['peak_gflops']['bfloat16']:.0f} in bfloat16")

# %% [markdown]
# The changes that save work help there too; the one that saves bits does harm, which is why
# `pick_dtype` asks the processor first.
#
# ## Beside others
#
# A ratio to one's own past flatters. `make bench-training` measures whole steps at three sizes, each
# in a fresh process, beside the first version of this library and beside nanochat's code, in
# turns: the laptop's, a d4 with a vocabulary of 8,192, and a d6 with 32,768, nanochat's own script for
# a CPU. nanochat's updates are compiled in all modes.

# %%
bench = read_record("speed.json")
print(f"{'':15}{'runs':>6}{'ours':>17}{'beside the first':>19}{'beside nanochat':>18}")
for case, modes in bench.items():
    for mode, sides in modes.items() if case != "machine" else ():
        ours = sides["ours"]
        n_runs = len(ours["all_tokens_per_second"])
        line = f"{case:8}{mode:9}{n_runs:4}{ours['tokens_per_second']:>8,} tokens/s"
        for other in ("first", "nanochat"):
            if other in sides:
                speed, memory = (
                    sides[other][n] for n in ("ours_is_times_as_fast", "ours_memory_share")
                )
                line += f"{speed:8.2f}x, {memory:4.0%} mem"
        print(line)
chosen = "bf16" if "bf16" in bench["laptop"] else "eager"
ours, first = bench["laptop"][chosen]["ours"], bench["laptop"]["eager"]["first"]
ratio = ours["tokens_per_second"] / first["tokens_per_second"]
print(f"laptop, each in the format it chooses by itself: {ratio:.2f}x the first")

# %% [markdown]
# The larger the vocabulary, the more the slices matter, in time and in memory. (In bfloat16 the first
# version is measured under torch's autocast; by itself it chose float32 on this processor.) Compiled, the
# sides come closer to each other: fused passes are what the compiler has to give, and the products, which
# are most of the step by then, are the same for everybody.
#
# ## Did the model get worse?
#
# A faster step that learns less is no faster. Seven bits of fraction instead of 23 are not free on
# paper; so `make study-quality` runs the whole laptop profile both ways,
# over three seeds for data, weights and conversations, and keeps the scores.

# %%
quality = read_record("quality.json")


def seeds_of(way: str, read: Callable[[dict], float]) -> torch.Tensor:
    """One number of every run of a way."""
    runs = quality["runs"]
    return torch.tensor([read(runs[name]) for name in sorted(runs) if name.startswith(way)])


readers = {
    f"{text}, {stage} (bits a byte)": lambda run, t=text, s=stage: run["bits_per_byte"][t][s]
    for text in ("tinyworld", "english")
    for stage in ("base", "sft")
}
for task in quality["runs"]["plain 0"]["tasks"]:
    label = f"{task.replace('_', ' ')} (share right)"
    readers[label] = lambda run, t=task: run["tasks"][t]["accuracy"]

# %%
print(f"{'':32}{'plain':^21}   {'fast':^21}")
for name, read in readers.items():
    shown = (
        "".join(f"{v:7.4g}" for v in seeds_of(way, read).tolist()) for way in ("plain", "fast")
    )
    print(f"{name:32}{'   '.join(shown)}")

# %%
for name in list(readers)[:4]:
    plain, fast = (seeds_of(way, readers[name]) for way in ("plain", "fast"))
    error = ((plain.var() + fast.var()) / len(plain)).sqrt()
    print(f"{name:32}fast {float(fast.mean() - plain.mean()):+.4f}, standard error {error:.4f}")

# %% [markdown]
# Each difference is to be read beside its error, which is itself a guess from three runs a side.
#
# ## What brought nothing
#
# Half of what was tried is not in the library. Failures are results too:

# %%
dead = record["dead_ends"]
for name, milliseconds in dead.items():
    print(f"{name:30} {milliseconds:5.1f} ms a step")

# %%
steps = 2700
for what in ("model", "blocks"):
    found = record[f"compiled_{what}"]
    eager = found["eager_ms"]  # measured in turns with it
    whole = (found["cold_seconds"] + steps * found["ms"] / 1e3) / (steps * eager / 1e3)
    print(
        f"compiling the {what:6}: {found['ms']:.0f} instead of {eager:.0f} ms after "
        f"{found['cold_seconds']:.0f} s; {steps:,} steps take {whole:.2f} times as long"
    )

# %% [markdown]
# `torch.compile` fuses the many small passes, but on two cores the products are most of the step: in the
# steps of a laptop run the gain about pays for one cold start, and no more. A sliding window given as a mask saves nothing:
# the kernel computes all scores and then throws most away, so a window helps only a kernel that skips
# blocks. The scores in memory, which helped in bfloat16, do not in float32. And the setting that lets
# float32 products use bfloat16 inside, which AMX units obey, brought nothing here.
#
# ## Why a GPU changes the ranking
#
# One layer's products cost $24\,C^2$ operations a token on the way forward. One pass over its C
# numbers reads and writes them. The pass costs as long as this share of the products, at peak:
#
# $$ \frac{\text{bytes a number} \cdot 2C / \text{bandwidth}}{24\,C^2 / \text{peak}}
# = \frac{\text{bytes a number}}{12\,C}\cdot\frac{\text{peak}}{\text{bandwidth}} $$
#
# An H100's datasheet says 989e12 operations in bfloat16 and 3.35e12 bytes a second.

# %%
laptop_border = record["peak_gflops"]["float32"] / record["gigabytes_per_second"]
h100_border = 989e12 / 3.35e12
for name, bytes_each, C, border in (
    ("laptop, 128 channels", 4, 128, laptop_border),
    ("H100, d20's 1,280", 2, 1280, h100_border),
    ("H100, 128 channels", 2, 128, h100_border),
):
    print(f"{name:22} one pass costs {bytes_each / (12 * C) * border:5.1%} of the products")

# %% [markdown]
# A layer makes dozens of passes when each operation is a kernel of its own. On an H100 the products of
# a d20 are so fast that unfused passes would take as long as they do: there the compiler comes first,
# bfloat16 is a matter of course, and the rest is a question of keeping products large. And a narrow
# model cannot use such a machine at all, whatever one does. Same argument, other border, other order.
#
# ## What goes wrong: weights that stop moving
#
# "bfloat16 is enough for training" is half of a truth, and `model.bfloat16()` is one call. It stores
# the *weights* in 8 bits of fraction, too. Early in a run updates are large and all looks well. Later
# the rate falls, and more and more updates are smaller than half a step of the format and vanish. We
# train the same small GPT twice, with the rate falling to nothing, and count the weights that an
# update did not move.

# %%
from itertools import islice

from nanochat_lib.data.documents import python_docs

manual = torch.tensor(list("\n".join(islice(python_docs(), 60)).encode()))


def draw(generator: torch.Generator, B: int = 16, T: int = 64) -> tuple[Tensor, Tensor]:
    """Cut random windows out of Python's manual, byte by byte."""
    batch = manual[
        torch.randint(len(manual) - T, (B, 1), generator=generator) + torch.arange(T + 1)
    ]
    return batch[:, :-1], batch[:, 1:]


def train_stored_in(dtype: torch.dtype, steps: int = 200) -> tuple[list[float], list[float]]:
    """Train with weights stored in a format; return losses, and the share of weights that stood still."""
    model = GPT(GPTConfig(64, 2, 2, sequence_len=64, vocab_size=256, n_layer=2)).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, betas=(0.9, 0.95))
    generator, losses, still = torch.Generator().manual_seed(1), [], []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
        loss = model(*draw(generator))
        optimizer.zero_grad()
        loss.backward()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
        losses.append(loss.item())
        same = [
            float((p == b)[p.grad != 0].float().mean()) for p, b in zip(model.parameters(), before)
        ]
        still.append(sum(same) / len(same))
    return losses, still


# %%
runs = {dtype: train_stored_in(dtype) for dtype in (torch.float32, torch.bfloat16)}
for dtype, (losses, still) in runs.items():
    print(
        f"stored in {str(dtype)[6:]:8}: last loss {sum(losses[-20:]) / 20:.3f}, standing still: "
        f"{still[20]:.0%} of the weights at step 20, {sum(still[-20:]) / 20:.0%} in the last 20"
    )
assert sum(runs[torch.bfloat16][1][-20:]) / 20 > 0.3 > sum(runs[torch.float32][1][-20:]) / 20

# %%
# alt: Share of weights that an update does not move, over steps: near zero in float32, rising in bfloat16.
fig, ax = plt.subplots(figsize=(6.5, 3))
for (dtype, (_, still)), colour in zip(runs.items(), ("tab:blue", "tab:orange")):
    ax.plot(still, color=colour, label=f"stored in {str(dtype)[6:]}")
ax.set(xlabel="step", ylabel="share of weights standing still", ylim=(-0.02, 1))
ax.legend(frameon=False)
plt.tight_layout()
plt.show()

# %% [markdown]
# *No error, no warning; the loss falls in both.* The cooldown, which should bring the last part of
# the quality, finds weights that no longer hear it. The cure is the rule from above: compute in few
# bits, *store* in float32. An exercise shows another one, in which chance does the rounding.
#
# ## Recap
#
# Count first, then profile, then change the largest part; a change of the smallest part cannot be
# seen. Memory that is kept saves the system's work, the loss in slices and gradients written by
# hand save passes and memory, Newton-Schulz among small matrices saves work,
# and bfloat16 halves the products where the processor multiplies it. `training.profile`,
# `training.fused` and `training.precision` are in the library, and the training loop of the chapter
# after next calls `prepare` and `loss_function`. In the exercises you write the backward pass of a
# gate that keeps little, round by chance, and measure how far each format carries a training run.
