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
# answers a hundred prompts at once, and hands the model a calculator:
#
# ```python
# Engine(model, tokenizer).generate_batch([prompt_1, prompt_2])   # [(tokens, mask), (tokens, mask)]
# ```
#
# You need the GPT and the tokenizer of the earlier chapters. On a laptop the chapter takes about 15
# seconds, of which half goes into training a small model that is worth listening to.

# %%
#| default_exp inference.kv_cache
# The KV cache: keys and values of past tokens, for rows of different lengths.

# %%
import math
import random
import time
from collections import Counter

import matplotlib.pyplot as plt

from nanochat_lib.training.optim import OptimConfig, build_optimizers

# %%
#| export
import torch
from jaxtyping import Bool, Float, Int
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
# Two more decisions make the cache quick. Appending with `cat` copies everything at every step, so
# we take memory in blocks of 128 places and write in place. And we store a head's keys side by
# side, the way attention reads them: `(B, H, room, D)`. For 128 rows of 120 tokens that halved the
# time of attention in a decode step (2.3 to 1.0 ms, measured on one core of an AMX server,
# 2026-11).
#
# The new places are filled with zeros. Is that not a waste, when the mask hides them? Hidden means
# weight 0, and fresh memory can hold anything:

# %%
# NBVAL_CHECK_OUTPUT
weights = torch.tensor([1.0, 0.0])  # the second place is masked
print(
    (weights * torch.tensor([5.0, 0.0])).sum().item(),
    (weights * torch.tensor([5.0, float("nan")])).sum().item(),
)

# %% [markdown]
# Here is the cache. Its rows have lengths of their own; `set_lengths` says before a padded prefill
# where each prompt ends; `select` and `expand` copy rows, to drop those that have ended and to draw
# several answers from one prefill.


# %%
#| export
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
    cache.set_lengths([9, 2, 5])
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
print("rows now hold", cache.lengths.tolist(), "tokens")

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
with torch.inference_mode():
    laptop(torch.zeros(3, 130, dtype=torch.long), kv_cache=cache)
print(
    f"3 rows of 130 tokens: derived {cache_bytes(laptop.config, 3 * 256, 4):,} bytes, "
    f"taken {cache.nbytes:,}"
)
assert cache.nbytes == cache_bytes(laptop.config, 3 * 256, 4)  # 130 tokens take two blocks of 128
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

import torch
from jaxtyping import Float, Int
from torch import Tensor


# %%
#| export
def sample(
    logits: Float[Tensor, "B V"],
    uniforms: Float[Tensor, " B"],
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Int[Tensor, " B"]:
    """Pick one token a row, by walking along the cumulative probabilities.

    Example: probabilities [0.2, 0.5, 0.3] and a uniform of 0.6 -> 1, because 0.2 <= 0.6 < 0.7.

    Args:
        logits: scores, shape (B, V).
        uniforms: one number in [0, 1) a row, shape (B,), on any device.
        temperature: divides the logits; 0 takes the largest, infinity makes all equally likely.
        top_k: keep only the k largest logits of each row.

    Returns:
        Token ids, shape (B,), int64.

    Raises:
        ValueError: a temperature that is negative or no number, top_k below 1, or a logit that is NaN or infinite.
    """
    if not temperature >= 0 or (top_k is not None and top_k < 1):  # NaN < 0 is false
        raise ValueError(
            f"temperature {temperature} and top_k {top_k}: need >= 0, and >= 1 or None"
        )
    if not bool((logits < math.inf).all()):  # of NaN argmax makes token 0, without a word
        raise ValueError("a logit is NaN or infinite: the weights are damaged; load others")
    if temperature == 0:
        return logits.argmax(-1)
    tokens = None
    if top_k is not None and top_k < logits.shape[-1]:
        logits, tokens = logits.topk(top_k, dim=-1)  # (B, k): the walk is short as well
    temperature = max(temperature, 1e-30)  # below, float32 divides a logit to infinity
    cumulative = torch.softmax(logits.float() / temperature, -1).cumsum(-1)  # (B, V)
    total = cumulative[:, -1:]  # 1 up to rounding
    target = uniforms.to(logits.device)[:, None] * total
    # Rounding may lift target to total: stop at the last token that has any probability.
    choice = torch.minimum((cumulative <= target).sum(-1), (cumulative < total).sum(-1))
    return choice if tokens is None else tokens.gather(1, choice[:, None])[:, 0]


def sampled_logprobs(
    logits: Float[Tensor, "B V"],
    tokens: Int[Tensor, " B"],
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Float[Tensor, " B"]:
    """Return the log-probability with which `sample` draws these tokens, temperature and top-k included.

    Example: logits [0, 0, -9] and token 1 -> about log(1/2); with top_k=1 and token 0 -> 0.

    Args:
        logits: scores, shape (B, V).
        tokens: what was drawn, int64, shape (B,); each counts as one of the k, wherever it ranks.
        temperature: as in `sample`; at 0 what is drawn is certain.
        top_k: as in `sample`.

    Returns:
        Nats, at most 0, shape (B,), float32; gradients flow back to the logits.
    """
    if temperature == 0:
        return logits.new_zeros(len(tokens))
    logits = logits.float() / max(temperature, 1e-30)
    drawn = logits.gather(1, tokens[:, None])[:, 0]
    if top_k is not None and top_k < logits.shape[-1]:
        kth = logits.detach().topk(top_k, dim=-1).values[:, -1]
        logits = logits.masked_fill(logits < torch.minimum(kth, drawn.detach())[:, None], -math.inf)
    return drawn - logits.logsumexp(-1)


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

# %% [markdown]
# ## A small model that is worth listening to
#
# To hear what these parts do we need a model with something to say, and we have a few seconds to
# train it. Its world has two kinds of text:
#
# - **walks** through the alphabet: after each letter comes the next with probability 0.6, the
#   second next with 0.3, the third next with 0.1;
# - **sums** of two digits, asked by a user. The assistant does not compute. It writes the sum
#   between `<|python_start|>` and `<|python_end|>`, a tool answers between `<|output_start|>` and
#   `<|output_end|>`, and the assistant repeats what the tool said.
#
# A tokenizer without any merges (256 bytes and the nine special tokens) is enough for it.

# %%
from nanochat_lib.tokenizer.tokenizer import Tokenizer

tokenizer = Tokenizer.train(["a walk through the alphabet"], vocab_size=256 + 9)
rng = random.Random(5)


def walk_row(length: int = 20) -> tuple[list[int], list[int]]:
    letters = [rng.randrange(26)]
    for _ in range(length - 1):
        letters.append((letters[-1] + rng.choices([1, 2, 3], [6, 3, 1])[0]) % 26)
    ids = tokenizer.encode("".join(chr(ord("a") + i) for i in letters), prepend=tokenizer.bos_id)
    return ids, [1] * len(ids)


# %% [markdown]
# There are 300 sums with the digits 0 to 9 and + - *. We keep 60 of them out of the training, to
# ask later.


# %%
def sum_conversation(question: str) -> dict:
    result = str(eval(question))  # our own text; what a model wrote never goes here, see below
    call = [{"type": "python", "text": question}, {"type": "python_output", "text": result}]
    answer = [*call, {"type": "text", "text": result}]
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


questions = [f"{a}{op}{b}" for a in range(10) for op in "+-*" for b in range(10)]
rng.shuffle(questions)
held_out, trained_on = questions[:60], questions[60:]
ids, mask = tokenizer.render_conversation(sum_conversation("3+4"))
print(tokenizer.decode(ids))
print("supervised:", tokenizer.decode([i for i, m in zip(ids, mask) if m]))

# %% [markdown]
# The mask leaves the tool's output out: the model is never taught to compute 7, only to ask and to
# copy.


# %%
def toy_batch(n_rows: int = 32) -> tuple[Tensor, Tensor]:
    sums = [
        tokenizer.render_conversation(sum_conversation(q))
        for q in rng.choices(trained_on, k=n_rows // 2)
    ]
    rows = sums + [walk_row() for _ in range(n_rows // 2)]
    longest = max(len(ids) for ids, _ in rows)
    idx = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    mask = torch.tensor([mask + [0] * (longest - len(mask)) for _, mask in rows])
    return idx[:, :-1], idx.masked_fill(mask == 0, -1)[:, 1:]


# %%
toy = GPT(
    GPTConfig(
        sequence_len=64,
        vocab_size=tokenizer.vocab_size,
        n_layer=2,
        n_embd=64,
        n_head=2,
        n_kv_head=2,
    )
)
assert toy.num_params() == 139_264
optimizers = build_optimizers(toy, OptimConfig(matrix_lr=0.02, embedding_lr=0.1, head_lr=0.004))
losses, n_steps = [], 150
for step in range(n_steps):
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = group["initial_lr"] * min(1.0, 2 * (1 - step / n_steps))
    loss = toy(*toy_batch())
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    toy.zero_grad()
    losses.append(loss.item())
assert losses[-1] < 1.2 < 5 < losses[0], f"loss went from {losses[0]:.2f} to {losses[-1]:.2f}"

# %% [markdown]
# The first loss is that of a model that knows nothing, $\ln 265 = 5.58$ nats. The floor is not
# zero: a walk's next letter has 1.295 bits of entropy, 0.898 nats, and the first letter more.
#
# Does the model know its sums? We let it go on by itself, without a tool:


# %%
def ask(question: str) -> list[int]:
    return tokenizer.render_for_completion({"messages": [{"role": "user", "content": question}]})


print(tokenizer.decode(slow_greedy(toy, ask("7*8"), n_new=12)))

# %% [markdown]
# It asks correctly, and then has to play the tool itself, which it never learned. It needs the real
# one.
#
# ## The tool: a calculator that cannot be talked into anything
#
# The shortest calculator is Python's `eval`. But this text was written by a model, and people can
# make a model write what they like. `eval` would open files for them; even a pure sum can do harm,
# since `9**9**9` has 369,693,100 digits and would keep the machine busy for a long time. So we turn
# it round: not a list of what is forbidden but a list of what is allowed. Python's own parser gives
# us the tree of an expression without running anything:

# %%
# NBVAL_CHECK_OUTPUT
import ast

print(ast.dump(ast.parse("1 + 2*7", mode="eval").body))

# %% [markdown]
# A tree of numbers and four operators is all we evaluate. No powers: then a text of 200 characters
# cannot name a number of more than about 200 digits. One thing besides sums is worth having,
# `'strawberry'.count('r')`, because a model that reads tokens does not see letters.

# %%
#| default_exp inference.calculator
# The calculator: exact arithmetic on text that a model wrote, and nothing else.

# %%
#| export
import ast
import operator
import re
from fractions import Fraction

# %%
#| export inference.calculator
MAX_CHARACTERS = 200
ALLOWED_TEXT = re.compile(r"""(?:[0-9+\-*/(). ]|'[^'\\]*'|"[^"\\]*"|\.count(?=\())*""")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


# %% [markdown]
# Numbers are read as fractions, digit by digit from the text, so 0.1 + 0.2 is 0.3 and not
# 0.30000000000000004: a model should copy a result, not learn what binary floats do to tenths.


# %%
#| export inference.calculator
def evaluate_node(node: ast.AST, source: str) -> Fraction:
    """Compute one node of a parsed expression, exactly.

    Args:
        node: number, + - * /, sign, or `"text".count("part")`.
        source: the text that was parsed; decimals are read from it, digit by digit.

    Returns:
        The value.

    Raises:
        ValueError: any other kind of node.
        ZeroDivisionError: division by zero.
    """
    match node:
        case ast.Constant(value=int() | float()):
            return Fraction(ast.get_source_segment(source, node))
        case ast.UnaryOp() if type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](evaluate_node(node.operand, source))
        case ast.BinOp() if type(node.op) in OPERATORS:
            left, right = evaluate_node(node.left, source), evaluate_node(node.right, source)
            return OPERATORS[type(node.op)](left, right)
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str(text)), attr="count"),
            args=[ast.Constant(value=str(part))],
            keywords=[],
        ):
            return Fraction(text.count(part))
    raise ValueError(f"{type(node).__name__} is not arithmetic")


# %%
# NBVAL_CHECK_OUTPUT
for source in ("(1 + 2) * 7 / 2", "0.1 + 0.2", "'strawberry'.count('r')"):
    print(source, "=", evaluate_node(ast.parse(source, mode="eval").body, source))

# %% [markdown]
# A result becomes text again: whole numbers in full, others to six decimals.


# %%
#| export inference.calculator
def format_number(value: Fraction) -> str:
    """Write a number the short way: 12, -0.5, or rounded to six decimals, 0.333333."""
    millionths = round(value * 10**6)
    sign = "-" if millionths < 0 else ""
    whole, rest = divmod(abs(millionths), 10**6)
    return f"{sign}{whole}.{rest:06d}".rstrip("0").rstrip(".")


# %%
# NBVAL_CHECK_OUTPUT
print(
    format_number(Fraction(12)),
    format_number(Fraction(-1, 2)),
    format_number(Fraction(1, 3)),
    10**30 == int(format_number(Fraction(10**30))),
)

# %% [markdown]
# `calculate` puts a gate in front: the length, and only characters that a sum or a count can need.
# So no name, no attribute but `count` and no backslash ever reach the parser. Whatever is not
# arithmetic gives `None`.


# %%
#| export inference.calculator
def calculate(expression: str) -> str | None:
    """Work out a small sum, or count letters, without ever running code.

    Example: "(1 + 2) * 7 / 2" -> "10.5"; "'strawberry'.count('r')" -> "3"; "2**9**9" -> None.

    Args:
        expression: + - * /, parentheses, decimals, thousands commas, and `.count()` on quoted
            text; at most 200 characters. Without powers that bounds the result to 200 digits.

    Returns:
        The result, exact for whole numbers, otherwise to six decimals; None for any other text.
    """
    source = expression.strip()
    if "'" not in source and '"' not in source:
        source = THOUSANDS.sub("", source)
    if len(source) > MAX_CHARACTERS or not ALLOWED_TEXT.fullmatch(source):
        return None
    try:
        return format_number(evaluate_node(ast.parse(source, mode="eval").body, source))
    except (SyntaxError, ValueError, ZeroDivisionError, MemoryError, RecursionError):
        return None


# %%
# NBVAL_CHECK_OUTPUT
tries = [
    "12*(3+4)",
    "1,250 / 4",
    "'banana'.count('an')",
    "2/0",
    "9**9**9",
    "__import__('os')",
    "len('abc')",
    "1 +",
]
for text in tries:
    print(f"{text:22} {calculate(text)}")

# %% [markdown]
# Agreement with an independent judge: Python's own integers, on 300 random sums.

# %%
for _ in range(300):
    text = "".join(f"{rng.randint(0, 999)}{rng.choice('+-*')}" for _ in range(5)) + str(
        rng.randint(0, 999)
    )
    assert calculate(text) == str(eval(text)), f"{text}: {calculate(text)}"

# %% [markdown]
# ## One row of the engine
#
# An answer in the making has a state: is it inside a tool call, does a tool have tokens waiting to
# be put in its mouth, has it ended? Each step hands the row the token that the model chose. The row
# takes it, unless a tool has the word: then the waiting token goes in, and the model's choice is
# thrown away. The mask tells the two apart; reinforcement learning needs that, since nobody should
# be praised for what a tool said.
#
# The tool always answers: a call that is no arithmetic gets the output `error`, and one that has not
# ended after 32 tokens is ended for the model, with the same output. Without it the model stands
# where no training has ever stood, and may repeat a token until the context is full; with it, it can
# be taught what to say next (chapter `contact`).

# %%
#| default_exp inference.engine
# The engine: batched and streaming generation, the calculator as a tool.

# %%
#| export
from collections import deque
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from nanochat_lib.inference.calculator import calculate
from nanochat_lib.inference.kv_cache import KVCache
from nanochat_lib.inference.sampling import sample, sampled_logprobs
from nanochat_lib.model.gpt import GPT
from nanochat_lib.tokenizer.conversation import CALL_FAILED
from nanochat_lib.tokenizer.tokenizer import Tokenizer

MAX_CALL = 32  # tokens; the longest sum of our sample of GSM8K has 28 characters


# %%
#| export inference.engine
class Row:
    """Follow one answer: its tokens, what a tool forces next, and whether it has ended."""

    def __init__(self, tokenizer: Tokenizer, budget: int) -> None:
        """Start an empty answer of at most `budget` tokens."""
        self.tokenizer, self.budget = tokenizer, budget
        self.tokens: list[int] = []
        self.mask: list[int] = []
        self.logprobs: list[float] = []  # one a token, and one for the stop token if it came
        self.last = tokenizer.bos_id
        self.finished = self.stopped = False
        self._forced: deque[int] = deque()
        self._expression: list[int] | None = None  # the tokens since python_start

    def accept(
        self, sampled: int, stop_tokens: frozenset[int], logprob: float = 0.0
    ) -> tuple[int, int]:
        """Take the sampled token, unless the row has ended or a tool has the word.

        Args:
            sampled: what the model chose.
            stop_tokens: ids that end the answer; they are not kept in `tokens`.
            logprob: of the choice, in nats; a forced token has 0.

        Returns:
            The row's token for this step, and 1 when the model chose it, 0 when it was forced. A
            row that has ended repeats its last token with 0.
        """
        if self.finished:
            return self.last, 0
        mask = 0 if self._forced else 1
        self.last = self._forced.popleft() if self._forced else sampled
        self.logprobs.append(logprob if mask else 0.0)
        if mask and self.last in stop_tokens:
            self.finished = self.stopped = True
            return self.last, 1
        self.tokens.append(self.last)
        self.mask.append(mask)
        if mask:
            self._watch_for_tool(self.last)
        self.finished = len(self.tokens) >= self.budget
        return self.last, mask

    def _watch_for_tool(self, token: int) -> None:
        """Collect what stands in a tool call; queue the calculator's answer when it ends."""
        special = self.tokenizer.encode_special
        if token == special("<|python_start|>"):
            self._expression = []
        elif self._expression is not None:
            ended, result = token == special("<|python_end|>"), None
            if ended:
                result = calculate(self.tokenizer.decode(self._expression))
            self._expression.append(token)
            if ended or len(self._expression) > MAX_CALL:
                self._expression = None
                output = self.tokenizer.encode(result or CALL_FAILED)
                answer = [special("<|output_start|>"), *output, special("<|output_end|>")]
                self._forced.extend(answer if ended else [special("<|python_end|>"), *answer])


# %% [markdown]
# We play the model and write `3+4` into a tool call, then `3 apples`. After `<|python_end|>` we offer
# nothing but `?`, and the row takes it only when the tool has finished.

# %%
# NBVAL_CHECK_OUTPUT
special = tokenizer.encode_special
stop, question_mark = special("<|assistant_end|>"), tokenizer.encode("?")[0]
for call in ("3+4", "3 apples"):
    row = Row(tokenizer, budget=40)
    ids = [special("<|python_start|>"), *tokenizer.encode(call), special("<|python_end|>")]
    for token in [*ids, *[question_mark] * 20]:
        row.accept(token, frozenset({stop}))
        if token == question_mark and row.mask[-1]:
            break
    row.accept(stop, frozenset({stop}))
    print(tokenizer.decode(row.tokens))
    print(row.mask, "ended" if row.finished else "goes on")

# %% [markdown]
# ## The engine
#
# Now everything comes together: pad and prefill, draw, let the rows accept, feed their tokens back.
# Rows that have ended are dropped from the batch when half of it has gone, because dropping copies
# the cache. And no row may pass the end of the context: the RoPE tables stop there, and so does
# everything the model has learned. A prompt that leaves no room is an error; an answer that reaches
# the end is cut.


# %%
#| export inference.engine
class Engine:
    """Generate from a model: many prompts at once, streaming, with the calculator as a tool."""

    def __init__(self, model: GPT, tokenizer: Tokenizer) -> None:
        """Keep the model and tokenizer; weights are not copied."""
        self.model, self.tokenizer = model, tokenizer
        self.stop_tokens = frozenset(
            {tokenizer.encode_special("<|assistant_end|>"), tokenizer.bos_id}
        )

    def generate(
        self,
        tokens: list[int],
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Stream num_samples answers to one prompt, a column of tokens a step.

        Args:
            tokens: the prompt's ids.
            num_samples: answers; each is drawn on its own, from the first token on.
            max_tokens: longest answer; None goes on to the end of the context.
            temperature: 0 for the most likely token, 1 for the model's own odds.
            top_k: draw only among the k most likely tokens.
            seed: the same seed gives the same answers.

        Yields:
            (tokens, mask), num_samples long each. Mask is 1 for a token that the model chose, 0 for
            one that a tool forced and for a row that has ended. A row's last token may be a stop
            token.

        Raises:
            ValueError: the prompt is empty or leaves no room in the context.
        """
        rows = self._start_rows([tokens], num_samples, max_tokens)
        return self._columns([tokens], rows, temperature, top_k, seed)

    def generate_batch(
        self,
        prompts: list[list[int]],
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 42,
        num_samples: int = 1,
    ) -> list[tuple[list[int], list[int]]]:
        """Answer many prompts of any lengths in one batch.

        Args:
            prompts: one list of ids a prompt.
            max_tokens: longest answer; None goes on to the end of the context.
            temperature: as in `generate`; greedy unless told otherwise.
            top_k: as in `generate`.
            seed: as in `generate`.
            num_samples: answers to each prompt; those of one prompt stand together in the result.

        Returns:
            (tokens, mask) for each answer: without the prompt, and without the stop token.

        Raises:
            ValueError: a prompt is empty or leaves no room in the context.
        """
        rows = self.rollouts(prompts, max_tokens, temperature, top_k, seed, num_samples)
        return [(row.tokens, row.mask) for row in rows]

    def rollouts(
        self,
        prompts: list[list[int]],
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
        num_samples: int = 1,
    ) -> list[Row]:
        """Answer as `generate_batch`, and return each answer's whole row: log-probabilities, and how it ended."""
        if not prompts:
            return []
        rows = self._start_rows(prompts, num_samples, max_tokens)
        for _ in self._columns(prompts, rows, temperature, top_k, seed):
            pass
        return rows

    def _start_rows(
        self, prompts: list[list[int]], num_samples: int, max_tokens: int | None
    ) -> list[Row]:
        """Check the prompts and give every answer its budget of tokens."""
        limit = self.model.config.sequence_len
        if num_samples < 1 or (max_tokens is not None and max_tokens < 1):
            raise ValueError(
                f"num_samples {num_samples} and max_tokens {max_tokens}: need at least 1"
            )
        for i, prompt in enumerate(prompts):
            if not 1 <= len(prompt) < limit:
                raise ValueError(
                    f"prompt {i} has {len(prompt)} tokens, the context has {limit}: it needs at "
                    "least one token and room for one more; shorten it"
                )
        rooms = [limit - len(prompt) for prompt in prompts for _ in range(num_samples)]
        return [Row(self.tokenizer, min(room, max_tokens or room)) for room in rooms]

    # Each step is decorated: around the generator below, the mode could leak into the caller.
    @torch.inference_mode()
    def _prefill(
        self, prompts: list[list[int]], num_samples: int, max_len: int
    ) -> tuple[Tensor, KVCache]:
        """Read all prompts in one pass; return the logits (B, V) that follow, and the cache."""
        weight = next(self.model.parameters())
        lengths = [len(prompt) for prompt in prompts]
        padded = [p + [self.tokenizer.bos_id] * (max(lengths) - len(p)) for p in prompts]
        cache = KVCache(self.model.config, len(prompts), max_len, weight.device, weight.dtype)
        cache.set_lengths(lengths)
        logits = self.model(torch.tensor(padded, device=weight.device), kv_cache=cache)  # (B, T, V)
        rows = torch.arange(len(prompts), device=weight.device)
        logits = logits[rows, cache.lengths - 1]  # (B, V)
        if num_samples > 1:
            logits, cache = logits.repeat_interleave(num_samples, 0), cache.expand(num_samples)
        return logits, cache

    @torch.inference_mode()
    def _decode(self, tokens: list[int], cache: KVCache) -> Float[Tensor, "B V"]:
        """Feed one token a row; return the logits for the next."""
        return self.model(
            torch.tensor(tokens, device=cache.lengths.device)[:, None], kv_cache=cache
        )[:, -1]

    def _columns(
        self,
        prompts: list[list[int]],
        rows: list[Row],
        temperature: float,
        top_k: int | None,
        seed: int,
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Prefill, then decode until every row has ended; yield each step's tokens and mask."""
        generator = torch.Generator().manual_seed(seed)
        num_samples = len(rows) // len(prompts)
        max_len = max(len(prompts[i // num_samples]) + row.budget for i, row in enumerate(rows))
        logits, cache = self._prefill(prompts, num_samples, max_len)
        held = list(range(len(rows)))  # the rows that the cache holds
        while True:
            # A number for every row, ended or not: no row's luck depends on its neighbours.
            uniforms = torch.rand(len(rows), generator=generator)[held]
            drawn = sample(logits, uniforms, temperature, top_k)
            odds = sampled_logprobs(logits, drawn, temperature, top_k)
            sampled = dict(zip(held, zip(drawn.tolist(), odds.tolist())))
            column = []
            for i, row in enumerate(rows):
                token, logprob = sampled.get(i, (row.last, 0.0))
                column.append(row.accept(token, self.stop_tokens, logprob))
            yield [token for token, _ in column], [mask for _, mask in column]
            active = [i for i in held if not rows[i].finished]
            if not active:
                return
            # Dropping copies the cache: wait until half has ended, or ended rows need room.
            if len(active) <= len(held) // 2 or cache.longest == cache.max_len:
                cache, held = cache.select([held.index(i) for i in active]), active
            logits = self._decode([rows[i].last for i in held], cache)


# %% [markdown]
# The judge first: greedy answers of the shaken model, six prompts of different lengths in one
# batch, against the slow way.

# %%
prompts = [
    torch.randint(0, 1000, (n,), generator=generator).tolist() for n in (3, 40, 17, 5, 28, 11)
]
wide_tokenizer = Tokenizer.train(["a walk through the alphabet"], vocab_size=256 + 9)
answers = Engine(laptop, wide_tokenizer).generate_batch(prompts, max_tokens=8)
for tokens, (answer, _) in zip(prompts, answers):
    slow = slow_greedy(laptop, tokens, n_new=8)
    assert answer == slow[: len(answer)], f"{answer} is not {slow}"

# %% [markdown]
# ## Use it: sixty sums it never saw

# %%
engine = Engine(toy, tokenizer)
answers = engine.generate_batch([ask(q) for q in held_out], max_tokens=20)
texts = [tokenizer.decode(tokens) for tokens, _ in answers]
right = sum(text.endswith(f"<|output_end|>{eval(q)}") for q, text in zip(held_out, texts))
print(texts[0])
print(f"{right} of {len(held_out)} held-out sums are right")
assert right > 40, f"only {right} right: are the forced tokens fed back to the model?"

# %% [markdown]
# The same model that could not tell 7*8 from anything now gets nearly all of them: it learned to
# ask and to copy, and these it can do for digits it has not seen together. None of its 139,264
# weights had to learn how to multiply.
#
# `generate` streams. Each step is a column: one token for every sample.

# %%
for column, mask in engine.generate(ask(held_out[1]), temperature=0.0):
    print(f"{tokenizer.decode(column)!r:18} {'tool' if mask == [0] else 'model'}")

# %% [markdown]
# Did the walks come out with the right odds? We continue the letter `d` 500 times and count what
# comes next: `e`, `f`, `g` should have 0.6, 0.3, 0.1. (One prefill serves all 500: `expand` copies
# its cache.)


# %%
def first_letters(temperature: float, top_k: int | None = None) -> Counter:
    start = tokenizer.encode("d", prepend=tokenizer.bos_id)
    samples = engine.generate(
        start, num_samples=500, max_tokens=1, temperature=temperature, top_k=top_k
    )
    column, _ = next(samples)
    return Counter(tokenizer.decode([token]) for token in column)


# %%
for temperature, top_k in ((1.0, None), (0.5, None), (1.0, 2), (0.0, None)):
    counts = first_letters(temperature, top_k).most_common(4)
    print(
        f"temperature {temperature}, top-k {top_k}:",
        ", ".join(f"{letter} {n / 500:.2f}" for letter, n in counts),
    )
share = first_letters(1.0)["e"] / 500
assert 0.4 < share < 0.8, f"the next letter came {share:.0%} of the time, 60% are expected"

# %% [markdown]
# ## What goes wrong: one first token for everybody
#
# An early version of a well-known engine prefilled one row, drew the first token from it, and only
# then copied the row for the samples. All samples of a prompt began with the same token, and
# nothing failed: the texts differed further on. But the first token is often where the choice lies.
# In reinforcement learning all samples of a question would start down the same road.


# %%
def shared_first_token(n_samples: int, seed: int) -> list[str]:
    start = tokenizer.encode("d", prepend=tokenizer.bos_id)
    [(first, _)] = engine.generate_batch([start], max_tokens=1, temperature=1.0, seed=seed)
    rest = engine.generate_batch(
        [start + first] * n_samples, max_tokens=7, temperature=1.0, seed=seed
    )
    return [tokenizer.decode(first + tokens) for tokens, _ in rest]


broken = shared_first_token(n_samples=20, seed=6)
start = tokenizer.encode("d", prepend=tokenizer.bos_id)
samples = engine.generate_batch([start], max_tokens=8, temperature=1.0, seed=6, num_samples=20)
fixed = [tokenizer.decode(tokens) for tokens, _ in samples]
print("broken:", broken[:5], "\nfixed: ", fixed[:5])
assert len({text[0] for text in broken}) == 1 < len({text[0] for text in fixed})

# %% [markdown]
# The fix is one line in `_prefill`: copy the *logits* to all samples, and draw afterwards, with one
# uniform number each.
#
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
mixed = [ask(q) for q in held_out[:6]] + [walk_row(length)[0] for length in (2, 3, 5, 9, 13, 16)]
longest = max(len(tokens) for tokens in mixed)
left = torch.tensor([[0] * (longest - len(tokens)) + tokens for tokens in mixed])
right = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in mixed])
with torch.inference_mode():
    alone = torch.stack([toy(torch.tensor([tokens]))[0, -1] for tokens in mixed]).softmax(
        -1
    )  # (B, V)
    guesses = {
        "pads on the left, no mask": toy(left)[:, -1],
        "pads on the right, last column": toy(right)[:, -1],
        "pads on the right, own column": toy(right)[range(12), [len(t) - 1 for t in mixed]],
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
# token is drawn per row from tempered odds, or forced by a tool that evaluates a whitelist and
# nothing else. What broke in the field broke silently; the slow way catches it.
#
# In the library now: `KVCache` in `nanochat_lib.inference.kv_cache`, `calculate` in
# `nanochat_lib.inference.calculator`, `sample` and `Engine` in `nanochat_lib.inference.engine`. The
# exercises ask for another way to cut the tail of the odds, for a draft model that makes decoding
# faster without changing a single probability, and for how few bits a weight can do with. The next chapter prepares the conversations
# and tasks whose answers this engine will write.
