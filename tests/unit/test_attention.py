"""Attention against hand-worked cases, its defining properties, and slower or independent forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lib.model.attention import (
    AttentionCache,
    AttentionConfig,
    CausalSelfAttention,
    apply_rope,
    causal_mask,
    naive_attention,
    offset_keys,
    rms_norm,
    rope_tables,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- masks ---------------------------------------------------------------------------------------


def test_masks_by_hand():
    assert causal_mask(3).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert causal_mask(3, window=2).int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert torch.equal(causal_mask(5, window=1), torch.eye(5, dtype=torch.bool))
    assert torch.equal(causal_mask(5, window=5), causal_mask(5))
    with pytest.raises(ValueError, match="window=0"):
        causal_mask(3, window=0)


# --- the weighted average ------------------------------------------------------------------------


def test_attention_by_hand():
    # scores of the last query against keys 2, 0, 0, divided by sqrt(1): weights e^2 : 1 : 1
    q, k = torch.tensor([[[[0.0], [0.0], [1.0]]]]), torch.tensor([[[[2.0], [0.0], [0.0]]]])
    v = torch.tensor([[[[1.0], [0.0], [0.0]]]])
    out, weights = naive_attention(q, k, v, causal_mask(3))
    assert weights[0, 0, 0].tolist() == [1.0, 0.0, 0.0]
    assert out[0, 0, 1].item() == pytest.approx(0.5)
    assert out[0, 0, 2].item() == pytest.approx(math.e**2 / (math.e**2 + 2))


@pytest.mark.parametrize("window", [None, 1, 3])
def test_naive_equals_torch(window):
    q, k, v = normal(3, 2, 4, 9, 8)
    mask = causal_mask(9, window)
    out, weights = naive_attention(q, k, v, mask)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 9))
    assert (weights[..., ~mask] == 0).all()


# --- rotations -----------------------------------------------------------------------------------


def test_rope_by_hand():
    cos, sin = rope_tables(3, 2)  # one plane, one radian a token
    assert cos.dtype == sin.dtype == torch.float32 and cos.shape == (3, 1)
    turned = apply_rope(torch.tensor([1.0, 0.0]).expand(1, 3, 1, 2), cos, sin)
    for position in range(3):
        expected = [math.cos(position), -math.sin(position)]
        assert turned[0, position, 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_rope_speeds_fall_geometrically():
    cos, sin = rope_tables(2, 8, base=10_000.0)
    speeds = torch.atan2(sin[1], cos[1])
    torch.testing.assert_close(speeds, torch.tensor([1.0, 0.1, 0.01, 0.001]))


def test_rope_is_multiplication_of_complex_numbers():
    x = normal(2, 7, 3, 16)
    cos, sin = rope_tables(7, 16)
    as_complex = torch.complex(x[..., :8], x[..., 8:]) * torch.complex(cos, -sin)[:, None]
    torch.testing.assert_close(
        apply_rope(x, cos, sin), torch.cat((as_complex.real, as_complex.imag), -1)
    )


@settings(max_examples=25, deadline=None)
@given(
    distance=st.integers(-20, 20),
    start=st.integers(20, 40),
    shift=st.integers(0, 100),
    seed=st.integers(0, 9),
)
def test_scores_depend_on_distance_alone(distance, start, shift, seed):
    cos, sin = rope_tables(200, 16)
    q, k = normal(2, 1, 1, 1, 16, seed=seed).double()

    def score(at_q: int, at_k: int) -> float:
        rotated_q = apply_rope(q, cos[at_q][None], sin[at_q][None])
        return (rotated_q * apply_rope(k, cos[at_k][None], sin[at_k][None])).sum().item()

    here, there = score(start, start + distance), score(start + shift, start + distance + shift)
    assert here == pytest.approx(there, abs=1e-4)


def test_rope_keeps_lengths_and_dtypes_and_takes_positions_a_row():
    x = normal(2, 5, 3, 8)
    cos, sin = rope_tables(20, 8)
    turned = apply_rope(x, cos[:5], sin[:5])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert apply_rope(x.bfloat16(), cos[:5], sin[:5]).dtype == torch.bfloat16
    positions = torch.stack([torch.arange(5), torch.arange(5) + 9])
    by_row = apply_rope(x, cos[positions], sin[positions])
    torch.testing.assert_close(by_row[0], turned[0])
    torch.testing.assert_close(by_row[1:], apply_rope(x[1:], cos[9:14], sin[9:14]))


def test_odd_heads_cannot_turn():
    with pytest.raises(ValueError, match="head_dim=7 is odd"):
        rope_tables(4, 7)


def test_rms_norm_by_hand_and_at_zero():
    torch.testing.assert_close(
        rms_norm(torch.tensor([3.0, 4.0])), torch.tensor([3.0, 4.0]) / 12.5**0.5
    )
    assert (rms_norm(torch.zeros(3)) == 0).all()


# --- the layer -----------------------------------------------------------------------------------


def by_hand(layer: CausalSelfAttention, x: torch.Tensor, n_kv_head: int) -> torch.Tensor:
    """Compute the layer with naive_attention, repeating shared keys in memory."""
    B, T, C = x.shape
    D, repeats = layer.head_dim, C // layer.head_dim // n_kv_head
    cos, sin = rope_tables(T, D)
    q = rms_norm(apply_rope(layer.c_q(x).view(B, T, -1, D), cos, sin)).transpose(1, 2)
    k = rms_norm(apply_rope(layer.c_k(x).view(B, T, -1, D), cos, sin)).transpose(1, 2)
    v = layer.c_v(x).view(B, T, -1, D).transpose(1, 2)
    k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    out, _ = naive_attention(q, k, v, causal_mask(T))
    return layer.c_proj(out.transpose(1, 2).reshape(B, T, C))


@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
def test_layer_equals_naive(n_kv_head):
    layer = CausalSelfAttention(
        AttentionConfig(n_embd=32, n_head=4, n_kv_head=n_kv_head), layer_idx=0
    )
    x = normal(2, 6, 32)
    torch.testing.assert_close(layer(x, *rope_tables(6, 8)), by_hand(layer, x, n_kv_head))
    weights = sum(weight.numel() for weight in layer.parameters())
    assert weights == 2 * 32 * 32 + 2 * 32 * 8 * n_kv_head


@settings(max_examples=15, deadline=None)
@given(T=st.integers(1, 12), position=st.integers(0, 11))
def test_layer_is_causal(T, position):
    position %= T
    layer = CausalSelfAttention(AttentionConfig(n_embd=16, n_head=2, n_kv_head=1), layer_idx=0)
    tables = rope_tables(T, 8)
    x = normal(1, T, 16)
    changed = x.clone()
    changed[0, position] += 1.0
    before, after = layer(x, *tables), layer(changed, *tables)
    torch.testing.assert_close(before[:, :position], after[:, :position], atol=0, rtol=0)
    assert not torch.allclose(before[:, position], after[:, position])


def test_gradient_of_an_output_stops_at_its_position():
    layer = CausalSelfAttention(AttentionConfig(n_embd=16, n_head=2, n_kv_head=2), layer_idx=0)
    x = normal(1, 6, 16).requires_grad_()
    layer(x, *rope_tables(6, 8))[0, 3].sum().backward()
    assert (x.grad[0, 4:] == 0).all() and (x.grad[0, :4] != 0).any(dim=-1).all()


class OneRow:
    """The cache protocol for one layer and rows of equal length."""

    def __init__(self):
        self.length, self.stored, self.previous_embedding = 0, [], None

    def positions(self, n_new: int) -> torch.Tensor:
        return self.length + torch.arange(n_new)[None]

    def update(self, layer_idx, k, v):
        self.stored.append((k, v))
        return tuple(torch.cat(parts, dim=1) for parts in zip(*self.stored, strict=True))

    def attention_mask(self, n_new: int) -> torch.Tensor:
        return causal_mask(self.length + n_new)[None, None, -n_new:]

    def advance(self, n_new: int, embeddings) -> None:
        self.length += n_new


@pytest.mark.parametrize("n_kv_head", [4, 2])
def test_layer_with_a_cache_equals_layer_without(n_kv_head):
    layer = CausalSelfAttention(
        AttentionConfig(n_embd=32, n_head=4, n_kv_head=n_kv_head), layer_idx=0
    )
    x, (cos, sin), cache = normal(1, 7, 32), rope_tables(7, 8), OneRow()
    assert isinstance(cache, AttentionCache)
    outputs, start = [], 0
    for n_new in (3, 1, 1, 2):
        rows = slice(start, start + n_new)
        outputs.append(layer(x[:, rows], cos[None, rows], sin[None, rows], cache))
        cache.advance(n_new, None)
        start += n_new
    torch.testing.assert_close(torch.cat(outputs, dim=1), layer(x, cos, sin))


def test_impossible_heads_are_named():
    with pytest.raises(ValueError, match="n_embd=30 does not split into n_head=4"):
        AttentionConfig(n_embd=30, n_head=4)
    with pytest.raises(ValueError, match="n_kv_head=3"):
        AttentionConfig(n_embd=32, n_head=4, n_kv_head=3)


@pytest.mark.parametrize("n_head", [1, 2, 3])
def test_offset_keys_moves_the_later_heads_by_one(n_head):
    k = normal(2, 5, n_head, 4)
    moved = offset_keys(k)
    half = n_head // 2
    assert torch.equal(moved[:, :, :half], k[:, :, :half])
    assert torch.equal(moved[:, 1:, half:], k[:, :-1, half:])
    assert not moved[:, 0, half:].any()
