# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: the capstone
#
# How often should a run save itself when machines die at random? And what can be skipped when a stage ran again, but its
# result came out the same?

# %%
import math

# %% [markdown]
# ## save_interval
#
# Saving a checkpoint takes $c$ seconds in which nothing is learned. Not saving is a bet: machines die on average once in $m$
# seconds, at random moments, and each death throws away the work since the last checkpoint. Save too often and the
# saving eats the run; too rarely and the dying does.
#
# Work out the interval $t$ (seconds of work between two checkpoints) that wastes the least. Take $c$ and $t$ to be much smaller than
# $m$: then a death costs half an interval on average, and deaths come at a rate of $1/m$. Write the share of
# time that is wasted as a function of $t$, and find its minimum on paper.
#
# Return both: the interval, and the share of time that is lost with it.


# %%
#| exercise save_interval
def save_interval(save_seconds: float, seconds_between_deaths: float) -> tuple[float, float]:
    """Choose how long to work between two checkpoints.

    Args:
        save_seconds: what a checkpoint costs, c.
        seconds_between_deaths: how long a machine lives on average, m.

    Returns:
        The best seconds of work between checkpoints, and the share of time lost at that interval.
    """
    raise NotImplementedError("exercise capstone.save_interval")


# %%
# a checkpoint of half a minute, a machine that lives a day: every 38 minutes, and 2.6% lost
interval, lost = save_interval(30, 86_400)
assert round(interval / 60) == 38 and round(100 * lost, 1) == 2.6, f"got {interval}, {lost}"

# %% [markdown]
# ## stages_to_run
#
# Our pipeline passes on fingerprints of *causes*: if the data stage must run again, so must everything after it, even when the
# new data is the same to the last byte. Suppose each stage also told us whether its *result* changed. Then a stage need only
# run when it was edited itself, or when the result of a stage that it reads changed.
#
# You get the stages in order, each with the stages it reads; the set of edited stages; and the set of
# stages that, if run, come out with the same bytes as before. List the stages that run.


# %%
#| exercise stages_to_run
def stages_to_run(
    needs: dict[str, tuple[str, ...]], edited: set[str], same_result: set[str]
) -> list[str]:
    """List the stages that have to run, in order, when unchanged results stop the chain.

    Args:
        needs: stage -> stages it reads; a stage stands after all it reads.
        edited: stages whose settings or code changed.
        same_result: stages whose result would not change if they ran.
    """
    raise NotImplementedError("exercise capstone.stages_to_run")


# %%
chain = {"data": (), "tokenizer": ("data",), "base": ("data", "tokenizer"), "report": ("base",)}
assert stages_to_run(chain, {"data"}, set()) == ["data", "tokenizer", "base", "report"]
assert stages_to_run(chain, {"data"}, {"data"}) == ["data"]
assert stages_to_run(chain, {"tokenizer", "report"}, {"tokenizer"}) == ["tokenizer", "report"]
