# Generated from chapters/98_answers.py by `course build`; edit that file.
"""Answer one request: submit, gather the pieces, cancel what is left."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from nanochat_lib.inference.forms import Forms
from nanochat_lib.inference.row import Form, Request
from nanochat_lib.serving.errors import APIError
from nanochat_lib.serving.protocol import ChatRequest, CompletionRequest, Dials
from nanochat_lib.serving.reply import ReplyText
from nanochat_lib.serving.worker import Answering, Arrival, Draining, NoWorker, QueueFull
from nanochat_lib.tokenizer.tokenizer import Tokenizer

__all__ = ["Noted", "REASONS", "Defaults", "Piece", "make_requests", "asked_form", "Reply"]

Noted = tuple[list[tuple[int, float]], bool]  # a token's alternatives, and whether it is a tool's
REASONS = {
    "stop": "stop",
    "length": "length",
    "loop": "length",
    "cancelled": "stop",
    "call": "tool_calls",
}


@dataclass(frozen=True)
class Defaults:
    """What holds where a request says nothing."""

    temperature: float = 0.0
    top_k: int | None = 50


@dataclass
class Piece:
    """What one token brought to one choice."""

    index: int
    text: str = ""
    noted: list[Noted] = field(default_factory=list)
    steps: list[dict[str, str]] = field(default_factory=list)
    call: str | None = None  # an expression that the caller shall work out
    reason: str | None = None


def make_requests(
    prompt: list[int],
    dials: Dials,
    defaults: Defaults,
    limit: int,
    alternatives: int | None,
    form: Form | None = None,
    param: str = "prompt",
) -> list[Request]:
    """Make the n requests of a call.

    Args:
        prompt: ids.
        dials: what the caller wants.
        defaults: what holds otherwise.
        limit: tokens of the context.
        alternatives: as in `Request`.
        form: as in `Request`.
        param: the field that a prompt too long stood in.

    Raises:
        APIError: the prompt leaves no room in the context.
    """
    if len(prompt) >= limit:
        raise APIError(
            400,
            f"the prompt has {len(prompt)} tokens, the context {limit}: at least one must be left "
            "for the reply; make it shorter",
            "context_length_exceeded",
            param,
        )
    pick = lambda value, other: other if value is None else value  # noqa: E731
    seed = pick(dials.seed, random.getrandbits(32))
    longest = getattr(dials, "max_completion_tokens", None) or dials.max_tokens
    return [
        Request(
            prompt,
            longest,
            pick(dials.temperature, defaults.temperature),
            pick(dials.top_k, defaults.top_k),
            pick(dials.top_p, 1.0),
            pick(dials.min_p, 0.0),
            f"{seed} {i}",
            dials.logit_bias,
            dials.presence_penalty,
            dials.frequency_penalty,
            alternatives,
            end_loops=True,
            form=form,
            return_calls=bool(getattr(dials, "tools", [])) and dials.tool_choice != "none",
        )
        for i in range(dials.n)
    ]


def asked_form(forms: Forms, body: ChatRequest | CompletionRequest) -> Form | None:
    """Return the form that an answer shall have.

    Raises:
        APIError: two are asked for, or one that cannot be made.
    """
    chosen, asked = body.structured_outputs, getattr(body, "response_format", None)
    asked = None if asked is None or asked.type == "text" else asked
    name = "structured_outputs" if asked is None else "response_format"
    if asked is not None and chosen is not None:
        message = "give response_format or structured_outputs, not both"
        raise APIError(400, message, "invalid_format", name)
    try:
        if asked is not None:
            schema = asked.json_schema.schema_ if asked.json_schema else {"type": "object"}
            return forms.json_schema(schema)
        if chosen is not None:
            return (
                forms.regex(chosen.regex) if chosen.choice is None else forms.choice(chosen.choice)
            )
    except ValueError as error:
        raise APIError(400, str(error), "invalid_format", name) from error
    return None


class Reply:
    """The choices of one call while they arrive."""

    def __init__(
        self,
        worker: Answering,
        tokenizer: Tokenizer,
        requests: list[Request],
        stops: list[str],
        gone: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """Submit the requests.

        Args:
            worker: has the engine.
            tokenizer: its.
            requests: the n requests of a call.
            stops: strings that end the text.
            gone: says whether the caller has left.

        Raises:
            APIError: the queue is full (429), the server is about to stop or nobody answers (503).
        """
        self.worker, self.requests, self.queue = worker, requests, asyncio.Queue()
        self.gone, self.started, self.first_seconds = gone, time.perf_counter(), None
        self.texts = [ReplyText(tokenizer, stops) for _ in requests]
        self.n_tokens, self.going = 0, set(range(len(requests)))
        try:
            self.tickets = worker.submit(requests, self.queue)
        except QueueFull:
            message = f"{worker.max_waiting} requests wait already: try again in a second"
            raise APIError(429, message, "queue_full", Retry_After="1") from None
        except Draining:
            message = "the server is about to stop: ask another one"
            raise APIError(503, message, "draining", Retry_After="5") from None
        except NoWorker as error:
            raise APIError(503, str(error), "no_worker", Retry_After="5") from None

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield what arrives until every choice has ended; leave no request behind.

        Raises:
            APIError: the engine failed.
        """
        try:
            while self.going:
                arrival = await self.queue.get()
                if self.gone is not None and await self.gone():
                    return
                if arrival.index in self.going:
                    piece = self._take(arrival)
                    if piece.reason is not None:
                        self.going.discard(arrival.index)
                    yield piece
        finally:
            self.close()

    def close(self) -> None:
        """Let the requests go that have not ended; calling it again does nothing."""
        self.worker.cancel([self.tickets[i] for i in self.going])
        self.going = set()

    def _take(self, arrival: Arrival) -> Piece:
        """Turn an arrival into a piece."""
        if arrival.error is not None:
            raise APIError(500, f"the engine failed: {arrival.error}", "engine_failed")
        text, piece = self.texts[arrival.index], Piece(arrival.index)
        before = len(text.steps)
        if arrival.token is not None:
            if self.n_tokens == 0:
                self.first_seconds = time.perf_counter() - self.started
            self.n_tokens += 1
            piece.text = text.feed(arrival.token)
            if arrival.alternatives:
                piece.noted = [(arrival.alternatives, text.in_tool)]
        if arrival.reason is not None:
            piece.reason = REASONS[arrival.reason]
            piece.call = text.call if arrival.reason == "call" else None
            piece.text += text.finish()
        if text.stopped:
            piece.reason = "stop"
            self.worker.cancel([self.tickets[arrival.index]])
        piece.steps = text.steps[before:]
        return piece

    def usage(self) -> dict[str, Any]:
        """Count tokens, and those of the prompt that had been read for somebody else."""
        prompt = len(self.requests[0].prompt)
        shared = self.tickets[0].n_shared  # what the others share with this one is no saving
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.n_tokens,
            "total_tokens": prompt + self.n_tokens,
            "prompt_tokens_details": {"cached_tokens": shared},
        }
