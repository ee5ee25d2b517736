# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: letters
#
# Find the words that no practice can reach, the first wrong step of a working, and what a quotation mark does to a word.

# %%
from collections.abc import Callable

from nanochat_lib.data.synthetic import curriculum
from nanochat_lib.data.tinyworld import World
from nanochat_lib.tasks.spelling import count_aloud
from nanochat_lib.tokenizer.tokenizer import Tokenizer

tokenizer = Tokenizer.train(curriculum(World(0), 200, 1_000), 512)

# %% [markdown]
# ## uncovered_words
#
# A model can spell a word only if it has practised each of its tokens. Given words for a test and the words of the
# practice, list the test's words that have a token which fewer than `least` practice words have. A practice word counts
# once for a token, however often the token occurs in it. Words stand in sentences, so encode them with a space in front.


# %%
#| exercise uncovered_words
def uncovered_words(
    words: list[str], practised: list[str], encode: Callable[[str], list[int]], least: int = 1
) -> list[str]:
    """List the words of a test that practice cannot reach, in their order.

    Args:
        words: of the test.
        practised: words of the practice; one that comes twice counts twice.
        encode: text -> token ids.
        least: practice words that each token needs.

    Raises:
        ValueError: least is below 1.
    """
    ### BEGIN SOLUTION
    if least < 1:
        raise ValueError(f"least={least}: with 0 every word is covered")
    seen: dict[int, int] = {}
    for word in practised:
        for token in set(encode(f" {word}")):
            seen[token] = seen.get(token, 0) + 1
    return [w for w in words if any(seen.get(t, 0) < least for t in encode(f" {w}"))]
    ### END SOLUTION


# %%
print(uncovered_words(["bread", "breads", "zebra"], ["bread", "reads", "eels"], tokenizer.encode))

# %% [markdown]
# ## first_slip
#
# For a reward, or to mask a mistake, one has to know *where* a working goes wrong. Given a word, a letter and a working
# such as `s t r1 a w b e r y`, return the number of its first wrong step, from 0. A working that ends too early goes wrong at
# the step that is missing, one that is too long at its first surplus step. None for a working that is right.


# %%
#| exercise first_slip
def first_slip(word: str, letter: str, working: str) -> int | None:
    """Find the first wrong step of a working; None if there is none.

    Example: "noon", "o", "n o1 o1 n" -> 2.
    """
    ### BEGIN SOLUTION
    right, said = count_aloud(word, letter).split(), working.split()
    for i, (wanted, step) in enumerate(zip(right, said)):
        if wanted != step:
            return i
    return None if len(right) == len(said) else min(len(right), len(said))
    ### END SOLUTION


# %%
assert first_slip("strawberry", "r", "s t r1 a w b e r2 y") == 8
assert first_slip("noon", "o", "n o1 o2 n") is None

# %% [markdown]
# ## cut_by_quotes
#
# **Experiment.** The chapter says that a single quotation mark changes how a word is cut, depending on its first letter. For
# each first letter that occurs in `words`, measure the share of words that single quotation marks cut differently than double ones.
# `pieces(text)` gives the tokens of a text as texts: take those of `'word'` and of `"word"`, strip the marks from every piece, drop pieces
# that are empty then, and compare the two lists.
#
# Which letters are hit? Look at the split pattern in chapter `tokenizer` and explain them. Would you quote with single marks?


# %%
#| exercise cut_by_quotes
def cut_by_quotes(words: list[str], pieces: Callable[[str], list[str]]) -> dict[str, float]:
    """Measure how often single and double quotation marks cut a word differently.

    Args:
        words: lower case, none empty.
        pieces: text -> its tokens as texts.

    Returns:
        First letter -> share of its words, for every first letter that occurs.
    """
    ### BEGIN SOLUTION
    differs: dict[str, list[bool]] = {}
    for word in words:
        single, double = (
            [bare for piece in pieces(f"{mark}{word}{mark}") if (bare := piece.strip("'\""))]
            for mark in "'\""
        )
        differs.setdefault(word[0], []).append(single != double)
    return {letter: sum(flags) / len(flags) for letter, flags in differs.items()}
    ### END SOLUTION


# %%
def pieces(text: str) -> list[str]:
    return [tokenizer.decode([token]) for token in tokenizer.encode(text)]


sample = "salad sheep soup tree table doctor dinner market mouse bread garden river".split()
print(cut_by_quotes(sample, pieces))
