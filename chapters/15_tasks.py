# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Tasks: conversations that come with a grader
#
# A base model continues text. Give it a question and it may well continue with four more questions,
# because that is what a page of questions looks like. To get answers we need two things: examples
# of the turn-taking we want, and a way to tell a right answer from a wrong one. A *task* is both in
# one object:
#
# ```python
# task = SpellingBee(size=100, split="test")
# task.evaluate(task[0], "#### 3")    # True or False: was 3 the right count?
# ```
#
# In this chapter we build the tasks that the next chapters train and test on: multiple choice, word
# problems with a calculator, open chat, spelling. You need the tokenizer's conversations and the
# calculator of earlier chapters.
# On a laptop the chapter takes about 10 seconds.

# %%
#| default_exp tasks.base
# A task: conversations with a grader; checks, slices and mixtures of them.

# %%
#| export
from abc import ABC, abstractmethod
from bisect import bisect_right
from itertools import accumulate

import torch

from nanochat_lib.tokenizer.conversation import MARKERS

# %%
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
from datasets import disable_progress_bars

from nanochat_lib.common import local_generator
from nanochat_lib.course.manifest import library_root
from nanochat_lib.tokenizer.conversation import validate_conversation
from nanochat_lib.tokenizer.tokenizer import Tokenizer

# %% [markdown]
# ## A conversation, and what a grader reads of it
#
# Chapter `tokenizer` wrote conversations down: messages with a role and a content, checked by
# `validate_conversation`, rendered with a loss mask that is 1 on what the assistant says. Here is one
# whose answer leaves the product to the calculator, so its content is a list of parts:

# %%
with_tool = {
    "messages": [
        {"role": "user", "content": "What is 6 times 7?"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "It is "},
                {"type": "python", "text": "6*7"},
                {"type": "python_output", "text": "42"},
                {"type": "text", "text": "42."},
            ],
        },
    ]
}
assert validate_conversation(with_tool) is with_tool

# %% [markdown]
# A grader must read such answers. What the engine generated is decoded with the markers in it, so we
# write reference answers in the same form, and one grader reads both.


# %%
#| export
def content_text(content: str | list[dict]) -> str:
    """Write a message's content as one text, with the markers of tool calls and their outputs.

    Example: a python part "6*7" -> "<|python_start|>6*7<|python_end|>".
    A decoded response has the same form, so one grader reads both.
    """
    if isinstance(content, str):
        return content
    return "".join(part_text(part) for part in content)


def part_text(part: dict) -> str:
    """Write one part as text, between its markers."""
    start, end, _ = MARKERS[part["type"]]
    return start + part["text"] + end


# %%
# NBVAL_CHECK_OUTPUT
print(content_text(with_tool["messages"][1]["content"]))

# %% [markdown]
# ## A task: conversations and their grader
#
# Different data sets store questions in different columns and grade them by different rules. We
# hide that behind four things: `len(task)`, `task[i]`, `task.evaluate(conversation, response)` and
# `task.reward`, the same as a number, for the reinforcement learning to come. A conversation is
# built when it is asked for, so that a task of a million rows costs nothing until it is used.


# %%
#| export
class Task(ABC):
    """A data set of conversations together with the grader of an answer.

    A subclass gives `__len__`, `__getitem__` and, if its answers can be graded, `evaluate`.
    `title` says what it asks, `floor` is the accuracy of guessing (None where guessing gets nothing), and
    `floor_name` says what guessing means. Where `must_end` is true,
    an answer that was cut off counts as wrong.
    """

    title = ""
    floor: float | None = None
    floor_name = "chance"
    must_end = False

    def __init__(self, split: str = "train"):
        """Remember which part of the data this is: "train", "test", ..."""
        self.split = split

    @abstractmethod
    def __len__(self) -> int:
        """Count the conversations."""

    @abstractmethod
    def __getitem__(self, index: int) -> dict:
        """Build conversation number `index`; it ends with the reference answer."""

    def evaluate(self, conversation: dict, response: str) -> bool:
        """Decide whether a response is right; `conversation` is what `__getitem__` returned.

        Raises:
            ValueError: the task is for training only.
        """
        raise ValueError(f"{type(self).__name__} has no grader: it is for training only")

    def reward(self, conversation: dict, response: str) -> float:
        """Score a response for reinforcement learning: 1.0 if right, else 0.0."""
        return float(self.evaluate(conversation, response))

    def slice(self, start: int = 0, stop: int | None = None, step: int = 1) -> "TaskSlice":
        """View the rows `start:stop:step` of this task as a task."""
        return TaskSlice(self, start, stop, step)

    def check_index(self, index: int) -> int:
        """Return a valid index; negative ones raise too, so that `for c in task` ends."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of a task with {len(self)} conversations")
        return index


# %% [markdown]
# The smallest task that has everything, in ten lines:


# %%
class Times(Task):
    """Products of two digits, each written with its answer."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> dict:
        a, b = divmod(self.check_index(index), 10)
        question = {"role": "user", "content": f"What is {a} times {b}?"}
        return {"messages": [question, {"role": "assistant", "content": f"It is {a * b}."}]}

    def evaluate(self, conversation: dict, response: str) -> bool:
        return response.strip() == conversation["messages"][-1]["content"]


# %%
times = Times()
assert times.evaluate(times[67], "It is 42.") and not times.evaluate(times[67], "It is 43.")
assert (times.reward(times[67], "It is 42."), len(list(times))) == (1.0, 100)

# %% [markdown]
# Often we want a part: the first thousand rows, or every second one. A slice is a task whose rows
# point into another; Python's `range` already does the arithmetic.


# %%
#| export
class TaskSlice(Task):
    """The rows `start:stop:step` of another task, graded by that task."""

    def __init__(self, task: Task, start: int = 0, stop: int | None = None, step: int = 1):
        super().__init__(task.split)
        self.task, self.title, self.must_end = task, task.title, task.must_end
        self.floor, self.floor_name = task.floor, task.floor_name
        self.rows = range(len(task))[start:stop:step]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.task[self.rows[self.check_index(index)]]

    def evaluate(self, conversation: dict, response: str) -> bool:
        return self.task.evaluate(conversation, response)

    def reward(self, conversation: dict, response: str) -> float:
        return self.task.reward(conversation, response)


# %%
# NBVAL_CHECK_OUTPUT
for conversation in times.slice(10, 40, 12):
    print(conversation["messages"][0]["content"])

# %% [markdown]
# ## Reading rows
#
# The real data sets live on the Hugging Face hub as tables. The `datasets` library downloads them
# once and maps them into memory, so that 460,000 conversations do not have to fit. For work without
# a network each task takes `path=` instead, a local file with the same columns.


# %%
#| default_exp tasks.rows
# Open a Hugging Face data set, from local files or from the hub.

# %%
#| export tasks.rows
from abc import abstractmethod
from pathlib import Path

from nanochat_lib.data.files import json_rows
from nanochat_lib.data.parquet import open_parquet
from nanochat_lib.tokenizer.conversation import validate_conversation


def load_rows(
    path: str | Path | None, hub_name: str, subset: str | None = None, split: str = "train"
):
    """Open a Hugging Face data set: from local files, or from the hub by name.

    Args:
        path: a .json, .jsonl or .parquet file with the hub's columns; None downloads from the hub.
        hub_name: such as "openai/gsm8k".
        subset: the hub's configuration, such as "main".
        split: the hub's split; a local file has only one, whatever it is called.

    Returns:
        A `datasets.Dataset`: rows, each a dict.

    Raises:
        ValueError: the file is missing, empty, damaged or of another kind, with its name.
    """
    import datasets  # takes a second to import; most chapters that import tasks never read files

    if path is None:
        return datasets.load_dataset(hub_name, subset, split=split)
    path = Path(path)  # read literally; load_dataset would take it as a pattern
    if path.suffix not in (".json", ".jsonl", ".parquet") or not path.is_file():
        raise ValueError(
            f"{path} is not a .json, .jsonl or .parquet file; omit path to use the hub"
        )
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    if path.suffix == ".parquet":
        return datasets.Dataset(open_parquet(path).read())
    rows = []
    for place, row in json_rows(path):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, {place} is no JSON object: {row!r:.60}")
        rows.append(row)
    return datasets.Dataset.from_list(rows)


def required(row: dict, **kinds: type) -> list:
    """Return the named columns of a row, in order; ValueError names one of another kind."""
    for name, kind in kinds.items():
        if not isinstance(row.get(name), kind):
            found = repr(row[name]) if name in row else f"missing, among {', '.join(row)}"
            raise ValueError(f"column {name} is {found:.80}, expected {kind.__name__}")
    return [row[name] for name in kinds]


class RowTask(Task):
    """A task over the rows of a data set; a subclass reads one row. Errors name data set and row."""

    def __init__(self, path: str | Path | None, hub_name: str, subset: str | None, split: str):
        super().__init__(split)
        self.rows = load_rows(path, hub_name, subset, split)
        self.source = path or hub_name

    @abstractmethod
    def read_row(self, row: dict) -> dict:
        """Build the conversation; ValueError where the row does not hold one."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[self.check_index(index)]
        try:
            return validate_conversation(self.read_row(row))
        except ValueError as error:
            raise ValueError(f"{self.source}, row {index}: {error}") from error


# %% [markdown]
# ## Multiple choice: why letters?
#
# ARC (science exams of American schools) and MMLU (57 subjects from law to virology) ask a question
# and offer options. We could ask for the option's text, but then a right answer in other words is
# marked wrong. A letter has one spelling. It is also one token, which lets us grade a model that
# cannot hold a conversation yet: compare the logits of the four letters and take the largest.
#
# That only works if the letter in the question and the letter in the answer are the *same* token.
# Here is the trap: the pattern that cuts text before BPE glues a leading space or bracket to a
# word. ` A`, `(A` and `A` can be three tokens that have nothing to do with each other until the
# model has learned so.

# %%
# NBVAL_CHECK_OUTPUT
letters_text = [
    "B",
    "Which one? - iron (B)\n",
    "Which one?\nB) iron\n",
    "Which one? - iron=B\n",
] * 20
glued = Tokenizer.train(letters_text, vocab_size=330)
for form in ("B", " (B)", "\nB)", "=B"):
    print(f"{form!r:7}", [glued.decode([token]) for token in glued.encode(form)])

# %% [markdown]
# `=B` has become one token of its own and shares nothing with the bare `B` of the answer. ` (B)`
# keeps the letter alone: the space goes to the bracket. We put it after the option, not before: a
# model reads left to right, so at the letter it has already seen the option and can store the two
# together.


# %%
#| default_exp tasks.multiple_choice
# Multiple choice: options with letters, and a grader that wants exactly one.

# %%
#| export tasks.multiple_choice
import re
from abc import abstractmethod
from string import ascii_uppercase


def render_choices(question: str, choices: list[str]) -> str:
    """Write a question and its options, a letter after each: "Which? / - iron (A) / - gold (B)"."""
    options = [f"- {choice} ({letter})" for choice, letter in zip(choices, ascii_uppercase)]
    return "\n".join([question, *options, "Answer with the letter."])


# %%
#| export tasks.multiple_choice
def extract_letter(response: str, letters: list[str]) -> str | None:
    """Read the one letter that a response settles on, or None.

    Example: "B", "(B)." and "Fe(II), so (B)" -> "B"; "Because" and "b" -> None.

    A response that names two different options in brackets has not settled, and gets None.
    """
    bare = response.strip().rstrip(".").strip("()")
    if bare in letters:
        return bare
    named = set(re.findall(r"\(([A-Z])\)", response)) & set(letters)
    return named.pop() if len(named) == 1 else None


# %%
# NBVAL_CHECK_OUTPUT
print(render_choices("Which one rusts?", ["gold", "iron"]))
responses = ("B", "(B).", "Iron rusts, so (B).", "(A) or (B)", "Because", "")
print([extract_letter(response, ["A", "B"]) for response in responses])

# %% [markdown]
# `Because` holds a B, and `(A) or (B)` holds the right answer whatever it is. Both get nothing, as
# they should. Now the class that ARC and MMLU share; they differ only in how a row is spelled.


# %%
#| export tasks.multiple_choice
class MultipleChoice(RowTask):
    """Questions with lettered options; a subclass reads one row of its data set."""

    @abstractmethod
    def read_question(self, row: dict) -> tuple[str, list, int]:
        """Return the question, its options as they stand (unchecked), and the index of the right one."""

    def read_row(self, row: dict) -> dict:
        """Build the conversation; "letters" beside the messages lists what to choose from."""
        question, choices, answer = self.read_question(row)
        if not all(isinstance(choice, str) for choice in choices):
            raise ValueError(f"the options are {choices!r:.80}, expected text")
        if not 2 <= len(choices) <= 26 or not 0 <= answer < len(choices):
            raise ValueError(f"option {answer} of {len(choices)}, expected 2 to 26 options")
        letters = list(ascii_uppercase[: len(choices)])
        user = {"role": "user", "content": render_choices(question, choices)}
        messages = [user, {"role": "assistant", "content": letters[answer]}]
        return {"messages": messages, "letters": letters}

    @property
    def floor(self) -> float:
        """The accuracy of guessing: the mean of 1 / number of options."""
        return sum(1 / len(conversation["letters"]) for conversation in self) / len(self)

    def evaluate(self, conversation: dict, response: str) -> bool:
        """Compare the letter that the response settles on with the reference."""
        letter = extract_letter(response, conversation["letters"])
        return letter == conversation["messages"][-1]["content"]


# %%
#| default_exp tasks.arc
# ARC: science questions of American school exams.

# %%
#| export tasks.arc
from pathlib import Path


class ARC(MultipleChoice):
    """Science questions of American school exams, grades 3 to 9.

    Args:
        subset: "ARC-Easy" or "ARC-Challenge" (questions that simple retrieval got wrong).
        split: "train", "validation" or "test".
        path: a local file with the hub's columns question, choices {text, label}, answerKey.

    Source: Clark et al. 2018 (arXiv:1803.05457); hub: allenai/ai2_arc.
    """

    def __init__(
        self, subset: str = "ARC-Easy", split: str = "train", path: str | Path | None = None
    ):
        super().__init__(path, "allenai/ai2_arc", subset, split)

    def read_question(self, row: dict) -> tuple[str, list, int]:
        """Find the answer by its label: some rows count 1, 2, 3, 4 instead of A, B, C, D."""
        question, choices, answer = required(row, question=str, choices=dict, answerKey=str)
        texts, labels = required(choices, text=list, label=list)
        if answer not in labels:
            raise ValueError(f"answer {answer!r} is not among the labels {labels}")
        return question, texts, labels.index(answer)


# %%
#| default_exp tasks.mmlu
# MMLU: exam questions in 57 subjects.

# %%
#| export tasks.mmlu
from pathlib import Path


class MMLU(MultipleChoice):
    """Exam questions in 57 subjects, four options each.

    Args:
        subset: "all", or one subject such as "astronomy".
        split: "dev", "validation", "test", or "auxiliary_train" (about 100,000 from other exams).
        path: a local file with the hub's columns question, subject, choices, answer.

    Source: Hendrycks et al. 2021 (arXiv:2009.03300); hub: cais/mmlu.
    """

    def __init__(self, subset: str = "all", split: str = "test", path: str | Path | None = None):
        if split == "auxiliary_train":  # the hub keeps it as a configuration of its own
            super().__init__(path, "cais/mmlu", "auxiliary_train", "train")
        else:
            super().__init__(path, "cais/mmlu", subset, split)

    def read_question(self, row: dict) -> tuple[str, list, int]:
        """Return the row's fields; auxiliary_train wraps them once more, in "train"."""
        question, choices, answer = required(
            row.get("train") or row, question=str, choices=list, answer=int
        )
        return question, choices, answer


# %% [markdown]
# We write two rows in ARC's columns, the second with the numbers that some real rows use as labels,
# and read them back.

# %%
folder = Path(tempfile.mkdtemp())
disable_progress_bars()  # two rows need none


def write_jsonl(name: str, rows: list) -> Path:
    """Write one JSON value a line."""
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# %%
metals = {"text": ["gold", "iron", "silver"], "label": ["A", "B", "C"]}
planets = {"text": ["Mars", "Venus", "Saturn", "Earth"], "label": ["1", "2", "3", "4"]}
rows = [
    {"question": "Which metal rusts?", "choices": metals, "answerKey": "B"},
    {"question": "Which planet is the largest?", "choices": planets, "answerKey": "3"},
]
arc = ARC(path=write_jsonl("arc.jsonl", rows))

# %%
# NBVAL_CHECK_OUTPUT
for message in arc[1]["messages"]:
    print(f"{message['role']}: {message['content']}")
print(f"floor {arc.floor:.3f}: the mean of 1/3 and 1/4")

# %% [markdown]
# The floor belongs beside every score. A model that scores 27% on four options has learned next to
# nothing, and one at 20% is not stupid: it is likely not answering with letters at all.
#
# ## Word problems: the grader reads the last number
#
# GSM8K holds 8,792 word problems with worked answers. Its authors marked every calculation,
# `<<48/2=24>>`, and put the result on a last line after `####`. The marks are tool calls waiting to
# be used:


# %%
#| default_exp tasks.gsm8k
# GSM8K: word problems whose calculations become tool calls.

# %%
#| export tasks.gsm8k
import re
from decimal import Decimal
from pathlib import Path

from nanochat_lib.inference.calculator import calculate

CALCULATION = re.compile(r"<<([^<>=]+)=([^<>]*)>>")


def split_calculations(answer: str) -> list[dict]:
    """Turn a worked answer into parts: every <<expression=result>> becomes a call and its output.

    The output is what our calculator returns, so that the model trains on what it will see: the
    data says 144.00 where the calculator says 144. Where it cannot calculate, the data's own
    result stays.
    """
    parts, done = [], 0
    for match in CALCULATION.finditer(answer):
        expression, result = match.groups()
        parts.append({"type": "text", "text": answer[done : match.start()]})
        parts.append({"type": "python", "text": expression})
        output = calculate(expression)
        parts.append({"type": "python_output", "text": result if output is None else output})
        done = match.end()
    parts.append({"type": "text", "text": answer[done:]})
    return [part for part in parts if part["text"]]


# %%
# NBVAL_CHECK_OUTPUT
worked = "Half of 48 is 48/2 = <<48/2=24.00>>24.\nTogether 48+24 = <<48+24=72>>72.\n#### 72"
for part in split_calculations(worked):
    print(f"{part['type']:14}{part['text']!r}")

# %% [markdown]
# The grader takes the number after the last `####`. Real answers hold commas (`59,616`), signs and
# decimals, so we compare numbers, not strings. `Decimal` keeps 0.1 exact where a float would not.


# %%
#| export tasks.gsm8k
FINAL = re.compile(
    r"[\s*]*(?P<mark>[-+$€£\s]{0,4})(?P<number>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?!(?:[^\w\n]|_)*[0-9]|[eExX][-+]?[0-9])"  # the line holds more of a number: 10 000, 1/2, 1e3, 5:30
)


def final_number(text: str) -> Decimal | None:
    """Read the number after the last ####, or None.

    Example: "#### $1,200.50" and "#### -€5 each" -> 1200.50 and -5; "about 12", "#### 1/2" -> None.

    Sign and currency may come in either order; commas part groups of three; words may follow. Where
    more digits follow without a word between, the number has not ended, and there is none.
    """
    before, marker, after = text.rpartition("####")
    found = FINAL.match(after.replace("\N{MINUS SIGN}", "-"))
    if not marker or not found:
        return None
    sign = -1 if "-" in found["mark"] else 1
    return sign * Decimal(found["number"].replace(",", ""))


# %%
# NBVAL_CHECK_OUTPUT
for text in ("#### 59,616", "#### -3", "#### 18.00", "so 12 #### 7\n#### 8", "#### many", "72"):
    print(f"{text!r:24} {final_number(text)}")
assert final_number("#### 18.00") == final_number("#### 18")


# %%
#| export tasks.gsm8k
class GSM8K(RowTask):
    """Grade-school word problems; calculations go to the calculator, "#### n" ends the answer.

    Args:
        split: "train" (7,473 problems) or "test" (1,319).
        path: a local file with the hub's columns question and answer.

    Source: Cobbe et al. 2021 (arXiv:2110.14168); hub: openai/gsm8k.
    """

    def __init__(self, split: str = "train", path: str | Path | None = None):
        super().__init__(path, "openai/gsm8k", "main", split)

    def read_row(self, row: dict) -> dict:
        """Build the conversation, with the worked answer in parts."""
        question, answer = required(row, question=str, answer=str)
        parts = split_calculations(answer)
        if final_number(answer) is None:
            raise ValueError(f"the answer ends {answer[-40:]!r}, expected a number after ####")
        user = {"role": "user", "content": question}
        return {"messages": [user, {"role": "assistant", "content": parts}]}

    def evaluate(self, conversation: dict, response: str) -> bool:
        """Compare the final numbers as numbers: 1,200 is 1200.00."""
        truth = final_number(content_text(conversation["messages"][-1]["content"]))
        if truth is None:
            raise ValueError("the reference answer has no number after ####")
        return final_number(response) == truth


# %%
problem = {"question": "Tom has 48 pens, Ann half as many. How many together?", "answer": worked}
gsm8k = GSM8K(path=write_jsonl("gsm8k.jsonl", [problem]))
reference = content_text(gsm8k[0]["messages"][-1]["content"])
assert gsm8k.evaluate(gsm8k[0], reference), "a grader must accept its own reference answer"
assert gsm8k.evaluate(gsm8k[0], "#### 72.0") and not gsm8k.evaluate(gsm8k[0], "#### 24")

# %% [markdown]
# That first assert is the cheapest test of any grader, and worth running over a whole data set: if
# the reference answers do not score 100%, no model can.
#
# ## Open chat, and who am I
#
# Small talk and advice have no grader, but they teach the shape of a conversation. SmolTalk is
# 460,000 of them. And a model does not know its own name: nothing in its pretraining text is about
# it. We tell it with a file of a few hundred conversations, one JSON list of messages a line. You
# can add your own line and it will know your name too.


# %%
#| default_exp tasks.smoltalk
# SmolTalk: general conversations to train on.

# %%
#| export tasks.smoltalk
from pathlib import Path


class SmolTalk(RowTask):
    """General conversations of several turns, some with a system message; for training only.

    Args:
        split: "train" (460,000 conversations) or "test" (24,000).
        path: a local file with the hub's column messages.

    Source: Allal et al. 2025 (arXiv:2502.02737); hub: HuggingFaceTB/smol-smoltalk.
    """

    def __init__(self, split: str = "train", path: str | Path | None = None):
        super().__init__(path, "HuggingFaceTB/smol-smoltalk", None, split)

    def read_row(self, row: dict) -> dict:
        """Return the row's messages, as they are."""
        return {"messages": row.get("messages")}


# %%
#| default_exp tasks.custom_json
# Conversations from a file of your own: identity, house style.

# %%
#| export tasks.custom_json

from pathlib import Path

from nanochat_lib.data.files import numbered_json


def read_conversations(path: str | Path) -> list[dict]:
    """Read a list of messages or {"messages": [...]} from each line; errors name the line."""
    conversations = []
    for number, value in numbered_json(path):
        value = {"messages": value} if isinstance(value, list) else value
        try:
            conversations.append(validate_conversation(value))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return conversations


class CustomJSON(Task):
    """Conversations from your own JSON lines file: identity, house style; for training only."""

    def __init__(self, path: str | Path, split: str = "train"):
        super().__init__(split)
        self.conversations = read_conversations(path)
        if not self.conversations:
            raise ValueError(
                f"{path} holds no conversation: write one JSON list of messages a line"
            )

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> dict:
        return self.conversations[self.check_index(index)]


# %%
# NBVAL_CHECK_OUTPUT
who = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "I am nanochat, a small language model."},
]
identity = CustomJSON(write_jsonl("identity.jsonl", [who, who + with_tool["messages"]]))
print([len(conversation["messages"]) for conversation in identity])
try:
    CustomJSON(write_jsonl("broken.jsonl", [who, who + who[1:]]))
except ValueError as error:
    print(str(error).replace(str(folder), "..."))

# %% [markdown]
# ## SpellingBee: a capability from a generator
#
# How many r are in strawberry? A language model reads tokens, and the word may be a single one: its
# letters are not visible anywhere. It has to know them by heart. This is not wisdom that grows with
# more web text; it is a skill we can write a generator for. The answer we teach goes slowly: spell
# the word, counting on the way, then let the calculator check.
#
# First, words. A list of real ones can come from a file. Without one we make words up from
# syllables.


# %%
#| default_exp data.words
# Made-up words, and the rule that gives every key its side of a split.

# %%
#| export data.words
import random
import zlib


def any_word(rng: random.Random) -> str:
    """Make up a pronounceable word of 4 to 7 letters."""
    word = "".join(
        rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.choice((2, 2, 3)))
    )
    return word + rng.choice(("", "l", "m", "n", "r", "s", "t"))


# %%
words = [any_word(local_generator("demo", i)) for i in range(6)]
words

# %% [markdown]
# Now the split, and a mistake that is easy to make: cut the numbered examples at 90%, the first
# part for training, the rest for testing. With a list of 500 words and 5,000 questions, how many
# test words have been trained on?

# %%
# NBVAL_CHECK_OUTPUT
word_list = sorted({any_word(local_generator("list", i)) for i in range(500)})
asked = [local_generator("ask", i).choice(word_list) for i in range(5000)]
seen, held_out = set(asked[:4500]), asked[4500:]
known = sum(word in seen for word in held_out) / len(held_out)
print(f"{known:.0%} of the test words were trained on")

# %% [markdown]
# Every one, or nearly: the test would measure memory and call it spelling. The split must follow
# the *word*, whatever the question. A checksum decides: it needs no list, gives each key the same
# side for ever, in every process (Python's own `hash` of a string changes with each), and knows nothing
# about spelling. The next chapter splits its words and numbers by the same rule.


# %%
#| export data.words
def is_heldout(*key: object) -> bool:
    """Assign a fixed tenth of all keys to the tests, by checksum.

    Example: is_heldout("word", "banana") -> the same answer on every machine.
    """
    return zlib.crc32(repr(key).encode()) % 10 == 0


def made_up_word(rng: random.Random, heldout: bool) -> str:
    """Make up a word of 4 to 7 letters, from the test's tenth or from the rest."""
    while True:
        word = any_word(rng)
        if is_heldout("word", word) == heldout:
            return word


# %%
#| default_exp tasks.spelling
# Spelling and counting letters: a capability from a generator.

# %%
#| export tasks.spelling
import random
from functools import cache
from pathlib import Path

from nanochat_lib.common import local_generator
from nanochat_lib.data.words import is_heldout, made_up_word


@cache
def read_words(path: str | Path, split: str) -> tuple[str, ...]:
    """Read the words of one split from a file, one a line; a to z only, 3 letters or more."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    clean = dict.fromkeys(line.strip().lower() for line in lines)
    words = [word for word in clean if len(word) > 2 and word.isascii() and word.isalpha()]
    chosen = tuple(word for word in words if is_heldout("word", word) == (split == "test"))
    if not chosen:
        raise ValueError(f"{path} has no word for the {split} split: one word a line, a to z")
    return chosen


def draw_word(rng: random.Random, split: str, path: str | Path | None = None) -> str:
    """Draw a word of a split, from a file or made up."""
    if path is not None:
        return rng.choice(read_words(path, split))
    return made_up_word(rng, split == "test")


# %% [markdown]
# The working is `s t r1 a w b e r2 r3 y`: after each hit the count so far. The model never has to
# hold a number in mind over a distance; each step looks back a few tokens. That is what "let it
# think in steps" means at this size.


# %%
#| export tasks.spelling
def count_aloud(word: str, letter: str) -> str:
    """Spell a word and number the hits. Example: "noon", "o" -> "n o1 o2 n"."""
    steps, hits = [], 0
    for character in word:
        hits += character == letter
        steps.append(f"{character}{hits}" if character == letter else character)
    return " ".join(steps)


# %%
assert count_aloud("strawberry", "r") == "s t r1 a w b e r2 r3 y"

# %% [markdown]
# Then the calculator counts, too, and has the last word. The grader comes in two forms: one asks for the
# number alone, the other also for the working, because a number between 0 and 3 is easily guessed.


# %%
#| export tasks.spelling
def count_answer(word: str, letter: str) -> list[dict]:
    """Answer how often a letter occurs: the working, a check with the calculator, the number.

    The letter is named right before the working, so that each step compares with what stands near.
    """
    count = word.count(letter)
    opening = f"I count {letter} in {word}: {count_aloud(word, letter)}. Check: "
    return [
        {"type": "text", "text": opening},
        {"type": "python", "text": f'"{word}".count("{letter}")'},
        {"type": "python_output", "text": str(count)},
        {"type": "text", "text": f"\n#### {count}"},
    ]


def counted_aloud(word: str, letter: str, response: str) -> bool:
    """Decide whether a response has the right letters, in either case, running count and final number."""
    right = final_number(response) == word.count(letter)
    return right and f": {count_aloud(word, letter)}." in response.lower()


# %%
#| export tasks.spelling
QUESTIONS = (
    "How many {letter} are in {word}?",
    "How often does {letter} occur in {word}?",
    "Count the letter {letter} in {word}.",
    "In the word {word}, how many times do you see {letter}?",
    "Find every {letter} in {word}. How many are there?",
    "{word}: number of {letter}?",
)


class SpellingBee(Task):
    """Count a letter in a word: spell it aloud, then check with the calculator.

    Args:
        size: conversations; number i is always the same one.
        split: "train" or "test"; they share no word.
        path: a word list, one a line; None makes words up.
        seed: another seed gives other conversations.
    """

    def __init__(
        self,
        size: int = 1000,
        split: str = "train",
        path: str | Path | None = None,
        seed: int = 0,
    ):
        if split not in ("train", "test") or size < 0:
            raise ValueError(f"split {split!r} of size {size}: expected train or test, size >= 0")
        super().__init__(split)
        self.size, self.path, self.seed = size, path, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        """Build conversation `index`; "word" and "letter" stand beside the messages."""
        rng = local_generator("spelling bee", self.seed, self.split, self.check_index(index))
        word = draw_word(rng, self.split, self.path)
        letter = rng.choice(word) if rng.random() < 0.8 else rng.choice("aeiostrln")
        question = rng.choice(QUESTIONS).format(word=word, letter=letter)
        user = {"role": "user", "content": question}
        messages = [user, {"role": "assistant", "content": count_answer(word, letter)}]
        return {"messages": messages, "word": word, "letter": letter}

    def evaluate(self, conversation: dict, response: str) -> bool:
        """Compare the final number with the true count."""
        return final_number(response) == conversation["word"].count(conversation["letter"])

    def evaluate_working(self, conversation: dict, response: str) -> bool:
        """Ask for the right number and the right spelling: a lucky guess fails."""
        return counted_aloud(conversation["word"], conversation["letter"], response)


# %%
# NBVAL_CHECK_OUTPUT
bee = SpellingBee(size=2000, split="test")
print(bee[0]["messages"][0]["content"])
print(content_text(bee[0]["messages"][1]["content"]))

# %% [markdown]
# Counting needs spelling, and spelling alone is easier to learn. A second task asks only for that,
# and is graded on every letter.


# %%
#| export tasks.spelling
class SimpleSpelling(SpellingBee):
    """Spell a word, nothing else; arguments as for SpellingBee."""

    def __getitem__(self, index: int) -> dict:
        """Build conversation `index`; "word" stands beside the messages."""
        rng = local_generator("simple spelling", self.seed, self.split, self.check_index(index))
        word = draw_word(rng, self.split, self.path)
        question = rng.choice(("Spell {}.", "How do you spell {}?", "Give me the letters of {}."))
        user = {"role": "user", "content": question.format(word)}
        answer = {"role": "assistant", "content": f"I spell {word}: {' '.join(word)}."}
        return {"messages": [user, answer], "word": word}

    def evaluate(self, conversation: dict, response: str) -> bool:
        """Compare what follows the last colon, letter by letter."""
        return response.rpartition(":")[2].strip().rstrip(".").split() == list(conversation["word"])

    def evaluate_working(self, conversation: dict, response: str) -> bool:
        """The answer is the working."""
        return self.evaluate(conversation, response)


# %%
spell = SimpleSpelling(size=2000)
assert all(
    spell.evaluate(c, content_text(c["messages"][1]["content"])) for c in spell.slice(0, 200)
)
assert not {c["word"] for c in spell} & {c["word"] for c in bee}, "train and test share a word"

# %% [markdown]
# ### How good is a model that knows nothing?
#
# Letters and options have a chance level that we can write down. Counts do not: we have to look.
# Someone who always answers "1" is right whenever 1 is the truth.

# %%
counts = Counter(c["word"].count(c["letter"]) for c in bee)
most_common, hits = counts.most_common(1)[0]
majority = hits / len(bee)

# %%
# alt: bar chart of how often each count is the right answer; 1 more often than all others together
fig, ax = plt.subplots(figsize=(6.5, 3))
ax.bar(list(counts), [100 * n / len(bee) for n in counts.values()], color="tab:blue")
ax.set_xticks(range(max(counts) + 1))
ax.set(xlabel="right answer (count of the letter)", ylabel="questions (%)")
ax.bar([most_common], [100 * majority], color="tab:orange")
ax.annotate(f"always answering {most_common}: {majority:.0%}", (most_common + 0.5, 90 * majority))
plt.show()

# %% [markdown]
# *What the 2,000 test questions have for an answer. The orange bar is the score of a parrot:
# without it beside ours, a model at that height would look like half a success.*
#
# So SpellingBee has a second, stricter grader, `evaluate_working`: the spelled letters must be
# right too. The parrot gets nothing there.

# %%
parrot = f"\n#### {most_common}"
right = sum(bee.evaluate(c, parrot) for c in bee)
assert right == hits and not any(bee.evaluate_working(c, parrot) for c in bee.slice(0, 200))

# %% [markdown]
# ## Mixtures
#
# Training takes all tasks at once. One after another would be simpler, and it is sometimes wanted:
# a *curriculum* shows easy things first. But what is shown last is remembered best, so the rule is
# to shuffle. First the sequence.


# %%
#| export tasks.base
class TaskSequence(Task):
    """Several tasks one after another, in order: a curriculum."""

    def __init__(self, tasks: list[Task], split: str = "train"):
        if not tasks:
            raise ValueError("a sequence or mixture needs at least one task")
        super().__init__(split)
        self.tasks = list(tasks)
        self.ends = list(accumulate(len(task) for task in self.tasks))

    def __len__(self) -> int:
        return self.ends[-1]

    def locate(self, index: int) -> tuple[int, int]:
        """Find (number of the task, index in it) of one conversation, without building it."""
        self.check_index(index)
        which = bisect_right(self.ends, index)
        return which, index - (self.ends[which - 1] if which else 0)

    def __getitem__(self, index: int) -> dict:
        which, inner = self.locate(index)
        return self.tasks[which][inner]


# %%
curriculum = TaskSequence([times, spell, bee])
assert (len(curriculum), curriculum.locate(0), curriculum.locate(100)) == (4100, (0, 0), (1, 0))

# %% [markdown]
# `locate` turns a number into (which task, which row) without building a conversation: a binary
# search over the running totals. Shuffling is then a permutation of numbers.
#
# How much of each task? GSM8K has 7,473 problems and SmolTalk 460,000 conversations: shuffled as
# they are, arithmetic is 1.6% of the diet. So each task gets a weight. To turn weights into whole
# numbers that add up, we round the running total and take differences; rounding each share by
# itself can lose or invent a row.


# %%
#| export tasks.base
def share_out(size: int, weights: list[int | float]) -> list[int]:
    """Cut `size` into whole numbers proportional to weights that add up to it exactly.

    Example: 10 by [1, 1, 1] -> [3, 4, 3].

    Raises:
        ValueError: a weight is negative, or all are 0.
    """
    if any(not weight >= 0 for weight in weights) or not 0 < sum(weights) < float("inf"):
        raise ValueError(f"weights must be finite, none negative, one positive: got {weights}")
    cuts = [0, *(round(size * part / sum(weights)) for part in accumulate(weights))]
    return [high - low for low, high in zip(cuts, cuts[1:])]


# %%
# NBVAL_CHECK_OUTPUT
print(share_out(10, [1, 1, 1]), "and rounding each:", [round(10 / 3)] * 3)


# %%
#| export tasks.base
class TaskMixture(TaskSequence):
    """Several tasks shuffled into one, the same way every time.

    Without weights every conversation comes once. `weights` alone are repetitions: 2 shows a task
    twice, 0.5 shows every second conversation. With `size`, weights are shares of `size`
    conversations.

    Args:
        tasks: the tasks to mix; an empty one must have share 0.
        weights: one number a task, none negative.
        size: conversations in the mixture.
        seed: of the shuffle.
    """

    def __init__(
        self,
        tasks: list[Task],
        weights: list[int | float] | None = None,
        size: int | None = None,
        seed: int = 0,
        split: str = "train",
    ):
        super().__init__(tasks, split)
        weights = [1.0] * len(tasks) if weights is None and size is None else weights
        weights = [float(len(task)) for task in tasks] if weights is None else list(weights)
        if len(weights) != len(tasks):
            raise ValueError(f"{len(weights)} weights for {len(tasks)} tasks")
        if size is None:
            size = round(sum(weight * len(task) for weight, task in zip(weights, tasks)))
            weights = [weight * len(task) for weight, task in zip(weights, tasks)]
        self.counts = share_out(size, weights)
        for k, (count, task) in enumerate(zip(self.counts, tasks)):
            if count and not len(task):
                raise ValueError(f"task {k} ({type(task).__name__}) is empty but has a weight")
        self.ends = list(accumulate(self.counts))
        self.order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))

    def locate(self, index: int) -> tuple[int, int]:
        """Find (number of the task, index in it): whole passes, then an evenly spread rest."""
        self.check_index(index)
        which, draw = super().locate(int(self.order[index]))
        rows, count = len(self.tasks[which]), self.counts[which]
        whole = count - count % rows
        return which, draw % rows if draw < whole else (draw - whole) * rows // (count - whole)


# %%
# NBVAL_CHECK_OUTPUT
mixture = TaskMixture([times, spell, bee, identity], weights=[4, 0.5, 1, 100])
print(len(mixture), mixture.counts)
print("the first ten come from tasks", [mixture.locate(i)[0] for i in range(10)])

# %% [markdown]
# Four passes over `times`, every second row of `spell`, and 100 repetitions of two identity
# conversations. Repeating so few lines so often is how a model gets a name; repeating arithmetic
# that often would teach the sums by heart.
#
# Two properties. The order is the same every time, because a run that was killed must go on where
# it stopped. And it is well mixed: each stretch of training looks like the whole.

# %%
again = TaskMixture([times, spell, bee, identity], weights=[4, 0.5, 1, 100])
assert [mixture.locate(i) for i in range(500)] == [again.locate(i) for i in range(500)]
drawn = Counter(mixture.locate(i) for i in range(len(mixture)))
assert all(drawn[0, i] == 4 for i in range(100)), "every product must come exactly four times"

# %%
stretch = len(mixture) // 20
shares = [[0] * 20 for _ in mixture.tasks]
for i in range(20 * stretch):
    shares[mixture.locate(i)[0]][i // stretch] += 100 / stretch

# %%
# alt: share of four tasks in twenty consecutive stretches of the mixture; all four lines stay level
fig, ax = plt.subplots(figsize=(6.5, 3))
for share, name in zip(shares, ("times", "spelling", "counting", "identity")):
    ax.plot(share)
    ax.text(19.2, share[-1], name, va="center")
ax.set(xlabel="stretch of training (twentieths)", ylabel="share (%)", xlim=(0, 23), ylim=(0, None))
plt.show()

# %% [markdown]
# *The share of each task in twenty stretches of the mixture. The lines wobble by chance and do not
# drift: no task is met only at the end.*
#
# ## nanochat's two diets
#
# What does a mixture for a real model look like? nanochat trains on conversations twice. *Midtraining* has much of everything that can be
# practised: chats, the form of multiple choice, tools, letters. *Fine-tuning* is short, has less of each, and the questions are those of
# the exams' training sets. (The figures are those of its scripts `mid_train.py` and `chat_sft.py` of October 2025; later versions changed them.) In the
# first, the file about the model's identity comes twice, a thousand conversations among eight hundred thousand.

# %%
#| default_exp tasks.diets
# The mixtures of nanochat's midtraining and fine-tuning, at full size.

# %%
#| export
from collections.abc import Mapping
from pathlib import Path

from nanochat_lib.tasks.arc import ARC
from nanochat_lib.tasks.base import Task, TaskMixture
from nanochat_lib.tasks.custom_json import CustomJSON
from nanochat_lib.tasks.gsm8k import GSM8K
from nanochat_lib.tasks.mmlu import MMLU
from nanochat_lib.tasks.smoltalk import SmolTalk
from nanochat_lib.tasks.spelling import SimpleSpelling, SpellingBee

FROM_HUB = ("smoltalk", "mmlu", "gsm8k", "arc_easy", "arc_challenge")


def web_diet(
    stage: str, identity: Path, words: Path, files: Mapping[str, Path] | None = None, seed: int = 0
) -> TaskMixture:
    """Mix the conversations of one stage of a big run.

    Args:
        stage: "mid" (about 850,000 conversations) or "sft" (about 23,000).
        identity: conversations about the model, one a line, see `data.identity.write_identity`.
        words: a list of English words, one a line, to spell.
        files: local copies of data sets, by name out of FROM_HUB; the others come from the hub.
        seed: of the shuffle.

    Raises:
        ValueError: no such stage, or a file that is none of the data sets or cannot be read.

    Source: nanochat, scripts/mid_train.py and scripts/chat_sft.py, October 2025.
    """
    files = dict(files or {})
    if stage not in ("mid", "sft") or not files.keys() <= set(FROM_HUB):
        raise ValueError(
            f"stage {stage!r}, files for {', '.join(files) or 'nothing'}: "
            f"stages are 'mid' and 'sft', data sets are {', '.join(FROM_HUB)}"
        )
    chats = SmolTalk("train", files.get("smoltalk"))
    sums = GSM8K("train", files.get("gsm8k"))
    who = CustomJSON(identity)
    rows: list[tuple[Task, float]]
    if stage == "mid":
        rows = [
            (chats, 1),
            (MMLU("all", "auxiliary_train", files.get("mmlu")), 1),
            (sums, 1),
            (who, 2),
            (SimpleSpelling(200_000, "train", words), 1),
            (SpellingBee(80_000, "train", words), 1),
        ]
    else:
        rows = [
            (ARC("ARC-Easy", "train", files.get("arc_easy")), 1),
            (ARC("ARC-Challenge", "train", files.get("arc_challenge")), 1),
            (sums, 1),
            (chats.slice(0, 10_000), 1),
            (who, 1),
            (SimpleSpelling(300, "train", words), 1),
            (SpellingBee(300, "train", words), 1),
        ]
    tasks, times = zip(*rows)
    return TaskMixture(list(tasks), list(times), seed=seed)


# %% [markdown]
# The data sets live on the hub; the tests of this course read samples of them in the same layout. Here we only compare the sizes:

# %%
# NBVAL_CHECK_OUTPUT
sizes = {
    "mid": {"SmolTalk": 460, "MMLU": 100, "GSM8K": 7.5, "identity": 2, "letters": 280},
    "sft": {"ARC": 3.4, "GSM8K": 7.5, "SmolTalk": 10, "identity": 1, "letters": 0.6},
}
for stage, rows in sizes.items():
    total = sum(rows.values())
    print(f"{stage}: {total:.1f} thousand:", {k: f"{n / total:.1%}" for k, n in rows.items()})

# %% [markdown]
# Half of midtraining is chat and a third of it letters; of fine-tuning, not quite half is chat and a third is sums. At laptop size
# chapter `contact` writes the two diets of TinyWorld, of the same kind.
#
# ## Cost
#
# A conversation is built when a batch needs it, so what does the mixture hold? One 64-bit number
# for each conversation. For 860,000 (a full nanochat run) that is 6.9 MB; the conversations
# themselves, as Python objects, would be gigabytes.

# %%
# NBVAL_CHECK_OUTPUT
held_bytes = mixture.order.element_size() * mixture.order.nelement()
assert held_bytes == 8 * len(mixture)
print(f"{8 * 860_000 / 1e6:.1f} MB for 860,000 conversations")


# %%
def size_of(value) -> int:
    """Add up the bytes of nested dicts, lists and strings, once for each mention."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return sys.getsizeof(value) + sum(size_of(item) for item in inner)


# %%
built_bytes = sum(size_of(bee[i]) for i in range(100)) / 100
started = time.perf_counter()
for conversation in bee.slice(0, 300):
    glued.render_conversation(conversation)
per_second = 300 / (time.perf_counter() - started)
record = json.loads((library_root() / "records/laptop/report.json").read_text(encoding="utf-8"))
n_tokens = sum(len(glued.render_conversation(bee[i])[0]) for i in range(300)) / 300
used_up = record["training"]["sft"]["tokens_per_second"] / n_tokens
print(f"a built conversation: {built_bytes:,.0f} bytes, {n_tokens:.0f} tokens")
print(
    f"built and rendered: {per_second:,.0f} a second; the recorded laptop run trains on {used_up:.0f}"
)
assert per_second > 3 * used_up

# %% [markdown]
# So generating examples on the fly is almost free, and there is no file to keep.
#
# ## What goes wrong: a grader that is too kind
#
# The obvious grader for "6 times 7" asks whether 42 occurs in the response. It is in many
# evaluation scripts, and it accepts this:


# %%
def kind_grader(truth: str, response: str) -> bool:
    """Accept any response that contains the answer."""
    return truth in response


# %%
assert kind_grader("42", "It is 42.")
accepted = [
    text
    for text in ("It is 142.", "It is 420.", "It is 41 or 42 or 43.")
    if kind_grader("42", text)
]
assert len(accepted) == 3, "three wrong answers, all accepted"

# %% [markdown]
# How much is that worth? Give the parrot a list to recite and grade it both ways.

# %%
# NBVAL_CHECK_OUTPUT
recital = "It is " + " or ".join(str(n) for n in range(82)) + "."
kind = sum(kind_grader(str(a * b), recital) for a in range(10) for b in range(10))
strict = sum(times.evaluate(conversation, recital) for conversation in times)
print(f"kind grader: {kind}%, strict grader: {strict}%")

# %% [markdown]
# From nothing to everything, without knowing one product. A reader of the score cannot see it, and
# reinforcement learning will *find* it: a policy is rewarded for what the grader accepts, not for
# what we meant. The cure is in all the graders above: agree on one place for the answer (`####`, a
# lone letter), read exactly that, and compare values. Then test the grader like any other code,
# with answers that must fail.

# %%
must_fail = ("#### 172", "#### 7", "72", "#### 71\n72", "#### 72\n#### 73", "#### 72 000", "")
assert not any(gsm8k.evaluate(gsm8k[0], text) for text in must_fail), "the grader is too kind"

# %% [markdown]
# ## Recap
#
# A task builds conversations on demand and grades responses, and a score means little without the
# floor beside it. A grader that accepts wrong answers is worse than none, since training will find the
# hole.
#
# In the library now: `nanochat_lib.tasks.base` (`Task`, `TaskSlice`, `TaskSequence`, `TaskMixture`),
# `tasks.multiple_choice`, `tasks.arc`, `tasks.mmlu`, `tasks.gsm8k`, `tasks.smoltalk`,
# `tasks.custom_json`, `tasks.spelling` and, for it and the next chapter, `data.words`. The exercises ask
# for the floor of the majority answer, for a check whether test questions leaked into training, and for
# a judge that never sees the question. The next chapter makes a world of its own to ask about.
