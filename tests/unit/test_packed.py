"""The packed GPT and speculative decoding: the plain model is the judge."""

import copy

import pytest
import torch

from nanochat_lib.inference.engine import Engine
from nanochat_lib.inference.kv_cache import KVCache
from nanochat_lib.inference.packed import FEW_ROWS, PackedGPT, Product, unit
from nanochat_lib.inference.row import Request
from nanochat_lib.inference.speculative import speculate
from nanochat_lib.model.gpt import GPT, MODERN, GPTConfig
from nanochat_lib.tokenizer.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["a b c"], vocab_size=265)
SIZES = {"sequence_len": 64, "vocab_size": 265, "n_layer": 3, "n_embd": 64, "n_head": 4}


def shaken_gpt(n_kv_head: int = 4, **switches) -> GPT:
    model = GPT(GPTConfig(n_kv_head=n_kv_head, **SIZES, **switches))
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return model


CONFIGS = [{}, *({name: True} for name in MODERN), dict.fromkeys(MODERN, True)]


@pytest.mark.parametrize("switches", CONFIGS, ids=str)
@pytest.mark.parametrize("n_kv_head", [4, 2])
@torch.inference_mode()
def test_packed_logits_are_the_models(switches, n_kv_head):
    model = shaken_gpt(n_kv_head, **switches)
    packed, cache = PackedGPT(model), KVCache(model.config, 3)
    text = torch.randint(0, 265, (3, 30), generator=torch.Generator().manual_seed(1))
    for start, stop in ((0, 11), (11, 12), (12, 13), (13, 30)):
        logits = packed.logits(packed.hidden(text[:, start:stop], cache))
        expected = model(text[:, :stop])[:, start:]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert cache.lengths == [30] * 3


@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 0.1), (torch.int8, 0.3)])
@torch.inference_mode()
def test_short_formats_are_near(dtype, bound):
    model = shaken_gpt(**dict.fromkeys(MODERN, True))
    packed = PackedGPT(model, dtype)
    text = torch.randint(0, 265, (2, 20), generator=torch.Generator().manual_seed(1))
    cache = KVCache(model.config, 2, dtype=packed.cos.dtype)
    logits = packed.logits(packed.hidden(text, cache))
    assert 0 < (logits - model(text)).abs().max() < bound
    assert logits.dtype == torch.float32


def test_packing_copies_and_leaves_the_model_alone():
    model = shaken_gpt()
    before = copy.deepcopy(model.state_dict())
    packed, text = PackedGPT(model), torch.arange(10)[None]
    first = packed.logits(packed.hidden(text, KVCache(model.config, 1)))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    for weight in model.parameters():
        weight.data.zero_()
    assert torch.equal(packed.logits(packed.hidden(text, KVCache(model.config, 1))), first)


def test_int8_products_keep_a_step_for_each_row():
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    weight[3] *= 100
    weight[5] = 0
    product, x = Product(weight, dtype=torch.int8), torch.randn(40, 64)
    error = (weight - product.weight.float() * product.steps.float()[:, None]).abs()
    assert bool((error <= weight.abs().amax(1, keepdim=True) * (0.5 / 127 + 2**-8)).all())
    few, many = product(x[:FEW_ROWS]), product(x)[:FEW_ROWS]
    torch.testing.assert_close(few, many, atol=0.5, rtol=0.05)
    assert not product(x)[:, 5].any()


def test_unit_is_rms_norm_and_takes_zeros():
    x = torch.randn(5, 48)
    torch.testing.assert_close(unit(x), torch.nn.functional.rms_norm(x, (48,)))
    assert not unit(torch.zeros(2, 8)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_the_engine_runs_packed_models(dtype):
    model = shaken_gpt(**dict.fromkeys(MODERN, True))
    prompts = [[5, 6, 7], [8] * 20, [9]]
    packed = Engine(PackedGPT(model, dtype), TOKENIZER).generate_batch(prompts, 12)
    if dtype == torch.float32:
        assert packed == Engine(model, TOKENIZER).generate_batch(prompts, 12)
    assert all(tokens for tokens, _ in packed)


@pytest.mark.parametrize("pack", [lambda model: model, PackedGPT])
@pytest.mark.parametrize("noise", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("n_draft", [1, 4, 15])
def test_a_draft_changes_no_token(pack, noise, n_draft):
    model = shaken_gpt(**dict.fromkeys(MODERN, True))
    draft, generator = copy.deepcopy(model), torch.Generator().manual_seed(3)
    for weight in draft.parameters():
        weight.data += noise * torch.randn(weight.shape, generator=generator)
    for prompt, max_tokens in (([5, 6, 7], 30), ([9] * 40, None), ([1] * 63, None)):
        [(alone, mask)] = Engine(model, TOKENIZER).generate_batch([prompt], max_tokens)
        request = Request(prompt, max_tokens)
        row, passes = speculate(pack(model), pack(draft), TOKENIZER, request, n_draft)
        assert (row.tokens, row.mask) == (alone, mask)
        if noise == 0.0:
            assert passes == -(-len(row.tokens) // (n_draft + 1))


def test_a_draft_goes_on_after_a_tool_has_spoken():
    class Caller(GPT):
        """Write a call, then question marks."""

        def __init__(self):
            super().__init__(GPTConfig(**SIZES))
            special = TOKENIZER.encode_special
            call = [special("<|python_start|>"), *b"6*7", special("<|python_end|>")]
            self.next_token = dict(zip([ord("q"), *call], [*call, ord("!")]))

        def hidden(self, idx, kv_cache=None):
            kv_cache.positions(idx.shape[1])
            kv_cache.advance(idx.shape[1])
            return idx

        def logits(self, x):
            chosen = [self.next_token.get(int(token), ord("?")) for token in x.flatten()]
            table = torch.nn.functional.one_hot(torch.tensor(chosen), 265).float()
            return table.view(*x.shape, 265)

    model = Caller()
    [(alone, mask)] = Engine(model, TOKENIZER).generate_batch([[ord("q")]], 20)
    assert b"42" in TOKENIZER.decode_bytes(alone) and 0 in mask
    row, _ = speculate(model, model, TOKENIZER, Request([ord("q")], 20))
    assert (row.tokens, row.mask) == (alone, mask)


def test_models_that_do_not_fit_are_refused():
    model = shaken_gpt()
    other = GPT(GPTConfig(**{**SIZES, "vocab_size": 300}))
    with pytest.raises(ValueError, match="vocabularies"):
        speculate(model, other, TOKENIZER, Request([1]))
    with pytest.raises(ValueError, match="shorten"):
        speculate(model, model, TOKENIZER, Request([1] * 64))
