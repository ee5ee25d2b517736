"""Spelling tasks: true counts, words that never cross splits, graders that reject near misses."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lib.data.words import is_heldout
from nanochat_lib.inference.calculator import calculate
from nanochat_lib.tasks.base import content_text
from nanochat_lib.tasks.spelling import SimpleSpelling, SpellingBee, count_aloud
from nanochat_lib.tokenizer.conversation import validate_conversation


def answer(conversation: dict) -> str:
    return content_text(conversation["messages"][-1]["content"])


@settings(max_examples=30, deadline=None)
@given(st.text("abcde", min_size=1, max_size=12), st.sampled_from("abcdef"))
def test_counting_aloud_spells_and_counts(word, letter):
    aloud = count_aloud(word, letter)
    assert "".join(c for c in aloud if c.isalpha()) == word
    assert [int(step[1:]) for step in aloud.split() if len(step) > 1] == list(
        range(1, word.count(letter) + 1)
    )


def test_the_reference_answer_is_right_and_uses_the_calculator():
    task = SpellingBee(size=200)
    for conversation in task:
        validate_conversation(conversation)
        word, letter = conversation["word"], conversation["letter"]
        parts = {part["type"]: part["text"] for part in conversation["messages"][1]["content"]}
        assert calculate(parts["python"]) == parts["python_output"] == str(word.count(letter))
        question = conversation["messages"][0]["content"]
        assert word in question and letter in question
        assert task.evaluate(conversation, answer(conversation))
        assert task.evaluate_working(conversation, answer(conversation))


def test_the_grader_rejects_near_misses():
    task = SpellingBee(size=50, split="test")
    for conversation in task:
        count = conversation["word"].count(conversation["letter"])
        for wrong in (f"#### 1{count}", f"#### {count}1", f"#### {count + 1}", str(count), ""):
            assert not task.evaluate(conversation, wrong)
        lucky = f"#### {count}"
        assert task.evaluate(conversation, lucky)
        assert not task.evaluate_working(conversation, lucky)
        letters = count_aloud(conversation["word"], conversation["letter"])
        swapped = answer(conversation).replace(f": {letters}.", f": {letters[::-1]}.")
        if letters != letters[::-1]:
            assert not task.evaluate_working(conversation, swapped)


def test_simple_spelling_grades_every_letter():
    task = SimpleSpelling(size=50)
    for conversation in task:
        right, word = answer(conversation), conversation["word"]
        assert task.evaluate(conversation, right) and task.evaluate_working(conversation, right)
        assert not task.evaluate(conversation, right[:-2] + ".")
        assert not task.evaluate(conversation, f"I spell {word}: {word}.")
        assert not task.evaluate(conversation, "")


@pytest.mark.parametrize("task", [SpellingBee, SimpleSpelling])
def test_train_and_test_share_no_word(task):
    train = {conversation["word"] for conversation in task(size=1000, split="train")}
    test = {conversation["word"] for conversation in task(size=300, split="test")}
    assert not train & test and len(train) > 900 and len(test) > 250
    assert not any(is_heldout("word", word) for word in train)


def test_conversations_are_the_same_every_time_and_differ_by_seed():
    one, two, other = SpellingBee(30), SpellingBee(60), SpellingBee(30, seed=1)
    assert list(one) == [two[i] for i in range(30)] != list(other)
    with pytest.raises(IndexError):
        one[30]


def test_words_come_from_a_file(tmp_path):
    words = [
        "Apple",
        "don't",
        "kiwi",
        "x",
        "banana",
        "cherry",
        "naïve",
        *(f"w{c}o" for c in "abcdefgh"),
    ]
    path = tmp_path / "words.txt"
    path.write_text("\n".join(words), encoding="utf-8")
    clean = {w.lower() for w in words} - {"don't", "x", "naïve"}
    found = {c["word"] for c in SpellingBee(300, path=path)}
    assert found == {word for word in clean if not is_heldout("word", word)}
    path2 = tmp_path / "none.txt"
    path2.write_text("a\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no word"):
        SpellingBee(1, path=path2)[0]


def test_bad_arguments():
    with pytest.raises(ValueError, match="validation"):
        SpellingBee(split="validation")
