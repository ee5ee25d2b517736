# Generated from chapters/07_transformer.py by `course build`; edit that file.
"""The transformer: one dial called depth."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from nanochat_lib.model.attention import (
    AttentionCache,
    AttentionConfig,
    CausalSelfAttention,
    rms_norm,
    rope_tables,
)
from nanochat_lib.model.borders import Borders, find_borders
from nanochat_lib.model.losses import token_losses
from nanochat_lib.model.smear import Smear
from nanochat_lib.model.value_embedding import ValueEmbedding

__all__ = ["squared_relu", "MLP", "Block", "MODERN", "DRAWN", "GPTConfig", "GPT"]


def squared_relu(x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
    """Square what is positive; the rest becomes zero. Source: So et al. 2021, section 4."""
    return F.relu(x).square()


class MLP(nn.Module):
    """Think about each token alone: widen four times, squared ReLU, narrow."""

    activate = staticmethod(squared_relu)

    def __init__(self, n_embd: int):
        super().__init__()
        self.c_fc = nn.Linear(n_embd, 4 * n_embd, bias=False)
        self.c_proj = nn.Linear(4 * n_embd, n_embd, bias=False)

    def forward(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
        """Map each vector on its own."""
        return self.c_proj(self.activate(self.c_fc(x)))


class Block(nn.Module):
    """Add what attention reads, then what the MLP makes of it, to the residual stream."""

    norm = staticmethod(rms_norm)

    def __init__(self, config: AttentionConfig, layer_idx: int):
        super().__init__()
        self.attn = CausalSelfAttention(config, layer_idx)
        self.mlp = MLP(config.n_embd)
        self.value_embed = None

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        cos: Float[Tensor, "*rows T half"],
        sin: Float[Tensor, "*rows T half"],
        kv_cache: AttentionCache | None = None,
        borders: Borders | None = None,
        idx: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Return the stream with this block's two additions; `idx` is for the value embedding."""
        h = self.norm(x)
        more_values = None if self.value_embed is None else self.value_embed(idx, h)
        x = x + self.attn(h, cos, sin, kv_cache, borders, more_values)
        return x + self.mlp(self.norm(x))


MODERN = ("smear", "key_offset", "value_embeds", "x0_lambdas")  # the switches of that recipe
DRAWN = tuple(f"{name}.weight" for name in ("c_q", "c_k", "c_v", "c_fc", "value_embed.table"))


@dataclass(frozen=True)
class GPTConfig(AttentionConfig):
    """Set the sizes and switches of a GPT; the defaults fit a laptop."""

    sequence_len: int = 256
    vocab_size: int = 1024
    n_layer: int = 4
    rope_base: float = 10_000.0
    softcap: float = 15.0
    smear: bool = False
    value_embeds: bool = False
    x0_lambdas: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sequence_len", "vocab_size", "n_layer"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if not (self.softcap > 0 and self.rope_base > 1):  # NaN fails as well
            raise ValueError(
                f"softcap={self.softcap} must be above 0 and rope_base={self.rope_base} above 1"
            )

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and the head: vocab_size rounded up to 64."""
        return (self.vocab_size + 63) // 64 * 64

    def has_value_embed(self, layer_idx: int) -> bool:
        """Say whether a layer has a value embedding: every second one, counted from the last."""
        return self.value_embeds and (self.n_layer - 1 - layer_idx) % 2 == 0

    @classmethod
    def from_depth(
        cls,
        depth: int,
        vocab_size: int = 1024,
        sequence_len: int = 256,
        recipe: Literal["classic", "modern"] = "classic",
        aspect_ratio: int = 64,
        head_dim: int | None = None,
    ) -> "GPTConfig":
        """Derive every size from the number of layers.

        Example: from_depth(20) -> 1,280 wide, 10 heads of 128.

        Args:
            depth: number of layers.
            vocab_size: number of tokens that can be predicted.
            sequence_len: longest input, in tokens.
            recipe: "classic" (nanochat, October 2025) or "modern" (its later additions).
            aspect_ratio: width for each layer, in channels; the width is rounded up to whole heads.
            head_dim: channels of a head; None for 128, halved down to 32 while there are fewer than 4 heads.

        Returns:
            The configuration, with as many keys as queries.

        Raises:
            ValueError: the depth is below 1 or the recipe is unknown.
        """
        if depth < 1:
            raise ValueError(f"depth={depth}: must be at least 1")
        if recipe not in ("classic", "modern"):
            raise ValueError(f"recipe={recipe!r} is unknown: use 'classic' or 'modern'")
        width = aspect_ratio * depth
        if head_dim is None:
            head_dim = next((d for d in (128, 64) if width >= 4 * d), 32)
        n_head = -(-width // head_dim)  # rounded up
        return cls(
            n_embd=n_head * head_dim,
            n_head=n_head,
            n_kv_head=n_head,
            sequence_len=sequence_len,
            vocab_size=vocab_size,
            n_layer=depth,
            **dict.fromkeys(MODERN, recipe == "modern"),
        )


class GPT(nn.Module):
    """Predict the next token at every position.

    Where `first_token` is set, texts that share a row, each opened by that token, do not read each other.
    """

    first_token: int | None = None

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        self.smear = Smear(config.n_embd) if config.smear else None
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        for i, block in enumerate(self.blocks):
            if config.has_value_embed(i):
                block.value_embed = ValueEmbedding(config, config.padded_vocab_size)
        self.lm_head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=False)
        self.x0_lambdas = nn.Parameter(torch.zeros(config.n_layer)) if config.x0_lambdas else None
        self.register_buffer("cos", None, persistent=False)
        self.register_buffer("sin", None, persistent=False)
        self.init_weights(torch.Generator().manual_seed(0))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Draw fresh weights on the CPU, so that a seed means the same on every device."""
        device = self.wte.weight.device
        self.cos, self.sin = rope_tables(
            self.config.sequence_len, self.config.head_dim, self.config.rope_base, device
        )
        if device.type == "meta":
            return  # nothing to fill: call again after to_empty()
        bound = (3 / self.config.n_embd) ** 0.5  # a uniform draw with variance 1 / n_embd
        for name, weight in self.named_parameters():
            draw = torch.zeros(weight.shape)
            if name == "wte.weight":
                draw.normal_(std=1.0, generator=generator)
            elif name == "lm_head.weight":
                draw.normal_(std=0.001, generator=generator)
            elif name.endswith(DRAWN):
                draw.uniform_(-bound, bound, generator=generator)
            weight.copy_(draw)
        if self.config.key_offset:  # queries and keys that see alike copy from the first step on
            for block in self.blocks:
                block.attn.copy_queries_to_keys()

    def hidden(
        self, idx: Int[Tensor, "B T"], kv_cache: AttentionCache | None = None
    ) -> Float[Tensor, "B T C"]:
        """Return what the head reads: the stream after the last block, normalized.

        Args:
            idx: token ids, int64, shape (B, T).
            kv_cache: what earlier calls have read; idx then holds only the new tokens.

        Raises:
            ValueError: idx is longer than sequence_len.
        """
        n_new, longest = idx.size(1), self.config.sequence_len
        if n_new > longest:
            raise ValueError(f"{n_new} tokens do not fit sequence_len={longest}: crop the input")
        cos, sin = self.cos[:n_new], self.sin[:n_new]
        if kv_cache is not None:
            positions = kv_cache.positions(n_new)
            cos, sin = self.cos[positions], self.sin[positions]  # (B, T, D/2)
        borders = None
        if self.first_token is not None and kv_cache is None:
            borders = find_borders(idx, self.first_token, cos.dtype)
        x = embeddings = rms_norm(self.wte(idx))
        if self.smear is not None:
            previous = None if kv_cache is None else kv_cache.previous_embedding
            x = self.smear(x, previous, None if borders is None else borders.starts)
        for i, block in enumerate(self.blocks):
            if self.x0_lambdas is not None:
                x = x + self.x0_lambdas[i] * embeddings
            x = block(x, cos, sin, kv_cache, borders, idx)
        if kv_cache is not None:
            kv_cache.advance(n_new, None if self.smear is None else embeddings)
        return rms_norm(x)

    def logits(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows V"]:
        """Score every token of the vocabulary, in float32 and softly capped, from what `hidden` returned."""
        logits = self.lm_head(x)[..., : self.config.vocab_size].float()
        return self.config.softcap * torch.tanh(logits / self.config.softcap)

    def forward(
        self,
        idx: Int[Tensor, "B T"],
        targets: Int[Tensor, "B T"] | None = None,
        kv_cache: AttentionCache | None = None,
        loss_reduction: str = "mean",
    ) -> Float[Tensor, "..."]:
        """Return logits (B, T, vocab_size) in float32, or the loss in nats if targets are given.

        Args:
            idx: token ids, int64, shape (B, T).
            targets: the next ids, -1 where nothing is to be learned, shape (B, T).
            kv_cache: what earlier calls have read; idx then holds only the new tokens.
            loss_reduction: "mean", "sum" or "none" (the loss of every position, (B, T)).

        Raises:
            ValueError: idx is longer than sequence_len, or the reduction is unknown.
        """
        logits = self.logits(self.hidden(idx, kv_cache))
        return logits if targets is None else token_losses(logits, targets, loss_reduction)

    def num_params(self) -> int:
        """Count all weights."""
        return sum(weight.numel() for weight in self.parameters())

    def num_scaling_params(self) -> int:
        """Count the weights that multiply every token: all but embeddings, which are looked up."""
        tables = [module for module in self.modules() if isinstance(module, nn.Embedding)]
        return self.num_params() - sum(table.weight.numel() for table in tables)

    def estimate_flops(self) -> int:
        """Count floating-point operations a token, forward and backward, at full length."""
        attention = 12 * self.config.n_layer * self.config.n_embd * self.config.sequence_len
        return 6 * self.num_scaling_params() + attention
