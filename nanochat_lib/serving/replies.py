# Generated from chapters/98_server.py by `course build`; edit that file.
"""Answer one request: submit, gather the pieces, cancel what is left."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from nanochat_lib.inference.row import Request
from nanochat_lib.serving.errors import APIError
from nanochat_lib.serving.protocol import ChatRequest, Dials
from nanochat_lib.serving.reply import ReplyText
from nanochat_lib.serving.worker import Arrival, Draining, QueueFull, Worker
from nanochat_lib.tokenizer.tokenizer import Tokenizer

__all__ = ["Noted", "REASONS", "Defaults", "Piece", "make_requests", "Reply"]

Noted = tuple[list[tuple[int, float]], bool]  # a token's alternatives, and whether it is a tool's
REASONS = {"stop": "stop", "length": "length", "loop": "length", "cancelled": "stop"}


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
    reason: str | None = None


def make_requests(
    prompt: list[int], dials: Dials, defaults: Defaults, limit: int, alternatives: int | None
) -> list[Request]:
    """Make the n requests of a call.

    Args:
        prompt: ids.
        dials: what the caller wants.
        defaults: what holds otherwise.
        limit: tokens of the context.
        alternatives: as in `Request`.

    Raises:
        APIError: the prompt leaves no room in the context.
    """
    if len(prompt) >= limit:
        raise APIError(
            400,
            f"the prompt has {len(prompt)} tokens, the context {limit}: at least one must be left "
            "for the reply; make it shorter",
            "context_length_exceeded",
            "messages" if isinstance(dials, ChatRequest) else "prompt",
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
        )
        for i in range(dials.n)
    ]


class Reply:
    """The choices of one call while they arrive."""

    def __init__(
        self,
        worker: Worker,
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
            APIError: the queue is full (429), or the server is about to stop (503).
        """
        self.worker, self.requests, self.queue = worker, requests, asyncio.Queue()
        self.gone, self.started, self.first_seconds = gone, time.perf_counter(), None
        self.texts = [ReplyText(tokenizer, stops) for _ in requests]
        self.n_tokens = 0
        try:
            self.tickets = worker.submit(requests, self.queue)
        except QueueFull:
            message = f"{worker.max_waiting} requests wait already: try again in a second"
            raise APIError(429, message, "queue_full", Retry_After="1") from None
        except Draining:
            message = "the server is about to stop: ask another one"
            raise APIError(503, message, "draining", Retry_After="5") from None

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield what arrives until every choice has ended; leave no request behind.

        Raises:
            APIError: the engine failed.
        """
        going = set(range(len(self.tickets)))
        try:
            while going:
                arrival = await self.queue.get()
                if self.gone is not None and await self.gone():
                    return
                if arrival.index in going:
                    piece = self._take(arrival)
                    if piece.reason is not None:
                        going.discard(arrival.index)
                    yield piece
        finally:
            self.worker.cancel([self.tickets[i] for i in going])

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
            piece.text += text.finish()
        if text.stopped:
            piece.reason = "stop"
            self.worker.cancel([self.tickets[arrival.index]])
        piece.steps = text.steps[before:]
        return piece

    def usage(self) -> dict[str, Any]:
        """Count tokens, and those of the prompt that had been read for somebody else."""
        prompt = len(self.requests[0].prompt)
        rows = [ticket.row for ticket in self.tickets if ticket.row is not None]
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.n_tokens,
            "total_tokens": prompt + self.n_tokens,
            "prompt_tokens_details": {"cached_tokens": max((r.n_shared for r in rows), default=0)},
        }
