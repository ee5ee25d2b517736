# Generated from chapters/11_pretraining.py by `course build`; edit that file.
"""Train a GPT from scratch on shards of text."""

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
from nanochat_lib.training.loader import PackingLoader
from nanochat_lib.training.loop import train
from nanochat_lib.training.optim import OptimConfig, build_optimizers
from nanochat_lib.training.step import LoopConfig

__all__ = ["PretrainConfig", "validation_batches", "pretrain", "run_command", "main"]


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


def validation_batches(
    config: PretrainConfig, shards: list[Path], tokenizer: Tokenizer, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Pack the same validation text for every evaluation: about config.eval_tokens, fewer if it ends."""
    size, length = config.device_batch_size, config.sequence_len
    loader = PackingLoader(shards, tokenizer, size, length, loop=False)
    n_batches = max(1, config.eval_tokens // (size * length))
    return [(x.to(device), y.to(device)) for x, y in islice(loader, n_batches)]


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


def main() -> None:
    """Run `python -m nanochat_lib.training.pretrain --help`."""
    import tyro  # only the command line needs it

    tyro.cli(run_command)


if __name__ == "__main__":
    raise SystemExit(main())
