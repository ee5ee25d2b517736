# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: fine-tuning
#
# How many questions does a claim need, does a second model do better or was it luck, and what does a
# model forget while it learns?

# %%
import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nanochat_lib.evaluation.chat import wilson_interval
from nanochat_lib.model.gpt import GPT, GPTConfig

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

# %% [markdown]
# ## forgetting_curve
#
# **Experiment.** Fine-tuning changes the same weights that hold what pretraining learned. How much is lost,
# and what does it cost to keep it? Mix some of the old text in: with a share s, step i (from 0) trains on the
# next batch of `old` where `int((i + 1) * s) > int(i * s)`, and on the next batch of `new` otherwise (both lists
# are long enough). For each share take a fresh model from `make_model`, which is pretrained, and a fresh
# `torch.optim.Adam` at the given rate; afterwards measure the loss on `old_test` and on `new_test`.
#
# Then say what you saw: does keeping the old cost much of the new? What would you mix in if the old text
# were no longer yours to read? (That part is open.)


# %%
#| exercise forgetting_curve
def forgetting_curve(
    make_model: Callable[[], nn.Module],
    old: list[tuple[Tensor, Tensor]],
    new: list[tuple[Tensor, Tensor]],
    old_test: tuple[Tensor, Tensor],
    new_test: tuple[Tensor, Tensor],
    lr: float,
    steps: int,
    shares: list[float],
) -> list[tuple[float, float]]:
    """Fine-tune with more and more of the old text, and measure what is kept and what is learned.

    Args:
        make_model: returns the pretrained model anew; called as model(inputs, targets) it gives the loss.
        old: batches of pretraining text, at least `steps`.
        new: batches to fine-tune on, at least `steps`.
        old_test: held-out text.
        new_test: held-out conversations.
        lr: of Adam.
        steps: of fine-tuning.
        shares: of steps on old text, from 0 to below 1.

    Returns:
        For each share the loss on the old test, and on the new one.
    """
    raise NotImplementedError("exercise finetuning.forgetting_curve")


# %%
def rows_that_step(step: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Write rows of numbers from 0 to 31 that go on by `step`, as inputs and targets."""
    start = torch.randint(32, (n, 1), generator=torch.Generator().manual_seed(seed))
    rows = (start + step * torch.arange(17)) % 32
    rows[:, 0] = step  # the first token says which rule holds
    return rows[:, :-1], rows[:, 1:]


def check_forgetting_curve() -> None:
    """Pretrain on rows that go by 3, fine-tune on rows that go by 5."""
    pretrained = GPT(GPTConfig(64, 2, 2, sequence_len=16, vocab_size=32, n_layer=2))
    optimizer = torch.optim.Adam(pretrained.parameters(), lr=0.003)
    for i in range(150):
        optimizer.zero_grad()
        pretrained(*rows_that_step(3, 16, i)).backward()
        optimizer.step()
    old, new = ([rows_that_step(step, 16, 1_000 + i) for i in range(80)] for step in (3, 5))
    shares = [0.0, 0.1, 0.3, 0.5]
    curve = forgetting_curve(
        lambda: copy.deepcopy(pretrained),
        old,
        new,
        rows_that_step(3, 100, 7),
        rows_that_step(5, 100, 8),
        lr=0.003,
        steps=80,
        shares=shares,
    )
    for share, (kept, learned) in zip(shares, curve):
        print(f"{share:.0%} old text: loss {kept:.2f} on old, {learned:.2f} on new")
    assert curve[1][0] < curve[0][0], "a tenth of the old text should keep a good part of it"


check_forgetting_curve()
