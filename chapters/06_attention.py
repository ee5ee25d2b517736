# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Attention: every token chooses what to read
#
# The bigram model of the last chapter sees one token. In `the cat that chased the dogs` it must
# guess the next word from `dogs` alone and will say `were`; the word that decides is four tokens
# back. We need a model in which every token looks over all earlier tokens, picks the few that
# matter *to it*, and reads them. This chapter builds that from three numbers on paper up to the
# layer that the whole course runs on:
#
# ```python
# CausalSelfAttention(AttentionConfig(n_embd=128, n_head=4), layer_idx=0)(x, *rope_tables(256, 32))   # (B, 256, 128)
# ```
#
# On the way: why scores are divided by a square root, how a token knows how far away another one
# is, what a chat costs in memory, and a bug that makes a model look perfect. You need matrix
# products and softmax, and the loss of chapter `baseline`. On a laptop the chapter takes about 15
# seconds.

# %%
#| default_exp model.attention

# %%
#| export
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

# %%
import itertools
import math
import time

import matplotlib.pyplot as plt

from nanochat_lib.data.documents import python_docs

# %% [markdown]
# ## Three tokens, by hand
#
# Three tokens stand in a row. Each offers a **value**, the thing to be read: 10, 20 and 100. Each
# wears a **key**, a label that says what it offers. And each asks with a **query**. The score of a
# query with a key is their product; softmax turns the scores of one query into weights that sum to
# 1; the output is the weighted average of the values.
#
# We take vectors of length 1 and pick numbers that come out even. The third token asks with query
# 1, and the keys are ln 6, ln 3 and 0. Softmax undoes the logarithms: the weights stand as 6 : 3 :
# 1.

# %%
# NBVAL_CHECK_OUTPUT
values = [10.0, 20.0, 100.0]
scores = [1.0 * key for key in (math.log(6), math.log(3), 0.0)]
weights = [math.exp(score) / sum(map(math.exp, scores)) for score in scores]
output = sum(weight * value for weight, value in zip(weights, values))
print([round(weight, 3) for weight in weights], round(output, 3))

# %% [markdown]
# 0.6 of the first, 0.3 of the second, 0.1 of itself: 22. That is all of attention. What remains is
# to do it for every token, fast, and to let training choose the queries, keys and values.
#
# One rule comes from our task. Position $t$ predicts token $t+1$, so it may read positions $0
# \dots t$ and nothing later: attention must be **causal**. Here is the plain version for one
# sequence of T tokens, vectors of D channels. (The division by $\sqrt D$ is explained in a moment;
# at D = 1 it changes nothing.)


# %%
def attention_loop(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Read the earlier values, one token and one pair at a time; all shapes (T, D)."""
    T, D = q.shape
    out = torch.zeros_like(v)
    for t in range(T):
        scores = torch.stack([q[t] @ k[s] / D**0.5 for s in range(t + 1)])  # nothing later than t
        for s, weight in enumerate(scores.softmax(dim=0)):
            out[t] += weight * v[s]
    return out


# %%
# NBVAL_CHECK_OUTPUT
q = torch.tensor([[1.0], [0.0], [1.0]])
k = torch.tensor([[math.log(6)], [math.log(3)], [0.0]])
v = torch.tensor([[10.0], [20.0], [100.0]])
by_loop = attention_loop(q, k, v)
assert torch.allclose(by_loop[2], torch.tensor([22.0])), (
    f"got {by_loop[2].item()}: is it 6 : 3 : 1?"
)
print(by_loop.flatten().tolist())

# %% [markdown]
# Token 0 can read only itself, so it returns 10 whatever it asks. Token 1 asks with 0: every score
# is 0, every weight 1/2, and it gets the plain average 15.
#
# ## Why divide by the square root of D?
#
# A score adds up D products. If the channels of queries and keys are independent with variance 1,
# each product has variance 1 and the sum has variance D: typical scores grow like $\sqrt D$.
# Softmax of large scores is nearly one-hot, and the gradient of a one-hot softmax is nearly zero:
# attention would start its training frozen. Dividing by $\sqrt D$ keeps the spread at 1, whatever
# D is. Let us measure both, with 64 keys to choose from.

# %%
# NBVAL_CHECK_OUTPUT
generator = torch.Generator().manual_seed(0)
for D in (16, 64, 256):
    queries, keys = torch.randn(2, 4096, 64, D, generator=generator)
    raw = queries[:, 0, None] @ keys.transpose(1, 2)  # (4096, 1, 64)
    largest = [scores.softmax(-1).amax(-1).mean().item() for scores in (raw, raw / D**0.5)]
    print(
        f"D={D:3}  spread {raw.std():4.1f}  largest weight {largest[0]:.2f}, scaled {largest[1]:.2f}"
    )
    assert abs(raw.std().item() / D**0.5 - 1) < 0.05

# %% [markdown]
# Unscaled, at 256 channels one of 64 keys takes nearly everything before any training. Scaled, the
# picture is the same at every width.
#
# ## All tokens at once
#
# The loop visits pairs in Python. A matrix product computes all scores together, the forbidden
# half included, and a mask takes those away. A **mask** is a table of booleans: may this row (the
# reader) look at that column? It also gives us room for a variant that we will want later: a
# window, in which a token reads only the nearest few.


# %%
#| export
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


# %%
# NBVAL_CHECK_OUTPUT
print(causal_mask(4).int())
print(causal_mask(4, window=2).int())

# %% [markdown]
# How do we take a score away? Not by setting it to zero: zero is an ordinary score, as token 1
# showed above. Softmax sees $e^{score}$, and only $e^{-\infty} = 0$ is nothing. The leading
# dimensions B (sequences) and H (heads, explained below) just come along.


# %%
#| export
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


# %%
q, k, v = torch.randn(3, 2, 3, 10, 8, generator=generator)  # each (B=2, H=3, T=10, D=8)
out, weights = naive_attention(q, k, v, causal_mask(10))
assert torch.allclose(out[1, 2], attention_loop(q[1, 2], k[1, 2], v[1, 2]), atol=1e-5)
assert torch.allclose(weights.sum(dim=-1), torch.ones(2, 3, 10))
assert (weights[..., ~causal_mask(10)] == 0).all(), (
    "a later token has weight: is the mask upside down?"
)

# %% [markdown]
# Agreement with the loop on one example is one check. Causality is a *property*, and we can test
# it without knowing a single right answer: change token 6, and nothing before position 6 may move,
# not even in the last bit.


# %%
def first_change(attend, at: int = 6, T: int = 10) -> int:
    """Change the input at one position; return the first position whose output moves."""
    x = torch.randn(1, 2, T, 8, generator=torch.Generator().manual_seed(1))
    changed = x.clone()
    changed[..., at, :] += 1.0
    moved = (attend(x) != attend(changed)).any(dim=-1).flatten(0, 1).any(dim=0)
    return moved.nonzero()[0].item()


assert first_change(lambda x: naive_attention(x, x, x, causal_mask(10))[0]) == 6

# %% [markdown]
# The naive version writes the weights to memory, B·H·T·T numbers: for one d20 layer at T = 2,048
# with 10 heads that is 168 MB a sequence in float32, and the backward pass reads them again.
# `F.scaled_dot_product_attention` walks over blocks of keys and keeps a running softmax, so the
# table of weights never exists (Dao et al. 2022, arXiv:2205.14135; one of the exercises asks you
# to write that walk). With `is_causal=True` it needs no mask either, and skips blocks that lie
# wholly in the future.

# %%
fused = F.scaled_dot_product_attention(q, k, v, is_causal=True)
assert torch.allclose(fused, out, atol=1e-5), f"differs by {(fused - out).abs().max():.1e}"

# %% [markdown]
# ## Where am I? Rotations
#
# Something is missing. Take the last token of a sequence and shuffle all tokens before it:

# %%
order = torch.tensor([3, 0, 8, 5, 1, 7, 2, 6, 4, 9])  # the last token stays last
shuffled, _ = naive_attention(q[:, :, order], k[:, :, order], v[:, :, order], causal_mask(10))
assert torch.allclose(shuffled[:, :, -1], out[:, :, -1], atol=1e-5)

# %% [markdown]
# Its output is the same: `dog bites man` and `man bites dog` read alike. Scores must depend on
# *where* query and key stand; better, on how far apart they are, since "the previous token" should
# mean the same at position 5 and at position 500.
#
# RoPE (rotary position embedding) gets this from a fact of school geometry. The dot product of two
# arrows in the plane depends on their lengths and the angle between them. Turn the query at
# position $m$ by $m$ radians and the key at position $n$ by $n$ radians: the angle between them
# changes by $m - n$, so the score depends on the distance alone. Two tokens at positions 7 and 5
# score as if at 2 and 0.


# %%
def turn(arrow: Tensor, radians: float) -> Tensor:
    """Turn an arrow (2,) clockwise."""
    cos, sin = math.cos(radians), math.sin(radians)
    return torch.stack([cos * arrow[0] + sin * arrow[1], cos * arrow[1] - sin * arrow[0]])


query, key = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])
score = {(m, n): (turn(query, m) @ turn(key, n)).item() for m, n in [(7, 5), (2, 0), (5, 7)]}
assert math.isclose(score[7, 5], score[2, 0], rel_tol=1e-4)
assert not math.isclose(score[7, 5], score[5, 7], rel_tol=1e-1), "distance 2 is not distance -2"

# %% [markdown]
# One plane with one radian a token repeats after $2\pi$, about 6 tokens: a clock with only a
# second hand. A head of D channels has D/2 planes, and we give each its own speed, falling
# geometrically from 1 to nearly 1/base radians a token: hands for seconds, minutes, hours. The
# tables are computed once, in float32. In bfloat16, which has 8 significant bits, position 257
# would round to 256 and two tokens would share an angle.


# %%
#| export
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


# %%
# NBVAL_CHECK_OUTPUT
cos, sin = rope_tables(2, 8)
speeds = torch.atan2(sin[1], cos[1])  # the angle at position 1
print([round(speed, 3) for speed in speeds.tolist()])
assert torch.tensor(257.0).bfloat16() == 256

# %% [markdown]
# Which channels form a pair? Any fixed choice does, as the layer that makes queries and keys can
# permute its outputs. We pair channel $i$ with channel $i + D/2$, so a channel's partner lies half
# a vector away: one `roll` fetches all partners at once. It has to be the same choice as in any
# program that will load our weights.


# %%
#| export
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


# %% [markdown]
# Three checks. By hand: one plane, the arrow (1, 0), position $t$ gives $(\cos t, -\sin t)$.
# Property: the score of a fixed query and key depends on their distance alone. And an independent
# implementation, in which a pair is a complex number and turning is multiplication.

# %%
cos, sin = rope_tables(64, 2)
turned = apply_rope(torch.tensor([1.0, 0.0]).expand(1, 64, 1, 2), cos, sin)[0, :, 0]  # (T, 2)
assert torch.allclose(turned[3], torch.tensor([math.cos(3), -math.sin(3)])), (
    f"got {turned[3].tolist()}"
)

cos, sin = rope_tables(64, 32)
same_query, same_key = torch.randn(2, 1, 1, 1, 32, generator=generator).expand(2, 1, 64, 1, 32)
grid = (
    apply_rope(same_query, cos, sin)[0, :, 0] @ apply_rope(same_key, cos, sin)[0, :, 0].T
)  # (T, T)
for distance in (0, 1, 17):
    along = grid.diagonal(-distance)  # all pairs this far apart
    assert along.std() < 1e-4 * grid.std(), (
        f"scores at distance {distance} vary by {along.std():.1e}"
    )

# %%
x = torch.randn(2, 64, 3, 32, generator=generator)
product = (
    torch.complex(*x.chunk(2, dim=-1))
    * torch.polar(torch.ones(64, 16), -torch.atan2(sin, cos))[:, None]
)
assert torch.allclose(
    apply_rope(x, cos, sin), torch.cat((product.real, product.imag), dim=-1), atol=1e-5
)

# %% [markdown]
# What does a head see through these clocks? If query and key are the same vector, with equal
# energy in every plane, the score at distance $d$ is the mean of $\cos(d \cdot speed)$ over the
# planes.

# %%
# alt: score against distance: the fastest plane swings between 1 and -1, the slowest stays at 1, the mean of all falls from 1 to about 0.5.
cos, _ = rope_tables(64, 32)
fig, ax = plt.subplots(figsize=(6.5, 3))
for curve, name, colour, height in [
    (cos[:, 0], "fastest plane", "tab:orange", -0.85),
    (cos[:, 15], "slowest plane", "tab:blue", 0.9),
    (cos.mean(dim=1), "all 16 planes", "black", 0.6),
]:
    ax.plot(curve, color=colour, linewidth=1)
    ax.annotate(name, (65, height), color=colour)
ax.set(xlabel="distance between query and key (tokens)", ylabel="score / score at 0", xlim=(0, 82))
plt.show()

# %% [markdown]
# *Notice:* the fast planes can single out one nearby distance, the slow planes do not care where a
# token is. A head that wants "exactly one back" puts its energy into fast planes; a head that
# wants "anything about Paris" uses slow ones. Training decides.
#
# ## QK norm: scores with a ceiling
#
# Queries and keys are linear functions of the activations, and nothing stops their weights from
# growing. Scores grow with the *product* of the two, softmax saturates, gradients vanish: in large
# runs this is a known way to die (Dehghani et al. 2023, arXiv:2302.05442, section 2). The remedy
# is to fix the length of every query and key before they meet. We scale each to a root-mean-square
# of 1: directions carry the information, lengths none.


# %%
#| export
def rms_norm(x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
    """Scale each vector to a root-mean-square of 1.

    Args:
        x: activations, any float dtype, shape (..., C).

    Returns:
        x's shape and dtype.

    Source: Zhang & Sennrich 2019 (arXiv:1910.07467), eq. 4, without the gain.
    """
    return F.rms_norm(x, (x.size(-1),))


# %%
# NBVAL_CHECK_OUTPUT
print([round(c, 4) for c in rms_norm(torch.tensor([3.0, 4.0])).tolist()])  # divided by sqrt(25 / 2)
q, k = torch.randn(2, 1, 1, 64, 32, generator=generator)
for growth in (1, 10):
    _, plain = naive_attention(growth * q, growth * k, k, causal_mask(64))
    _, normed = naive_attention(rms_norm(growth * q), rms_norm(growth * k), k, causal_mask(64))
    largest = [weights[..., -1, :].max().item() for weights in (plain, normed)]
    print(
        f"weights x{growth:2}: largest weight of the last row {largest[0]:.2f}, with QK norm {largest[1]:.2f}"
    )

# %% [markdown]
# There is a price, and we can compute it. After the norm $|q| = |k| = \sqrt D$, so a scaled score
# lies between $-\sqrt D$ and $\sqrt D$. The sharpest possible weight on one of S keys, with that
# key exactly aligned and all others at right angles, is $e^{\sqrt D} / (e^{\sqrt D} + S - 1)$.

# %%
# NBVAL_CHECK_OUTPUT
for D in (32, 64, 128):
    sharpest = [math.exp(D**0.5) / (math.exp(D**0.5) + S - 1) for S in (256, 2048)]
    print(
        f"D={D:3}: at most {sharpest[0]:.2f} on one of 256 keys, {sharpest[1]:.2f} on one of 2,048"
    )

# %% [markdown]
# Narrow heads cannot point sharply at long range (unless the other keys lean away from the query,
# which costs them room). So heads should not be narrow where contexts are long; the sizes in the
# next chapter start from 128.
#
# Does the order matter, RoPE first or norm first? A rotation keeps lengths, so both orders give
# the same numbers up to rounding. We rotate first, as the released nanochat does; then our logits
# can be compared with it bit by bit.

# %%
cos, sin = rope_tables(64, 32)
assert torch.allclose(
    rms_norm(apply_rope(x, cos, sin)), apply_rope(rms_norm(x), cos, sin), atol=1e-5
)

# %% [markdown]
# ## Many heads, fewer keys
#
# One softmax gives one average a token. A verb may want its subject *and* the tense *and* the
# previous letter. So we cut the C channels into H **heads** of D = C/H channels each, let each
# attend on its own, and put the results side by side. The matrix products cost the same as for one
# wide head.
#
# Keys and values have a second cost. When a trained model chats, it produces one token at a time;
# the keys and values of all earlier tokens are kept in the **KV cache** so that nobody computes
# them again (chapter `inference`). Its size: 2 (keys and values) x layers x tokens x key heads x D
# x bytes a number.


# %%
# NBVAL_CHECK_OUTPUT
def kv_cache_bytes(
    n_layer: int, n_tokens: int, n_kv_head: int, head_dim: int, bytes_each: int = 2
) -> int:
    """Bytes of keys and values for one conversation, in bfloat16 unless told."""
    return 2 * n_layer * n_tokens * n_kv_head * head_dim * bytes_each


for n_kv_head in (16, 4, 1):  # a d32 model: 32 layers, 16 heads of 128
    print(
        f"{n_kv_head:2} key heads: {kv_cache_bytes(32, 2048, n_kv_head, 128) / 2**20:4.0f} MiB a conversation"
    )

# %% [markdown]
# 512 MiB for one full conversation: sixteen of them weigh twice as much as the 3.8 GB of weights.
# **Grouped queries** (Ainslie et al. 2023, arXiv:2305.13245) let several query heads share one key
# head, and the cache shrinks by that factor. In the fused kernel this is the flag `enable_gqa`:
# query head $h$ uses key head $h \cdot H_{kv} / H$, rounded down. Repeating keys in memory gives
# the same result:

# %%
q = torch.randn(2, 8, 10, 16, generator=generator)  # 8 query heads
k, v = torch.randn(2, 2, 2, 10, 16, generator=generator)  # 2 key heads
shared = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
repeated = [kv.repeat_interleave(4, dim=1) for kv in (k, v)]  # heads 0,0,0,0,1,1,1,1
assert torch.allclose(shared, naive_attention(q, *repeated, causal_mask(10))[0], atol=1e-5)

# %% [markdown]
# ## Offset keys: what followed, last time?
#
# Much of what a model is asked to do is copying: *Mia has a dog. Ben has a cat. What does Mia have?* To continue
# `Mia has a` by copying, a head must find where these words stood before and read what came *after* them. In an
# ordinary head a key describes its own token, so a query that looks for "Mia" finds "Mia", one place too early; two
# layers have to cooperate, and small models learn that late (Olsson et al. 2022, arXiv:2209.11895, call the pair
# an induction head).
#
# There is a shortcut of one line: store each key one place later. Then the value of a token is found under the key of
# the token *before* it, and a query that looks for "Mia" reads what followed. We do it in half of the heads, so that
# the others still read ordinary keys. The idea is from a public speed record (modded-nanogpt, pull request 169,
# December 2025), which shifts half of each head's channels.


# %%
#| export
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


# %% [markdown]
# By hand: five tokens A B C A B, each a direction of its own as query, key and value. The last token should be
# continued by C. Which value does it read?

# %%
# NBVAL_CHECK_OUTPUT
symbols = torch.eye(3)[[0, 1, 2, 0, 1]].view(1, 5, 1, 3)  # (B, T, H, D)
for name, keys in (("plain", symbols), ("offset", offset_keys(symbols))):
    seen, value = 9 * symbols.transpose(1, 2), symbols.transpose(1, 2)
    read, _ = naive_attention(seen, keys.transpose(1, 2), value, causal_mask(5))
    print(
        f"{name:6} keys: the second B reads A, B, C with weights", read[0, 0, -1].round(decimals=1)
    )

# %% [markdown]
# With plain keys B finds itself, twice. With offset keys it finds C. For this to happen, query and key must see a token
# in the same way, which random matrices do not; the next chapter starts `c_k` as a copy of `c_q`
# in models that use the switch, and measures what each half of the trick is worth.

# %% [markdown]
# ## The layer
#
# Three sizes describe a layer. They must divide evenly, and we say so where the mistake is made,
# not where a tensor later fails to reshape.


# %%
#| export
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


# %%
# NBVAL_CHECK_OUTPUT
try:
    AttentionConfig(n_embd=128, n_head=6, n_kv_head=6)
except ValueError as error:
    print(error)

# %% [markdown]
# A row of a batch may hold several texts, one behind the other. Should the second read the first? Where it should not, the mask
# is causal *and* stays within borders. A text is known by the special token that opens it, so the borders are found, not passed
# around. (This part goes to a small module of its own, `nanochat_lib.model.borders`.)

# %%
#| default_exp model.borders
# Borders between texts that share a row.

# %%
#| export
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


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


# %%
# NBVAL_CHECK_OUTPUT
print(find_borders(torch.tensor([[7, 1, 7, 2]]), first_token=7).mask[0, 0])

# %% [markdown]
# The layer must also work with a KV cache, which chapter `inference` will build. We only write
# down what we ask of it, as a `Protocol`: a class that names methods and leaves the work to
# others. The one detail to keep in mind: the rows of a batch may be conversations of different
# lengths, so positions belong to rows.


# %%
#| export model.attention
from nanochat_lib.model.borders import Borders


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


# %% [markdown]
# The fused kernel, with its two switches thrown by what it is given: without a mask it is causal, and
# with fewer key heads than query heads it shares them. A single query without a mask is the newest token,
# which may read everything.


# %%
#| export model.attention
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


# %% [markdown]
# Now the whole layer: make queries, keys and values with three matrices, rotate, normalize,
# attend, and mix the heads with a fourth matrix. No biases anywhere. Names are those of GPT-2. The
# kernel is an attribute and `project` a method of its own, because chapter `speed` has other ways to
# compute them.


# %%
#| export model.attention
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


# %%
# NBVAL_CHECK_OUTPUT
config = AttentionConfig(n_embd=64, n_head=4, n_kv_head=2)
layer = CausalSelfAttention(config, layer_idx=0)
x = torch.randn(2, 12, 64, generator=generator)
tables = rope_tables(12, config.head_dim)
print(
    {name: tuple(weight.shape) for name, weight in layer.named_parameters()},
    tuple(layer(x, *tables).shape),
)

# %% [markdown]
# We check it against its own parts put together the slow way, and for causality.


# %%
def layer_slowly(layer: CausalSelfAttention, x: Tensor, mask: Tensor, tables: tuple) -> Tensor:
    """Compute the layer from naive_attention; keys repeated in memory."""
    q, k, v = (
        linear(x).unflatten(-1, (-1, layer.head_dim))
        for linear in (layer.c_q, layer.c_k, layer.c_v)
    )
    q, k = rms_norm(apply_rope(q, *tables)), rms_norm(apply_rope(k, *tables))
    k, v = (t.repeat_interleave(q.size(2) // k.size(2), dim=2) for t in (k, v))
    out, _ = naive_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
    return layer.c_proj(out.transpose(1, 2).flatten(2))


assert torch.allclose(layer(x, *tables), layer_slowly(layer, x, causal_mask(12), tables), atol=1e-5)

# %%
changed = x.clone()
changed[:, 7] += 1.0
moved = (layer(x, *tables) != layer(changed, *tables)).any(dim=-1).any(dim=0)
assert moved.tolist() == [False] * 7 + [True] * 5, f"moved at {moved.nonzero().flatten().tolist()}"

# %% [markdown]
# ## Use it: reading Python's manual
#
# Does looking back help on real text? We read the help topics that ship with Python, byte by byte,
# so that a token is a byte and the loss in bits is bits per byte. The smallest model with
# attention: an embedding, one reading head whose result is added to it, and a matrix that scores
# all 256 bytes. With the window set to 1, every byte sees only itself, and the same program is a
# bigram model.


# %%
class Reader(nn.Module):
    """Embed, read once through one head, score the next token."""

    def __init__(self, vocab_size: int, n_embd: int, mask: Tensor):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.qkv = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.mask, self.tables = mask, rope_tables(len(mask), n_embd)
        generator = torch.Generator().manual_seed(0)
        for weight in self.parameters():
            nn.init.normal_(weight, std=n_embd**-0.5, generator=generator)

    def forward(self, idx: Tensor) -> tuple[Tensor, Tensor]:
        x = rms_norm(self.wte(idx))
        q, k, v = self.qkv(x).unsqueeze(2).chunk(3, dim=-1)  # (B, T, 1, C) each
        q, k = (rms_norm(apply_rope(part, *self.tables)).transpose(1, 2) for part in (q, k))
        read, weights = naive_attention(q, k, v.transpose(1, 2), self.mask)
        return self.lm_head(x + read.squeeze(1)), weights.squeeze(1)


# %% [markdown]
# Training is ten lines: draw a batch, compute the cross-entropy, step with Adam (chapter
# `optimizer` opens that box). We return the mean loss over the last 20 steps. Every step draws
# fresh text, so this estimates the loss on text the model has not memorized.


# %%
def train_reader(model: Reader, draw_batch, steps: int) -> float:
    """Train and return the mean loss of the last 20 steps, in bits."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        batch = draw_batch(generator)  # (B, T + 1)
        logits, _ = model(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item() / math.log(2))
    return sum(losses[-20:]) / 20


# %%
text = "".join(itertools.islice(python_docs(), 60)).encode()
text_bytes = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
text_bytes, held_out = text_bytes[: -len(text) // 10], text_bytes[-len(text) // 10 :]


def draw_text(generator: torch.Generator, B: int = 16, T: int = 64) -> Tensor:
    start = torch.randint(len(text_bytes) - T, (B, 1), generator=generator)
    return text_bytes[start + torch.arange(T + 1)]


alone, reader = Reader(256, 64, causal_mask(64, window=1)), Reader(256, 64, causal_mask(64))
bits_alone, bits_reader = train_reader(alone, draw_text, 250), train_reader(reader, draw_text, 250)
print(f"{bits_alone:.1f} bits per byte alone, {bits_reader:.1f} looking back")
assert bits_reader < bits_alone - 0.2, (
    f"{bits_reader:.2f} against {bits_alone:.2f}: does it look back?"
)

# %% [markdown]
# One head that looks back saves more than 0.2 bits on every byte. And the bar of chapter `baseline`?
# There, counting pairs set the score to beat. We count the pairs of the same training text, and let all
# three models pay for the last tenth, which none of them has seen.

# %%
from nanochat_lib.evaluation.bpb import BigramModel, bigram_counts

rows = held_out[: len(held_out) // 65 * 65].view(-1, 65)
unseen = {"counting pairs": BigramModel(bigram_counts(text_bytes, 256))(rows[:, :-1], rows[:, 1:])}
with torch.no_grad():
    for name, model in (("alone", alone), ("looking back", reader)):
        logits, _ = model(rows[:, :-1])
        unseen[name] = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
unseen = {name: float(nats) / math.log(2) for name, nats in unseen.items()}
print({name: f"{bits:.2f} bits per byte, unseen" for name, bits in unseen.items()})
assert unseen["looking back"] < unseen["counting pairs"], unseen

# %% [markdown]
# Looking back beats counting pairs of bytes on text it has never seen. (Counting pairs of *tokens*, and
# lzma, are still far ahead; we come back to them with larger models.) Where does the head look?

# %%
# alt: left, a lower-triangular grid of weights over 22 bytes, dark just below the diagonal; right, bars of mean weight by distance, highest at 1.
sample = draw_text(torch.Generator().manual_seed(3), B=256)[:, :64]
with torch.no_grad():
    weights = reader(sample)[1]  # (B, T, T)
by_distance = torch.stack([weights.diagonal(-d, 1, 2)[:, 32:].mean() for d in range(8)])
fig, (left, right) = plt.subplots(1, 2, figsize=(6.5, 3), layout="constrained")
left.imshow(weights[0, :22, :22], cmap="Greys", vmin=0, vmax=0.5)
letters = [chr(byte) if byte > 32 else "_" for byte in sample[0, :22]]
left.set_xticks(range(22), letters, fontsize=7)
left.set_yticks(range(22), letters, fontsize=7)
left.set(xlabel="byte that is read", ylabel="byte that reads")
right.bar(range(8), by_distance)
right.set(xlabel="distance (bytes)", ylabel="mean weight")
plt.show()

# %% [markdown]
# *Notice* (spaces are drawn as `_`): everything lies on or below the diagonal, because of the mask; and most of the weight
# is on the nearest few bytes. Nobody told the head that near bytes matter: it set its query and
# key so that the fast clocks agree at short distances. Knowing `te` rather than `e` is where the
# saved bits come from. For more than that, heads need depth, which is the next chapter.

# %%
assert by_distance[:4].sum() > 0.5, f"{by_distance.tolist()}: does it look at its neighbours?"

# %% [markdown]
# ## Sliding windows
#
# Most weight is near. Then why let every layer look at everything? With a window of W tokens a
# layer costs T·W instead of T·T/2, and its KV cache needs only the last W tokens. Reach is not
# lost but delayed: the token W - 1 back has itself read W - 1 further back, so L layers see L(W -
# 1) tokens back. We can check this without any weights: multiply the masks as matrices of "who can
# reach whom".

# %%
# NBVAL_CHECK_OUTPUT
window_mask = causal_mask(32, window=4).float()
reach = torch.eye(32)
for n_layer in range(1, 5):
    reach = ((window_mask @ reach) > 0).float()
    farthest = 31 - reach[31].nonzero().min().item()
    print(f"{n_layer} layers of window 4 see {farthest} tokens back")
    assert farthest == n_layer * (4 - 1)

# %% [markdown]
# Mixing a few full layers with many windowed ones is common practice, and a switch of the `modern`
# recipe later. The classic recipe attends in full everywhere.
#
# ## Cost
#
# For T tokens of one sequence, the scores take a product of (T, C) with (C, T): $2T^2C$ operations
# over all heads; the average of the values another $2T^2C$. The four matrices take $8TC^2$. So a
# token pays $4TC$ for looking and $8C^2$ for the matrices: attention's own part overtakes at T =
# 2C. Torch can count the operations that really run; the kernel counts the full square, masked
# half included.

# %%
# NBVAL_CHECK_OUTPUT
from torch.utils.flop_counter import FlopCounterMode

config = AttentionConfig(n_embd=128, n_head=4, n_kv_head=4)
layer = CausalSelfAttention(config, layer_idx=0)
for T in (64, 256, 1024):
    x = torch.randn(1, T, 128, generator=generator)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(x, *rope_tables(T, config.head_dim))
    derived = {"looking": 4 * T * T * 128, "matrices": 8 * T * 128**2}
    assert counter.get_total_flops() == sum(derived.values())
    print(
        f"T={T:4}: {derived['looking'] / 1e6:6.1f} M for looking, {derived['matrices'] / 1e6:6.1f} M for matrices"
    )

# %% [markdown]
# Time follows, less neatly: four times the tokens should take up to sixteen times as long in the
# naive version. We measure the processor time of both versions and assert only what any machine
# should show: worse than linear, and the fused kernel ahead of the naive one at the long end, as
# it leaves out masked blocks and never writes the weights.


# %%
def cpu_seconds(attend, T: int, repeats: int = 5) -> float:
    """Least processor time of several runs, for 4 heads of 32."""
    q, k, v = torch.randn(3, 1, 4, T, 32, generator=torch.Generator().manual_seed(0))
    seconds = []
    for _ in range(repeats + 1):
        start = time.process_time()
        attend(q, k, v)
        seconds.append(time.process_time() - start)
    return min(seconds[1:])  # the first run warms up


def naive(q, k, v):
    return naive_attention(q, k, v, causal_mask(q.size(2)))[0]


def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


# %%
seconds = {(f.__name__, T): cpu_seconds(f, T) for f in (naive, fused) for T in (512, 2048)}
growth = seconds["naive", 2048] / seconds["naive", 512]
assert growth > 5, f"4x the tokens took {growth:.1f}x the time: is anything quadratic?"
assert seconds["fused", 2048] < seconds["naive", 2048]

# %% [markdown]
# ## What goes wrong: a model that reads the answer
#
# The worst bugs make the numbers *better*. Position $t$ must predict token $t+1$. Let the mask be
# off by one, so that $t$ may also read $t+1$:

# %%
leaky_mask = torch.ones(16, 16).tril(diagonal=1).bool()  # should be diagonal=0
print(leaky_mask[:4, :6].int())

# %% [markdown]
# On real text such a model trains beautifully, and people have celebrated. Random tokens expose
# it. No honest model can predict them: with 16 equally likely tokens the loss is log2(16) = 4 bits
# and stays there. A model that beats the entropy of its data is cheating.


# %%
def draw_noise(generator: torch.Generator) -> Tensor:
    return torch.randint(16, (64, 17), generator=generator)


honest = train_reader(Reader(16, 64, causal_mask(16)), draw_noise, 150)
leaky = train_reader(Reader(16, 64, leaky_mask), draw_noise, 150)
assert 3.9 < honest < 4.2, f"{honest:.2f} bits"
assert leaky < 2.0, f"{leaky:.2f} bits: the leak should make random tokens predictable"

# %% [markdown]
# The honest reader stays at 4 bits. The leaky one learns to look one token ahead and falls far
# below; left alone it goes on towards 0 (at the last position there is nothing ahead, so a little
# remains). And the property from the beginning names the culprit at once: changing position 6
# moves the output at position 5.

# %%
# NBVAL_CHECK_OUTPUT
off_by_one = torch.ones(10, 10).tril(diagonal=1).bool()
print("honest:", first_change(lambda x: naive_attention(x, x, x, causal_mask(10))[0]))
print("leaky: ", first_change(lambda x: naive_attention(x, x, x, off_by_one)[0]))

# %% [markdown]
# Keep both tests for any model you build: the perturbation finds the leak exactly, and random data
# finds it even where you cannot look inside. Other ways in: normalizing over the time dimension,
# packing targets unshifted, a convolution padded on both sides.
#
# ## Recap
#
# Attention is a weighted average in which each token computes its own weights from queries and
# keys; a mask keeps it honest, rotations tell it distances, and a norm on queries and keys bounds
# its scores; keys stored one place later make it copy. `causal_mask`, `naive_attention`,
# `rope_tables`, `apply_rope`, `rms_norm`, `offset_keys`, `fused_attention`, `AttentionConfig`, `AttentionCache` and `CausalSelfAttention` are now in
# `nanochat_lib.model.attention`, `Borders` and `find_borders` in `nanochat_lib.model.borders`. In the exercises you keep packed documents from reading each
# other, compute attention block by block without ever holding a row of weights, and train a head
# without rotations to see what it cannot do. The next chapter stacks this layer into a GPT.
