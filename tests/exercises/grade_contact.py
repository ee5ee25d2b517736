"""Grade the exercises of the chapter on first contact."""

import random
import zlib

import pytest

from nanochat_lib.tasks.tinyworld import message_key


def grade_split_by_key(module) -> None:
    rng = random.Random(5)
    words = "how are you where is it what now then who".split()
    lines = []
    for _ in range(120):
        line = " ".join(rng.choices(words, k=rng.randint(1, 4)))
        lines += [line, line.upper() + "!!", line.capitalize() + "?"]
    lines += ["???", "...", "\U0001f642"]
    rng.shuffle(lines)
    for parts in (2, 5, 10):
        train, heldout = module.split_by_key(lines, parts)
        assert sorted(train + heldout) == sorted(set(lines)), "each phrase once, on one side"
        for line in lines:
            out = zlib.crc32(message_key(line).encode()) % parts == 0
            assert (line in heldout) == out, f"{line!r} is on the wrong side"
        order = [line for line in dict.fromkeys(lines) if line in set(train)]
        assert list(train) == order, "the order of the list is kept"
        some = lines[:40]
        assert set(module.split_by_key(some, parts)[1]) == set(heldout) & set(some), (
            "the side of a phrase depends on the rest of the list"
        )
    with pytest.raises(ValueError):
        module.split_by_key(lines, 1)


def grade_refusal_threshold(module) -> None:
    rng = random.Random(2)
    infinity = float("inf")
    for _ in range(60):
        known = [rng.randint(-9, 4) / 2 for _ in range(rng.randint(1, 30))]
        unknown = [rng.randint(-4, 9) / 2 for _ in range(rng.randint(1, 30))]
        for most in (0.0, 0.02, 0.3, 1.0):
            chosen = module.refusal_threshold(known, unknown, most)
            assert chosen in {*known, *unknown, infinity}, f"{chosen} is no measured margin"
            refused = sum(k >= chosen for k in known)
            assert refused <= most * len(known), f"{refused} of {len(known)} known are refused"
            caught = sum(u >= chosen for u in unknown)
            for other in {*known, *unknown, infinity}:
                if sum(k >= other for k in known) <= most * len(known):
                    also = sum(u >= other for u in unknown)
                    assert also <= caught, f"{other} refuses {also} unknown, {chosen} only {caught}"
                    assert also < caught or other <= chosen, f"{other} does as well and is higher"
    assert module.refusal_threshold([-5, -1, 2], [1, 3], 0.34) == 1
    for bad in (([], [1.0], 0.1), ([1.0], [], 0.1), ([1.0], [1.0], 1.5), ([1.0], [1.0], -0.1)):
        with pytest.raises(ValueError):
            module.refusal_threshold(*bad)


def grade_who_opens_rows(module) -> None:
    """By hand first, then the sign: with a choice, what is asked for most opens least."""
    kinds, lengths = ["a", "b", "b", "a"], [6, 4, 3, 7]
    # rows of 10, the next one or two to choose from: 6+4 | 3+7
    assert module.who_opens_rows(kinds, lengths, 10, 2) == {"a": 1.0, "b": 1.0}
    # nothing to choose from: each opens its own row
    assert module.who_opens_rows(kinds, lengths, 10, 0) == {"a": 1.0, "b": 1.0}
    # 5 alone fits nothing but 5: the longest that fits is taken, not the first
    opens = module.who_opens_rows(["x", "y", "z", "z"], [5, 2, 5, 3], 10, 3)  # 5+5 | 2+3
    assert opens == {"x": 2.0, "y": 2.0, "z": 0.0}
    rng = random.Random(1)
    kinds = rng.choices(("short", "long"), k=2_000)
    lengths = [(20 if kind == "short" else 60) + rng.randint(-5, 5) for kind in kinds]
    opens = module.who_opens_rows(kinds, lengths, 256, 64)
    assert opens["long"] < 0.5 < 1.3 < opens["short"], opens
    fair = module.who_opens_rows(kinds, lengths, 256, 0)
    assert all(abs(ratio - 1) < 0.2 for ratio in fair.values()), fair
    for bad in (([], [], 9, 2), (["a"], [1, 2], 9, 2), (["a"], [10], 9, 2)):
        with pytest.raises(ValueError):
            module.who_opens_rows(*bad)


MUTANTS = {
    "split_by_key": [
        """def split_by_key(lines, parts=10):
    '''Hash the phrase instead of its key: spellings of one phrase fall on both sides.'''
    if parts < 2:
        raise ValueError
    train, heldout = [], []
    for line in dict.fromkeys(lines):
        (heldout if zlib.crc32(line.encode()) % parts == 0 else train).append(line)
    return train, heldout
""",
        """def split_by_key(lines, parts=10):
    '''Hold out every tenth key of the list: the side depends on what else is in it.'''
    if parts < 2:
        raise ValueError
    keys = sorted({message_key(line) for line in lines})
    out = set(keys[::parts])
    lines = list(dict.fromkeys(lines))
    return [x for x in lines if message_key(x) not in out], [x for x in lines if message_key(x) in out]
""",
    ],
    "refusal_threshold": [
        """def refusal_threshold(known, unknown, most):
    '''Take the quantile of the known: too high where a lower one refuses nobody more.'''
    if not known or not unknown or not 0 <= most <= 1:
        raise ValueError
    allowed = int(most * len(known))
    ranked = sorted(known, reverse=True)
    return ranked[allowed - 1] if allowed else float('inf')
""",
        """def refusal_threshold(known, unknown, most):
    '''Refuse above the threshold, not from it on.'''
    if not known or not unknown or not 0 <= most <= 1:
        raise ValueError
    best = [t for t in {*known, *unknown, float('inf')} if sum(k > t for k in known) <= most * len(known)]
    return max(best, key=lambda t: (sum(u > t for u in unknown), t))
""",
    ],
    "who_opens_rows": [
        """def who_opens_rows(kinds, lengths, capacity, buffer_size):
    '''Fill up in order instead of with the longest that fits.'''
    if not kinds or len(kinds) != len(lengths) or max(lengths) > capacity:
        raise ValueError
    waiting, openers = list(zip(kinds, lengths)), []
    while waiting:
        kind, length = waiting.pop(0)
        openers.append(kind)
        room = capacity - length
        while waiting and buffer_size and waiting[0][1] <= room:
            room -= waiting.pop(0)[1]
    n = len(kinds)
    return {k: (openers.count(k) / len(openers)) / (kinds.count(k) / n) for k in dict.fromkeys(kinds)}
""",
        """def who_opens_rows(kinds, lengths, capacity, buffer_size):
    '''Return plain shares of the rows, not relative to how many there are of a kind.'''
    if not kinds or len(kinds) != len(lengths) or max(lengths) > capacity:
        raise ValueError
    waiting, openers = list(zip(kinds, lengths)), []
    while waiting:
        kind, length = waiting.pop(0)
        openers.append(kind)
        room = capacity - length
        while (best := best_fit([x for _, x in waiting[:buffer_size]], room)) is not None:
            room -= waiting.pop(best)[1]
    return {kind: openers.count(kind) / len(openers) for kind in dict.fromkeys(kinds)}
""",
    ],
}
