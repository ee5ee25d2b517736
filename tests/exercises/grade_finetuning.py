"""Grade the exercises of the chapter on fine-tuning."""

import random

import pytest
from scipy.stats import binomtest


def half_width(right: int, n: int) -> float:
    interval = binomtest(right, n).proportion_ci(0.95, method="wilson")
    return (interval.high - interval.low) / 2


def grade_questions_needed(module) -> None:
    for rate, width in ((0.5, 0.1), (0.9, 0.1), (0.97, 0.05), (0.0, 0.05), (1.0, 0.1), (0.7, 0.2)):
        n = module.questions_needed(rate, width)
        assert n == 1 or half_width(round(rate * (n - 1)), n - 1) > width, (
            f"{n} is not the smallest"
        )
        for more in range(n, n + 60):
            assert half_width(round(rate * more), more) <= width + 1e-9, (
                f"{n} works, {more} does not"
            )
    assert module.questions_needed(0.5, 0.03) == 1064
    for rate, width in ((-0.1, 0.1), (1.1, 0.1), (0.5, 0.0), (0.5, 0.5)):
        with pytest.raises(ValueError):
            module.questions_needed(rate, width)


def grade_paired_p_value(module) -> None:
    rng = random.Random(3)
    for _ in range(40):
        n, skill = rng.randint(1, 60), rng.random()
        first = [rng.random() < skill for _ in range(n)]
        second = [rng.random() < 0.6 for _ in range(n)]
        wins = sum(b and not a for a, b in zip(first, second))
        differ = sum(a != b for a, b in zip(first, second))
        expected = binomtest(wins, differ).pvalue if differ else 1.0
        assert module.paired_p_value(first, second) == pytest.approx(expected), (wins, differ)
    assert module.paired_p_value([True, False], [True, False]) == 1.0
    with pytest.raises(ValueError):
        module.paired_p_value([True], [True, False])


MUTANTS = {
    "questions_needed": [
        """def questions_needed(rate, half_width):
    if not 0 <= rate <= 1 or not 0 < half_width < 0.5:
        raise ValueError
    n = 1
    while True:
        low, high = wilson_interval(round(rate * n), n)
        if (high - low) / 2 <= half_width:
            return n
        n += 1
""",
        """def questions_needed(rate, half_width):
    if not 0 <= rate <= 1 or not 0 < half_width < 0.5:
        raise ValueError
    return max(1, math.ceil(1.96**2 * rate * (1 - rate) / half_width**2))
""",
    ],
    "paired_p_value": [
        """def paired_p_value(first, second):
    if len(first) != len(second):
        raise ValueError
    wins = sum(b and not a for a, b in zip(first, second))
    n = sum(a != b for a, b in zip(first, second))
    k = min(wins, n - wins)
    return sum(math.comb(n, i) for i in range(k + 1)) / 2**n
""",
        """def paired_p_value(first, second):
    if len(first) != len(second):
        raise ValueError
    wins = sum(b and not a for a, b in zip(first, second))
    n = sum(a != b for a, b in zip(first, second))
    k = min(wins, n - wins)
    return 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n
""",
        """def paired_p_value(first, second):
    if len(first) != len(second):
        raise ValueError
    n, k = len(first), min(sum(first), sum(second))
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
""",
    ],
}
