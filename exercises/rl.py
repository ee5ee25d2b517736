# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: reinforcement learning
#
# A baseline that does not look at itself, what was chosen and what was not, the reward of a part, and how many tries a question
# deserves.

# %%
import re

# %% [markdown]
# ## leave_one_out
#
# The mean of a group contains the answer that it is compared with. RLOO (Ahmadian et al. 2024, arXiv:2402.14740) leaves it out: the
# baseline of an answer is the mean reward of the *others*. Write it, then compare with `group_advantages`: by which factor do they
# differ, and does that depend on the rewards?


# %%
#| exercise leave_one_out
def leave_one_out(rewards: list[float]) -> list[float]:
    """Compare each answer with the mean of the others to the same question.

    Example: rewards [1, 0, 0] -> [1, -0.5, -0.5].

    Args:
        rewards: one a try, at least two.

    Returns:
        As many advantages.

    Raises:
        ValueError: there are fewer than two rewards.
    """
    raise NotImplementedError("exercise rl.leave_one_out")


# %%
print(leave_one_out([1.0, 0.0, 0.0, 1.0]))

# %% [markdown]
# ## chosen_tokens
#
# A trainer of somebody else hands you answers as plain lists of ids. Which tokens did the model choose? Everything, but for what
# stands from an output's start marker to its end marker, both included: the tool wrote those. An output that was cut off goes on to
# the end. A second start inside an output changes nothing.


# %%
#| exercise chosen_tokens
def chosen_tokens(tokens: list[int], output_start: int, output_end: int) -> list[int]:
    """Mark with 1 what the model chose, with 0 what a tool wrote.

    Example: with 8 as start and 9 as end, [1, 8, 5, 9, 2] -> [1, 0, 0, 0, 1].

    Args:
        tokens: an answer's ids.
        output_start: id of the marker that opens a tool's output.
        output_end: id of the marker that closes it.
    """
    raise NotImplementedError("exercise rl.chosen_tokens")


# %%
print(chosen_tokens([1, 8, 5, 9, 2], 8, 9))

# %% [markdown]
# ## partial_reward
#
# A problem of two steps is solved rarely at first, and half of the groups earn nothing. Pay for the way: an answer that is right in
# the end earns 1; another one earns half of the share of steps that it got right, counted from the first on and only up to the first
# mistake. A step is right if the tool's output is the value expected there. (Such shaping helps to start and may ruin later: a policy
# can earn half of everything by never finishing. What would you do about that?)


# %%
#| exercise partial_reward
def partial_reward(response: str, values: list[str], result: str) -> float:
    """Reward an answer that calls a tool, in part for its steps.

    Example: two values, the first output right, the last word wrong -> 0.25.

    Args:
        response: text with outputs between <|output_start|> and <|output_end|>.
        values: the outputs of the right way, in order; at least one.
        result: the only number that may be said after the last output.
    """
    raise NotImplementedError("exercise rl.partial_reward")


# %%
start, end = "<|output_start|>", "<|output_end|>"
for text in (f"{start}7{end}{start}5{end}It is 5.", f"{start}7{end}It is 7.", "It is 9."):
    print(partial_reward(text, ["7", "5"], "5"))

# %% [markdown]
# ## best_group_size
#
# **Experiment.** You can afford a number of answers a step. Few tries at many questions, or many tries at few? What teaches is a *mixed*
# group. Given the chance of each question to be solved in one try, work out how many mixed groups to expect for each group size, and
# return the best size. Then look at three models: one that solves every question half of the time, one that solves each in 1 of 50
# tries, and one for which half of the questions are hopeless and half are certain. Larger groups also measure the baseline better,
# which this count leaves out. (Your conclusion is open.)


# %%
#| exercise best_group_size
def best_group_size(chances: list[float], sizes: list[int], budget: int) -> tuple[int, float]:
    """Find the group size that yields the most mixed groups.

    Args:
        chances: of each kind of question, all equally frequent, to be solved in one try.
        sizes: tries a question to choose from, at least 2 each.
        budget: answers a step; budget // size questions are asked.

    Returns:
        The best size, the smallest of equals, and the mixed groups to expect with it.

    Raises:
        ValueError: a chance is not in [0, 1], a size is below 2, or a list is empty.
    """
    raise NotImplementedError("exercise rl.best_group_size")


# %%
for chances in ([0.5], [0.02], [0.0, 1.0]):
    print(chances, best_group_size(chances, [2, 4, 8, 16, 32], budget=128))
