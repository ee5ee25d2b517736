"""The KV cache: reading in pieces, or padded with neighbours, gives what reading alone gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from nanochat_lib.inference.kv_cache import KVCache
from nanochat_lib.model.gpt import GPT, GPTConfig


def shaken_gpt(smear: bool, n_kv_head: int = 2) -> GPT:
    """Make a model whose every weight matters; a fresh one ignores the past."""
    sizes = {"sequence_len": 48, "vocab_size": 100, "n_layer": 2, "n_embd": 32, "n_head": 2}
    model = GPT(GPTConfig(smear=smear, n_kv_head=n_kv_head, **sizes))
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn(weight.shape, generator=generator)
    return model


MODELS = {smear: shaken_gpt(smear, n_kv_head=1 if smear else 2) for smear in (False, True)}


def random_tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(seed))


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-4)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.booleans(), st.integers(1, 9))
@torch.inference_mode()
def test_reading_in_pieces_equals_reading_at_once(sizes, smear, grow_by):
    model, tokens = MODELS[smear], random_tokens(2, sum(sizes))
    cache = KVCache(model.config, batch_size=2, grow_by=grow_by)
    pieces = [model(piece, kv_cache=cache) for piece in tokens.split(sizes, dim=1)]
    assert_close(torch.cat(pieces, 1), model(tokens))
    assert cache.lengths.tolist() == [sum(sizes)] * 2 and cache.longest == sum(sizes)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.booleans(), st.integers(0, 99))
@torch.inference_mode()
def test_padded_rows_equal_rows_alone(lengths, smear, pad):
    model, width, n_new = MODELS[smear], max(lengths), 5
    tokens = random_tokens(len(lengths), width + n_new)
    cache = KVCache(model.config, len(lengths), grow_by=4)
    cache.set_lengths(lengths)
    padded = tokens[:, :width].clone()
    for row, length in enumerate(lengths):
        padded[row, length:] = pad
    logits = model(padded, kv_cache=cache)
    steps = [logits[range(len(lengths)), [n - 1 for n in lengths]]]
    steps += [model(tokens[:, width + i, None], kv_cache=cache)[:, 0] for i in range(n_new)]
    for row, length in enumerate(lengths):
        alone = model(torch.cat([tokens[row, :length], tokens[row, width:]])[None])[0, length - 1 :]
        assert_close(torch.stack([step[row] for step in steps]), alone)


@torch.inference_mode()
def test_a_second_padded_read_continues_each_row():
    model = MODELS[True]
    first, second = random_tokens(2, 5, seed=1), random_tokens(2, 4, seed=2)
    cache = KVCache(model.config, 2)
    cache.set_lengths([5, 2])
    model(first, kv_cache=cache)
    cache.set_lengths([6, 6])
    logits = model(second, kv_cache=cache)
    assert cache.lengths.tolist() == [6, 6] and cache.longest == 6
    assert_close(logits[0, 0], model(torch.cat([first[0], second[0, :1]])[None])[0, -1])
    assert_close(logits[1, 3], model(torch.cat([first[1, :2], second[1]])[None])[0, -1])
    step = model(first[:, :1], kv_cache=cache)
    row = torch.cat([first[0], second[0, :1], first[0, :1]])[None]
    assert_close(step[0, 0], model(row)[0, -1])


@torch.inference_mode()
def test_what_lies_beyond_a_rows_end_is_never_seen():
    model, tokens = MODELS[False], random_tokens(2, 8)
    cache = KVCache(model.config, 2)
    cache.set_lengths([8, 3])
    model(tokens, kv_cache=cache)
    cache.memory[:, :, 1, :, 3:] = 1e6
    step = model(tokens[:, :1], kv_cache=cache)
    assert_close(step[1, 0], model(torch.cat([tokens[1, :3], tokens[1, :1]])[None])[0, -1])


def test_positions_and_mask_by_hand():
    cache = KVCache(GPTConfig(), batch_size=2)
    cache.set_lengths([3, 1])
    cache.positions(3)
    cache.advance(3)
    assert cache.positions(2).tolist() == [[3, 4], [1, 2]]
    seen = cache.attention_mask(2).int().tolist()
    assert seen == [[[[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]], [[[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]]]
    assert cache.positions(1).tolist() == [[3], [1]]  # another width asks anew


def test_equal_rows_agree_with_transformers_cache():
    config = GPTConfig(n_layer=2, n_embd=32, n_head=4, n_kv_head=2)
    ours, theirs = KVCache(config, 3, grow_by=2), DynamicCache()
    generator = torch.Generator().manual_seed(0)
    for n_new in (5, 1, 2):
        for layer in range(2):
            k, v = torch.randn(2, 3, n_new, 2, 8, generator=generator)
            got = ours.update(layer, k, v)
            want = theirs.update(k.transpose(1, 2), v.transpose(1, 2), layer)
            assert all(torch.equal(g.transpose(1, 2), w) for g, w in zip(got, want))
        ours.advance(n_new)
        theirs_length = theirs.get_seq_length()
        assert ours.lengths.tolist() == [theirs_length] * 3


def test_memory_is_what_was_derived_and_grows_in_blocks():
    config = GPTConfig(sequence_len=40, n_layer=3, n_embd=64, n_head=4, n_kv_head=2)
    cache = KVCache(config, 5, dtype=torch.bfloat16, grow_by=16)
    assert cache.nbytes == 0
    for n_new, room in ((1, 16), (15, 16), (1, 32), (16, 40)):  # the last block stops at max_len
        cache.positions(n_new)
        cache.advance(n_new)
        assert cache.nbytes == 2 * 3 * 2 * 16 * 2 * 5 * room


@torch.inference_mode()
def test_previous_embedding_is_each_rows_last():
    cache = KVCache(GPTConfig(), 2)
    embeddings = torch.arange(24.0).view(2, 3, 4)
    cache.set_lengths([3, 1])
    cache.positions(3)
    cache.advance(3, embeddings)
    assert torch.equal(
        cache.previous_embedding, torch.stack([embeddings[0, 2:], embeddings[1, :1]])
    )
    cache.positions(1)
    cache.advance(1, embeddings[:, 1:2])
    assert torch.equal(cache.previous_embedding, embeddings[:, 1:2])


@torch.inference_mode()
def test_select_and_expand_copy_rows():
    model, tokens = MODELS[True], random_tokens(3, 6)
    cache = KVCache(model.config, 3)
    cache.set_lengths([6, 2, 4])
    model(tokens, kv_cache=cache)
    chosen, tripled = cache.select([2, 1]), cache.expand(3)
    assert chosen.lengths.tolist() == [4, 2] and chosen.longest == 4 and chosen.batch_size == 2
    assert tripled.lengths.tolist() == [6, 6, 6, 2, 2, 2, 4, 4, 4]
    one = random_tokens(1, 1, seed=5)
    base = model(one.expand(3, 1), kv_cache=cache)[:, 0]
    assert_close(model(one.expand(2, 1), kv_cache=chosen)[:, 0], base[[2, 1]])
    assert_close(model(one.expand(9, 1), kv_cache=tripled)[:, 0], base.repeat_interleave(3, 0))
    before = cache.memory.clone()
    chosen.memory.zero_()
    chosen.lengths.zero_()
    assert torch.equal(cache.memory, before) and cache.lengths.tolist() == [7, 3, 5]


def test_bad_requests_say_what_is_wrong():
    config = GPTConfig(sequence_len=16)
    for batch_size, max_len in ((0, 8), (1, 0), (1, 17)):
        with pytest.raises(ValueError, match="16"):
            KVCache(config, batch_size, max_len)
    cache = KVCache(config, 2, max_len=8)
    with pytest.raises(ValueError, match="need 9 places, the cache ends at 8"):
        cache.positions(9)
    for lengths in ([3], [0, 3], [1, 2, 3]):
        with pytest.raises(ValueError, match="one length a row"):
            cache.set_lengths(lengths)
