# Generated from chapters/20_capstone.py by `course build`; edit that file.
"""Stage 6: reinforcement learning on what can be checked."""

import dataclasses
from pathlib import Path

from nanochat_lib.capstone.stage_chat import ChatDataConfig, stage_conversations
from nanochat_lib.capstone.stage_data import DataConfig
from nanochat_lib.data.documents import list_shards
from nanochat_lib.data.english import first_messages
from nanochat_lib.data.tinyworld import World
from nanochat_lib.evaluation.chat import evaluate_task
from nanochat_lib.inference.engine import Engine
from nanochat_lib.inference.packed import PackedGPT
from nanochat_lib.model.gpt import GPT
from nanochat_lib.tasks.base import Task
from nanochat_lib.tasks.steps import TwoSteps, two_step_tests
from nanochat_lib.tasks.tinyworld import message_key
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.finetune import ConversationLoader, FinetuneConfig
from nanochat_lib.training.rl import train_rl
from nanochat_lib.training.rl_sampler import RLConfig

__all__ = ["QUESTIONS", "practice", "reinforce"]

QUESTIONS = 4_000  # to practise; the laptop profile asks half of them


def practice(data: DataConfig, chat: ChatDataConfig) -> Task:
    """Return the questions that are asked for a reward, none of them a first message."""
    task = TwoSteps(World(data.world_seed), "train", QUESTIONS, seed=chat.seed + 1)
    task.avoid = frozenset(message_key(message) for _, message in first_messages())
    return task


def reinforce(
    folder: Path,
    inputs: dict[str, Path],
    data: DataConfig,
    chat: ChatDataConfig,
    sft: FinetuneConfig,
    config: RLConfig,
) -> dict:
    """Practise two-step problems for a reward, and keep the checkpoint that does best on questions for that."""
    tokenizer, text = Tokenizer.load(inputs["tokenizer"]), list_shards(inputs["data"] / "train")
    conversations = stage_conversations("sft", data, dataclasses.replace(chat, seed=chat.seed + 1))
    replay = ConversationLoader(
        conversations,
        tokenizer,
        config.replay_rows,
        sft.sequence_len,
        text_shards=text,
        text_fraction=sft.text_fraction,
        chain=sft.chain,
    )
    choosing, _ = two_step_tests(World(data.world_seed), 0)

    def evaluate(model: GPT) -> float:
        """Answer the questions that choose, greedily."""
        return evaluate_task(Engine(PackedGPT(model), tokenizer), choosing, config.max_tokens)[
            0
        ].accuracy

    task, source = practice(data, chat), inputs["sft"]
    return train_rl(config, task, tokenizer, source, folder, replay, evaluate)
