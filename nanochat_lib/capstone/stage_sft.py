# Generated from chapters/20_capstone.py by `course build`; edit that file.
"""Stage 4: fine-tune on conversations."""

from dataclasses import dataclass
from pathlib import Path

from nanochat_lib.capstone.stage_data import DataConfig
from nanochat_lib.data.documents import list_shards
from nanochat_lib.data.tinyworld import World
from nanochat_lib.tasks.practice import chat_mixture
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.finetune import FinetuneConfig, finetune

__all__ = ["ChatDataConfig", "train_sft"]


@dataclass(frozen=True)
class ChatDataConfig:
    """Count the training conversations; the loop reads them again when it needs more."""

    conversations: int = 4000
    seed: int = 0


def train_sft(
    folder: Path,
    inputs: dict[str, Path],
    data: DataConfig,
    chat: ChatDataConfig,
    config: FinetuneConfig,
) -> dict:
    """Fine-tune the base model on conversations, with some pretraining text among them."""
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    conversations = chat_mixture(World(data.world_seed), chat.conversations, chat.seed)
    text_shards = list_shards(inputs["data"] / "train")
    return finetune(config, conversations, tokenizer, inputs["base"], folder, text_shards)
