# Generated from chapters/12_inference.py by `course build`; edit that file.
"""Draw tokens from logits, and say how likely the draw was."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["sample", "sampled_logprobs"]


def sample(
    logits: Float[Tensor, "B V"],
    uniforms: Float[Tensor, " B"],
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Int[Tensor, " B"]:
    """Pick one token a row, by walking along the cumulative probabilities.

    Example: probabilities [0.2, 0.5, 0.3] and a uniform of 0.6 -> 1, because 0.2 <= 0.6 < 0.7.

    Args:
        logits: scores, shape (B, V).
        uniforms: one number in [0, 1) a row, shape (B,), on any device.
        temperature: divides the logits; 0 takes the largest, infinity makes all equally likely.
        top_k: keep only the k largest logits of each row.

    Returns:
        Token ids, shape (B,), int64.

    Raises:
        ValueError: a temperature that is negative or no number, top_k below 1, or a logit that is NaN or infinite.
    """
    if not temperature >= 0 or (top_k is not None and top_k < 1):  # NaN < 0 is false
        raise ValueError(
            f"temperature {temperature} and top_k {top_k}: need >= 0, and >= 1 or None"
        )
    if not bool((logits < math.inf).all()):  # of NaN argmax makes token 0, without a word
        raise ValueError("a logit is NaN or infinite: the weights are damaged; load others")
    if temperature == 0:
        return logits.argmax(-1)
    tokens = None
    if top_k is not None and top_k < logits.shape[-1]:
        logits, tokens = logits.topk(top_k, dim=-1)  # (B, k): the walk is short as well
    temperature = max(temperature, 1e-30)  # below, float32 divides a logit to infinity
    cumulative = torch.softmax(logits.float() / temperature, -1).cumsum(-1)  # (B, V)
    total = cumulative[:, -1:]  # 1 up to rounding
    target = uniforms.to(logits.device)[:, None] * total
    # Rounding may lift target to total: stop at the last token that has any probability.
    choice = torch.minimum((cumulative <= target).sum(-1), (cumulative < total).sum(-1))
    return choice if tokens is None else tokens.gather(1, choice[:, None])[:, 0]


def sampled_logprobs(
    logits: Float[Tensor, "B V"],
    tokens: Int[Tensor, " B"],
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Float[Tensor, " B"]:
    """Return the log-probability with which `sample` draws these tokens, temperature and top-k included.

    Example: logits [0, 0, -9] and token 1 -> about log(1/2); with top_k=1 and token 0 -> 0.

    Args:
        logits: scores, shape (B, V).
        tokens: what was drawn, int64, shape (B,); each counts as one of the k, wherever it ranks.
        temperature: as in `sample`; at 0 what is drawn is certain.
        top_k: as in `sample`.

    Returns:
        Nats, at most 0, shape (B,), float32; gradients flow back to the logits.
    """
    if temperature == 0:
        return logits.new_zeros(len(tokens))
    logits = logits.float() / max(temperature, 1e-30)
    drawn = logits.gather(1, tokens[:, None])[:, 0]
    if top_k is not None and top_k < logits.shape[-1]:
        kth = logits.detach().topk(top_k, dim=-1).values[:, -1]
        logits = logits.masked_fill(logits < torch.minimum(kth, drawn.detach())[:, None], -math.inf)
    return drawn - logits.logsumexp(-1)
