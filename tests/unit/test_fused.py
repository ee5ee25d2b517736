"""The faster ways against the plain ones, for values, gradients, and shapes that do not divide."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lib.model.attention import causal_mask, fused_attention, naive_attention
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.training import fused
from nanochat_lib.training.fused import (
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
    model = busy_gpt(smear=True, key_offset=True)
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


def test_quick_newton_schulz_keeps_zero_and_leaves_bfloat16_to_the_direct_way():
    assert quick_newton_schulz(torch.zeros(2, 4, 3)).abs().max() == 0
    assert quick_newton_schulz(torch.zeros(2, 9, 3)).abs().max() == 0
    g = normal(2, 32, 16)
    short = quick_newton_schulz(g, dtype=torch.bfloat16)
    assert torch.equal(short, newton_schulz(g, dtype=torch.bfloat16))


def test_muon_uses_what_it_is_given():
    p = torch.nn.Parameter(torch.eye(3))
    p.grad = torch.eye(3)
    muon = Muon([p], lr=0.5)
    muon.orthogonalize = lambda g, steps, dtype: torch.ones_like(g)
    muon.step()
    assert torch.allclose(p, torch.eye(3) - 0.5)


def test_training_with_all_of_it_ends_where_the_plain_way_does():
    ends = []
    for quick in (False, True):
        model = busy_gpt()
        optimizers = build_optimizers(model)
        if quick:
            optimizers[1].orthogonalize, optimizers[1].dtype = quick_newton_schulz, torch.float32
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
