# Generated from chapters/07_transformer.py by `course build`; edit that file.
"""Value embeddings: what a token gives its readers, looked up."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nanochat_lib.model.attention import AttentionConfig

__all__ = ["GATE_CHANNELS", "ValueEmbedding"]

GATE_CHANNELS = 32


class ValueEmbedding(nn.Module):
    """Look up what each token adds to its values, times a gate for each head."""

    def __init__(self, config: AttentionConfig, vocab_size: int):
        super().__init__()
        self.head_dim = config.head_dim
        self.table = nn.Embedding(vocab_size, config.n_kv_head * config.head_dim)
        channels = min(GATE_CHANNELS, config.n_embd)
        self.gate = nn.Linear(channels, config.n_kv_head, bias=False)

    def forward(
        self, idx: Int[Tensor, "B T"], x: Float[Tensor, "B T C"]
    ) -> Float[Tensor, "B T G D"]:
        """Return the gated rows of the tokens `idx`, in the format of x, the normalized stream."""
        gate = 2 * torch.sigmoid(self.gate(x[..., : self.gate.in_features]))  # (B, T, G)
        rows = self.table(idx).to(x.dtype).unflatten(-1, (-1, self.head_dim))
        return gate.unsqueeze(-1) * rows
