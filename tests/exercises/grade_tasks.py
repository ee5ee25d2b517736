"""Grade the exercises of the chapter on tasks."""

import random
import time
from collections import Counter

import pytest


def grade_majority_floor(module) -> None:
    rng = random.Random(1)
    for _ in range(50):
        train = [rng.choice("abc") for _ in range(rng.randint(1, 12))]
        test = [rng.choice("abcd") for _ in range(rng.randint(1, 12))]
        best = max(Counter(train).values())
        answer = next(a for a in train if train.count(a) == best)
        expected = test.count(answer) / len(test)
        assert module.majority_floor(train, test) == (answer, expected), (train, test)
    for train, test in (([], ["a"]), (["a"], [])):
        with pytest.raises(ValueError):
            module.majority_floor(train, test)


def grade_leaked_share(module) -> None:
    leaked_share = module.leaked_share
    assert leaked_share(["the cat sat down"], ["did the cat sat", "the cat ran"], n=3) == 0.5
    assert leaked_share(["The CAT sat"], ["the cat SAT"], n=3) == 1.0, "case must not matter"
    assert leaked_share(["this is a doghouse"], ["is a dog"], n=8) == 0.0, "words, not letters"
    assert leaked_share(["so this is a dog"], ["is a dog"], n=8) == 1.0, (
        "a short question counts whole"
    )
    assert leaked_share(["a b", "c d"], ["a b c"], n=3) == 0.0, "a run must not cross two texts"
    assert leaked_share(["a x b x c"], ["a b c"], n=2) == 0.0, "the words must be consecutive"
    assert leaked_share(["a  b\nc d"], ["a b c"], n=3) == 1.0, "split at any whitespace"
    assert leaked_share([], ["a b"], n=2) == 0.0
    assert leaked_share(["z a b c z"], ["q a b c q", "a b", "c b a"], n=3) == pytest.approx(2 / 3)
    for texts, questions, n in ((["a"], [], 3), (["a"], ["a"], 0)):
        with pytest.raises(ValueError):
            leaked_share(texts, questions, n)
    few, many = (_seconds(leaked_share, questions) for questions in (10, 200))
    assert many < 6 * few, (
        f"20 times as many questions take {many / few:.0f} times as long: is each compared with "
        "every text? With an index, most of the time goes into building it"
    )


def _seconds(leaked_share, questions: int) -> float:
    """Time a corpus of 15,000 words and questions that share no run with it; the best of three."""
    texts = [" ".join(f"w{i * j % 997}" for j in range(1, 16)) for i in range(1_000)]
    asked = [" ".join(f"q{i + j}" for j in range(10)) for i in range(questions)]
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        assert leaked_share(texts, asked, 8) == 0.0
        times.append(time.perf_counter() - begin)
    return min(times)


def grade_blind_accuracy(module) -> None:
    """By hand; the question must not matter; artifacts must be found, and chance where there are none."""
    blind = module.blind_accuracy
    train = [("q", ["a x", "b y"], 0), ("q", ["a z", "b b b"], 0), ("q", ["c", "A"], 1)]
    assert blind(train, [("q", ["b a", "a"], 1)]) == 1.0, "b is a sign of wrong options"
    assert blind(train, [("q", ["new", "other"], 0)]) == 1.0, "of equals the first"
    assert blind(train, [("q", ["new", "other"], 1)]) == 0.0, "of equals the first"
    longer = [("q", ["x y", "z"], 0)] * 3 + [("q", ["w", "v v v v"], 0)]
    # once a word: v v v v counts as one v, so that one v and four say the same
    assert blind(longer, [("q", ["v v v", "v"], 0), ("q", ["v", "v v v"], 0)]) == 1.0, (
        "a word counts once in an option"
    )
    many = [("q", ["good"] + ["bad"] * 4, 0)] * 3 + [("q", ["odd"] + ["good"] * 4, 0)]
    # good: 3 of 4 right options, 4 of 16 wrong ones; bad: 0 and 12
    assert blind(many, [("q", ["", "good"], 1)]) == 1.0, (
        "four times as many options are wrong: compare shares, not counts"
    )
    rng = random.Random(1)

    def quiz(n: int, telltale: float) -> list:
        rows = []
        for _ in range(n):
            answer = rng.randrange(4)
            options = [rng.sample("abcdefghij", 2) for _ in range(4)]
            for i in range(4):
                if i != answer and rng.random() < telltale:
                    options[i].append("never")
            rows.append((f"question {answer}", [" ".join(option) for option in options], answer))
        return rows

    biased, fair = (blind(quiz(500, t), quiz(500, t)) for t in (0.8, 0.0))
    assert biased > 0.6, f"{biased:.0%} where most wrong options say never"
    assert 0.15 < fair < 0.35, f"{fair:.0%} where options say nothing: is the question read?"


MUTANTS = {
    "majority_floor": [
        """def majority_floor(train_answers, test_answers):
    '''Choose by the test.'''
    if not train_answers or not test_answers:
        raise ValueError
    answer = Counter(test_answers).most_common(1)[0][0]
    return answer, test_answers.count(answer) / len(test_answers)
""",
        """def majority_floor(train_answers, test_answers):
    '''Measure on the training answers.'''
    if not train_answers or not test_answers:
        raise ValueError
    answer = Counter(train_answers).most_common(1)[0][0]
    return answer, train_answers.count(answer) / len(train_answers)
""",
        """def majority_floor(train_answers, test_answers):
    '''Break ties by the alphabet instead of by which answer came first.'''
    if not train_answers or not test_answers:
        raise ValueError
    answer = max(set(train_answers), key=lambda a: (train_answers.count(a), a))
    return answer, test_answers.count(answer) / len(test_answers)
""",
    ],
    "leaked_share": [
        '''def leaked_share(train_texts, test_questions, n=8):
    """Compare every question with every text: right, and hopeless on a real corpus."""
    if n < 1 or not test_questions:
        raise ValueError
    def inside(run, words):
        return any(words[i:i + len(run)] == run for i in range(len(words) - len(run) + 1))
    texts = [t.lower().split() for t in train_texts]
    def leaks(words):
        size = min(n, len(words))
        runs = [words[i:i + size] for i in range(len(words) - size + 1)]
        return any(inside(run, text) for text in texts for run in runs)
    return sum(leaks(q.lower().split()) for q in test_questions) / len(test_questions)
''',
        """def leaked_share(train_texts, test_questions, n=8):
    '''Search in the joined text: words are cut, and runs cross from one text to the next.'''
    if n < 1 or not test_questions:
        raise ValueError
    text = " ".join(train_texts).lower()
    def leaks(words):
        size = min(n, len(words))
        return any(" ".join(words[i:i + size]) in text for i in range(len(words) - size + 1))
    return sum(leaks(q.lower().split()) for q in test_questions) / len(test_questions)
""",
        """def leaked_share(train_texts, test_questions, n=8):
    '''Take runs of exactly n words, which a question shorter than n never has.'''
    if n < 1 or not test_questions:
        raise ValueError
    runs = lambda t: {tuple(t.lower().split()[i:i + n]) for i in range(len(t.split()) - n + 1)}
    known = set().union(*map(runs, train_texts)) if train_texts else set()
    return sum(bool(runs(q) & known) for q in test_questions) / len(test_questions)
""",
        """def leaked_share(train_texts, test_questions, n=8):
    '''Ask whether the words occur at all, in any order.'''
    if n < 1 or not test_questions:
        raise ValueError
    known = {w for t in train_texts for w in t.lower().split()}
    leaks = lambda q: all(w in known for w in q.lower().split())
    return sum(map(leaks, test_questions)) / len(test_questions)
""",
    ],
    "blind_accuracy": [
        '''def blind_accuracy(train, test):
    """Compare counts, not shares: wrong options are more numerous, so every word speaks against."""
    right, wrong = Counter(), Counter()
    for _, options, answer in train:
        for i, option in enumerate(options):
            (right if i == answer else wrong).update(set(option.lower().split()))

    def score(option):
        return sum(math.log((right[w] + 1) / (wrong[w] + 1)) for w in set(option.lower().split()))

    hits = 0
    for _, options, answer in test:
        scores = [score(option) for option in options]
        hits += scores.index(max(scores)) == answer
    return hits / len(test)
''',
        '''def blind_accuracy(train, test):
    """Read the words of the question as well: then it is not blind."""
    right, wrong, r, f = Counter(), Counter(), 0, 0
    for question, options, answer in train:
        for i, option in enumerate(options):
            words = {(q, w) for q in question.split() for w in [*option.lower().split(), str(i)]}
            (right if i == answer else wrong).update(words)
            r, f = r + (i == answer), f + (i != answer)
    hits = 0
    for question, options, answer in test:
        scores = [
            sum(
                math.log((right[q, w] + 1) / (r + 2)) - math.log((wrong[q, w] + 1) / (f + 2))
                for q in question.split() for w in {*option.lower().split(), str(i)}
            )
            for i, option in enumerate(options)
        ]
        hits += scores.index(max(scores)) == answer
    return hits / len(test)
''',
        '''def blind_accuracy(train, test):
    """Count a word as often as an option repeats it."""
    right, wrong, r, f = Counter(), Counter(), 0, 0
    for _, options, answer in train:
        for i, option in enumerate(options):
            (right if i == answer else wrong).update(option.lower().split())
            r, f = r + (i == answer), f + (i != answer)

    def score(option):
        return sum(
            math.log((right[w] + 1) / (r + 2)) - math.log((wrong[w] + 1) / (f + 2))
            for w in option.lower().split()
        )

    hits = 0
    for _, options, answer in test:
        scores = [score(option) for option in options]
        hits += scores.index(max(scores)) == answer
    return hits / len(test)
''',
    ],
}
