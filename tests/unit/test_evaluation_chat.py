"""Intervals agree with scipy; evaluation grades every question once, whatever its length."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from nanochat_lib.evaluation.chat import (
    evaluate_categorical,
    evaluate_task,
    letter_ids,
    response_text,
    score,
    wilson_interval,
)
from nanochat_lib.inference.engine import Engine
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.tasks.base import Task
from nanochat_lib.tokenizer.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["say the word (A) (B) 1 2 3 4 5 6 7 8 9 0 "] * 20, vocab_size=300)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 2000), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_agrees_with_scipy(n, share, confidence):
    successes = round(share * n)
    expected = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    found = wilson_interval(successes, n, confidence)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= found[0] <= successes / n <= found[1] <= 1


@pytest.mark.parametrize(
    "arguments", [(0, 0), (-1, 5), (6, 5), (1, 2, 0.0), (1, 2, 95.0), (1, 2, 1.0)]
)
def test_impossible_counts_are_refused(arguments):
    with pytest.raises(ValueError):
        wilson_interval(*arguments)


def test_a_score_holds_rate_and_interval():
    found = score(8, 10)
    assert (found.accuracy, found.n) == (0.8, 10)
    assert (round(found.low, 3), round(found.high, 3)) == (0.490, 0.943)


class Say(Task):
    """Say a number; some questions are long, one longer than the context."""

    def __init__(self, lengths: list[int]):
        super().__init__("test")
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict:
        question = f"say {index}" + " the" * self.lengths[self.check_index(index)]
        user = {"role": "user", "content": question}
        answer = {"role": "assistant", "content": str(index)}
        return {"messages": [user, answer], "letters": ["A", "B"]}

    def evaluate(self, conversation: dict, response: str) -> bool:
        return response == conversation["messages"][-1]["content"]


class Obedient(Engine):
    """Answers with the number in the prompt, and notes the batches it was given."""

    def __init__(self, sequence_len: int = 64):
        config = GPTConfig(
            sequence_len=sequence_len,
            vocab_size=TOKENIZER.vocab_size,
            n_layer=1,
            n_head=1,
            n_kv_head=1,
            n_embd=16,
        )
        model = GPT(config)
        model.init_weights(torch.Generator().manual_seed(0))
        super().__init__(model, TOKENIZER)
        self.batches = []

    def generate_batch(self, prompts, max_tokens=None, **settings):
        self.batches.append([len(prompt) for prompt in prompts])
        words = [TOKENIZER.decode(prompt).split("say ")[1] for prompt in prompts]
        numbers = [word.split("<")[0].split()[0] for word in words]
        return [(TOKENIZER.encode(number)[:max_tokens], [1]) for number in numbers]


def test_every_question_is_graded_once_and_in_order():
    engine, task = Obedient(), Say([5, 0, 3, 1, 0, 2, 4])
    found, records = evaluate_task(engine, task, max_tokens=4, batch_size=3)
    assert (found.accuracy, found.n) == (1.0, 7)
    assert [record["index"] for record in records] == list(range(7))
    assert [record["response"] for record in records] == [str(i) for i in range(7)]
    assert records[2]["question"] == task[2]["messages"][0]["content"]
    assert records[2]["expected"] == "2" and records[2]["correct"] is True
    flat = [length for batch in engine.batches for length in batch]
    assert flat == sorted(flat) and [len(batch) for batch in engine.batches] == [3, 3, 1]


def test_a_prompt_beyond_the_context_counts_as_wrong():
    found, records = evaluate_task(Obedient(24), Say([0, 60, 0]), max_tokens=4)
    assert (found.accuracy, found.n) == (pytest.approx(2 / 3), 3)
    assert records[1]["response"] == "" and not records[1]["correct"]


def test_an_answer_that_is_cut_off_is_wrong_where_answers_must_end():
    task = Say([0] * 12)
    for must_end in (False, True):
        task.must_end = must_end
        _, records = evaluate_task(Obedient(), task, max_tokens=2)
        assert [record["ended"] for record in records] == [True] * 10 + [False] * 2
        assert [record["correct"] for record in records] == [True] * 10 + [not must_end] * 2


def test_limit_and_empty_tasks():
    found, records = evaluate_task(Obedient(), Say([0] * 9), max_tokens=4, limit=4)
    assert found.n == len(records) == 4
    for arguments in ({"limit": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError):
            evaluate_task(Obedient(), Say([0]), max_tokens=4, **arguments)
    with pytest.raises(ValueError):
        evaluate_task(Obedient(), Say([]), max_tokens=4)


def test_responses_end_at_the_end_token_and_keep_tool_markers():
    ids, _ = TOKENIZER.render_conversation(
        {
            "messages": [
                {"role": "user", "content": "say"},
                {"role": "assistant", "content": [{"type": "python", "text": "1+1"}]},
            ]
        }
    )
    start = ids.index(TOKENIZER.encode_special("<|assistant_start|>")) + 1
    assert response_text(TOKENIZER, ids[start:] + TOKENIZER.encode("more")) == (
        "<|python_start|>1+1<|python_end|>"
    )
    assert response_text(TOKENIZER, TOKENIZER.encode("no end")) == "no end"


class Choice(Say):
    """Say, with a letter for an answer."""

    def __getitem__(self, index: int) -> dict:
        conversation = super().__getitem__(index)
        conversation["messages"][-1]["content"] = "AB"[index % 2]
        return conversation


def test_categorical_reads_the_right_position_and_only_the_letters():
    """The same verdicts one at a time and in padded batches, equal to a forward pass by hand."""
    engine, task = Obedient(), Choice([5, 0, 9, 1, 0, 2, 12, 3])
    with torch.no_grad():
        engine.model.lm_head.weight.normal_(generator=torch.Generator().manual_seed(1))
    found, records = evaluate_categorical(engine, task, batch_size=3)
    single, _ = evaluate_categorical(engine, task, batch_size=1)
    assert found == single
    a, b = letter_ids(TOKENIZER, ["A", "B"])
    for i, record in enumerate(records):
        prompt = TOKENIZER.render_for_completion(task[i])
        with torch.no_grad():
            logits = engine.model(torch.tensor([prompt]))[0, -1]
        expected = "A" if logits[a] > logits[b] else "B"
        assert record["response"] == expected and record["correct"] == (expected == "AB"[i % 2])


def test_categorical_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="not one token"):
        letter_ids(TOKENIZER, ["A", "the word"])

    class Bare(Say):
        def __getitem__(self, index: int) -> dict:
            return {"messages": super().__getitem__(index)["messages"]}

    with pytest.raises(ValueError, match="no 'letters'"):
        evaluate_categorical(Obedient(), Bare([0]))


def test_categorical_counts_a_long_prompt_as_wrong():
    found, records = evaluate_categorical(Obedient(24), Choice([60, 0]))
    assert found.n == 2 and records[0]["response"] == "" and records[1]["response"] in ("A", "B")
