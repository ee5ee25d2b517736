# Generated from chapters/18_rl.py by `course build`; edit that file.
"""From rewards to a gradient: advantages, six losses, the distance to a reference."""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = [
    "Loss",
    "LOSSES",
    "SCALED",
    "group_advantages",
    "token_weights",
    "policy_terms",
    "kl_terms",
]

Loss = Literal["reinforce", "grpo", "dr_grpo", "dapo", "cispo", "gspo"]
LOSSES: tuple[Loss, ...] = ("reinforce", "grpo", "dr_grpo", "dapo", "cispo", "gspo")
SCALED = ("grpo", "dapo", "cispo", "gspo")  # these divide by the standard deviation


def group_advantages(rewards: list[float], loss: Loss = "reinforce") -> list[float]:
    """Compare each answer with the others to the same question.

    Example: rewards [1, 0, 0, 1] -> [0.5, -0.5, -0.5, 0.5]; with loss="grpo" -> about 0.87 and -0.87.

    Args:
        rewards: one a try; at least one.
        loss: "reinforce" and "dr_grpo" subtract the mean, the others divide by the standard deviation too.

    Returns:
        As many numbers, which add up to 0.

    Raises:
        ValueError: there is no reward, or the loss is unknown.
    """
    if not rewards or loss not in LOSSES:
        raise ValueError(f"{len(rewards)} rewards, loss={loss!r}: need one or more, and {LOSSES}")
    mean = sum(rewards) / len(rewards)
    centred = [reward - mean for reward in rewards]
    if loss not in SCALED:
        return centred
    std = math.sqrt(sum(c * c for c in centred) / max(1, len(rewards) - 1))
    return [c / (std + 1e-6) for c in centred]


def token_weights(lengths: list[int], loss: Loss = "reinforce", max_tokens: int = 1) -> list[float]:
    """Say how much one token of each answer counts, so that a batch may be cut into pieces.

    Example: lengths [1, 3] -> reinforce [1/4, 1/4], grpo [1/2, 1/6], dr_grpo with max_tokens=4 [1/8, 1/8].

    Args:
        lengths: chosen tokens of each answer, at least 1.
        loss: which average.
        max_tokens: the constant that "dr_grpo" divides by.
    """
    n = len(lengths)
    if loss == "dr_grpo":
        return [1 / (n * max_tokens)] * n
    if loss in ("grpo", "gspo"):
        return [1 / (n * length) for length in lengths]
    return [1 / sum(lengths)] * n


def policy_terms(
    new: Float[Tensor, " N"],
    old: Float[Tensor, " N"],
    advantage: Float[Tensor, " N"],
    answer: Int[Tensor, " N"],
    loss: Loss = "reinforce",
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """Return what each chosen token adds to the objective, and where clipping stopped it.

    Example: a ratio of 1.5 and an advantage of 1 -> grpo 1.2, clipped; dapo 1.28, clipped.

    Args:
        new: the learner's log-probabilities, in nats, shape (N,).
        old: the sampler's.
        advantage: that of the token's answer.
        answer: number of the token's answer; "gspo" takes the ratio of whole answers.
        loss: which term.
        clip_low: the ratio counts from 1 - clip_low on; "gspo" uses a thousandth of both bounds.
        clip_high: up to 1 + clip_high; "grpo" and "dr_grpo" use clip_low on both sides.

    Returns:
        Terms to be weighted, summed and *maximized*, and True where the gradient was cut, both (N,).
    """
    if loss == "reinforce":
        return advantage * new, torch.zeros_like(answer, dtype=torch.bool)
    if loss == "cispo":
        ratio = (new - old).exp().detach()
        return ratio.clamp(max=1 + clip_high) * advantage * new, ratio > 1 + clip_high
    if loss == "gspo":
        number = answer.unique(return_inverse=True)[1]
        count = torch.bincount(number)
        mean = new.new_zeros(len(count)).index_add(0, number, new - old) / count
        ratio, clip_low, clip_high = mean.exp()[number], clip_low / 1000, clip_high / 1000
    else:
        ratio = (new - old).exp()
        clip_high = clip_high if loss == "dapo" else clip_low
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
    return torch.minimum(ratio * advantage, bounded), bounded < ratio * advantage


def kl_terms(new: Float[Tensor, " N"], reference: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Estimate at each token how far the policy is from a reference: exp(d) - d - 1, d = reference - new.

    On tokens that the policy drew its mean is the Kullback-Leibler divergence, and no term is negative. Source:
    Schulman, "Approximating KL divergence" (2020), k3.
    """
    difference = reference - new
    return difference.exp() - difference - 1
