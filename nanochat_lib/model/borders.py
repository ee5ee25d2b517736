# Generated from chapters/06_attention.py by `course build`; edit that file.
"""Borders between texts that share a row."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Borders", "find_borders"]


class Borders(NamedTuple):
    """Say where texts that share a row begin, (B, T), and what is added to scores, (B, 1, T, T): 0 or -inf."""

    starts: Bool[Tensor, "B T"]
    mask: Float[Tensor, "B 1 T T"]


def find_borders(
    idx: Int[Tensor, "B T"], first_token: int, dtype: torch.dtype = torch.float32
) -> Borders:
    """Let each text of a row read itself alone.

    Args:
        idx: token ids, shape (B, T).
        first_token: opens every text; what stands before the first one in a row is a text, too.
        dtype: of the mask, that of the queries.
    """
    starts = idx == first_token
    number = starts.cumsum(dim=1)  # of the text that a token belongs to
    strangers = number[:, None, :, None] != number[:, None, None, :]
    hidden = strangers | torch.ones_like(strangers[0, 0]).triu(1)  # or in the future
    return Borders(starts, torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, -torch.inf))
