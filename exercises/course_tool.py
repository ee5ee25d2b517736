# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: the course tool
#
# The chapter follows imports downwards: from a notebook to all it depends on. The first exercise turns the arrows
# round, the second cuts printed numbers to what all machines agree on.

# %%
import re

from nanochat_lib.course.layers import reachable

# %% [markdown]
# ## rebuild_order
#
# `course build` compares stamps, notebook by notebook. Suppose we had no stamps, only the list of edited modules.
# Which modules are affected, and in which order should we look at them? A module is affected when it was edited, or
# when it imports an affected one, however far down. In your list every module stands after all affected modules that
# it imports; where that leaves a choice, take the alphabetically first.


# %%
#| exercise rebuild_order
def rebuild_order(edited: set[str], graph: dict[str, set[str]]) -> list[str]:
    """List the modules that a set of edits affects, imported ones first.

    Args:
        edited: names of the modules that changed.
        graph: module to the modules it imports; it has no cycles.
    """
    raise NotImplementedError("exercise course_tool.rebuild_order")


# %%
chain = {"base": set(), "left": {"base"}, "right": {"base"}, "top": {"left", "right"}}
assert rebuild_order({"right"}, chain) == ["right", "top"]
assert rebuild_order({"base"}, chain) == ["base", "left", "right", "top"]

# %% [markdown]
# ## shared_digits
#
# A loss of 2.18342 on one machine is 2.18297 on the next: another processor adds in another order. The notebooks
# of this course print only what is the same everywhere, and people choose the digits by hand. Automate it.
#
# You get what one cell printed in several runs. Outside of numbers (`-?[0-9]+(\.[0-9]+)?`) the texts must be the
# same, or there is nothing to share: raise a ValueError that shows the first run that differs. For each number keep
# as many decimals as all runs agree on after rounding by `format(value, ".2f")` and its like, at most as many as the
# run that printed fewest. Where they disagree even without decimals, write `?`. Return the text.


# %%
#| exercise shared_digits
def shared_digits(runs: list[str]) -> str:
    """Cut the numbers of an output to the digits that all runs share.

    Example: ["loss 2.1834", "loss 2.1782"] -> "loss 2.18".

    Args:
        runs: what the same cell printed, at least one run.

    Returns:
        The text with shortened numbers.

    Raises:
        ValueError: the runs differ outside of their numbers.
    """
    raise NotImplementedError("exercise course_tool.shared_digits")


# %%
assert shared_digits(["loss 2.1834", "loss 2.1782"]) == "loss 2.18"
assert shared_digits(["3 of 60, 0.97", "3 of 60, 0.88"]) == "3 of 60, 1"
assert shared_digits(["took 12 s", "took 45 s"]) == "took ? s"
