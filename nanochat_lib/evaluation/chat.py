# Generated from chapters/17_finetuning.py by `course build`; edit that file.
"""Chat evaluation: ask a task's questions, grade the answers, put an interval on the score."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch

from nanochat_lib.inference.engine import Engine
from nanochat_lib.tasks.base import Task, content_text
from nanochat_lib.tokenizer.tokenizer import Tokenizer

__all__ = [
    "wilson_interval",
    "TaskScore",
    "score",
    "response_text",
    "make_record",
    "evaluate_task",
    "letter_ids",
    "evaluate_categorical",
]


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Bound the true rate behind `successes` out of `n` tries.

    Example: 8 of 10 -> (0.490, 0.943).

    Args:
        successes: right answers, 0 to n.
        n: questions asked, at least 1.
        confidence: how often such intervals cover the true rate, between 0 and 1.

    Returns:
        (low, high), within [0, 1].

    Raises:
        ValueError: n is not positive, successes is not in 0..n, or confidence not in (0, 1).

    Source: Wilson 1927, J. Am. Stat. Assoc. 22:209; no continuity correction.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes out of {n}: need n >= 1 and 0 <= successes <= n")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1: write 0.95 for 95%")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate, shrink = successes / n, 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


@dataclass(frozen=True)
class TaskScore:
    """An accuracy with its confidence interval; n is the number of questions."""

    accuracy: float
    low: float
    high: float
    n: int


def score(successes: int, n: int) -> TaskScore:
    """Build the score of `successes` right answers out of `n`, with a 95% interval."""
    low, high = wilson_interval(successes, n)
    return TaskScore(successes / n, low, high, n)


def response_text(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Decode what the assistant wrote, up to its end token; tool markers stay in the text."""
    stops = {tokenizer.encode_special("<|assistant_end|>"), tokenizer.bos_id}
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    return tokenizer.decode(ids[:end])


def make_record(
    task: Task, index: int, conversation: dict, response: str, ended: bool = True
) -> dict:
    """Grade one response and keep what a report wants to show of it."""
    messages = conversation["messages"]
    asked = max(i for i, message in enumerate(messages) if message["role"] == "user")
    expected = messages[asked + 1]["content"] if asked + 1 < len(messages) else ""
    return {
        "index": index,
        "question": messages[asked]["content"],
        "expected": content_text(expected),
        "response": response,
        "ended": ended,
        "correct": (ended or not task.must_end) and bool(task.evaluate(conversation, response)),
    }


def evaluate_task(
    engine: Engine, task: Task, max_tokens: int, batch_size: int = 64, limit: int | None = None
) -> tuple[TaskScore, list[dict]]:
    """Ask a task's questions, answer greedily in batches, and grade.

    Prompts are answered in order of length, so that a batch holds little padding. A prompt that
    leaves no room in the context counts as answered wrongly with "".

    Args:
        engine: generates.
        task: asks and grades.
        max_tokens: longest answer, tool calls and outputs included.
        batch_size: prompts answered at once.
        limit: ask only the first so many questions.

    Returns:
        The score, and a record a question: index, question, expected, response, whether it ended by
        itself, correct.

    Raises:
        ValueError: there is no question, or batch_size is below 1.
    """
    n = len(task) if limit is None else min(limit, len(task))
    if n < 1 or batch_size < 1:
        raise ValueError(f"{n} questions in batches of {batch_size}: both must be at least 1")
    conversations = [task[i] for i in range(n)]
    prompts = [engine.tokenizer.render_for_completion(c) for c in conversations]
    room = engine.model.config.sequence_len
    order = sorted((i for i in range(n) if len(prompts[i]) < room), key=lambda i: len(prompts[i]))
    responses = [("", False)] * n
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        answers = engine.generate_batch([prompts[i] for i in chosen], max_tokens=max_tokens)
        for i, (tokens, _) in zip(chosen, answers):
            ended = len(tokens) < min(max_tokens, room - len(prompts[i]))
            responses[i] = response_text(engine.tokenizer, tokens), ended
    records = [make_record(task, i, conversations[i], *responses[i]) for i in range(n)]
    return score(sum(record["correct"] for record in records), n), records


def letter_ids(tokenizer: Tokenizer, letters: list[str]) -> list[int]:
    """Find the token of each answer letter; two tokens for one letter would not compare."""
    ids = [tokenizer.encode(letter) for letter in letters]
    if any(len(tokens) != 1 for tokens in ids) or len({tokens[0] for tokens in ids}) < len(ids):
        raise ValueError(f"the letters {letters} are not one token each: got {ids}")
    return [tokens[0] for tokens in ids]


@torch.inference_mode()
def evaluate_categorical(
    engine: Engine, task: Task, batch_size: int = 16, limit: int | None = None
) -> tuple[TaskScore, list[dict]]:
    """Grade multiple choice by the likeliest letter, whatever else the model would rather say.

    Args:
        engine: holds the model and the tokenizer; nothing is generated.
        task: its conversations carry "letters", the options to choose from.
        batch_size: prompts read at once.
        limit: ask only the first so many questions.

    Returns:
        As `evaluate_task`; a prompt longer than the context counts as wrong.

    Raises:
        ValueError: no question, one without letters, a letter of two tokens, or a NaN logit.
    """
    n = len(task) if limit is None else min(limit, len(task))
    if n < 1 or batch_size < 1:
        raise ValueError(f"{n} questions in batches of {batch_size}: both must be at least 1")
    tokenizer, model = engine.tokenizer, engine.model
    device, records = next(model.parameters()).device, []
    for start in range(0, n, batch_size):
        conversations = [task[i] for i in range(start, min(start + batch_size, n))]
        prompts = [tokenizer.render_for_completion(c) for c in conversations]
        width = min(max(map(len, prompts)), model.config.sequence_len)
        rows = [(prompt + [tokenizer.bos_id] * width)[:width] for prompt in prompts]
        logits = model(torch.tensor(rows, device=device))  # (B, T, V); padding cannot be seen
        if bool(logits.isnan().any()):  # argmax would answer A, and score what A scores
            raise ValueError("a logit is NaN: the weights are damaged; load an earlier checkpoint")
        for row, (prompt, conversation) in enumerate(zip(prompts, conversations)):
            letters = conversation.get("letters")
            if not letters:
                raise ValueError(f"question {start + row} has no 'letters' to choose from")
            ids, response = letter_ids(tokenizer, letters), ""
            if len(prompt) <= width:
                response = letters[int(logits[row, len(prompt) - 1, ids].argmax())]
            records.append(make_record(task, start + row, conversation, response))
    return score(sum(record["correct"] for record in records), n), records
