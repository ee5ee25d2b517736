# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: tasks
#
# Two questions to ask of any benchmark before its score means anything: what does a model get that
# knows nothing but the training answers, and how much of the test was in the training data?

# %%
import math
import random
from collections import Counter

import matplotlib.pyplot as plt

from nanochat_lib.tasks.base import content_text
from nanochat_lib.tasks.spelling import SpellingBee

# %% [markdown]
# ## majority_floor
#
# Chance is the wrong floor where answers are not equally likely. The honest one: always give the
# answer that is most frequent in *training*, and see how often that is right on the *test*. Ties go
# to the answer that was met first in training. If the two sets differ, this can be far from the
# test's own majority; that is the point, since nobody may look at the test to choose.
#
# Return the constant answer and its accuracy on the test. Without a training answer or a test
# answer, raise a ValueError.


# %%
#| exercise majority_floor
def majority_floor(train_answers: list[str], test_answers: list[str]) -> tuple[str, float]:
    """Choose the most frequent training answer and measure it on the test.

    Example: ["1", "2", "1"], ["1", "3"] -> ("1", 0.5).

    Args:
        train_answers: the right answers of the training questions.
        test_answers: the right answers of the test questions.

    Returns:
        The constant answer, and its accuracy on the test between 0 and 1.

    Raises:
        ValueError: one of the lists is empty.
    """
    raise NotImplementedError("exercise tasks.majority_floor")


# %%
assert majority_floor(["1", "2", "1"], ["1", "3"]) == ("1", 0.5)
assert majority_floor(["a", "b", "b", "b"], ["a", "a", "a"]) == ("b", 0.0), (
    "the test must not choose"
)
train_counts, test_counts = (
    [str(c["word"].count(c["letter"])) for c in SpellingBee(500, split)]
    for split in ("train", "test")
)
print(majority_floor(train_counts, test_counts))

# %% [markdown]
# ## leaked_share
#
# The chapter kept words apart by construction. For data that others collected you can only look.
# The common check (GPT-3's authors used 13 words) asks of each test question whether a run of `n`
# consecutive words also occurs in the training text. Lower case, and words split at whitespace. A
# question shorter than `n` words leaks if all of it occurs as a run of words: "is a dog" does not
# occur in "this is a doghouse".
#
# Return the share of questions that leak. Build an index once: comparing every question with every
# text would take days on a real corpus. With `n` below 1 or no question, raise a ValueError.


# %%
#| exercise leaked_share
def leaked_share(train_texts: list[str], test_questions: list[str], n: int = 8) -> float:
    """Measure which share of the questions has a run of n words in common with the training texts.

    Example: n=3, ["the cat sat down"], ["did the cat sat", "the cat ran"] -> 0.5.

    Args:
        train_texts: what the model was trained on.
        test_questions: what it will be asked.
        n: length of the run, in words; shorter questions count whole.

    Returns:
        The share, between 0 and 1.

    Raises:
        ValueError: n is below 1, or there is no question.
    """
    raise NotImplementedError("exercise tasks.leaked_share")


# %%
assert leaked_share(["the cat sat down"], ["did the cat sat", "the cat ran"], n=3) == 0.5
assert leaked_share(["this is a doghouse"], ["is a dog"], n=8) == 0.0
train = [content_text(m["content"]) for c in SpellingBee(300) for m in c["messages"]]
test = [c["messages"][0]["content"] for c in SpellingBee(100, "test")]
for n in (3, 5, 13):
    print(n, leaked_share(train, test, n))

# %% [markdown]
# ## blind_accuracy
#
# **Experiment.** What does a model score that never sees the question? Often far more than chance, because
# the people who invented wrong options gave themselves away (Gururangan et al. 2018, arXiv:1803.02324). Train
# the simplest judge of options there is. Over all training questions, let r(w) be how many right options
# hold the word w and f(w) how many wrong ones do (an option counts once for a word, however often it holds
# it). A word speaks for its option by $\log\frac{r(w) + 1}{R + 2} - \log\frac{f(w) + 1}{F + 2}$, with R and F
# the numbers of right and wrong options. The score of an option is the sum over its different words; the
# judge takes the highest, and the first of equals. Words are lower case, split at white space.
#
# Return the judge's accuracy on the test questions. Then say what you saw: when may you call a model's score
# on such a benchmark understanding?


# %%
#| exercise blind_accuracy
def blind_accuracy(
    train: list[tuple[str, list[str], int]], test: list[tuple[str, list[str], int]]
) -> float:
    """Answer multiple choice without the question, by what right and wrong options look like.

    Args:
        train: (question, options, index of the right one) to learn from.
        test: the same, to be judged.

    Returns:
        The share of test questions for which the judge takes the right option.
    """
    raise NotImplementedError("exercise tasks.blind_accuracy")


# %%
# alt: accuracy without the question over how often a wrong option gives itself away: from chance at 0 to nearly all
def check_blind_accuracy() -> None:
    """Quizzes whose wrong options say "never" or "always" more and more often."""
    rng, words = random.Random(0), "red blue iron gold sea hill moon star cold warm".split()

    def quiz(n: int, telltale: float) -> list[tuple[str, list[str], int]]:
        rows = []
        for _ in range(n):
            answer, options = rng.randrange(4), []
            for i in range(4):
                option = rng.sample(words, 2)
                if i != answer and rng.random() < telltale:
                    option.append(rng.choice(("never", "always")))
                options.append(" ".join(option))
            rows.append(("which?", options, answer))
        return rows

    shares = [0.0, 0.25, 0.5, 0.75, 1.0]
    scores = [blind_accuracy(quiz(400, share), quiz(400, share)) for share in shares]
    assert scores[0] < 0.35 and scores[-1] > 0.9, f"got {scores}"
    figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
    axes.plot(shares, scores, marker="o")
    axes.axhline(0.25, color="grey", linestyle=":")
    axes.set(xlabel='wrong options with "never" or "always"', ylabel="right without the question")
    plt.show()


check_blind_accuracy()
