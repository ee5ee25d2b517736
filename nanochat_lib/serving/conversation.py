# Generated from chapters/19_serving.py by `course build`; edit that file.
"""Remembering."""

from nanochat_lib.tokenizer.tokenizer import Tokenizer

__all__ = ["user_turn", "turns_to_drop", "Conversation", "reply_parts"]


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
        self.tokenizer, self.system = tokenizer, ""  # what stands before the first message
        self.room = sequence_len - min(reply_tokens, sequence_len // 2) - 1  # 1 for bos
        self.turns: list[list[int]] = []
        self.said: list[list[int]] = []  # all turns, the forgotten ones too
        self.asked: list[list[int]] = []  # the turns of the last prompt; its question is the last
        self.n_forgotten = 0

    def ask(self, text: str) -> list[int]:
        """Return the whole prompt for a question; nothing is kept or forgotten until `hear`.

        Raises:
            ValueError: the question alone is too long.
        """
        opening = self.tokenizer.encode(f"{self.system}\n\n") if self.system else []
        turns = [*self.turns, user_turn(self.tokenizer, text)]
        room = self.room - len(opening)
        self.asked = turns[turns_to_drop([len(turn) for turn in turns], room) :]
        start, *first = self.asked[
            0
        ]  # the system message stands inside the first turn that is left
        later = (token for turn in self.asked[1:] for token in turn)
        return [self.tokenizer.bos_id, start, *opening, *first, *later]

    def hear(self, tokens: list[int]) -> None:
        """Keep the question asked last with its answer, given without its end token."""
        end = self.tokenizer.encode_special("<|assistant_end|>")
        self.n_forgotten += len(self.turns) + 1 - len(self.asked)
        self.turns = [*self.asked[:-1], [*self.asked[-1], *tokens, end]]
        self.said.append(self.turns[-1])

    def begin(self, system: str) -> None:
        """Begin anew, with a system message or, where it is empty, without one.

        Raises:
            ValueError: it leaves less than half of the room to the messages.
        """
        n = len(self.tokenizer.encode(f"{system}\n\n"))
        if n > self.room // 2:
            raise ValueError(
                f"that text takes {n} tokens, it may take {self.room // 2}: make it shorter"
            )
        self.clear()
        self.system = system

    def clear(self) -> None:
        """Forget everything but the system message."""
        self.turns, self.said, self.n_forgotten = [], [], 0

    def messages(self) -> list[dict]:
        """Return all that was said, calls of the calculator as parts of the assistant's content."""
        found = [{"role": "system", "content": self.system}] if self.system and self.said else []
        for turn in self.said:
            cut = turn.index(self.tokenizer.encode_special("<|user_end|>"))
            found.append({"role": "user", "content": self.tokenizer.decode(turn[1:cut])})
            reply = reply_parts(self.tokenizer, turn[cut + 2 : -1])
            found.append({"role": "assistant", "content": reply})
        return found


def reply_parts(tokenizer: Tokenizer, tokens: list[int]) -> list[dict[str, str]]:
    """Return the content of a reply as parts: text, and what was said to the calculator and by it."""
    special = tokenizer.encode_special
    opens = {special("<|python_start|>"): "python", special("<|output_start|>"): "python_output"}
    closes = {special("<|python_end|>"), special("<|output_end|>")}
    found, kind, held = [], "text", []
    for token in [*tokens, None]:
        if token is not None and token not in opens and token not in closes:
            held.append(token)
            continue
        if held or kind == "python":
            found.append({"type": kind, "text": tokenizer.decode(held)})
        kind, held = opens.get(token, "text"), []
    return found
