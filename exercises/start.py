# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: start
#
# One experiment with the twelve-line model.

# %%
import math
from collections import Counter, defaultdict
from pydoc_data.topics import topics

import matplotlib.pyplot as plt

# %% [markdown]
# ## context_curve
#
# **Experiment.** The model of the chapter looks back at three letters. Why not at five, or nine? Measure it. For each
# length, fill the table from `training` alone, then ask how many bits the next letter costs, on the
# training text and on text that the table has never seen.
#
# The cost of a letter is $-\log_2 p$, and $p$ must never be zero: use add-one smoothing,
# $p = (n + 1) / (N + V)$, with $n$ the count of this letter after this context, $N$ the count of the
# context, and $V$ the number of different letters in `training`. Average over all letters of the text
# that have a whole context before them.
#
# Then say what you saw: which curve would you show to somebody who wants to buy your model? And where
# does the other one turn? (Your words are yours; the grader looks at the numbers.)


# %%
#| exercise context_curve
def context_curve(training: str, held_out: str, lengths: list[int]) -> list[tuple[float, float]]:
    """Measure bits per letter over the length of the context.

    Args:
        training: fills the tables.
        held_out: never does.
        lengths: letters that the model looks back at, each at least 0.

    Returns:
        For each length: (bits per letter of the training text, of the held-out text).
    """
    raise NotImplementedError("exercise start.context_curve")


# %%
# alt: bits per letter over the letters of context: falling on the training text, turning up on held-out text
def check_context_curve() -> None:
    """A case by hand, then the curve on real text."""
    by_hand = context_curve("abab", "ab", [0, 1])
    assert math.isclose(by_hand[0][0], 1.0), f"got {by_hand[0][0]}: a and b are equally frequent"
    assert math.isclose(by_hand[1][1], -math.log2(3 / 4)), f"got {by_hand[1][1]}: (2 + 1) / (2 + 2)"
    text = "\n".join(topics.values())[:120_000]  # Python's own manual
    lengths = list(range(8))
    curve = context_curve(text[:100_000], text[100_000:], lengths)
    figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
    for column, name in enumerate(("training text", "held-out text")):
        values = [bits[column] for bits in curve]
        axes.plot(lengths, values, marker="o")
        axes.annotate(f" {name}", (lengths[-1], values[-1]), annotation_clip=False)
    axes.set(xlabel="letters of context", ylabel="bits per letter", xlim=(-0.2, 9))
    plt.show()


check_context_curve()
