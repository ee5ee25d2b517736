# Generated from chapters/13_batching.py by `course build`; edit that file.
"""Keys and values of past texts, for prompts that begin alike."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor

__all__ = ["MIN_SHARED", "shared_length", "KeptTexts"]

MIN_SHARED = 16  # tokens; a shorter beginning is read again


def shared_length(known: Sequence[int], prompt: Sequence[int]) -> int:
    """Count the tokens that a prompt's beginning shares with a known text, the prompt's last one excepted.

    Example: known [5, 6, 7], prompt [5, 6, 7, 8] -> 3; prompt [5, 6] -> 1, because its last token must be
    read to know what follows.
    """
    most = min(len(known), len(prompt) - 1)
    return next((i for i in range(most) if known[i] != prompt[i]), most)


class KeptTexts:
    """Keep keys and values of past texts; those that nobody came back to are dropped first."""

    def __init__(self, room: int) -> None:
        """Keep up to `room` bytes."""
        self.room, self.taken = room, 0
        self.texts: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def add(self, tokens: list[int], memory: Tensor) -> None:
        """Keep a text, (2, L, H, places, D), instead of any that it continues."""
        name, size = tuple(tokens), memory.numel() * memory.element_size()
        if size > self.room:
            return
        for other in [t for t in self.texts if t == name[: len(t)]]:
            self._drop(other)
        self.texts[name], self.taken = memory, self.taken + size
        while self.taken > self.room:
            self._drop(next(iter(self.texts)))

    def clear(self) -> None:
        """Keep nothing any more."""
        self.texts.clear()
        self.taken = 0

    def _drop(self, name: tuple[int, ...]) -> None:
        memory = self.texts.pop(name)
        self.taken -= memory.numel() * memory.element_size()

    def find(self, prompt: list[int]) -> tuple[Tensor | None, int]:
        """Return the text that shares most of a prompt's beginning, and how many tokens that is.

        Less than MIN_SHARED tokens count as none: (None, 0).
        """
        head = tuple(prompt[:MIN_SHARED])
        found = {t: shared_length(t, prompt) for t in self.texts if t[:MIN_SHARED] == head}
        best = max(found, key=found.__getitem__, default=None)
        if best is None or found[best] < MIN_SHARED:
            return None, 0
        self.texts.move_to_end(best)
        return self.texts[best], found[best]
