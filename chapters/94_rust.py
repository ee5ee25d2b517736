# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The Rust trainer: three ideas that make counting fast
#
# The crate in `rustbpe/` learns the merges of the tokenizer chapter, to the last tie, and needs a
# small part of the time. Why? This chapter takes its three ideas out of Rust and shows each in a few
# lines of Python, on numbers that you can follow:
#
# ```python
# scan_words(text) == split_words(text)    # the same words, without a regex engine
# ```
#
# You need `split_words` and `count_words` of the tokenizer chapter. On a laptop it takes about 5
# seconds.

# %%
import random
from collections.abc import Iterable
from itertools import islice

import regex

from nanochat_lib.data.documents import python_docs
from nanochat_lib.tokenizer.bpe import count_words, split_words

documents = list(islice(python_docs(), 2000))
held_out, training = documents[::10], [d for i, d in enumerate(documents) if i % 10]
generator = random.Random(0)
ugly = [
    "",
    " ",
    "a \n \n b  ",
    "\r\n\tx",
    "½ⅷ٣",
    "\u200d\u0301e",
    "'LL 'x",
    "語\u3000語",
    "\x00\x1c",
]

# %% [markdown]
# ## Why it is fast
#
# Part of it is the language. But nanochat's own trainer is written in Rust too, and ours needs about
# a tenth of its time on the same text (the [crate's README](../rustbpe/README.md) has the table, and
# the command that measures it). That factor comes from three ideas that have nothing to do with the
# language. Each fits into a few lines of Python.
#
# **One: know your pattern.** A profile says that most of the time goes into cutting. At each
# character a regex engine tries one alternative after the other, and steps back where one fails. But
# look at our seven alternatives: what kind of character comes first, and what kind second, already
# decides which of them it will be.

# %%
import unicodedata

LETTER, NUMBER, SPACE, NEWLINE, OTHER, END = range(6)


def kind_at(text: str, i: int) -> int:
    """Say what a character is to the pattern; END behind the last one."""
    if i >= len(text):
        return END
    if text[i] in "\r\n":
        return NEWLINE
    if regex.match(r"\s", text[i]):
        return SPACE
    return {"L": LETTER, "N": NUMBER}.get(unicodedata.category(text[i])[0], OTHER)


def run_end(text: str, i: int, kind: int) -> int:
    """Skip characters of one kind."""
    while kind_at(text, i) == kind:
        i += 1
    return i


# %%
# NBVAL_CHECK_OUTPUT
print([kind_at("a7 \n!", i) for i in range(6)], run_end("abc1", 0, LETTER))

# %% [markdown]
# In Rust the kind is one look into a table. White space is the one place where a scanner has to look
# far ahead: a run of it ends at its last line end, or leaves one character to the word behind it.


# %%
def space_end(text: str, i: int) -> int:
    """Return where a word of white space ends."""
    end = i
    while kind_at(text, end) in (SPACE, NEWLINE):
        end += 1
    lines = [j for j in range(i, end) if kind_at(text, j) == NEWLINE]
    if lines:
        return lines[-1] + 1
    return end if end == len(text) or end == i + 1 else end - 1


def word_end(text: str, i: int, max_digits: int = 2) -> int:
    """Return where the word that starts at i ends, for split_pattern(max_digits)."""
    first, second = kind_at(text, i), kind_at(text, i + 1)
    tail = text[i + 1 : i + 3].lower()
    if text[i] == "'" and tail in ("ll", "ve", "re"):
        return i + 3
    if text[i] == "'" and tail[:1] in ("s", "d", "m", "t", "ſ"):  # ſ is an old s
        return i + 2
    if first == LETTER or (second == LETTER and first in (SPACE, OTHER)):
        return run_end(text, i + 1, LETTER)
    if first == NUMBER:
        return min(run_end(text, i, NUMBER), i + max_digits)
    if first == OTHER or (text[i] == " " and second == OTHER):
        return run_end(text, run_end(text, i + 1, OTHER), NEWLINE)
    return space_end(text, i)


# %% [markdown]
# A shortcut is worth nothing until it is proven equal to the long way. Ugly strings, real text, and
# random strings over the characters that matter:


# %%
def scan_words(text: str) -> list[str]:
    """Cut text into words without a regex engine."""
    words, i = [], 0
    while i < len(text):
        words.append(text[i : word_end(text, i)])
        i += len(words[-1])
    return words


soup = ["".join(generator.choices("aé 's'LL12½.!\r\n\t\u3000語\u0301", k=12)) for _ in range(2000)]
for text in [*ugly, *soup, *held_out[:20]]:
    assert scan_words(text) == split_words(text), f"{text!r}: {scan_words(text)}"

# %% [markdown]
# **Two: most words are few words.** How many different words does it take to cover nine tenths of a
# text? Count them, most frequent first.

# %%
word_counts = count_words(training)
frequent, total = word_counts.most_common(), sum(word_counts.values())
covered = [0]
for _, count in frequent:
    covered.append(covered[-1] + count)
for n in (16, 256, 4096):
    print(f"{n:>5} of {len(frequent):,} words cover {covered[n] / total:.0%} of the text")
assert covered[4096] > 0.8 * total

# %% [markdown]
# A core has some hundred kilobytes of memory of its own, and reaches all other memory many times as
# slowly. So each thread counts in a table small enough to stay there. It is the simplest
# table there is: a word has *one* place, given by its hash, and whoever comes for an occupied place
# throws the older word out, into the large table that all threads share. Here is how often that
# happens; Python's `hash` of strings changes from run to run, so we use a checksum.

# %%
import zlib


def share_thrown_out(texts: Iterable[str], slots: int) -> float:
    """Return the share of words that had to go to the large table."""
    table, n_words, n_out = [None] * slots, 0, 0
    for text in texts:
        for word in split_words(text):
            slot = zlib.crc32(word.encode()) % slots
            n_words += 1
            if table[slot] != word:
                n_out += table[slot] is not None
                table[slot] = word
    return n_out / n_words


thrown_out = {slots: share_thrown_out(training[:600], slots) for slots in (64, 1024, 16_384)}
print({slots: f"{share:.1%}" for slots, share in thrown_out.items()})
assert thrown_out[16_384] < 0.1 < thrown_out[64]

# %% [markdown]
# The same table works for encoding, with the ids of each word in the place of its count. Nine words
# in ten are then one lookup.
#
# **Three: never move a token.** Our trainer rebuilds the list of a word at each merge. Instead, lay
# all words out once, a slot for each byte, and let a token occupy as many slots as it has bytes,
# writing its id into the *first* and the *last* of them. From a token's first slot, its length leads
# to the right neighbour; one slot to the left is the last one of the left neighbour. A merge writes
# two numbers and moves nothing.

# %%
lengths = [1] * 256


def merge_in_place(slots: list[int], start: int, new_id: int) -> None:
    """Merge the token that starts at `start` with its right neighbour; slots outside hold -1."""
    middle = start + lengths[slots[start]]
    end = middle + lengths[slots[middle]]
    slots[start] = slots[end - 1] = new_id


def neighbours(slots: list[int], start: int) -> tuple[int, int]:
    """Return the ids left and right of the token that starts at `start`."""
    return slots[start - 1], slots[start + lengths[slots[start]]]


# %%
# NBVAL_CHECK_OUTPUT
slots = [-1, *b"thatcat", -1]
lengths += [2, 3]  # 256 is "at", 257 "hat"
merge_in_place(slots, 3, 256)
merge_in_place(slots, 6, 256)
print(slots, neighbours(slots, 3))
merge_in_place(slots, 2, 257)
print(slots, neighbours(slots, 2))
assert neighbours(slots, 2) == (ord("t"), ord("c")), "the left one is read from a last slot"

# %% [markdown]
# `neighbours` says that the first `at` stands between `h` and `c`, and `hat` between `t` and `c`:
# exactly the pairs whose counts a merge changes. So the index need not know words any more: it keeps,
# for each pair, the places where it was born, and a merge walks through those and through nothing
# else. (One detail: a place may be out of date, because the token there has been swallowed by
# another. The crate marks the first slot of the swallowed half as dead, and skips such places.)

# %% [markdown]
# ## Recap
#
# A scanner that knows its pattern looks at two characters where a regex engine tries seven
# alternatives; a small table catches most words, because most words are few; and a merge that writes
# two numbers moves nothing. What each idea buys in Rust is measured in the [crate's
# README](../rustbpe/README.md) by `make bench-ideas`, which takes one idea out at a time. Nothing here
# is exported: the library calls the crate.
