# Generated from chapters/98_answers.py by `course build`; edit that file.
"""Answers in the form of OpenAI's responses."""

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from nanochat_lib.serving.errors import APIError
from nanochat_lib.serving.formats import event, gather
from nanochat_lib.serving.protocol import (
    ChatRequest,
    JSONSchema,
    Message,
    ResponseFormat,
    ResponseRequest,
)
from nanochat_lib.serving.replies import Reply

__all__ = ["as_chat", "ResponseForm"]


def as_chat(body: ResponseRequest) -> ChatRequest:
    """Return the chat that a response's request asks for."""
    items = body.input
    if isinstance(items, str):
        messages = [Message(role="user", content=items)]
    else:
        messages = [Message(role=item.role, content=item.content) for item in items]
    if body.instructions is not None:
        messages = [Message(role="system", content=body.instructions), *messages]
    if not messages:
        raise APIError(400, "input: give a text, or at least one message", "invalid_input", "input")
    chosen, form = body.text.format if body.text else None, None
    if chosen is not None:
        named = {"name": chosen.name or "answer", "schema": chosen.schema_}
        schema = JSONSchema(**named) if chosen.type == "json_schema" else None
        form = ResponseFormat(type=chosen.type, json_schema=schema)
    dials = ("model", "temperature", "top_p", "seed", "stream")
    same = {name: getattr(body, name) for name in dials}
    longest = body.max_output_tokens
    return ChatRequest(messages=messages, max_tokens=longest, response_format=form, **same)


class ResponseForm:
    """Write the answer to a response's request."""

    def __init__(self, body: ResponseRequest) -> None:
        """Begin an answer."""
        self.body, self.created, self.n_events = body, int(time.time()), 0
        self.param = "input"
        self.id, self.item = f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}"

    def message(self, text: str, status: str) -> dict[str, Any]:
        """Write the one item that is put out."""
        about = {"id": self.item, "type": "message", "role": "assistant", "status": status}
        return about | {"content": [self.part(text)] if status != "in_progress" else []}

    def part(self, text: str) -> dict[str, Any]:
        """Write a part of content."""
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def response(
        self, status: str, output: list[dict], usage: dict | None = None
    ) -> dict[str, Any]:
        """Write the whole object."""
        body = self.body
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        about = {"id": self.id, "object": "response", "created_at": self.created, "status": status}
        about |= {"model": body.model, "output": output, "error": None, "incomplete_details": cut}
        about |= {
            "instructions": body.instructions,
            "metadata": body.metadata or {},
            "usage": usage,
        }
        about |= {"temperature": body.temperature, "top_p": body.top_p, "tools": []}
        about |= {"max_output_tokens": body.max_output_tokens, "truncation": "disabled"}
        format_of = body.text and body.text.format
        shown = (
            format_of.model_dump(by_alias=True, exclude_none=True)
            if format_of
            else {"type": "text"}
        )
        about |= {"text": {"format": shown}, "previous_response_id": None}
        return about | {"parallel_tool_calls": False, "tool_choice": "auto"}

    def finished(self, text: str, reason: str | None, reply: Reply) -> dict[str, Any]:
        """Write the object of an answer that has ended."""
        status = "incomplete" if reason == "length" else "completed"
        used = reply.usage()
        usage = {
            "input_tokens": used["prompt_tokens"],
            "input_tokens_details": used["prompt_tokens_details"],
            "output_tokens": used["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used["total_tokens"],
        }
        return self.response(status, [self.message(text, status)], usage)

    async def whole(self, reply: Reply) -> dict[str, Any]:
        """Gather all pieces into one answer."""
        [piece] = await gather(reply)
        return self.finished(piece.text, piece.reason, reply)

    def named(self, kind: str, **more: Any) -> str:
        """Write an event of a response's stream."""
        self.n_events += 1
        return event({"type": kind, "sequence_number": self.n_events - 1, **more}, kind)

    async def stream(self, reply: Reply) -> AsyncIterator[str]:
        """Yield the events; an error becomes an event as well."""
        place = {"item_id": self.item, "output_index": 0, "content_index": 0}
        begun, text, reason = self.response("in_progress", []), "", None
        try:
            yield self.named("response.created", response=begun)
            yield self.named("response.in_progress", response=begun)
            item = self.message("", "in_progress")
            yield self.named("response.output_item.added", output_index=0, item=item)
            yield self.named("response.content_part.added", **place, part=self.part(""))
            async for piece in reply.pieces():
                text, reason = text + piece.text, piece.reason
                if piece.text:
                    more = {"delta": piece.text, "logprobs": []}
                    yield self.named("response.output_text.delta", **place, **more)
            yield self.named("response.output_text.done", **place, text=text, logprobs=[])
            yield self.named("response.content_part.done", **place, part=self.part(text))
            found = self.finished(text, reason, reply)
            [item] = found["output"]
            yield self.named("response.output_item.done", output_index=0, item=item)
            yield self.named(f"response.{found['status']}", response=found)
        except APIError as error:
            about = error.body()["error"]
            yield self.named(
                "error", **{name: about[name] for name in ("code", "message", "param")}
            )
