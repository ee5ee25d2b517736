# Generated from chapters/09_speed.py by `course build`; edit that file.
"""The same results by fewer or larger operations: loss, norms, attention's scores, Newton-Schulz."""

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

__all__ = [
    "keep_freed_memory",
    "SLICE",
    "SlicedLoss",
    "sliced_loss",
    "loss_function",
    "norm_factor",
    "norm_backward",
    "QuickNorm",
    "QuickRotatedNorm",
    "JointAttention",
    "QuickSquaredReLU",
    "quick_newton_schulz",
    "scores_attention",
]


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
