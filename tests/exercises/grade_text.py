"""Grade the exercises of the text chapter."""

import math
from itertools import count, islice


def grade_shuffle_stream(module) -> None:
    """Every document once, a bounded buffer, a real shuffle, and the same one for the same seed."""
    texts = [str(i) for i in range(2_000)]
    for size in (1, 7, 100, 5_000):
        shuffled = list(module.shuffle_stream(iter(texts), size, 3))
        assert sorted(shuffled, key=int) == texts, f"size {size}: {len(shuffled)} came out of 2000"
        assert (shuffled == texts) == (size == 1), f"size {size}: is the order as it should be?"
        assert list(module.shuffle_stream(iter(texts), size, 3)) == shuffled, "not repeatable"
    assert list(module.shuffle_stream(iter(texts), 100, 4)) != list(
        module.shuffle_stream(iter(texts), 100, 3)
    ), "the seed changes nothing"
    taken = 0

    def watched():
        nonlocal taken
        for taken in count(1):
            yield str(taken)

    stream = module.shuffle_stream(watched(), 50, 1)
    for given in range(1, 200):
        next(stream)
        assert taken - given <= 50, f"{taken} documents taken to give {given}: the buffer is 50"
    taken, known, held, ranks = 0, 0, [], []
    stream = module.shuffle_stream(watched(), 50, 2)
    for _ in range(3_000):
        given = int(next(stream))
        held += range(known + 1, taken + 1)
        known = taken
        ranks.append(held.index(given) * 10 // len(held))
        held.remove(given)
    shares = [ranks.count(tenth) / len(ranks) for tenth in range(10)]
    assert min(shares) > 0.05, (
        f"from the oldest to the newest tenth of the buffer came {shares}: each should give 0.1"
    )
    late = [i - int(text) for i, text in enumerate(module.shuffle_stream(iter(texts), 100, 3))]
    assert sum(lag > 100 for lag in late) > 200, "no document waits long: is the choice random?"
    assert list(module.shuffle_stream([], 5, 1)) == []
    try:
        list(module.shuffle_stream(["a"], 0, 1))
    except ValueError:
        return
    raise AssertionError("a buffer of 0 was accepted")


def grade_resemblance(module) -> None:
    """Sets of word runs, by hand and on short, repeated and empty texts."""
    cases = [
        ("a b c d", "a b c d", 2, 1.0),
        ("a b c d", "b c d e", 2, 1 / 2),
        ("a b c d", "d c b a", 2, 0.0),
        ("a b c d", "d c b a", 1, 1.0),
        ("a b a b a b", "a b a", 2, 1.0),
        ("The  Cat\nsat", "the cat SAT", 3, 1.0),
        ("the cat", "the cat sat on", 3, 0.0),
        ("the cat", "the cat", 3, 1.0),
        ("cat", "dog", 3, 0.0),
        ("", "", 3, 1.0),
        ("", "cat", 1, 0.0),
        ("ab c", "a bc", 2, 0.0),
    ]
    for a, b, n, expected in cases:
        for one, other in ((a, b), (b, a)):
            got = module.resemblance(one, other, n)
            assert math.isclose(got, expected), f"{one!r}, {other!r}, n={n}: {got}, not {expected}"
    words = [f"w{i}" for i in islice(count(), 60)]
    changed = [*words[:30], "x", *words[31:]]
    assert math.isclose(module.resemblance(" ".join(words), " ".join(changed), 3), 55 / 61)


MUTANTS = {
    "shuffle_stream": [
        '''def shuffle_stream(documents, size, seed):
    """Give out the oldest or the newest, and nothing between."""
    if size < 1:
        raise ValueError(f"{size}")
    generator, held = local_generator("shuffle_stream", seed), []
    for document in documents:
        held.append(document)
        if len(held) == size:
            yield held.pop(generator.choice([0, -1]))
    generator.shuffle(held)
    yield from held
''',
        '''def shuffle_stream(documents, size, seed):
    """Forget what is held when the stream ends."""
    if size < 1:
        raise ValueError(f"{size}")
    generator, held = local_generator("shuffle_stream", seed), []
    for document in documents:
        held.append(document)
        if len(held) == size:
            yield held.pop(generator.randrange(size))
''',
        '''def shuffle_stream(documents, size, seed):
    """Read everything first."""
    if size < 1:
        raise ValueError(f"{size}")
    held = list(islice(documents, 1_000_000))
    if size > 1:
        local_generator("shuffle_stream", seed).shuffle(held)
    yield from held
''',
        '''def shuffle_stream(documents, size, seed):
    """Shuffle block by block: a document never waits longer than its block."""
    if size < 1:
        raise ValueError(f"{size}")
    generator, documents = local_generator("shuffle_stream", seed), iter(documents)
    while block := list(islice(documents, size)):
        generator.shuffle(block)
        yield from block
''',
    ],
    "resemblance": [
        '''def resemblance(a, b, n):
    """Count runs instead of collecting them in a set."""
    from collections import Counter

    shingles = []
    for words in (a.lower().split(), b.lower().split()):
        starts = range(max(1, len(words) - n + 1))
        shingles.append(Counter(tuple(words[i : i + n]) for i in starts))
    both, either = shingles[0] & shingles[1], shingles[0] | shingles[1]
    return both.total() / either.total()
''',
        '''def resemblance(a, b, n):
    """Divide by the smaller set: containment, not resemblance."""
    shingles = []
    for words in (a.lower().split(), b.lower().split()):
        starts = range(max(1, len(words) - n + 1))
        shingles.append({tuple(words[i : i + n]) for i in starts})
    return len(shingles[0] & shingles[1]) / min(len(shingles[0]), len(shingles[1]))
''',
        '''def resemblance(a, b, n):
    """Glue the words of a run together without a separator."""
    shingles = []
    for words in (a.lower().split(), b.lower().split()):
        starts = range(max(1, len(words) - n + 1))
        shingles.append({"".join(words[i : i + n]) for i in starts})
    return len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])
''',
    ],
}
