# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The transformer: one dial called depth
#
# One attention layer reads what lies a few bytes back. To read *what it has read*, we stack
# layers, and stacking is where networks used to die: forty layers in a row either blow a signal up
# or lose it. This chapter puts around attention what it takes to stack it: a stream that layers
# add to, a norm, a small network for each token, and an initialization under which an untrained
# model is exactly as ignorant as it should be. The result is the model of the whole course:
#
# ```python
# GPT(GPTConfig.from_depth(20, vocab_size=65536, sequence_len=2048)).num_params()   # 560,988,160
# ```
#
# One number, the depth, sets every other size; we derive that count on paper, and the operations
# and the memory beside it. You need the layer of chapter `attention`, matrix products and the
# chain rule. On a laptop the chapter takes about 30 seconds.

# %%
#| default_exp model.gpt

# %%
#| export
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nanochat_lib.model.attention import (
    AttentionCache,
    AttentionConfig,
    CausalSelfAttention,
    rms_norm,
    rope_tables,
)
from nanochat_lib.model.borders import Borders, find_borders

# %%
import dataclasses
import itertools
import math

import matplotlib.pyplot as plt

from nanochat_lib.data.documents import python_docs
from nanochat_lib.evaluation.bpb import BigramModel, bigram_counts

# %% [markdown]
# ## Two numbers through forty layers
#
# Let a layer multiply its input by 1.2. Forty of them multiply by $1.2^{40}$, about 1,470; at 0.8
# a layer they multiply by 0.0001. The gradient, which runs back through the same factors, fares
# alike. Nobody can set forty factors to exactly 1.
#
# So we do not replace the signal, we **add** to it. The vector of a token runs through the model
# unchanged, and each layer adds a correction: $x \leftarrow x + f(x)$. This vector is called the
# **residual stream**. If a layer has nothing to say, $f = 0$ and the signal passes, as does the
# gradient. We measure both kinds of stack with random layers.


# %%
def gradient_through(n_layer: int, residual: bool) -> float:
    """Length of the gradient at the input of a random stack, relative to that at its output."""
    generator = torch.Generator().manual_seed(0)
    x = first = torch.randn(16, 64, generator=generator, requires_grad=True)
    for _ in range(n_layer):
        weight = torch.randn(64, 64, generator=generator) / 8  # keeps the variance of its input ...
        change = torch.tanh(x @ weight)  # ... until tanh takes some away
        x = x + change / n_layer**0.5 if residual else change
    x.sum().backward()
    return first.grad.norm().item() / (16 * 64) ** 0.5


# %%
# NBVAL_CHECK_OUTPUT
assert round(1.2**40) == 1470
for n_layer in (4, 40):
    plain, residual = gradient_through(n_layer, False), gradient_through(n_layer, True)
    print(
        f"{n_layer:2} layers: gradient {plain:.2f} in a plain stack, {residual:.2f} with a residual stream"
    )

# %% [markdown]
# The residual stack keeps its gradient at any depth. (The division by $\sqrt{n}$ in it is a
# stand-in: our model will get the same effect from initialization.)
#
# ## What a layer reads: the stream, normalized
#
# Additions pile up: the stream grows as it runs. A layer should not care whether it is third or
# thirtieth, so each reads the stream through `rms_norm` of the last chapter, which fixes the
# vector's size and keeps its direction. The norm sits on the branch, never on the stream itself:
# $x + f(norm(x))$. The path from end to start stays a plain sum.

# %%
# NBVAL_CHECK_OUTPUT
generator = torch.Generator().manual_seed(0)
stream = torch.randn(4, 64, generator=generator)
for layer in range(1, 33):
    stream = stream + torch.randn(4, 64, generator=generator)
    if layer in (1, 8, 32):
        size, read = stream.square().mean().sqrt(), rms_norm(stream).square().mean().sqrt()
        print(f"after {layer:2} layers: stream {size:.1f}, what a layer reads {read:.1f}")

# %% [markdown]
# Independent additions of size 1 give $\sqrt{33} = 5.7$ after 32 layers. That also means that a
# late layer's addition weighs less than an early one's, a flaw that later recipes repair.
#
# ## Thinking about one token at a time
#
# Attention moves information between tokens but computes little: its output is an average of
# values, linear in them. The other half of a block looks at each token alone and is not linear:
# widen the vector four times, apply a function to each channel, narrow it again. The function is
# squared ReLU, $\max(0, x)^2$ (So et al. 2021, arXiv:2109.08668): zero for negative inputs as in
# ReLU, no kink at zero, and no exponential to compute.


# %%
#| export
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


# %%
mlp = MLP(n_embd=1)  # one channel in, four inside
with torch.no_grad():
    mlp.c_fc.weight.copy_(torch.tensor([[1.0], [-1.0], [2.0], [0.5]]))
    mlp.c_proj.weight.copy_(torch.tensor([[1.0, 1.0, 1.0, 4.0]]))
by_hand = 2.0**2 + 0 + 4.0**2 + 4 * 1.0**2  # inside: 2, -2, 4, 1
assert mlp(torch.tensor([2.0])).item() == by_hand == 24

# %% [markdown]
# A block is attention, then MLP, each added to the stream. (`activate` and `norm` are attributes for
# the sake of chapter `speed`, as in attention. What `value_embed` is for comes below.)


# %%
#| export
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


# %%
# NBVAL_CHECK_OUTPUT
block = Block(AttentionConfig(n_embd=64, n_head=2, n_kv_head=2), layer_idx=0)
counts = {name: sum(w.numel() for w in part.parameters()) for name, part in block.named_children()}
print(counts, "in units of C squared:", [count / 64**2 for count in counts.values()])

# %% [markdown]
# $4C^2$ in attention, $8C^2$ in the MLP, $12C^2$ a block: two thirds of a transformer's matrices
# never look at another token.
#
# ## Seeing the token before: smear
#
# What do stacked layers buy? The best-studied answer is **induction** (Olsson et al. 2022,
# arXiv:2209.11895). The text so far holds `... Mrs Dalloway ... Mrs`; what comes next? Look for an
# earlier `Mrs` and copy what *followed* it. One attention layer cannot: the query of `Mrs` finds
# the earlier `Mrs`, but what must be read is the token after it, and that token, `Dalloway`, does
# not know who stood before it. It takes two layers. In the first, every token reads its
# predecessor; in the second, `Mrs` looks for "the token whose predecessor is `Mrs`". Small models
# discover this late, and names, numbers and option letters are all copied this way.
#
# Telling every token its predecessor is a whole layer's work, and it can be had for 25 weights:
# add to each embedding a little of the one before, right at the start. That is the **smear** of
# the `modern` recipe (nanochat, 2026): $x_t \leftarrow x_t + g_t\, x_{t-1}$, where the gate $g_t$
# is one learned number times a sigmoid of 24 channels of $x_t$. The learned number starts at 0, so
# training starts from the model without smear.

# %%
#| default_exp model.smear
# Smear: see the token before.

# %%
#| export
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

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


# %% [markdown]
# By hand: three tokens, 10, 20 and 30, and a gate of one half times sigmoid(0) = 1/4. When a chat
# adds one token at a time, the predecessor is in the past, so it can be passed in.

# %%
smear = Smear(n_embd=1)
x = torch.tensor([[[10.0], [20.0], [30.0]]])
with torch.no_grad():
    smear.gate.weight.zero_()
    assert torch.equal(smear(x), x), "smear must start as the identity"
    smear.scale.fill_(0.5)
    assert smear(x).flatten().tolist() == [10.0, 20 + 10 / 4, 30 + 20 / 4]
    assert smear(x[:, 2:], previous=x[:, 1:2]).item() == 35.0

# %% [markdown]
# ## Knowing the token itself: value embeddings
#
# The other switch is about memory. What a token gives its readers, its value, is a product of the
# stream with a matrix that serves all tokens alike. Whatever is true of one token alone, which
# letters are in it or which capital belongs to it, has to fit into the embedding, survive the layers
# before and come out of that matrix. A **value embedding** is the short way: a second table with a row
# a token, whose row is added to the token's values (Zhou et al. 2024, arXiv:2410.17897, carry the first
# layer's values through; the table is K. Jordan's modded-nanogpt, and nanochat has it since 2026, in
# every second layer, counted from the last). A row is looked up, not multiplied, so that the table costs
# memory and next to no time. A gate for each head, twice a sigmoid of the first 32 channels, lets the
# layer close it; it starts at 1, and the rows start as small as the matrix's values do.
#
# The last switch is of the same kind and smaller still: before each layer, add the token's embedding to the stream
# once more, times one learned number a layer ($\lambda$ of $x_0$, hence `x0_lambdas`; modded-nanogpt and nanochat
# have it). It starts at 0. What the layers have written over can so be read again.

# %%
#| default_exp model.value_embedding
# Value embeddings: what a token gives its readers, looked up.

# %%
#| export
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nanochat_lib.model.attention import AttentionConfig

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


# %% [markdown]
# By hand: a gate that has learned nothing lets a row through as it is; one that sees a large number
# doubles it or closes.

# %%
value_embed = ValueEmbedding(AttentionConfig(n_embd=2, n_head=1, n_kv_head=1), vocab_size=3)
idx, x = torch.tensor([[2]]), torch.tensor([[[50.0, 1.0]]])
with torch.no_grad():
    row = value_embed.table.weight[2]
    for weight, times in ((0.0, 1), (1.0, 2), (-1.0, 0)):
        value_embed.gate.weight.copy_(torch.tensor([[weight, 0.0]]))
        torch.testing.assert_close(value_embed(idx, x).flatten(), times * row)

# %% [markdown]
# ## Sizes from one dial
#
# A GPT has many sizes, and tuning each is a way to get lost. We keep shapes alike: the width is 64
# channels a layer (`aspect_ratio`), heads have 128 channels (fewer in small models, so that there
# are at least four heads where possible), the MLP is four times as wide as the stream. Then
# `depth` is the one dial from laptop to cluster.
#
# The vocabulary is padded to a multiple of 64, because matrix units like round sizes. The padding
# is never predicted: we cut those columns off before the loss. `GPTConfig` extends the
# `AttentionConfig` of the last chapter, so attention takes it as it is.


# %%
#| export model.gpt
from nanochat_lib.model.smear import Smear
from nanochat_lib.model.value_embedding import ValueEmbedding

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


# %%
# NBVAL_CHECK_OUTPUT
for depth in (2, 4, 12, 20, 32):
    config = GPTConfig.from_depth(depth)
    print(f"d{depth:<2} width {config.n_embd:4}  {config.n_head:2} heads of {config.head_dim}")

# %% [markdown]
# ## What we minimize
#
# The loss is cross-entropy, as in chapter `baseline`, with one addition: not every position is to
# be learned. In a chat, the user's words are read and not imitated; the last cell of a short row
# is padding. Such a target is -1 and must not count. We take the mean over the rest, and the case
# in which nothing is left needs care; the end of this chapter shows what happens without it.


# %%
#| default_exp model.losses
# The loss: cross-entropy of the tokens that are to be learned.

# %%
#| export
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


# %%
#| export
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


# %%
logits = torch.tensor([[[0.0, 0.0], [math.log(3), 0.0], [5.0, 0.0]]])  # (B=1, T=3, V=2)
targets = torch.tensor([[0, 1, -1]])
single = token_losses(logits, targets, "none")[0]
assert torch.allclose(single, torch.tensor([math.log(2), math.log(4), 0.0])), single.tolist()
mean = token_losses(logits, targets)
assert torch.isclose(mean, single.sum() / 2), (
    f"got {mean.item():.3f}: does the -1 count in the mean?"
)

# %% [markdown]
# ## Before the first step
#
# How should the weights start? Two requirements fix nearly everything.
#
# *A matrix should keep the size of what it multiplies.* An output is a sum of C products; with
# inputs of variance 1 and weights of variance $1/C$ it has variance 1. A uniform draw from $[-a,
# a]$ has variance $a^2/3$, so $a = \sqrt{3/C}$. Why not a normal distribution? It would do; the
# uniform one has no outliers.

# %%
C = 256
bound = (3 / C) ** 0.5
weight = torch.empty(C, C).uniform_(-bound, bound, generator=generator)
y = torch.randn(1000, C, generator=generator) @ weight
assert abs(y.var().item() - 1) < 0.05, f"variance {y.var().item():.2f}: is the bound sqrt(3 / C)?"

# %% [markdown]
# *An untrained model should know nothing.* So its first loss should be the logarithm of the
# vocabulary size: a loss above that means confident nonsense, and the first steps are spent on
# unlearning it. We start both **output projections** of every block (`c_proj`) at zero. Then each
# block adds nothing, the stream at the top equals the embedding, the gradient arrives at every
# block undamped, and depth costs nothing at step 0. The first step moves only the projections;
# from the second step on everything learns. And the head, which turns the stream into logits,
# starts tiny (0.001), so all tokens are nearly equally likely.
#
# The model has separate matrices for the embedding and the head (**untied**): one says what a
# token means when read, the other when it is to be written. Right after the embedding stands a
# norm, so that every token enters the stream at size 1 whatever its row has grown to. And the
# logits are softly capped:

# %%
# NBVAL_CHECK_OUTPUT
for logit in (1.0, 15.0, 100.0):
    print(f"{logit:5} -> {15 * math.tanh(logit / 15):.2f}")

# %% [markdown]
# $15\tanh(z/15)$ leaves small logits alone and never exceeds 15 (Gemma Team 2024,
# arXiv:2408.00118, section 2). The order of tokens does not change, and no single logit can run
# away during a bad batch.
#
# Now the model. Weights are drawn on the CPU, wherever they will live, so one seed means one model
# on every device. On the `meta` device, which has shapes and no numbers, a model of any size is
# built in no time; `to_empty` then gives it memory and `init_weights` the numbers. With a KV
# cache, positions come from the cache, and each layer asks it for earlier keys and values.


# %%
#| export model.gpt
from nanochat_lib.model.losses import token_losses


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


# %% [markdown]
# The untrained model must be exactly ignorant: log(vocab_size). And causal, which we test as in
# the last chapter. The second test needs a model whose projections are not zero: at initialization
# no token reads any other, and the test would pass for any mask.

# %%
# NBVAL_CHECK_OUTPUT
config = GPTConfig(vocab_size=1000, n_layer=2, n_embd=64, n_head=2, n_kv_head=2, sequence_len=64)
model = GPT(config)
idx, targets = torch.randint(1000, (2, 8, 64), generator=generator)
loss = model(idx, targets).item()
print(
    f"untrained {loss:.2f}, log(1000) = {math.log(1000):.2f}, head has {len(model.lm_head.weight)} rows"
)

# %%
with torch.no_grad():
    for block in model.blocks:
        for weight in (block.attn.c_proj.weight, block.mlp.c_proj.weight):
            weight.normal_(std=0.1, generator=generator)
    changed = idx.clone()
    changed[:, 40] = (changed[:, 40] + 1) % 1000
    moved = (model(idx) != model(changed)).any(dim=-1).any(dim=0)
assert not moved[:40].any() and moved[40:].all(), (
    f"first change at {moved.nonzero()[0].item()}, not 40"
)

# %% [markdown]
# The strongest check is an independent implementation. Hugging Face's transformers library ships
# this architecture as `NanoChatForCausalLM`; `tests/unit/test_gpt.py` copies our weights into it
# and asks for **equal logits, to the last bit**, for three numbers of key heads. (Importing that
# library takes longer than this chapter should.) One trap on that road: its default `eps` inside
# the norm is 1e-6, ours is torch's default for float32, 1.19e-7. The logits differ by a hair,
# everything seems to work, and nothing is ever quite equal.
#
# ## Use it: two layers against one
#
# The last chapter's text, its 250 steps, its batches of 16 x 64 bytes; now a GPT, with one layer and
# with two. The bar is the score that counting pairs of bytes gets (chapter `baseline`); as there, the
# last tenth of the text is seen by nobody.

# %%
text = torch.frombuffer(
    bytearray("".join(itertools.islice(python_docs(), 60)).encode()), dtype=torch.uint8
).long()
text, held_out = text[: -len(text) // 10], text[-len(text) // 10 :]
rows = held_out[: len(held_out) // 65 * 65].view(-1, 65)


def draw_text(generator: torch.Generator, B: int = 16, T: int = 64) -> tuple[Tensor, Tensor]:
    start = torch.randint(len(text) - T, (B, 1), generator=generator)
    batch = text[start + torch.arange(T + 1)]
    return batch[:, :-1], batch[:, 1:]


def train(model: GPT, draw, steps: int, lr: float) -> list[float]:
    """Train with Adam on freshly drawn batches; return the loss of every step, in nats."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.95))
    generator, losses = torch.Generator().manual_seed(1), []
    for _ in range(steps):
        loss = model(*draw(generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# %%
small = GPTConfig(sequence_len=64, vocab_size=256, n_layer=2, n_head=2, n_kv_head=2, n_embd=64)
models = {n: GPT(dataclasses.replace(small, n_layer=n)) for n in (1, 2)}
losses = {n: train(model, draw_text, steps=250, lr=6e-3) for n, model in models.items()}
unseen = {"counting pairs": BigramModel(bigram_counts(text, 256))(rows[:, :-1], rows[:, 1:])}
with torch.no_grad():
    for n, model in models.items():
        unseen["one layer" if n == 1 else "two layers"] = model(rows[:, :-1], rows[:, 1:])
unseen = {name: float(nats) / math.log(2) for name, nats in unseen.items()}
print(f"before training: {losses[2][0] / math.log(2):.1f} bits per byte")
print({name: f"{bits:.2f} bits per byte, unseen" for name, bits in unseen.items()})
assert abs(losses[2][0] - math.log(256)) < 0.01
assert unseen["two layers"] < unseen["one layer"] < unseen["counting pairs"] - 0.3, unseen

# %% [markdown]
# Eight bits before training, exactly what a byte can hold; after it, both are well under the bar, and
# the second layer adds its share.
#
# Now the claim about induction, on a toy that contains nothing else. Each row repeats a random
# sequence with its own random period between 8 and 16; we score only positions whose answer has
# appeared before. Guessing costs log(64) = 4.2 nats. A model that cannot find *where* the
# repetition stands can still bet evenly on every period that is open at its position: position 8
# is scored only for period 8, position 16 and later for all nine. We work out what that costs on
# average. (Our first version used one fixed period. Both models solved it at once, by learning
# "copy what stands 16 back": rotations make that easy, and nothing was induced.)


# %%
def draw_repeats(generator: torch.Generator, B: int = 32, T: int = 32) -> tuple[Tensor, Tensor]:
    """Draw rows that repeat with a period of 8 to 16; targets are -1 before anything repeats."""
    period = torch.randint(T // 4, T // 2 + 1, (B, 1), generator=generator)
    position = torch.arange(T + 1).expand(B, -1)
    rows = torch.randint(64, (B, T + 1), generator=generator).gather(1, position % period)
    return rows[:, :-1], rows[:, 1:].where(position[:, 1:] > period, -1)


# %%
rows, targets = draw_repeats(torch.Generator().manual_seed(0), B=100)
for row, target in zip(rows.tolist(), targets.tolist()):
    period = next(t for t in range(32) if target[t] >= 0)  # the first scored position
    assert 8 <= period <= 16 and row[period:] == row[:-period] and target[period] == row[1]

# %%
# NBVAL_CHECK_OUTPUT
n_open = [min(t - 7, 9) for t in range(8, 32)]  # periods that position t leaves open
content_blind = sum(n * math.log(n) for n in n_open) / sum(n_open)  # n of 9 rows are scored there
print(f"{content_blind:.2f} nats")

# %% [markdown]
# The same 350 batches for one layer with nothing added, for two layers, and for one layer with smear
# or with offset keys (chapter `attention`), which start with keys that are copies of the queries:

# %%
toy = GPTConfig(sequence_len=32, vocab_size=64, n_layer=1, n_head=2, n_kv_head=2, n_embd=64)
variants = {
    "one layer": toy,
    "two layers": dataclasses.replace(toy, n_layer=2),
    "one, smear": dataclasses.replace(toy, smear=True),
    "one, offset keys": dataclasses.replace(toy, key_offset=True),
}
curves = {
    name: train(GPT(config), draw_repeats, steps=350, lr=6e-3) for name, config in variants.items()
}
final = {name: sum(curve[-20:]) / 20 for name, curve in curves.items()}
one = final.pop("one layer")
assert max(final.values()) < content_blind < one, f"one layer {one}, {final}"

# %%
# alt: four loss curves over 350 steps from 4.2 nats; one layer stays above the dotted line at 2.1; offset keys fall below it first, smear and two layers much later.
fig, ax = plt.subplots(figsize=(6.5, 3))
colours = ("tab:orange", "tab:red", "tab:blue", "tab:green")
for (name, curve), colour in zip(curves.items(), colours):
    smooth = torch.tensor(curve).unfold(0, 10, 1).mean(dim=1)
    ax.plot(range(9, 350), smooth, color=colour, label=name)
ax.axhline(content_blind, color="grey", linestyle=":")
ax.annotate("best without content", (2, content_blind - 0.25), color="grey", fontsize=8)
ax.set(xlabel="step (32 rows of 32 tokens each)", ylabel="loss (nats)", ylim=(0, 4.5))
ax.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# *Notice:* the single layer stays above the dotted line, where a model that ignores content must stay
# (but for the chance that two candidates happen to agree). Two layers fall below it, suddenly and
# late. With either switch one layer is enough. Offset keys are first by far, because nothing has to
# be learned for them but to listen:

# %%
below = {
    name: next((i for i, loss in enumerate(curve) if loss < content_blind), None)
    for name, curve in curves.items()
}
print("first step below the line:", below)
assert below["one layer"] is None
assert below["one, offset keys"] < min(below["one, smear"], below["two layers"])

# %% [markdown]
# The gain is in what is *possible* for a given depth and in how early it appears; a deep model
# trained for long finds its own way. For a model that has minutes to learn, early is everything, and
# the laptop run of the last chapter turns both switches on, and the two of the section on the token itself. Do offset keys
# need the start, too, keys equal to queries? We take the copy back and train once more:

# %%
unequal = GPT(dataclasses.replace(toy, key_offset=True))
with torch.no_grad():
    drawn = GPT(toy).blocks[0].attn.c_k.weight
    unequal.blocks[0].attn.c_k.weight.copy_(drawn)
slower = train(unequal, draw_repeats, steps=80, lr=6e-3)
print("with keys of their own:", next((i for i, v in enumerate(slower) if v < content_blind), None))

# %% [markdown]
# ## Cost: counting before paying
#
# **Weights.** Embedding and head are V by C each; a block has $12C^2$. So $N = 2VC + 12LC^2$. We
# compare the formula with counting, on the meta device, for the two published sizes of nanochat.


# %%
# NBVAL_CHECK_OUTPUT
def built_without_memory(depth: int) -> GPT:
    with torch.device("meta"):
        return GPT(GPTConfig.from_depth(depth, vocab_size=65_536, sequence_len=2_048))


for depth in (20, 32):
    V, C, L, big = 65_536, 64 * depth, depth, built_without_memory(depth)
    assert big.num_params() == 2 * V * C + 12 * L * C**2
    print(f"d{depth}: {big.num_params():,} weights, {big.estimate_flops():.6e} FLOPs a token")

# %% [markdown]
# **Operations.** A weight that multiplies a vector costs one multiplication and one addition: 2
# operations forward. Backward computes two products of the same size, for the gradient of the
# input and of the weight: 4 more. So 6 operations a weight and token, for every weight except the
# embeddings, which are looked up. Attention's own part is $4TC$ a layer forward (last chapter), 12
# with the backward pass: $6(N - VC) + 12LCT$.
#
# Torch's counter watches the operations that really run. It must agree, with one thing known in
# advance: the fused attention kernel did not keep its weights, so the backward pass computes the
# scores again, $2TC$ more a layer. That is work for the machine, not for the model, and custom
# leaves it out.

# %%
from torch.utils.flop_counter import FlopCounterMode

model = GPT(small)
idx, targets = draw_text(torch.Generator().manual_seed(0))
with FlopCounterMode(display=False) as counter:
    model(idx, targets).backward()
counted = counter.get_total_flops() / idx.numel()
again = 2 * small.n_layer * small.n_embd * small.sequence_len
assert counted in (model.estimate_flops(), model.estimate_flops() + again), (
    f"counted {counted:,.0f}"
)

# %% [markdown]
# **The budget.** A rule of thumb for training is 20 tokens a weight (Hoffmann et al. 2022,
# arXiv:2203.15556). That makes cost grow with the square of the size, and the dial can be read in
# hours. One H100 does 989e12 operations a second in bfloat16 on paper; say 40% of that in
# practice, on eight of them.

# %%
# NBVAL_CHECK_OUTPUT
for depth in (12, 20, 32):
    big = built_without_memory(depth)
    tokens = 20 * big.num_params()
    hours = tokens * big.estimate_flops() / (8 * 989e12 * 0.40) / 3600
    steps = tokens // 524_288
    print(
        f"d{depth}: {tokens / 1e9:4.1f} B tokens, {steps:,} steps of 524,288, {hours:4.1f} h on 8 H100"
    )

# %% [markdown]
# **Where the weights are.** At small depth the vocabulary is most of the model. That is why our
# laptop model uses less than a thousand tokens and not 65,536.

# %%
# alt: share of weights in embedding and head against depth; at 65,536 tokens it falls from 98% at depth 2 to 14% at depth 32, at 1,024 tokens it is small beyond depth 8.
depths = torch.arange(2, 33)
fig, ax = plt.subplots(figsize=(6.5, 3))
for V, colour in ((65_536, "tab:orange"), (1_024, "tab:blue")):
    C = 64 * depths
    share = 2 * V * C / (2 * V * C + 12 * depths * C**2)
    ax.plot(depths, 100 * share, color=colour)
    ax.annotate(f"{V:,} tokens", (9, 100 * share[7] + 4), color=colour)
ax.set(xlabel="depth (layers)", ylabel="weights in embedding and head (%)", ylim=(0, 105))
plt.show()

# %% [markdown]
# *Notice:* with the large vocabulary, a model of depth 8 spends about three quarters of its
# weights on naming tokens.
#
# **Memory.** A weight in float32 takes 4 bytes; training also keeps its gradient and, with Adam,
# two running averages: 16 bytes a weight. On top come the activations that the backward pass will
# need, in proportion to the tokens in a batch. Torch lets us watch what is saved.


# %%
def saved_bytes(model: GPT, idx: Tensor) -> int:
    """Bytes of activations kept for the backward pass; storage that is shared counts once."""
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    seen = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(idx, idx)  # held until we have counted, so no address is used twice
    assert loss.requires_grad
    return sum(seen.values())


# %%
laptop = GPTConfig()
model = GPT(laptop)
activations = {B: saved_bytes(model, torch.zeros(B, 256, dtype=torch.int64)) for B in (2, 4)}
a_token = (activations[4] - activations[2]) / (2 * 256)
in_vectors = (a_token / 4 - 3 * laptop.vocab_size) / (laptop.n_layer * laptop.n_embd)
print(
    f"weights and Adam {16 * model.num_params() / 2**20:.0f} MiB; activations at batch 8: "
    f"{8 * 256 * a_token / 2**20:.0f} MiB, about {in_vectors:.0f} vectors a token and layer"
)
assert 10 < in_vectors < 40 and abs(activations[4] / activations[2] - 2) < 0.05

# %% [markdown]
# The activations grow in proportion to the batch, as the assert confirms, and for a small model
# they outweigh the weights and Adam's averages together: it is the batch size that fills a
# machine.
#
# ## What goes wrong: a mean over nothing
#
# A chat batch can hold no supervised token at all: one long user message, cropped before the
# answer begins. Every target is -1, and a mean divides 0 by 0. Two common ways to write it:
# torch's own mean with `ignore_index`, and a mask that multiplies the losses.


# %%
def torch_mean(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


def masked_mean(logits: Tensor, targets: Tensor) -> Tensor:
    mask = (targets >= 0).float()
    losses = F.cross_entropy(logits.transpose(1, 2), targets.clamp(min=0), reduction="none")
    return (losses * mask).sum() / mask.sum()


# %%
# NBVAL_CHECK_OUTPUT
idx = torch.zeros(1, 8, dtype=torch.int64)
nothing = torch.full_like(idx, -1)
for mean in (torch_mean, masked_mean, token_losses):
    model = GPT(small)
    loss = mean(model(idx), nothing)
    loss.backward()
    gradients = [weight.grad for weight in model.parameters()]
    poisoned = sum(not gradient.isfinite().all() for gradient in gradients)
    print(
        f"{mean.__name__:12} loss {loss.item()}, {poisoned} of {len(gradients)} gradients are not finite"
    )

# %% [markdown]
# Torch's mean reports NaN and its gradients are zero: the weights survive, the log and every
# average over it do not. The mask is worse. It multiplies 0 by the infinity that comes back from
# the division, and 0 times infinity is NaN: all gradients are lost, the optimizer writes them into
# the weights, and from then on every output is NaN. It happens once in thousands of batches, hours
# into a run, and on one of eight GPUs it takes the other seven along. `token_losses` divides by at
# least 1: the loss is 0 and so is every gradient, which is what "nothing to learn here" should
# mean.

# %%
model.zero_grad()
loss = model(idx, nothing)
loss.backward()
assert loss.item() == 0 and all((weight.grad == 0).all() for weight in model.parameters())

# %% [markdown]
# Skipping such batches in the loader would also do, until someone writes another loader. The guard
# belongs where the division is.
#
# ## Recap
#
# A transformer is a stream of vectors to which layers add: attention moves information between
# tokens, the MLP works on each alone, norms keep what they read at one size, and projections that
# start at zero make the untrained model exactly ignorant. `GPTConfig`, `GPT`, `Block`, `MLP`
# are now in `nanochat_lib.model.gpt`, `token_losses`, `Smear` and `ValueEmbedding` in `losses`, `smear` and
# `value_embedding` beside it; one dial sets all sizes, and
# weights, operations and memory can be worked out before anything runs. In the exercises you turn
# a budget into a depth, compute the loss without ever holding all logits, and take the parts out one
# at a time. Our model trains
# with whatever `torch.optim` offers; the next chapter asks what an optimizer should do with a
# matrix.
