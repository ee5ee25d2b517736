# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: fine-tuning
#
# How many questions does a claim need, and does a second model do better or was it luck? Both are
# answered before any GPU is rented.

# %%
import math

from nanochat_lib.evaluation.chat import wilson_interval

# %% [markdown]
# ## questions_needed
#
# You expect an accuracy of about `rate` and want to report it to within `half_width` on either
# side: half the width of Wilson's 95% interval must be at most that. How many questions must the
# benchmark have? Return the smallest `n` for which `round(rate * n)` right answers give an interval
# that narrow, *and every larger n does so as well*: rounding makes the width jump, so the first n
# that happens to fit is not safe.
#
# A plan that is fast enough: the width of an interval from n questions is never above that for a
# rate of one half, which shrinks steadily.


# %%
#| exercise questions_needed
def questions_needed(rate: float, half_width: float) -> int:
    """Find how many questions make Wilson's 95% interval narrow enough, from there on for good.

    Example: a rate of 0.5 to within 0.03 -> 1064.

    Args:
        rate: the accuracy that we expect, between 0 and 1.
        half_width: half the width that the interval may have, above 0.

    Returns:
        The smallest n from which on the interval is never wider.

    Raises:
        ValueError: rate is outside [0, 1], or half_width is not between 0 and 0.5.
    """
    raise NotImplementedError("exercise finetuning.questions_needed")


# %%
assert questions_needed(0.5, 0.03) == 1064
for rate in (0.5, 0.8, 0.95):
    print(rate, [questions_needed(rate, width) for width in (0.1, 0.05, 0.02)])

# %% [markdown]
# ## paired_p_value
#
# Two models answered the same 200 questions: 120 and 132 right. The intervals overlap widely. But
# most of that width is the choice of questions, and both had the same ones. Questions that both got
# right, or both wrong, say nothing about the difference. What counts are those where exactly one
# was right: if the models were equally good, each of these is a fair coin.
#
# Return the two-sided p-value of the exact sign test: the probability that a fair coin, tossed once
# for each question on which the models differ, comes out at least as lopsided. If they never
# differ, it is 1.


# %%
#| exercise paired_p_value
def paired_p_value(first: list[bool], second: list[bool]) -> float:
    """Test whether two models that answered the same questions are equally good.

    Example: they differ on 5 questions, and the second is right on all 5 -> 2 / 2**5 = 0.0625.

    Args:
        first: for each question, whether the first model was right.
        second: the same for the second model, in the same order.

    Returns:
        The two-sided p-value, above 0 and at most 1.

    Raises:
        ValueError: the lists differ in length.

    Source: McNemar 1947, Psychometrika 12:153; the exact binomial version.
    """
    raise NotImplementedError("exercise finetuning.paired_p_value")


# %%
assert paired_p_value([False] * 5 + [True] * 9, [True] * 14) == 0.0625
assert paired_p_value([True, False], [True, False]) == 1.0
# 120 and 132 right of 200: 20 times only the second was right, 8 times only the first
a = [True] * 112 + [True] * 8 + [False] * 20 + [False] * 60
b = [True] * 112 + [False] * 8 + [True] * 20 + [False] * 60
print(f"{paired_p_value(a, b):.3f}", wilson_interval(120, 200), wilson_interval(132, 200))
