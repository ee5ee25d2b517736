# Generated from chapters/02_tokenizer.py by `course build`; edit that file.
"""Conversations as segments of text and special tokens, each with its loss mask."""

__all__ = ["Segment", "content_segments", "check_messages", "conversation_segments"]

Segment = tuple[str, bool, int]  # text or special name, is it special, mask

_PART_MARKERS = {
    "python": ("<|python_start|>", "<|python_end|>", 1),
    "python_output": ("<|output_start|>", "<|output_end|>", 0),
}


def content_segments(content: object, where: str) -> list[Segment]:
    """Turn an assistant's content into segments.

    Args:
        content: a string, or parts {"type": "text" | "python" | "python_output", "text": str}.
        where: names the message in errors.

    Raises:
        ValueError: the content or a part of it has another form.
    """
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise ValueError(
            f"{where} has content {content!r:.80}: expected a string or a list of parts"
        )
    segments: list[Segment] = []
    for number, part in enumerate(parts):
        kind, text = (
            (part.get("type"), part.get("text")) if isinstance(part, dict) else (None, None)
        )
        if kind not in ("text", *_PART_MARKERS) or not isinstance(text, str):
            raise ValueError(
                f"{where}, part {number} is {part!r:.80}: "
                "expected type text, python or python_output, and a text"
            )
        if kind == "text":
            segments.append((text, False, 1))
        else:
            start, end, mask = _PART_MARKERS[kind]
            segments += [(start, True, mask), (text, False, mask), (end, True, mask)]
    return segments


def check_messages(conversation: dict) -> list[dict]:
    """Return the messages with the system message merged into the first user message.

    Raises:
        ValueError: there are no messages, or the roles do not alternate user, assistant, user, ...
    """
    messages = conversation.get("messages") if isinstance(conversation, dict) else conversation
    if not isinstance(conversation, dict) or not isinstance(messages, list) or not messages:
        raise ValueError(f"a conversation needs a list of messages, got {messages!r:.80}")
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            raise ValueError(f"message {number} is {message!r:.80}: expected a role and a content")
    offset = 1 if messages[0].get("role") == "system" else 0
    for number, message in enumerate(messages[offset:]):
        expected = "assistant" if number % 2 else "user"
        if message.get("role") != expected:
            raise ValueError(
                f"message {number + offset} has role {message.get('role')!r}: expected "
                f"{expected!r}, because roles alternate from the first user message on"
            )
        if expected == "user" and not isinstance(message.get("content"), str):
            raise ValueError(
                f"message {number + offset} has content {message.get('content')!r:.80}: "
                "what a user says is a string"
            )
    if offset == 0:
        return messages
    if len(messages) == 1 or not isinstance(messages[0].get("content"), str):
        raise ValueError(
            "message 0 is a system message: it needs a string and a user message after it"
        )
    merged = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{"role": "user", "content": merged}, *messages[2:]]


def conversation_segments(conversation: dict) -> list[Segment]:
    """Turn a conversation into segments: <|bos|>, then each message between its two markers.

    Args:
        conversation: {"messages": [{"role": "user", "content": "Hi"}, ...]}; roles are user and
            assistant in turn, with at most one system message before them.

    Returns:
        (text or special name, is it special, mask) in order; mask 1 on what the assistant produces.

    Raises:
        ValueError: a message breaks the form; the text names it.
    """
    messages = check_messages(conversation)
    offset = len(conversation["messages"]) - len(messages)
    segments: list[Segment] = [("<|bos|>", True, 0)]
    for number, message in enumerate(messages):
        if message["role"] == "user":
            segments += [
                ("<|user_start|>", True, 0),
                (message["content"], False, 0),
                ("<|user_end|>", True, 0),
            ]
        else:
            where = f"message {number + offset}"
            segments += [
                ("<|assistant_start|>", True, 0),
                *content_segments(message.get("content"), where),
                ("<|assistant_end|>", True, 1),
            ]
    return segments
