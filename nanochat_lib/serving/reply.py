# Generated from chapters/98_answers.py by `course build`; edit that file.
"""The text of a reply while its tokens arrive: whole characters, tool steps, stop strings."""

import codecs
from collections.abc import Sequence

from nanochat_lib.tokenizer.tokenizer import Tokenizer

__all__ = ["ReplyText"]


class ReplyText:
    """Turn the tokens of one reply into text that may be shown, and into tool steps."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        """Begin; the text ends before the first of the `stops`, none of them empty."""
        self.tokenizer, self.stops, self.stopped = tokenizer, tuple(stops), False
        self.steps: list[dict[str, str]] = []  # {"call": "6*7", "output": "42"}
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # text that may be the beginning of a stop
        self._inside: list[int] | None = None  # the tokens of a call or an output
        self.call, self.in_tool = "", False  # whether the last token belonged to a step
        names = ("<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>")
        self._marks = {tokenizer.encode_special(name): name for name in names}

    def feed(self, token: int) -> str:
        """Take the next token; return the text that can be shown now, perhaps none."""
        mark = self._marks.get(token)
        self.in_tool = mark is not None or self._inside is not None
        if mark is None:
            if self._inside is None:
                return self._release(self._decoder.decode(self.tokenizer.decode_bytes([token])))
            self._inside.append(token)
            return ""
        inside, self._inside = self.tokenizer.decode(self._inside or []), []
        if mark == "<|python_end|>":
            self.call = inside
        elif mark == "<|output_end|>":
            self._inside = None
            self.steps.append({"call": self.call, "output": inside})
        else:  # no character spans a tool call
            return self._release(self._decoder.decode(b"", final=True))
        return ""

    def finish(self) -> str:
        """Return what was held back, at the end of the reply."""
        text = self._release(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return text if self.stopped else text + rest

    def _release(self, text: str) -> str:
        """Add text; return what no stop string can begin in any more."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        longest = max(map(len, self.stops), default=1) - 1
        keep = next(
            (n for n in range(min(longest, len(text)), 0, -1) if text[-n:] in self._beginnings(n)),
            0,
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _beginnings(self, n: int) -> set[str]:
        """Return the first n characters of each longer stop string."""
        return {stop[:n] for stop in self.stops if len(stop) > n}
