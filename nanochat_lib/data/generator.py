# Generated from chapters/18_identity.py by `course build`; edit that file.
"""Let a larger model, behind any OpenAI-compatible server, write conversations about a character."""

import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from nanochat_lib.common import atomic_write, local_generator
from nanochat_lib.data.files import numbered_json
from nanochat_lib.data.identity import OPENINGS, STYLES, Character, grammar
from nanochat_lib.tokenizer.conversation import validate_conversation

__all__ = ["ChatServer", "read_reply", "request", "parse_conversation", "generate"]


@dataclass(frozen=True)
class ChatServer:
    """Name a server that has /chat/completions below its address, and a model there.

    The key is read from the environment variable OPENAI_API_KEY; a local server needs none.
    """

    model: str
    url: str = "http://localhost:8000/v1"
    timeout: float = 60.0
    attempts: int = 4
    pause: float = 1.0

    def ask(self, prompt: str, seed: int = 0, temperature: float = 1.0) -> str:
        """Return the reply to one message; busy or broken servers are asked again, ever later.

        Args:
            prompt: the message.
            seed: passed on, for servers that know seeds.
            temperature: of the sampling.

        Raises:
            ConnectionError: no attempt got an answer; the text names the address and the last fault.
            ValueError: the server refuses the request (its own text is shown) or answers in another form.
        """
        messages = [{"role": "user", "content": prompt}]
        body = {"model": self.model, "messages": messages, "seed": seed, "temperature": temperature}
        key = os.environ.get("OPENAI_API_KEY")
        address, fault = f"{self.url.rstrip('/')}/chat/completions", ""
        for attempt in range(self.attempts):
            time.sleep(self.pause * (2**attempt - 1))
            try:
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                reply = httpx.post(address, json=body, headers=headers, timeout=self.timeout)
            except httpx.HTTPError as error:
                fault = f"{type(error).__name__}: {error}"
                continue
            if reply.status_code == 429 or reply.status_code >= 500:
                fault = f"status {reply.status_code}: {reply.text[:200]}"
                continue
            return read_reply(reply, address)
        raise ConnectionError(f"{address}: no answer in {self.attempts} attempts; {fault}")


def read_reply(reply: httpx.Response, address: str) -> str:
    """Take the text out of a reply of the chat-completions form; ValueError where it is another."""
    if reply.status_code != 200:
        raise ValueError(f"{address}: status {reply.status_code}: {reply.text[:200]}")
    try:
        text = reply.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        text = None
    if not isinstance(text, str):
        raise ValueError(f"{address}: no chat completion: {reply.text[:200]!r}")
    return text


def request(rng: random.Random, character: Character = Character()) -> str:
    """Write a request for one conversation, with topic, persona, style and opening drawn."""
    words = grammar()
    topic = rng.choice(tuple(words["topics"]))
    facts = " ".join(character.speak(answers["answers"][0]) for answers in words["topics"].values())
    return (
        f"Write a short conversation between a user and {character.name}. What is true of it: {facts}\n"
        f"The user, a {rng.choice(tuple(words['personas']))}, wants to know something like: "
        f"{rng.choice(words['topics'][topic]['questions'])}\n"
        f"Style of the user: {rng.choice(STYLES)}. Opening of the chat: {rng.choice(OPENINGS)}. "
        f"{rng.choice((1, 2, 3))} questions; each answer one or two plain sentences.\n"
        'Reply with JSON alone: [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]'
    )


def parse_conversation(reply: str) -> list[dict]:
    """Read the messages in a reply, with or without a fence around them.

    Raises:
        ValueError: there is no list of messages, it breaks the form, or nobody answers at its end.
    """
    start, end = reply.find("["), reply.rfind("]")
    if not 0 <= start < end:
        raise ValueError(f"no JSON list in {reply!r:.80}")
    messages = json.loads(reply[start : end + 1])
    validate_conversation({"messages": messages})
    if messages[-1]["role"] != "assistant":
        raise ValueError("the last message is not the assistant's")
    return messages


def generate(
    path: Path, count: int, server: ChatServer, character: Character = Character(), seed: int = 0
) -> int:
    """Add conversations to a file until it holds `count`; a second call goes on where the first stopped.

    Args:
        path: JSON lines, one {"draw": number of the request, "messages": [...]} each.
        count: lines wanted in the end.
        server: whom to ask.
        character: whom the conversations are about.
        seed: of the requests.

    Returns:
        How many replies of this call were no conversation.

    Raises:
        RuntimeError: twenty replies in a row were none; the last fault is shown.
    """
    rows = [row for _, row in numbered_json(path)] if path.exists() else []
    draw, rejected, in_a_row = max((row["draw"] for row in rows), default=-1), 0, 0
    while len(rows) < count:
        draw += 1
        reply = server.ask(request(local_generator("generator", seed, draw), character), draw)
        try:
            messages = parse_conversation(reply)
        except ValueError as error:
            rejected, in_a_row = rejected + 1, in_a_row + 1
            if in_a_row == 20:
                raise RuntimeError(
                    f"{server.url}: 20 replies in a row hold no conversation; the last: {error}"
                ) from error
            continue
        in_a_row = 0
        rows.append({"draw": draw, "messages": messages})
        atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rejected
