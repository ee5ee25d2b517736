# Generated from chapters/18_rl.py by `course build`; edit that file.
"""Let a model answer questions several times, grade the answers, and lay them out for learning."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nanochat_lib.inference.engine import Engine, Row
from nanochat_lib.inference.sampling import sampled_logprobs
from nanochat_lib.model.gpt import GPT
from nanochat_lib.training.loader import best_fit

__all__ = ["Answer", "ask", "PackedAnswers", "pack_answers", "pack_batch", "chosen_logprobs"]


@dataclass
class Answer:
    """Hold one try: the prompt, what was written, and what that was worth.

    `tokens` ends with the stop token if there was one (`stopped`); `mask` is 1 where the model chose, 0 where a
    tool wrote; `logprobs` are the sampler's, in nats, 0 where nothing was chosen.
    """

    prompt: list[int]
    tokens: list[int]
    mask: list[int]
    logprobs: list[float]
    stopped: bool
    reward: float = 0.0
    advantage: float = 0.0

    @classmethod
    def from_row(cls, prompt: list[int], row: Row) -> "Answer":
        """Take what the engine wrote after a prompt."""
        stop = [row.last] if row.stopped else []
        mask = row.mask + [1] * len(stop)
        return cls(prompt, row.tokens + stop, mask, row.logprobs, row.stopped)


def ask(
    engine: Engine,
    conversations: list[dict],
    samples: int,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> list[list[Answer]]:
    """Answer each question several times, all in one batch; prompts are read once.

    Args:
        engine: holds the model.
        conversations: end with a reference answer, which is cut off.
        samples: tries a question.
        max_tokens: longest answer, tool calls and outputs included.
        temperature: as in `draw`.
        top_k: as in `draw`.
        seed: of all draws.

    Returns:
        A group of answers for each question, not yet graded.
    """
    prompts = [engine.tokenizer.render_for_completion(c) for c in conversations]
    rows = engine.rollouts(prompts, max_tokens, temperature, top_k, seed, samples)
    return [
        [Answer.from_row(prompt, row) for row in rows[i * samples : (i + 1) * samples]]
        for i, prompt in enumerate(prompts)
    ]


class PackedAnswers(NamedTuple):
    """Hold rows of answers, and one entry for each of N chosen tokens."""

    idx: Int[Tensor, "B T"]
    row: Int[Tensor, " N"]
    position: Int[Tensor, " N"]  # of the token before: that is where the choice was made
    token: Int[Tensor, " N"]
    answer: Int[Tensor, " N"]  # its number in the list that was packed
    logprob: Float[Tensor, " N"]  # the sampler's


def pack_answers(
    answers: list[Answer], sequence_len: int, max_rows: int, first_token: int
) -> list[PackedAnswers]:
    """Pack prompts with their answers into rows, whole, longest first, the best fit next.

    Args:
        answers: what to learn from.
        sequence_len: tokens of a row, T.
        max_rows: rows of one batch, so that memory stays bounded.
        first_token: opens every prompt, and fills what is left of a row.

    Returns:
        Batches of up to `max_rows` rows; every answer is in one of them.

    Raises:
        ValueError: a prompt with its answer does not fit a row.
    """
    lengths = [len(a.prompt) + len(a.tokens) for a in answers]
    if max(lengths, default=0) > sequence_len:
        raise ValueError(
            f"an answer has {max(lengths)} tokens with its prompt, a row {sequence_len}: "
            "raise sequence_len or lower max_tokens"
        )
    left = sorted(range(len(answers)), key=lambda i: -lengths[i])
    rows: list[list[int]] = []
    while left:
        rows.append([])
        room = sequence_len
        while (best := best_fit([lengths[i] for i in left], room)) is not None:
            rows[-1].append(left.pop(best))
            room -= lengths[rows[-1][-1]]
    batches = [rows[i : i + max_rows] for i in range(0, len(rows), max_rows)]
    return [pack_batch(answers, batch, sequence_len, first_token) for batch in batches]


def pack_batch(
    answers: list[Answer], rows: list[list[int]], sequence_len: int, first_token: int
) -> PackedAnswers:
    """Write rows of answers, given by their numbers, into one batch."""
    idx = torch.full((len(rows), sequence_len), first_token)
    chosen = []
    for r, row in enumerate(rows):
        start = 0
        for number in row:
            answer = answers[number]
            ids = answer.prompt + answer.tokens
            idx[r, start : start + len(ids)] = torch.tensor(ids)
            before = start + len(answer.prompt) - 1
            parts = zip(answer.tokens, answer.mask, answer.logprobs)
            for i, (token, mask, logprob) in enumerate(parts):
                if mask:
                    chosen.append((r, before + i, token, number, logprob))
            start += len(ids)
    *whole, logprobs = zip(*chosen) if chosen else [()] * 5
    numbers = [torch.tensor(column, dtype=torch.int64) for column in whole]
    return PackedAnswers(idx, *numbers, torch.tensor(logprobs, dtype=torch.float32))


def chosen_logprobs(
    model: GPT, packed: PackedAnswers, temperature: float = 1.0, top_k: int | None = None
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Return the model's log-probability of every chosen token, and the entropy where it was chosen, in nats.

    The head runs only where something was chosen, in float32. `model.first_token` must be set, so that answers
    in one row do not read each other. Gradients flow through the first result alone.
    """
    device = packed.idx.device
    hidden = model.hidden(packed.idx)[packed.row, packed.position]  # (N, C)
    weight = model.lm_head.weight[: model.config.vocab_size].float()
    logits = hidden.float() @ weight.T
    logits = model.config.softcap * torch.tanh(logits / model.config.softcap)
    with torch.no_grad():
        odds = torch.log_softmax(logits, -1)
        entropy = -(odds.exp() * odds).sum(-1)
    return sampled_logprobs(logits, packed.token.to(device), temperature, top_k), entropy
