"""Bits per byte, against computations that share no code with it."""

import math
from collections import Counter

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lib.evaluation import bpb


def test_bits_per_byte_by_hand():
    assert math.isclose(bpb.bits_per_byte([math.log(2), math.log(8)], [3, 4]), 4 / 7)
    assert bpb.bits_per_byte([math.inf, math.log(2)], [0, 1]) == 1.0
    assert f"{bpb.bits_per_byte([3.4], [5]):.2f}" == "0.98"


def test_bits_per_byte_does_not_depend_on_the_cut():
    losses, lengths = [0.5, 1.25, 2.0, 0.75], [1, 2, 3, 1]
    merged = bpb.bits_per_byte([1.75, 2.75], [3, 4])
    assert math.isclose(bpb.bits_per_byte(losses, lengths), merged)


def test_bits_per_byte_refuses_bad_input():
    with pytest.raises(ValueError, match="2 losses for 1 tokens"):
        bpb.bits_per_byte([1.0, 2.0], [1])
    with pytest.raises(ValueError, match="special"):
        bpb.bits_per_byte([1.0], [0])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20).filter(sum))
def test_entropy_agrees_with_scipy(counts):
    ours = bpb.entropy_bits(torch.tensor(counts))
    assert math.isclose(ours, scipy.stats.entropy(counts, base=2), abs_tol=1e-9)


def test_entropy_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no counts"):
        bpb.entropy_bits(torch.zeros(4, dtype=torch.int64))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=60))
def test_bigrams_agree_with_a_counter(ids):
    counts = bpb.bigram_counts(torch.tensor(ids), 5)
    pairs = Counter(zip(ids, ids[1:]))
    assert {(a, b): int(counts[a, b]) for a in range(5) for b in range(5) if counts[a, b]} == pairs
    rows = Counter(ids[:-1])
    total = len(ids) - 1
    weighted = sum(
        n / total * scipy.stats.entropy([pairs[a, b] for b in range(5)], base=2)
        for a, n in rows.items()
    )
    assert math.isclose(bpb.bigram_entropy_bits(counts), weighted, abs_tol=1e-9)


def test_bigrams_of_less_than_a_pair_are_empty():
    for ids in ([], [3]):
        assert bpb.bigram_counts(torch.tensor(ids, dtype=torch.int64), 5).sum() == 0


@pytest.mark.parametrize("ids", [[0, 5], [-1, 0]])
def test_bigrams_outside_the_vocabulary_are_refused(ids):
    with pytest.raises(ValueError, match="vocabulary of 5"):
        bpb.bigram_counts(torch.tensor(ids), 5)


def small_model(prior=10.0):
    ids = torch.randint(0, 7, (500,), generator=torch.Generator().manual_seed(0))
    return ids, bpb.BigramModel(bpb.bigram_counts(ids, 7), prior)


def test_the_model_is_a_distribution_between_its_row_and_the_whole():
    ids, model = small_model()
    counts = bpb.bigram_counts(ids, 7)
    p = model.log_probs.exp()
    assert torch.allclose(p.sum(dim=1), torch.ones(7)) and (p > 0).all()
    trusting = bpb.BigramModel(counts, prior=1e-6).log_probs.exp()
    assert torch.allclose(trusting, counts / counts.sum(dim=1, keepdim=True), atol=1e-5)
    general = bpb.BigramModel(counts, prior=1e9).log_probs.exp()
    overall = (counts.sum(dim=0) + 1) / (counts.sum() + 7)
    assert torch.allclose(general, overall.expand(7, 7), atol=1e-5)


def test_the_model_by_hand():
    p = bpb.BigramModel(torch.tensor([[0, 2], [2, 1]]), prior=2.0).log_probs.exp()
    assert torch.allclose(p, torch.tensor([[3 / 14, 11 / 14], [4 / 7, 3 / 7]]))


def test_an_unseen_token_gets_the_shares_of_the_whole():
    p = bpb.BigramModel(torch.tensor([[3, 1, 0], [4, 0, 0], [0, 0, 0]])).log_probs.exp()
    assert torch.allclose(p[2], torch.tensor([8 / 11, 2 / 11, 1 / 11]))


def test_a_prior_of_nothing_is_refused():
    with pytest.raises(ValueError, match="prior of 0"):
        bpb.BigramModel(torch.ones(2, 2, dtype=torch.int64), prior=0.0)


def test_the_loss_agrees_with_torch():
    ids, model = small_model()
    idx, targets = ids[:60].view(3, 20), ids[1:61].view(3, 20).clone()
    targets[0, :5] = -1
    expected = torch.nn.functional.cross_entropy(
        model(idx).transpose(1, 2), targets, ignore_index=-1, reduction="none"
    )
    assert torch.allclose(model(idx, targets, loss_reduction="none"), expected)
    assert torch.allclose(model(idx, targets), expected.sum() / 55)
    assert model(idx, torch.full_like(targets, -1)) == 0.0


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 1000))
def test_evaluation_agrees_with_a_loop_and_not_on_the_batches(rows, length, seed):
    _, model = small_model()
    generator = torch.Generator().manual_seed(seed)
    idx, targets = torch.randint(0, 7, (2, rows, length), generator=generator)
    targets[torch.rand(rows, length, generator=generator) < 0.2] = -1
    targets[0, 0] = 1
    token_bytes = torch.tensor([0, 1, 2, 3, 4, 5, 0])
    nats, n_bytes = 0.0, 0
    for a, b in zip(idx.flatten().tolist(), targets.flatten().tolist()):
        if b >= 0 and token_bytes[b] > 0:
            nats -= model.log_probs[a, b].item()
            n_bytes += int(token_bytes[b])
    expected = nats / math.log(2) / n_bytes
    assert math.isclose(
        bpb.evaluate_bpb(model, [(idx, targets)], token_bytes), expected, rel_tol=1e-5
    )
    one_by_one = [(i[None], t[None]) for i, t in zip(idx, targets)]
    assert math.isclose(bpb.evaluate_bpb(model, one_by_one, token_bytes), expected, rel_tol=1e-5)


def test_ignored_targets_may_have_any_loss():
    def model(idx, targets, loss_reduction):
        assert loss_reduction == "none"
        return torch.tensor([[math.inf, math.log(4), math.nan]])

    targets = torch.tensor([[-1, 1, 0]])
    assert bpb.evaluate_bpb(model, [(targets, targets)], torch.tensor([0, 2])) == pytest.approx(1.0)


def test_an_untrained_model_pays_log_v():
    def model(idx, targets, loss_reduction):
        return torch.full(idx.shape, math.log(256))

    idx = torch.zeros(2, 5, dtype=torch.int64)
    assert bpb.evaluate_bpb(
        model, [(idx, idx)] * 3, torch.ones(256, dtype=torch.int64)
    ) == pytest.approx(8.0)


def test_sums_are_exact_over_many_batches():
    def model(idx, targets, loss_reduction):
        return torch.full(idx.shape, 0.1)

    idx = torch.zeros(1, 1000, dtype=torch.int64)
    nats, n_bytes = bpb.nats_and_bytes(model, [(idx, idx)] * 200, torch.tensor([1]))
    assert n_bytes == 200_000 and nats == pytest.approx(
        200_000 * torch.tensor(0.1).item(), rel=1e-12
    )


def test_evaluation_keeps_no_graph():
    weight = torch.ones(1, requires_grad=True)

    def model(idx, targets, loss_reduction):
        loss = weight * torch.ones(idx.shape)
        assert not loss.requires_grad
        return loss

    idx = torch.zeros(1, 2, dtype=torch.int64)
    bpb.evaluate_bpb(model, [(idx, idx)], torch.tensor([1]))


def test_evaluation_refuses_bad_input():
    idx = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"losses \(\) for targets \(1, 3\)"):
        bpb.evaluate_bpb(lambda *a, **k: torch.tensor(1.0), [(idx, idx)], torch.tensor([1]))
    with pytest.raises(ValueError, match="no target covers"):
        bpb.evaluate_bpb(lambda *a, **k: torch.ones(1, 3), [(idx, idx)], torch.tensor([0]))
    with pytest.raises(ValueError, match="empty"):
        bpb.evaluate_bpb(lambda *a, **k: torch.ones(1, 3), [], torch.tensor([1]))
