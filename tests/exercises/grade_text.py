"""Grade the exercises of the text chapter."""

import math
import random
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


def grade_leak_curve(module) -> None:
    """By hand; then the leaked score must fall with each copy, and much further than the fresh one."""
    got = module.leak_curve(["abcde"], ["abcde"], ["zzzzz"], [0, 1, 3])
    for (test, fresh), number in zip(got, (0, 1, 3)):
        want = -math.log2((number + 2) / (number + 257))
        assert math.isclose(test, want), (
            f"'abcde' read in training and {number} times more costs {test:.4f} bits, "
            f"expected {want:.4f}: one letter is scored, its count is {number + 1}"
        )
        assert math.isclose(fresh, 8.0), (
            f"a letter after an unseen run costs {fresh:.3f}, not 8 bits"
        )
    [(got, _)] = module.leak_curve(["abcd", "efgh"], ["abcde", "xyzxyz"], ["zzzzz"], [0])
    assert math.isclose(got, 8.0), f"got {got:.3f}: does a run cross from one document to the next?"
    lengths = module.leak_curve(["abcde"], ["abcde", "q" * 9], ["zzzzz"], [0])[0][0]
    want = (-math.log2(2 / 257) + 5 * 8) / 6
    assert math.isclose(lengths, want), (
        f"got {lengths:.3f}, expected {want:.3f}: average over letters"
    )
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(3, 6))) for _ in range(150)]
    documents = [" ".join(rng.choices(words, k=30)) for _ in range(300)]
    training, test, fresh = documents[:260], documents[260:280], documents[280:]
    before = list(training), list(test)
    curve = module.leak_curve(training, test, fresh, [0, 1, 4, 16])
    assert (training, test) == before, "the caller's lists were changed"
    leaked, other = [c[0] for c in curve], [c[1] for c in curve]
    assert abs(leaked[0] - other[0]) < 0.15, f"without a leak both are alike, got {curve[0]}"
    assert leaked == sorted(leaked, reverse=True), f"each copy helps the leaked test, got {leaked}"
    gain, honest = leaked[0] - leaked[3], other[0] - other[3]
    assert gain > 2 * max(honest, 0.05), f"{gain:.2f} bits better, fresh text {honest:.2f}"


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
    "leak_curve": [
        '''def leak_curve(training, test, fresh, copies):
    """Put the fresh text into the table as well: both curves then fall, and the leak is invisible."""
    curve = []
    for number in copies:
        table = defaultdict(Counter)
        for text in training + (test + fresh) * number:
            for end in range(4, len(text)):
                table[text[end - 4 : end]][text[end]] += 1
        scores = []
        for documents in (test, fresh):
            bits = [
                -math.log2((table[t[e - 4 : e]][t[e]] + 1) / (table[t[e - 4 : e]].total() + 256))
                for t in documents for e in range(4, len(t))
            ]
            scores.append(sum(bits) / len(bits))
        curve.append(tuple(scores))
    return curve
''',
        '''def leak_curve(training, test, fresh, copies):
    """Join the documents first: runs of letters cross from one to the next."""
    curve = []
    for number in copies:
        table, text = defaultdict(Counter), "".join(training + test * number)
        for end in range(4, len(text)):
            table[text[end - 4 : end]][text[end]] += 1
        scores = []
        for documents in (test, fresh):
            t = "".join(documents)
            bits = [
                -math.log2((table[t[e - 4 : e]][t[e]] + 1) / (table[t[e - 4 : e]].total() + 256))
                for e in range(4, len(t))
            ]
            scores.append(sum(bits) / len(bits))
        curve.append(tuple(scores))
    return curve
''',
        '''def leak_curve(training, test, fresh, copies):
    """Count a copy where the number of copies is meant: any leak is one copy."""
    curve = []
    for number in copies:
        table = defaultdict(Counter)
        for text in training + test * min(number, 1):
            for end in range(4, len(text)):
                table[text[end - 4 : end]][text[end]] += 1
        scores = []
        for documents in (test, fresh):
            bits = [
                -math.log2((table[t[e - 4 : e]][t[e]] + 1) / (table[t[e - 4 : e]].total() + 256))
                for t in documents for e in range(4, len(t))
            ]
            scores.append(sum(bits) / len(bits))
        curve.append(tuple(scores))
    return curve
''',
    ],
}
