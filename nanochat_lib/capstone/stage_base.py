# Generated from chapters/20_capstone.py by `course build`; edit that file.
"""Stage 3: pretrain the base model."""

from pathlib import Path

from nanochat_lib.capstone.stage_data import training_shards
from nanochat_lib.data.documents import list_shards
from nanochat_lib.machine import machine_summary
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.pretrain import PretrainConfig, pretrain

__all__ = ["train_base"]


def train_base(folder: Path, inputs: dict[str, Path], config: PretrainConfig) -> dict:
    """Pretrain on the curriculum, in file order."""
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    train_shards = training_shards(inputs["data"])
    validation_shards = list_shards(inputs["data"] / "validation_tinyworld")
    summary = pretrain(config, train_shards, validation_shards, tokenizer, folder)
    return {"summary": summary, "machine": machine_summary()}
