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
from collections import Counter

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
    ### BEGIN SOLUTION
    if not train_answers or not test_answers:
        raise ValueError(f"{len(train_answers)} training and {len(test_answers)} test answers")
    # most_common keeps the order of first appearance among equals
    answer = Counter(train_answers).most_common(1)[0][0]
    return answer, sum(other == answer for other in test_answers) / len(test_answers)
    ### END SOLUTION


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
    ### BEGIN SOLUTION
    if n < 1 or not test_questions:
        raise ValueError(f"{n=} with {len(test_questions)} questions")
    questions = [question.lower().split() for question in test_questions]
    texts = [text.lower().split() for text in train_texts]
    sizes = {min(n, len(words)) for words in questions if words}
    known = {
        tuple(words[i : i + size])
        for size in sizes
        for words in texts
        for i in range(len(words) - size + 1)
    }
    leaked = 0
    for words in questions:
        size = min(n, len(words))
        runs = (tuple(words[i : i + size]) for i in range(len(words) - size + 1))
        leaked += bool(words) and any(run in known for run in runs)
    return leaked / len(questions)
    ### END SOLUTION


# %%
assert leaked_share(["the cat sat down"], ["did the cat sat", "the cat ran"], n=3) == 0.5
assert leaked_share(["this is a doghouse"], ["is a dog"], n=8) == 0.0
train = [content_text(m["content"]) for c in SpellingBee(300) for m in c["messages"]]
test = [c["messages"][0]["content"] for c in SpellingBee(100, "test")]
for n in (3, 5, 13):
    print(n, leaked_share(train, test, n))
