# Generated from chapters/02_tokenizer.py by `course build`; edit that file.
"""Conversations: their rules, and their segments of text and special tokens with a loss mask."""

__all__ = [
    "MARKERS",
    "CALL_FAILED",
    "check_content",
    "validate_conversation",
    "Segment",
    "content_segments",
    "conversation_segments",
]

# How each kind of part is written: the special tokens around it, and the loss mask of all of it.
MARKERS = {
    "text": ("", "", 1),
    "python": ("<|python_start|>", "<|python_end|>", 1),
    "python_output": ("<|output_start|>", "<|output_end|>", 0),
    "slip": ("", "", 0),  # a mistake, to be read and not to be learned
}
CALL_FAILED = "error"  # the output of a call that cannot be worked out


def check_content(content: object, role: str, where: str) -> None:
    """Raise ValueError, starting with `where`, unless content is text or an assistant's parts."""
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise ValueError(f"{where}: content is {content!r:.80}, expected a str or a list of parts")
    if role != "assistant":
        raise ValueError(f"{where}: only the assistant speaks in parts; give a {role} one str")
    previous = None
    for j, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in MARKERS or not isinstance(part.get("text"), str):
            raise ValueError(
                f"{where}, part {j}: got {part!r:.80}, expected a dict with a str 'text' and "
                f"a 'type' out of {tuple(MARKERS)}"
            )
        if kind == "python_output" and previous != "python":
            raise ValueError(f"{where}, part {j}: a python_output needs a python part before it")
        previous = kind


def validate_conversation(conversation: dict) -> dict:
    """Check roles, order and content of a conversation, and return it unchanged.

    The rules: an optional system message first; then user and assistant take turns, the user
    begins, either may end. Extra keys (a task's answer, a data set's labels) are allowed.

    Args:
        conversation: `{"messages": [{"role": ..., "content": str or parts}, ...]}`.

    Returns:
        The same object, so that a reader can end with `return validate_conversation(...)`.

    Raises:
        ValueError: a rule is broken; the text names the message's index and what is wrong.
    """
    messages = conversation.get("messages") if isinstance(conversation, dict) else None
    if not isinstance(messages, list) or not messages:
        raise ValueError(
            f"a conversation is a dict with a non-empty list of messages, got {conversation!r:.80}"
        )
    turn = 0
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(
                f"message {i}: got {message!r:.80}, expected a dict with role and content"
            )
        role, where = message["role"], f"message {i} ({message['role']})"
        check_content(message["content"], role, where)
        if role == "system" and i == 0:
            continue
        expected = ("user", "assistant")[turn % 2]
        if role != expected:
            raise ValueError(
                f"{where}: expected {expected} here; a system message may only be first"
            )
        turn += 1
    if turn == 0:
        raise ValueError("message 0 (system): nobody speaks after it, add a user message")
    return conversation


Segment = tuple[str, bool, int]  # text or special name, is it special, mask


def content_segments(content: str | list[dict]) -> list[Segment]:
    """Turn a checked content into segments, each part between its markers."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    segments: list[Segment] = []
    for part, after in zip(parts, [*parts[1:], {}]):
        start, end, mask = MARKERS[part["type"]]
        if after.get("type") == "python_output" and after["text"] == CALL_FAILED:
            mask = 0  # such a call is not to be learned
        if start:
            segments.append((start, True, mask))
        segments.append((part["text"], False, mask))
        if end:
            segments.append((end, True, mask))
    return segments


def conversation_segments(conversation: dict) -> list[Segment]:
    """Turn a conversation into segments: <|bos|>, then each message between its two markers.

    Args:
        conversation: see validate_conversation; a system message goes in front of the first user's.

    Returns:
        (text or special name, is it special, mask) in order; mask 1 on what the assistant produces.

    Raises:
        ValueError: a message breaks the form; the text names it.
    """
    messages = validate_conversation(conversation)["messages"]
    if messages[0]["role"] == "system":
        both = f"{messages[0]['content']}\n\n{messages[1]['content']}"
        messages = [{"role": "user", "content": both}, *messages[2:]]
    segments: list[Segment] = [("<|bos|>", True, 0)]
    for message in messages:
        role, content = message["role"], content_segments(message["content"])
        if role == "user":  # read, never learned
            content = [(text, special, 0) for text, special, _ in content]
        segments += [
            (f"<|{role}_start|>", True, 0),
            *content,
            (f"<|{role}_end|>", True, int(role == "assistant")),
        ]
    return segments
