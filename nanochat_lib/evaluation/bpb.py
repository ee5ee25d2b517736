# Generated from chapters/03_baseline.py by `course build`; edit that file.
"""Bits per byte: one number for every model and tokenizer, and the score that counting gets."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "entropy_bits",
    "bits_per_byte",
    "bigram_counts",
    "bigram_entropy_bits",
    "BigramModel",
    "nats_and_bytes",
    "evaluate_bpb",
]


def entropy_bits(counts: Int[Tensor, " V"]) -> float:
    """Compute the entropy of the shares that counts stand for: an ideal code's average length.

    Raises:
        ValueError: all counts are zero, or there are none.

    Source: Shannon 1948, "A Mathematical Theory of Communication", section 6.
    """
    if counts.sum() == 0:
        raise ValueError("no counts: entropy needs at least one observation")
    p = counts[counts > 0].double() / counts.sum()
    return float(-(p * p.log2()).sum())


def bits_per_byte(nats_per_token: Sequence[float], token_bytes: Sequence[int]) -> float:
    """Convert token losses to bits per byte of the text they cover.

    Example: losses of 1 and 3 bits over 3 and 4 bytes -> 4/7.

    Args:
        nats_per_token: loss of each token, in nats.
        token_bytes: length of each token, in bytes of UTF-8; 0 for special tokens, which no text
            contains.

    Returns:
        Bits per byte, over the tokens whose length is not 0.

    Raises:
        ValueError: the lists differ in length, a loss is NaN, or no token covers any byte.

    Source: Gao et al. 2020 (arXiv:2101.00027), section 3.1.
    """
    if len(nats_per_token) != len(token_bytes):
        raise ValueError(f"{len(nats_per_token)} losses for {len(token_bytes)} tokens")
    n_bytes = sum(token_bytes)
    if n_bytes == 0:
        raise ValueError("no token covers any byte: is every token special?")
    nats = math.fsum(loss for loss, n in zip(nats_per_token, token_bytes) if n > 0)
    if math.isnan(nats):
        raise ValueError("a loss is NaN: the model's weights are damaged")
    return nats / math.log(2) / n_bytes


def bigram_counts(ids: Int[Tensor, " T"], vocab_size: int) -> Int[Tensor, "V V"]:
    """Count how often each token follows each other token.

    Example: [0, 1, 0, 1] -> row 0 is [0, 2] and row 1 is [1, 0].

    Args:
        ids: token ids in reading order, shape (T,), integers below vocab_size.
        vocab_size: number of rows and columns; the table takes 8 * vocab_size**2 bytes.

    Returns:
        Counts, int64, shape (V, V): row = the token before, column = the token after.

    Raises:
        ValueError: an id lies outside the vocabulary.
    """
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise ValueError(f"ids from {ids.min()} to {ids.max()} in a vocabulary of {vocab_size}")
    pairs = ids[:-1].long() * vocab_size + ids[1:].long()
    return torch.bincount(pairs, minlength=vocab_size**2).view(vocab_size, vocab_size)


def bigram_entropy_bits(counts: Int[Tensor, "V V"]) -> float:
    """Compute the entropy of the next token given the one before: the rows' weighted mean.

    Raises:
        ValueError: all counts are zero.
    """
    # H(next | before) = H(before, next) - H(before)
    return entropy_bits(counts.flatten()) - entropy_bits(counts.sum(dim=1))


class BigramModel:
    """Predict the next token from the last one by counting; called like every later model.

    A pair's probability mixes its share among the successors of the last token with the next
    token's share in the whole text (one count added to each, so that nothing is impossible). The
    more often the last token was seen, the more its own successors weigh: n against `prior`.

    Args:
        counts: pairs in the training text, shape (V, V), from bigram_counts.
        prior: how many imaginary observations the shares of the whole text are worth, above 0.

    Raises:
        ValueError: the prior is not above 0.

    Source: MacKay & Peto 1995, "A hierarchical Dirichlet language model", eq. 2 for the mixture.
    """

    def __init__(self, counts: Int[Tensor, "V V"], prior: float = 10.0):
        if not 0 < prior < math.inf:
            raise ValueError(f"a prior of {prior} leaves unseen pairs impossible: take one above 0")
        overall = counts.sum(dim=0).double() + 1
        overall = overall / overall.sum()
        seen = counts.sum(dim=1, keepdim=True)
        self.log_probs = ((counts + prior * overall) / (seen + prior)).log().float()  # (V, V)

    def __call__(
        self,
        idx: Int[Tensor, "B T"],
        targets: Int[Tensor, "B T"] | None = None,
        loss_reduction: str = "mean",
    ) -> Float[Tensor, "..."]:
        """Return log probabilities (B, T, V); with targets the loss in nats, (B, T) for "none"."""
        if targets is None:
            return self.log_probs[idx]
        losses = -self.log_probs[idx, targets.clamp(min=0)]  # (B, T)
        losses = losses.masked_fill(targets < 0, 0.0)
        if loss_reduction == "none":
            return losses
        return losses.sum() / (targets >= 0).sum().clamp(min=1)


@torch.no_grad()
def nats_and_bytes(
    model: Callable[..., Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    token_bytes: Int[Tensor, " V"],
) -> tuple[float, int]:
    """Add up the loss of a model over some text, and the bytes of that text.

    Several processes that each evaluate a part add both sums before they divide.

    Args:
        model: called as model(idx, targets, loss_reduction="none"), returns nats of shape (B, T).
        batches: pairs (idx, targets), int64, shape (B, T) each; a target of -1 does not count.
        token_bytes: bytes of each token, shape (V,); tokens of 0 bytes (special ones) do not count.

    Returns:
        The sum of the losses in nats, and the number of bytes.

    Raises:
        ValueError: the model returns losses of another shape than the targets, or NaN.
    """
    nats, n_bytes = 0.0, 0
    for idx, targets in batches:
        losses = model(idx, targets, loss_reduction="none")
        if losses.shape != targets.shape:
            raise ValueError(f"losses {tuple(losses.shape)} for targets {tuple(targets.shape)}")
        lengths = token_bytes.to(targets.device)[targets.clamp(min=0)]
        lengths = lengths.masked_fill(targets < 0, 0)
        # Select, never multiply by zero: an ignored loss may be infinite, and 0 * inf is not a
        # number.
        nats += float(losses[lengths > 0].cpu().double().sum())
        n_bytes += int(lengths.sum())
    if math.isnan(nats):
        raise ValueError(
            "a loss is NaN: the model's weights are damaged; load an earlier checkpoint"
        )
    return nats, n_bytes


def evaluate_bpb(
    model: Callable[..., Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    token_bytes: Int[Tensor, " V"],
) -> float:
    """Measure how well a model predicts text, in bits per byte, whatever its tokenizer.

    Args:
        model: called as model(idx, targets, loss_reduction="none"), returns nats of shape (B, T).
        batches: pairs (idx, targets), int64, shape (B, T) each; a target of -1 does not count.
        token_bytes: bytes of each token, shape (V,); tokens of 0 bytes (special ones) do not count.

    Returns:
        Bits per byte, over all targets that cover text.

    Raises:
        ValueError: no target covers any byte, or the model returns NaN or losses of a wrong shape.
    """
    nats, n_bytes = nats_and_bytes(model, batches, token_bytes)
    if n_bytes == 0:
        raise ValueError(
            "no target covers any byte: are the batches empty, or all targets -1 or special?"
        )
    return nats / math.log(2) / n_bytes
