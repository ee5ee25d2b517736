# Generated from chapters/02_tokenizer.py by `course build`; edit that file.
"""The tokenizer: text and conversations become token ids, and ids become text."""

import base64
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import tiktoken

from nanochat_lib.common import atomic_write, fingerprint
from nanochat_lib.tokenizer.bpe import (
    GPT2_PATTERN,
    SPLIT_PATTERN,
    read_gpt2_ranks,
    rust_tokenizer,
    train_ranks,
)
from nanochat_lib.tokenizer.conversation import conversation_segments

__all__ = ["SPECIAL_TOKENS", "MAX_SPACE_RUN", "PARALLEL_CHARACTERS", "Tokenizer"]

SPECIAL_TOKENS: tuple[str, ...] = (
    "<|bos|>",  # begins every document
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",  # the assistant calls the calculator
    "<|python_end|>",
    "<|output_start|>",  # what the calculator answered
    "<|output_end|>",
)

# tiktoken's regex engine keeps a stack entry for each white-space character of a run; at a million
# it panics. Our crate has no such limit.
MAX_SPACE_RUN = 500_000
PARALLEL_CHARACTERS = 1_000_000  # below, starting threads costs more than they save


class Tokenizer:
    """Turn text into token ids and back, and conversations into ids with a loss mask.

    Attributes:
        ranks: bytes of each ordinary token -> its id, 0 to n - 1.
        pattern: regex whose matches are the words that merges stay inside.
        special_ids: name of each special token -> its id; they follow the ordinary ones.
        hash: 16 hex digits that identify ranks, pattern and special tokens.
    """

    def __init__(
        self,
        ranks: dict[bytes, int],
        pattern: str = SPLIT_PATTERN,
        special_tokens: Iterable[str] = SPECIAL_TOKENS,
    ) -> None:
        """Wrap trained ranks.

        Raises:
            ValueError: ids have gaps, a byte has no token, or special tokens are missing or double.
        """
        if sorted(ranks.values()) != list(range(len(ranks))):
            raise ValueError(f"the {len(ranks)} ranks must be 0 to {len(ranks) - 1}, each once")
        missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
        if missing:
            raise ValueError(f"byte {missing[0]} has no token: text with it could not be encoded")
        special_tokens = tuple(special_tokens)
        if not special_tokens or len(set(special_tokens)) < len(special_tokens):
            raise ValueError(f"special tokens {special_tokens}: need at least one, each once")
        self.ranks = ranks
        self.pattern = pattern
        self.special_ids = {name: len(ranks) + i for i, name in enumerate(special_tokens)}
        self._encoding = tiktoken.Encoding(
            "nanochat", pat_str=pattern, mergeable_ranks=ranks, special_tokens=self.special_ids
        )
        rust = rust_tokenizer()
        self._rust = rust.from_mergeable_ranks(ranks, pattern) if rust else None
        self.hash = fingerprint(self._description())

    def __reduce__(self) -> tuple:
        """Copy and pickle the three things, not the encoders."""
        return type(self), (self.ranks, self.pattern, tuple(self.special_ids))

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, pattern: str = SPLIT_PATTERN
    ) -> "Tokenizer":
        """Learn a tokenizer from documents, read once.

        Args:
            texts: the documents.
            vocab_size: number of ids, special tokens included; fewer if the text runs out of pairs.
            pattern: regex whose matches are the words that merges stay inside.

        Raises:
            ValueError: vocab_size has no room for the bytes and the special tokens.
        """
        smallest = 256 + len(SPECIAL_TOKENS)
        if vocab_size < smallest:
            raise ValueError(
                f"vocab_size is {vocab_size}: 256 bytes and {len(SPECIAL_TOKENS)} special tokens "
                f"need at least {smallest}"
            )
        return cls(train_ranks(texts, vocab_size - len(SPECIAL_TOKENS), pattern), pattern)

    @classmethod
    def from_gpt2_files(cls, folder: Path | str) -> "Tokenizer":
        """Load GPT-2's tokenizer from a folder with encoder.json; its bos is <|endoftext|>."""
        ranks = read_gpt2_ranks(Path(folder) / "encoder.json")
        return cls(ranks, GPT2_PATTERN, ("<|endoftext|>",))

    @classmethod
    def load(cls, folder: Path | str) -> "Tokenizer":
        """Read tokenizer.json, as `save` wrote it.

        Raises:
            FileNotFoundError: the folder holds none.
            ValueError: the file is damaged, or of another kind.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist: train a tokenizer and save it there first"
            )
        try:
            description = json.loads(path.read_text(encoding="utf-8"))
            tokens = [base64.b64decode(token, validate=True) for token in description["ranks"]]
            pattern, names = description["pattern"], tuple(description["special_tokens"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no tokenizer of this course ({error!r})") from error
        return cls({token: rank for rank, token in enumerate(tokens)}, pattern, names)

    def save(self, folder: Path | str) -> None:
        """Write tokenizer.json into a folder, whole or not at all."""
        text = json.dumps(self._description(), indent=0, ensure_ascii=True)
        atomic_write(Path(folder) / "tokenizer.json", text + "\n")

    def _description(self) -> dict:
        tokens = sorted(self.ranks, key=self.ranks.__getitem__)
        return {
            "pattern": self.pattern,
            "special_tokens": list(self.special_ids),
            "ranks": [base64.b64encode(token).decode("ascii") for token in tokens],
        }

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, hash={self.hash!r})"

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self.ranks) + len(self.special_ids)

    @property
    def bos_id(self) -> int:
        """The id that begins every document: the first special token."""
        return len(self.ranks)

    def encode_special(self, name: str) -> int:
        """Return the id of a special token. No text ever encodes to it.

        Raises:
            ValueError: no special token has this name.
        """
        if name not in self.special_ids:
            raise ValueError(f"no special token {name!r}: there are {', '.join(self.special_ids)}")
        return self.special_ids[name]

    def encode(
        self,
        text: str | Iterable[str],
        prepend: int | str | None = None,
        append: int | str | None = None,
    ) -> list[int] | list[list[int]]:
        """Encode ordinary text, or a list of texts; names of special tokens are just characters.

        Args:
            text: one text or several.
            prepend: id, or name of a special token, to put before each text.
            append: the same, to put after each text.

        Returns:
            Ids, or one list of ids for each text.

        Raises:
            ValueError: an unknown id or name, a text that is no str, or, where rustbpe is not
                installed, MAX_SPACE_RUN white-space characters in a row.
        """
        before = [] if prepend is None else [self._one_id(prepend)]
        after = [] if append is None else [self._one_id(append)]
        texts = [text] if isinstance(text, str) else list(text)  # a generator is read once
        for i, one in enumerate(texts):
            if not isinstance(one, str):
                raise ValueError(f"text {i} is {one!r:.60}: expected a str")
            if self._rust is None:
                _check_space_runs(one, "" if isinstance(text, str) else f"text {i}: ")
        rows = [before + ids + after for ids in self._encode_all(texts)]
        return rows[0] if isinstance(text, str) else rows

    def _encode_all(self, texts: list[str]) -> list[list[int]]:
        """Encode with our crate, or with tiktoken; on many threads where there is much."""
        one, many = self._encoding.encode_ordinary, self._encoding.encode_ordinary_batch
        if self._rust is not None:
            one, many = self._rust.encode, self._rust.batch_encode
        if sum(map(len, texts)) > PARALLEL_CHARACTERS:
            return many(texts)
        return [one(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to text: special tokens as their names, invalid UTF-8 as U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Decode ids to bytes, which may begin or end inside a character.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        ids = [int(i) for i in ids]
        self._check_ids(ids)
        return self._encoding.decode_bytes(ids)

    def token_bytes(self) -> list[int]:
        """Return the bytes of text that each id stands for; 0 for special tokens."""
        lengths = [0] * self.vocab_size
        for token, rank in self.ranks.items():
            lengths[rank] = len(token)
        return lengths

    def render_conversation(
        self, conversation: dict, max_tokens: int | None = None
    ) -> tuple[list[int], list[int]]:
        """Turn a conversation into ids and a loss mask of the same length.

        Args:
            conversation: see validate_conversation.
            max_tokens: cut both after this many; None keeps all.

        Returns:
            (ids, mask); mask 1 where the model shall learn to produce the token.

        Raises:
            ValueError: a message breaks the form, or max_tokens is below 1.
        """
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(
                f"max_tokens is {max_tokens}: it must be at least 1, or None for no limit"
            )
        ids: list[int] = []
        mask: list[int] = []
        for text, is_special, learn in conversation_segments(conversation):
            new = [self.encode_special(text)] if is_special else self.encode(text)
            ids += new
            mask += [learn] * len(new)
        return ids[:max_tokens], mask[:max_tokens]

    def render_for_completion(self, conversation: dict) -> list[int]:
        """Turn a conversation into a prompt for the assistant; a last answer is dropped.

        Raises:
            ValueError: a message breaks the form, or no user message is left to answer.
        """
        messages = conversation.get("messages") if isinstance(conversation, dict) else conversation
        last = messages[-1] if isinstance(messages, list) and messages else None
        if isinstance(last, dict) and last.get("role") == "assistant":
            messages = messages[:-1]
        ids, _ = self.render_conversation({"messages": messages})
        return [*ids, self.encode_special("<|assistant_start|>")]

    def _one_id(self, token: int | str) -> int:
        if isinstance(token, str):
            return self.encode_special(token)
        self._check_ids([token])
        return token

    def _check_ids(self, ids: Sequence[int]) -> None:
        n = self.vocab_size
        unknown = next((i for i in ids if not 0 <= i < n), None)
        if unknown is not None:
            raise ValueError(f"unknown token id {unknown}: ids go from 0 to {n - 1}")


def _check_space_runs(text: str, where: str = "") -> None:
    """Refuse a text with a run of white space that would crash the encoder."""
    if len(text) < MAX_SPACE_RUN:
        return
    for run in re.finditer(r"\s+", text):
        if run.end() - run.start() >= MAX_SPACE_RUN:
            raise ValueError(
                f"{where}{run.end() - run.start():,} white-space characters in a row from "
                f"{run.start():,} on: the encoder takes fewer than {MAX_SPACE_RUN:,}; shorten the run first"
            )
