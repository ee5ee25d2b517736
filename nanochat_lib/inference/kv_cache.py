# Generated from chapters/12_inference.py by `course build`; edit that file.
"""The KV cache: keys and values of past tokens, for rows of different lengths."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nanochat_lib.model.gpt import GPTConfig

__all__ = ["KVCache"]


class KVCache:
    """Hold the keys and values of every past token, for rows of different lengths.

    The model asks for `positions`, hands new keys and values to `update`, looks through
    `attention_mask` and calls `advance` once, after its last layer. Memory is taken in steps of
    `grow_by` tokens. It is written in place, without gradients: call the model under
    `torch.inference_mode()`.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int,
        max_len: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        grow_by: int = 128,
    ) -> None:
        """Make an empty cache.

        Args:
            config: the model's; gives layers, key-value heads, head width and the longest context.
            batch_size: rows.
            max_len: tokens that a row may reach; the model's `sequence_len` when None.
            device: where the tensors live.
            dtype: of keys and values.
            grow_by: tokens of room added when the room runs out.

        Raises:
            ValueError: no rows, or max_len beyond what the model was built for.
        """
        self.max_len = config.sequence_len if max_len is None else max_len
        if batch_size < 1 or not 1 <= self.max_len <= config.sequence_len:
            raise ValueError(
                f"a cache of {batch_size} rows x {self.max_len} tokens: need at least 1 row, and "
                f"1 to {config.sequence_len} tokens (the model's sequence_len)"
            )
        self.config, self.grow_by = config, grow_by
        # Keys and values, each (L, B, H, room, D): a head's keys side by side, as attention reads.
        shape = (2, config.n_layer, batch_size, config.n_kv_head, 0, config.head_dim)
        self.memory = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.longest = (
            0  # max(lengths), kept on the host: asking a GPU for it would stall every step
        )
        self.previous_embedding: Tensor | None = None
        self._pending: Tensor | None = None
        self._step: tuple[Tensor, Tensor] | None = None  # positions and mask, shared by all layers

    @property
    def batch_size(self) -> int:
        """Count the rows."""
        return self.memory.shape[2]

    @property
    def nbytes(self) -> int:
        """Count the bytes of memory taken for keys and values."""
        return self.memory.numel() * self.memory.element_size()

    def _prepare(self, n_new: int) -> tuple[Tensor, Tensor]:
        """Make room for n_new tokens a row; return their positions (B, T) and mask (B, 1, T, S)."""
        if self._step is not None and self._step[0].shape[1] == n_new:
            return self._step
        total = self.longest + n_new
        if total > self.max_len:
            raise ValueError(
                f"{self.longest} cached tokens and {n_new} new ones need {total} places, the cache "
                f"ends at {self.max_len}: shorten the prompt or ask for fewer tokens"
            )
        room = self.memory.shape[4]
        if total > room:
            extra = min(-(-total // self.grow_by) * self.grow_by, self.max_len) - room
            shape = (*self.memory.shape[:4], extra, self.memory.shape[5])
            # Zeros, not empty: a masked key still meets its value as 0 * value, and 0 * NaN is NaN.
            self.memory = torch.cat([self.memory, self.memory.new_zeros(shape)], dim=4)
        steps = torch.arange(total, device=self.lengths.device)
        positions = self.lengths[:, None] + steps[:n_new]  # (B, T)
        mask = steps <= positions[:, None, :, None]  # (B, 1, T, S)
        self._step = (positions, mask)
        return self._step

    def positions(self, n_new: int) -> Int[Tensor, "B T"]:
        """Give the absolute positions of the next n_new tokens of every row."""
        return self._prepare(n_new)[0]

    def attention_mask(self, n_new: int) -> Bool[Tensor, "B 1 T S"]:
        """Give True where a new token may look: at positions up to its own, in its own row."""
        return self._prepare(n_new)[1]

    def update(
        self, layer_idx: int, k: Float[Tensor, "B T H D"], v: Float[Tensor, "B T H D"]
    ) -> tuple[Float[Tensor, "B S H D"], Float[Tensor, "B S H D"]]:
        """Write one layer's new keys and values; return that layer's keys and values so far.

        Args:
            layer_idx: the layer, from 0.
            k: new keys, shape (B, T, n_kv_head, head_dim).
            v: new values, same shape.

        Returns:
            Keys and values of shape (B, S, n_kv_head, head_dim), S = longest row + T.
        """
        positions, _ = self._prepare(k.shape[1])
        total = self.longest + k.shape[1]
        rows = torch.arange(self.batch_size, device=positions.device)[:, None]  # (B, 1)
        keys, values = self.memory[0, layer_idx], self.memory[1, layer_idx]
        keys[rows, :, positions] = k.to(keys.dtype)  # (B, T, H, D)
        values[rows, :, positions] = v.to(values.dtype)
        return keys[:, :, :total].transpose(1, 2), values[:, :, :total].transpose(1, 2)

    def set_lengths(self, lengths: list[int]) -> None:
        """Announce how long each row will be after the coming forward pass, without its padding.

        Args:
            lengths: tokens of each row, without padding, counted from the row's first token.

        Raises:
            ValueError: not one length a row, or one that does not lengthen its row.
        """
        wanted = torch.tensor(lengths, dtype=torch.long, device=self.lengths.device)
        if wanted.shape != self.lengths.shape or bool((wanted <= self.lengths).any()):
            raise ValueError(
                f"lengths {lengths} for {self.batch_size} rows that hold {self.lengths.tolist()} "
                "tokens: give one length a row, each longer than the row is now"
            )
        self._pending = wanted

    def advance(self, n_new: int, embeddings: Float[Tensor, "B T C"] | None = None) -> None:
        """Close a forward pass: lengthen every row and remember its last embedding.

        Args:
            n_new: tokens that the pass added to every row, padding included.
            embeddings: what entered the first layer, for models whose tokens look at their left
                neighbour's embedding; None for the others.
        """
        before = self.lengths
        self.lengths = before + n_new if self._pending is None else self._pending
        self.longest = self.longest + n_new if self._pending is None else int(self.lengths.max())
        if embeddings is not None:
            last = (self.lengths - before - 1).clamp(max=n_new - 1)  # (B,)
            rows = torch.arange(self.batch_size, device=last.device)
            self.previous_embedding = embeddings[rows, last][:, None]  # (B, 1, C)
        self._pending, self._step = None, None

    def select(self, rows: list[int]) -> "KVCache":
        """Copy the given rows, in the given order, into a new cache.

        Args:
            rows: row numbers; repeats are welcome, absent rows are dropped.

        Returns:
            A cache of len(rows) rows that shares no memory with this one.
        """
        other = KVCache(self.config, len(rows), self.max_len, self.memory.device, self.memory.dtype)
        index = torch.tensor(rows, dtype=torch.long, device=self.lengths.device)
        other.grow_by = self.grow_by
        other.memory = self.memory.index_select(2, index)
        other.lengths = self.lengths[index]
        other.longest = int(other.lengths.max())
        if self.previous_embedding is not None:
            other.previous_embedding = self.previous_embedding[index]
        return other

    def expand(self, n: int) -> "KVCache":
        """Copy every row n times, neighbours together: one prefill, n samples."""
        return self.select([row for row in range(self.batch_size) for _ in range(n)])
