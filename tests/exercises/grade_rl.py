"""Grade the exercises of the chapter on reinforcement learning."""

import random

import pytest


def grade_leave_one_out(module) -> None:
    rng = random.Random(0)
    for n in (2, 3, 8):
        rewards = [rng.choice((0.0, 0.5, 1.0)) for _ in range(n)]
        found = module.leave_one_out(rewards)
        for i, advantage in enumerate(found):
            others = rewards[:i] + rewards[i + 1 :]
            wanted = rewards[i] - sum(others) / len(others)
            assert advantage == pytest.approx(wanted), f"{rewards}: try {i} is compared with others"
        assert len(found) == n and sum(found) == pytest.approx(0), "advantages add up to 0"
    for rewards in ([], [1.0]):
        with pytest.raises(ValueError):
            module.leave_one_out(rewards)


def grade_chosen_tokens(module) -> None:
    cases = (
        ([], []),
        ([1, 2, 3], [1, 1, 1]),
        ([1, 8, 5, 9, 2], [1, 0, 0, 0, 1]),
        ([8, 9, 8, 5, 9], [0, 0, 0, 0, 0]),
        ([1, 8, 5, 5], [1, 0, 0, 0]),
        ([1, 8, 8, 5, 9, 4], [1, 0, 0, 0, 0, 1]),
        ([9, 1], [1, 1]),
    )
    for tokens, wanted in cases:
        found = module.chosen_tokens(tokens, 8, 9)
        assert found == wanted, f"{tokens}: {found}, expected {wanted}"


def grade_partial_reward(module) -> None:
    def text(*outputs: str, said: str = "") -> str:
        return "".join(f"<|output_start|>{o}<|output_end|>" for o in outputs) + said

    cases = (
        (text("7", "5", said="It is 5."), 1.0, "right in the end"),
        (text("8", "5", said="It is 5."), 1.0, "right in the end, whatever the way"),
        (text("7", "5", said="It is 6."), 0.5, "both steps, then a slip"),
        (text("7", "5", said="It is 5 or 6."), 0.5, "two numbers are no answer"),
        (text("7", said="It is 7."), 0.25, "one step of two"),
        (text("7", "4", said=""), 0.25, "the second step is wrong"),
        (text("6", "5", said="It is 6."), 0.0, "what follows a mistake does not count"),
        ("It is 4.", 0.0, "no step, no result"),
        (text("7", "5", "5", said="It is 4."), 0.5, "more outputs than steps"),
    )
    for response, wanted, why in cases:
        found = module.partial_reward(response, ["7", "5"], "5")
        assert found == wanted, f"{why}: {found}, expected {wanted}"


def grade_best_group_size(module) -> None:
    sizes = [2, 4, 8, 16, 32]
    best, expected = module.best_group_size([0.5], sizes, 128)
    assert best == 2 and expected == pytest.approx(64 * 0.5), "half of all pairs are mixed"
    best, expected = module.best_group_size([0.5], [8, 4], 30)
    assert best == 4 and expected == pytest.approx(7 * (1 - 2 / 16)), "30 answers are 7 groups of 4"
    assert module.best_group_size([0.0, 1.0], [4, 2], 64) == (2, 0.0), "the smallest of equals"
    for p in (0.02, 0.9):
        best, expected = module.best_group_size([p, 0.5], sizes, 64)
        counts = {n: 64 // n * (2 - p**n - (1 - p) ** n - 2 * 0.5**n) / 2 for n in sizes}
        assert expected == pytest.approx(max(counts.values())) == pytest.approx(counts[best])
    for chances, some in (([], [2]), ([0.5], []), ([1.5], [2]), ([0.5], [1, 2])):
        with pytest.raises(ValueError):
            module.best_group_size(chances, some, 8)


MUTANTS = {
    "leave_one_out": [
        """def leave_one_out(rewards):
    '''Compare with the mean of all.'''
    if len(rewards) < 2:
        raise ValueError
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]
""",
        """def leave_one_out(rewards):
    '''Divide the others' sum by the size of the whole group.'''
    if len(rewards) < 2:
        raise ValueError
    return [r - (sum(rewards) - r) / len(rewards) for r in rewards]
""",
    ],
    "chosen_tokens": [
        """def chosen_tokens(tokens, output_start, output_end):
    '''Train the end marker.'''
    mask, inside = [], False
    for token in tokens:
        if token == output_end:
            inside = False
        inside = inside or token == output_start
        mask.append(0 if inside else 1)
    return mask
""",
        """def chosen_tokens(tokens, output_start, output_end):
    '''Take a stray end for the end of an output that began at the start.'''
    if output_end not in tokens:
        return [1] * len(tokens)
    mask, inside = [], False
    for token in tokens:
        inside = inside or token == output_start
        mask.append(0 if inside else 1)
        inside = inside and token != output_end
    return mask
""",
    ],
    "partial_reward": [
        """def partial_reward(response, values, result):
    '''Count every right output, wherever it stands.'''
    import re
    said = response.rpartition("<|output_end|>")[2]
    if re.findall(r"-?\\d+", said) == [result]:
        return 1.0
    outputs = re.findall(r"<\\|output_start\\|>(.*?)<\\|output_end\\|>", response)
    return 0.5 * sum(a == b for a, b in zip(outputs, values)) / len(values)
""",
        """def partial_reward(response, values, result):
    '''Take the result wherever it is said.'''
    import re
    said = response.rpartition("<|output_end|>")[2]
    if result in said:
        return 1.0
    outputs = re.findall(r"<\\|output_start\\|>(.*?)<\\|output_end\\|>", response)
    right = 0
    while right < min(len(values), len(outputs)) and outputs[right] == values[right]:
        right += 1
    return 0.5 * right / len(values)
""",
    ],
    "best_group_size": [
        """def best_group_size(chances, sizes, budget):
    '''Maximize the share of mixed groups, not their number: always the largest.'''
    if not chances or not sizes or min(sizes) < 2 or not all(0 <= p <= 1 for p in chances):
        raise ValueError
    def expected(n):
        return sum(1 - p**n - (1 - p) ** n for p in chances) / len(chances)
    best = max(sorted(sizes), key=expected)
    return best, budget // best * expected(best)
""",
        """def best_group_size(chances, sizes, budget):
    '''Forget that a group which is solved in every try teaches nothing.'''
    if not chances or not sizes or min(sizes) < 2 or not all(0 <= p <= 1 for p in chances):
        raise ValueError
    def expected(n):
        return budget // n * sum(1 - (1 - p) ** n for p in chances) / len(chances)
    best = max(sorted(sizes), key=expected)
    return best, expected(best)
""",
    ],
}
