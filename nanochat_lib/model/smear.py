# Generated from chapters/07_transformer.py by `course build`; edit that file.
"""Smear: see the token before."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

__all__ = ["SMEAR_CHANNELS", "Smear"]

SMEAR_CHANNELS = 24


class Smear(nn.Module):
    """Add a gated copy of the previous token's embedding to each embedding."""

    def __init__(self, n_embd: int):
        super().__init__()
        self.gate = nn.Linear(min(SMEAR_CHANNELS, n_embd), 1, bias=False)
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        previous: Float[Tensor, "B 1 C"] | None = None,
        starts: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Smear each row by one token; `previous` stands before the first; no token reaches a start."""
        shifted = F.pad(x, (0, 0, 1, -1))  # row t holds token t - 1, row 0 zeros
        if previous is not None:
            shifted = torch.cat((previous, x[:, :-1]), dim=1)
        if starts is not None:
            shifted = shifted.masked_fill(starts[..., None], 0.0)
        gate = self.scale * torch.sigmoid(self.gate(x[..., : self.gate.in_features]))  # (B, T, 1)
        return x + gate.to(x.dtype) * shifted
