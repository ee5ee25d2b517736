# Generated from chapters/13_batching.py by `course build`; edit that file.
"""The scheduler: requests join and leave at any step, and beginnings are read once."""

from collections import deque
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nanochat_lib.inference.kept import MIN_SHARED, KeptTexts, shared_length
from nanochat_lib.inference.kv_cache import KVCache
from nanochat_lib.inference.row import Request, Row
from nanochat_lib.inference.sampling import draw, likeliest
from nanochat_lib.model.attention import rms_norm
from nanochat_lib.model.gpt import GPTConfig
from nanochat_lib.tokenizer.tokenizer import Tokenizer

__all__ = ["CachedModel", "Scheduler"]


@runtime_checkable
class CachedModel(Protocol):
    """Say what the scheduler asks of a model: a GPT does, and so do faster ones."""

    config: GPTConfig
    wte: nn.Embedding
    cos: Tensor  # the cache takes its number format

    def hidden(self, idx: Int[Tensor, "B T"], kv_cache: KVCache) -> Float[Tensor, "B T C"]:
        """Read tokens, and leave keys and values in the cache."""

    def logits(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows V"]:
        """Score every token of the vocabulary, from what `hidden` returned."""


class Scheduler:
    """Answer many requests at once; they join and leave at any step.

    Rows 0 to n_decoding - 1 of the cache are answers in the making, those after them prompts that are
    still being read. Where a row leaves, another takes its place, so that every pass goes over
    neighbouring rows.
    """

    def __init__(
        self,
        model: CachedModel,
        tokenizer: Tokenizer,
        max_rows: int = 128,
        chunk: int = 512,
        keep_bytes: int = 0,
    ) -> None:
        """Keep the model and tokenizer; weights are not copied.

        Args:
            model: a GPT, or a packed one, which is faster.
            tokenizer: the model's.
            max_rows: answers in the making at once; further requests wait.
            chunk: tokens of prompts read in one step, while answers wait for their next token.
            keep_bytes: keys and values of past texts to keep, for prompts that begin alike.
        """
        self.model, self.tokenizer = model, tokenizer
        self.max_rows, self.chunk = max_rows, chunk
        self.stop_tokens = frozenset(
            {tokenizer.encode_special("<|assistant_end|>"), tokenizer.bos_id}
        )
        self.waiting: deque[Row] = deque()
        self.rows: list[Row] = []  # row i of the cache is for self.rows[i]
        self.n_decoding = 0
        self.cache: KVCache | None = None
        self.kept = KeptTexts(keep_bytes)

    def submit(self, request: Request) -> Row:
        """Let a request wait for its turn; `step` fills the row that comes back.

        Raises:
            ValueError: the prompt is empty, or leaves no room in the context.
        """
        length, limit = len(request.prompt), self.model.config.sequence_len
        if not 1 <= length < limit:
            raise ValueError(
                f"the prompt has {length} tokens, the context has {limit}: it needs at least one "
                "token and room for one more; shorten it"
            )
        room = limit - length
        row = Row(self.tokenizer, request, min(room, request.max_tokens or room))
        self.waiting.append(row)
        return row

    def cancel(self, row: Row) -> None:
        """End an answer; its place is free at the next step."""
        if not row.finished:
            row.reason = "cancelled"
            if row in self.waiting:
                self.waiting.remove(row)

    def reset(self) -> None:
        """Forget every request and everything that was read."""
        self.waiting.clear()
        self.kept.clear()
        self.rows, self.n_decoding, self.cache = [], 0, None

    @property
    def busy(self) -> bool:
        """Say whether a step would do anything."""
        return bool(self.waiting or any(not row.finished for row in self.rows))

    # Decorated here: around a generator, the mode could leak into the caller.
    @torch.inference_mode()
    def step(self) -> list[tuple[Row, int, int]]:
        """Give every answer its next token, and read some of the prompts that wait.

        Returns:
            The rows that got a token, each with it and its mask, as `Row.accept` returns them.
        """
        self._drop_finished()
        self._admit()
        got = []
        if self.n_decoding:
            rows = self.rows[: self.n_decoding]
            logits = self._forward([[row.last] for row in rows], 0)
            got += self._choose(rows, logits)
        if self.n_decoding < len(self.rows):
            got += self._read()
        return got

    def _forward(self, pieces: list[list[int]], start: int) -> Float[Tensor, "B V"]:
        """Feed each row from `start` on its piece; return the logits that follow."""
        counts = [len(piece) for piece in pieces]
        width, device = max(counts), self.cache.memory.device
        padded = [piece + [0] * (width - len(piece)) for piece in pieces]
        self.cache.expect(counts, start)
        x = self.model.hidden(torch.tensor(padded, device=device), self.cache)  # (B, T, C)
        last = torch.tensor(counts, device=device) - 1
        return self.model.logits(x[torch.arange(len(counts), device=device), last])

    def _read(self) -> list[tuple[Row, int, int]]:
        """Read on in every prompt; those at their end draw their first token."""
        cache, first = self.cache, self.n_decoding
        rows = self.rows[first:]
        # Nobody waits for a token: read as much as memory allows.
        budget = self.chunk if first else 32 * self.chunk
        # Padding takes places as well: no row may be padded beyond the end of the context.
        room = cache.max_len - max(cache.lengths[first : first + len(rows)])
        share = max(1, min(budget // len(rows), room))
        pieces = []
        for i, row in enumerate(rows, first):
            pieces.append(row.request.prompt[cache.lengths[i] : cache.lengths[i] + share])
        logits = self._forward(pieces, first)
        ready = [i for i, row in enumerate(rows) if self._is_read(first + i)]
        if not ready:
            return []
        got = self._choose([rows[i] for i in ready], logits[ready])
        for i in ready:
            self._exchange(first + i, self.n_decoding)
            self.n_decoding += 1
        return got

    def _is_read(self, i: int) -> bool:
        """Say whether the whole prompt of a row is in the cache."""
        return self.cache.lengths[i] >= len(self.rows[i].request.prompt)

    def _exchange(self, a: int, b: int) -> None:
        """Let two rows change places."""
        if a != b:
            length, (memory, embedding) = self.cache.lengths[a], self.cache.snapshot(a)
            self.cache.move(b, a)
            self.cache.restore(b, length, memory, embedding)
            self.rows[a], self.rows[b] = self.rows[b], self.rows[a]

    def _choose(self, rows: list[Row], logits: Float[Tensor, "B V"]) -> list[tuple[Row, int, int]]:
        """Draw a token for each row, all rows with the same dials together, and let the rows accept."""
        for row, own in zip(rows, logits):
            row.edit(own)
        groups: dict[tuple, list[int]] = {}
        for i, row in enumerate(rows):
            r = row.request
            groups.setdefault((r.temperature, r.top_k, r.top_p, r.min_p), []).append(i)
        got: list = [None] * len(rows)
        for dials, members in groups.items():
            own = logits if len(groups) == 1 else logits[members]
            uniforms = torch.tensor([rows[i].luck.random() for i in members])
            drawn, odds = draw(own, uniforms, *dials)
            for i, token, logprob in zip(members, drawn.tolist(), odds.tolist()):
                got[i] = (rows[i], *rows[i].accept(token, self.stop_tokens, logprob))
        for i, row in enumerate(rows):
            if row.request.alternatives is not None and not row.stopped:
                row.alternatives.append(likeliest(logits[i], row.last, row.request.alternatives))
        return got

    def _drop_finished(self) -> None:
        """Take out the rows that have ended; the last row of each kind closes the gap."""
        for i in reversed(range(len(self.rows))):
            if not self.rows[i].finished:
                continue
            n = self.cache.lengths[i]
            if n and self.kept.room:
                self.kept.add(self._texts(i)[:n], self.cache.snapshot(i)[0])
            if i < self.n_decoding:
                self.n_decoding -= 1
                self._close(self.n_decoding, i)
                i = self.n_decoding
            self._close(len(self.rows) - 1, i)
            self.cache.forget(len(self.rows) - 1)
            self.rows.pop()

    def _close(self, source: int, target: int) -> None:
        """Move a row into a gap."""
        if source != target:
            self.cache.move(source, target)
            self.rows[target] = self.rows[source]

    def _texts(self, i: int) -> list[int]:
        """Return prompt and answer of a row; the cache holds the first of these tokens."""
        return self.rows[i].request.prompt + self.rows[i].tokens

    def _admit(self) -> None:
        """Give waiting requests a row, and what has been read of their prompts for others."""
        wanted = min(self.max_rows, len(self.rows) + len(self.waiting))
        if self.cache is None and wanted:
            config, table = self.model.config, self.model.cos
            self.cache = KVCache(config, wanted, device=table.device, dtype=table.dtype)
        elif wanted and wanted > self.cache.batch_size:
            self.cache.grow(min(self.max_rows, max(wanted, 2 * self.cache.batch_size)))
        held_back: deque[Row] = deque()
        while self.waiting and len(self.rows) < self.max_rows:
            row = self.waiting.popleft()
            prompt = row.request.prompt
            known, soon = self._shared_with_rows(prompt)
            kept, n = self.kept.find(prompt)
            if soon - max(known[1], n) >= MIN_SHARED:
                held_back.append(row)  # somebody is reading what this prompt begins with
                continue
            self.rows.append(row)
            if n > known[1]:
                self._begin(len(self.rows) - 1, prompt, n, kept)
            elif known[1]:
                self._begin(len(self.rows) - 1, prompt, known[1], self.cache.memory[:, :, known[0]])
        self.waiting.extendleft(reversed(held_back))

    def _shared_with_rows(self, prompt: list[int]) -> tuple[tuple[int, int], int]:
        """Find the row that has read most of a prompt's beginning, and what one is about to have read.

        Returns:
            (row, tokens), and the most tokens that a row will share when it has read its prompt.
        """
        best, soon = (0, 0), 0
        for i, row in enumerate(self.rows):
            if row.request.prompt[:MIN_SHARED] != prompt[:MIN_SHARED]:
                continue
            n = shared_length(self._texts(i), prompt)
            soon = max(soon, n)
            best = max(best, (i, min(n, self.cache.lengths[i])), key=lambda pair: pair[1])
        return best, soon

    def _begin(self, i: int, prompt: list[int], n: int, memory: Tensor) -> None:
        """Let a new row hold the first n tokens of its prompt, from what has been read."""
        self.rows[i].n_shared = n
        token = torch.tensor([prompt[n - 1]], device=self.cache.memory.device)
        self.cache.restore(i, n, memory, rms_norm(self.model.wte(token)))
