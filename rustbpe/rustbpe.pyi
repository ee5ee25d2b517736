"""Byte-pair encoding: an exact trainer and a fast encoder."""

import os
from collections.abc import Callable, Collection, Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

class Tokenizer:
    """A byte-pair-encoding tokenizer: train it, load it or make it from ranks; encode and decode."""

    def __init__(self) -> None: ...
    @staticmethod
    def from_mergeable_ranks(
        ranks: dict[bytes, int] | Iterable[tuple[bytes, int]], pattern: str | None = None
    ) -> Tokenizer: ...
    def with_special_tokens(self, special_tokens: dict[str, int]) -> Tokenizer: ...
    def train_from_iterator(
        self,
        iterator: Iterable[str],
        vocab_size: int,
        buffer_size: int = 8192,
        pattern: str | None = None,
        *,
        num_threads: int | None = None,
        progress: Callable[[str, int, int | None], object] | None = None,
    ) -> None: ...
    def get_pattern(self) -> str: ...
    def get_mergeable_ranks(self) -> list[tuple[bytes, int]]: ...
    @property
    def special_tokens(self) -> dict[str, int]: ...
    @property
    def vocab_size(self) -> int: ...
    def encode(
        self,
        text: str,
        *,
        allowed_special: Collection[str] | Literal["all"] = (),
        disallowed_special: Collection[str] | Literal["all"] = "all",
    ) -> list[int]: ...
    def encode_to_numpy(
        self,
        text: str,
        *,
        allowed_special: Collection[str] | Literal["all"] = (),
        disallowed_special: Collection[str] | Literal["all"] = "all",
    ) -> NDArray[np.uint32]: ...
    def encode_bytes(self, data: bytes) -> list[int]: ...
    def batch_encode(
        self,
        texts: Iterable[str],
        num_threads: int | None = None,
        *,
        allowed_special: Collection[str] | Literal["all"] = (),
        disallowed_special: Collection[str] | Literal["all"] = "all",
    ) -> list[list[int]]: ...
    def batch_encode_to_numpy(
        self,
        texts: Iterable[str],
        num_threads: int | None = None,
        *,
        allowed_special: Collection[str] | Literal["all"] = (),
        disallowed_special: Collection[str] | Literal["all"] = "all",
    ) -> list[NDArray[np.uint32]]: ...
    def decode(self, ids: Iterable[int]) -> str: ...
    def decode_bytes(self, ids: Iterable[int]) -> bytes: ...
    def save(self, path: str | os.PathLike[str]) -> None: ...
    @staticmethod
    def load(path: str | os.PathLike[str]) -> Tokenizer: ...
