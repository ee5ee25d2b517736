# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Fine-tuning: from a model of text to one that answers
#
# Pretraining ends with a model that knows things and cannot be asked. It has never seen
# `<|assistant_start|>`, it does not know when to stop, and a question makes it think of more
# questions. Fine-tuning changes the data and keeps everything else: the same network, the same
# loss, the same loop, on conversations:
#
# ```python
# finetune(FinetuneConfig(steps=300), task, tokenizer, base_folder, folder)
# ```
#
# We build the loader that packs conversations into rows, take a toy model from "knows, cannot
# answer" to "answers what it was never asked", and measure that with an interval, since twenty
# questions prove nothing. You need the training loop, the engine and the tasks of earlier chapters.
# On a laptop the chapter takes about 20 seconds.

# %%
#| default_exp training.finetune
# Fine-tune a pretrained model on conversations: packing, masks, and the run itself.

# %%
#| export
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from nanochat_lib.common import Ranks, get_ranks, local_generator, pick_device
from nanochat_lib.model.gpt import GPT
from nanochat_lib.tasks.base import Task
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.checkpoint import load_model
from nanochat_lib.training.loader import PackingLoader, best_fit
from nanochat_lib.training.loop import LoopConfig, train
from nanochat_lib.training.optim import OptimConfig, build_optimizers

# %%
import random
import tempfile

import matplotlib.pyplot as plt

from nanochat_lib.common import local_generator
from nanochat_lib.data.documents import write_shards
from nanochat_lib.inference.engine import Engine
from nanochat_lib.model.gpt import GPTConfig

# %% [markdown]
# ## Two names for one loss
#
# Between the base model and the chat model, reports name two stages:
#
# - **Midtraining** goes on like pretraining, in volume and rates, but the mixture shifts:
#   conversations, multiple choice, tool calls, often still with ordinary text among them. The model
#   learns that special tokens exist and what they are for.
# - **Supervised fine-tuning (SFT)** is short and picky: the best conversations, in the exact form
#   in which the model will be asked later, with a loss on the assistant's words alone.
#
# Neither has a formula of its own. Both minimise the cross-entropy of the next token; they differ
# in the data and in which tokens count. So we write one function. `text_fraction` turns it towards
# midtraining, and a long run, a short run and a name for the checkpoint are arguments. Whether two
# stages beat one is a question for measurement: nanochat began with two and later merged them.
#
# ## Which tokens count
#
# The tokenizer renders a conversation to ids and a mask, one entry a token: 1 where the assistant
# speaks. The model at position $t$ predicts token $t+1$. So the target at $t$ is the *next* token,
# if the *next* token's mask is 1. Three tokens are enough to get this wrong:


# %%
#| export
IGNORE = -1


def shift_targets(ids: list[int], mask: list[int]) -> list[int]:
    """List what each position must predict: the next token if its mask is 1, else -1.

    Example: ids [5, 6, 7], mask [0, 0, 1] -> [-1, 7]; one shorter: the last predicts nothing.
    """
    return [token if learn else IGNORE for token, learn in zip(ids[1:], mask[1:])]


# %%
assert shift_targets([5, 6, 7], [0, 0, 1]) == [-1, 7], "is the mask read at the target's place?"

# %% [markdown]
# At token 6 the model must say 7, and nothing is asked of it before. We return to what happens when
# the mask is read one place too early; it does not crash.
#
# ## The world of this chapter
#
# We need a model that learns within seconds, and a question whose answer it can work out for
# numbers that it was never asked about. Remainders will do: 384 divided by 5 leaves 4. Pretraining
# *states* this for every number from 100 to 999. Fine-tuning *asks* about six numbers in seven, and
# the test asks about the seventh.


# %%
class Remainders(Task):
    """What a number leaves when divided by 5; every seventh number is for the test."""

    floor = 0.2

    def __init__(self, split: str = "train"):
        super().__init__(split)
        numbers = [n for n in range(100, 1000) if (n % 7 == 3) == (split == "test")]
        self.numbers = local_generator("remainders", split).sample(numbers, len(numbers))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict:
        n = self.numbers[self.check_index(index)]
        user = {"role": "user", "content": f"What does {n} leave?"}
        return {"messages": [user, {"role": "assistant", "content": f"It leaves {n % 5}."}]}

    def evaluate(self, conversation: dict, response: str) -> bool:
        return response == conversation["messages"][-1]["content"]


# %%
train_task, test_task = Remainders("train"), Remainders("test")
facts = [f"{n} divided by 5 leaves {n % 5}." for n in range(100, 1000)]
sample_text = facts[:200] + [m["content"] for c in train_task.slice(0, 50) for m in c["messages"]]
tokenizer = Tokenizer.train(sample_text, vocab_size=320)
assert len(test_task) == 129 and not set(train_task.numbers) & set(test_task.numbers)

# %%
# NBVAL_CHECK_OUTPUT
ids, mask = tokenizer.render_conversation(test_task[0])
for token, target in zip(ids, shift_targets(ids, mask)):
    wanted = "" if target == IGNORE else repr(tokenizer.decode([target]))
    print(f"{tokenizer.decode([token])!r:24}{wanted}")

# %% [markdown]
# Left what the model reads, right what it must say next. The first target stands beside
# `<|assistant_start|>`: that is the moment at which the model takes the floor. The last is
# `<|assistant_end|>`, which hands it back.
#
# ## Packing: rows without waste
#
# Conversations have all lengths; a batch is a rectangle. The plain way gives each conversation a
# row of its own and pads the rest. How much of the rectangle is then work? We draw lengths as a
# chat data set has them, many short and few long.

# %%
rng = random.Random(0)
lengths = [min(256, int(rng.lognormvariate(4.2, 0.7))) for _ in range(400)]
plain_share = sum(lengths) / (256 * len(lengths))
print(
    f"mean length {sum(lengths) / len(lengths):.0f}, used share of rows of 256: {plain_share:.0%}"
)

# %% [markdown]
# Two thirds of the arithmetic would be spent on padding. So we put several conversations in one
# row, each from `<|bos|>` to `<|assistant_end|>`. Pretraining cut documents to fill rows exactly.
# Here we do not: a cut conversation would lose the answer, the one part we train on. So whole
# conversations, the longest that still fits first, and padding where none does.


# %%
def fill_rows(lengths: list[int], capacity: int, buffer_size: int) -> list[list[int]]:
    """Pack lengths as the loader below will: the oldest opens a row, then the best fit."""
    waiting, rows = list(lengths), []
    while waiting:
        row = [waiting.pop(0)]
        while (best := best_fit(waiting[:buffer_size], capacity - sum(row))) is not None:
            row.append(waiting.pop(best))
        rows.append(row)
    return rows


# %%
buffer_sizes = [0, 1, 2, 4, 8, 16, 32, 64]
packings = [fill_rows(lengths, 256, size) for size in buffer_sizes]
used = [sum(lengths) / (256 * len(rows)) for rows in packings]
assert all(sorted(sum(rows, [])) == sorted(lengths) for rows in packings), "a conversation got lost"
assert used[0] == plain_share < 0.4 and used[-1] > 0.95

# %%
# alt: share of row tokens used against waiting conversations; from a third to nearly all
fig, ax = plt.subplots(figsize=(6.5, 3))
ax.plot([str(size) for size in buffer_sizes], [100 * share for share in used], marker="o")
ax.set(xlabel="conversations to choose from", ylabel="tokens used (%)", ylim=(0, 105))
ax.axhline(100, color="grey", linewidth=0.8)
plt.show()

# %% [markdown]
# *The share of a row that holds conversation, against the number of waiting conversations. With
# none to choose from, one conversation sits in each row. A few dozen to choose from leave almost
# nothing empty.*
#
# A row mixes strangers: attention would let the second conversation look at the first. Pretraining accepts that: `<|bos|>`
# marks the border, and a model learns early that nothing before it helps. Here we do not, because a chat is read alone. If four
# of five conversations are trained with others before them, the model has practised a situation that never comes, and has to learn
# to overlook the words of strangers, which look just like those to be copied. So attention stays inside a conversation
# (`find_borders`, chapter `attention`), and a packed row gives what each conversation gives alone; the chapter checks that below.
#
# But a chat has more than one turn. When ours were all one exchange long and all kept apart, the model met first messages well and refused
# the second, whatever it was: it had never seen one. (As long as strangers shared a row, they had stood in for earlier turns.) So the
# loader can `chain`: now and then the `<|bos|>` between two conversations is left out, and they are turns of one chat.
#
# ## The loader
#
# Four things can go wrong in a packing loader; the first three have happened in published code:
#
# 1. A conversation longer than the row fits nowhere, and the loop that looks for room never ends.
#    So we crop it on entry.
# 2. After cropping, no answer may be left: a long question fills the row, every target is -1, and
#    the mean over no targets is 0/0. So a conversation with nothing to learn is skipped, and
#    counted.
# 3. If *every* conversation is skipped, we are back at a loop that never ends. So after one full
#    round without a target we raise an error that says why.
# 4. A row begins with the conversation that has waited longest. Which one waits? The one whose
#    length nobody needed, so short ones open the rows, and a kind of middle length hardly ever does.
#    But a chat *is* the first conversation of its row. Our first loader made this mistake: its model
#    had learned to refuse what it does not know, everywhere but at the place where it was asked. So
#    the order within each row is shuffled.
#
# The whole class then reads in one go. A draw is the running number of a conversation; the buffer
# is saved as draws, so that the state in a checkpoint is a short list of numbers.


# %%
#| export
class ConversationLoader:
    """Pack rendered conversations into rows, with targets only where the assistant speaks.

    A row gets the conversation that has waited longest, then the longest ones that still fit, whole
    and in random order; the rest is padding (targets -1). A conversation longer than a row is cropped; if
    nothing to learn remains it is skipped and counted. So every row has a target, and no mean is
    ever taken over none.

    Args:
        task: the conversations, in training order.
        tokenizer: renders them.
        batch_size: rows.
        sequence_len: tokens of a row, T.
        ranks: rank r of n takes conversations r, r + n, ...
        loop: start again after the last conversation, for ever.
        buffer_size: conversations to choose from when filling a row.
        text_shards: parquet files of pretraining text.
        text_fraction: share of rows that hold such text, evenly spread.
        chain: how often a conversation goes on with the one before it in its row, as further turns of one chat.

    Raises:
        ValueError: the task is empty, a size is below 1, a share is none, or text is wanted without shards.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer,
        batch_size: int,
        sequence_len: int,
        ranks: Ranks = Ranks(),
        loop: bool = True,
        buffer_size: int = 64,
        text_shards: list[Path] | None = None,
        text_fraction: float = 0.0,
        chain: float = 0.0,
    ):
        if len(task) == 0:
            raise ValueError(f"{type(task).__name__} is empty: there is nothing to fine-tune on")
        if min(batch_size, sequence_len, buffer_size) < 1:
            raise ValueError(f"sizes below 1: {batch_size=}, {sequence_len=}, {buffer_size=}")
        if not 0 <= text_fraction < 1 or (text_fraction > 0 and not text_shards):
            raise ValueError(
                f"{text_fraction=} must be in [0, 1), and above 0 it needs text_shards"
            )
        self.task, self.tokenizer, self.ranks, self.loop = task, tokenizer, ranks, loop
        self.batch_size, self.sequence_len, self.buffer_size = batch_size, sequence_len, buffer_size
        if not 0 <= chain <= 1:
            raise ValueError(f"{chain=} must be in [0, 1]")
        self.text_fraction, self.chain, self.text = text_fraction, chain, None
        if text_fraction > 0:
            self.text = PackingLoader(text_shards, tokenizer, 1, sequence_len, ranks)
        self.drawn = self.rows = self.skipped = 0
        self.buffer: list[tuple[int, list[int], list[int]]] = []  # (draw, ids, targets)

    def render(self, draw: int) -> tuple[list[int], list[int]]:
        """Render this rank's draw-th conversation, cropped to a row: ids and targets."""
        index = (draw * self.ranks.world_size + self.ranks.rank) % len(self.task)
        ids, mask = self.tokenizer.render_conversation(self.task[index])
        ids, mask = ids[: self.sequence_len + 1], mask[: self.sequence_len + 1]
        # The last token predicts nothing, but it stays: another conversation may follow it.
        return ids[: self.sequence_len], (shift_targets(ids, mask) + [IGNORE])[: self.sequence_len]

    def refill(self) -> None:
        """Top up the buffer; stop at the end of the task unless looping."""
        n, ranks = len(self.task), self.ranks
        mine = n if self.loop else len(range(ranks.rank, n, ranks.world_size))
        misses = 0
        while len(self.buffer) < self.buffer_size and (self.loop or self.drawn < mine):
            ids, targets = self.render(self.drawn)
            if any(target != IGNORE for target in targets):
                self.buffer.append((self.drawn, ids, targets))
                misses = 0
            else:
                self.skipped += 1
                misses += 1
            self.drawn += 1
            if misses >= mine:
                raise ValueError(
                    f"none of {mine} conversations has an assistant token within the first "
                    f"{self.sequence_len} tokens: raise sequence_len or check the task"
                )

    def conversation_row(self) -> tuple[list[int], list[int]]:
        """Pack one row; raise StopIteration when nothing is left."""
        self.refill()
        if not self.buffer:
            raise StopIteration
        chosen, room = [self.buffer.pop(0)], self.sequence_len
        while True:
            room -= len(chosen[-1][1])
            best = best_fit([len(ids) for _, ids, _ in self.buffer], room)
            if best is None:
                break
            chosen.append(self.buffer.pop(best))
        rng = local_generator("order in a row", chosen[0][0])
        rng.shuffle(chosen)
        ids, targets = [], []
        for number, (_, tokens, wanted) in enumerate(chosen):
            goes_on = number > 0 and rng.random() < self.chain  # without its <|bos|>
            ids += tokens[goes_on:]
            targets += wanted[goes_on:]
        room = self.sequence_len - len(ids)
        return ids + [self.tokenizer.bos_id] * room, targets + [IGNORE] * room

    def next_row(self) -> tuple[list[int], list[int]]:
        """Return a row of text where its share is due, else a row of conversations."""
        due = int((self.rows + 1) * self.text_fraction) > int(self.rows * self.text_fraction)
        if due:
            inputs, targets = next(self.text)
            row = inputs[0].tolist(), targets[0].tolist()
        else:
            row = self.conversation_row()
        self.rows += 1
        return row

    def __iter__(self) -> Iterator[tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]]:
        return self

    def __next__(self) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
        """Build (inputs, targets), int64; without `loop` an unfinished last batch is dropped."""
        rows = [self.next_row() for _ in range(self.batch_size)]
        inputs, targets = zip(*rows)
        return torch.tensor(inputs), torch.tensor(targets)

    def state_dict(self) -> dict:
        """Describe the position in a few numbers: waiting conversations go by draw, not by text."""
        return {
            "drawn": self.drawn,
            "rows": self.rows,
            "skipped": self.skipped,
            "buffer": [item[0] for item in self.buffer],
            "text": self.text.state_dict() if self.text else None,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go to a saved position; task, tokenizer and sizes must be the saved loader's."""
        self.drawn, self.rows, self.skipped = state["drawn"], state["rows"], state["skipped"]
        self.buffer = [(draw, *self.render(draw)) for draw in state["buffer"]]
        if self.text:
            self.text.load_state_dict(state["text"])


# %% [markdown]
# The first batch, small enough to look at: two rows of 40 tokens. Each target should be a word of
# some answer.

# %%
small = ConversationLoader(train_task, tokenizer, batch_size=2, sequence_len=40)
inputs, targets = next(small)
print(tokenizer.decode(inputs[0].tolist()))
print(tokenizer.decode([token for token in targets[0].tolist() if token != IGNORE]))

# %% [markdown]
# Now the property that the first three points promise, at every row length from 2 up. Either the
# loader says that nothing fits, or each row of its batches starts with `<|bos|>` and has a target.
# The conversations include one that is longer than any row, and one whose user has not been
# answered.


# %%
class Awkward(Task):
    """A plain conversation, a long question, a long answer, and a question without answer."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        question, answer = [("Hi", "Ho."), ("why " * 300, "So."), ("Hi", "Ho. " * 300), ("Hi", "")][
            index
        ]
        user = {"role": "user", "content": question}
        return {"messages": [user] + [{"role": "assistant", "content": answer}] * bool(answer)}


# %%
# NBVAL_CHECK_OUTPUT
too_short = []
for length in range(2, 60):
    awkward = ConversationLoader(Awkward(), tokenizer, 2, length)
    try:
        batches = [next(awkward) for _ in range(5)]
    except ValueError as error:
        too_short.append(length)
        message = error
        continue
    for inputs, targets in batches:
        assert inputs.shape == targets.shape == (2, length)
        assert (inputs[:, 0] == tokenizer.bos_id).all() and (targets != IGNORE).any(dim=1).all()
print(f"too short: {too_short[0]} to {too_short[-1]} tokens")
print(message)

# %% [markdown]
# The fourth point. Two kinds of conversation, half and half, one three times as long as the other:
# which of them opens a row?


# %%
class TwoLengths(Task):
    """Short and long conversations in turns."""

    def __len__(self) -> int:
        return 2_000

    def __getitem__(self, index: int) -> dict:
        words = "on " * (20 if index % 2 else 6)
        user = {"role": "user", "content": "Go" if index % 2 else "go"}
        return {"messages": [user, {"role": "assistant", "content": words}]}


# %%
# NBVAL_CHECK_OUTPUT
capital = tokenizer.encode("Go")[0]
rows, _ = next(ConversationLoader(TwoLengths(), tokenizer, 400, 128))
print(f"{(rows[:, 2] == capital).double().mean():.0%} of the rows begin with a long one")

# %% [markdown]
# And chaining: with `chain=1` a row is one chat, token for token what the tokenizer makes of its turns.

# %%
rows, _ = next(ConversationLoader(train_task, tokenizer, 1, 64, chain=1.0))
length = int((rows[0] != tokenizer.bos_id).nonzero().max()) + 1  # then padding
text = tokenizer.decode(rows[0, :length].tolist())
chats = [train_task[i] for i in range(64)]
turns = [
    c for c in chats if c["messages"][1]["content"] in text and c["messages"][0]["content"] in text
]
turns.sort(key=lambda c: text.index(c["messages"][0]["content"]))
whole = {"messages": [message for c in turns for message in c["messages"]]}
assert tokenizer.render_conversation(whole)[0] == rows[0, :length].tolist()
print(f"{len(turns)} conversations, one chat")

# %% [markdown]
# As for the fourth point: long ones open about as many rows as there are. In the order of packing none of these rows would, and exercise
# `who_opens_rows` of chapter `contact` shows how a mixture of more kinds fares.

# %% [markdown]
# And resuming: a loader that is given another's state goes on with the same batches.

# %%
first = ConversationLoader(train_task, tokenizer, 4, 64)
for _ in range(7):
    next(first)
second = ConversationLoader(train_task, tokenizer, 4, 64)
second.load_state_dict(first.state_dict())
assert all(torch.equal(a, b) for _ in range(20) for a, b in zip(next(first), next(second)))

# %% [markdown]
# ## The run
#
# The settings are those of the training loop, plus three of our own: the learning rates, one factor
# on all of them, and the share of rows that hold pretraining text. Why keep any text? A network
# forgets what it does not practise, and a little of the old diet in every batch keeps some of it. How
# much stands in the record of the laptop run, where every tenth row is text, nearly all of it about
# TinyWorld:

# %%
import json

from nanochat_lib.course.manifest import library_root

record = json.loads((library_root() / "records/laptop/report.json").read_text(encoding="utf-8"))
for text, bits in record["bits_per_byte"].items():
    print(f"{text:10} {bits['base']:.2f} bits per byte before, {bits['sft']:.2f} after")
ratios = {text: bits["sft"] / bits["base"] for text, bits in record["bits_per_byte"].items()}
assert 1.05 < ratios["english"] < 1.2 < ratios["tinyworld"] < 1.5
assert all(bits["sft"] < bits["bigram"] for bits in record["bits_per_byte"].values())

# %% [markdown]
# TinyWorld, which the base model had nearly by heart, costs a third more than before; English, a twentieth of that text and so one
# row in two hundred, a tenth more. Both are still far ahead of counting, the bar of chapter `baseline`. The facts of the world
# did not suffer: the chats ask for them.
#
# What would happen without? A study (`make study-capabilities`) fine-tunes the laptop's base model for 1,000 steps on chats alone,
# and with 5 or 10 of 100 rows of old text, two seeds each:

# %%
replay = json.loads((library_root() / "records/chat/replay.json").read_text(encoding="utf-8"))
for row in replay["variants"].values():
    means = {key: sum(row[key]) / len(row[key]) for key in ("tinyworld", "english", "facts")}
    print(
        f"{row['about']:32} TinyWorld {means['tinyworld']:.2f}, English {means['english']:.2f} "
        f"bits per byte, facts {100 * means['facts']:.0f}%"
    )

# %% [markdown]
# On chats alone the base model forgets how to write: English costs twice what it did, TinyWorld five times, and more than half of the
# facts go with it. One row in twenty brings most of that back, one in ten nearly all. The facts of the chats' own questions are practised; those that are
# asked only in tests live from the old text.
#
# The exercise measures the trade.


# %%
#| export
@dataclass(frozen=True)
class FinetuneConfig:
    """Choose how long, how fast and on what to fine-tune; the defaults fit a laptop.

    `lr_scale` multiplies every learning rate of `optim`: below 1 the base model changes less. `separate`
    keeps attention inside a conversation, `chain` makes several turns of one chat out of some.
    """

    steps: int = 300
    device_batch_size: int = 8
    sequence_len: int = 256
    total_batch_tokens: int = 2048
    optim: OptimConfig = OptimConfig(embedding_lr=0.03, head_lr=0.002)
    lr_scale: float = 1.0
    warmup_fraction: float = 0.0
    cooldown_fraction: float = 0.5
    final_lr_fraction: float = 0.0
    text_fraction: float = 0.0
    separate: bool = True
    chain: float = 0.0
    eval_every: int = 0
    save_seconds: float = 30.0
    grad_clip: float = 0.0
    dtype: str = "auto"
    compile: str = "auto"

    @property
    def scaled_optim(self) -> OptimConfig:
        """The learning rates, multiplied by lr_scale."""
        names = ("matrix_lr", "embedding_lr", "head_lr", "scalar_lr")
        return replace(self.optim, **{k: getattr(self.optim, k) * self.lr_scale for k in names})

    @property
    def loop(self) -> LoopConfig:
        """What the training loop needs to know."""
        return LoopConfig(**{f.name: getattr(self, f.name) for f in fields(LoopConfig)})


# %% [markdown]
# `finetune` puts the parts together: newest checkpoint of the base, loader, optimizers, loop. What
# it does *not* do is write a second training loop. Accumulating gradients, resuming after a kill,
# saving, the schedule: pretraining settled all that, and a bug fixed there is fixed here.


# %%
#| export
def finetune(
    config: FinetuneConfig,
    task: Task,
    tokenizer: Tokenizer,
    base_folder: Path,
    folder: Path,
    text_shards: list[Path] | None = None,
    evaluate: Callable[[GPT], float] | None = None,
    stage: str = "sft",
    progress: Callable[[dict], None] | str | None = "bar",
    adapt: Callable[[GPT, FinetuneConfig], list[torch.optim.Optimizer]] | None = None,
) -> dict:
    """Train a finished model further on conversations; resume if `folder` holds a checkpoint.

    Args:
        config: how long, how fast, and the share of pretraining text.
        task: the conversations, usually a TaskMixture.
        tokenizer: the one that the base model was trained with.
        base_folder: the run whose newest checkpoint we start from.
        folder: where checkpoints and losses of this stage go.
        text_shards: pretraining text, needed if config.text_fraction > 0.
        evaluate: called by the loop every config.eval_every steps.
        stage: the name written into the checkpoint: "mid", "sft", ...
        progress: as for `train`: "bar", a function called every step, or None.
        adapt: changes the loaded model and builds its optimizers; None trains all weights.

    Returns:
        The loop's summary, and "skipped": conversations with nothing to learn within a row.

    Raises:
        ValueError: sequence_len is longer than the model's context, or nothing can be learned.
    """
    ranks = get_ranks()
    model, base_meta = load_model(base_folder, tokenizer, device=pick_device())
    if config.sequence_len > model.config.sequence_len:
        raise ValueError(
            f"sequence_len {config.sequence_len} is longer than the model's context, "
            f"{model.config.sequence_len}"
        )
    loader = ConversationLoader(
        task,
        tokenizer,
        config.device_batch_size,
        config.sequence_len,
        ranks,
        text_shards=text_shards,
        text_fraction=config.text_fraction,
        chain=config.chain,
    )
    if config.separate:
        model.first_token = tokenizer.bos_id
    optimizers = adapt(model, config) if adapt else build_optimizers(model, config.scaled_optim)
    meta = {
        "config": base_meta["config"],
        "tokenizer_hash": tokenizer.hash,
        "stage": stage,
        "finetune": asdict(config),
    }
    summary = train(model, optimizers, loader, config.loop, folder, meta, evaluate, progress)
    return {**summary, "skipped": loader.skipped}


# %% [markdown]
# ## A base model that knows and cannot answer
#
# First the base: 900 statements, a GPT of two layers, a few seconds.

# %%
work = Path(tempfile.mkdtemp())
shuffled = local_generator("facts").sample(facts, len(facts))
shards = write_shards(shuffled, work / "text", documents_per_shard=900)
model_config = GPTConfig(
    sequence_len=64, vocab_size=tokenizer.vocab_size, n_layer=2, n_head=2, n_kv_head=2, n_embd=64
)


# %%
def quick_loop(steps: int, sequence_len: int) -> LoopConfig:
    """Eight short rows a step, no compiling."""
    return LoopConfig(
        steps=steps,
        device_batch_size=8,
        sequence_len=sequence_len,
        total_batch_tokens=8 * sequence_len,
        dtype="float32",
        compile="off",
    )


# %%
base = GPT(model_config)
base.init_weights(torch.Generator().manual_seed(0))
rates = OptimConfig(embedding_lr=0.03, head_lr=0.002)
meta = {"config": asdict(model_config), "tokenizer_hash": tokenizer.hash}
base_loader = PackingLoader(shards, tokenizer, 8, 32)
optimizers = build_optimizers(base, rates)
base_run = train(
    base, optimizers, base_loader, quick_loop(300, 32), work / "base", meta, progress=None
)
print(f"{base_run['tokens']:,} tokens, {base_run['seconds']:.1f} s")

# %% [markdown]
# Does it know? We let it finish sentences about the test's numbers.

# %%
engine = Engine(base, tokenizer)
openings = [
    tokenizer.encode(f"{n} divided by 5 leaves", prepend=tokenizer.bos_id)
    for n in test_task.numbers
]
endings = [tokenizer.decode(ids) for ids, _ in engine.generate_batch(openings, max_tokens=4)]
knows = sum(end.startswith(f" {n % 5}.") for end, n in zip(endings, test_task.numbers))
print(f"finishes {knows} of {len(openings)} sentences correctly")
assert knows > 0.8 * len(openings), "the base should know its facts: more steps?"

# %% [markdown]
# And can it answer? To say so with a number we need the second half of this chapter.
#
# ## Twenty questions prove nothing
#
# A model is right 14 times out of 20. Is it a 70% model? Think of a coin that falls on the right
# side with probability $p$. We saw one experiment of it. The textbook interval, rate plus or minus
# twice its standard error, breaks exactly where we need it: 20 of 20 gives 100% plus or minus 0,
# which claims certainty after twenty tosses. Wilson turned the question round: for which $p$ would
# our result be ordinary, not more than $z$ standard errors away?
#
# $$ \left|\hat p - p\right| \le z \sqrt{p (1-p) / n} $$
#
# Here $\hat p$ is the measured rate, $n$ the number of questions, and $z = 1.96$ for 95%. Both
# sides squared, it is a quadratic in $p$, and the interval lies between its two roots.


# %%
#| default_exp evaluation.chat
# Chat evaluation: ask a task's questions, grade the answers, put an interval on the score.

# %%
#| export evaluation.chat
import math
from dataclasses import dataclass
from statistics import NormalDist

import torch

from nanochat_lib.inference.engine import Engine
from nanochat_lib.tasks.base import Task, content_text
from nanochat_lib.tokenizer.tokenizer import Tokenizer


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Bound the true rate behind `successes` out of `n` tries.

    Example: 8 of 10 -> (0.490, 0.943).

    Args:
        successes: right answers, 0 to n.
        n: questions asked, at least 1.
        confidence: how often such intervals cover the true rate, between 0 and 1.

    Returns:
        (low, high), within [0, 1].

    Raises:
        ValueError: n is not positive, successes is not in 0..n, or confidence not in (0, 1).

    Source: Wilson 1927, J. Am. Stat. Assoc. 22:209; no continuity correction.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes out of {n}: need n >= 1 and 0 <= successes <= n")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1: write 0.95 for 95%")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate, shrink = successes / n, 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


# %%
# NBVAL_CHECK_OUTPUT
for right, n in ((14, 20), (20, 20), (0, 20), (140, 200), (700, 1000)):
    low, high = wilson_interval(right, n)
    print(f"{right:4} of {n:4}: {low:.1%} to {high:.1%}")

# %% [markdown]
# 14 of 20 is compatible with anything between 48% and 85%: coin-flipping and quite good. To halve
# an interval you need four times the questions. A check against the definition: at both ends, the
# measured rate is exactly $z$ standard errors away.

# %%
z = NormalDist().inv_cdf(0.975)
for p in wilson_interval(14, 20):
    assert math.isclose(abs(14 / 20 - p), z * math.sqrt(p * (1 - p) / 20)), f"{p} is no root"


# %% [markdown]
# Does "95%" hold? We play the experiment for models of every skill, and count how often the
# interval contains the truth: the textbook's and Wilson's.


# %%
def coverage(interval: Callable, p: float, n: int) -> float:
    """Add up the probabilities of all outcomes whose interval contains p."""
    total = 0.0
    for k in range(n + 1):
        low, high = interval(k, n)
        total += (low <= p <= high) * math.comb(n, k) * p**k * (1 - p) ** (n - k)
    return total


def textbook_interval(k: int, n: int) -> tuple[float, float]:
    """Rate plus or minus z standard errors."""
    half = z * math.sqrt(k / n * (1 - k / n) / n)
    return k / n - half, k / n + half


# %%
skills = [i / 200 for i in range(1, 200)]
covered = {
    "textbook": [coverage(textbook_interval, p, 20) for p in skills],
    "Wilson": [coverage(wilson_interval, p, 20) for p in skills],
}
assert min(covered["Wilson"]) > 0.8 and min(covered["textbook"]) < 0.2

# %%
# alt: how often 95% intervals hold the truth; Wilson near 95, textbook 0 at both ends
fig, ax = plt.subplots(figsize=(6.5, 3))
for values, color in zip(covered.values(), ("tab:orange", "tab:blue")):
    ax.plot([100 * p for p in skills], [100 * value for value in values], color=color)
ax.text(9, 40, "textbook", color="tab:orange")
ax.text(45, 101, "Wilson", color="tab:blue")
ax.axhline(95, color="grey", linewidth=0.8)
ax.set(xlabel="true accuracy (%)", ylabel="intervals that contain it (%)", ylim=(0, 110))
plt.show()

# %% [markdown]
# *How often an interval from 20 questions contains the truth. Near 0% and 100%, where a model that
# fails or excels lives, the textbook's interval is almost always wrong; Wilson's stays near the 95%
# that it promises.*
#
# Every score in our reports carries its interval.


# %%
#| export evaluation.chat
@dataclass(frozen=True)
class TaskScore:
    """An accuracy with its confidence interval; n is the number of questions."""

    accuracy: float
    low: float
    high: float
    n: int


def score(successes: int, n: int) -> TaskScore:
    """Build the score of `successes` right answers out of `n`, with a 95% interval."""
    low, high = wilson_interval(successes, n)
    return TaskScore(successes / n, low, high, n)


# %% [markdown]
# ## Asking and grading
#
# One response: decode what was generated up to the end token, markers of tool calls included, and
# let the task grade it. We keep question and response beside the verdict. A score of 0% is most
# often a formatting accident, and one look at three records finds it.


# %%
#| export evaluation.chat
def response_text(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Decode what the assistant wrote, up to its end token; tool markers stay in the text."""
    stops = {tokenizer.encode_special("<|assistant_end|>"), tokenizer.bos_id}
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    return tokenizer.decode(ids[:end])


def make_record(
    task: Task, index: int, conversation: dict, response: str, ended: bool = True
) -> dict:
    """Grade one response and keep what a report wants to show of it."""
    messages = conversation["messages"]
    asked = max(i for i, message in enumerate(messages) if message["role"] == "user")
    expected = messages[asked + 1]["content"] if asked + 1 < len(messages) else ""
    return {
        "index": index,
        "question": messages[asked]["content"],
        "expected": content_text(expected),
        "response": response,
        "ended": ended,
        "correct": (ended or not task.must_end) and bool(task.evaluate(conversation, response)),
    }


# %% [markdown]
# Then all of them, in batches. Prompts go in order of length, so that a batch holds little padding,
# and the records come out in the task's order. A prompt that does not fit the context counts as
# wrong: leaving it out would raise the score of the model with the shortest memory.


# %%
#| export evaluation.chat
def evaluate_task(
    engine: Engine, task: Task, max_tokens: int, batch_size: int = 64, limit: int | None = None
) -> tuple[TaskScore, list[dict]]:
    """Ask a task's questions, answer greedily in batches, and grade.

    Prompts are answered in order of length, so that a batch holds little padding. A prompt that
    leaves no room in the context counts as answered wrongly with "".

    Args:
        engine: generates.
        task: asks and grades.
        max_tokens: longest answer, tool calls and outputs included.
        batch_size: prompts answered at once.
        limit: ask only the first so many questions.

    Returns:
        The score, and a record a question: index, question, expected, response, whether it ended by
        itself, correct.

    Raises:
        ValueError: there is no question, or batch_size is below 1.
    """
    n = len(task) if limit is None else min(limit, len(task))
    if n < 1 or batch_size < 1:
        raise ValueError(f"{n} questions in batches of {batch_size}: both must be at least 1")
    conversations = [task[i] for i in range(n)]
    prompts = [engine.tokenizer.render_for_completion(c) for c in conversations]
    room = engine.model.config.sequence_len
    order = sorted((i for i in range(n) if len(prompts[i]) < room), key=lambda i: len(prompts[i]))
    responses = [("", False)] * n
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        answers = engine.generate_batch([prompts[i] for i in chosen], max_tokens=max_tokens)
        for i, (tokens, _) in zip(chosen, answers):
            ended = len(tokens) < min(max_tokens, room - len(prompts[i]))
            responses[i] = response_text(engine.tokenizer, tokens), ended
    records = [make_record(task, i, conversations[i], *responses[i]) for i in range(n)]
    return score(sum(record["correct"] for record in records), n), records


# %%
before, records = evaluate_task(engine, test_task, max_tokens=12)
print(
    f"base: {before.accuracy:.0%}, between {before.low:.0%} and {before.high:.0%}, n = {before.n}"
)
for record in records[:3]:
    print(f"{record['question']} -> {record['response']!r}")

# %% [markdown]
# It knows the answer and cannot give it: these tokens never came up in its life. Now 100 steps of
# fine-tuning, on other numbers, with a tenth of the rows kept for the old text.

# %%
config = FinetuneConfig(
    steps=100,
    device_batch_size=8,
    sequence_len=64,
    total_batch_tokens=512,
    text_fraction=0.1,
    dtype="float32",
    compile="off",
)
run = finetune(config, train_task, tokenizer, work / "base", work / "sft", shards, progress=None)
print(f"{run['seconds']:.1f} s, {run['skipped']} conversations skipped")

# %%
chat_model, chat_meta = load_model(work / "sft", tokenizer)
after, records = evaluate_task(Engine(chat_model, tokenizer), test_task, max_tokens=12)
print(f"chat: {after.accuracy:.0%}, between {after.low:.0%} and {after.high:.0%}, n = {after.n}")
for record in records[:3]:
    print(f"{record['question']} -> {record['response']!r}")
assert after.low > max(before.high, test_task.floor), "fine-tuning did not help: check the mask"

# %% [markdown]
# And the promise of the packing: the model gives a conversation in a row of many what it gives it alone.

# %%
rows, _ = next(ConversationLoader(test_task, tokenizer, 1, 64))
chat_model.first_token = tokenizer.bos_id
packed = chat_model(rows)
starts = (rows[0] == tokenizer.bos_id).nonzero().flatten().tolist()
for start, end in zip(starts, [*starts[1:], 64]):
    alone = chat_model(rows[:, start:end])
    assert torch.allclose(packed[:, start:end], alone, atol=1e-4), "a stranger was read"
print(f"{len(starts)} conversations in a row, each as if it were alone")

# %% [markdown]
# None of these numbers was ever asked about in training. The intervals before and after do not
# touch, and the lower end is above the 20% that guessing gets; so this is no accident. A gain of
# three points on 129 questions would be inside the interval, and we could not claim it.
#
# ### Without generating: compare the letters
#
# For multiple choice there is a shortcut. Instead of generating, we read the logits after
# `<|assistant_start|>` and compare the options' letters alone. A model that would rather say
# "Well," still gets a letter, so knowledge is separated from form, and one forward pass does. It is
# the usual way to report MMLU. Both numbers are honest as long as one says which.


# %%
#| export evaluation.chat
def letter_ids(tokenizer: Tokenizer, letters: list[str]) -> list[int]:
    """Find the token of each answer letter; two tokens for one letter would not compare."""
    ids = [tokenizer.encode(letter) for letter in letters]
    if any(len(tokens) != 1 for tokens in ids) or len({tokens[0] for tokens in ids}) < len(ids):
        raise ValueError(f"the letters {letters} are not one token each: got {ids}")
    return [tokens[0] for tokens in ids]


# %%
#| export evaluation.chat
@torch.inference_mode()
def evaluate_categorical(
    engine: Engine, task: Task, batch_size: int = 16, limit: int | None = None
) -> tuple[TaskScore, list[dict]]:
    """Grade multiple choice by the likeliest letter, whatever else the model would rather say.

    Args:
        engine: holds the model and the tokenizer; nothing is generated.
        task: its conversations carry "letters", the options to choose from.
        batch_size: prompts read at once.
        limit: ask only the first so many questions.

    Returns:
        As `evaluate_task`; a prompt longer than the context counts as wrong.

    Raises:
        ValueError: no question, one without letters, a letter of two tokens, or a NaN logit.
    """
    n = len(task) if limit is None else min(limit, len(task))
    if n < 1 or batch_size < 1:
        raise ValueError(f"{n} questions in batches of {batch_size}: both must be at least 1")
    tokenizer, model = engine.tokenizer, engine.model
    device, records = next(model.parameters()).device, []
    for start in range(0, n, batch_size):
        conversations = [task[i] for i in range(start, min(start + batch_size, n))]
        prompts = [tokenizer.render_for_completion(c) for c in conversations]
        width = min(max(map(len, prompts)), model.config.sequence_len)
        rows = [(prompt + [tokenizer.bos_id] * width)[:width] for prompt in prompts]
        logits = model(torch.tensor(rows, device=device))  # (B, T, V); padding cannot be seen
        if bool(logits.isnan().any()):  # argmax would answer A, and score what A scores
            raise ValueError("a logit is NaN: the weights are damaged; load an earlier checkpoint")
        for row, (prompt, conversation) in enumerate(zip(prompts, conversations)):
            letters = conversation.get("letters")
            if not letters:
                raise ValueError(f"question {start + row} has no 'letters' to choose from")
            ids, response = letter_ids(tokenizer, letters), ""
            if len(prompt) <= width:
                response = letters[int(logits[row, len(prompt) - 1, ids].argmax())]
            records.append(make_record(task, start + row, conversation, response))
    return score(sum(record["correct"] for record in records), n), records


# %%
class Parity(Remainders):
    """Is a number even (A) or odd (B)?"""

    floor = 0.5

    def __getitem__(self, index: int) -> dict:
        n = self.numbers[self.check_index(index)]
        user = {"role": "user", "content": f"Is {n} even (A) or odd (B)?"}
        answer = {"role": "assistant", "content": "AB"[n % 2]}
        return {"messages": [user, answer], "letters": ["A", "B"]}


# %%
generated, _ = evaluate_task(Engine(chat_model, tokenizer), Parity("test"), max_tokens=12)
by_letter, _ = evaluate_categorical(Engine(chat_model, tokenizer), Parity("test"))
print(f"generated: {generated.accuracy:.0%}   by letter: {by_letter.accuracy:.0%} of {by_letter.n}")

# %% [markdown]
# Our model never heard of parity and answers `It leaves ...`: nothing by generation, about chance
# by letter. That is the reading to remember: by letter, ignorance scores the floor; by generation,
# it scores zero.
#
# ## The curves of a real run
#
# The laptop run fine-tunes twice: *midtraining* practises skills on conversations, fine-tuning proper (*sft*) has chats of
# every kind (chapter `contact`). Both begin with a fall: the form is new, and within a few dozen steps it is learned. What comes
# after is slow.

# %%
laptop = library_root() / "records/laptop"
losses = json.loads((laptop / "losses.json").read_text(encoding="utf-8"))
report = json.loads((laptop / "report.json").read_text(encoding="utf-8"))

# %%
# alt: training loss of midtraining and of fine-tuning; each falls steeply at first and then slowly
fig, ax = plt.subplots(figsize=(6.5, 3))
done = 0
for stage in ("mid", "sft"):
    every, values = losses[stage]["every"], losses[stage]["losses"]
    near = [values[max(0, i - 4) : i + 5] for i in range(len(values))]
    steps = [done + i * every for i in range(len(values))]
    ax.plot(steps, [sum(part) / len(part) for part in near], label=stage)
    done += len(values) * every
ax.set(xlabel="step", ylabel="loss (nats per token)", yscale="log")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# *Loss of the laptop run in midtraining and fine-tuning, each value a mean over its neighbours.*
#
# And what it said to the same strangers after each stage:

# %%
for turn in report["contact"]["stages"][:8]:
    print(turn["question"][:70])
    for stage in ("base", "mid", "sft"):
        print(f"    {stage:5}{turn[stage][:80]!r}")

# %% [markdown]
# ## Cost
#
# A fine-tuning step costs what a pretraining step costs, `estimate_flops()` for each token of the
# row, learned or not. Targets are fewer: user text, markers and padding are read and not learned.

# %%
# NBVAL_CHECK_OUTPUT
cost_loader = ConversationLoader(train_task, tokenizer, 8, 64)
batches = [next(cost_loader) for _ in range(50)]
learned = sum(int((targets != IGNORE).sum()) for _, targets in batches) / (50 * 8 * 64)
print(f"{learned:.0%} of the tokens carry a loss")

# %%
flops = chat_model.estimate_flops() * run["tokens"]
per_second = flops / run["seconds"]
print(f"{flops:.2e} FLOPs in {run['seconds']:.1f} s: {per_second / 1e9:.1f} GFLOP/s")

# %% [markdown]
# So more than two thirds of the work goes into reading what is never learned. There is no way round
# it: the answer depends on the question. What packing saves is the padding, and that was the larger
# waste.
#
# ## What goes wrong: the mask, one place too early
#
# Here is the bug that cost the most time of all those we know, since nothing complains. The target
# is the next token; the mask is read at the *current* one:


# %%
def shift_targets_early(ids: list[int], mask: list[int]) -> list[int]:
    """Read the mask at the input's place: wrong by one."""
    return [token if learn else IGNORE for token, learn in zip(ids[1:], mask[:-1])]


# %%
# NBVAL_CHECK_OUTPUT
ids, mask = tokenizer.render_conversation(test_task[0])
for name, shift in (("right", shift_targets), ("early", shift_targets_early)):
    wanted = [token for token in shift(ids, mask) if token != IGNORE]
    print(f"{name}: {[tokenizer.decode([token]) for token in wanted]}")

# %% [markdown]
# One token is missing, the first. Everything after it is learned, so the loss falls as it should.
# But what comes after `<|assistant_start|>` is never trained, and at inference the model has to
# begin.


# %%
class EarlyLoader(ConversationLoader):
    """The same loader with the mask read too early."""

    def render(self, draw: int) -> tuple[list[int], list[int]]:
        ids, mask = self.tokenizer.render_conversation(self.task[draw % len(self.task)])
        return ids, shift_targets_early(ids, mask) + [IGNORE]


# %%
early, _ = load_model(work / "base", tokenizer)
early_loader = EarlyLoader(train_task, tokenizer, 8, 64)
early_run = train(
    early,
    build_optimizers(early, rates),
    early_loader,
    quick_loop(100, 64),
    work / "early",
    meta,
    progress=None,
)
wrong, records = evaluate_task(Engine(early, tokenizer), test_task, max_tokens=12)
print(f"{wrong.accuracy:.0%} right, {records[0]['response']!r}")
print(f"loss from {early_run['first_loss']:.2f} to {early_run['final_loss']:.2f}")
assert wrong.high < after.low, "the bug should show"

# %% [markdown]
# The loss is no warning: it falls to nearly nothing, over the tokens that it knows of. Only the
# answers tell. So the check that belongs beside every mask is to decode the targets, and read them.
#
# ## What cannot go wrong: a batch without targets
#
# A batch of one long question, cropped before the answer, has no targets, and chapter `transformer`
# showed what the mean over nothing does to a run. We are safe twice: the loader gives no row without a
# target, and the model's own loss is 0 where nothing is asked.

# %%
no_targets = torch.full((2, 8), IGNORE)
safe_loss = chat_model(torch.zeros(2, 8, dtype=torch.int64), no_targets)
safe_loss.backward()
assert safe_loss.item() == 0.0, "mean over zero targets"
assert all(p.grad is None or torch.isfinite(p.grad).all() for p in chat_model.parameters())

# %% [markdown]
# ## Recap
#
# Fine-tuning is pretraining's loss on other data: conversations packed whole into rows, with
# targets only where the assistant speaks. The knowledge was in the base; a hundred steps gave it a
# voice. A score is a sample, and without floor and interval it is not a result.
#
# In the library now: `nanochat_lib.training.finetune` (`ConversationLoader`, `FinetuneConfig`,
# `finetune`) and `nanochat_lib.evaluation.chat` (`TaskScore`, `wilson_interval`, `evaluate_task`,
# `evaluate_categorical`). The exercises ask how many questions a claim needs, how to compare two
# models that answered the same ones, and what fine-tuning forgets. The next chapter lets you talk to the model.
