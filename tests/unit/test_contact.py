"""First messages, phrases, the tasks around TinyWorld, and the strict grader."""

import re
from collections import Counter

import pytest

from nanochat_lib.common import local_generator
from nanochat_lib.data import english as module
from nanochat_lib.data.english import first_messages, real_words, spelled_word
from nanochat_lib.data.phrases import as_typed, phrase_table, phrases, slip
from nanochat_lib.data.tinyworld import World
from nanochat_lib.evaluation.contact import FirstContact, handled
from nanochat_lib.inference.calculator import calculate
from nanochat_lib.tasks.base import content_text
from nanochat_lib.tasks.contact import (
    REPLIES,
    CountLetters,
    Problems,
    Questions,
    Spell,
    Stories,
    Sums,
    Talk,
    YesNo,
)
from nanochat_lib.tasks.practice import chat_mixture
from nanochat_lib.tasks.tinyworld import message_key
from nanochat_lib.tasks.unknown import (
    MID_SHARES,
    REFUSAL,
    SFT_SHARES,
    FailedCalls,
    Noise,
    OtherTongues,
    OtherTopics,
    Strangers,
)
from nanochat_lib.tokenizer.conversation import content_segments, validate_conversation

WORLD = World(0)
KNOWN = (Talk, Sums, Problems, Questions, YesNo, Stories, Spell, CountLetters)
UNKNOWN = (Strangers, OtherTopics, OtherTongues, Noise)


def messages_of(task) -> list[str]:
    return [c["messages"][0]["content"] for c in task]


def test_the_list_is_long_enough_and_has_no_message_twice():
    keys = [message for _, message in first_messages()]
    assert len(keys) == len(set(keys)) >= 200
    assert {kind.split()[0] for kind, _ in first_messages()} >= {"greet", "sum", "unknown", "count"}


def test_problems_are_also_put_together_from_pieces():
    questions = messages_of(Problems(WORLD, size=1_000))
    assert not [q for q in questions if "{" in q or "  " in q]
    whole = "".join(
        "".join(phrases("problems", n)) for n in ("add", "subtract", "multiply", "share")
    )
    ends = [end for part in ("now", "left", "total", "apiece") for end in phrases("problems", part)]
    ends = [end.lower().rstrip("?") for end in ends if "{" not in end and end not in whole]
    assert sum(any(end in question.lower() for end in ends) for question in questions) > 50


def test_a_broken_line_of_the_list_is_named(tmp_path, monkeypatch):
    (tmp_path / "first_messages.tsv").write_text("greet\thi\nbye\n", encoding="utf-8")
    monkeypatch.setattr(module, "DATA", tmp_path)
    first_messages.cache_clear()
    try:
        with pytest.raises(ValueError, match="line 2: 'bye'"):
            first_messages()
    finally:
        first_messages.cache_clear()


def test_every_list_of_phrases_has_two_sides_and_no_phrase_twice():
    for section, lists in phrase_table().items():
        for name, lines in lists.items():
            train, test = phrases(section, name), phrases(section, name, heldout=True)
            assert sorted(train + test) == sorted(lines) and len(lines) == len(set(lines))
            assert test and len(train) >= len(test)


def test_no_two_phrases_differ_in_case_and_marks_alone():
    """One of them could be held out, and the other trained on."""
    for section, lists in phrase_table().items():
        for name, lines in lists.items():
            if name == "code":
                continue
            keys = [re.sub(r"[^\w{}/+' ]", "", line.lower()).strip() for line in lines]
            keys = [key for key in keys if re.sub(r"\{\w*\}", "", key).strip()]  # not "{t}?"
            twice = [key for key, times in Counter(keys).items() if times > 1]
            assert not twice, (section, name, twice)


def test_no_first_message_is_asked_in_either_mixture():
    kept = {message_key(message) for _, message in first_messages()}
    for shares in (MID_SHARES, SFT_SHARES):
        mixture = chat_mixture(WORLD, 20_000, shares=shares)
        for conversation in mixture:
            for message in conversation["messages"][::2]:
                assert message_key(message["content"]) not in kept, message["content"]


def test_words_of_the_list_are_spelled_nowhere_in_training():
    words = {kind.split()[-1 if kind.startswith("spell") else 2] for kind, _ in first_messages()
             if kind.startswith(("spell", "count"))}  # fmt: skip
    assert "strawberry" in words and not words & set(real_words())
    rng = local_generator("test of words")
    assert not words & {spelled_word(rng) for _ in range(5_000)}
    spelled = " ".join(
        content_text(m["content"]).lower()
        for c in chat_mixture(WORLD, 5_000, shares=SFT_SHARES)
        for m in c["messages"][1::2]
    )
    for word in words:
        assert f"{word}: {word[0]}" not in spelled


@pytest.mark.parametrize("kind", (*KNOWN, *UNKNOWN, FailedCalls))
@pytest.mark.parametrize("split", ["train", "test"])
def test_conversations_are_valid_and_the_same_at_each_reading(kind, split):
    one, two = kind(WORLD, split, 40), kind(WORLD, split, 40)
    for i in range(len(one)):
        assert validate_conversation(one[i]) == two[i]
    assert messages_of(one) != messages_of(kind(WORLD, split, 40, seed=1))


@pytest.mark.parametrize("kind", [Sums, Problems, CountLetters])
def test_every_call_of_the_calculator_gives_what_the_answer_says(kind):
    for conversation in kind(WORLD, size=300):
        parts = conversation["messages"][1]["content"]
        if isinstance(parts, str):  # letters counted in one go
            continue
        texts = {part["type"]: part["text"] for part in parts}
        assert calculate(texts["python"]) == texts["python_output"]
        assert re.findall(r"-?\d+", content_text(parts))[-1] == texts["python_output"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_failed_calls_fail_and_only_the_refusal_is_learned(split):
    for conversation in FailedCalls(WORLD, split, 300):
        content = conversation["messages"][1]["content"]
        call, output, _ = content
        assert calculate(call["text"]) is None, call["text"]
        assert output == {"type": "python_output", "text": "error"}
        assert [text for text, _, mask in content_segments(content) if mask] == [REFUSAL]


def test_yes_and_no_come_after_the_fact_and_about_equally_often():
    answers = [c["messages"][1]["content"] for c in YesNo(WORLD, size=400)]
    yes = sum(answer.endswith(", so yes.") for answer in answers)
    assert 140 < yes < 260 and all(a.endswith((", so yes.", ", so no.")) for a in answers)


def test_what_is_unknown_is_refused_and_strangers_do_not_live_in_the_world():
    entities = {fact.entity for fact in WORLD.facts}
    for kind in UNKNOWN:
        assert {c["messages"][1]["content"] for c in kind(WORLD, size=200)} == {REFUSAL}
    for question in messages_of(Strangers(WORLD, size=300)):
        words = set(re.findall(r"\w+", question))
        # the value of a yes/no question may be an animal, and an animal an entity
        assert len(words & entities) <= 1


def test_a_slip_changes_one_word_a_little_and_typing_keeps_the_words():
    rng = local_generator("test of slips")
    for _ in range(200):
        slipped = slip(rng, "where does Mia live?")
        assert abs(len(slipped) - 20) <= 1 and slipped[0] == "w" and slipped[-1] == "?"
    assert slip(rng, "12+30") == "12+30"
    assert {message_key(as_typed(rng, "Where is it?", slips=0.0)) for _ in range(50)} == {
        "where is it"
    }


RIGHT = {
    "greet": REPLIES["greet"],
    "who": REPLIES["kind"],
    "sum 42": "<|python_start|>12+30<|python_end|><|output_start|>42<|output_end|>12 + 30 = 42",
    "fact Mia.home": next(
        f.answer for f in WORLD.facts if (f.entity, f.relation.name) == ("Mia", "home")
    ),
    "story": "One day Mia went to the park. Mia saw Tom there. And they all laughed.",
    "spell house": "I spell house: h o u s e.",
    "count r strawberry 3": "I count r in strawberry: s t r1 a w b e r2 r3 y. Check: "
    "<|python_start|>'strawberry'.count('r')<|python_end|><|output_start|>3<|output_end|>\n#### 3",
    "length house 5": "I number house: h1 o2 u3 s4 e5.\n#### 5",
    "unknown": REFUSAL,
}


@pytest.mark.parametrize("kind", RIGHT)
def test_the_grader_takes_the_right_reply_and_no_other(kind):
    for other, reply in RIGHT.items():
        assert handled(WORLD, kind, "tell me", reply) == (kind == other), (kind, reply)
    assert not handled(WORLD, kind, "tell me", "")


def test_near_misses_fail():
    fact = next(f for f in WORLD.facts if (f.entity, f.relation.name) == ("sheep", "coat"))
    other = next(value for value in fact.relation.values if value != fact.value)
    plain = fact.answer.removesuffix(".")
    for value, verdict in ((fact.value, "yes"), (other, "no")):
        kind = f"yesno sheep.coat={value}"
        assert handled(WORLD, kind, "", f"{plain}, so {verdict}.")
        assert not handled(WORLD, kind, "", f"{plain}, so {'yes' if verdict == 'no' else 'no'}.")
        assert not handled(WORLD, kind, "", fact.answer)
    assert not handled(WORLD, "fact sheep.coat", "", f"{plain}, so yes.")
    assert not handled(WORLD, "fact sheep.coat", "", fact.answer.replace("sheep", "cat"))
    assert not handled(WORLD, "fact sheep.coat", "", f"{plain} {other}.")
    assert not handled(WORLD, "sum 42", "", "<|output_end|>12 + 30 = 42, or 43")
    assert not handled(WORLD, "story", "a story about a dog", RIGHT["story"])
    wrong = RIGHT["count r strawberry 3"].replace("r2 r3", "r2")
    assert not handled(WORLD, "count r strawberry 3", "", wrong)
    with pytest.raises(ValueError, match="'riddle'"):
        handled(WORLD, "riddle", "", "")


def test_a_later_turn_asks_the_same_messages_after_practice_exchanges():
    first, third = FirstContact(WORLD), FirstContact(WORLD, before=2)
    assert "turn 3" in third.title and len(third) == len(first)
    for i in range(0, len(third), 20):
        alone, late = first[i]["messages"], third[i]["messages"]
        assert late[-2:] == alone and [m["role"] for m in late] == ["user", "assistant"] * 3
        assert late == FirstContact(WORLD, before=2)[i]["messages"]
    greeting = next(c for c in third if c["kind"] == "greet")
    assert third.evaluate(greeting, REPLIES["greet"])
    assert not third.evaluate(greeting, REPLIES["bye"])


def test_first_contact_asks_each_message_and_wants_replies_to_end():
    task = FirstContact(WORLD)
    assert task.must_end and len(task) == len(first_messages())
    asked = [(c["kind"], c["messages"][0]["content"]) for c in task]
    assert sorted(asked) == sorted(first_messages()) and asked != sorted(asked)
    kinds = {kind.split()[0] for kind, _ in first_messages()}
    assert len(kinds - {kind.split()[0] for kind, _ in asked[:100]}) <= 2, "no fair sample"
    conversation = next(c for c in task if c["kind"] == "greet")
    assert task.evaluate(conversation, REPLIES["greet"])
