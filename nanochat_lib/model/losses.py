# Generated from chapters/07_transformer.py by `course build`; edit that file.
"""The loss: cross-entropy of the tokens that are to be learned."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["token_losses"]


def token_losses(
    logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"], reduction: str = "mean"
) -> Float[Tensor, "*BT"]:
    """Compute cross-entropy in nats; targets of -1 cost nothing and do not count.

    Args:
        logits: scores of every token, float32, shape (B, T, V).
        targets: the right ids, or -1, int64, shape (B, T).
        reduction: "mean" over counted targets (0 if there are none), "sum", or "none" for (B, T).

    Returns:
        A scalar, or the loss of every position.

    Raises:
        ValueError: the reduction is unknown.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"loss_reduction={reduction!r} is unknown: use 'mean', 'sum' or 'none'")
    losses = F.cross_entropy(
        logits.flatten(0, 1),
        targets.flatten(),
        ignore_index=-1,
        reduction="none" if reduction == "none" else "sum",
    )
    if reduction == "none":
        return losses.view(targets.shape)
    # torch's own mean divides zero by zero where every target is -1
    return losses / (targets != -1).sum().clamp(min=1) if reduction == "mean" else losses
