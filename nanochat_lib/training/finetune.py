# Generated from chapters/17_finetuning.py by `course build`; edit that file.
"""Fine-tune a pretrained model on conversations: packing, masks, and the run itself."""

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

__all__ = ["IGNORE", "shift_targets", "ConversationLoader", "FinetuneConfig", "finetune"]

IGNORE = -1


def shift_targets(ids: list[int], mask: list[int]) -> list[int]:
    """List what each position must predict: the next token if its mask is 1, else -1.

    Example: ids [5, 6, 7], mask [0, 0, 1] -> [-1, 7]; one shorter: the last predicts nothing.
    """
    return [token if learn else IGNORE for token, learn in zip(ids[1:], mask[1:])]


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
