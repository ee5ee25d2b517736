# Generated from chapters/13_batching.py by `course build`; edit that file.
"""One request, and the answer in the making."""

import math
import random
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from nanochat_lib.inference.calculator import calculate
from nanochat_lib.inference.sampling import check_dials
from nanochat_lib.tokenizer.conversation import CALL_FAILED
from nanochat_lib.tokenizer.tokenizer import Tokenizer

__all__ = ["MAX_CALL", "Guide", "Form", "Request", "in_a_loop", "Row"]

MAX_CALL = 32  # tokens; the longest sum of our sample of GSM8K has 28 characters


@runtime_checkable
class Guide(Protocol):
    """Follow one answer through a form; chapter `forms` has a real one."""

    def allowed(self) -> Bool[Tensor, " V"]:
        """Mark the tokens that may come next, one of them at least."""

    def accept(self, token: int) -> None:
        """Go on by a token."""


@runtime_checkable
class Form(Protocol):
    """Say what an answer must be."""

    def start(self) -> Guide:
        """Return a guide for a new answer."""


@dataclass(frozen=True)
class Request:
    """Ask for one answer to one prompt, in one way."""

    prompt: list[int]
    """token ids"""
    max_tokens: int | None = None
    """longest answer; None goes on to the end of the context"""
    temperature: float = 1.0
    """0 takes the likeliest token, 1 draws with the model's own odds"""
    top_k: int | None = None
    """draw among so many of the likeliest tokens"""
    top_p: float = 1.0
    """draw among the fewest tokens that hold this probability together"""
    min_p: float = 0.0
    """draw among tokens at least this share as likely as the likeliest"""
    seed: int | str = 42
    """the same seed gives the same answer, whoever else is being answered"""
    bias: Mapping[int, float] = field(default_factory=dict)
    """what is added to the logits of some tokens"""
    presence_penalty: float = 0.0
    """taken from the logit of every token that the answer holds already"""
    frequency_penalty: float = 0.0
    """taken once for each time that it does"""
    alternatives: int | None = None
    """note each token's log-probability, and so many of the likeliest; None notes nothing"""
    end_loops: bool = False
    """end an answer that repeats itself without end"""
    form: Form | None = None
    """what the answer must be: only tokens that can lead to it are drawn"""
    return_calls: bool = False
    """end the answer at a call, for somebody else to work out; False asks the calculator"""

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens {self.max_tokens}: need at least 1, or None")
        check_dials(self.temperature, self.top_k, self.top_p, self.min_p)


def in_a_loop(tokens: list[int], longest: int = 16, length: int = 24, times: int = 4) -> bool:
    """Say whether a text ends in a short piece that is repeated again and again.

    Example: 24 equal tokens are a loop; so are four times the same 16.

    Args:
        tokens: ids.
        longest: tokens of the longest piece that is looked for.
        length: tokens that the repetitions must cover together, at least.
        times: how often the piece must stand there, at least.
    """
    for period in range(1, longest + 1):
        covered = period * max(times, -(-length // period))
        if len(tokens) >= covered and tokens[-covered:-period] == tokens[period - covered :]:
            return True
    return False


class Row:
    """Follow one answer: its tokens, what a tool forces next, and how it ended."""

    def __init__(self, tokenizer: Tokenizer, request: Request, budget: int) -> None:
        """Start an empty answer of at most `budget` tokens."""
        self.tokenizer, self.request, self.budget = tokenizer, request, budget
        self.tokens: list[int] = []
        self.mask: list[int] = []
        self.logprobs: list[float] = []  # one a token, and one for the stop token if it came
        self.alternatives: list[list[tuple[int, float]]] = []  # the token itself comes first
        self.last = tokenizer.bos_id
        self.reason: Literal["stop", "length", "loop", "call", "cancelled"] | None = None
        self.guide = None if request.form is None else request.form.start()
        self.n_shared = 0  # tokens of the prompt that had been read for somebody else
        self.luck = random.Random(request.seed)
        self._forced: deque[int] = deque()
        self._expression: list[int] | None = None  # the tokens since python_start

    @property
    def finished(self) -> bool:
        """Say whether the answer has ended, in whatever way."""
        return self.reason is not None

    @property
    def stopped(self) -> bool:
        """Say whether the model ended the answer."""
        return self.reason == "stop"

    def accept(
        self, sampled: int, stop_tokens: frozenset[int], logprob: float = 0.0
    ) -> tuple[int, int]:
        """Take the sampled token, unless the row has ended or a tool has the word.

        Args:
            sampled: what the model chose.
            stop_tokens: ids that end the answer; they are not kept in `tokens`.
            logprob: of the choice, in nats; a forced token has 0.

        Returns:
            The row's token for this step, and 1 when the model chose it, 0 when it was forced. A
            row that has ended repeats its last token with 0.
        """
        if self.finished:
            return self.last, 0
        mask = 0 if self._forced else 1
        self.last = self._forced.popleft() if self._forced else sampled
        self.logprobs.append(logprob if mask else 0.0)
        if mask and self.last in stop_tokens:
            self.reason = "stop"
            return self.last, 1
        self.tokens.append(self.last)
        self.mask.append(mask)
        if mask and self.guide is not None:
            self.guide.accept(self.last)
        if mask:
            self._watch_for_tool(self.last)
        if self.finished:  # by a call
            return self.last, mask
        if len(self.tokens) >= self.budget:
            self.reason = "length"
        elif self.request.end_loops and in_a_loop(self.tokens):
            self.reason = "loop"
        return self.last, mask

    def _watch_for_tool(self, token: int) -> None:
        """Collect what stands in a tool call; queue the calculator's answer when it ends."""
        special = self.tokenizer.encode_special
        if token == special("<|python_start|>"):
            self._expression = []
        elif self._expression is not None:
            ended, result = token == special("<|python_end|>"), None
            if ended and self.request.return_calls:
                self.reason = "call"
                return
            if ended:
                result = calculate(self.tokenizer.decode(self._expression))
            self._expression.append(token)
            if ended or len(self._expression) > MAX_CALL:
                self._expression = None
                output = self.tokenizer.encode(result or CALL_FAILED)
                answer = [special("<|output_start|>"), *output, special("<|output_end|>")]
                self._forced.extend(answer if ended else [special("<|python_end|>"), *answer])

    def edit(self, logits: Float[Tensor, " V"]) -> None:
        """Apply the request's biases, penalties and form to the row's logits, in place."""
        request = self.request
        for token, bias in request.bias.items():
            logits[token] += bias
        if request.presence_penalty or request.frequency_penalty:
            for token, count in Counter(self.tokens).items():
                logits[token] -= request.presence_penalty + count * request.frequency_penalty
        if self.guide is not None:
            logits.masked_fill_(~self.guide.allowed().to(logits.device), -math.inf)
