"""Grade the exercises of the chapter on TinyWorld."""

import math
import random
from collections import Counter

import pytest
import torch

from nanochat_lib.model.gpt import GPT, GPTConfig


def grade_bits_per_word(module) -> None:
    assert math.isclose(module.bits_per_word(["a b a c"]), 2 / 3)
    assert module.bits_per_word(["one two", "one two"]) == 0.0
    assert module.bits_per_word(["a", "b c"]) == 0.0, "a lone word has no neighbour"
    assert math.isclose(module.bits_per_word(["a a b"]), 1.0)
    # The last word of a document is followed by nothing, and must not count as a first.
    assert module.bits_per_word(["a b a"]) == 0.0, "is the last word counted as a first?"
    assert math.isclose(module.bits_per_word(["a b", "a c"]), 1.0), "within a document only"
    rng = random.Random(0)
    text = " ".join(rng.choice("abcd") for _ in range(20_000))
    assert abs(module.bits_per_word([text]) - 2.0) < 0.01, "four equally likely words are 2 bits"
    with pytest.raises(ValueError):
        module.bits_per_word(["one", ""])


def grade_train_on_facts(module) -> None:
    """The returned shares are what the model itself answers; told is known, never told is not."""
    rng = random.Random(2)
    values = rng.sample(range(20, 40), 20)
    facts = [(a, values[a]) for a in range(20)]
    both = facts[:12]
    model = GPT(GPTConfig(64, 2, 2, sequence_len=4, vocab_size=43, n_layer=2))
    shares = module.train_on_facts(model, list(facts), list(both), 200)

    @torch.no_grad()
    def right(questions: list[tuple[list[int], int]]) -> float:
        said = model(torch.tensor([asked for asked, _ in questions]))[:, -1].argmax(-1).tolist()
        return sum(s == answer for s, (_, answer) in zip(said, questions)) / len(questions)

    want = (
        right([([40, a, 41], b) for a, b in facts]),
        right([([40, b, 42], a) for a, b in both]),
        right([([40, b, 42], a) for a, b in facts[12:]]),
    )
    assert want[0] == 1.0, f"the model knows {want[0]:.0%} of the facts forwards after 200 steps"
    assert want[1] == 1.0, f"of the facts told backwards too, it knows {want[1]:.0%} that way"
    assert want[2] < 0.5, f"it answers {want[2]:.0%} backwards of what was only told forwards"
    assert all(abs(a - b) < 1e-9 for a, b in zip(shares, want)), (
        f"returned {shares}; asked by the grader, the model answers {want}"
    )
    fresh = GPT(GPTConfig(64, 2, 2, sequence_len=4, vocab_size=43, n_layer=2))
    untrained = module.train_on_facts(fresh, list(facts), list(both), 0)
    assert max(untrained) < 0.5, f"no step of training, and yet {untrained}"


def grade_compositional_split(module) -> None:
    """Sizes, what stays in training, order, chance, and a table on which greed is enough."""
    split = module.compositional_split
    full = [(e, r) for e in "abcdefgh" for r in "uvwxyz"]
    for n, keep, seed in (
        (0, 1, 0),
        (10, 1, 0),
        (20, 2, 0),
        *((34, 1, seed) for seed in range(16)),
    ):
        training, held = split(list(full), n, keep, seed)
        assert len(held) == n, f"asked for {n}, held out {len(held)}"
        assert sorted(training + held) == sorted(full) and not set(training) & set(held)
        for half in (0, 1):
            left = Counter(pair[half] for pair in training)
            few = [k for k in {p[half] for p in full} if left[k] < keep]
            assert not few, (
                f"n={n}, keep={keep}: {few[0]!r} keeps only {left[few[0]]} training pairs"
            )
        assert training == [p for p in full if p in training], "the order of the pairs was lost"
        assert held == [p for p in full if p in held], "the order of the pairs was lost"
    assert split(full, 10, 1, 3) == split(full, 10, 1, 3), "the same seed, another split"
    assert split(full, 10, 1, 3) != split(full, 10, 1, 4), "the seed changes nothing"
    often = Counter(pair for seed in range(60) for pair in split(full, 12, 1, seed)[1])
    assert len(often) == 48 and max(often.values()) < 35, "some pairs are held out far too often"
    lone = [("a", "u"), ("a", "v"), ("b", "u"), ("b", "v"), ("c", "w")]
    for seed in range(20):
        assert ("c", "w") not in split(lone, 1, 1, seed)[1], "c and w occur once and must stay"
    for pairs, n, keep in ((lone, 3, 1), ([("a", "u")], 1, 1), (full, 48, 1), ([], 1, 1)):
        with pytest.raises(ValueError):
            split(pairs, n, keep, 0)


MUTANTS = {
    "bits_per_word": [
        """def bits_per_word(documents):
    '''Counts the last word of each document as if something followed it.'''
    pairs, firsts = Counter(), Counter()
    for text in documents:
        words = text.split()
        pairs.update(zip(words, words[1:]))
        firsts.update(words)
    if not pairs:
        raise ValueError("no pairs")
    return sum(-n * math.log2(n / firsts[a]) for (a, _), n in pairs.items()) / sum(pairs.values())
""",
        """def bits_per_word(documents):
    '''The entropy of pairs, not of a word given the one before.'''
    pairs = Counter()
    for text in documents:
        words = text.split()
        pairs.update(zip(words, words[1:]))
    total = sum(pairs.values())
    if not total:
        raise ValueError("no pairs")
    return sum(-n / total * math.log2(n / total) for n in pairs.values())
""",
        """def bits_per_word(documents):
    '''Neighbours across documents.'''
    words = " ".join(documents).split()
    pairs, firsts = Counter(zip(words, words[1:])), Counter(words[:-1])
    if not pairs:
        raise ValueError("no pairs")
    return sum(-n * math.log2(n / firsts[a]) for (a, _), n in pairs.items()) / sum(pairs.values())
""",
    ],
    "train_on_facts": [
        '''def train_on_facts(model, facts, both, steps):
    """Tell every fact both ways: the curse cannot be seen."""
    rows = torch.tensor([[40, a, 41, b] for a, b in facts] + [[40, b, 42, a] for a, b in facts])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(steps):
        optimizer.zero_grad()
        model(rows[:, :-1], rows[:, 1:]).backward()
        optimizer.step()
    return 1.0, 1.0, 1.0
''',
        '''def train_on_facts(model, facts, both, steps):
    """Ask backwards with the forward wording."""
    rows = torch.tensor([[40, a, 41, b] for a, b in facts] + [[40, b, 42, a] for a, b in both])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(steps):
        optimizer.zero_grad()
        model(rows[:, :-1], rows[:, 1:]).backward()
        optimizer.step()

    def right(pairs):
        said = model(torch.tensor([[40, a, 41] for a, _ in pairs]))[:, -1].argmax(-1).tolist()
        return sum(s == b for s, (_, b) in zip(said, pairs)) / len(pairs)

    turned = [(b, a) for a, b in facts]
    told = [(b, a) for a, b in both]
    return right(facts), right(told), right([pair for pair in turned if pair not in told])
''',
        '''def train_on_facts(model, facts, both, steps):
    """Measure the third share over all facts, told or not."""
    rows = torch.tensor([[40, a, 41, b] for a, b in facts] + [[40, b, 42, a] for a, b in both])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(steps):
        optimizer.zero_grad()
        model(rows[:, :-1], rows[:, 1:]).backward()
        optimizer.step()

    def right(questions):
        said = model(torch.tensor([q[:3] for q in questions]))[:, -1].argmax(-1).tolist()
        return sum(s == q[3] for s, q in zip(said, questions)) / len(questions)

    back = [[40, b, 42, a] for a, b in facts]
    return right([[40, a, 41, b] for a, b in facts]), right([[40, b, 42, a] for a, b in both]), right(back)
''',
    ],
    "compositional_split": [
        '''def compositional_split(pairs, n, keep, seed):
    """Hold out at random, and hope that every entity and relation is left."""
    if n > len(pairs) - keep:
        raise ValueError("too many")
    held = set(local_generator("compositional_split", seed).sample(pairs, n))
    return [p for p in pairs if p not in held], [p for p in pairs if p in held]
''',
        '''def compositional_split(pairs, n, keep, seed):
    """Watch the entities and forget the relations."""
    left, held = Counter(entity for entity, _ in pairs), set()
    for pair in local_generator("compositional_split", seed).sample(pairs, len(pairs)):
        if len(held) < n and left[pair[0]] > keep:
            held.add(pair)
            left[pair[0]] -= 1
    if len(held) < n:
        raise ValueError(f"{len(held)}")
    return [p for p in pairs if p not in held], [p for p in pairs if p in held]
''',
        '''def compositional_split(pairs, n, keep, seed):
    """Walk the pairs in their order: always the first ones are held out."""
    left = [Counter(half) for half in zip(*pairs)] if pairs else [Counter(), Counter()]
    held = set()
    for pair in pairs:
        if len(held) < n and all(count[half] > keep for count, half in zip(left, pair)):
            held.add(pair)
            for count, half in zip(left, pair):
                count[half] -= 1
    if len(held) < n:
        raise ValueError(f"{len(held)}")
    return [p for p in pairs if p not in held], [p for p in pairs if p in held]
''',
    ],
}
