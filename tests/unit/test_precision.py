"""One number format for a run: what stays float32, what does not, and float8's arithmetic."""

import copy

import pytest
import torch
import torch.nn.functional as F

from nanochat_lib.model.attention import fused_attention
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.training.fused import loss_function, scores_attention
from nanochat_lib.training.optim import build_optimizers
from nanochat_lib.training.precision import (
    CastLinear,
    Float8Linear,
    Float8Product,
    best_attention,
    flash_attention_3,
    prepare,
    to_float8,
)

FORMATS = [torch.bfloat16, torch.float16, torch.float8_e4m3fn]
CONFIG = GPTConfig(
    64,
    2,
    2,
    sequence_len=32,
    vocab_size=100,
    n_layer=2,
    smear=True,
    key_offset=True,
    value_embeds=True,
    x0_lambdas=True,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def busy_gpt() -> GPT:
    model = GPT(CONFIG)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(0.2 * normal(*p.shape, seed=i))
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    idx = torch.randint(100, (2, 33), generator=torch.Generator().manual_seed(3))
    return idx[:, :-1], idx[:, 1:]


@pytest.mark.parametrize("dtype", FORMATS)
def test_gradients_point_the_same_way_and_weights_stay_float32(dtype):
    model = busy_gpt()
    model(*batch()).backward()
    wanted = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    prepare(model, [], dtype)
    loss_function(model)(*batch()).backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert F.cosine_similarity(wanted, found, dim=0) > (0.9 if "float8" in str(dtype) else 0.99)


def test_products_run_in_the_format_and_logits_in_float32():
    model, seen = busy_gpt(), {}
    prepare(model, [], torch.bfloat16)
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, args, out, name=name: seen.update({name: out.dtype}))
    assert model(batch()[0]).dtype == torch.float32
    assert seen.pop("lm_head") == torch.float32
    stream = {"", "wte", "smear", "blocks.0", "blocks.1", "blocks.1.value_embed.table"}
    assert {name for name, dtype in seen.items() if dtype == torch.float32} == stream
    assert {seen[name] for name in set(seen) - stream} == {torch.bfloat16}


def test_prepare_changes_no_name_and_no_weight_and_can_go_back():
    model = busy_gpt()
    before, logits = copy.deepcopy(model.state_dict()), model(batch()[0])
    for dtype in [*FORMATS, torch.float32]:
        prepare(model, [], dtype)
        after = model.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)
    torch.testing.assert_close(model(batch()[0]), logits, rtol=1e-2, atol=1e-2)


def test_going_back_to_float32_is_exact():
    model = busy_gpt()
    plain = model(batch()[0])
    prepare(model, [], torch.float32)
    logits = model(batch()[0])
    torch.testing.assert_close(logits, plain, rtol=1e-5, atol=1e-5)
    prepare(model, [], torch.bfloat16)
    prepare(model, [], torch.float32)
    assert torch.equal(model(batch()[0]), logits)


def test_float8_is_for_the_blocks_alone():
    model = busy_gpt()
    prepare(model, [], torch.float8_e4m3fn)
    short = {name for name, m in model.named_modules() if isinstance(m, Float8Linear)}
    assert short == {
        f"blocks.{i}.{name}"
        for i in range(2)
        for name in ("attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    assert type(model.lm_head) is CastLinear


def test_other_models_are_left_alone():
    other = torch.nn.Sequential(torch.nn.Linear(2, 2))
    prepare(other, [], torch.bfloat16)
    assert type(other[0]) is torch.nn.Linear


@pytest.mark.parametrize("dtype", FORMATS)
def test_every_format_trains(dtype):
    model = busy_gpt()
    optimizers = build_optimizers(model)
    prepare(model, optimizers, dtype)
    losses = []
    for _ in range(25):
        loss = loss_function(model)(*batch())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses


def nearest_by_hand(x: float, bits: int, lowest_exponent: int, largest: float) -> float:
    """Round to `bits` bits of fraction, halves to even; subnormal below 2**lowest_exponent."""
    import math

    if x == 0:
        return 0.0
    exponent = max(math.frexp(x)[1] - 1, lowest_exponent)
    step = 2.0 ** (exponent - bits)
    return max(-largest, min(largest, round(x / step) * step))


@pytest.mark.parametrize(
    "dtype, bits, lowest, largest",
    [(torch.float8_e4m3fn, 3, -6, 448.0), (torch.float8_e5m2, 2, -14, 57344.0)],
)
def test_to_float8_rounds_as_by_hand(dtype, bits, lowest, largest):
    x = normal(20, 10) * torch.logspace(-6, 3, 10)
    rounded, scale = to_float8(x, dtype)
    assert scale.item() == pytest.approx(x.abs().max().item() / largest)
    for value, got in zip((x / scale).flatten().tolist(), rounded.float().flatten().tolist()):
        assert got == nearest_by_hand(value, bits, lowest, largest)


def test_to_float8_of_zeros():
    rounded, scale = to_float8(torch.zeros(2, 3))
    assert rounded.float().abs().max() == 0 and scale > 0


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_float8_products_are_those_of_the_rounded_numbers(x_dtype):
    x, weight = normal(32, 48).to(x_dtype).requires_grad_(), normal(16, 48, seed=1).requires_grad_()
    grad = normal(32, 16, seed=2).to(x_dtype)
    y = Float8Product.apply(x, weight)
    y.backward(grad)
    (x8, xs), (w8, ws) = to_float8(x), to_float8(weight)
    g8, gs = to_float8(grad, torch.float8_e5m2)
    x8, w8, g8 = x8.float() * xs, w8.float() * ws, g8.float() * gs
    near = {"rtol": 2e-2, "atol": 5e-2}
    torch.testing.assert_close(y.float(), x8 @ w8.T, **near)
    torch.testing.assert_close(x.grad.float(), g8 @ w8, **near)
    torch.testing.assert_close(weight.grad, g8.T @ x8, **near)
    assert y.dtype == x.grad.dtype == x_dtype and weight.grad.dtype == torch.float32


def test_kernels_by_device_and_format():
    cpu = torch.device("cpu")
    assert best_attention(cpu, torch.bfloat16) is scores_attention
    assert best_attention(cpu, torch.float32) is fused_attention
    if not torch.cuda.is_available():
        assert flash_attention_3() is None
