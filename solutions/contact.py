# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: first contact
#
# Keep phrases apart that differ only in typing, choose how much a model should refuse, and find out what a
# packing loader lets stand first in a row.

# %%
import zlib

from nanochat_lib.data.phrases import phrases
from nanochat_lib.tasks.tinyworld import message_key
from nanochat_lib.training.loader import best_fit

# %% [markdown]
# ## split_by_key
#
# A list of phrases grows over the years, and holds "How are you?", "how are you" and "HOW ARE YOU!!". If one
# of them is trained on and another is in the test, the test measures nothing. Split a list by checksum, but
# so that phrases with the same `message_key` always fall on the same side: hash the key, not the phrase. The
# side must not depend on what else is in the list. A key is held out if
# `zlib.crc32(key.encode()) % parts == 0`.


# %%
#| exercise split_by_key
def split_by_key(lines: list[str], parts: int = 10) -> tuple[list[str], list[str]]:
    """Split phrases into those to train on and those held out, each in the order of the list.

    Args:
        lines: phrases, in any order, perhaps some of them twice.
        parts: one key in so many is held out.

    Returns:
        (train, heldout); a phrase that stands twice in the list is returned once.

    Raises:
        ValueError: parts is below 2.
    """
    ### BEGIN SOLUTION
    if parts < 2:
        raise ValueError(f"parts={parts}: one in how many? 2 or more")
    sides: tuple[list[str], list[str]] = ([], [])
    for line in dict.fromkeys(lines):
        sides[zlib.crc32(message_key(line).encode()) % parts == 0].append(line)
    return sides
    ### END SOLUTION


# %%
greetings = [*phrases("talk", "greet"), "HELLO there...", "hello there"]
train, heldout = split_by_key(greetings)
assert not {message_key(line) for line in train} & {message_key(line) for line in heldout}
print(len(train), len(heldout), heldout[:3])

# %% [markdown]
# ## refusal_threshold
#
# A model that refuses more answers fewer strangers wrongly, and refuses more that it knows. Where to stop is a
# choice, and it can be made after training: read a *margin* at the first token of each reply, the logit of the
# refusal's first token minus the largest other logit, and refuse where the margin is at least some threshold.
#
# You are given the margins of questions that the model knows and of questions that it does not. Return the
# threshold that refuses as many of the unknown as possible while it refuses at most a share `most` of the
# known. Take it from the measured margins, or infinity if every one of them refuses too many. Where two
# thresholds refuse equally many unknown questions, take the higher one: it refuses fewer known.


# %%
#| exercise refusal_threshold
def refusal_threshold(known: list[float], unknown: list[float], most: float) -> float:
    """Find the margin from which on to refuse.

    Example: known [-5, -1, 2], unknown [1, 3], most 0.34 -> 1: one known of three is refused, both unknown are.

    Args:
        known: margins of questions that should be answered, at least one.
        unknown: margins of questions that should be refused, at least one.
        most: largest share of the known that may be refused, 0 to 1.

    Returns:
        A margin of one of the lists, or infinity.

    Raises:
        ValueError: a list is empty, or most is outside [0, 1].
    """
    ### BEGIN SOLUTION
    if not known or not unknown or not 0 <= most <= 1:
        raise ValueError(f"{len(known)} known, {len(unknown)} unknown, {most=}: see the docstring")

    def refused(margins: list[float], threshold: float) -> int:
        return sum(margin >= threshold for margin in margins)

    allowed = [
        threshold
        for threshold in {*known, *unknown, float("inf")}
        if refused(known, threshold) <= most * len(known)
    ]
    return max(allowed, key=lambda threshold: (refused(unknown, threshold), threshold))
    ### END SOLUTION


# %%
assert refusal_threshold([-5, -1, 2], [1, 3], 0.34) == 1
assert refusal_threshold([4, 5], [1, 2], 0.0) == float("inf")

# %% [markdown]
# ## who_opens_rows
#
# **Experiment.** A chat starts at the first position of a row. In training, who stands there? The first version
# of the course's loader put the longest-waiting conversation first and filled up with the longest that fit.
# Conversations then waited long for one reason: nobody needed their length. Simulate it: pack `lengths` into rows
# of `capacity` tokens as the text of chapter `finetuning` does (the oldest opens; then, as long as one fits, the
# `best_fit` among the next `buffer_size` waiting), and count which *kinds* stand first in a row.
#
# Then think: if a kind never stands first in training, what will a model do when it stands first in a chat?
# Compare with rows whose order is shuffled. (That part is open; the chapter tells what we saw.)


# %%
#| exercise who_opens_rows
def who_opens_rows(
    kinds: list[str], lengths: list[int], capacity: int, buffer_size: int
) -> dict[str, float]:
    """Measure how often each kind of conversation opens a row, relative to its share.

    Args:
        kinds: the kind of each conversation, in the order of the task.
        lengths: tokens of each, none longer than `capacity`.
        capacity: tokens of a row.
        buffer_size: conversations to choose from after the first.

    Returns:
        Kind -> (share of the rows it opens) / (its share of the conversations). 1 means no bias.

    Raises:
        ValueError: the lists differ in length or are empty, or a length does not fit into a row.
    """
    ### BEGIN SOLUTION
    if not kinds or len(kinds) != len(lengths) or max(lengths) > capacity:
        raise ValueError(f"{len(kinds)} kinds, {len(lengths)} lengths, rows of {capacity}")
    waiting, openers = list(zip(kinds, lengths)), []
    while waiting:
        kind, length = waiting.pop(0)
        openers.append(kind)
        room = capacity - length
        while (best := best_fit([length for _, length in waiting[:buffer_size]], room)) is not None:
            room -= waiting.pop(best)[1]
    return {
        kind: (openers.count(kind) / len(openers)) / (kinds.count(kind) / len(kinds))
        for kind in dict.fromkeys(kinds)
    }
    ### END SOLUTION


# %%
import random

rng = random.Random(0)
kinds = rng.choices(("fact", "sum", "count", "refusal"), (4, 3, 2, 3), k=3_000)
typical = {"fact": 23, "sum": 40, "count": 67, "refusal": 44}
lengths = [typical[kind] + rng.randint(-6, 6) for kind in kinds]
for buffer_size in (0, 8, 64):
    opens = who_opens_rows(kinds, lengths, 256, buffer_size)
    print(buffer_size, {kind: round(ratio, 2) for kind, ratio in opens.items()})
