# Generated from chapters/98_answers.py by `course build`; edit that file.
"""From the messages of a chat to the tokens of a prompt."""

import json
from typing import Any

from nanochat_lib.serving.errors import APIError
from nanochat_lib.serving.protocol import Message, Tool
from nanochat_lib.tokenizer.conversation import content_segments
from nanochat_lib.tokenizer.tokenizer import Tokenizer

__all__ = ["CALCULATOR", "check_tools", "joined", "parts", "made_calls", "turns", "render_chat"]

CALCULATOR = "calculator"  # the one tool, by the name under which a caller may offer it


def check_tools(tools: list[Tool]) -> None:
    """Refuse tools that the model does not know."""
    for i, tool in enumerate(tools):
        properties = (tool.function.parameters or {}).get("properties")
        if tool.function.name != CALCULATOR or set(properties or {}) != {"expression"}:
            message = (
                f"the model was trained with one tool: a function {CALCULATOR!r} with one parameter, a string "
                f"`expression`; {tool.function.name!r} is another one"
            )
            raise APIError(400, message, "unknown_tool", f"tools.{i}")


def joined(content: Any) -> Any:
    """Join content that comes as parts of text; leave any other as it is."""
    kinds = ("text", "input_text", "output_text")
    if isinstance(content, list) and all(part.get("type") in kinds for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    return content


def parts(content: Any) -> list[dict[str, str]]:
    """Return an assistant's content as parts."""
    content = joined(content)
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return list(content or [])


def made_calls(message: Message) -> list[dict[str, str]]:
    """Return the calls of a message as parts."""
    found = []
    for call in message.tool_calls or []:
        try:
            expression = json.loads(call.function.arguments)["expression"]
        except (ValueError, TypeError, KeyError):
            expression = None
        if call.function.name != CALCULATOR or not isinstance(expression, str):
            raise ValueError(
                f"the call {call.id!r} must be one of {CALCULATOR!r}, its arguments JSON with a string "
                "`expression`"
            )
        found.append({"type": "python", "text": expression})
    return found


def turns(messages: list[Message]) -> tuple[list[dict[str, Any]], list[dict[str, str]] | None]:
    """Return a chat as the tokenizer knows it, and the parts of a turn of the assistant that is not over.

    Raises:
        ValueError: a tool's answer without a call, or a call without an answer.
    """
    plain: list[dict[str, Any]] = []
    waiting: list[str] = []  # calls that have no answer yet
    open_turn: list[dict[str, str]] | None = None  # of an assistant who waits, or has got an answer
    for i, message in enumerate(messages):
        where = f"message {i} ({message.role})"
        if message.role == "tool":
            if open_turn is None or not waiting or message.tool_call_id != waiting[0]:
                raise ValueError(f"{where}: answers no call; send the call's message before it")
            waiting.pop(0)
            open_turn.append({"type": "python_output", "text": str(joined(message.content))})
            continue
        if waiting:
            raise ValueError(f"{where}: the call {waiting[0]!r} waits for an answer, role tool")
        if message.role == "assistant" and (open_turn is not None or message.tool_calls):
            if len(message.tool_calls or []) > 1:
                raise ValueError(f"{where}: one call at a time")
            open_turn = (open_turn or []) + parts(message.content) + made_calls(message)
            waiting = [call.id for call in message.tool_calls or []]
            if not waiting:
                plain.append({"role": "assistant", "content": open_turn})
                open_turn = None
            continue
        if open_turn is not None:
            plain.append({"role": "assistant", "content": open_turn})
            open_turn = None
        role = "system" if message.role == "developer" else message.role
        plain.append({"role": role, "content": joined(message.content)})
    if waiting:
        raise ValueError(f"the call {waiting[0]!r} waits for an answer: a message with role tool")
    return plain, open_turn


def render_chat(
    tokenizer: Tokenizer, messages: list[Message], param: str = "messages"
) -> list[int]:
    """Render a chat up to the place where the assistant speaks, or goes on.

    Raises:
        APIError: the messages are no chat that waits for the assistant.
    """
    try:
        plain, open_turn = turns(messages)
        if not plain or plain[-1]["role"] != "user":
            raise ValueError("the last message must be a user's, or a tool's after one")
        ids = tokenizer.render_for_completion({"messages": plain})
    except (ValueError, TypeError) as error:
        raise APIError(400, str(error), "invalid_messages", param) from error
    for text, is_special, _ in content_segments(open_turn or []):
        ids += [tokenizer.encode_special(text)] if is_special else tokenizer.encode(text)
    return ids
