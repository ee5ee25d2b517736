"""Grade the exercise of the start chapter."""

import math
import random


def _text(seed: int, size: int) -> str:
    """Write words of a tiny language, so that longer contexts first help and then only remember."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 6))) for _ in range(300)]
    drawn = []
    while sum(map(len, drawn)) < size:
        drawn.append(words[int(300 * rng.random() ** 2)] + " ")
    return "".join(drawn)


def grade_context_curve(module) -> None:
    """By hand on four letters; then the shape of both curves on a small language."""
    (got, _), *_ = module.context_curve("aabb", "ab", [0])
    assert math.isclose(got, 1.0), f"'aabb' without context costs {got:.3f} bits a letter, not 1"
    got = module.context_curve("abab", "ab", [1])[0]
    want = (-math.log2(3 / 4) * 2 - math.log2(2 / 3)) / 3
    assert math.isclose(got[0], want), (
        f"'abab' with one letter of context costs {got[0]:.4f} bits on itself, expected {want:.4f}: "
        "a came before b twice, b before a once; is the first letter, without a context, left out?"
    )
    assert math.isclose(got[1], -math.log2(3 / 4)), (
        f"'ab' after training on 'abab' costs {got[1]:.4f} bits, expected {-math.log2(3 / 4):.4f}: "
        "does the held-out text fill the table?"
    )
    got = module.context_curve("ab", "ac", [1])[0][1]
    assert math.isclose(got, -math.log2(1 / 3)), (
        f"a letter never seen after 'a' costs {got:.4f} bits, expected {-math.log2(1 / 3):.4f}: "
        "add one to its count, and V = 2 to the count of the context"
    )
    whole = _text(1, 30_000)
    curve = module.context_curve(whole[:20_000], whole[20_000:], [0, 1, 2, 3, 6, 10])
    seen, unseen = [c[0] for c in curve], [c[1] for c in curve]
    assert seen[0] > seen[1] > seen[2], f"more context helps at first, but training gives {seen}"
    assert unseen[3] < unseen[0] - 0.5, f"three letters help on unseen text too, got {unseen}"
    assert unseen[5] > min(unseen) + 0.5, f"ten letters are mostly unseen contexts, got {unseen}"
    assert unseen[5] > seen[5] + 0.5, f"the gap opens with the context: {seen[5]} and {unseen[5]}"


MUTANTS = {
    "context_curve": [
        '''def context_curve(training, held_out, lengths):
    """Fill the table from both texts: the held-out curve then falls as well."""
    size, curve = len(set(training)), []
    for length in lengths:
        table = defaultdict(Counter)
        for text in (training, held_out):
            for end in range(length, len(text)):
                table[text[end - length : end]][text[end]] += 1
        bits = []
        for text in (training, held_out):
            total = 0.0
            for end in range(length, len(text)):
                seen = table[text[end - length : end]]
                total -= math.log2((seen[text[end]] + 1) / (seen.total() + size))
            bits.append(total / (len(text) - length))
        curve.append(tuple(bits))
    return curve
''',
        '''def context_curve(training, held_out, lengths):
    """Leave out letters that were never seen, which hides the cost of long contexts."""
    curve = []
    for length in lengths:
        table = defaultdict(Counter)
        for end in range(length, len(training)):
            table[training[end - length : end]][training[end]] += 1
        bits = []
        for text in (training, held_out):
            costs = []
            for end in range(length, len(text)):
                seen = table[text[end - length : end]]
                if seen[text[end]]:
                    costs.append(-math.log2(seen[text[end]] / seen.total()))
            bits.append(sum(costs) / max(1, len(costs)))
        curve.append(tuple(bits))
    return curve
''',
        '''def context_curve(training, held_out, lengths):
    """Divide by all letters, also by those at the start that have no whole context and cost nothing."""
    size, curve = len(set(training)), []
    for length in lengths:
        table = defaultdict(Counter)
        for end in range(length, len(training)):
            table[training[end - length : end]][training[end]] += 1
        bits = []
        for text in (training, held_out):
            total = 0.0
            for end in range(length, len(text)):
                seen = table[text[end - length : end]]
                total -= math.log2((seen[text[end]] + 1) / (seen.total() + size))
            bits.append(total / len(text))
        curve.append(tuple(bits))
    return curve
''',
    ],
}
