# Generated from chapters/12_inference.py by `course build`; edit that file.
"""The KV cache: keys and values of past tokens, for rows of different lengths."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nanochat_lib.model.gpt import GPTConfig

__all__ = ["KVCache"]


class KVCache:
    """Hold the keys and values of every past token, for rows of different lengths that come and go.

    The model asks for `positions`, hands new keys and values to `update`, looks through
    `attention_mask` and calls `advance` once, after its last layer. All memory is taken at the start
    and written in place, without gradients: call the model under `torch.inference_mode()`.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int,
        max_len: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Make an empty cache.

        Args:
            config: the model's; gives layers, key-value heads, head width and the longest context.
            batch_size: rows.
            max_len: tokens that a row may reach; the model's `sequence_len` when None.
            device: where the tensors live.
            dtype: of keys and values.

        Raises:
            ValueError: no rows, or max_len beyond what the model was built for.
        """
        self.max_len = config.sequence_len if max_len is None else max_len
        if batch_size < 1 or not 1 <= self.max_len <= config.sequence_len:
            raise ValueError(
                f"a cache of {batch_size} rows x {self.max_len} tokens: need at least 1 row, and "
                f"1 to {config.sequence_len} tokens (the model's sequence_len)"
            )
        self.config = config
        # Keys and values, each (L, B, H, room, D): a head's keys side by side, as attention reads.
        # Heads with offset keys store them one place later, so that attention finds them in place.
        room = self.max_len + config.key_offset
        shape = (2, config.n_layer, batch_size, config.n_kv_head, room, config.head_dim)
        # Zeros, not empty: a masked key still meets its value as 0 * value, and 0 * NaN is NaN.
        self.memory = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = [0] * batch_size  # on the host: asking a GPU for them would stall every step
        self._embeddings = None  # of each row's last token, for models with smear
        if config.smear:
            self._embeddings = self.memory.new_zeros(batch_size, 1, config.n_embd)
        self._start, self._counts = 0, None  # the rows of the coming pass, and tokens for each
        self._step: tuple | None = None  # positions, mask and where to write, shared by all layers

    @property
    def batch_size(self) -> int:
        """Count the rows."""
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        """Count the bytes of memory taken for keys and values."""
        return self.memory.numel() * self.memory.element_size()

    def expect(self, counts: list[int], start: int = 0) -> None:
        """Announce a pass over some neighbouring rows, or one with padding on the right.

        Args:
            counts: how many of the new tokens are real, for each row of the pass.
            start: the first of these rows.

        Raises:
            ValueError: a row is not there, or gets no token.
        """
        if start < 0 or start + len(counts) > self.batch_size or min(counts, default=0) < 1:
            raise ValueError(
                f"{counts} new tokens for rows from {start} on, of {self.batch_size} rows: give one "
                "count for each row of the pass, at least 1"
            )
        self._start, self._counts, self._step = start, counts, None

    @property
    def _stop(self) -> int:
        """The row after the last one of the coming pass."""
        return self.batch_size if self._counts is None else self._start + len(self._counts)

    @property
    def previous_embedding(self) -> Float[Tensor, "B 1 C"] | None:
        """What entered the first layer for the last token of each row of the coming pass; at first zeros."""
        return None if self._embeddings is None else self._embeddings[self._start : self._stop]

    def _prepare(self, n_new: int) -> tuple:
        """Return the positions, the mask and the places of the coming pass."""
        if self._step is not None and self._step[0] == n_new:
            return self._step
        lengths, device = self.lengths[self._start : self._stop], self.memory.device
        longest = max(lengths)
        if longest + n_new > self.max_len:
            raise ValueError(
                f"{longest} cached tokens and {n_new} new ones need {longest + n_new} places, the "
                f"cache ends at {self.max_len}: shorten the prompt or ask for fewer tokens"
            )
        steps = torch.arange(longest + n_new, device=device)
        together = min(lengths) == longest
        if together:
            positions = steps[None, longest:]  # (1, T)
        else:
            positions = torch.tensor(lengths, device=device)[:, None] + steps[:n_new]  # (B, T)
        mask = None
        if longest > 0 and not (together and n_new == 1):
            hidden = steps > positions[:, None, :, None]
            mask = torch.zeros_like(hidden, dtype=self.memory.dtype)
            mask.masked_fill_(hidden, -torch.inf)  # (B, 1, T, S)
        place = slice(longest, longest + n_new) if together else positions
        self._step = (n_new, positions, mask, place, longest + n_new)
        return self._step

    def positions(self, n_new: int) -> Int[Tensor, "B T"]:
        """Give the absolute positions of the next n_new tokens of every row; one row stands for equal ones."""
        return self._prepare(n_new)[1]

    def attention_mask(self, n_new: int) -> Float[Tensor, "B 1 T S"] | None:
        """Give what is added to scores: 0 up to a new token's own position, in its own row, then -inf.

        None where nothing is hidden but what comes later in the pass itself.
        """
        return self._prepare(n_new)[2]

    def update(
        self, layer_idx: int, k: Float[Tensor, "B T H D"], v: Float[Tensor, "B T H D"]
    ) -> tuple[Float[Tensor, "B S H D"], Float[Tensor, "B S H D"]]:
        """Write one layer's new keys and values; return that layer's keys and values so far.

        Args:
            layer_idx: the layer, from 0.
            k: new keys, shape (B, T, n_kv_head, head_dim).
            v: new values, same shape.

        Returns:
            Keys, offset if the model's are, and values: (B, S, n_kv_head, head_dim), S = longest row + T.
        """
        _, _, _, place, total = self._prepare(k.shape[1])
        keys, values = self.memory[:, layer_idx, self._start : self._stop]
        plain = self.config.n_kv_head // 2 if self.config.key_offset else self.config.n_kv_head
        if isinstance(place, slice):
            later = slice(place.start + 1, place.stop + 1)
            values[:, :, place] = v.transpose(1, 2)
            keys[:, :plain, place] = k[:, :, :plain].transpose(1, 2)
            keys[:, plain:, later] = k[:, :, plain:].transpose(1, 2)
        else:
            rows = torch.arange(len(place), device=place.device)[:, None]  # (B, 1)
            values[rows, :, place] = v.to(values.dtype)  # (B, T, H, D)
            keys[rows, :plain, place] = k[:, :, :plain].to(keys.dtype)
            keys[rows, plain:, place + 1] = k[:, :, plain:].to(keys.dtype)
        return keys[:, :, :total].transpose(1, 2), values[:, :, :total].transpose(1, 2)

    def advance(self, n_new: int, embeddings: Float[Tensor, "B T C"] | None = None) -> None:
        """Close a forward pass: lengthen its rows and remember their last embeddings.

        Args:
            n_new: tokens that the pass added to every row, padding included.
            embeddings: what entered the first layer, for models whose tokens look at their left
                neighbour's embedding; None for the others.
        """
        start, stop = self._start, self._stop
        counts = [n_new] * (stop - start) if self._counts is None else self._counts
        for row, count in enumerate(counts, start):
            self.lengths[row] += count
        if embeddings is not None and self._embeddings is not None:
            last = torch.tensor(counts, device=embeddings.device)[:, None, None] - 1
            last = last.expand(-1, 1, embeddings.shape[2])
            self._embeddings[start:stop] = embeddings.gather(1, last)
        self._start, self._counts, self._step = 0, None, None

    def forget(self, row: int) -> None:
        """Empty a row for another text."""
        self.lengths[row] = 0
        if self._embeddings is not None:
            self._embeddings[row] = 0

    def snapshot(self, row: int) -> tuple[Tensor, Tensor | None]:
        """Copy out a row: keys and values (2, L, H, room, D) of its tokens, and its last embedding."""
        room = self.lengths[row] + self.config.key_offset
        last = None if self._embeddings is None else self._embeddings[row].clone()
        return self.memory[:, :, row, :, :room].clone(), last

    def restore(
        self, row: int, n: int, memory: Tensor, embedding: Float[Tensor, "1 C"] | None
    ) -> None:
        """Let a row hold the first n tokens of another row or of a snapshot.

        Args:
            row: is overwritten.
            n: tokens.
            memory: keys and values, (2, L, H, at least n places, D).
            embedding: what entered the first layer for token n - 1; None for models without smear.
        """
        room = n + self.config.key_offset
        self.memory[:, :, row, :, :room] = memory[:, :, :, :room]
        self.trim(row, n, embedding)

    def trim(self, row: int, n: int, embedding: Float[Tensor, "1 C"] | None) -> None:
        """Take back what a row has read beyond its first n tokens; `embedding` as in `restore`."""
        self.lengths[row] = n
        if self._embeddings is not None:
            self._embeddings[row] = embedding

    def move(self, source: int, target: int) -> None:
        """Let a row take another row's place."""
        last = None if self._embeddings is None else self._embeddings[source]
        self.restore(target, self.lengths[source], self.memory[:, :, source], last)

    def grow(self, batch_size: int) -> None:
        """Add empty rows, up to batch_size of them in all."""
        more = batch_size - self.batch_size
        if more > 0:
            extra = self.memory.new_zeros((*self.memory.shape[:2], more, *self.memory.shape[3:]))
            self.memory = torch.cat([self.memory, extra], dim=2)
            self.lengths += [0] * more
            if self._embeddings is not None:
                extra = self._embeddings.new_zeros(more, *self._embeddings.shape[1:])
                self._embeddings = torch.cat([self._embeddings, extra])
