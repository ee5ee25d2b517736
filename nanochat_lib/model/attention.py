# Generated from chapters/06_attention.py by `course build`; edit that file.
"""Attention: every token chooses what to read."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from nanochat_lib.model.borders import Borders

__all__ = [
    "causal_mask",
    "naive_attention",
    "rope_tables",
    "apply_rope",
    "rms_norm",
    "offset_keys",
    "AttentionConfig",
    "AttentionCache",
    "fused_attention",
    "CausalSelfAttention",
]


def causal_mask(sequence_len: int, window: int | None = None) -> Bool[Tensor, "T T"]:
    """Mark which position (column) each position (row) may read: itself and earlier ones.

    Example: causal_mask(3, window=2) -> rows 100, 110, 011.

    Args:
        sequence_len: T, in tokens.
        window: how many positions a row reads at most, itself included; None for all of them.

    Returns:
        True where the row may read the column, shape (T, T).

    Raises:
        ValueError: the window is smaller than one token.
    """
    if window is not None and window < 1:
        raise ValueError(f"window={window}: a token must at least read itself, use 1 or more")
    position = torch.arange(sequence_len)
    distance = position[:, None] - position[None, :]
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)


def naive_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    mask: Bool[Tensor, "*rows T S"],
) -> tuple[Float[Tensor, "B H T D"], Float[Tensor, "B H T S"]]:
    """Average the values by softmax of the scaled scores, with every weight kept in memory.

    Args:
        q: queries, shape (B, H, T, D).
        k: keys, shape (B, H, S, D).
        v: values, shape (B, H, S, D).
        mask: True where the query may read the key, broadcast to (B, H, T, S).

    Returns:
        The outputs (B, H, T, D) and the weights (B, H, T, S), whose rows sum to 1.

    Source: Vaswani et al. 2017 (arXiv:1706.03762), eq. 1.
    """
    scores = q @ k.transpose(-2, -1) / q.size(-1) ** 0.5  # (B, H, T, S)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return weights @ v, weights


def rope_tables(
    sequence_len: int,
    head_dim: int,
    base: float = 10_000.0,
    device: torch.device | str | None = None,
) -> tuple[Float[Tensor, "T half"], Float[Tensor, "T half"]]:
    """Tabulate cosine and sine of every position's angle in every plane.

    Args:
        sequence_len: T, the number of positions.
        head_dim: D, the number of channels of a head; D/2 planes.
        base: the slowest plane turns by about 1/base radians a token.
        device: where the tables live.

    Returns:
        cos and sin, float32, shape (T, D/2) each.

    Raises:
        ValueError: the head dimension is odd.

    Source: Su et al. 2021 (arXiv:2104.09864), section 3.2.2.
    """
    if head_dim % 2:
        raise ValueError(f"head_dim={head_dim} is odd: channels turn in pairs, use an even number")
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    speed = 1.0 / base**exponent  # radians a token, one per plane
    angle = torch.arange(sequence_len, dtype=torch.float32, device=device)[:, None] * speed
    return angle.cos(), angle.sin()


def apply_rope(
    x: Float[Tensor, "B T H D"],
    cos: Float[Tensor, "*rows T half"],
    sin: Float[Tensor, "*rows T half"],
) -> Float[Tensor, "B T H D"]:
    """Turn each pair of channels (i, i + D/2) by its position's angle.

    Args:
        x: queries or keys, shape (B, T, H, D).
        cos: cosines, shape (T, D/2), or (B, T, D/2) where rows stand at different positions.
        sin: sines, the same shape.

    Returns:
        x's shape and dtype; lengths of vectors are unchanged.

    Source: Su et al. 2021 (arXiv:2104.09864), eq. 34, with halves instead of neighbours as pairs.
    """
    cos = torch.cat((cos, cos), dim=-1).unsqueeze(-2)  # one angle for all heads: (..., T, 1, D)
    sin = torch.cat((sin, -sin), dim=-1).unsqueeze(-2)
    partner = x.roll(x.size(-1) // 2, dims=-1)  # of channel i: i + D/2, and the other way round
    return (x * cos + partner * sin).to(x.dtype)


def rms_norm(x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
    """Scale each vector to a root-mean-square of 1.

    Args:
        x: activations, any float dtype, shape (..., C).

    Returns:
        x's shape and dtype.

    Source: Zhang & Sennrich 2019 (arXiv:1910.07467), eq. 4, without the gain.
    """
    return F.rms_norm(x, (x.size(-1),))


def offset_keys(
    k: Float[Tensor, "B S H D"], starts: Bool[Tensor, "B S"] | None = None
) -> Float[Tensor, "B S H D"]:
    """Store the keys of the second half of the heads one position later.

    The first position of such a head gets a key of zeros, which no query prefers or avoids.

    Args:
        k: keys of all positions from the first on, shape (B, S, H, D).
        starts: True at further first positions, where several texts share a row.

    Returns:
        The same shape; heads from H // 2 on are offset, so a lone head is.

    Source: C. Larry, "Partial key offset", https://github.com/KellerJordan/modded-nanogpt/pull/169
    """
    plain, offset = k.tensor_split([k.size(2) // 2], dim=2)
    offset = F.pad(offset, (0, 0, 0, 0, 1, -1))
    if starts is not None:
        offset = offset.masked_fill(starts[..., None, None], 0.0)
    return torch.cat((plain, offset), dim=2)


@dataclass(frozen=True)
class AttentionConfig:
    """Set the sizes of one attention layer."""

    n_embd: int = 128
    n_head: int = 4
    n_kv_head: int = 4
    key_offset: bool = False

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head or (self.n_embd // self.n_head) % 2:
            raise ValueError(
                f"n_embd={self.n_embd} does not split into n_head={self.n_head} heads of even size: "
                f"choose n_embd as a multiple of {2 * self.n_head}"
            )
        if self.n_kv_head < 1 or self.n_head % self.n_kv_head:
            raise ValueError(
                f"n_head={self.n_head} queries cannot share n_kv_head={self.n_kv_head} keys evenly: "
                f"choose a divisor of {self.n_head}"
            )

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.n_embd // self.n_head


@runtime_checkable
class AttentionCache(Protocol):
    """Say what the model asks of a key-value cache; `inference.kv_cache` has the real one."""

    previous_embedding: Tensor | None

    def positions(self, n_new: int) -> Int[Tensor, "B T"]:
        """Return the absolute positions of the next n_new tokens of every row."""

    def update(
        self, layer_idx: int, k: Float[Tensor, "B T H D"], v: Float[Tensor, "B T H D"]
    ) -> tuple[Float[Tensor, "B S H D"], Float[Tensor, "B S H D"]]:
        """Store the new keys and values of a layer; return all of them, keys as they are to be read."""

    def attention_mask(self, n_new: int) -> Shaped[Tensor, "B 1 T S"] | None:
        """Return what `fused_attention` takes as a mask for the new tokens."""

    def advance(self, n_new: int, embeddings: Float[Tensor, "B T C"] | None) -> None:
        """Count the new tokens as read, once all layers are done."""


def fused_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B G S D"],
    v: Float[Tensor, "B G S D"],
    mask: Shaped[Tensor, "*rows T S"] | None = None,
) -> Float[Tensor, "B H T D"]:
    """Average the values as naive_attention does, without keeping the weights.

    Args:
        q: queries, shape (B, H, T, D).
        k: keys, shape (B, G, S, D); H is a multiple of G, and query head h reads key head h * G // H.
        v: values, the same shape.
        mask: True where the query may read the key, or what is added to scores; None for causal with S = T,
            and for a single query that reads every key.

    Returns:
        The outputs, shape (B, H, T, D).
    """
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=mask is None and q.size(2) > 1,
        enable_gqa=k.size(1) < q.size(1),
    )


class CausalSelfAttention(nn.Module):
    """Let every token read itself and earlier tokens, with n_head queries a token."""

    attend = staticmethod(fused_attention)

    def __init__(self, config: AttentionConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.key_offset = config.key_offset
        kv_width = config.n_kv_head * config.head_dim
        self.c_q = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.c_k = nn.Linear(config.n_embd, kv_width, bias=False)
        self.c_v = nn.Linear(config.n_embd, kv_width, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    @torch.no_grad()
    def copy_queries_to_keys(self) -> None:
        """Make the keys of each group of heads see a token as the group's first query does."""
        groups = self.c_k.out_features // self.head_dim
        queries = self.c_q.weight.view(groups, -1, self.head_dim, self.c_q.in_features)
        self.c_k.weight.copy_(queries[:, 0].reshape(self.c_k.weight.shape))

    def project(
        self,
        x: Float[Tensor, "B T C"],
        cos: Float[Tensor, "*rows T half"],
        sin: Float[Tensor, "*rows T half"],
    ) -> tuple[Float[Tensor, "B T H D"], Float[Tensor, "B T G D"], Float[Tensor, "B T G D"]]:
        """Make queries and keys, rotated and of one length, and values."""
        heads = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (linear(x).view(heads) for linear in (self.c_q, self.c_k, self.c_v))
        return rms_norm(apply_rope(q, cos, sin)), rms_norm(apply_rope(k, cos, sin)), v

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        cos: Float[Tensor, "*rows T half"],
        sin: Float[Tensor, "*rows T half"],
        kv_cache: AttentionCache | None = None,
        borders: Borders | None = None,
        more_values: Float[Tensor, "B T G D"] | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Mix every token with what it may read; a cache supplies the tokens read before, their keys offset.

        What else a token should give its readers, `more_values`, is added to its values.
        """
        q, k, v = self.project(x, cos, sin)
        v = v if more_values is None else v + more_values
        mask = None if borders is None else borders.mask
        if kv_cache is not None:
            k, v = kv_cache.update(self.layer_idx, k, v)
            mask = kv_cache.attention_mask(x.size(1))
        elif self.key_offset:
            k = offset_keys(k, None if borders is None else borders.starts)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (B, H, T, D)
        y = self.attend(q, k, v, mask)
        return self.c_proj(y.transpose(1, 2).reshape(x.shape))
