# Generated from chapters/20_capstone.py by `course build`; edit that file.
"""Stages 4 and 5: midtraining and fine-tuning on conversations."""

from dataclasses import dataclass
from pathlib import Path

from nanochat_lib.capstone.stage_data import DataConfig
from nanochat_lib.data.documents import list_shards
from nanochat_lib.data.tinyworld import World
from nanochat_lib.tasks.base import Task
from nanochat_lib.tasks.practice import chat_mixture
from nanochat_lib.tasks.unknown import MID_SHARES, SFT_SHARES
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.finetune import FinetuneConfig, finetune

__all__ = ["ChatDataConfig", "stage_conversations", "train_mid", "train_sft"]


@dataclass(frozen=True)
class ChatDataConfig:
    """Count the training conversations; the loop reads them again when it needs more."""

    conversations: int = 4000
    seed: int = 0


def stage_conversations(
    stage: str, data: DataConfig, chat: ChatDataConfig, tokenizer: Tokenizer | None = None
) -> Task:
    """Mix the conversations of stage "mid" or "sft"."""
    shares = {"mid": MID_SHARES, "sft": SFT_SHARES}[stage]
    return chat_mixture(World(data.world_seed), chat.conversations, chat.seed, shares, tokenizer)


def train_mid(
    folder: Path,
    inputs: dict[str, Path],
    data: DataConfig,
    chat: ChatDataConfig,
    config: FinetuneConfig,
) -> dict:
    """Train the base model on skills: letters, sums, questions of many kinds."""
    tokenizer, text = Tokenizer.load(inputs["tokenizer"]), list_shards(inputs["data"] / "train")
    conversations = stage_conversations("mid", data, chat, tokenizer)
    return finetune(config, conversations, tokenizer, inputs["base"], folder, text, stage="mid")


def train_sft(
    folder: Path,
    inputs: dict[str, Path],
    data: DataConfig,
    chat: ChatDataConfig,
    config: FinetuneConfig,
) -> dict:
    """Train the midtrained model on chats of every kind, refusals among them."""
    tokenizer, text = Tokenizer.load(inputs["tokenizer"]), list_shards(inputs["data"] / "train")
    conversations = stage_conversations("sft", data, chat, tokenizer)
    return finetune(config, conversations, tokenizer, inputs["mid"], folder, text, stage="sft")
