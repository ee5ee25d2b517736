# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Inference: the next token, without reading everything again
#
# Our GPT answers one question: which token comes next? A reply of 60 tokens asks it 60 times, and
# each time the text is one token longer. Reading it all again for every token would make the last
# word of a reply cost far more than the first. This chapter makes every word cost about the same,
# for many rows of text at once, and shows how a token is chosen from the odds that a model gives:
#
# ```python
# logits = model(tokens, kv_cache=cache)       # reads the new tokens alone
# sample(logits[:, -1], uniforms, temperature=0.8, top_p=0.9)
# ```
#
# You need the GPT of the earlier chapters. On a laptop the chapter takes a few seconds.

# %%
#| default_exp inference.kv_cache
# The KV cache: keys and values of past tokens, for rows of different lengths.

# %%
import math
import time

import matplotlib.pyplot as plt

# %%
#| export
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nanochat_lib.model.gpt import GPTConfig

# %% [markdown]
# ## One query, by hand
#
# Attention answers a query with an average of values; the weight of each is $e^{q \cdot k}$,
# divided by their sum. Take vectors of one number. The query is 1, the keys are $\ln 1, \ln 2, \ln
# 3$, so the weights are 1/6, 2/6 and 3/6. With values 6, 6 and 12 the answer is 1 + 2 + 6 = 9.


# %%
def attend(query: float, keys: list[float], values: list[float]) -> float:
    weights = [math.exp(query * key) for key in keys]
    return sum(w * value for w, value in zip(weights, values)) / sum(weights)


keys, values = [math.log(1), math.log(2), math.log(3)], [6.0, 6.0, 12.0]
assert math.isclose(attend(1.0, keys, values), 9.0)

# %% [markdown]
# A fourth token arrives, with key $\ln 6$ and value 2. What do we need for its answer? Its own
# query, and the keys and values of all four. Three of these four pairs we have already, and the
# first three queries nobody asks for any more. So we append, and compute one answer: (6 + 12 + 36 +
# 12) / 12 = 5.5.

# %%
keys.append(math.log(6))
values.append(2.0)
assert math.isclose(attend(1.0, keys, values), 5.5)

# %% [markdown]
# Those two growing lists are the **KV cache**. How much reading do they save? Let a prompt of 2
# tokens be continued by 4. Without a cache the model reads 2, 3, 4 and 5 tokens; with one it reads
# the 2 of the prompt and then each new token once, except the last, which nobody continues.


# %%
def tokens_read(n_prompt: int, n_new: int, cached: bool) -> int:
    return n_prompt + n_new - 1 if cached else sum(n_prompt + i for i in range(n_new))


# %%
# NBVAL_CHECK_OUTPUT
assert (tokens_read(2, 4, False), tokens_read(2, 4, True)) == (2 + 3 + 4 + 5, 2 + 1 + 1 + 1)
for n_prompt, n_new in ((2, 4), (60, 60), (60, 190)):
    counts = tokens_read(n_prompt, n_new, False), tokens_read(n_prompt, n_new, True)
    print(f"prompt {n_prompt:3}, new {n_new:3}: {counts[0]:6,} tokens read, or {counts[1]:4}")

# %% [markdown]
# ## Is it allowed? The past must not change
#
# The trick rests on one property: keys and values of old tokens stay what they were when a new
# token arrives. Causal attention gives us that, in every layer, because no token ever looks to its
# right. We check it on a model of about the laptop's size. A fresh GPT has zeros in every projection back
# to the residual stream, so it would pass any check of attention, right or wrong; we shake all its
# weights first.

# %%
from nanochat_lib.model.gpt import GPT


def shaken_gpt(config: GPTConfig, seed: int = 1) -> GPT:
    model, generator = GPT(config), torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    return model.eval()


laptop = shaken_gpt(GPTConfig(sequence_len=256, vocab_size=1024, n_layer=4, n_embd=128, smear=True))
print(f"{laptop.num_params():,} parameters")

# %%
prompt = torch.randint(0, 1000, (1, 6), generator=torch.Generator().manual_seed(2))
with torch.inference_mode():
    gap = (laptop(prompt)[:, :5] - laptop(prompt[:, :5])).abs().max().item()
assert gap < 1e-4, f"the sixth token moved older logits by {gap}: does attention look ahead?"

# %% [markdown]
# So here is the slow way, which will be our judge for the rest of the chapter: read everything,
# take the likeliest next token, repeat. We call it greedy decoding by full recompute.


# %%
@torch.inference_mode()
def slow_greedy(model: GPT, tokens: list[int], n_new: int) -> list[int]:
    tokens = list(tokens)
    for _ in range(n_new):
        tokens.append(model(torch.tensor([tokens]))[0, -1].argmax().item())
    return tokens[-n_new:]


slow_answer = slow_greedy(laptop, prompt[0].tolist(), n_new=8)

# %% [markdown]
# ## The plain cache
#
# The GPT asks four things of whatever is passed as `kv_cache`: at which positions the new tokens
# stand (for RoPE), all keys and values of a layer once the new ones are added, what may be seen,
# and a note at the end that the tokens are read. With `smear`, where each token also peeks at its
# left neighbour's embedding, it wants the last embedding back as well. For rows of equal length,
# two lists of tensors do:


# %%
class ListCache:
    def __init__(self, n_layer: int) -> None:
        self.n, self.layers, self.previous_embedding = 0, [None] * n_layer, None

    def positions(self, n_new: int) -> Tensor:
        return self.n + torch.arange(n_new)[None]  # (1, T)

    def attention_mask(self, n_new: int) -> Tensor:
        return (
            torch.arange(self.n + n_new) <= self.positions(n_new)[:, None, :, None]
        )  # (1, 1, T, S)

    def update(self, layer_idx: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        old = self.layers[layer_idx]
        pair = (k, v) if old is None else (torch.cat([old[0], k], 1), torch.cat([old[1], v], 1))
        self.layers[layer_idx] = pair
        return pair

    def advance(self, n_new: int, embeddings: Tensor | None) -> None:
        self.n += n_new
        self.previous_embedding = None if embeddings is None else embeddings[:, -1:]


# %% [markdown]
# Reading the prompt in one pass is called **prefill**, the one-token passes that follow are
# **decode**. The tokens must be those of the slow way.

# %%
cache, step, fast_answer = ListCache(4), prompt, []
with torch.inference_mode():
    for _ in range(8):
        step = laptop(step, kv_cache=cache)[:, -1:].argmax(-1)  # (1, 1)
        fast_answer.append(step.item())
assert fast_answer == slow_answer, (
    f"{fast_answer} is not {slow_answer}: are positions counted from 0 again?"
)

# %% [markdown]
# ## Many prompts at once, of different lengths
#
# One row at a time wastes the machine, as we shall measure. But prompts differ in length, and a
# tensor has straight edges: short prompts need padding. Where? On the right. Each token then stands
# at the position it would have alone, so RoPE needs nothing new. A pad token comes *after* every
# real token of its row, so causality already hides it from all of them. What it leaves behind is a
# wrong key in the row's next place, and exactly there the next real token writes its own.
#
# Say rows of 3 tokens and 1 token were read, padded to 3. The next token goes to place 3 in the
# first row and place 1 in the second, and it may look at the places up to its own:

# %%
# NBVAL_CHECK_OUTPUT
lengths = torch.tensor([3, 1])
places = lengths[:, None] + torch.arange(1)  # (B, T)
visible = torch.arange(lengths.max() + 1) <= places[:, :, None]  # (B, T, S)
print("places", places.tolist())
for row in visible[:, 0]:
    print(" ".join("see" if seen else "  -" for seen in row))

# %% [markdown]
# Place 2 of the second row still holds a pad's key, and the `-` keeps it unseen. When that row gets
# there, the pad is overwritten.
#
# Three more decisions make the cache quick. Appending with `cat` copies everything at every step, so
# all memory is taken at the start and written in place. A head's keys lie side by side, the way
# attention reads them: `(B, H, room, D)`. For 128 rows of 120 tokens that halved the time of attention
# in a decode step (2.3 to 1.0 ms, measured on one core of an AMX server, 2026-11). And a model with
# offset keys (chapter `attention`) has them stored where they will be read, one place later: moving
# them at every step would copy all keys of the past.
#
# The memory is filled with zeros. Is that not a waste, when the mask hides what is not yet written?
# Hidden means weight 0, and fresh memory can hold anything:

# %%
# NBVAL_CHECK_OUTPUT
weights = torch.tensor([1.0, 0.0])  # the second place is masked
print(
    (weights * torch.tensor([5.0, 0.0])).sum().item(),
    (weights * torch.tensor([5.0, float("nan")])).sum().item(),
)

# %% [markdown]
# Here is the cache. Its rows have lengths of their own. `expect` says before a pass which rows it is
# for, and how many of each row's tokens are real; the rest is padding. The last six methods are for
# rows that come and go, which is the next chapter's business: a row can be emptied, copied out, filled
# from a copy, shortened and moved, and rows can be added.


# %%
#| export
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


# %% [markdown]
# A padded prefill of three prompts, then five decode steps. Each row must give what the slow way
# gives for it alone. The logits that continue a row are not in the last column: they stand at the
# row's own last token.

# %%
generator = torch.Generator().manual_seed(3)
prompts = [torch.randint(0, 1000, (n,), generator=generator).tolist() for n in (9, 2, 5)]
padded = torch.tensor([p + [0] * (9 - len(p)) for p in prompts])
cache = KVCache(laptop.config, batch_size=3)
with torch.inference_mode():
    cache.expect([9, 2, 5])
    step = laptop(padded, kv_cache=cache)[range(3), [8, 1, 4]].argmax(-1)[:, None]  # (3, 1)
    answers = [step]
    for _ in range(5):
        step = laptop(step, kv_cache=cache).argmax(-1)
        answers.append(step)

# %%
answers = torch.cat(answers, 1).tolist()
for prompt_tokens, answer in zip(prompts, answers):
    alone = slow_greedy(laptop, prompt_tokens, n_new=6)
    assert answer == alone, f"{answer} is not {alone}: does padding leak into the row?"
print("rows now hold", cache.lengths, "tokens")

# %% [markdown]
# Tokens agree when logits agree only roughly, so we also compare the logits themselves, reading a
# text in pieces of every size. Float32 sums in another order differ in the last digits, no more.

# %%
text = torch.randint(0, 1000, (2, 24), generator=generator)
with torch.inference_mode():
    whole = laptop(text)
    for size in (1, 3, 8, 24):
        cache = KVCache(laptop.config, batch_size=2)
        pieces = [laptop(piece, kv_cache=cache) for piece in text.split(size, dim=1)]
        gap = (torch.cat(pieces, 1) - whole).abs().max().item()
        assert gap < 1e-3, f"pieces of {size} differ by {gap}: is the mask right for T > 1?"

# %% [markdown]
# So a cache moves no score: the bits that chapter `baseline` taught us to count are the same, read at
# once or token by token. Everything in this chapter is about time and memory.

# %%
scores = []
for logits in (whole, torch.cat(pieces, 1)):
    nats = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), text[:, 1:].flatten())
    scores.append(nats.item() / math.log(2))
assert math.isclose(*scores, rel_tol=1e-4), scores

# %% [markdown]
# ## Cost: bytes
#
# Every token leaves a key and a value in every layer: $2 \cdot L \cdot H_{kv} \cdot D$ numbers. For
# this model that is 2 x 4 x 128 numbers of 4 bytes: 4 KiB a token, 1 MiB for a full context
# of 256. Grouped queries ($H_{kv} < H$) divide it.


# %%
def cache_bytes(config: GPTConfig, n_tokens: int, bytes_per_number: int) -> int:
    return 2 * config.n_layer * config.n_kv_head * config.head_dim * bytes_per_number * n_tokens


# %%
# NBVAL_CHECK_OUTPUT
cache = KVCache(laptop.config, batch_size=3)
print(
    f"3 rows of 256 places: derived {cache_bytes(laptop.config, 3 * 256, 4):,} bytes, "
    f"taken {cache.nbytes:,}"
)
assert cache.nbytes == cache_bytes(laptop.config, 3 * 256, 4)
d20 = GPTConfig.from_depth(20, vocab_size=65_536, sequence_len=2_048)
print(
    f"d20 in bfloat16: {cache_bytes(d20, 1, 2):,} bytes a token, "
    f"{cache_bytes(d20, 2_048, 2) / 1e6:.0f} MB a row"
)

# %% [markdown]
# A d20 model holds 561 million weights, 1.1 GB in bfloat16. Six full rows of cache weigh more than
# the model: on big machines it is this memory that limits how many people one GPU can talk to.
#
# ## Cost: seconds
#
# What does the next token cost after n tokens, read again or taken from the cache? We take the best
# of several tries, because another program on the machine can only slow us down.


# %%
@torch.inference_mode()
def best_seconds(function, tries: int = 5) -> float:
    function()  # the first call also pays for setting things up
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


@torch.inference_mode()
def step_seconds(n_tokens: int, batch_size: int = 1) -> float:
    cache = KVCache(laptop.config, batch_size)
    laptop(torch.zeros(batch_size, n_tokens, dtype=torch.long), kv_cache=cache)
    token = torch.zeros(batch_size, 1, dtype=torch.long)
    return best_seconds(lambda: laptop(token, kv_cache=cache))


# %%
spans = (15, 60, 120, 180, 240)
texts = [torch.zeros(1, n + 1, dtype=torch.long) for n in spans]
again = [best_seconds(lambda text=text: laptop(text)) for text in texts]
cached = [step_seconds(n) for n in spans]
print(f"at 240 tokens, reading all again costs {again[-1] / cached[-1]:.1f} times a cached step")

# %%
# alt: milliseconds for the next token against tokens so far: steep without a cache, flat with one
figure, axis = plt.subplots(figsize=(6.5, 3))
axis.plot(spans, [1000 * s for s in again], "o-", color="tab:red")
axis.plot(spans, [1000 * s for s in cached], "o-", color="tab:blue")
axis.text(spans[-2], 1000 * again[-2], "read all again  ", ha="right", va="bottom", color="tab:red")
axis.text(spans[-2], 1000 * cached[-2], "with the cache", va="bottom", color="tab:blue")
axis.set(xlabel="tokens so far", ylabel="milliseconds for the next", ylim=(0, None))
figure.tight_layout()
plt.show()

# %% [markdown]
# *Notice the shapes, not the milliseconds, which depend on your machine: the red line climbs with
# the length of the text, the blue one hardly moves.* The cached step does less than a hundredth of
# the arithmetic at 240 tokens and is not a hundred times as fast. Where does the rest go? A step
# for one row multiplies every weight once, two operations for each four bytes it must fetch, and
# calls dozens of small torch functions. Neither cost grows much with more rows, so we give a step
# more rows:

# %%
row_counts = (1, 4, 16, 64)
seconds = {rows: step_seconds(64, rows) for rows in row_counts}
for rows in row_counts:
    print(f"{rows:3} rows: {rows / seconds[rows]:8,.0f} tokens a second")

# %% [markdown]
# One row uses a small part of what the machine can do; 64 rows together are far cheaper than 64
# times one. Prefill enjoys the same effect along the other axis: it reads many tokens of a row at
# once. That is why services bill prompt tokens below answer tokens.
#
# ## Choosing a token
#
# Always taking the likeliest token is safe and dull, and a model that learns by trial needs trials
# that differ. So we draw. Two dials shape the odds: **temperature** divides the logits before the
# softmax, **top-k** keeps only the k largest. Take three tokens with logits ln 6, ln 3, ln 1: odds
# 6 : 3 : 1. A temperature of 1/2 doubles the logits, and that squares the odds: 36 : 9 : 1.

# %%
logits = torch.tensor([6.0, 3.0, 1.0]).log()
warm, cold = torch.softmax(logits, -1), torch.softmax(logits / 0.5, -1)
assert torch.allclose(warm, torch.tensor([0.6, 0.3, 0.1])), f"got {warm.tolist()}"
assert torch.allclose(cold, torch.tensor([36.0, 9.0, 1.0]) / 46), (
    f"got {cold.tolist()}: multiplied instead of divided?"
)

# %% [markdown]
# The entropy of the odds says how much choice is left, in bits: 0.6 x 0.737 + 0.3 x 1.737 + 0.1 x
# 3.322 = 1.295 bits at temperature 1. With top-k the tail is cut and the rest scaled up, so the
# entropy can never pass $\log_2 k$.


# %%
def entropy_bits(logits: Tensor, temperature: float, top_k: int) -> float:
    kept = logits.topk(top_k).values / temperature
    return torch.distributions.Categorical(logits=kept).entropy().item() / math.log(2)


# %%
# NBVAL_CHECK_OUTPUT
for temperature, top_k in ((1.0, 3), (0.5, 3), (1.0, 2), (0.1, 3)):
    bits = entropy_bits(logits, temperature, top_k)
    print(f"temperature {temperature}, top-k {top_k}: {bits:.3f} bits")

# %% [markdown]
# The figure does the same for the 1,024 logits of our shaken model.

# %%
# alt: entropy against temperature: it climbs to ten bits, with top-k 50 and 5 it levels off
with torch.inference_mode():
    model_logits = laptop(prompt)[0, -1]
temperatures = torch.linspace(0.002, 2.0, 100).tolist()
coldest = []
figure, axis = plt.subplots(figsize=(6.5, 3))
for top_k, color in ((1024, "tab:red"), (50, "tab:blue"), (5, "tab:green")):
    bits = [entropy_bits(model_logits, t, top_k) for t in temperatures]
    coldest.append(bits[0])
    axis.plot(temperatures, bits, color=color)
    label = "all 1,024" if top_k == 1024 else f"top-k {top_k}"
    axis.text(2.0, bits[-1], f" {label}", color=color, va="center")
axis.set(xlabel="temperature", ylabel="entropy (bits)", xlim=(0, 2.4))
figure.tight_layout()
plt.show()

# %% [markdown]
# *Notice that all lines start together near zero, where the likeliest token takes everything. Further
# right temperature hands weight to the long tail, and only top-k puts a lid on that.*

# %%
print([f"{bits:.2f} bits" for bits in coldest], "at the left edge")
assert max(coldest) < 0.3, coldest

# %% [markdown]
# Now the drawing itself. `torch.multinomial` would do; but we want to drop rows that have ended
# from the batch, and then the rows left over would get other random numbers than before, so that an
# answer would depend on its neighbours. Our way out: draw one uniform number for every row, dropped
# or not, and walk along the cumulative probabilities until they pass it. With 0.2, 0.5, 0.3 and the
# number 0.6 we step over 0.2 and stop within 0.7: token 1.

# %%
cumulative = torch.tensor([0.2, 0.5, 0.3]).cumsum(0)
assert (cumulative <= 0.6).sum() == 1

# %%
#| default_exp inference.sampling
# Draw tokens from logits, and say how likely the draw was.

# %%
#| export
import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


# %% [markdown]
# Top-k keeps the same number of tokens whether the model is sure or has no idea. Two dials look at the
# odds instead: **top-p** keeps the fewest of the likeliest tokens that hold a probability of p together,
# **min-p** those that are at least a share of p as likely as the likeliest.


# %%
#| export
def check_dials(temperature: float, top_k: int | None, top_p: float, min_p: float) -> None:
    """Complain about dials that mean nothing.

    Raises:
        ValueError: a negative temperature, top_k below 1, top_p or min_p not a share, or any NaN.
    """
    if not temperature >= 0 or (top_k is not None and top_k < 1):  # NaN < 0 is false
        raise ValueError(
            f"temperature {temperature} and top_k {top_k}: need >= 0, and >= 1 or None"
        )
    if not (0 < top_p <= 1 and 0 <= min_p <= 1):
        raise ValueError(
            f"top_p {top_p} and min_p {min_p}: need 0 < top_p <= 1 and 0 <= min_p <= 1"
        )


def kept_tokens(
    logits: Float[Tensor, "B V"], top_k: int | None = None, top_p: float = 1.0, min_p: float = 0.0
) -> Bool[Tensor, "B V"]:
    """Mark the tokens that may be drawn; each dial looks at what the ones before it have left.

    Args:
        logits: scores, already divided by the temperature, shape (B, V).
        top_k: keep the k largest, and what equals the last of them.
        top_p: keep the fewest of the likeliest tokens whose probability adds up to this.
        min_p: keep tokens at least this share as likely as the likeliest.

    Source: top-p Holtzman et al. 2019 (arXiv:1904.09751); min-p Nguyen et al. 2024 (arXiv:2407.01082).
    """
    kept = torch.ones_like(logits, dtype=torch.bool)
    if top_k is not None and top_k < logits.shape[-1]:
        kept = logits >= logits.topk(top_k, dim=-1).values[:, -1:]
    if top_p < 1:
        ordered, order = logits.masked_fill(~kept, -math.inf).sort(dim=-1, descending=True)
        odds = ordered.softmax(-1)
        likelier = odds.cumsum(-1) - odds  # probability of the tokens before
        kept = kept & torch.empty_like(kept).scatter(1, order, likelier < top_p)
    if min_p > 0:
        kept = kept & (logits >= logits.amax(-1, keepdim=True) + math.log(min_p))
    return kept


def draw(
    logits: Float[Tensor, "B V"],
    uniforms: Float[Tensor, " B"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """Pick one token a row, by walking along the cumulative probabilities, and say how likely that was.

    Example: probabilities [0.2, 0.5, 0.3] and a uniform of 0.6 -> 1, because 0.2 <= 0.6 < 0.7.

    Args:
        logits: scores, shape (B, V).
        uniforms: one number in [0, 1) a row, shape (B,), on any device.
        temperature: divides the logits; 0 takes the largest, infinity makes all equally likely.
        top_k: as in `kept_tokens`, but of equal logits no more than k are kept.
        top_p: as in `kept_tokens`.
        min_p: as in `kept_tokens`.

    Returns:
        Token ids, int64, and the log-probability of each draw in nats, float32; shape (B,).

    Raises:
        ValueError: a dial that means nothing, or a logit that is NaN or infinite.
    """
    check_dials(temperature, top_k, top_p, min_p)
    if not bool((logits < math.inf).all()):  # of NaN argmax makes token 0, without a word
        raise ValueError("a logit is NaN or infinite: the weights are damaged; load others")
    if temperature == 0:
        return logits.argmax(-1), logits.new_zeros(len(logits))
    names = None
    if top_k is not None and top_k < logits.shape[-1]:
        logits, names = logits.topk(top_k, dim=-1)  # (B, k): the walk is short as well
    logits = logits.float() / max(temperature, 1e-30)  # below, float32 divides to infinity
    if top_p < 1 or min_p > 0:
        kept = kept_tokens(logits, top_p=top_p, min_p=min_p)
        logits = logits.masked_fill(~kept, -math.inf)
    odds = logits.log_softmax(-1)
    cumulative = odds.exp().cumsum(-1)  # (B, V)
    total = cumulative[:, -1:]  # 1 up to rounding
    target = uniforms.to(logits.device)[:, None] * total
    # Rounding may lift target to total: stop at the last token that has any probability.
    choice = torch.minimum((cumulative <= target).sum(-1), (cumulative < total).sum(-1))[:, None]
    tokens = choice if names is None else names.gather(1, choice)
    return tokens[:, 0], odds.gather(1, choice)[:, 0]


def sample(
    logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"], *dials: Any, **named: Any
) -> Int[Tensor, " B"]:
    """Pick one token a row: the first of the two things that `draw` returns, for the same arguments."""
    return draw(logits, uniforms, *dials, **named)[0]


def sampled_logprobs(
    logits: Float[Tensor, "B V"],
    tokens: Int[Tensor, " B"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Float[Tensor, " B"]:
    """Return the log-probability with which `draw` picks these tokens, all dials included.

    Example: logits [0, 0, -9] and token 1 -> about log(1/2); with top_k=1 and token 0 -> 0.

    Args:
        logits: scores, shape (B, V).
        tokens: what was drawn, int64, shape (B,); each counts as kept, wherever it ranks.
        temperature: as in `draw`; at 0 what is drawn is certain.
        top_k: as in `kept_tokens`.
        top_p: as in `kept_tokens`.
        min_p: as in `kept_tokens`.

    Returns:
        Nats, at most 0, shape (B,), float32; gradients flow back to the logits.
    """
    if temperature == 0:
        return logits.new_zeros(len(tokens))
    logits = logits.float() / max(temperature, 1e-30)
    drawn = logits.gather(1, tokens[:, None])[:, 0]
    if top_k is not None or top_p < 1 or min_p > 0:
        kept = kept_tokens(logits.detach(), top_k, top_p, min_p).scatter(1, tokens[:, None], True)
        logits = logits.masked_fill(~kept, -math.inf)
    return drawn - logits.logsumexp(-1)


def likeliest(logits: Float[Tensor, " V"], token: int, n: int) -> list[tuple[int, float]]:
    """List a token and then the n likeliest ones, each with its log-probability in nats, before any dial."""
    odds = logits.float().log_softmax(-1)
    best = odds.topk(min(n, len(odds)))
    return [(token, odds[token].item()), *zip(best.indices.tolist(), best.values.tolist())]


# %% [markdown]
# Against the definition: 20,000 draws from odds 6 : 3 : 1 should give shares within about 0.01 of
# 0.6, 0.3, 0.1 (three standard deviations: $3\sqrt{0.6 \cdot 0.4 / 20000} = 0.0104$). And the ends
# of the dial must behave: temperature 0, k = 1, and a uniform of almost 1.

# %%
uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(4))
drawn = sample(logits.expand(20_000, 3), uniforms)
shares = torch.bincount(drawn, minlength=3) / 20_000
assert torch.allclose(shares, warm, atol=0.0104), f"got {shares.tolist()}: is the walk off by one?"
three = logits.expand(3, 3)
edges = torch.tensor([0.0, 0.5, 1 - 2**-24])
assert sample(three, edges).tolist() == [0, 0, 2]
assert (
    sample(three, edges, temperature=0).tolist()
    == sample(three, edges, top_k=1).tolist()
    == [0, 0, 0]
)

# %%
sure = torch.tensor([[90.0, 6.0, 3.0, 1.0]]).log()
unsure = torch.tensor([[30.0, 28.0, 22.0, 20.0]]).log()
dials = {"top-k 2": {"top_k": 2}, "top-p 0.9": {"top_p": 0.9}, "min-p 0.1": {"min_p": 0.1}}
for name, dial in dials.items():
    counts = [int(kept_tokens(odds, **dial).sum()) for odds in (sure, unsure)]
    print(f"{name}: keeps {counts[0]} of 4 tokens when sure, {counts[1]} when unsure")
assert kept_tokens(sure, top_p=0.9).sum() == 1 and kept_tokens(unsure, top_p=0.9).sum() == 4

# %% [markdown]
# ## What goes wrong: NaN passes every guard
#
# Damage one weight: the NaN spreads to every logit, and nothing complains. `argmax` says token 0,
# for ever, and a guard such as `temperature < 0` lets NaN through, since comparisons with it are
# false. So guards ask for what is right.

# %%
# NBVAL_CHECK_OUTPUT
logits = torch.tensor([[2.0, float("nan"), 1.0], [float("nan")] * 3])
print("argmax:", logits[1:].argmax(-1).item(), "  nan < 0:", float("nan") < 0)
for temperature in (0.0, float("nan")):
    try:
        sample(logits, torch.zeros(2), temperature)
    except ValueError as error:
        print(error)

# %% [markdown]
# ## What goes wrong: padding leaks in
#
# The other classic bug: pad on the left and forget that pads are tokens: without a mask every real
# token reads them. Or pad on the right and read the logits of the last column, which for a shorter
# row follows a pad. The longest row, the one people look at, is right. We count the rows whose next
# token has the odds that it has alone, to a thousandth.

# %%
lengths = [9, 11, 6, 10, 8, 7, 2, 3, 5, 9, 13, 16]
mixed = [torch.randint(1, 1000, (n,), generator=generator).tolist() for n in lengths]
longest = max(len(tokens) for tokens in mixed)
left = torch.tensor([[0] * (longest - len(tokens)) + tokens for tokens in mixed])
right = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in mixed])
with torch.inference_mode():
    alone = torch.stack([laptop(torch.tensor([tokens]))[0, -1] for tokens in mixed]).softmax(
        -1
    )  # (B, V)
    guesses = {
        "pads on the left, no mask": laptop(left)[:, -1],
        "pads on the right, last column": laptop(right)[:, -1],
        "pads on the right, own column": laptop(right)[range(12), [len(t) - 1 for t in mixed]],
    }

# %%
unharmed = {}
for name, guess in guesses.items():
    distance = (guess.softmax(-1) - alone).abs().sum(
        -1
    ) / 2  # share of probability that moved, (B,)
    unharmed[name] = int((distance < 1e-3).sum())
    print(
        f"{name:31} {unharmed[name]:2} of 12 rows right; "
        f"in the worst, {distance.max():.1%} of the odds moved"
    )
assert list(unharmed.values())[-1] == 12 > max(list(unharmed.values())[:-1])

# %% [markdown]
# Right padding with each row's own column is exact, and needs no mask that causality does not give
# already.
#
# ## Recap
#
# Keys and values of old tokens never change, so a model reads each token once: prefill takes a
# whole prompt, decode one column at a time, and many rows share the cost of fetching the weights. A
# token is drawn from tempered odds with their tail cut, by a walk to a random number of its own row.
# What broke in the field broke silently; the slow way catches it.
#
# In the library now: `KVCache` in `nanochat_lib.inference.kv_cache`, `sample` and its relatives in
# `nanochat_lib.inference.sampling`. The exercises ask for another way to cut the tail of the odds, how many
# people fit into a machine's memory, and what temperature does to repetition. The next chapter lets rows come and go, and hands the model a calculator.
