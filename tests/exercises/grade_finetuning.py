"""Grade the exercises of the chapter on fine-tuning."""

import math
import random

import pytest
import torch
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


class _Numbers(torch.nn.Module):
    """A few weights that are drawn to the targets of the batches; it notes which batches it met."""

    met: list = []

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(4))

    def forward(self, inputs, targets):
        if torch.is_grad_enabled():
            type(self).met.append(inputs.item())
        return (self.w - targets).square().mean()


def grade_forgetting_curve(module) -> None:
    """The order of the batches, the result by hand, then the sign: old text keeps the old."""
    old = [(torch.tensor(-1.0 - i), torch.full((4,), -1.0)) for i in range(40)]
    new = [(torch.tensor(1.0 + i), torch.full((4,), 1.0)) for i in range(40)]
    tests = (torch.tensor(0.0), torch.full((4,), -1.0)), (torch.tensor(0.0), torch.full((4,), 1.0))
    shares, curve = [0.0, 0.25, 0.5, 0.6], []
    for share in shares:
        _Numbers.met = []
        curve += module.forgetting_curve(_Numbers, old, new, *tests, 0.05, 20, [share])
        want, o, n = [], iter(old), iter(new)
        reference = _Numbers()
        optimizer = torch.optim.Adam(reference.parameters(), lr=0.05)
        met = list(_Numbers.met)
        for i in range(20):
            batch = next(o if int((i + 1) * share) > int(i * share) else n)
            want.append(batch[0].item())
            optimizer.zero_grad()
            reference(*batch).backward()
            optimizer.step()
        assert met == want, (
            f"share {share}: batches {met[:6]} ... were trained on, expected {want[:6]} ... (old ones "
            "are negative, new ones positive, each list in order)"
        )
        with torch.no_grad():
            right = [reference(*test).item() for test in tests]
        assert all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(curve[-1], right)), (
            f"share {share}: losses {curve[-1]} on the old and the new test, expected {right}"
        )
    kept = [row[0] for row in curve]
    assert kept[0] > kept[1] > kept[2], f"more old text keeps more of the old: {kept}"
    whole = module.forgetting_curve(_Numbers, old, new, *tests, 0.05, 20, shares)
    assert whole == curve, "the shares of one call differ from single ones: a fresh start for each"


MUTANTS = {
    "questions_needed": [
        """def questions_needed(rate, half_width):
    '''Stop at the first n that is narrow enough: a larger one may be too wide again, by rounding.'''
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
    '''Use the plain normal interval, which has no width at rates of 0 and 1.'''
    if not 0 <= rate <= 1 or not 0 < half_width < 0.5:
        raise ValueError
    return max(1, math.ceil(1.96**2 * rate * (1 - rate) / half_width**2))
""",
    ],
    "paired_p_value": [
        """def paired_p_value(first, second):
    '''Take one tail only: either model may be the better one.'''
    if len(first) != len(second):
        raise ValueError
    wins = sum(b and not a for a, b in zip(first, second))
    n = sum(a != b for a, b in zip(first, second))
    k = min(wins, n - wins)
    return sum(math.comb(n, i) for i in range(k + 1)) / 2**n
""",
        """def paired_p_value(first, second):
    '''Double the tail, and let a probability exceed 1.'''
    if len(first) != len(second):
        raise ValueError
    wins = sum(b and not a for a, b in zip(first, second))
    n = sum(a != b for a, b in zip(first, second))
    k = min(wins, n - wins)
    return 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n
""",
        """def paired_p_value(first, second):
    '''Compare the totals, and forget that both answered the same questions.'''
    if len(first) != len(second):
        raise ValueError
    n, k = len(first), min(sum(first), sum(second))
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
""",
    ],
    "forgetting_curve": [
        '''def forgetting_curve(make_model, old, new, old_test, new_test, lr, steps, shares):
    """Do all old steps first: they are forgotten again by the end."""
    curve = []
    for share in shares:
        model = make_model()
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        n_old = int(share * steps)
        for inputs, targets in old[:n_old] + new[: steps - n_old]:
            optimizer.zero_grad()
            model(inputs, targets).backward()
            optimizer.step()
        with torch.no_grad():
            curve.append((model(*old_test).item(), model(*new_test).item()))
    return curve
''',
        '''def forgetting_curve(make_model, old, new, old_test, new_test, lr, steps, shares):
    """Keep one model for all shares."""
    curve, model = [], make_model()
    for share in shares:
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        old_batches, new_batches = iter(old), iter(new)
        for i in range(steps):
            due = int((i + 1) * share) > int(i * share)
            optimizer.zero_grad()
            model(*next(old_batches if due else new_batches)).backward()
            optimizer.step()
        with torch.no_grad():
            curve.append((model(*old_test).item(), model(*new_test).item()))
    return curve
''',
        '''def forgetting_curve(make_model, old, new, old_test, new_test, lr, steps, shares):
    """Skip a batch of both lists at every step."""
    curve = []
    for share in shares:
        model = make_model()
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        for i in range(steps):
            due = int((i + 1) * share) > int(i * share)
            optimizer.zero_grad()
            model(*(old if due else new)[i]).backward()
            optimizer.step()
        with torch.no_grad():
            curve.append((model(*old_test).item(), model(*new_test).item()))
    return curve
''',
    ],
}
