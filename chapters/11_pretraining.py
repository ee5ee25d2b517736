# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Pretraining: from shards of text to a trained model
#
# A model, a tokenizer, an optimizer and a folder of text: what is missing is everything that turns
# them into a training run of minutes or days. Documents have to become rows. The learning rate has
# to rise and fall. A batch that does not fit into memory has to be split without changing the
# gradient. And when the power fails after nine hours, the tenth must go on as if nothing had
# happened. At the end, one call does it all:
#
# ```python
# pretrain(PretrainConfig(depth=4), shards_train, shards_val, tokenizer, folder)
# ```
#
# It needs the chapters on text, the tokenizer, bits per byte, the transformer and the optimizer. On
# a laptop the chapter takes about 35 seconds.

# %%
#| default_exp training.loader
# Pack documents into batches of rows, and resume to the token.

# %%
#| export
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


# %%
import tempfile

import matplotlib.pyplot as plt

# %% [markdown]
# ## Rows of equal length from documents of any length
#
# The model reads B rows of T tokens. Documents have any length. Take four documents of 3, 6, 4 and
# 2 tokens and rows of 10. There are three ways to fill rows:
#
# 1. **One document a row.** Nothing is mixed, but of 4 x 10 slots only 15 hold text; the rest is
# padding, and the computer multiplies it all the same.
# 2. **Glue and cut.** All documents in one long string, cut every 10 tokens. No slot is wasted, but
# most rows start in the middle of a document: the model is asked to continue text whose beginning
# it cannot see.
# 3. **Pack.** Each row starts with the beginning of a document; then we add, again and again, the
# longest document that fits into what is left. When none fits, one is cropped.
#
# Packing is what we build. By hand: the row opens with the oldest document (3 tokens), so 7 are
# left; of 6, 4 and 2 the longest that fits is 6; one slot is left, nothing fits, and the shortest
# is cropped to it. One token of 11 is lost.


# %%
#| export
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


# %%
documents = [[1] * 3, [2] * 6, [3] * 4, [4] * 2]
row = take_document(documents, 10, oldest=True) + take_document(documents, 7)
row = (row + take_document(documents, 1))[:10]
assert row == [1] * 3 + [2] * 6 + [4], f"got {row}: longest that fits, else shortest?"
assert documents == [[3] * 4]

# %% [markdown]
# The oldest document opens each row for two reasons. Without it, an awkward length could wait in
# the buffer for ever. And the order of the file survives, roughly: our laptop run relies on easy
# lists coming before stories.
#
# The loader around it keeps a small buffer of tokenized documents. A row takes T + 1 tokens: the
# first T are the inputs, the last T are the targets. Between two documents the target is `<|bos|>`,
# so the model learns where documents end. When the documents run out (`loop=False`, for validation)
# the rest is padding with target -1, which costs nothing.


# %%
#| export
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


# %% [markdown]
# We need some real text. The docstrings of Python's standard library are documents of very
# different lengths, and every installation has them. The last tenth is kept for validation.

# %%
from nanochat_lib.data.documents import list_shards, python_docs, write_shards

scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)
texts = list(islice(python_docs(), 80, 1380))
shards_train = write_shards(
    texts[:1200], folder / "train", documents_per_shard=400, row_group_size=100
)
shards_val = write_shards(texts[1200:], folder / "validation")
tokenizer = Tokenizer.train(texts[:1200], vocab_size=512)

# %%
# NBVAL_CHECK_OUTPUT
loader = PackingLoader(shards_train, tokenizer, batch_size=8, sequence_len=128)
inputs, targets = next(loader)
print(tuple(inputs.shape), inputs.dtype)
assert (inputs[:, 0] == tokenizer.bos_id).all(), "every row starts with the beginning of a document"
assert torch.equal(inputs[:, 1:], targets[:, :-1]), "targets are the inputs, one later"

# %% [markdown]
# ## What packing costs
#
# Cropping loses text. How much, and how does it compare with the other two ways? We count for one
# pass over the training documents.

# %%
lengths = [len(ids) for ids in tokenizer.encode(texts[:1200], prepend=tokenizer.bos_id)]
capacity = 129
kept = [min(length, capacity) for length in lengths]
starts = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
cut_rows = sum(lengths) // capacity
clean = sum(start % capacity == 0 for start in starts.tolist())
print(f"one document a row: {1 - sum(kept) / (capacity * len(kept)):.0%} of the slots are padding")
print(f"glue and cut: {1 - clean / cut_rows:.0%} of the rows start in the middle of a document")

# %%
cropped = {}
for size in (1, 4, 16, 64, 256):
    one_pass = PackingLoader(shards_train, tokenizer, 1, 128, loop=False, buffer_documents=size)
    n_rows = sum(1 for _ in one_pass)
    cropped[size] = one_pass.tokens_cropped / one_pass.tokens_read
    print(f"buffer of {size:3d}: {n_rows} rows, {cropped[size]:.1%} of the tokens cropped")
too_long = 1 - sum(kept) / sum(lengths)
print(f"in documents longer than a row: {too_long:.1%}")
assert too_long < cropped[256] < cropped[16] < cropped[1]

# %% [markdown]
# Most of the loss is not packing's: it is the tails of documents longer than a row, and no buffer
# helps there, only a larger T. What packing itself adds shrinks with the buffer, because with more
# documents to choose from something nearly always fits. nanochat accepts about a third of its web
# text lost at T = 2,048 for rows that all start clean; text is cheap, compute is not. Where text is
# scarce, glue and cut is the better bargain.
#
# ## A loader that can be put down and picked up
#
# A loader's state is the position of the next document *and* the documents that wait in the buffer.
# `state_dict()` returns both as plain JSON. To check it, we save after three batches, read two
# more, and ask a fresh loader with the saved state for its next two.

# %%
import json

for _ in range(2):
    next(loader)
saved = json.loads(json.dumps(loader.state_dict()))
expected = [next(loader), next(loader)]
again = PackingLoader(shards_train, tokenizer, batch_size=8, sequence_len=128)
again.load_state_dict(saved)
for (x, y), (x_expected, y_expected) in zip((next(again), next(again)), expected):
    assert torch.equal(x, x_expected) and torch.equal(y, y_expected), "is the buffer in the state?"

# %% [markdown]
# ## The next batch while this one is learned
#
# Reading, tokenizing and packing take Python's time, and the step would wait for them. A second thread
# can do them while the step computes: most of a step runs in C++, which lets other threads go on. The
# trap is the state. When the step saves, the loader has already read one batch too far, and a resumed
# run would skip it. So the state is taken *with* each batch, and handed out with it. What is wrong with
# a batch shows up when it is asked for, not before.


# %%
#| export
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


# %% [markdown]
# The same check again, with a batch always prepared in advance.

# %%
ahead = Prefetch(PackingLoader(shards_train, tokenizer, batch_size=8, sequence_len=128))
alone = PackingLoader(shards_train, tokenizer, batch_size=8, sequence_len=128)
for _ in range(3):
    assert all(torch.equal(a, b) for a, b in zip(next(ahead), next(alone)))
assert ahead.state_dict() == alone.state_dict(), "the state of a batch that nobody has seen"
ahead.close()

# %% [markdown]
# ## One step: how large, how fast
#
# Now the step. Its sizes and its schedule sit in one frozen dataclass. `total_batch_tokens` is what
# the optimizer sees, `device_batch_size` what fits into memory; their ratio is the number of
# micro-batches.

# %%
#| default_exp training.step
# Do one step of training: its sizes, its learning rate, its gradient, with or without a compiler.

# %%
#| export training.step
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nanochat_lib.common import print0
from nanochat_lib.training.fused import loss_function


# %%
#| export training.step
@dataclass(frozen=True)
class LoopConfig:
    """Say how long to train, in which portions, and how the learning rate moves.

    `steps` updates of `total_batch_tokens` each, in micro-batches of device_batch_size x sequence_len tokens. The
    rate rises over the first warmup_fraction of the steps and falls to final_lr_fraction over the last
    cooldown_fraction. `eval_every` counts steps, 0 for never. `grad_clip` bounds the gradient's norm, 0 for no
    bound. `dtype` is "auto" or a format that pick_dtype knows; `compile` is "auto", "on" or "off".
    """

    steps: int = 1000
    device_batch_size: int = 8
    sequence_len: int = 256
    total_batch_tokens: int = 2048
    warmup_fraction: float = 0.0
    cooldown_fraction: float = 0.5
    final_lr_fraction: float = 0.0
    eval_every: int = 0
    save_seconds: float = 30.0
    grad_clip: float = 0.0
    dtype: str = "auto"
    compile: str = "auto"

    def __post_init__(self) -> None:
        micro = self.device_batch_size * self.sequence_len
        if micro < 1 or self.total_batch_tokens < 1 or self.total_batch_tokens % micro:
            raise ValueError(
                f"total_batch_tokens={self.total_batch_tokens} is no multiple of device_batch_size x "
                f"sequence_len = {micro}: change one of them"
            )
        for name in ("warmup_fraction", "cooldown_fraction", "final_lr_fraction"):
            if not 0 <= getattr(self, name) <= 1:  # so written, NaN fails too
                raise ValueError(f"{name}={getattr(self, name)}: must lie between 0 and 1")
        if not (self.grad_clip >= 0 and self.save_seconds >= 0):
            raise ValueError(
                f"grad_clip={self.grad_clip} and save_seconds={self.save_seconds}: need 0 or more"
            )
        if self.compile not in ("auto", "on", "off"):
            raise ValueError(f"compile={self.compile!r} is unknown: use 'auto', 'on' or 'off'")

    @property
    def micro_batches(self) -> int:
        """Micro-batches whose gradients make one step."""
        return self.total_batch_tokens // (self.device_batch_size * self.sequence_len)


# %% [markdown]
# The learning rate is a trapezoid: an optional warmup, a constant stretch, and a straight line down
# over the last part. The line down matters most: at a constant rate the weights keep jumping around
# the valley's floor, and they settle as the steps shrink (we measure what that is worth below, once we
# can train). Unlike a cosine, the trapezoid does not need to know its length until the cooldown begins.


# %%
#| export training.step
def lr_multiplier(step: int, config: LoopConfig) -> float:
    """Compute what to multiply every initial learning rate by at a step: a trapezoid.

    Example: 10 steps, no warmup, cooldown 0.5 to 0 -> 1 for steps 0 to 5, then 0.8, 0.6, 0.4, 0.2.

    Args:
        step: updates done before this one, from 0 to steps - 1.
        config: steps and the three fractions.

    Returns:
        A factor above 0 and up to 1.
    """
    warmup = round(config.warmup_fraction * config.steps)
    cooldown = round(config.cooldown_fraction * config.steps)
    if step < warmup:
        return (step + 1) / warmup
    if step <= config.steps - cooldown:
        return 1.0
    share = (config.steps - step) / cooldown
    final = config.final_lr_fraction
    return final + share * (1 - final)  # in this order rounding cannot make it rise


# %%
# NBVAL_CHECK_OUTPUT
ten = LoopConfig(steps=10, cooldown_fraction=0.5)
print([round(lr_multiplier(step, ten), 2) for step in range(10)])
warm = LoopConfig(steps=10, warmup_fraction=0.2, cooldown_fraction=0.3, final_lr_fraction=0.1)
print([round(lr_multiplier(step, warm), 2) for step in range(10)])

# %%
# alt: Three trapezoids over 1,000 steps that differ in warmup, cooldown and final value.
shapes = {
    "cooldown half (our default)": LoopConfig(steps=1000),
    "warmup 5%, cooldown 20%": LoopConfig(steps=1000, warmup_fraction=0.05, cooldown_fraction=0.2),
    "cooldown 80% to a tenth": LoopConfig(steps=1000, cooldown_fraction=0.8, final_lr_fraction=0.1),
}
fig, ax = plt.subplots(figsize=(6.5, 3))
for (name, config), colour in zip(shapes.items(), ("tab:blue", "tab:orange", "tab:green")):
    ax.plot([lr_multiplier(step, config) for step in range(1000)], color=colour, label=name)
ax.set(xlabel="step", ylabel="factor on every rate", ylim=(0, 1.05))
ax.legend(frameon=False, fontsize=8)
plt.tight_layout()
plt.show()

# %% [markdown]
# *The rate never reaches zero inside a run: the last step still moves the weights, by 1/500 of the
# full rate in blue.*
#
# ## Many small batches, one gradient
#
# Suppose 4 targets have losses 2, 1, 1, 1: the mean is 1.25. Split them into two micro-batches, of
# 1 and of 3 targets. Their means are 2 and 1, and the mean of the means is 1.5. The lone target
# counted three times as much as each of the others. Weighted by the number of targets,
# $\frac14\cdot 2 + \frac34\cdot 1 = 1.25$, all is well.
#
# In pretraining all rows are full and the two agree. In fine-tuning only the assistant's words are
# targets, micro-batches differ by factors, and the error is real: in October 2024 it was found in
# several widely used training libraries at once. So the loop counts targets always.


# %%
#| export training.step
def accumulate_gradient(
    model: Callable[..., Tensor],
    batches: list[tuple[Tensor, Tensor]],
    device: torch.device,
    scaler: torch.amp.GradScaler | None = None,
) -> Tensor:
    """Add to the gradient as one large batch of all micro-batches would.

    Each micro-batch's mean loss is weighted by its number of targets, so unequal ones are not distorted.

    Args:
        model: called as model(inputs, targets), returns the mean loss over targets that are not -1.
        batches: pairs (inputs, targets), int64, shape (B, T) each.
        device: where the model is.
        scaler: multiplies the loss, and so the gradient, where float16 needs it.

    Returns:
        The mean loss over all targets, detached, a scalar on the device.
    """
    counts = [int((targets != -1).sum()) for _, targets in batches]
    total = torch.zeros((), device=device)
    for count, (inputs, targets) in zip(counts, batches):
        loss = model(inputs.to(device), targets.to(device))
        if len(batches) > 1:
            loss = loss * (count / max(1, sum(counts)))
        (loss if scaler is None else scaler.scale(loss)).backward()
        total += loss.detach()
    return total


# %% [markdown]
# The check: one batch of 8 rows, where row i has targets only in its first 16·(i + 1) positions,
# against the same rows in four micro-batches. Gradients must agree to rounding; the mean of means
# must not.

# %%
from nanochat_lib.model.gpt import GPT, GPTConfig


def tiny_gpt() -> GPT:
    """A small GPT whose output layer is not zero, so that all gradients flow."""
    model = GPT(GPTConfig(64, 2, 2, sequence_len=128, vocab_size=512, n_layer=1))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.1, generator=generator)
    return model


# %%
model, cpu = tiny_gpt(), torch.device("cpu")
ragged = targets.clone()
for i in range(8):
    ragged[i, 16 * (i + 1) :] = -1
large_loss = accumulate_gradient(model, [(inputs, ragged)], cpu)
large = [p.grad.clone() for p in model.parameters()]

# %%
micro = [(inputs[i : i + 2], ragged[i : i + 2]) for i in range(0, 8, 2)]
model.zero_grad()
loss = accumulate_gradient(model, micro, cpu)
worst = max(float((p.grad - g).norm() / g.norm()) for p, g in zip(model.parameters(), large))
assert worst < 1e-4 and torch.isclose(loss, large_loss), f"{worst:.1e}: weighted by targets?"

# %%
model.zero_grad()
for x, y in micro:
    (model(x, y) / len(micro)).backward()
naive = max(float((p.grad - g).norm() / g.norm()) for p, g in zip(model.parameters(), large))
print(f"mean of means: off by {naive:.0%} of the gradient; weighted: {worst:.0e}")
assert naive > 0.05

# %% [markdown]
# Some runs also clip: if the gradient's length over all weights exceeds a bound, it is scaled down
# to it, so that one absurd batch cannot throw the model far. Muon's steps have a fixed size anyway,
# so our default is off. torch has the function; by hand, (3, 4) has length 5 and is clipped to
# (0.6, 0.8):

# %%
p = nn.Parameter(torch.zeros(2))
p.grad = torch.tensor([3.0, 4.0])
length = torch.nn.utils.clip_grad_norm_([p], 1.0)
assert length == 5 and torch.allclose(p.grad, torch.tensor([0.6, 0.8]), atol=1e-5)

# %% [markdown]
# ## To compile or not
#
# `torch.compile` turns the model into fused C++ or GPU code. On a GPU that always pays. On a CPU it
# needs a C++ compiler and many seconds before the first step (chapter `speed` has the figures): worth
# it above some amount of work. The decision must depend on the configuration alone, never on what is
# left to do, because compiled arithmetic rounds differently and a resumed run has to decide as the
# first one did.

# %%
#| export training.step
COMPILE_PAYS_FLOPS = (
    1e13  # about twice the work that compiling must speed up by a third to pay for itself
)


# %%
#| export training.step
def should_compile(model: nn.Module, config: LoopConfig, device: torch.device) -> bool:
    """Decide whether torch.compile pays, from the configuration alone, so that a resumed run agrees.

    Args:
        model: its size counts.
        config: `compile` "on" and "off" decide by themselves.
        device: CUDA always pays; a CPU needs a C++ compiler and enough work.
    """
    if config.compile != "auto" or device.type == "cuda":
        return config.compile != "off"
    compilers = [os.environ.get("CXX"), "g++", "clang++", "cl"]
    if device.type != "cpu" or not any(shutil.which(name) for name in compilers if name):
        return False
    n_params = sum(p.numel() for p in model.parameters())
    return 6 * n_params * config.total_batch_tokens * config.steps >= COMPILE_PAYS_FLOPS


# %%
#| export training.step
def compile_or_eager(
    model: nn.Module, config: LoopConfig, device: torch.device
) -> Callable[..., Tensor]:
    """Compile the model if it pays and works here; otherwise compute its loss as fast as without.

    One forward and backward on zeros shows whether it works; the gradient is thrown away.
    """
    if not should_compile(model, config, device):
        return loss_function(model)
    try:
        compiled = loss_function(model, compiled=True)
        zeros = torch.zeros(config.device_batch_size, config.sequence_len, dtype=torch.long)
        accumulate_gradient(compiled, [(zeros, zeros)], device)
    except (RuntimeError, OSError, ImportError) as error:  # the compilers fail in many ways
        print0(f"torch.compile does not work here ({type(error).__name__}): training without it")
        compiled = loss_function(model)
    model.zero_grad(set_to_none=True)
    return compiled


# %%
short = LoopConfig(steps=10, compile="auto")
assert not should_compile(model, short, cpu), "ten steps never pay back a cold start"
assert should_compile(model, LoopConfig(steps=10, compile="on"), cpu)

# %% [markdown]
# ## What must be saved?
#
# A checkpoint holds what the next step depends on: weights, optimizer states with their step
# counters, the loader's state, the step, and, for the report, the losses so far. The workshop chapter
# "checkpoints" writes it: whole or not at all, and refused under another tokenizer, whose ids would
# mean other tokens.

# %%
from nanochat_lib.training.checkpoint import latest_checkpoint, load_model, save_checkpoint
from nanochat_lib.training.optim import build_optimizers

model = tiny_gpt()
meta = {"config": asdict(model.config), "tokenizer_hash": tokenizer.hash}
path = save_checkpoint(folder / "demo", 1, model, build_optimizers(model), meta)
loaded, _ = load_model(folder / "demo", tokenizer)
assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters()))

# %% [markdown]
# ## The loop
#
# What a run has to remember besides weights fits into five fields. A folder that holds another run,
# of other sizes or another number of steps, is refused: continuing it would give neither run.

# %%
#| default_exp training.loop
# The one training loop that pretraining and fine-tuning share.

# %%
#| export training.loop
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from nanochat_lib.common import atomic_write, pick_dtype
from nanochat_lib.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    read_meta,
    save_checkpoint,
)
from nanochat_lib.training.loader import Prefetch
from nanochat_lib.training.precision import prepare
from nanochat_lib.training.progress import ProgressBar, postpone_interrupt


# %%
#| export training.loop
@dataclass
class Run:
    """Hold all that a run must remember besides the weights; a checkpoint's meta has the same keys."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    evals: list[list] = field(default_factory=list)  # pairs [step, value]
    seconds: float = 0.0  # spent in steps that were saved
    pending: list[Tensor] = field(default_factory=list)  # losses still on the device

    def history(self) -> dict:
        """Read pending losses from the device, once for many steps, and return what JSON can hold."""
        if self.pending:
            self.losses += torch.stack(self.pending).tolist()
            self.pending = []
        names = ("step", "losses", "evals", "seconds")
        return {name: getattr(self, name) for name in names}


# %%
#| export training.loop
FREE_TO_CHANGE = (
    "save_seconds",
    "eval_every",
    "compile",
)  # settings that a resumed run may have different


# %%
#| export training.loop
def check_same_run(saved: dict, now: dict, path: Path) -> None:
    """Refuse to continue a run under settings that would make it another run.

    Raises:
        ValueError: a setting differs, with both values.
    """
    for part in ("config", "loop"):
        then = saved.get(part) or {}
        for name, value in (now.get(part) or {}).items():
            if name in then and then[name] != value and name not in FREE_TO_CHANGE:
                raise ValueError(
                    f"{path} was trained with {name}={then[name]}, now {name}={value}: "
                    "use another folder, or the old setting"
                )


# %% [markdown]
# `Trainer` knows how to do each thing: resume, make a step, evaluate, save, sum up. All state that
# crosses a step is in the model, the optimizers, the loader and `Run`; no random numbers are drawn,
# and the learning rate is computed from the step's number. That is the whole secret of an exact
# resume.


# %%
#| export training.loop
class Trainer:
    """Do the steps of one run; `train` decides when to save and to stop.

    Args:
        model: trained in place; called as model(inputs, targets) for the mean loss.
        optimizers: their groups carry "initial_lr".
        loader: yields (inputs, targets), has state_dict and load_state_dict.
        config: of the loop.
        folder: where checkpoints go.
        meta: saved with each checkpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        loader: Iterator,
        config: LoopConfig,
        folder: Path,
        meta: dict,
    ) -> None:
        self.model, self.optimizers, self.loader = model, optimizers, loader
        self.config, self.folder = config, Path(folder)
        self.meta = json.loads(
            json.dumps(meta | {"loop": asdict(config)})
        )  # as a reload will see it
        self.run = Run()
        self.device = next(model.parameters()).device
        dtype = pick_dtype(self.device, config.dtype)
        prepare(model, optimizers, dtype)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self.forward: Callable[..., Tensor] = model

    def resume(self) -> None:
        """Continue from the newest checkpoint in the folder, if there is one."""
        path = latest_checkpoint(self.folder)
        if path is None:
            return
        saved = read_meta(path)
        check_same_run(saved, self.meta, path)
        load_checkpoint(path, self.model, self.optimizers, self.meta.get("tokenizer_hash"))
        self.loader.load_state_dict(saved["loader"])
        if saved.get("scaler"):
            self.scaler.load_state_dict(saved["scaler"])
        self.run = Run(saved["step"], saved["losses"], saved["evals"], saved["seconds"])

    def step(self) -> Tensor:
        """Make one update and return its mean loss, left on the device."""
        batches = []
        for _ in range(self.config.micro_batches):
            batch = next(self.loader, None)
            if batch is None:
                raise ValueError(f"the loader ended at step {self.run.step}: let it loop")
            batches.append(batch)
        loss = accumulate_gradient(self.forward, batches, self.device, self.scaler)
        if self.config.grad_clip > 0:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        factor = lr_multiplier(self.run.step, self.config)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            self.scaler.step(optimizer)
        self.scaler.update()
        self.model.zero_grad(set_to_none=True)
        self.run.pending.append(loss)
        self.run.step += 1
        if self.device.type == "cpu" or self.run.step % 50 == 0:  # a GPU would have to wait for it
            self.check_losses()
        return loss

    def check_losses(self) -> None:
        """Stop at the first loss since the last look that is no number."""
        first = len(self.run.losses)
        for step, loss in enumerate(self.run.history()["losses"][first:], start=first + 1):
            if not math.isfinite(loss):
                self.diverged(f"the loss is {loss} at step {step}")

    def check_weights(self) -> None:
        """Stop if a weight is no number, so that neither a checkpoint nor a score is made of it."""
        self.check_losses()
        for name, p in self.model.named_parameters():
            if not bool(p.isfinite().all()):
                self.diverged(f"{name} holds NaN or infinity after step {self.run.step}")

    def diverged(self, what: str) -> NoReturn:
        """Raise ValueError: what was seen, what helps, and the last good checkpoint."""
        last = latest_checkpoint(self.folder) or "not there yet"
        raise ValueError(
            f"{what}: lower the learning rates or set grad_clip; the last good checkpoint is {last}"
        )

    def evaluate(self, evaluate: Callable | None) -> None:
        """Evaluate if it is due after the steps done so far: at the start, regularly, at the end."""
        every, run = self.config.eval_every, self.run
        due = every > 0 and (run.step % every == 0 or run.step == self.config.steps)
        if evaluate is None or not due or run.step in [step for step, _ in run.evals]:
            return
        self.check_weights()
        self.model.eval()
        with torch.no_grad():
            run.evals.append([run.step, float(evaluate(self.model))])
        self.model.train()

    def save(self) -> None:
        """Write a checkpoint and the loss history."""
        self.check_weights()
        history = self.run.history()
        meta = self.meta | history | {"loader": self.loader.state_dict()}
        meta["scaler"] = self.scaler.state_dict()  # empty unless the format is float16
        save_checkpoint(self.folder, self.run.step, self.model, self.optimizers, meta)
        atomic_write(self.folder / "losses.json", json.dumps(history))

    def progress(self, loss: Tensor, steps: int, seconds: float) -> dict:
        """Describe where the run is, given the steps and seconds of this process."""
        return {
            "step": self.run.step,
            "steps": self.config.steps,
            "loss": loss,
            "seconds_per_step": seconds / steps,
            "tokens_per_second": steps * self.config.total_batch_tokens / max(seconds, 1e-9),
            "evals": self.run.evals,
        }

    def summary(self) -> dict:
        """Sum the run up; `seconds` leaves out work that was lost to a kill."""
        history = self.run.history()
        last = history["losses"][-max(1, self.run.step // 20) :]
        tokens = self.run.step * self.config.total_batch_tokens
        return {
            "steps": self.run.step,
            "tokens": tokens,
            "seconds": self.run.seconds,
            "tokens_per_second": tokens / max(self.run.seconds, 1e-9),
            "first_loss": history["losses"][0] if history["losses"] else None,
            "final_loss": sum(last) / len(last) if last else None,  # mean over the last twentieth
            "evals": history["evals"],
        }


# %% [markdown]
# `train` decides when. It is the one loop that pretraining and fine-tuning share: they differ in
# the loader.


# %%
#| export training.loop
def train(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    loader: Iterable,
    config: LoopConfig,
    folder: Path | str,
    meta: dict,
    evaluate: Callable[[nn.Module], float] | None = None,
    progress: Callable[[dict], None] | str | None = "bar",
) -> dict:
    """Train until config.steps, from the newest checkpoint in the folder if there is one.

    A process killed at any moment and started again ends with the same weights, to the bit, as one that was
    left alone. Ctrl-C finishes the step, saves, and raises KeyboardInterrupt.

    Args:
        model: trained in place, on its device.
        optimizers: from build_optimizers.
        loader: yields (inputs, targets); has state_dict and load_state_dict.
        config: of the loop.
        folder: gets step_* folders and losses.json.
        meta: saved along: "config" (of the model), "tokenizer_hash" and what else the caller wants.
        evaluate: called with the model every config.eval_every steps, at the start and at the end.
        progress: called after every step with a dict (step, steps, loss, speed, evals), or "bar", or None.

    Returns:
        steps, tokens, seconds over all resumes, first and final loss, evals.

    Raises:
        ValueError: the folder holds another run, the loader ended early, or the loss is no number.
    """
    batches = Prefetch(iter(loader))
    trainer = Trainer(model, optimizers, batches, config, Path(folder), meta)
    trainer.resume()
    run, bar = trainer.run, ProgressBar() if progress == "bar" else None
    report = bar or progress or (lambda info: None)
    if run.step < config.steps:
        trainer.forward = compile_or_eager(model, config, trainer.device)
    before, first, started = run.seconds, run.step, time.perf_counter()
    saved = started
    with postpone_interrupt() as interrupt, ExitStack() as stack:
        stack.callback(batches.close)
        if bar:
            stack.callback(bar.close)
        trainer.evaluate(evaluate)
        while run.step < config.steps:
            loss = trainer.step()
            trainer.evaluate(evaluate)
            run.seconds = before + time.perf_counter() - started
            try:
                report(trainer.progress(loss, run.step - first, run.seconds - before))
            except KeyboardInterrupt:
                interrupt.set()
            stopping = interrupt.is_set() or run.step == config.steps
            if stopping or time.perf_counter() - saved >= config.save_seconds:
                trainer.save()
                saved = time.perf_counter()
            if interrupt.is_set():
                raise KeyboardInterrupt(f"saved at step {run.step} in {folder}")
    return trainer.summary()


# %% [markdown]
# ## Use it: pretraining
#
# One more configuration, from which the model, the loop and the number of steps follow, and one
# function that puts everything together.

# %%
#| default_exp training.pretrain
# Train a GPT from scratch on shards of text.

# %%
#| export training.pretrain
import dataclasses
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from nanochat_lib.common import get_ranks, pick_device, print0
from nanochat_lib.data.documents import list_shards
from nanochat_lib.evaluation.bpb import evaluate_bpb
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.optim import OptimConfig, build_optimizers


# %%
#| export training.pretrain
@dataclass(frozen=True)
class PretrainConfig:
    """Size a model and its training; the defaults fit a laptop.

    `depth` and `aspect_ratio` give the width; `head_dim` 0 lets the depth choose. `smear` None leaves it to the
    recipe. `tokens` 0 means tokens_per_param times the parameters. `eval_tokens` are validation tokens an
    evaluation reads. The rest is as in LoopConfig and OptimConfig.
    """

    depth: int = 4
    aspect_ratio: int = 32
    head_dim: int = 0
    recipe: Literal["classic", "modern"] = "classic"
    smear: bool | None = None
    sequence_len: int = 256
    device_batch_size: int = 8
    total_batch_tokens: int = 2048
    tokens: int = 0
    tokens_per_param: float = 20.0
    optim: OptimConfig = OptimConfig(embedding_lr=0.03, head_lr=0.002)
    warmup_fraction: float = 0.0
    cooldown_fraction: float = 0.5
    final_lr_fraction: float = 0.0
    grad_clip: float = 0.0
    eval_every: int = 250
    eval_tokens: int = 16_384
    save_seconds: float = 30.0
    buffer_documents: int = 64
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    compile: str = "auto"

    def model_config(self, vocab_size: int) -> GPTConfig:
        """Derive the model's sizes."""
        config = GPTConfig.from_depth(
            self.depth,
            vocab_size=vocab_size,
            sequence_len=self.sequence_len,
            recipe=self.recipe,
            aspect_ratio=self.aspect_ratio,
            head_dim=self.head_dim or None,
        )
        return config if self.smear is None else dataclasses.replace(config, smear=self.smear)

    def steps(self, num_params: int) -> int:
        """Count the steps that read the wanted number of tokens, at least one."""
        tokens = self.tokens or self.tokens_per_param * num_params
        return max(1, round(tokens / self.total_batch_tokens))

    def loop_config(self, num_params: int) -> LoopConfig:
        """Derive what the training loop needs."""
        names = {f.name for f in dataclasses.fields(LoopConfig)} - {"steps"}
        same = {name: getattr(self, name) for name in names}
        return LoopConfig(steps=self.steps(num_params), **same)


# %%
#| export training.pretrain
def validation_batches(
    config: PretrainConfig, shards: list[Path], tokenizer: Tokenizer, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Pack the same validation text for every evaluation: about config.eval_tokens, fewer if it ends."""
    size, length = config.device_batch_size, config.sequence_len
    loader = PackingLoader(shards, tokenizer, size, length, loop=False)
    n_batches = max(1, config.eval_tokens // (size * length))
    return [(x.to(device), y.to(device)) for x, y in islice(loader, n_batches)]


# %%
#| export training.pretrain
def pretrain(
    config: PretrainConfig,
    shards_train: list[Path],
    shards_val: list[Path] | None,
    tokenizer: Tokenizer,
    folder: Path | str,
    progress: Callable[[dict], None] | str | None = "bar",
) -> dict:
    """Train a GPT from scratch on shards of text, or continue where the folder's newest checkpoint stands.

    Args:
        config: sizes, rates and durations.
        shards_train: parquet files, read in order, again from the start when they end.
        shards_val: parquet files for validation bits per byte; None or empty for no evaluation.
        tokenizer: its hash is saved, so that nobody continues with another one.
        folder: the run's folder.
        progress: as in train.

    Returns:
        The summary of train, with params, flops_per_token and tokens_per_param.

    Raises:
        ValueError: the folder holds another run, or sizes do not fit each other.
    """
    device = pick_device(config.device)
    model = GPT(config.model_config(tokenizer.vocab_size))
    model.init_weights(torch.Generator().manual_seed(config.seed))
    model.to(device)
    n_params = model.num_params()
    loop = config.loop_config(n_params)
    loader = PackingLoader(
        shards_train,
        tokenizer,
        config.device_batch_size,
        config.sequence_len,
        get_ranks(),
        buffer_documents=config.buffer_documents,
    )
    evaluate = None
    if shards_val and config.eval_every:
        batches = validation_batches(config, shards_val, tokenizer, device)
        token_bytes = torch.tensor(tokenizer.token_bytes())

        def evaluate(model: GPT) -> float:
            return evaluate_bpb(model, batches, token_bytes)

    meta = {"config": asdict(model.config), "tokenizer_hash": tokenizer.hash, "stage": "base"}
    meta["pretrain"] = asdict(config)
    optimizers = build_optimizers(model, config.optim)
    summary = train(model, optimizers, loader, loop, folder, meta, evaluate, progress)
    more = {"params": n_params, "flops_per_token": model.estimate_flops()}
    return summary | more | {"tokens_per_param": summary["tokens"] / n_params}


# %% [markdown]
# The same from a terminal: `python -m nanochat_lib.training.pretrain --help` lists every field of
# the configuration.


# %%
#| export training.pretrain
def run_command(
    data: Path,
    tokenizer: Path,
    folder: Path,
    validation: Path | None = None,
    config: PretrainConfig = PretrainConfig(),
) -> None:
    """Pretrain from the command line.

    Args:
        data: folder with the training shards.
        tokenizer: folder that Tokenizer.save wrote.
        folder: where the run goes; a run found there is continued.
        validation: folder with validation shards.
        config: everything else.
    """
    shards_val = list_shards(validation) if validation else None
    summary = pretrain(config, list_shards(data), shards_val, Tokenizer.load(tokenizer), folder)
    print0(json.dumps({k: v for k, v in summary.items() if k != "evals"}, indent=2))


# %%
#| export training.pretrain
def main() -> None:
    """Run `python -m nanochat_lib.training.pretrain --help`."""
    import tyro  # only the command line needs it

    tyro.cli(run_command)


# %%
small = PretrainConfig(
    depth=1,
    sequence_len=128,
    total_batch_tokens=1024,
    tokens=40 * 1024,
    eval_every=20,
    eval_tokens=4096,
    save_seconds=0.5,
)
quiet = pretrain(small, shards_train, shards_val, tokenizer, folder / "quiet", progress=None)
for step, bits in quiet["evals"]:
    print(f"step {int(step):2d}: {bits:.3f} bits per byte on validation text")
assert quiet["evals"][-1][1] < 0.8 * quiet["evals"][0][1]

# %% [markdown]
# What is the cooldown worth? The same model at a constant rate and with a cooldown over the last three
# tenths, in a run of 40 steps and in one of 160:

# %%
from dataclasses import replace

ends = {}
for steps in (40, 160):
    for fraction in (0.0, 0.3):
        config = replace(small, tokens=1024 * steps, cooldown_fraction=fraction, save_seconds=60.0)
        where = folder / f"cooldown_{steps}_{fraction}"
        run = pretrain(config, shards_train, shards_val, tokenizer, where, progress=None)
        ends[steps, fraction] = run["evals"][-1][1]
    gain = ends[steps, 0.0] - ends[steps, 0.3]
    print(f"{steps:3} steps: the cooldown brings {gain:+.3f} bits per byte")
assert gain > 0, "in the longer run the cooldown must pay"

# %% [markdown]
# In forty steps the model is still far from any valley, and small steps only make it slower. In 160 it
# has something to settle into. How long a cooldown should be is a question for the exercise.

# %% [markdown]
# And the bar of chapter `baseline`: what does counting get, that read the same training documents, all
# of them, cut into the same tokens?

# %%
from nanochat_lib.evaluation.bpb import BigramModel, bigram_counts

rows = tokenizer.encode(texts[:1200], prepend=tokenizer.bos_id)
counting = BigramModel(bigram_counts(torch.tensor(sum(rows, [])), tokenizer.vocab_size))
batches = validation_batches(small, shards_val, tokenizer, torch.device("cpu"))
bar = evaluate_bpb(counting, batches, torch.tensor(tokenizer.token_bytes()))
print(f"counting pairs: {bar:.3f} bits per byte on the same validation text")

# %% [markdown]
# Forty steps are not enough to pass it: counting reads everything once and is done, and gradients need
# to see a pattern many times. A real run has the time. Here is the record of the laptop profile, whose
# base model took a thousand steps:

# %%
from nanochat_lib.course.manifest import library_root

recorded = json.loads((library_root() / "records/laptop/report.json").read_text(encoding="utf-8"))
for text, bits in recorded["bits_per_byte"].items():
    print(f"{text:10} counting {bits['bigram']:.2f}, base model {bits['base']:.2f} bits per byte")
    assert bits["base"] < bits["bigram"]

# %% [markdown]
# ## Killed three times, the same to the bit
#
# Now the promise. We start the same run in another folder and kill it at steps 3, 17 and 31: an
# exception out of the progress callback stands for the power failure (the tests kill a real
# process, with signal 9, at a random moment). Each restart goes on from whatever checkpoint the
# clock had made by then, repeats a few steps, and at the end the weights are compared with
# `torch.equal`: no tolerance.


# %%
class PowerFailure(Exception):
    """Stands for kill -9."""


def fail_at(step: int) -> Callable[[dict], None]:
    """Make a progress callback that stops everything after a step."""

    def callback(info: dict) -> None:
        if info["step"] == step:
            raise PowerFailure

    return callback


# %%
for step in (3, 17, 31):
    try:
        pretrain(small, shards_train, shards_val, tokenizer, folder / "rough", fail_at(step))
    except PowerFailure:
        newest = latest_checkpoint(folder / "rough")
        print(f"failed after step {step}; newest checkpoint: {newest and newest.name}")

# %%
# NBVAL_CHECK_OUTPUT
rough = pretrain(small, shards_train, shards_val, tokenizer, folder / "rough", progress=None)
one, two = (load_model(folder / name)[0].state_dict() for name in ("quiet", "rough"))
print("weights equal:", all(torch.equal(one[name], two[name]) for name in one))
histories = [
    json.loads((folder / name / "losses.json").read_text(encoding="utf-8"))
    for name in ("quiet", "rough")
]
print("losses equal:", histories[0]["losses"] == histories[1]["losses"])
print("evaluations equal:", quiet["evals"] == rough["evals"])

# %% [markdown]
# ## Scaling laws, in small
#
# How does the loss fall with size? Kaplan et al. 2020 and Hoffmann et al. 2022 trained hundreds of
# models and found power laws: straight lines on double logarithmic paper. We train three, of depth
# 1, 2 and 3, on the same 49,152 tokens, and the middle one a second time from another seed, to see
# how much is luck.

# %%
results = {}
for depth, seed in ((1, 0), (2, 0), (2, 1), (3, 0)):
    config = replace(
        small, depth=depth, seed=seed, tokens=48 * 1024, eval_every=16, save_seconds=60.0
    )
    where = folder / f"depth_{depth}_seed_{seed}"
    results[depth, seed] = pretrain(config, shards_train, shards_val, tokenizer, where, None)
    run = results[depth, seed]
    print(
        f"depth {depth} seed {seed}: {run['params']:7,} params, "
        f"{run['evals'][-1][1]:.3f} bits per byte"
    )

# %%
final = {key: run["evals"][-1][1] for key, run in results.items()}
assert final[3, 0] < final[1, 0], "the largest should beat the smallest"
print(f"two seeds of depth 2 differ by {abs(final[2, 0] - final[2, 1]):.3f}")

# %%
# alt: Validation bits per byte at depths 1, 2 and 3, by step and by parameters: deeper is lower.
fig, (left, right) = plt.subplots(1, 2, figsize=(6.5, 3), sharey=True)
for (depth, seed), colour in zip(results, ("tab:blue", "tab:orange", "tab:orange", "tab:green")):
    steps, bits = zip(*results[depth, seed]["evals"][1:])
    left.plot(steps, bits, ".-", color=colour, label=None if seed else f"depth {depth}")
    right.plot(results[depth, seed]["params"], bits[-1], "o", color=colour)
left.set(xlabel="step of 1,024 tokens", ylabel="validation bits per byte")
left.legend(frameon=False, fontsize=8)
right.set(xlabel="parameters (thousands)", xscale="log")
right.minorticks_off()
right.set_xticks([50_000, 100_000, 200_000, 400_000], ["50", "100", "200", "400"])
plt.tight_layout()
plt.show()

# %% [markdown]
# *Larger is better at equal tokens, here too. The two orange points, the same model from two seeds,
# nearly coincide: their distance, printed above, is the error bar that any claim from this figure
# needs.* Three sizes over a factor of ten, less than one token a parameter and one set of rates: this
# shows a direction. A fitted exponent from it would be decoration.
#
# What the real laws say for a budget of compute: the loss depends on parameters N and tokens D,
# compute is about 6ND, and for each budget some balance is best. Hoffmann et al. found about 20
# tokens a parameter. That rule fixes everything. For d20 with 560,988,160 parameters and 524,288
# tokens a step:

# %%
# NBVAL_CHECK_OUTPUT
for depth in (20, 32):
    with torch.device("meta"):
        big = GPT(GPTConfig.from_depth(depth, vocab_size=65_536, sequence_len=2048))
    plan = PretrainConfig(depth=depth, total_batch_tokens=524_288)
    steps = plan.steps(big.num_params())
    flops = steps * 524_288 * big.estimate_flops()
    hours = flops / (8 * 989e12 * 0.40) / 3600
    print(
        f"d{depth}: {big.num_params():,} params, {steps:,} steps, "
        f"{flops:.2e} FLOP, {hours:.1f} hours"
    )
    assert steps == {20: 21_400, 32: 71_680}[depth]

# %% [markdown]
# The hours assume eight H100s, each with 989e12 bfloat16 operations a second at most, and 40% of
# that reached; the chapter on speed is about that percentage. Because N grows like the cube of
# depth and D with it, d32 costs nearly twelve times d20: depth times 1.6, to the power of about
# five.
#
# And what did our own run cost? The same formula gives operations; the clock gives a rate.

# %%
run = results[3, 0]
print(
    f"{run['flops_per_token'] * run['tokens_per_second'] / 1e9:.1f} GFLOP/s, "
    f"{run['tokens_per_second']:,.0f} tokens/s"
)
files = {f.name: f.stat().st_size for f in latest_checkpoint(folder / "depth_3_seed_0").iterdir()}
per_param = (files["model.safetensors"] + files["optimizer.safetensors"]) / run["params"]
print(f"a checkpoint takes {per_param:.1f} bytes a parameter")
assert 8 <= per_param < 10, "4 for the weight, 4 for Muon's state or 8 for AdamW's"

# %% [markdown]
# ## What goes wrong: a resume that reads the beginning again
#
# A loop that saves the model and the optimizer but not the loader resumes without any complaint.
# The loss curve even looks better than before: the model meets documents it has already learned
# from. We rebuild it: a run is stopped halfway, its loader state thrown away.

# %%
# NBVAL_CHECK_OUTPUT
half = PackingLoader(shards_train, tokenizer, batch_size=8, sequence_len=128)
first_run = [next(half)[0] for _ in range(10)]
forgetful = PackingLoader(shards_train, tokenizer, batch_size=8, sequence_len=128)  # state lost
remembering = PackingLoader(shards_train, tokenizer, batch_size=8, sequence_len=128)
remembering.load_state_dict(half.state_dict())
seen = {tuple(row.tolist()) for batch in first_run for row in batch}
for name, resumed in (("without state", forgetful), ("with state", remembering)):
    rows = [tuple(row.tolist()) for _ in range(10) for row in next(resumed)[0]]
    print(f"{name}: {sum(row in seen for row in rows)} of {len(rows)} rows were trained on before")

# %% [markdown]
# All eighty rows are repeats. A run that is interrupted daily, as runs on borrowed machines are,
# would read its first day's text again and again and never see the end of the corpus. With a
# curriculum in file order it would never leave the first lesson. Saving only the position is not
# enough either: the documents waiting in the buffer, up to 64 of them, would be lost at each
# resume, and the run would no longer be the same run. The test for both is the one above: kill,
# resume, compare to the bit.
#
# ## Recap
#
# Packing keeps rows full and clean; weighting by targets keeps gradients honest; and a run that
# stores everything its next step depends on survives any kill without a trace. The library now has
# `training.loader` (with `Prefetch`), `training.step`, `training.checkpoint`, `training.progress`, `training.loop`
# and `training.pretrain`. The exercises ask what a cooldown is worth, how many tokens
# a batch should hold, and what a model larger than any you trained would reach. The next chapters need a checkpoint to talk to: inference
# reads it with `load_model`, and fine-tuning continues it through `train`.

# %%
scratch.cleanup()
