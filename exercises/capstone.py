# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: the capstone
#
# How often should a run save itself when machines die at random? What can be skipped when a stage ran again, but its
# result came out the same? And is version B better, or was it luck?

# %%
import math
from collections.abc import Callable

import torch

from nanochat_lib.model.gpt import GPT, GPTConfig

# %%
# Student's t for 95%, two-sided, by degrees of freedom.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}

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

# %% [markdown]
# ## paired_gain
#
# **Experiment.** Version B reached 2.31, version A 2.34. Is B better? Train both again with other seeds and the
# order may turn round: initial weights and the order of the data move a loss as much as many a good idea does.
# So train both versions with the same seeds and look at the differences, pair by pair: what the seed did to
# both cancels.
#
# Write `paired_gain(train, seeds)`: call `train("a", seed)` and `train("b", seed)` for each seed, take the
# differences a - b (positive where b is better, since these are losses), and return their mean with its 95%
# interval by Student's t: mean ± t · s / √n, with s the standard deviation over n - 1 and t from `T_95[n - 1]`.
#
# Then say what you saw in the check: is smear worth having in this little model? How many seeds would you want
# before you say so in public?


# %%
#| exercise paired_gain
def paired_gain(train: Callable[[str, int], float], seeds: list[int]) -> tuple[float, float, float]:
    """Compare two versions over several seeds, pair by pair.

    Args:
        train: takes "a" or "b" and a seed, returns the loss that this version reaches.
        seeds: two to ten different ones.

    Returns:
        The mean of a - b, and the lower and the upper end of its 95% interval.

    Raises:
        ValueError: fewer than two seeds, more than ten, or one of them twice.
    """
    raise NotImplementedError("exercise capstone.paired_gain")


# %%
def repeats_loss(version: str, seed: int) -> float:
    """Train a GPT of one layer, with smear in version b, on rows whose second half repeats the first."""
    smear = version == "b"
    model = GPT(GPTConfig(32, 2, 2, sequence_len=23, vocab_size=16, n_layer=1, smear=smear))
    model.init_weights(torch.Generator().manual_seed(seed))
    optimizer = torch.optim.Adam(model.parameters(), lr=6e-3)
    generator, losses = torch.Generator().manual_seed(seed), []
    for _ in range(120):
        half = torch.randint(16, (16, 12), generator=generator)
        rows = torch.cat((half, half), dim=1)
        targets = rows[:, 1:].clone()
        targets[:, :11] = -1
        loss = model(rows[:, :-1], targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-20:]) / 20


mean, low, high = paired_gain(repeats_loss, seeds=[0, 1, 2])
print(f"with smear the loss is {mean:.2f} nats lower, 95% interval {low:.2f} to {high:.2f}")
same = paired_gain(lambda version, seed: float(seed), [1, 5])
assert same == (0.0, 0.0, 0.0), f"two equal versions differ by {same}"
