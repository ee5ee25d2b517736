"""TinyWorld: what is held out stays out, and graders refuse wrong answers."""

import os
import re
import subprocess
import sys

import pytest

from nanochat_lib.data.synthetic import curriculum, validation_documents, word_problem
from nanochat_lib.data.tinyworld import WORDS, World, local_generator
from nanochat_lib.data.words import is_heldout, made_up_word
from nanochat_lib.tasks.base import content_text
from nanochat_lib.tasks.contamination import contamination, training_texts
from nanochat_lib.tasks.practice import CHAT_SHARES, chat_mixture
from nanochat_lib.tasks.tinyworld import (
    Facts,
    Identity,
    Spelling,
    TinyWorldTask,
    WordProblems,
    heldout_tasks,
)
from nanochat_lib.tokenizer.conversation import validate_conversation

WORLD = World(seed=0)
CHAT = chat_mixture(WORLD, 4_000)
TESTS = heldout_tasks(WORLD, 200)
TEXTS = list(curriculum(WORLD, 300, 3_000))


def test_a_seed_gives_one_world_and_another_seed_another():
    assert World(0).facts == World(0).facts
    assert World(0).facts != World(1).facts


def test_every_process_writes_the_same_text():
    # Python seeds the order of sets anew in each process, unless told otherwise.
    program = """if True:
        from nanochat_lib.common import fingerprint
        from nanochat_lib.data.synthetic import curriculum
        from nanochat_lib.data.tinyworld import World
        from nanochat_lib.tasks.practice import chat_mixture
        from nanochat_lib.tasks.tinyworld import heldout_tasks
        world, chat = World(0), chat_mixture(World(0), 300)
        tests = [[t[i]["messages"] for i in range(len(t))] for t in heldout_tasks(world, 20).values()]
        print(fingerprint(list(curriculum(world, 300, 300)), [chat[i]["messages"] for i in range(300)], tests))
    """
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            encoding="utf-8",
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(seen) == 1


def test_values_are_dealt_evenly():
    jobs = [fact.value for fact in WORLD.facts if fact.relation.name == "job"]
    assert sorted(jobs) == sorted(WORDS["jobs"] * 2)


def test_each_relation_keeps_a_quarter_unasked():
    for name in {fact.relation.name for fact in WORLD.facts}:
        facts = [fact for fact in WORLD.facts if fact.relation.name == name]
        assert sum(not fact.asked for fact in facts) == round(len(facts) / 4)


def test_every_fact_is_stated_in_the_text():
    text = "\n".join(TEXTS)
    missing = [f.answer for f in WORLD.facts if not any(f.say(way) in text for way in range(4))]
    assert not missing


def test_word_lists_hold_distinct_single_words_with_consonants_first():
    for kind, words in WORDS.items():
        assert len(set(words)) == len(words), kind
        assert all(re.fullmatch(r"[A-Za-z]+", w) and w[0].lower() not in "aeiou" for w in words)


def test_the_split_by_key_is_the_same_in_every_process():
    assert [is_heldout("word", w) for w in ("banana", "sunot", "kavun", "dalu")] == [
        False,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("heldout", [False, True])
def test_numbers_and_words_come_from_their_side_of_the_split(heldout):
    rng = local_generator("split", heldout)
    for _ in range(300):
        assert is_heldout("word", made_up_word(rng, heldout)) == heldout
        problem = word_problem(rng, heldout)
        a, operator, b = re.fullmatch(r"(\d+)([-+*/])(\d+)", problem.expression).groups()
        a, b = int(a), int(b)
        assert problem.result == {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[operator]
        pair = {"+": (a, b), "-": (b, a - b), "*": (a, b), "/": (b, a // b)}[operator]
        assert is_heldout("pair", *pair) == heldout


def test_no_test_question_is_in_the_training_text():
    texts = [*TEXTS, *validation_documents(WORLD, 200), *training_texts(CHAT)]
    assert contamination(texts, TESTS) == []


def test_the_contamination_check_finds_a_planted_question():
    question = TESTS["word_problems"][5]["messages"][0]["content"]
    assert contamination(["Listen. " + question.upper() + " Well?"], TESTS) == [question]


def test_facts_that_a_test_asks_for_are_asked_nowhere_in_training():
    tested = {TESTS["facts"][i]["messages"][1]["content"] for i in range(len(TESTS["facts"]))}
    tested |= {f.answer for f in WORLD.facts if not f.asked}
    said = {
        sentence
        for text in training_texts(CHAT)
        for sentence in (text, re.sub(" [A-D]\\.$", ".", text))
    }
    assert not tested & said


def test_spelled_test_words_are_spelled_nowhere_in_training():
    words = {TESTS["spelling"][i]["word"] for i in range(200)}
    everything = " ".join([*TEXTS, *training_texts(CHAT)])
    assert not words & set(re.findall(r"\w+", everything))


def test_conversations_are_valid_and_the_same_at_each_reading():
    for i in range(0, 4_000, 40):
        assert validate_conversation(CHAT[i]) == CHAT[i]


def test_every_kind_of_training_conversation_occurs():
    assert all(count > 0 for count in CHAT.counts) and len(CHAT.counts) == len(CHAT_SHARES)


@pytest.mark.parametrize("name", TESTS)
def test_reference_answers_pass_and_those_of_other_questions_fail(name):
    task = TESTS[name]
    answers = [content_text(task[i]["messages"][1]["content"]) for i in range(30)]
    for i in range(30):
        assert task.evaluate(task[i], answers[i])
        assert not task.evaluate(task[i], "")
        others = [answer for answer in answers if answer != answers[i]]
        passed = sum(task.evaluate(task[i], other) for other in others)
        # two questions may share an answer, as letters, counts and values are few
        assert passed <= (0.4 if name == "multiple_choice" else 0.25) * len(others)


def test_naming_all_values_or_letters_is_no_answer():
    conversation = TESTS["facts"][0]
    assert not TESTS["facts"].evaluate(conversation, " ".join(conversation["values"]))
    assert not TESTS["multiple_choice"].evaluate(TESTS["multiple_choice"][0], "A B C D")


def test_a_right_count_with_wrong_letters_fails():
    conversation = TESTS["spelling"][0]
    right = content_text(conversation["messages"][1]["content"])
    head, _, letters = right.partition(": ")
    assert TESTS["spelling"].evaluate(conversation, right)
    assert not TESTS["spelling"].evaluate(conversation, f"{head}: q{letters[1:]}")
    assert not TESTS["spelling"].evaluate(conversation, right.rpartition("#### ")[0])


def test_tests_have_different_questions():
    for name, task in TESTS.items():
        questions = {task[i]["messages"][0]["content"] for i in range(len(task))}
        assert len(questions) == len(task)
        assert len(task) == 200 or (name == "identity" and len(task) >= 20)


def test_half_of_the_fact_questions_use_a_frame_that_the_relation_never_had_in_training():
    nouns = {fact.noun: fact.relation.name for fact in WORLD.facts}

    def frames(task):
        questions = [task[i]["messages"][0]["content"] for i in range(len(task))]
        found = [(q, next(noun for noun in nouns if noun in q)) for q in questions]
        return [(nouns[noun], question.replace(noun, "{}")) for question, noun in found]

    heard = set(frames(Facts(WORLD, "train", 4_000)))
    new = [frame not in heard for frame in frames(TESTS["facts"])]
    assert 0.35 < sum(new) / len(new) < 0.65


def test_bad_arguments_name_the_value():
    with pytest.raises(ValueError, match="valid"):
        Facts(WORLD, "valid", 10)
    with pytest.raises(ValueError, match="0"):
        Identity(WORLD, "test", 0)
    with pytest.raises(ValueError, match="1.5"):
        World(0, unasked_fraction=1.5)
    with pytest.raises(ValueError, match="-1"):
        list(curriculum(WORLD, -1, 5))
    with pytest.raises(IndexError):
        Spelling(WORLD, "train", 5)[5]


@pytest.mark.parametrize(
    "said", ["12.5", "-12", "\u221212", "1,212", "12/3", "3:12", "12 or 13", ""]
)
def test_a_result_inside_a_larger_number_is_wrong(said):
    task = WordProblems(World(), "test", 3)
    conversation = {"result": 12}
    assert not task.evaluate(conversation, f"<|output_end|>Mia has {said} pears.")
    assert task.evaluate(conversation, "<|output_end|>Mia has 12 pears.")
    assert task.evaluate(conversation, "<|output_end|>It is 12.")


def test_a_task_that_makes_nothing_cannot_be_built():
    class Nothing(TinyWorldTask):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Nothing(World())
