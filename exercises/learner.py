# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: the learner's tool
#
# A grader teaches by the smallest example that goes wrong. Here you find it.

# %%
from collections.abc import Callable

# %% [markdown]
# ## shrink
#
# A random test found 500 numbers for which an answer is wrong. Nobody learns from 500 numbers. Shrink them: return
# a list that still fails and is as simple as single steps can make it. That is, leaving out any one value makes it
# pass, and so does moving any one value by one towards zero.
#
# `fails` may be slow, so do not ask it more often than you must: one culprit among 500 values is found in some
# dozens of questions if you first try to leave out halves, then quarters, and only at last single values (Zeller and
# Hildebrandt 2002, "Simplifying and isolating failure-inducing input"). The grader counts.


# %%
#| exercise shrink
def shrink(values: list[int], fails: Callable[[list[int]], bool]) -> list[int]:
    """Simplify a failing input by leaving values out and moving them towards zero.

    Example: [8, 3, 12, 5] with a test that fails where a value is above 9 -> [10].

    Args:
        values: an input that fails.
        fails: says whether an input fails; never changes it.

    Returns:
        A failing input from which no single step leads to a simpler failing one, in the old order.

    Raises:
        ValueError: the values do not fail.
    """
    raise NotImplementedError("exercise learner.shrink")


# %%
assert shrink([8, 3, 12, 5], lambda values: any(v > 9 for v in values)) == [10]
asked = 0


def one_culprit(values: list[int]) -> bool:
    """Fail on 321, and count how often we are asked."""
    global asked
    asked += 1
    return 321 in values


assert shrink(list(range(500)), one_culprit) == [321]
print(asked, "questions for one culprit among 500")
