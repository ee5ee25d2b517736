"""Conversations are checked, tasks are sliced, and mixtures keep their promises."""

from collections import Counter
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lib.tasks.base import (
    Task,
    TaskMixture,
    TaskSequence,
    content_text,
    share_out,
)
from nanochat_lib.tasks.gsm8k import final_number
from nanochat_lib.tasks.multiple_choice import extract_letter, render_choices
from nanochat_lib.tokenizer.conversation import validate_conversation


class Numbered(Task):
    """n conversations that count how often they are built."""

    def __init__(self, n: int, name: str = "a"):
        super().__init__("test")
        self.n, self.name, self.built = n, name, 0

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict:
        self.check_index(index)
        self.built += 1
        user = {"role": "user", "content": f"{self.name}{index}"}
        return {"messages": [user, {"role": "assistant", "content": str(index)}]}

    def evaluate(self, conversation: dict, response: str) -> bool:
        return response == conversation["messages"][-1]["content"]


def names(task: Task) -> list[str]:
    return [conversation["messages"][0]["content"] for conversation in task]


def say(role: str, content) -> dict:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "non-empty list"),
        ([say("assistant", "hi")], r"message 0 \(assistant\): expected user"),
        ([say("user", "a"), say("user", "b")], r"message 1 \(user\): expected assistant"),
        ([say("user", "a"), say("system", "b")], r"message 1 \(system\)"),
        ([say("system", "a")], "message 0"),
        ([say("system", "a"), say("assistant", "b")], r"message 1 \(assistant\): expected user"),
        ([say("system", "a"), say("system", "b")], r"message 1 \(system\)"),
        ([say("robot", "a")], r"message 0 \(robot\)"),
        (["hello"], "message 0"),
        ([{"role": "user"}], "message 0"),
        ([say("user", None)], "content is None"),
        ([say("user", [{"type": "text", "text": "a"}])], "only the assistant"),
        (
            [say("user", "a"), say("assistant", [{"type": "image", "text": ""}])],
            "message 1.*part 0",
        ),
        ([say("user", "a"), say("assistant", [{"type": "text"}])], "part 0"),
        ([say("user", "a"), say("assistant", [{"type": "python_output", "text": "1"}])], "part 0"),
    ],
)
def test_a_broken_conversation_is_named(messages, complaint):
    with pytest.raises(ValueError, match=complaint):
        validate_conversation({"messages": messages})


@pytest.mark.parametrize("conversation", [{}, {"messages": "hi"}])
def test_a_conversation_is_a_dict_of_messages(conversation):
    with pytest.raises(ValueError, match="dict"):
        validate_conversation(conversation)


def test_good_conversations_come_back_unchanged():
    call = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}]
    for messages in (
        [say("user", "a")],
        [say("system", "s"), say("user", "a"), say("assistant", call)],
        [say("user", "a"), say("assistant", "b"), say("user", "c")],
    ):
        conversation = {"messages": messages, "letters": ["A"]}
        assert validate_conversation(conversation) is conversation


def test_content_text_marks_calls_and_outputs():
    parts = [
        {"type": "text", "text": "So "},
        {"type": "python", "text": "1+1"},
        {"type": "python_output", "text": "2"},
    ]
    marked = "So <|python_start|>1+1<|python_end|><|output_start|>2<|output_end|>"
    assert (content_text(parts), content_text("plain")) == (marked, "plain")


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 20),
    st.integers(0, 20),
    st.one_of(st.none(), st.integers(0, 25)),
    st.integers(1, 5),
)
def test_a_slice_is_what_a_list_slice_would_be(n, start, stop, step):
    task = Numbered(n)
    assert names(task.slice(start, stop, step)) == names(task)[start:stop:step]


def test_a_slice_grades_with_its_task_and_ends():
    part = Numbered(10).slice(4, 6)
    assert part.split == "test" and part.evaluate(part[1], "5") and part.reward(part[1], "6") == 0.0
    for index in (2, -1):
        with pytest.raises(IndexError):
            part[index]


def test_a_task_without_grader_says_so():
    with pytest.raises(ValueError, match="no grader"):
        TaskSequence([Numbered(1)]).evaluate({}, "")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_a_sequence_is_the_tasks_one_after_another(sizes):
    tasks = [Numbered(n, chr(97 + k)) for k, n in enumerate(sizes)]
    assert names(TaskSequence(tasks)) == [name for task in tasks for name in names(task)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(0, 3))
def test_a_mixture_without_weights_holds_everything_once(sizes, seed):
    tasks = [Numbered(n, chr(97 + k)) for k, n in enumerate(sizes)]
    if sum(sizes) == 0:
        with pytest.raises(ValueError, match="weights"):
            TaskMixture(tasks, seed=seed)
        return
    expected = sorted(name for task in tasks for name in names(task))
    assert sorted(names(TaskMixture(tasks, seed=seed))) == expected


def test_a_mixture_repeats_and_thins_out():
    mixture = TaskMixture([Numbered(10, "a"), Numbered(4, "b")], weights=[0.5, 2.5])
    found = Counter(mixture.locate(i) for i in range(len(mixture)))
    assert mixture.counts == [5, 10]
    assert {i: n for (task, i), n in found.items() if task == 0} == dict.fromkeys(
        range(0, 10, 2), 1
    )
    assert [found[1, i] for i in range(4)] == [3, 2, 3, 2]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.lists(st.floats(0, 5), min_size=1, max_size=6))
def test_shares_add_up_and_stay_close(size, weights):
    if sum(weights) == 0:
        with pytest.raises(ValueError):
            share_out(size, weights)
        return
    shares = share_out(size, weights)
    assert sum(shares) == size
    for share, weight in zip(shares, weights):
        assert abs(share - size * weight / sum(weights)) <= 1.001


def test_size_and_weights_are_shares():
    tasks = [Numbered(100, "a"), Numbered(5, "b")]
    mixture = TaskMixture(tasks, weights=[3, 1], size=40)
    assert mixture.counts == [30, 10] and len(mixture) == 40
    found = Counter(mixture.locate(i) for i in range(40))
    assert {found[1, i] for i in range(5)} == {2} and max(found[0, i] for i in range(100)) == 1


def test_a_mixture_is_deterministic_mixed_and_lazy():
    tasks = [Numbered(500, "a"), Numbered(500, "b")]
    one, two, other = TaskMixture(tasks), TaskMixture(tasks), TaskMixture(tasks, seed=1)
    order = [one.locate(i) for i in range(1000)]
    assert order == [two.locate(i) for i in range(1000)] != [other.locate(i) for i in range(1000)]
    assert 400 < sum(task for task, _ in order[:900:2] + order[1:900:2]) < 500, "not mixed"
    assert tasks[0].built == tasks[1].built == 0, "locate must not build conversations"


@pytest.mark.parametrize(
    ("tasks", "arguments"),
    [
        ([], {}),
        ([Numbered(1)], {"weights": [1, 2]}),
        ([Numbered(1)], {"weights": [-1]}),
        ([Numbered(1)], {"weights": [float("nan")]}),
        ([Numbered(1), Numbered(0)], {"weights": [1, 1], "size": 4}),
    ],
)
def test_bad_mixtures_are_refused(tasks, arguments):
    with pytest.raises(ValueError):
        TaskMixture(tasks, **arguments)


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        (" (B).\n", "B"),
        ("Iron, so (B).", "B"),
        ("(B), yes (B)", "B"),
        ("(A) or (B)", None),
        ("Because", None),
        ("b", None),
        ("(Z)", None),
        ("AB", None),
        ("", None),
    ],
)
def test_one_letter_is_read_or_none(response, letter):
    assert extract_letter(response, ["A", "B", "C", "D"]) == letter


def test_choices_carry_their_letter_behind_them():
    assert render_choices("Q?", ["x", "y"]).split("\n")[1:3] == ["- x (A)", "- y (B)"]


NUMBERS = {
    "#### 10 000": None,
    "#### 1/2": None,
    "#### 1e3": None,
    "#### 5:30": None,
    "#### 9{,}500": None,
    "#### 1,2": None,
    "#### 1,23,456": None,
    "#### 5 - 3": None,
    "#### 3x4": None,
    "#### 10_000": None,
    "#### 1.2.3": None,
    "#### none": None,
    "18": None,
    "#### -$5": -5,
    "#### $-5": -5,
    "#### \u22125": -5,
    "#### - $5": -5,
    "#### \u20ac5": 5,
    "####5": 5,
    "#### **18**": 18,
    "#### 5 dollars": 5,
    "#### 5% of 20": 5,
    "#### 1,200.": 1200,
    "#### 1,200.50": Decimal("1200.5"),
    "#### .5": Decimal("0.5"),
    "#### +7": 7,
    "#### 3\n#### 4": 4,
    "#### 71\n72": 71,
}


@pytest.mark.parametrize("text", NUMBERS)
def test_a_number_ends_where_a_number_ends(text):
    assert final_number(text) == NUMBERS[text]


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("Copper(I) oxide is red, so (B)", "B"),
        ("(Z) is no option, (A) is", "A"),
        ("Vitamin (K) and (E): (D)", "D"),
        ("(A) is wrong, so (B)", None),
        ("It is (I)", None),
    ],
)
def test_only_letters_that_are_options_count(response, letter):
    assert extract_letter(response, ["A", "B", "C", "D"]) == letter
