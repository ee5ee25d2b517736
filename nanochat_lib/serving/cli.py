# Generated from chapters/19_serving.py by `course build`; edit that file.
"""The chat in the terminal: streaming text, remembering turns, finding a model."""

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import tyro

from nanochat_lib.inference.engine import Engine
from nanochat_lib.serving.runs import find_run, last_stage, load_engine
from nanochat_lib.tokenizer.tokenizer import Tokenizer

__all__ = [
    "TOOL_MARKS",
    "CONTROL_CHARACTERS",
    "stream_text",
    "user_turn",
    "turns_to_drop",
    "Conversation",
    "ChatConfig",
    "say",
    "HELP",
    "write_now",
    "answer",
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


def user_turn(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode a user's message, up to the token that gives the word to the assistant."""
    names = ("<|user_start|>", "<|user_end|>", "<|assistant_start|>")
    start, end, reply = map(tokenizer.encode_special, names)
    return [start, *tokenizer.encode(text), end, reply]


def turns_to_drop(lengths: list[int], room: int) -> int:
    """Count how many of the oldest turns must go so that the rest fits.

    Example: lengths [30, 50, 20] -> 0 with room for 100, 1 with room for 80, 2 with room for 20.

    Args:
        lengths: tokens of each turn, oldest first; the last is the question to answer.
        room: tokens that fit.

    Raises:
        ValueError: the last turn alone does not fit.
    """
    if lengths[-1] > room:
        raise ValueError(
            f"this message takes {lengths[-1]} tokens, there is room for {room}: make it shorter"
        )
    kept, total = 0, 0
    for length in reversed(lengths):
        total += length
        if total > room:
            break
        kept += 1
    return len(lengths) - kept


class Conversation:
    """Keep the turns of a chat as tokens, and forget the oldest when the context is full."""

    def __init__(self, tokenizer: Tokenizer, sequence_len: int, reply_tokens: int) -> None:
        """Start empty; keep `reply_tokens` free for the reply, at most half of `sequence_len`."""
        self.tokenizer = tokenizer
        self.room = sequence_len - min(reply_tokens, sequence_len // 2) - 1  # 1 for bos
        self.turns: list[list[int]] = []
        self.asked: list[list[int]] = []  # the turns of the last prompt; its question is the last
        self.n_forgotten = 0

    def ask(self, text: str) -> list[int]:
        """Return the whole prompt for a question; nothing is kept or forgotten until `hear`.

        Raises:
            ValueError: the question alone is too long.
        """
        turns = [*self.turns, user_turn(self.tokenizer, text)]
        self.asked = turns[turns_to_drop([len(turn) for turn in turns], self.room) :]
        return [self.tokenizer.bos_id, *(token for turn in self.asked for token in turn)]

    def hear(self, tokens: list[int]) -> None:
        """Keep the question asked last with its answer, given without its end token."""
        end = self.tokenizer.encode_special("<|assistant_end|>")
        self.n_forgotten += len(self.turns) + 1 - len(self.asked)
        self.turns = [*self.asked[:-1], [*self.asked[-1], *tokens, end]]

    def clear(self) -> None:
        """Forget everything."""
        self.turns, self.n_forgotten = [], 0


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


HELP = "/clear forgets the conversation, /help shows this, /quit leaves, Ctrl-C stops a reply\n"
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
    write(f"{folder.name}, {stage}. {HELP}")
    while True:
        try:
            text = read("you: ").strip()
        except (EOFError, KeyboardInterrupt):
            write("\n")
            return 0
        except UnicodeDecodeError:  # backspace over half a character
            write("(this line is no UTF-8: please type it again)\n")
            continue
        if text in ("/quit", "/exit"):
            return 0
        if text == "/clear":
            conversation.clear()
            write("(forgotten)\n")
        elif text.startswith("/"):
            write(HELP)
        elif text:
            try:
                answer(engine, conversation, text, config, write)
            except ValueError as error:
                write(f"({error})\n")
