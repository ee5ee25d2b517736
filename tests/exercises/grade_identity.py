"""Grade the exercises of the chapter on identity."""

import random
from collections import Counter
from itertools import product

import pytest

from nanochat_lib.evaluation.diversity import distinct_n, ngrams


def grade_minhash_similarity(module) -> None:
    rng = random.Random(3)
    words = "a b c d e f g h i j k l".split()
    for n in (1, 2):
        for _ in range(12):
            first = " ".join(rng.choices(words, k=rng.randint(4, 16)))
            second = first if rng.random() < 0.2 else " ".join(rng.choices(words, k=12))
            a, b = set(ngrams(first, n)), set(ngrams(second, n))
            estimate = module.minhash_similarity(first, second, 300, n)
            exact = len(a & b) / len(a | b)
            assert abs(estimate - exact) < 0.13, f"{estimate} for {exact}, 300 hash functions"
    assert module.minhash_similarity("one two", "one two", 7) == 1
    assert module.minhash_similarity("one two", "six ten", 7) == 0
    few = {module.minhash_similarity("a b c", "a b d", 2) for _ in range(3)}
    assert len(few) == 1 and few <= {0, 0.5, 1}, "a share of k, the same every time"
    with pytest.raises(ValueError):
        module.minhash_similarity("a", "b", 0)


def grade_draw_evenly(module) -> None:
    levers = [["a", "b", "c"], ["x", "y"], ["1", "2", "3", "4"]]
    cells = list(product(*levers))
    for count in (0, 1, 23, 24, 25, 100):
        plan = module.draw_evenly(levers, count, random.Random(count))
        counts = Counter(plan)
        assert len(plan) == count and set(counts) <= set(cells)
        times = [counts[cell] for cell in cells]
        assert max(times) - min(times) <= 1, (
            f"{count} draws: some come {max(times)}, some {min(times)} times"
        )
    plans = [module.draw_evenly(levers, 30, random.Random(seed)) for seed in range(40)]
    assert len({tuple(plan) for plan in plans}) > 30, "the order is random"
    more = Counter(cell for plan in plans for cell, times in Counter(plan).items() if times > 1)
    assert len(more) == len(cells), "which ones come more often is random, too"
    firsts = {plan[0] for plan in plans}
    assert len(firsts) > 8, "the plan begins anywhere"
    for bad in (([[]], 3), ([], 3), ([["a"]], -1)):
        with pytest.raises(ValueError):
            module.draw_evenly(*bad, random.Random(0))


def grade_diversity_curve(module) -> None:
    rng = random.Random(1)
    texts = [" ".join(rng.choices("abcdefgh", k=6)) for _ in range(200)]
    curve = module.diversity_curve(texts, [1, 10, 200, 50])
    assert curve == [distinct_n(texts[:size]) for size in (1, 10, 200, 50)]
    assert module.diversity_curve(texts, [20], 1) == [distinct_n(texts[:20], 1)]
    for bad in ([0], [201], [5, -1]):
        with pytest.raises(ValueError):
            module.diversity_curve(texts, bad)


def grade_diversity_gap(module) -> None:
    rng = random.Random(1)
    texts = [" ".join(rng.choices("abcdefgh", k=6)) for _ in range(600)]
    same = module.diversity_gap(texts[:60], texts[60:], random.Random(0))
    assert abs(same) < 0.05, f"{same} between two parts of one set: are the samples of one size?"
    dull = ["a b c d e f"] * 600
    assert module.diversity_gap(texts[:60], dull, random.Random(0)) > 0.1
    assert module.diversity_gap(dull[:60], texts, random.Random(0)) < -0.1
    mixed = dull[:300] + texts[:300]  # the first sixty are no sample
    gap = module.diversity_gap(dull[:60], mixed, random.Random(0))
    assert gap < -0.1, f"{gap}: samples must come from all of the larger set"
    assert module.diversity_gap(texts[:9], texts[:9], random.Random(0), 2) == pytest.approx(0)
    for bad in ((texts, texts[:5], 3), (texts[:5], texts, 0)):
        with pytest.raises(ValueError):
            module.diversity_gap(bad[0], bad[1], random.Random(0), bad[2])


MUTANTS = {
    "minhash_similarity": [
        """def minhash_similarity(first, second, k=128, n=2):
    '''Use one hash function: the estimate is 0 or 1.'''
    if k < 1:
        raise ValueError
    def smallest(text):
        return min(zlib.crc32(repr((0, gram)).encode()) for gram in set(ngrams(text, n)))
    return float(smallest(first) == smallest(second))
""",
        """def minhash_similarity(first, second, k=128, n=2):
    '''Compare sets of smallest values instead of entries: shared values count at any place.'''
    if k < 1:
        raise ValueError
    def signature(text):
        grams = set(ngrams(text, n))
        return {min(zlib.crc32(repr((i, gram)).encode()) for gram in grams) for i in range(k)}
    a, b = signature(first), signature(second)
    return len(a & b) / len(a | b)
""",
    ],
    "draw_evenly": [
        """def draw_evenly(levers, count, rng):
    '''Draw each lever independently: combinations come unevenly.'''
    if count < 0 or not levers or not all(levers):
        raise ValueError
    return [tuple(rng.choice(options) for options in levers) for _ in range(count)]
""",
        """def draw_evenly(levers, count, rng):
    '''Go round in order: the first combinations come more often, and always first.'''
    if count < 0 or not levers or not all(levers):
        raise ValueError
    cells = list(product(*levers))
    return [cells[i % len(cells)] for i in range(count)]
""",
    ],
    "diversity_curve": [
        """def diversity_curve(texts, sizes, n=2):
    '''Take the last texts instead of the first.'''
    if not all(1 <= size <= len(texts) for size in sizes):
        raise ValueError
    return [distinct_n(texts[-size:], n) for size in sizes]
""",
        """def diversity_curve(texts, sizes, n=2):
    '''Sort the sizes: values stand at the wrong places.'''
    if not all(1 <= size <= len(texts) for size in sizes):
        raise ValueError
    return [distinct_n(texts[:size], n) for size in sorted(sizes)]
""",
    ],
    "diversity_gap": [
        """def diversity_gap(small, large, rng, draws=20, n=2):
    '''Compare whole sets: the larger one always looks duller.'''
    if len(large) < len(small) or draws < 1:
        raise ValueError
    return distinct_n(small, n) - distinct_n(large, n)
""",
        """def diversity_gap(small, large, rng, draws=20, n=2):
    '''Take the first texts of the larger set as its sample.'''
    if len(large) < len(small) or draws < 1:
        raise ValueError
    return distinct_n(small, n) - distinct_n(large[: len(small)], n)
""",
    ],
}
