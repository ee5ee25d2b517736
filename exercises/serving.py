# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: serving
#
# What must be read again when a conversation goes on, who may board when many people talk at once, and
# where a stream of text has to stop.

# %%
import random
from collections.abc import Iterable, Iterator

import matplotlib.pyplot as plt

# %% [markdown]
# ## tokens_to_read
#
# Each turn of the chapter's chat reads the whole conversation again. An engine that keeps its cache between
# turns reads only what is new. How much is that? You get the turns of one conversation, each as (prompt, reply)
# in token ids, with the whole conversation so far in every prompt. After a turn the cache holds what the model
# has *read*: the prompt, and of the reply all but its last token, which was drawn and never fed back. For the
# next turn keep the longest beginning that cache and prompt have in common and throw the rest away. But the
# model must read at least one token to say anything: a prompt that is all in the cache still reads its last.
#
# Return for each turn how many tokens have to be read before the first word of the reply.


# %%
#| exercise tokens_to_read
def tokens_to_read(turns: list[tuple[list[int], list[int]]]) -> list[int]:
    """Count the tokens that each turn must read when the cache of the turn before is kept.

    Example: [([1, 2, 3], [7, 8]), ([1, 2, 3, 7, 8, 4], [9])] -> [3, 2]: 8 and 4 are new.

    Args:
        turns: (prompt, reply) in token ids; no prompt is empty.
    """
    raise NotImplementedError("exercise serving.tokens_to_read")


# %%
assert tokens_to_read([([1, 2, 3], [7, 8]), ([1, 2, 3, 7, 8, 4], [9])]) == [3, 2]
talk, turns = [0], []
for _ in range(20):  # twenty questions of 15 tokens, answers of 30
    talk = talk + [1] * 15
    turns.append((talk, [2] * 30))
    talk = talk + [2] * 30
kept, again = sum(tokens_to_read(turns)), sum(len(prompt) for prompt, _ in turns)
print(f"{kept:,} tokens read with the cache kept, {again:,} without")
assert kept < again / 20

# %% [markdown]
# ## stop_at
#
# A base model asked in the form `Q: ... A:` answers and then invents the next `Q:`. Programs stop
# such a stream at a phrase. But the pieces come cut anywhere: `"an", "swer\n", "Q", ": next"`.
# Yield the text as early as possible, but never a character of the phrase, nor anything after its
# first occurrence. So a tail that could still be the beginning of the phrase must wait; when it
# turns out not to be, it comes out after all, and what still waits when the pieces end comes out
# too. Stop taking pieces once the phrase is complete: each costs a step of the model. `stop` is not
# empty. How you cut the text into yielded pieces is your affair, but no piece is empty.


# %%
#| exercise stop_at
def stop_at(pieces: Iterable[str], stop: str) -> Iterator[str]:
    """Pass text through up to the first occurrence of `stop`, which may span pieces."""
    raise NotImplementedError("exercise serving.stop_at")


# %%
assert "".join(stop_at(["an", "swer\n", "Q", ": next"], "\nQ:")) == "answer"
assert "".join(stop_at(["a\n", "Quiet"], "\nQ:")) == "a\nQuiet"
assert list(stop_at(["ab", "\n"], "\nQ:")) == ["ab", "\n"]

# %% [markdown]
# ## mean_waits
#
# **Experiment.** A server decodes `slots` conversations at once: one step gives each of them one token. Who
# may board? *Static* batching waits until every slot is free, then lets the longest waiting requests in, as
# many as there are slots, and nobody else until the last of them is done. *Continuous* batching (Yu et al.
# 2022, Orca) fills any free slot at the next step. Simulate both, step by step.
#
# A request arrives before step `arrival` and needs `length` steps in a slot; it is done at the end of its last
# one. A step from t to t + 1 first boards (in order of arrival; of equals, the order of the list), then gives
# every running request one token. A request's wait is the time from its arrival to its end. Return the mean wait
# of both policies. Then say what you saw: which lengths make static batching worst, and why do the two meet
# where all lengths are equal and everybody comes at once?


# %%
#| exercise mean_waits
def mean_waits(requests: list[tuple[int, int]], slots: int) -> tuple[float, float]:
    """Simulate a server under static and under continuous batching.

    Example: requests (0, 1), (0, 3), (0, 2) on 2 slots -> static waits 1, 3, 5; continuous 1, 3, 3.

    Args:
        requests: (arrival, length) in steps; lengths are at least 1.
        slots: conversations that are decoded at once, at least 1.

    Returns:
        The mean wait under static and under continuous batching, in steps.
    """
    raise NotImplementedError("exercise serving.mean_waits")


# %%
# alt: mean wait over requests in a hundred steps: static batching climbs long before continuous batching does
def check_mean_waits() -> None:
    """Ten slots, most answers short and a few long, from a quiet server to a crowded one."""
    assert mean_waits([(0, 1), (0, 3), (0, 2)], slots=2) == (3.0, 7 / 3)
    rng, loads = random.Random(0), [2, 4, 6, 8, 10, 12, 14]
    curve = []
    for load in loads:
        arrivals = sorted(rng.randrange(1_000) for _ in range(10 * load))
        curve.append(mean_waits([(a, rng.choice((10, 20, 200))) for a in arrivals], slots=10))
    figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
    for column, name in enumerate(("static", "continuous")):
        axes.plot(loads, [waits[column] for waits in curve], marker="o", label=name)
    axes.set(xlabel="requests in a hundred steps", ylabel="mean wait (steps)", ylim=(0, None))
    axes.legend(frameon=False)
    plt.show()
    assert all(continuous <= static for static, continuous in curve), f"got {curve}"


check_mean_waits()
