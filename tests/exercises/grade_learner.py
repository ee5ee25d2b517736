"""Grade the exercise of the chapter on the learner's tool."""

import random


def _watched(fails, calls: list):
    """Count the questions, and check that the values are not changed afterwards."""

    def ask(values: list[int]) -> bool:
        calls.append(len(values))
        return fails(list(values))

    return ask


RULES = {
    "a value above 9": lambda v: any(x > 9 for x in v),
    "a value below -20": lambda v: any(x < -20 for x in v),
    "two equal values": lambda v: len(set(v)) < len(v),
    "a sum above 100": lambda v: sum(v) > 100,
    "an odd value before an even one": lambda v: any(
        a % 2 and not b % 2 for i, a in enumerate(v) for b in v[i + 1 :]
    ),
    "three multiples of 7 that are not 0": lambda v: sum(x % 7 == 0 and x != 0 for x in v) >= 3,
}


def grade_shrink(module) -> None:
    """Failing, minimal in single steps, in order, and with few questions."""
    rng = random.Random(5)
    for name, fails in RULES.items():
        for size in (4, 30):
            values = [rng.randint(-60, 60) for _ in range(size)]
            while not fails(values):
                values = [rng.randint(-60, 60) for _ in range(size)]
            before = list(values)
            got = module.shrink(values, _watched(fails, []))
            assert values == before, "the caller's list was changed"
            assert fails(got), f"{name}: {got} passes"
            for i, value in enumerate(got):
                assert not fails(got[:i] + got[i + 1 :]), (
                    f"{name}: {got} fails without value {i} too"
                )
                nearer = value - (value > 0) + (value < 0)
                assert value == 0 or not fails([*got[:i], nearer, *got[i + 1 :]]), (
                    f"{name}: in {got} value {i} could be {nearer}"
                )
    kept = module.shrink([5, 1, 9, 2], lambda v: 5 in v and 9 in v and v.index(5) < v.index(9))
    assert kept == [5, 9], f"got {kept}: are the values in their old order?"
    calls = []
    assert module.shrink(list(range(1, 801)), _watched(lambda v: 600 in v, calls)) == [600]
    assert len(calls) < 200, f"{len(calls)} questions for one culprit among 800: try halves first"
    try:
        module.shrink([1, 2], lambda values: False)
    except ValueError:
        return
    raise AssertionError("an input that does not fail was accepted")


MUTANTS = {
    "shrink": [
        '''def shrink(values, fails):
    """Leave values out one at a time: right, and hundreds of questions for one culprit."""
    if not fails(values):
        raise ValueError("passes")
    values = list(values)
    while True:
        before = list(values)
        i = 0
        while i < len(values):
            without = values[:i] + values[i + 1 :]
            if fails(without):
                values = without
            else:
                i += 1
        for i in range(len(values)):
            step = abs(values[i])
            while step:
                nearer = values[i] - step if values[i] > 0 else values[i] + step
                smaller = [*values[:i], nearer, *values[i + 1 :]]
                if step <= abs(values[i]) and fails(smaller):
                    values = smaller
                else:
                    step //= 2
        if values == before:
            return values
''',
        '''def shrink(values, fails):
    """Leave values out, and never make the ones that stay smaller."""
    if not fails(values):
        raise ValueError("passes")
    values, size = list(values), max(1, len(values) // 2)
    while size:
        start = 0
        while start < len(values):
            without = values[:start] + values[start + size :]
            if fails(without):
                values = without
            else:
                start += size
        size //= 2
    return values
''',
        '''def shrink(values, fails):
    """Stop after one pass: a value that became smaller may have made another one needless."""
    if not fails(values):
        raise ValueError("passes")
    values = list(values)
    for i in range(len(values)):
        while values[i]:
            nearer = values[i] - 1 if values[i] > 0 else values[i] + 1
            if not fails([*values[:i], nearer, *values[i + 1 :]]):
                break
            values[i] = nearer
    i = 0
    while i < len(values):
        if fails(values[:i] + values[i + 1 :]):
            del values[i]
        else:
            i += 1
    return values
''',
    ],
}
