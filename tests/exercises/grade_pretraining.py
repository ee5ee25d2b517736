"""Grade the exercises of the pretraining chapter."""

import math
import random


def pack_slowly(lengths: list[int], capacity: int) -> int:
    """Count rows, with documents as numbered items that are struck off."""
    left, rows = dict(enumerate(lengths)), 0
    while left:
        room, rows = capacity - left.pop(min(left)), rows + 1
        while True:
            fitting = sorted((-n, i) for i, n in left.items() if n <= room)
            if not fitting:
                break
            room -= left.pop(fitting[0][1])
    return rows


def grade_padding_share(module) -> None:
    """By hand, then against an independent count on random lengths."""
    share = module.padding_share
    assert share([], 5) == 0.0, "no documents, no rows"
    assert share([10], 10) == 0.0 and share([1], 10) == 0.9, "the last row counts in full"
    assert math.isclose(share([4, 3, 7, 3], 10), 1 - 17 / 20), "rows 4 + 3 + 3 and 7"
    rng = random.Random(0)
    for _ in range(60):
        capacity = rng.randint(5, 40)
        lengths = [rng.randint(1, capacity) for _ in range(rng.randint(1, 25))]
        before = list(lengths)
        got, rows = share(lengths, capacity), pack_slowly(lengths, capacity)
        want = 1 - sum(before) / (rows * capacity)
        assert math.isclose(got, want, abs_tol=1e-9), (
            f"{before}, capacity {capacity}: {got}, not {want}"
        )
        assert lengths == before, "the caller's list must stay as it was"
    try:
        share([3, 11], 10)
    except ValueError as error:
        assert "11" in str(error), f"name the length: {error}"
    else:
        raise AssertionError("a document of 11 tokens in a row of 10 was accepted")


def grade_compute_optimal(module) -> None:
    """The closed form, and depths just above and below what a budget pays."""

    def size(depth: int, vocab_size: int) -> int:
        return 12 * depth * (64 * depth) ** 2 + 2 * vocab_size * 64 * depth

    for flops, ratio in ((1e19, 20.0), (3e20, 20.0), (1e20, 8.0)):
        params, tokens, _ = module.compute_optimal(flops, ratio=ratio)
        assert math.isclose(6 * params * tokens, flops, rel_tol=1e-9), "6ND must spend the budget"
        assert math.isclose(tokens / params, ratio, rel_tol=1e-9), "tokens a parameter"
    for depth in (1, 12, 20, 32):
        for vocab_size in (4096, 65_536):
            exact = 6.0 * 20.0 * size(depth, vocab_size) ** 2
            assert module.compute_optimal(exact * 1.001, vocab_size)[2] == depth
            if depth > 1:
                below = module.compute_optimal(exact * 0.999, vocab_size)[2]
                assert below == depth - 1, f"{below}: depth {depth} costs more than the budget"
    try:
        module.compute_optimal(1e12)
    except ValueError:
        pass
    else:
        raise AssertionError("1e12 operations do not pay for depth 1")


MUTANTS = {
    "padding_share": [
        """def padding_share(lengths, capacity):
    if any(n > capacity for n in lengths):
        raise ValueError(str(max(lengths)))
    rows, room = 0, 0
    for n in lengths:
        if n > room:
            rows, room = rows + 1, capacity
        room -= n
    return 1 - sum(lengths) / (rows * capacity) if rows else 0.0""",
        """def padding_share(lengths, capacity):
    if any(n > capacity for n in lengths):
        raise ValueError(str(max(lengths)))
    waiting, rows = sorted(lengths, reverse=True), 0
    while waiting:
        room, rows = capacity - waiting.pop(0), rows + 1
        while fitting := [n for n in waiting if n <= room]:
            waiting.remove(max(fitting))
            room -= max(fitting)
    return 1 - sum(lengths) / (rows * capacity) if rows else 0.0""",
        """def padding_share(lengths, capacity):
    return 1 - sum(lengths) / (math.ceil(sum(lengths) / capacity) * capacity) if lengths else 0.0""",
    ],
    "compute_optimal": [
        """def compute_optimal(flops, vocab_size=65_536, ratio=20.0):
    params = math.sqrt(flops * ratio / 6)
    depth = max(d for d in range(1, 100) if 12 * d * (64 * d) ** 2 + 128 * d * vocab_size <= params)
    return params, flops / 6 / params, depth""",
        """def compute_optimal(flops, vocab_size=65_536, ratio=20.0):
    params = math.sqrt(flops / 6 / ratio)
    if 12 * 64**2 + 128 * vocab_size > params:
        raise ValueError("too small")
    depth = 1
    while 12 * depth * (64 * depth) ** 2 + 128 * depth * vocab_size <= params:
        depth += 1
    return params, ratio * params, depth""",
        """def compute_optimal(flops, vocab_size=65_536, ratio=20.0):
    params = math.sqrt(flops / 6 / ratio)
    sizes = [d for d in range(1, 200) if 12 * d * (64 * d) ** 2 <= params]
    if not sizes:
        raise ValueError("too small")
    return params, ratio * params, max(sizes)""",
    ],
}
