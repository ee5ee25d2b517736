# Generated from chapters/11_pretraining.py by `course build`; edit that file.
"""Pack documents into batches of rows, and resume to the token."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from nanochat_lib.common import Ranks
from nanochat_lib.data.documents import Position, stream_documents
from nanochat_lib.tokenizer.tokenizer import Tokenizer

__all__ = ["best_fit", "take_document", "PackingLoader", "Prefetch"]


def best_fit(lengths: list[int], room: int) -> int | None:
    """Find the longest item that fits into `room` (the first of equals); None if none does."""
    fitting = [length for length in lengths if length <= room]
    return lengths.index(max(fitting)) if fitting else None


def take_document(documents: list[list[int]], room: int, oldest: bool = False) -> list[int]:
    """Take the document that fits best into what is left of a row.

    That is the longest that fits whole; if none does, the shortest, because cropping it loses least.

    Example: lengths [3, 6, 4, 2], room 5 -> the one of 4.

    Args:
        documents: token ids of each document, oldest first; the chosen one is removed.
        room: tokens left in the row, at least 1.
        oldest: take the first, whatever its length: so nothing waits for ever.

    Returns:
        The document, longer than room only if it must be cropped.
    """
    if oldest:
        return documents.pop(0)
    lengths = [len(document) for document in documents]
    best = best_fit(lengths, room)
    return documents.pop(lengths.index(min(lengths)) if best is None else best)


class PackingLoader:
    """Pack documents into batches of rows that start with <|bos|>, and resume exactly.

    Iterating gives (inputs, targets), int64, shape (B, T) each; targets are the inputs shifted by one. With
    `loop` off, the documents end: what is missing in the last batch has targets of -1.

    Args:
        shards: parquet files, read in order by stream_documents.
        tokenizer: turns text into ids.
        batch_size: rows, B.
        sequence_len: tokens in a row of inputs, T.
        ranks: this process among all; each reads other documents.
        loop: start over at the end of the shards.
        buffer_documents: how many documents to choose from. Larger crops less; smaller keeps file order.

    Raises:
        ValueError: a size is below 1, or a document cannot be encoded (named by shard and row).
    """

    def __init__(
        self,
        shards: Iterable[Path | str],
        tokenizer: Tokenizer,
        batch_size: int,
        sequence_len: int,
        ranks: Ranks = Ranks(),
        loop: bool = True,
        buffer_documents: int = 64,
    ) -> None:
        if min(batch_size, sequence_len, buffer_documents) < 1:
            raise ValueError(f"{batch_size=}, {sequence_len=}, {buffer_documents=}: start at 1")
        self.shards, self.tokenizer, self.ranks, self.loop = list(shards), tokenizer, ranks, loop
        self.batch_size, self.sequence_len = batch_size, sequence_len
        self.buffer_documents = buffer_documents
        self.tokens_read = self.tokens_cropped = 0
        self._buffer: list[list[int]] = []
        self._open(Position())

    def _open(self, position: Position) -> None:
        """Continue reading at a document."""
        self._position = position
        self._stream = stream_documents(self.shards, position, self.ranks, self.loop)

    def _refill(self) -> None:
        """Top the buffer up; tokens that no row could hold are cropped at once, for good."""
        documents = list(islice(self._stream, self.buffer_documents - len(self._buffer)))
        for ids in self._encode(documents) if documents else []:
            self._buffer.append(ids[: self.sequence_len + 1])
            self.tokens_read += len(ids)
            self.tokens_cropped += max(0, len(ids) - self.sequence_len - 1)
        self._position = documents[-1][1] if documents else self._position

    def _encode(self, documents: list[tuple[str, Position]]) -> list[list[int]]:
        """Encode documents; one that cannot be encoded is named by its shard and row."""
        texts = [text for text, _ in documents]
        try:
            return self.tokenizer.encode(texts, prepend=self.tokenizer.bos_id)
        except ValueError:
            for text, after in documents:
                try:
                    self.tokenizer.encode(text)
                except ValueError as error:
                    place = f"{self.shards[after.shard]}, row {after.row - 1}"
                    raise ValueError(f"{place}: {error}") from error
            raise

    def _row(self) -> tuple[list[int], list[int]]:
        """Pack the inputs and targets of one row; one more token than T makes both."""
        row: list[int] = []
        while (room := self.sequence_len + 1 - len(row)) > 0:
            self._refill()
            if not self._buffer:
                break
            document = take_document(self._buffer, room, oldest=not row)
            self.tokens_cropped += max(0, len(document) - room)
            row += document[:room]
        inputs, targets = row[: self.sequence_len], row[1:]
        inputs = inputs + [self.tokenizer.bos_id] * (self.sequence_len - len(inputs))
        return inputs, targets + [-1] * (self.sequence_len - len(targets))

    def __iter__(self) -> Iterator[tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]]:
        return self

    def __next__(self) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
        """Pack the next batch."""
        self._refill()
        if not self._buffer:
            raise StopIteration
        inputs, targets = zip(*(self._row() for _ in range(self.batch_size)))
        return torch.tensor(inputs), torch.tensor(targets)

    def state_dict(self) -> dict:
        """Describe where the loader stands: the next document and the waiting ones, as plain JSON."""
        return {
            "position": asdict(self._position),
            "buffer": [list(ids) for ids in self._buffer],
            "tokens_read": self.tokens_read,
            "tokens_cropped": self.tokens_cropped,
            "ranks": [self.ranks.rank, self.ranks.world_size],
        }

    def load_state_dict(self, state: dict) -> None:
        """Stand where the saved loader stood; same shards, tokenizer and sequence_len.

        Raises:
            ValueError: the state belongs to another rank.
        """
        if state["ranks"] != [self.ranks.rank, self.ranks.world_size]:
            raise ValueError(
                f"the state is for (rank, ranks) {state['ranks']}, this process is "
                f"{[self.ranks.rank, self.ranks.world_size]}: resume with as many processes as before"
            )
        self._buffer = [list(ids) for ids in state["buffer"]]
        self.tokens_read, self.tokens_cropped = state["tokens_read"], state["tokens_cropped"]
        self._open(Position(**state["position"]))


class Prefetch:
    """Prepare the next batch in another thread; batches, errors and states come as from the loader itself.

    Args:
        loader: an iterator with state_dict, which returns a copy, and load_state_dict.
    """

    def __init__(self, loader: Iterator) -> None:
        self.loader, self._state = loader, loader.state_dict()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._waiting: Future | None = None

    def _prepare(self) -> tuple[tuple | None, dict]:
        """Take a batch from the loader, None at the end, and the state after it."""
        return next(self.loader, None), self.loader.state_dict()

    def __iter__(self) -> Iterator[tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]]:
        return self

    def __next__(self) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
        """Hand out the batch that is ready, or soon will be, and start on the one after it."""
        waiting, self._waiting = self._waiting or self._pool.submit(self._prepare), None
        batch, self._state = waiting.result()
        if batch is None:
            raise StopIteration
        self._waiting = self._pool.submit(self._prepare)
        return batch

    def state_dict(self) -> dict:
        """Describe the loader as it stood after the last batch that was handed out."""
        return self._state

    def load_state_dict(self, state: dict) -> None:
        """Stand where the saved loader stood; what was prepared is dropped."""
        if self._waiting is not None:
            self._waiting.exception()  # wait until the thread is done with the loader
            self._waiting = None
        self.loader.load_state_dict(state)
        self._state = self.loader.state_dict()

    def close(self) -> None:
        """Wait for the thread and end it."""
        self._pool.shutdown(cancel_futures=True)
