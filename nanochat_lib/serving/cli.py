# Generated from chapters/19_serving.py by `course build`; edit that file.
"""The chat in the terminal: streaming text, remembering turns, finding a model."""

import atexit
import codecs
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from nanochat_lib.common import base_dir
from nanochat_lib.inference.engine import Engine
from nanochat_lib.serving.conversation import Conversation
from nanochat_lib.serving.runs import find_run, last_stage, load_engine
from nanochat_lib.tokenizer.tokenizer import Tokenizer

__all__ = [
    "TOOL_MARKS",
    "CONTROL_CHARACTERS",
    "stream_text",
    "ChatConfig",
    "say",
    "HELP",
    "write_now",
    "answer",
    "save",
    "obey",
    "read_message",
    "remember_lines",
    "keep_lines",
    "chat",
]

TOOL_MARKS = {
    "<|python_start|>": "[",
    "<|python_end|>": "",
    "<|output_start|>": " = ",
    "<|output_end|>": "] ",
}
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def stream_text(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """Turn tokens into printable text as they arrive, never splitting a character.

    Args:
        tokenizer: gives the bytes of each token.
        tokens: ids, possibly still being generated.

    Yields:
        Pieces of text, none empty. Tool calls read `[6*7 = 42]`; control characters and bytes that
        are no UTF-8 become U+FFFD.
    """
    marks = {tokenizer.encode_special(name): mark for name, mark in TOOL_MARKS.items()}
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        data = b"" if token in marks else tokenizer.decode_bytes([token])
        text = decoder.decode(data, final=token in marks)  # no character spans a special token
        text = CONTROL_CHARACTERS.sub("\ufffd", text) + marks.get(token, "")
        if text:
            yield text
    rest = decoder.decode(b"", final=True)
    if rest:
        yield rest


@dataclass(frozen=True)
class ChatConfig:
    """Talk to a trained model in the terminal."""

    prompt: Annotated[str | None, tyro.conf.arg(aliases=("-p",))] = None
    """answer this one message and stop"""
    run: str | None = None
    """name of the run; the newest one by default"""
    stage: Literal["rl", "sft", "mid", "base"] | None = None
    """rl by default, or sft if the run has no rl; mid has practised skills only; base continues a text"""
    temperature: float = 0.0
    """0 takes the likeliest token, as the report's scores do; 1 draws with the model's own odds"""
    top_k: int | None = 50
    """draw among so many of the likeliest tokens"""
    max_tokens: int = 256
    """longest reply"""
    seed: int = 42
    """the same seed and messages give the same replies"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""


def say(
    engine: Engine, prompt: list[int], config: ChatConfig, seed: int, write: Callable[[str], object]
) -> list[int]:
    """Generate one reply and write it while it arrives; Ctrl-C ends it early.

    Args:
        engine: generates.
        prompt: ids.
        config: temperature, top-k and longest reply.
        seed: of the random draws.
        write: takes pieces of text.

    Returns:
        The reply's tokens, without the stop token.
    """
    tokens: list[int] = []

    def arriving() -> Iterator[int]:
        steps = engine.generate(
            prompt, 1, config.max_tokens, config.temperature, config.top_k, seed
        )
        for column, _ in steps:
            if column[0] in engine.stop_tokens:
                return
            tokens.append(column[0])
            yield column[0]

    try:
        for piece in stream_text(engine.tokenizer, arriving()):
            write(piece)
    except KeyboardInterrupt:
        write(" (stopped)")
    write("\n")
    return tokens


HELP = """/reset forgets the conversation, /system TEXT begins a new one with a text before its first message,
/save FILE.jsonl adds the conversation to a file, /help shows this, /quit leaves.
A line that ends in \\ goes on in the next; Ctrl-C stops a reply.
"""
write_now = partial(print, end="", flush=True)  # at once, without a line break


def answer(
    engine: Engine,
    conversation: Conversation,
    text: str,
    config: ChatConfig,
    write: Callable[[str], object],
) -> None:
    """Answer one message within a conversation; a base model continues the text instead.

    Raises:
        ValueError: the message does not fit the context.
    """
    if config.stage == "base":
        prompt = engine.tokenizer.encode(text, prepend=engine.tokenizer.bos_id)
        say(engine, prompt, config, config.seed, write)
        return
    prompt = conversation.ask(text)
    if len(conversation.asked) <= len(conversation.turns):
        write("(the context is full: the oldest messages are forgotten)\n")
    seed = config.seed + conversation.n_forgotten + len(conversation.turns)
    conversation.hear(say(engine, prompt, config, seed, write))


def save(conversation: Conversation, path: Path) -> int:
    """Add a conversation to a file as one line of JSON; return the number of messages.

    Raises:
        ValueError: nothing was said, the file is of another kind, or it cannot be written.
    """
    messages = conversation.messages()
    if not messages:
        raise ValueError("nothing has been said yet")
    if path.suffix != ".jsonl":
        raise ValueError(f"{path}: name a file that ends in .jsonl, each /save adds a line to it")
    try:
        with path.expanduser().open("a", encoding="utf-8") as file:
            file.write(json.dumps({"messages": messages}) + "\n")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error
    return len(messages)


def obey(command: str, conversation: Conversation, write: Callable[[str], object]) -> None:
    """Do what a line that begins with a slash says."""
    name, _, rest = command.partition(" ")
    rest = rest.strip()
    if name == "/reset":
        conversation.clear()
        write("(forgotten)\n")
    elif name == "/system":
        conversation.begin(rest)
        write("(a new conversation begins" + (", with that text)\n" if rest else ")\n"))
    elif name == "/save" and rest:
        write(f"({save(conversation, Path(rest))} messages added to {rest})\n")
    else:
        write(HELP)


def read_message(read: Callable[[str], str]) -> str:
    """Read a line, and further ones while it ends in a backslash."""
    lines = [read("you: ")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(read("...: "))
    return "\n".join(lines).strip()


def remember_lines(path: Path) -> None:
    """Let lines be edited, and keep the last thousand in a file, where the system can."""
    try:
        import readline
    except ImportError:  # Windows has its own
        return
    readline.set_history_length(1000)
    for act in (readline.read_history_file, lambda name: atexit.register(keep_lines, name)):
        with suppress(OSError):
            act(str(path))


def keep_lines(path: str) -> None:
    """Write the lines that were typed; a full disk shall not spoil the goodbye."""
    import readline

    with suppress(OSError):
        readline.write_history_file(path)


def chat(
    config: ChatConfig,
    read: Callable[[str], str] = input,
    write: Callable[[str], object] = write_now,
) -> int:
    """Talk to a model until the user leaves, or answer one prompt.

    Args:
        config: which model, and how it draws.
        read: shows a prompt and returns a line; EOFError or KeyboardInterrupt ends the chat.
        write: takes pieces of text.

    Returns:
        0, the exit code.

    Raises:
        ValueError: there is no such model, a setting is impossible, or the one prompt is too long.
    """
    folder = find_run(config.run, config.stage)
    stage = config.stage or last_stage(folder)
    engine = load_engine(folder, stage, config.device)
    context = engine.model.config.sequence_len
    conversation = Conversation(engine.tokenizer, context, config.max_tokens)
    if config.prompt is not None:
        answer(engine, conversation, config.prompt, config, write)
        return 0
    if read is input and sys.stdin.isatty():
        remember_lines(base_dir() / "chat_history")
    write(f"{folder.name}, {stage}. {HELP}")
    while True:
        try:
            text = read_message(read)
        except (EOFError, KeyboardInterrupt):
            write("\n")
            return 0
        except UnicodeDecodeError:  # backspace over half a character
            write("(this line is no UTF-8: please type it again)\n")
            continue
        if text in ("/quit", "/exit"):
            return 0
        try:
            if text.startswith("/"):
                obey(text, conversation, write)
            elif text:
                answer(engine, conversation, text, config, write)
        except ValueError as error:
            write(f"({error})\n")
