"""Grade the exercises of the chapter on letters."""

import random
import re

import pytest

from nanochat_lib.tasks.spelling import count_aloud


def pairs(text: str) -> list[int]:
    """Encode two characters at a time, so that what stands before a word matters."""
    return [sum(map(ord, text[i : i + 2])) * 1000 + i % 2 for i in range(0, len(text), 2)]


def grade_uncovered_words(module) -> None:
    rng = random.Random(4)
    words = ["".join(rng.choices("abcd", k=rng.randint(2, 5))) for _ in range(60)]
    practised = ["".join(rng.choices("abcd", k=rng.randint(2, 5))) for _ in range(25)]
    for least in (1, 2, 5):
        wanted = [
            word
            for word in words
            if any(
                sum(token in pairs(f" {other}") for other in practised) < least
                for token in pairs(f" {word}")
            )
        ]
        assert 0 < len(wanted) < len(words)
        assert module.uncovered_words(words, practised, pairs, least) == wanted, f"least={least}"
    # "aaaa" holds the token of "aa" twice, and is one word
    assert module.uncovered_words(["xaa"], ["xaaaa", "xbb"], pairs, 2) == ["xaa"]
    assert module.uncovered_words(["xaa"], ["xaa", "xaa"], pairs, 2) == []
    assert module.uncovered_words(["ab"], [], pairs) == ["ab"]
    with pytest.raises(ValueError):
        module.uncovered_words(["ab"], ["ab"], pairs, 0)


def grade_first_slip(module) -> None:
    rng = random.Random(9)
    for _ in range(200):
        word = "".join(rng.choices("abcr", k=rng.randint(3, 9)))
        letter = rng.choice("abcr")
        right = count_aloud(word, letter).split()
        assert module.first_slip(word, letter, " ".join(right)) is None
        place = rng.randrange(len(right))
        changed = [*right[:place], "z", *right[place + 1 :]]
        assert module.first_slip(word, letter, " ".join(changed)) == place
        assert module.first_slip(word, letter, " ".join(right[:place])) == place, "too short"
        assert module.first_slip(word, letter, " ".join([*right, "z"])) == len(right), "too long"
    assert module.first_slip("noon", "o", "n o1 o1 n") == 2, "a wrong count is a wrong step"
    assert module.first_slip("noon", "o", "n o o1 n") == 1, "a hit without its number is wrong"


def grade_cut_by_quotes(module) -> None:
    def pieces(text: str) -> list[str]:
        return re.findall(r"'(?:s|re)|[a-z]{1,3}|.", text)

    words = ["sad", "sun", "rest", "rust", "rim", "bad", "bell"]
    # 's|ad against sad; 're|st against res|t; 'r..: only "re" is an ending
    found = module.cut_by_quotes(words, pieces)
    assert found == {"s": 1.0, "r": pytest.approx(1 / 3), "b": 0.0}, found

    def glued(text: str) -> list[str]:
        return [text[:3], text[3:]]  # the marks are never tokens of their own

    assert module.cut_by_quotes(["abcd", "bcd"], glued) == {"a": 0.0, "b": 0.0}
    assert module.cut_by_quotes([], pieces) == {}


MUTANTS = {
    "uncovered_words": [
        """def uncovered_words(words, practised, encode, least=1):
    '''Encode words without their space: other tokens.'''
    if least < 1:
        raise ValueError
    seen = {}
    for word in practised:
        for token in set(encode(word)):
            seen[token] = seen.get(token, 0) + 1
    return [w for w in words if any(seen.get(t, 0) < least for t in encode(w))]
""",
        """def uncovered_words(words, practised, encode, least=1):
    '''Count every occurrence: a token twice in one word counts twice.'''
    if least < 1:
        raise ValueError
    seen = {}
    for word in practised:
        for token in encode(f" {word}"):
            seen[token] = seen.get(token, 0) + 1
    return [w for w in words if any(seen.get(t, 0) < least for t in encode(f" {w}"))]
""",
    ],
    "first_slip": [
        """def first_slip(word, letter, working):
    '''Compare letters and overlook the running count.'''
    said = [step[0] for step in working.split()]
    for i, (wanted, step) in enumerate(zip(word, said)):
        if wanted != step:
            return i
    return None if len(word) == len(said) else min(len(word), len(said))
""",
        """def first_slip(word, letter, working):
    '''Stop at the shorter of the two: a working that breaks off passes.'''
    for i, (wanted, step) in enumerate(zip(count_aloud(word, letter).split(), working.split())):
        if wanted != step:
            return i
    return None
""",
    ],
    "cut_by_quotes": [
        """def cut_by_quotes(words, pieces):
    '''Compare with the marks in: everything differs.'''
    differs = {}
    for word in words:
        differs.setdefault(word[0], []).append(pieces(f"'{word}'") != pieces(f'"{word}"'))
    return {letter: sum(flags) / len(flags) for letter, flags in differs.items()}
""",
        """def cut_by_quotes(words, pieces):
    '''Say whether any word of a letter differs, not how many.'''
    differs = {}
    for word in words:
        single, double = (
            [bare for piece in pieces(f"{mark}{word}{mark}") if (bare := piece.strip("'\\""))]
            for mark in "'\\""
        )
        differs[word[0]] = max(differs.get(word[0], 0.0), float(single != double))
    return differs
""",
    ],
}
