# Generated from chapters/09_speed.py by `course build`; edit that file.
"""The same results by fewer or larger operations: the loss, attention's scores, Newton-Schulz."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nanochat_lib.model.attention import fused_attention
from nanochat_lib.model.gpt import GPT
from nanochat_lib.training.optim import NEWTON_SCHULZ, newton_schulz

__all__ = [
    "SLICE",
    "SlicedLoss",
    "sliced_loss",
    "loss_function",
    "quick_newton_schulz",
    "scores_attention",
]

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
            tanh = logits.mul_(2 / softcap).sigmoid_().mul_(2).sub_(1)
            p = (softcap * tanh).softmax(dim=1)
            total -= p.gather(1, right).log().sum()
            p.scatter_add_(1, right, torch.full_like(p[:, :1], -1.0))
            grad = p.addcmul_(p * tanh, tanh, value=-1)  # times 1 - tanh^2
            torch.mm(grad, weight, out=grad_x[rows])
            grad_weight.addmm_(grad.T, x[rows])
        ctx.save_for_backward(grad_x, grad_weight)
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


def quick_newton_schulz(
    g: Float[Tensor, "N R C"], steps: int = 5, dtype: torch.dtype | None = None
) -> Float[Tensor, "N R C"]:
    """Do what newton_schulz does; long matrices in float32 by way of their small Gram matrices.

    Args:
        g: a batch of matrices, any float dtype, shape (N, R, C).
        steps: iterations of the polynomial, at least 1.
        dtype: as in newton_schulz.

    Returns:
        g's shape, in the dtype computed in. A matrix of zeros stays zero.
    """
    short, long = sorted(g.shape[-2:])
    if long < 2 * short or dtype not in (None, torch.float32) or g.device.type == "cuda":
        return newton_schulz(g, steps, dtype)
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
    mask: Bool[Tensor, "*rows T S"] | None = None,
) -> Float[Tensor, "B H T D"]:
    """Do what fused_attention does with all scores in memory; with a mask or T > 1024, leave it to that."""
    B, H, T, D = q.shape
    if mask is not None or T > 1024:
        return fused_attention(q, k, v, mask)
    if k.size(1) < H:
        k, v = (part.repeat_interleave(H // k.size(1), dim=1) for part in (k, v))
    q, k, v = (part.reshape(B * H, T, D) for part in (q, k, v))
    future = torch.full((T, T), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    scores = torch.baddbmm(future, q, k.mT, alpha=D**-0.5)
    return (scores.softmax(dim=-1) @ v).view(B, H, T, D)
