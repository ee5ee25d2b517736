# Generated from chapters/12_inference.py by `course build`; edit that file.
"""Draw tokens from logits, and say how likely the draw was."""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["check_dials", "kept_tokens", "draw", "sample", "sampled_logprobs", "likeliest"]


def check_dials(temperature: float, top_k: int | None, top_p: float, min_p: float) -> None:
    """Complain about dials that mean nothing.

    Raises:
        ValueError: a negative temperature, top_k below 1, top_p or min_p not a share, or any NaN.
    """
    if not temperature >= 0 or (top_k is not None and top_k < 1):  # NaN < 0 is false
        raise ValueError(
            f"temperature {temperature} and top_k {top_k}: need >= 0, and >= 1 or None"
        )
    if not (0 < top_p <= 1 and 0 <= min_p <= 1):
        raise ValueError(
            f"top_p {top_p} and min_p {min_p}: need 0 < top_p <= 1 and 0 <= min_p <= 1"
        )


def kept_tokens(
    logits: Float[Tensor, "B V"], top_k: int | None = None, top_p: float = 1.0, min_p: float = 0.0
) -> Bool[Tensor, "B V"]:
    """Mark the tokens that may be drawn; each dial looks at what the ones before it have left.

    Args:
        logits: scores, already divided by the temperature, shape (B, V).
        top_k: keep the k largest, and what equals the last of them.
        top_p: keep the fewest of the likeliest tokens whose probability adds up to this.
        min_p: keep tokens at least this share as likely as the likeliest.

    Source: top-p Holtzman et al. 2019 (arXiv:1904.09751); min-p Nguyen et al. 2024 (arXiv:2407.01082).
    """
    kept = torch.ones_like(logits, dtype=torch.bool)
    if top_k is not None and top_k < logits.shape[-1]:
        kept = logits >= logits.topk(top_k, dim=-1).values[:, -1:]
    if top_p < 1:
        ordered, order = logits.masked_fill(~kept, -math.inf).sort(dim=-1, descending=True)
        odds = ordered.softmax(-1)
        likelier = odds.cumsum(-1) - odds  # probability of the tokens before
        kept = kept & torch.empty_like(kept).scatter(1, order, likelier < top_p)
    if min_p > 0:
        kept = kept & (logits >= logits.amax(-1, keepdim=True) + math.log(min_p))
    return kept


def draw(
    logits: Float[Tensor, "B V"],
    uniforms: Float[Tensor, " B"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """Pick one token a row, by walking along the cumulative probabilities, and say how likely that was.

    Example: probabilities [0.2, 0.5, 0.3] and a uniform of 0.6 -> 1, because 0.2 <= 0.6 < 0.7.

    Args:
        logits: scores, shape (B, V).
        uniforms: one number in [0, 1) a row, shape (B,), on any device.
        temperature: divides the logits; 0 takes the largest, infinity makes all equally likely.
        top_k: as in `kept_tokens`, but of equal logits no more than k are kept.
        top_p: as in `kept_tokens`.
        min_p: as in `kept_tokens`.

    Returns:
        Token ids, int64, and the log-probability of each draw in nats, float32; shape (B,).

    Raises:
        ValueError: a dial that means nothing, or a logit that is NaN or infinite.
    """
    check_dials(temperature, top_k, top_p, min_p)
    if not bool((logits < math.inf).all()):  # of NaN argmax makes token 0, without a word
        raise ValueError("a logit is NaN or infinite: the weights are damaged; load others")
    if temperature == 0:
        return logits.argmax(-1), logits.new_zeros(len(logits))
    names = None
    if top_k is not None and top_k < logits.shape[-1]:
        logits, names = logits.topk(top_k, dim=-1)  # (B, k): the walk is short as well
    logits = logits.float() / max(temperature, 1e-30)  # below, float32 divides to infinity
    if top_p < 1 or min_p > 0:
        kept = kept_tokens(logits, top_p=top_p, min_p=min_p)
        logits = logits.masked_fill(~kept, -math.inf)
    odds = logits.log_softmax(-1)
    cumulative = odds.exp().cumsum(-1)  # (B, V)
    total = cumulative[:, -1:]  # 1 up to rounding
    target = uniforms.to(logits.device)[:, None] * total
    # Rounding may lift target to total: stop at the last token that has any probability.
    choice = torch.minimum((cumulative <= target).sum(-1), (cumulative < total).sum(-1))[:, None]
    tokens = choice if names is None else names.gather(1, choice)
    return tokens[:, 0], odds.gather(1, choice)[:, 0]


def sample(
    logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"], *dials: Any, **named: Any
) -> Int[Tensor, " B"]:
    """Pick one token a row: the first of the two things that `draw` returns, for the same arguments."""
    return draw(logits, uniforms, *dials, **named)[0]


def sampled_logprobs(
    logits: Float[Tensor, "B V"],
    tokens: Int[Tensor, " B"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Float[Tensor, " B"]:
    """Return the log-probability with which `draw` picks these tokens, all dials included.

    Example: logits [0, 0, -9] and token 1 -> about log(1/2); with top_k=1 and token 0 -> 0.

    Args:
        logits: scores, shape (B, V).
        tokens: what was drawn, int64, shape (B,); each counts as kept, wherever it ranks.
        temperature: as in `draw`; at 0 what is drawn is certain.
        top_k: as in `kept_tokens`.
        top_p: as in `kept_tokens`.
        min_p: as in `kept_tokens`.

    Returns:
        Nats, at most 0, shape (B,), float32; gradients flow back to the logits.
    """
    if temperature == 0:
        return logits.new_zeros(len(tokens))
    logits = logits.float() / max(temperature, 1e-30)
    drawn = logits.gather(1, tokens[:, None])[:, 0]
    if top_k is not None or top_p < 1 or min_p > 0:
        kept = kept_tokens(logits.detach(), top_k, top_p, min_p).scatter(1, tokens[:, None], True)
        logits = logits.masked_fill(~kept, -math.inf)
    return drawn - logits.logsumexp(-1)


def likeliest(logits: Float[Tensor, " V"], token: int, n: int) -> list[tuple[int, float]]:
    """List a token and then the n likeliest ones, each with its log-probability in nats, before any dial."""
    odds = logits.float().log_softmax(-1)
    best = odds.topk(min(n, len(odds)))
    return [(token, odds[token].item()), *zip(best.indices.tolist(), best.values.tolist())]
