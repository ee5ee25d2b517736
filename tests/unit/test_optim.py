"""The optimizers against torch's, and what orthogonalizing must preserve."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.training.optim import (
    NEWTON_SCHULZ,
    AdamW,
    Muon,
    OptimConfig,
    build_optimizers,
    newton_schulz,
    parameter_kinds,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parameters(shapes: list[tuple]) -> list[nn.Parameter]:
    return [nn.Parameter(normal(*shape, seed=i)) for i, shape in enumerate(shapes)]


def run_both(ours, theirs, our_params, their_params, steps=6) -> None:
    """Give both optimizers the same gradients; sometimes none, as an unused parameter has."""
    for step in range(steps):
        for i, (a, b) in enumerate(zip(our_params, their_params)):
            grad = None if (step, i) in {(1, 0), (3, 0)} else normal(*a.shape, seed=100 * step + i)
            a.grad, b.grad = grad, None if grad is None else grad.clone()
        ours.step()
        theirs.step()


@given(
    rows=st.integers(1, 24),
    columns=st.integers(1, 24),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
)
@settings(max_examples=30, deadline=None)
def test_newton_schulz_applies_its_polynomial_to_singular_values(rows, columns, seed, scale):
    g = normal(rows, columns, seed=seed).double() * scale
    u, s, vt = torch.linalg.svd(g, full_matrices=False)
    s = s / s.square().sum().sqrt()
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    expected = u @ torch.diag(s) @ vt
    assert torch.allclose(newton_schulz(g, dtype=torch.float64), expected, atol=1e-6)
    assert torch.allclose(newton_schulz(g.float()), expected.float(), atol=2e-3)


def test_newton_schulz_batches_and_keeps_zero():
    stack = normal(2, 3, 8, 5)
    out = newton_schulz(stack)
    assert out.shape == stack.shape
    for i in range(2):
        for j in range(3):
            assert torch.allclose(out[i, j], newton_schulz(stack[i, j]), atol=1e-5)
    assert newton_schulz(torch.zeros(4, 3)).abs().max() == 0
    with pytest.raises(ValueError, match="AdamW"):
        newton_schulz.__wrapped__(torch.zeros(3))  # below the run-time check of shapes


@pytest.mark.parametrize("shape", [(32, 32), (64, 16), (16, 64)])
def test_newton_schulz_equals_torch_in_bfloat16(shape):
    reference = torch.optim._muon._zeropower_via_newtonschulz(
        normal(*shape), NEWTON_SCHULZ, 5, 1e-7
    )
    ours = newton_schulz(normal(*shape), dtype=torch.bfloat16)
    assert (ours - reference).float().norm() < 0.03 * reference.float().norm()


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_equals_torch(nesterov, monkeypatch):
    def in_float32(
        g, coefficients, steps, eps
    ):  # torch computes in bfloat16, too coarse for a comparison
        assert coefficients == NEWTON_SCHULZ
        return newton_schulz(g, steps, dtype=torch.float32)

    monkeypatch.setattr(torch.optim._muon, "_zeropower_via_newtonschulz", in_float32)
    shapes = [(16, 16), (16, 16), (32, 8), (8, 32), (16, 16)]
    a, b = parameters(shapes), parameters(shapes)
    options = dict(lr=0.02, momentum=0.9, nesterov=nesterov, weight_decay=0.1)
    theirs = torch.optim.Muon(b, adjust_lr_fn="original", **options)
    run_both(Muon(a, **options), theirs, a, b)
    for p, q in zip(a, b):
        assert torch.allclose(p, q, atol=1e-5)


def test_muon_update_has_the_size_the_rate_says():
    p = nn.Parameter(torch.zeros(64, 16))
    p.grad = normal(64, 16)
    Muon([p], lr=0.02).step()
    singular = torch.linalg.svdvals(p.detach()) / (0.02 * 2)  # sqrt(64 / 16) = 2
    assert 0.6 < singular.min() and singular.max() < 1.25


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_equals_torch(weight_decay):
    shapes = [(5, 7), (3,), (4, 2, 2), ()]
    a, b = parameters(shapes), parameters(shapes)
    options = dict(lr=0.01, betas=(0.8, 0.95), eps=1e-10, weight_decay=weight_decay)
    run_both(AdamW(a, **options), torch.optim.AdamW(b, **options), a, b)
    for p, q in zip(a, b):
        assert torch.allclose(p, q, atol=1e-6)


@pytest.mark.parametrize("make", [lambda p: Muon(p), lambda p: AdamW(p)])
def test_state_dict_resumes_to_the_bit(make):
    a = parameters([(6, 4), (6, 4)])
    optimizer = make(a)
    for step in range(4):
        if step == 2:
            b = copy.deepcopy(a)
            resumed = make(b)
            resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # as a file would
        for i, p in enumerate(a):
            p.grad = normal(6, 4, seed=10 * step + i)
        if step >= 2:
            for p, q in zip(a, b):
                q.grad = p.grad.clone()
            resumed.step()
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(a, b))


@pytest.mark.parametrize("smear", [False, True])
def test_build_optimizers_covers_every_weight_once(smear):
    model = GPT(GPTConfig(64, 2, 2, sequence_len=16, vocab_size=70, n_layer=2, smear=smear))
    optimizers = build_optimizers(model, OptimConfig(weight_decay=0.2, ns_steps=3))
    groups = {g["kind"]: g for o in optimizers for g in o.param_groups}
    assert groups["matrix"]["ns_steps"] == 3
    held = [id(p) for g in groups.values() for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    factor = (64 / 768) ** -0.5
    assert groups["embedding"]["initial_lr"] == groups["embedding"]["lr"] == 0.2 * factor
    assert groups["head"]["lr"] == 0.004 * factor
    assert groups["matrix"]["lr"] == 0.02 and groups["matrix"]["weight_decay"] == 0.2
    assert groups["embedding"]["params"][0] is model.wte.weight
    assert groups["head"]["params"][0] is model.lm_head.weight
    assert len(groups["matrix"]["params"]) == 2 * 6
    assert ("scalar" in groups) == smear


def test_frozen_weights_stay_out():
    model = GPT(GPTConfig(64, 2, 2, sequence_len=16, vocab_size=70, n_layer=1))
    model.wte.weight.requires_grad_(False)
    assert parameter_kinds(model)["embedding"] == []
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="requires_grad"):
        build_optimizers(model)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"\(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))])
    with pytest.raises(ValueError, match="momentum=1.0"):
        Muon([nn.Parameter(torch.zeros(3, 3))], momentum=1.0)
    with pytest.raises(ValueError, match="betas"):
        AdamW([nn.Parameter(torch.zeros(3))], betas=(0.9, 1.0))
    model = GPT(GPTConfig(64, 2, 2, sequence_len=16, vocab_size=70, n_layer=1))
    model.lm_head.weight = nn.Parameter(torch.zeros(64, 128).T)
    with pytest.raises(ValueError, match="lm_head.weight"):
        build_optimizers(model)
