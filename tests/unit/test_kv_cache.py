"""The KV cache: reading in pieces, or padded with neighbours, gives what reading alone gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from nanochat_lib.inference.kv_cache import KVCache
from nanochat_lib.model.gpt import GPT, MODERN, GPTConfig


def shaken_gpt(modern: bool, n_kv_head: int = 2) -> GPT:
    """Make a model whose every weight matters; a fresh one ignores the past."""
    sizes = {"sequence_len": 48, "vocab_size": 100, "n_layer": 2, "n_embd": 32, "n_head": 2}
    switches = dict.fromkeys(MODERN, modern)
    model = GPT(GPTConfig(n_kv_head=n_kv_head, **switches, **sizes))
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn(weight.shape, generator=generator)
    return model


MODELS = {modern: shaken_gpt(modern, n_kv_head=1 + modern) for modern in (False, True)}


def random_tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(seed))


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-4)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.booleans())
@torch.inference_mode()
def test_reading_in_pieces_equals_reading_at_once(sizes, modern):
    model, tokens = MODELS[modern], random_tokens(2, sum(sizes))
    cache = KVCache(model.config, batch_size=2)
    pieces = [model(piece, kv_cache=cache) for piece in tokens.split(sizes, dim=1)]
    assert_close(torch.cat(pieces, 1), model(tokens))
    assert cache.lengths == [sum(sizes)] * 2


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.booleans(), st.integers(0, 99))
@torch.inference_mode()
def test_padded_rows_equal_rows_alone(lengths, modern, pad):
    model, width, n_new = MODELS[modern], max(lengths), 5
    tokens = random_tokens(len(lengths), width + n_new)
    cache = KVCache(model.config, len(lengths))
    cache.expect(lengths)
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
    cache.expect([5, 2])
    model(first, kv_cache=cache)
    cache.expect([1, 4])
    logits = model(second, kv_cache=cache)
    assert cache.lengths == [6, 6]
    assert_close(logits[0, 0], model(torch.cat([first[0], second[0, :1]])[None])[0, -1])
    assert_close(logits[1, 3], model(torch.cat([first[1, :2], second[1]])[None])[0, -1])
    step = model(first[:, :1], kv_cache=cache)
    row = torch.cat([first[0], second[0, :1], first[0, :1]])[None]
    assert_close(step[0, 0], model(row)[0, -1])


@pytest.mark.parametrize("modern", [False, True])
@torch.inference_mode()
def test_what_lies_beyond_a_rows_end_is_never_seen(modern):
    model, tokens = MODELS[modern], random_tokens(2, 8)
    cache = KVCache(model.config, 2)
    cache.expect([8, 3])
    model(tokens, kv_cache=cache)
    cache.memory[:, :, 1, :, 3 + modern :] = 1e6
    cache.memory[1, :, 1, :, 3:] = 1e6
    step = model(tokens[:, :1], kv_cache=cache)
    assert_close(step[1, 0], model(torch.cat([tokens[1, :3], tokens[1, :1]])[None])[0, -1])


@torch.inference_mode()
def test_a_pass_over_some_rows_leaves_the_others_alone():
    model, tokens = MODELS[True], random_tokens(4, 9)
    cache = KVCache(model.config, 4)
    model(tokens[:, :3], kv_cache=cache)
    cache.expect([2, 1], start=1)
    model(tokens[1:3, 3:5], kv_cache=cache)
    assert cache.lengths == [3, 5, 4, 3]
    step = model(tokens[:, 5:6], kv_cache=cache)  # every row, each from its own length
    for row, read in enumerate((3, 5, 4, 3)):
        text = torch.cat([tokens[row, :read], tokens[row, 5:6]])[None]
        assert_close(step[row, 0], model(text)[0, -1])


def test_positions_and_mask_by_hand():
    cache = KVCache(GPTConfig(), batch_size=2)
    assert cache.positions(3).tolist() == [[0, 1, 2]] and cache.attention_mask(3) is None
    cache.expect([3, 1])
    cache.positions(3)
    cache.advance(3)
    assert cache.positions(2).tolist() == [[3, 4], [1, 2]]
    seen = (cache.attention_mask(2) == 0).int().tolist()
    assert seen == [[[[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]], [[[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]]]
    assert cache.attention_mask(2).unique().tolist() == [-torch.inf, 0]
    assert cache.positions(1).tolist() == [[3], [1]]  # another width asks anew
    cache.expect([1], start=1)
    assert cache.positions(1).tolist() == [[1]] and cache.attention_mask(1) is None


def test_equal_rows_agree_with_transformers_cache():
    config = GPTConfig(n_layer=2, n_embd=32, n_head=4, n_kv_head=2)
    ours, theirs = KVCache(config, 3), DynamicCache()
    generator = torch.Generator().manual_seed(0)
    for n_new in (5, 1, 2):
        for layer in range(2):
            k, v = torch.randn(2, 3, n_new, 2, 8, generator=generator)
            got = ours.update(layer, k, v)
            want = theirs.update(k.transpose(1, 2), v.transpose(1, 2), layer)
            assert all(torch.equal(g.transpose(1, 2), w) for g, w in zip(got, want))
        ours.advance(n_new)
        assert ours.lengths == [theirs.get_seq_length()] * 3


@pytest.mark.parametrize("offset", [False, True])
def test_memory_is_what_was_derived(offset):
    config = GPTConfig(
        sequence_len=40, n_layer=3, n_embd=64, n_head=4, n_kv_head=2, key_offset=offset
    )
    cache = KVCache(config, 5, max_len=32, dtype=torch.bfloat16)
    assert cache.nbytes == 2 * 3 * 2 * 16 * 2 * 5 * (32 + offset)


@torch.inference_mode()
def test_previous_embedding_is_each_rows_last():
    cache = KVCache(GPTConfig(n_embd=8, n_head=4, smear=True), 2)
    assert not cache.previous_embedding.any()
    embeddings = torch.arange(48.0).view(2, 3, 8)
    cache.expect([3, 1])
    cache.positions(3)
    cache.advance(3, embeddings)
    assert torch.equal(
        cache.previous_embedding, torch.stack([embeddings[0, 2:], embeddings[1, :1]])
    )
    cache.expect([1], start=1)
    assert torch.equal(cache.previous_embedding, embeddings[1:, :1])
    cache.positions(1)
    cache.advance(1, embeddings[1:, 1:2])
    assert torch.equal(
        cache.previous_embedding, torch.stack([embeddings[0, 2:], embeddings[1, 1:2]])
    )


@pytest.mark.parametrize("modern", [False, True])
@torch.inference_mode()
def test_rows_move_are_copied_and_begin_anew(modern):
    model, tokens, one = MODELS[modern], random_tokens(3, 6), random_tokens(1, 1, seed=5)
    cache = KVCache(model.config, 3)
    cache.expect([6, 2, 4])
    model(tokens, kv_cache=cache)
    cache.grow(5)
    assert cache.batch_size == 5 and cache.lengths == [6, 2, 4, 0, 0]
    cache.move(2, 1)  # the row of 4 tokens
    memory, last = cache.snapshot(0)
    cache.restore(3, 6, memory, last)
    first = torch.nn.functional.rms_norm(model.wte(tokens[0, 2:3]), (32,))
    cache.restore(4, 3, cache.memory[:, :, 0], first)  # the first 3 tokens of the row of 6
    cache.forget(0)
    assert cache.lengths == [0, 4, 4, 6, 3]
    step = model(one.expand(5, 1), kv_cache=cache)[:, 0]
    texts = [tokens[0, :0], tokens[2, :4], tokens[2, :4], tokens[0], tokens[0, :3]]
    for row, text in enumerate(texts):
        assert_close(step[row], model(torch.cat([text, one[0]])[None])[0, -1])


def test_bad_requests_say_what_is_wrong():
    config = GPTConfig(sequence_len=16)
    for batch_size, max_len in ((0, 8), (1, 0), (1, 17)):
        with pytest.raises(ValueError, match="16"):
            KVCache(config, batch_size, max_len)
    cache = KVCache(config, 2, max_len=8)
    with pytest.raises(ValueError, match="need 9 places, the cache ends at 8"):
        cache.positions(9)
    for counts, start in (([1, 1, 1], 0), ([1, 1], 1), ([0, 3], 0), ([], 0), ([1], -1)):
        with pytest.raises(ValueError, match="one count for each row"):
            cache.expect(counts, start)
