"""Grade the exercises of the baseline chapter."""

import math
import random

import torch


def corpus(n: int, seed: int) -> tuple[list[float], list[int]]:
    """Make documents of very different lengths; longer ones are easier to predict."""
    generator = random.Random(seed)
    n_bytes = [int(generator.lognormvariate(5, 1.5)) + 1 for _ in range(n)]
    rates = [1 + 3 / math.log(size + 2) + generator.gauss(0, 0.3) for size in n_bytes]
    return [math.log(2) * rate * size for rate, size in zip(rates, n_bytes)], n_bytes


def grade_bpb_interval(module) -> None:
    """The width of theory, the place of the whole, and no luck with seeds."""
    nats, n_bytes = corpus(400, seed=0)
    low, high = module.bpb_interval(nats, n_bytes, 1_000, 1)
    assert module.bpb_interval(nats, n_bytes, 1_000, 1) == (low, high), "not repeatable"
    assert module.bpb_interval(nats, n_bytes, 1_000, 2) != (low, high), "the seed changes nothing"
    total, mean = sum(n_bytes), sum(n_bytes) / len(n_bytes)
    score = sum(nats) / total / math.log(2)
    # The delta method: the spread of a ratio of two sums.
    spread = [(x / math.log(2) - score * b) ** 2 for x, b in zip(nats, n_bytes)]
    error = math.sqrt(sum(spread) / len(n_bytes)) / mean / math.sqrt(len(n_bytes))
    width = (high - low) / (2 * 1.96 * error)
    assert low < score < high, f"the score {score:.3f} lies outside {low:.3f} to {high:.3f}"
    assert 0.8 < width < 1.2, f"the width is {width:.2f} times that of the delta method"
    same = module.bpb_interval([3 * math.log(2)] * 20, [2] * 20, 100, 1)
    assert all(math.isclose(end, 1.5) for end in same), f"equal documents gave {same}"
    one = module.bpb_interval([math.log(2)], [4], 50, 1)
    assert all(math.isclose(end, 0.25) for end in one)
    for wrong in (([], []), ([1.0], [1, 2])):
        try:
            module.bpb_interval(*wrong, 10, 1)
        except ValueError:
            continue
        raise AssertionError(f"accepted {wrong}")


def grade_continuation_shares(module) -> None:
    """Contexts of each token, against sets in a loop."""
    generator = torch.Generator().manual_seed(0)
    for size in (2, 5, 17):
        counts = torch.randint(0, 9, (size, size), generator=generator)
        counts[torch.rand(size, size, generator=generator) < 0.5] = 0
        counts[0, 0] = 1
        pairs = {(a, b) for a in range(size) for b in range(size) if counts[a, b] > 0}
        before = counts.clone()
        got = module.continuation_shares(counts)
        expected = [sum(b == token for _, b in pairs) / len(pairs) for token in range(size)]
        assert got.dtype == torch.float64, f"the shares are {got.dtype}"
        assert torch.allclose(got, torch.tensor(expected, dtype=torch.float64)), (
            f"got {got.tolist()}, not {expected}"
        )
        assert counts.equal(before), "the caller's counts were changed"
    try:
        module.continuation_shares(torch.zeros(3, 3, dtype=torch.int64))
    except ValueError:
        return
    raise AssertionError("an empty table was accepted")


def grade_choose_prior(module) -> None:
    """The same curve as a plain loop, a choice that never looks at the test, and an interior minimum."""
    generator = torch.Generator().manual_seed(5)
    table = torch.rand(12, 12, generator=generator) ** 6
    table = table / table.sum(dim=1, keepdim=True)

    def walk(n: int) -> torch.Tensor:
        ids = [0]
        for _ in range(n):
            ids.append(int(torch.multinomial(table[ids[-1]], 1, generator=generator)))
        return torch.tensor(ids)

    train_ids, dev_ids, other = walk(150), walk(800), torch.randint(12, (800,), generator=generator)
    priors = [0.001, 1.0, 5.0, 50.0, 5_000.0]

    def bits(prior: float, ids: torch.Tensor) -> float:
        counts = torch.zeros(12, 12, dtype=torch.float64)
        for a, b in zip(train_ids[:-1].tolist(), train_ids[1:].tolist()):
            counts[a, b] += 1
        overall = (counts.sum(0) + 1) / (counts.sum(0) + 1).sum()
        probs = (counts + prior * overall) / (counts.sum(1, keepdim=True) + prior)
        return float(-probs[ids[:-1], ids[1:]].log2().mean())

    want = [bits(prior, dev_ids) for prior in priors]
    curve, best, test_bits = module.choose_prior(train_ids, dev_ids, other, 12, priors)
    for prior, got, right in zip(priors, curve, want):
        assert math.isclose(got, right, rel_tol=1e-4), (
            f"prior {prior}: {got:.4f} bits a token on dev, expected {right:.4f}: bits, or nats?"
        )
    chosen = priors[want.index(min(want))]
    assert best == chosen, (
        f"chose {best}; {chosen} is best on dev. The test is unlike dev here, so that whoever chooses "
        "by the test is seen"
    )
    right = bits(chosen, other)
    assert math.isclose(test_bits, right, rel_tol=1e-4), f"{test_bits:.4f} on test, not {right:.4f}"
    assert 0 < priors.index(best) < 4, "the best prior lies inside"


MUTANTS = {
    "bpb_interval": [
        '''def bpb_interval(nats, n_bytes, resamples, seed):
    """Average the documents' own scores: a short one weighs as much as a long one."""
    if not nats or len(nats) != len(n_bytes):
        raise ValueError("lengths")
    generator, results = local_generator("bpb_interval", seed), []
    scores = [x / b / math.log(2) for x, b in zip(nats, n_bytes)]
    for _ in range(resamples):
        drawn = generator.choices(scores, k=len(scores))
        results.append(sum(drawn) / len(drawn))
    results.sort()
    return results[round(0.025 * (resamples - 1))], results[round(0.975 * (resamples - 1))]
''',
        '''def bpb_interval(nats, n_bytes, resamples, seed):
    """Draw nats and bytes apart."""
    if not nats or len(nats) != len(n_bytes):
        raise ValueError("lengths")
    generator, results = local_generator("bpb_interval", seed), []
    for _ in range(resamples):
        total = sum(generator.choices(nats, k=len(nats))) / math.log(2)
        results.append(total / sum(generator.choices(n_bytes, k=len(nats))))
    results.sort()
    return results[round(0.025 * (resamples - 1))], results[round(0.975 * (resamples - 1))]
''',
        '''def bpb_interval(nats, n_bytes, resamples, seed):
    """Draw without replacement: every draw is the whole."""
    if not nats or len(nats) != len(n_bytes):
        raise ValueError("lengths")
    generator, results = local_generator("bpb_interval", seed), []
    for _ in range(resamples):
        drawn = generator.sample(range(len(nats)), len(nats))
        results.append(sum(nats[i] for i in drawn) / math.log(2) / sum(n_bytes[i] for i in drawn))
    results.sort()
    return results[round(0.025 * (resamples - 1))], results[round(0.975 * (resamples - 1))]
''',
        '''def bpb_interval(nats, n_bytes, resamples, seed):
    """Stay in nats."""
    if not nats or len(nats) != len(n_bytes):
        raise ValueError("lengths")
    generator, results = local_generator("bpb_interval", seed), []
    for _ in range(resamples):
        drawn = generator.choices(range(len(nats)), k=len(nats))
        results.append(sum(nats[i] for i in drawn) / sum(n_bytes[i] for i in drawn))
    results.sort()
    return results[round(0.025 * (resamples - 1))], results[round(0.975 * (resamples - 1))]
''',
    ],
    "continuation_shares": [
        '''def continuation_shares(counts):
    """Count how many tokens follow, not precede."""
    contexts = (counts > 0).sum(dim=1)
    if contexts.sum() == 0:
        raise ValueError("no pair")
    return contexts.double() / contexts.sum()
''',
        '''def continuation_shares(counts):
    """Share the occurrences, not the contexts."""
    occurrences = counts.sum(dim=0)
    if occurrences.sum() == 0:
        raise ValueError("no pair")
    return occurrences.double() / occurrences.sum()
''',
        '''def continuation_shares(counts):
    """Divide by the size of the vocabulary."""
    contexts = (counts > 0).sum(dim=0)
    if contexts.sum() == 0:
        raise ValueError("no pair")
    return contexts.double() / len(counts)
''',
    ],
    "choose_prior": [
        '''def choose_prior(train_ids, dev_ids, test_ids, vocab_size, priors):
    """Choose by the test: its score is then a part of the training."""
    counts = bigram_counts(train_ids, vocab_size)

    def bits(prior, ids):
        return float(BigramModel(counts, prior)(ids[None, :-1], ids[None, 1:], "none").mean()) / math.log(2)

    best = min(priors, key=lambda prior: bits(prior, test_ids))
    return [bits(prior, dev_ids) for prior in priors], best, bits(best, test_ids)
''',
        '''def choose_prior(train_ids, dev_ids, test_ids, vocab_size, priors):
    """Report nats."""
    counts = bigram_counts(train_ids, vocab_size)

    def nats(prior, ids):
        return float(BigramModel(counts, prior)(ids[None, :-1], ids[None, 1:], "none").mean())

    curve = [nats(prior, dev_ids) for prior in priors]
    best = priors[curve.index(min(curve))]
    return curve, best, nats(best, test_ids)
''',
        '''def choose_prior(train_ids, dev_ids, test_ids, vocab_size, priors):
    """Return the dev score of the winner, which was chosen for being low."""
    counts = bigram_counts(train_ids, vocab_size)

    def bits(prior, ids):
        return float(BigramModel(counts, prior)(ids[None, :-1], ids[None, 1:], "none").mean()) / math.log(2)

    curve = [bits(prior, dev_ids) for prior in priors]
    return curve, priors[curve.index(min(curve))], min(curve)
''',
    ],
}
