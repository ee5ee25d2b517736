"""The faster ways against the plain ones, for values, gradients, and shapes that do not divide."""

import resource
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lib.model.attention import (
    AttentionConfig,
    CausalSelfAttention,
    apply_rope,
    causal_mask,
    fused_attention,
    naive_attention,
    rms_norm,
    rope_tables,
)
from nanochat_lib.model.gpt import GPT, GPTConfig, squared_relu
from nanochat_lib.training import fused
from nanochat_lib.training.fused import (
    JointAttention,
    QuickNorm,
    QuickRotatedNorm,
    QuickSquaredReLU,
    SlicedLoss,
    loss_function,
    quick_newton_schulz,
    scores_attention,
)
from nanochat_lib.training.optim import Muon, build_optimizers, newton_schulz


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def busy_gpt(**changes) -> GPT:
    """A GPT in which every weight has some size."""
    model = GPT(
        GPTConfig(32, 2, 2, **({"sequence_len": 48, "vocab_size": 100, "n_layer": 2} | changes))
    )
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(0.3 * normal(*p.shape, seed=i))
    return model


def both_gradients(model: GPT, idx: torch.Tensor, targets: torch.Tensor) -> list[tuple]:
    found = []
    for loss_of in (model, loss_function(model)):
        model.zero_grad()
        loss = loss_of(idx, targets)
        loss.backward()
        found.append((loss.item(), [p.grad.clone() for p in model.parameters()]))
    return found


@pytest.mark.parametrize("slice_rows", [1, 7, 96, 1000])
@pytest.mark.parametrize("holes", [0.0, 0.5])
def test_sliced_loss_has_the_plain_gradients(monkeypatch, slice_rows, holes):
    monkeypatch.setattr(fused, "SLICE", slice_rows)
    model = busy_gpt(smear=True, key_offset=True, value_embeds=True, x0_lambdas=True)
    idx, targets = torch.randint(100, (2, 2, 48), generator=torch.Generator().manual_seed(1))
    hole = torch.rand(2, 48, generator=torch.Generator().manual_seed(2)) < holes
    targets = targets.masked_fill(hole, -1)
    (plain, wanted), (ours, found) = both_gradients(model, idx, targets)
    assert ours == pytest.approx(plain, rel=1e-5)
    for a, b in zip(wanted, found):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_sliced_loss_has_the_plain_gradients_in_float64():
    x = normal(5, 3).double().requires_grad_()
    weight = normal(7, 3, seed=1).double().requires_grad_()
    targets = torch.tensor([0, 6, 3, 3, 1])

    def reference(x, weight):
        logits = 2.0 * torch.tanh(x @ weight.T / 2.0)
        return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")

    wanted = torch.autograd.grad(reference(x, weight), (x, weight))
    loss = SlicedLoss.apply(x, weight, targets, 2.0)
    found = torch.autograd.grad(3 * loss, (x, weight))
    assert loss.item() == pytest.approx(reference(x, weight).item(), rel=1e-5)
    for a, b in zip(wanted, found):
        torch.testing.assert_close(3 * a, b, rtol=1e-4, atol=1e-5)


def test_sliced_loss_over_nothing_is_zero_with_zero_gradients():
    model = busy_gpt()
    nothing = torch.full((2, 8), -1)
    loss = loss_function(model)(torch.zeros(2, 8, dtype=torch.int64), nothing)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.parameters())


def test_extreme_logits_neither_overflow_nor_lose_the_loss():
    x = torch.tensor([[1e4, -1e4]])
    for target, expected in ((0, 0.0), (1, 30.0)):
        loss = SlicedLoss.apply(x, torch.eye(2), torch.tensor([target]), 15.0)
        assert loss.item() == pytest.approx(expected, abs=1e-3)


def test_rows_that_do_not_count_are_not_multiplied(monkeypatch):
    model, seen = busy_gpt(), []
    apply = SlicedLoss.apply
    monkeypatch.setattr(
        SlicedLoss, "apply", lambda x, *more: seen.append(len(x)) or apply(x, *more)
    )
    targets = torch.full((2, 48), -1)
    targets[0, 3:10] = 5
    loss_function(model)(torch.zeros(2, 48, dtype=torch.int64), targets)
    assert seen == [7]


def test_other_models_keep_their_own_loss():
    other = torch.nn.Linear(2, 2)
    assert loss_function(other) is other


@given(T=st.integers(1, 40), groups=st.sampled_from([1, 2, 4]), seed=st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_scores_attention_agrees_with_the_kernel(T, groups, seed):
    q = normal(2, 4, T, 8, seed=seed)
    k, v = normal(2, 2, groups, T, 8, seed=seed + 100)
    ours = scores_attention(q, k, v)
    torch.testing.assert_close(ours, fused_attention(q, k, v), rtol=1e-4, atol=1e-5)
    repeated = [part.repeat_interleave(4 // groups, dim=1) for part in (k, v)]
    plain, _ = naive_attention(q, *repeated, causal_mask(T))
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_scores_attention_obeys_a_mask():
    q, k, v = normal(3, 1, 2, 6, 8)
    mask = causal_mask(6, window=2)
    torch.testing.assert_close(scores_attention(q, k, v, mask), fused_attention(q, k, v, mask))


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 48), (20, 16), (1, 5), (5, 1)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_quick_newton_schulz_is_newton_schulz(shape, scale, steps):
    g = normal(3, *shape) * torch.logspace(0, -3, shape[-1]) * scale
    near = {"rtol": 0, "atol": 2e-3}
    torch.testing.assert_close(quick_newton_schulz(g, steps), newton_schulz(g, steps), **near)


def test_quick_newton_schulz_keeps_zero():
    assert quick_newton_schulz(torch.zeros(2, 4, 3)).abs().max() == 0
    assert quick_newton_schulz(torch.zeros(2, 9, 3)).abs().max() == 0


def value_and_gradient(f, x: torch.Tensor, grad: torch.Tensor) -> tuple:
    x = x.clone().requires_grad_()
    y = f(x)
    y.backward(grad.to(y.dtype))
    return y.detach(), x.grad


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3)),
    half=st.integers(1, 8),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
@settings(max_examples=25, deadline=None)
def test_few_passes_give_what_autograd_gives(shape, half, scale):
    x, grad = (normal(*shape, 2 * half, seed=seed) for seed in (0, 1))
    tables = rope_tables(shape[1], 2 * half)
    pairs = [
        (rms_norm, lambda x: QuickNorm.apply(torch.float32, x)),
        (lambda x: rms_norm(apply_rope(x, *tables)), lambda x: QuickRotatedNorm.apply(x, *tables)),
        (squared_relu, QuickSquaredReLU.apply),
    ]
    for plain, quick in pairs:
        for wanted, got in zip(*(value_and_gradient(f, x * scale, grad) for f in (plain, quick))):
            bound = 1e-5 * max(1.0, float(wanted.abs().max()))
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=bound)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_few_passes_in_short_formats_are_as_near_as_the_plain_ones(dtype):
    x, grad = (normal(2, 16, 3, 32, seed=seed) for seed in (0, 1))
    tables = [table.to(dtype) for table in rope_tables(16, 32)]
    exact = value_and_gradient(lambda x: rms_norm(apply_rope(x, *rope_tables(16, 32))), x, grad)
    plain = value_and_gradient(lambda x: rms_norm(apply_rope(x, *tables)), x.to(dtype), grad)
    quick = value_and_gradient(lambda x: QuickRotatedNorm.apply(x, *tables), x.to(dtype), grad)
    for e, p, q in zip(exact, plain, quick):
        assert q.dtype == dtype
        assert (q.float() - e).norm() < 2 * (p.float() - e).norm()
    y, x_grad = value_and_gradient(lambda x: QuickNorm.apply(dtype, x), x, grad)
    assert (y.dtype, x_grad.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(y.float(), rms_norm(x), rtol=1e-2, atol=1e-3)


def test_norms_of_zeros_are_zero_with_a_finite_gradient():
    for f in (lambda x: QuickNorm.apply(torch.float32, x), QuickSquaredReLU.apply):
        y, grad = value_and_gradient(f, torch.zeros(2, 4), torch.ones(2, 4))
        assert y.abs().max() == 0 and grad.isfinite().all()


def test_rows_at_positions_of_their_own_are_rotated_by_them():
    x = normal(2, 3, 2, 8)
    cos, sin = (table[torch.tensor([[0, 1, 2], [4, 5, 6]])] for table in rope_tables(8, 8))
    ours = QuickRotatedNorm.apply(x, cos, sin)
    torch.testing.assert_close(ours, rms_norm(apply_rope(x, cos, sin)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
def test_joint_attention_makes_the_same_queries_keys_and_values(n_kv_head):
    config = AttentionConfig(32, 4, n_kv_head, key_offset=True)
    layer, x, tables = CausalSelfAttention(config, 0), normal(2, 10, 32), rope_tables(10, 8)
    found = []
    for kind in (CausalSelfAttention, JointAttention):
        layer.__class__ = kind
        layer.zero_grad()
        y = layer(x, *tables)
        y.square().sum().backward()
        found.append([y.detach(), *(p.grad.clone() for p in layer.parameters())])
    for plain, joint in zip(*found):
        torch.testing.assert_close(joint, plain, rtol=1e-4, atol=1e-5)


def test_kept_memory_is_not_asked_for_again():
    program = """
import resource, sys, torch
from nanochat_lib.training.fused import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    print("unknown here")
    sys.exit()
def use():
    [torch.ones(15_000_000, dtype=torch.uint8) for _ in range(3)]  # all free at once, by default too much
for _ in range(4):  # until the heap has found its form
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    command = [sys.executable, "-c", program, "keep"]
    faults = subprocess.run(command, capture_output=True, encoding="utf-8").stdout.strip()
    if faults == "unknown here":
        pytest.skip("no mallopt: not glibc")
    pages = 10 * 3 * 15_000_000 / resource.getpagesize()  # what asking again each time would touch
    assert int(faults) < pages / 10, faults


def test_muon_uses_what_it_is_given():
    p = torch.nn.Parameter(torch.eye(3))
    p.grad = torch.eye(3)
    muon = Muon([p], lr=0.5)
    muon.orthogonalize = lambda g, steps: torch.ones_like(g)
    muon.step()
    assert torch.allclose(p, torch.eye(3) - 0.5)


def test_training_with_all_of_it_ends_where_the_plain_way_does():
    ends = []
    for quick in (False, True):
        model = busy_gpt()
        optimizers = build_optimizers(model)
        if quick:
            optimizers[1].orthogonalize = quick_newton_schulz
        loss_of = loss_function(model) if quick else model
        idx = torch.arange(96).view(2, 48) % 100
        for _ in range(30):
            loss = loss_of(idx, (idx + 1) % 100)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            model.zero_grad()
        ends.append(loss.item())
    assert max(ends) < 1.0, ends
