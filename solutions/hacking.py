# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: when the reward is wrong
#
# The holes in six graders, an audit with twins, and the price of silence.

# %%
import re
from collections.abc import Callable

# %% [markdown]
# ## holes
#
# **The hunt.** Six graders decide whether a response gives the right result, a whole number from 0 to 99. A policy that is rewarded by
# one of them will find out what you find out now: is there *one* response that passes for every result, without a look at the
# question? Return it for each grader that has such a hole, and None for those that have none. (One response a grader, at most
# 1,000 characters.)

# %%
GRADERS: dict[str, Callable[[str, int], bool]] = {
    "contains": lambda response, result: str(result) in response,
    "a_line": lambda response, result: f"The answer is {result}." in response.split("\n"),
    "last_number": lambda response, result: re.findall(r"\d+", response)[-1:] == [str(result)],
    "not_wrong": lambda response, result: all(
        int(n) == result for n in re.findall(r"\d+", response)
    ),
    "ends_so": lambda response, result: re.search(rf"(is|=) {result}(\.|$)", response) is not None,
    "whole": lambda response, result: response.strip() == f"The answer is {result}.",
}


# %%
#| exercise holes
def holes() -> dict[str, str | None]:
    """Find for each of GRADERS a response that passes whatever the result is, or None if there is none."""
    ### BEGIN SOLUTION
    numbers = range(100)
    return {
        "contains": " ".join(map(str, numbers)),
        "a_line": None,  # a hundred lines of 16 characters: too long
        "last_number": None,
        "not_wrong": "I would rather not say.",
        "ends_so": " ".join(f"= {n}." for n in numbers),
        "whole": None,
    }
    ### END SOLUTION


# %%
for name, response in holes().items():
    passed = sum(GRADERS[name](response, n) for n in range(100)) if response is not None else 0
    print(f"{name:12} {passed} of 100")

# %% [markdown]
# ## audit
#
# You have replies to questions and to their twins, and you know of each pair that the right answers differ. A model that answers
# right must reply differently. Summarize: the share of pairs told apart, and the replies that a model gives to many different
# questions, which are what you should read first. Replies are compared after stripping spaces around them.


# %%
#| exercise audit
def audit(pairs: list[tuple[str, str]], at_least: int) -> tuple[float, list[str]]:
    """Summarize how a model replied to questions and their twins.

    Example: [("a", "b"), ("c", "c ")] with at_least=2 -> (0.5, ["c"]).

    Args:
        pairs: reply to a question and reply to its twin.
        at_least: a reply is reported if it was given so often, over all questions.

    Returns:
        The share of pairs told apart, and the frequent replies, most frequent first, equals in alphabetical order.

    Raises:
        ValueError: there is no pair.
    """
    ### BEGIN SOLUTION
    if not pairs:
        raise ValueError("no pairs: there is nothing to audit")
    stripped = [(a.strip(), b.strip()) for a, b in pairs]
    counts: dict[str, int] = {}
    for reply in (reply for pair in stripped for reply in pair):
        counts[reply] = counts.get(reply, 0) + 1
    frequent = sorted((-n, reply) for reply, n in counts.items() if n >= at_least)
    return sum(a != b for a, b in stripped) / len(pairs), [reply for _, reply in frequent]
    ### END SOLUTION


# %%
print(audit([("It is 3.", "It is 4."), ("I do not know.", "I do not know.")], at_least=2))

# %% [markdown]
# ## price_of_silence
#
# **Experiment.** A hole is a reward for silence that is too high. But silence is not always wrong: who does not know should say so. Let
# a right answer earn 1, a wrong one `wrong` (0 or less), and silence `silence`. A policy that knows its chance $p$ of being right does
# whatever earns more, and answers when both earn the same. Work out for each question whether it answers. Then vary the price of a
# wrong answer from 0 to -3, with silence at 0, for questions whose chances are spread evenly from 0 to 1: which share is answered, and
# how many of the answers are right? Which price would you choose for a calculator, which for a story? (Your conclusion is open.)


# %%
#| exercise price_of_silence
def price_of_silence(
    chances: list[float], wrong: float, silence: float
) -> tuple[float, float | None]:
    """Work out what a policy that maximizes its reward does.

    Args:
        chances: of each question, to be answered right.
        wrong: reward of a wrong answer; a right one earns 1.
        silence: reward of saying nothing.

    Returns:
        The share of questions that are answered, and the expected share of right ones among the answers (None if
        there are none).

    Raises:
        ValueError: there is no question, or a chance is not in [0, 1].
    """
    ### BEGIN SOLUTION
    if not chances or not all(0 <= p <= 1 for p in chances):
        raise ValueError(f"{chances=}: one or more, each in [0, 1]")
    answered = [p for p in chances if p + (1 - p) * wrong >= silence]
    right = sum(answered) / len(answered) if answered else None
    return len(answered) / len(chances), right
    ### END SOLUTION


# %%
evenly = [i / 100 for i in range(101)]
for wrong in (0.0, -0.5, -1.0, -3.0):
    print(wrong, price_of_silence(evenly, wrong, silence=0.0))
