# Generated from chapters/98_answers.py by `course build`; edit that file.
"""Answers in the form of OpenAI's API: whole, and as a stream of events."""

import json
import math
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from nanochat_lib.serving.errors import APIError
from nanochat_lib.serving.prompts import CALCULATOR
from nanochat_lib.serving.protocol import ChatRequest, CompletionRequest
from nanochat_lib.serving.replies import Noted, Piece, Reply
from nanochat_lib.tokenizer.tokenizer import Tokenizer

__all__ = ["Format", "gather", "tool_call", "event"]


class Format:
    """Write the answer to a chat or a completion."""

    def __init__(self, tokenizer: Tokenizer, body: ChatRequest | CompletionRequest) -> None:
        """Begin an answer."""
        self.tokenizer, self.body = tokenizer, body
        self.chat = isinstance(body, ChatRequest)
        self.kind = "chat.completion" if self.chat else "text_completion"
        self.param = "messages" if self.chat else "prompt"
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex[:24]}"
        self.created = int(time.time())

    def frame(self, choices: list[dict], kind: str, **more: Any) -> dict[str, Any]:
        """Put choices into the object that carries them."""
        about = {"id": self.id, "object": kind, "created": self.created, "model": self.body.model}
        return {**about, "choices": choices, **more}

    def entry(self, token: int, logprob: float) -> dict[str, Any]:
        """Describe one token and its log-probability; minus infinity is written as -9999."""
        data = self.tokenizer.decode_bytes([token])
        shown = {"token": data.decode("utf-8", "replace"), "bytes": list(data), "id": token}
        return shown | {"logprob": logprob if math.isfinite(logprob) else -9999.0}

    def logprobs(self, noted: list[Noted]) -> dict[str, Any]:
        """Write the log-probabilities of some tokens, each with its likeliest alternatives."""
        entries = [[self.entry(*pair) for pair in pairs] for pairs, _ in noted]
        for (own, *_), (_, in_tool) in zip(entries, noted):
            own |= {"inside_tool": True} if in_tool else {}
        if self.chat:
            return {"content": [{**own, "top_logprobs": others} for own, *others in entries]}
        return {
            "tokens": [own["token"] for own, *_ in entries],
            "token_logprobs": [own["logprob"] for own, *_ in entries],
            "top_logprobs": [{o["token"]: o["logprob"] for o in others} for _, *others in entries],
        }

    def choice(self, piece: Piece) -> dict[str, Any]:
        """Write one whole choice, gathered into one piece."""
        choice: dict[str, Any] = {"index": piece.index, "finish_reason": piece.reason}
        choice["logprobs"] = self.logprobs(piece.noted) if piece.noted else None
        if not self.chat:
            return choice | {"text": piece.text}
        message: dict[str, Any] = {"role": "assistant", "content": piece.text}
        if piece.steps:
            message["tool_steps"] = piece.steps
        if piece.call is not None:
            message |= {"content": piece.text or None, "tool_calls": [tool_call(piece.call)]}
        return choice | {"message": message}

    async def whole(self, reply: Reply) -> dict[str, Any]:
        """Gather all pieces into one answer."""
        choices = [self.choice(piece) for piece in await gather(reply)]
        return self.frame(choices, self.kind, usage=reply.usage())

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """Write one piece of a stream."""
        noted = self.logprobs(piece.noted) if piece.noted else None
        choice: dict[str, Any] = {
            "index": piece.index,
            "finish_reason": piece.reason,
            "logprobs": noted,
        }
        if not self.chat:
            return choice | {"text": piece.text}
        delta: dict[str, Any] = {"content": piece.text} if piece.text else {}
        if piece.steps:
            delta["tool_steps"] = piece.steps
        if piece.call is not None:
            delta["tool_calls"] = [{"index": 0, **tool_call(piece.call)}]
        return choice | {"delta": delta}

    async def stream(self, reply: Reply) -> AsyncIterator[str]:
        """Yield server-sent events, the last one [DONE]; an error becomes an event as well."""
        kind = "chat.completion.chunk" if self.chat else self.kind
        options = self.body.stream_options
        usage = options is not None and options.include_usage
        more = {"usage": None} if usage else {}
        try:
            if self.chat:
                for i in range(len(reply.tickets)):
                    opening = {"role": "assistant", "content": ""}
                    choice = {"index": i, "delta": opening, "finish_reason": None}
                    yield event(self.frame([choice], kind, **more))
            async for piece in reply.pieces():
                if piece.text or piece.steps or piece.noted or piece.reason:
                    yield event(self.frame([self.chunk(piece)], kind, **more))
            if usage:
                yield event(self.frame([], kind, usage=reply.usage()))
            yield "data: [DONE]\n\n"
        except APIError as error:
            yield event(error.body())


async def gather(reply: Reply) -> list[Piece]:
    """Put the pieces of each choice together."""
    whole = [Piece(i) for i in range(len(reply.tickets))]
    async for piece in reply.pieces():
        choice = whole[piece.index]
        choice.text += piece.text
        choice.noted += piece.noted
        choice.steps += piece.steps
        choice.call, choice.reason = piece.call, piece.reason
    return whole


def tool_call(expression: str) -> dict[str, Any]:
    """Write a call of the calculator that the caller shall answer."""
    function = {"name": CALCULATOR, "arguments": json.dumps({"expression": expression})}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def event(data: dict[str, Any], name: str | None = None) -> str:
    """Write one server-sent event."""
    line = f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
    return line if name is None else f"event: {name}\n{line}"
