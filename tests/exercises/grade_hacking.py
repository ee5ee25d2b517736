"""Grade the exercises of the chapter on wrong rewards."""

import pytest


def grade_holes(module) -> None:
    found, graders = module.holes(), module.GRADERS
    assert set(found) == set(graders), "one entry for each grader"
    hollow = {"contains", "not_wrong", "ends_so"}
    for name, response in found.items():
        if name in hollow:
            assert response is not None, f"{name} has a hole"
            assert len(response) <= 1_000, f"{name}: {len(response)} characters are too many"
            missed = [n for n in range(100) if not graders[name](response, n)]
            assert not missed, f"{name}: your response fails for {missed[:5]}"
        else:
            assert response is None, f"{name}: there is no such response of 1,000 characters"


def grade_audit(module) -> None:
    pairs = [("3", "4"), (" 5", "5"), ("no", "no"), ("no", "7"), ("3", "8 ")]
    share, frequent = module.audit(pairs, 2)
    assert share == pytest.approx(3 / 5), "three of five pairs differ after stripping"
    assert frequent == ["no", "3", "5"], "most frequent first, then in alphabetical order"
    assert module.audit(pairs, 4)[1] == []
    assert module.audit([("a", "a")], 1) == (0.0, ["a"])
    with pytest.raises(ValueError):
        module.audit([], 1)


def grade_price_of_silence(module) -> None:
    chances = [0.0, 0.25, 0.5, 0.75, 1.0]
    assert module.price_of_silence(chances, 0.0, 0.0) == (1.0, 0.5), "nothing to lose: answer all"
    share, right = module.price_of_silence(chances, -1.0, 0.0)
    assert share == pytest.approx(3 / 5) and right == pytest.approx(0.75), "at equal pay it answers"
    share, right = module.price_of_silence(chances, -3.0, 0.0)
    assert share == pytest.approx(2 / 5) and right == pytest.approx(0.875)
    share, right = module.price_of_silence(chances, 0.0, 0.6)
    assert share == pytest.approx(2 / 5), "silence that pays 0.6 is chosen below 0.6"
    assert module.price_of_silence([0.1, 0.9], 0.0, 1.0) == (0.0, None), (
        "silence pays like being right"
    )
    for bad in ([], [1.2], [-0.1]):
        with pytest.raises(ValueError):
            module.price_of_silence(bad, 0.0, 0.0)


MUTANTS = {
    "holes": [
        """def holes():
    '''Believe that a grader which reads the last number can be fooled by naming all.'''
    numbers = " ".join(map(str, range(100)))
    many = " ".join(f"= {n}." for n in range(100))
    return {"contains": numbers, "a_line": None, "last_number": numbers, "not_wrong": "",
            "ends_so": many, "whole": None}
""",
        """def holes():
    '''Overlook that silence is never wrong.'''
    numbers = " ".join(map(str, range(100)))
    many = " ".join(f"= {n}." for n in range(100))
    return {"contains": numbers, "a_line": None, "last_number": None, "not_wrong": None,
            "ends_so": many, "whole": None}
""",
    ],
    "audit": [
        """def audit(pairs, at_least):
    '''Compare without stripping.'''
    if not pairs:
        raise ValueError
    counts = {}
    for pair in pairs:
        for reply in pair:
            counts[reply.strip()] = counts.get(reply.strip(), 0) + 1
    frequent = sorted((-n, r) for r, n in counts.items() if n >= at_least)
    return sum(a != b for a, b in pairs) / len(pairs), [r for _, r in frequent]
""",
        """def audit(pairs, at_least):
    '''Count a reply once a pair.'''
    if not pairs:
        raise ValueError
    stripped = [(a.strip(), b.strip()) for a, b in pairs]
    counts = {}
    for pair in stripped:
        for reply in set(pair):
            counts[reply] = counts.get(reply, 0) + 1
    frequent = sorted((-n, r) for r, n in counts.items() if n >= at_least)
    return sum(a != b for a, b in stripped) / len(pairs), [r for _, r in frequent]
""",
    ],
    "price_of_silence": [
        """def price_of_silence(chances, wrong, silence):
    '''Forget what a wrong answer costs.'''
    if not chances or not all(0 <= p <= 1 for p in chances):
        raise ValueError
    answered = [p for p in chances if p >= silence]
    return len(answered) / len(chances), sum(answered) / len(answered) if answered else None
""",
        """def price_of_silence(chances, wrong, silence):
    '''Count right answers among all questions.'''
    if not chances or not all(0 <= p <= 1 for p in chances):
        raise ValueError
    answered = [p for p in chances if p + (1 - p) * wrong >= silence]
    return len(answered) / len(chances), sum(answered) / len(chances) if answered else None
""",
    ],
}
