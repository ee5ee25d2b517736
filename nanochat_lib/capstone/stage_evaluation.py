# Generated from chapters/20_capstone.py by `course build`; edit that file.
"""Stage 7: measure the models against floors and against each other."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from nanochat_lib.capstone.stage_chat import ChatDataConfig, stage_conversations
from nanochat_lib.capstone.stage_data import DataConfig, training_shards, validation_sets
from nanochat_lib.capstone.stage_rl import practice
from nanochat_lib.common import atomic_write
from nanochat_lib.data.documents import stream_documents
from nanochat_lib.data.english import first_messages
from nanochat_lib.data.synthetic import OPENINGS
from nanochat_lib.data.tinyworld import World
from nanochat_lib.evaluation.bpb import BigramModel, bigram_counts, evaluate_bpb
from nanochat_lib.evaluation.chat import evaluate_task
from nanochat_lib.evaluation.contact import FirstContact
from nanochat_lib.evaluation.samples import count_right, mean_with_interval, pass_at_k
from nanochat_lib.inference.engine import Engine
from nanochat_lib.inference.packed import PackedGPT
from nanochat_lib.model.gpt import GPT
from nanochat_lib.tasks.base import Task, content_text
from nanochat_lib.tasks.contact import CountLetters
from nanochat_lib.tasks.contamination import contamination
from nanochat_lib.tasks.steps import two_step_tests
from nanochat_lib.tasks.tinyworld import heldout_tasks, message_key
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.checkpoint import load_model
from nanochat_lib.training.loader import PackingLoader

__all__ = [
    "EvaluationConfig",
    "load_models",
    "uniform_model",
    "bigram_model",
    "measure_bits",
    "story_samples",
    "score_task",
    "describe_model",
    "describe_tasks",
    "all_tests",
    "find_leaks",
    "score_hard",
    "evaluate_models",
]


@dataclass(frozen=True)
class EvaluationConfig:
    """Say how much is asked of the finished model, and of the two it is compared with."""

    questions: int = 200
    baseline_questions: int = 50
    hard_questions: int = 1000
    tries: int = 4
    max_tokens: int = 112
    batch_size: int = 64
    batches: int = 16
    samples: int = 4
    sample_tokens: int = 64
    temperature: float = 0.8
    seed: int = 0


def load_models(inputs: dict[str, Path], tokenizer: Tokenizer) -> dict[str, GPT]:
    """Load the trained models, and build the one that training started from, on the CPU."""
    base, meta = load_model(inputs["base"], tokenizer)
    chat = {stage: load_model(inputs[stage], tokenizer)[0] for stage in ("mid", "sft", "rl")}
    untrained = GPT(base.config)
    untrained.init_weights(torch.Generator().manual_seed(meta["pretrain"]["seed"]))
    return {"untrained": untrained, "base": base, **chat}


def uniform_model(vocab_size: int) -> Callable[..., Tensor]:
    """Return a model that finds every token equally likely, with the call of `GPT`."""

    def losses(idx: Tensor, targets: Tensor, loss_reduction: str = "none") -> Tensor:
        return torch.full(targets.shape, math.log(vocab_size))

    return losses


def bigram_model(shards: list[Path], tokenizer: Tokenizer) -> BigramModel:
    """Count the bigrams of the training text."""
    ids = []
    for text, _ in stream_documents(shards, loop=False):
        ids += tokenizer.encode(text, prepend=tokenizer.bos_id)
    return BigramModel(bigram_counts(torch.tensor(ids), tokenizer.vocab_size))


def measure_bits(
    models: dict[str, GPT], inputs: dict[str, Path], tokenizer: Tokenizer, config: EvaluationConfig
) -> dict[str, dict[str, float]]:
    """Measure bits per byte of every model and of two floors, all on the same batches.

    Returns:
        Validation set -> model -> bits per byte.
    """
    floors = {
        "uniform": uniform_model(tokenizer.vocab_size),
        "bigram": bigram_model(training_shards(inputs["data"]), tokenizer),
    }
    token_bytes = torch.tensor(tokenizer.token_bytes())
    sequence_len = models["base"].config.sequence_len
    bits = {}
    for name, shards in validation_sets(inputs["data"]).items():
        loader = PackingLoader(shards, tokenizer, 8, sequence_len, loop=False)
        batches = list(islice(loader, config.batches))
        bits[name.removeprefix("validation_")] = {
            name: evaluate_bpb(model, batches, token_bytes)
            for name, model in {**floors, **models}.items()
        }
    return bits


def story_samples(model: GPT, tokenizer: Tokenizer, config: EvaluationConfig) -> list[dict]:
    """Let the base model go on after the openings of stories."""
    openings = OPENINGS[: config.samples]
    prompts = [tokenizer.encode(text, prepend=tokenizer.bos_id) for text in openings]
    answers = Engine(model, tokenizer).generate_batch(
        prompts, config.sample_tokens, temperature=config.temperature, seed=config.seed
    )
    texts = [tokenizer.decode([i for i in ids if i != tokenizer.bos_id]) for ids, _ in answers]
    return [{"opening": o, "continuation": t} for o, t in zip(openings, texts)]


def score_task(
    models: dict[str, GPT], model: str, tokenizer: Tokenizer, task: Task, config: EvaluationConfig
) -> dict:
    """Ask one model the questions of one task; keep the score and every answer."""
    few = {"untrained": config.baseline_questions, "base": config.baseline_questions}
    limit = few.get(model)  # None: all there are
    engine = Engine(PackedGPT(models[model]), tokenizer)
    score, answers = evaluate_task(engine, task, config.max_tokens, config.batch_size, limit)
    return {"score": dataclasses.asdict(score), "answers": answers}


def describe_model(model: GPT) -> dict:
    """Note the sizes of a model, and what a token costs in training."""
    return {
        "config": dataclasses.asdict(model.config),
        "parameters": model.num_params(),
        "flops_per_token": model.estimate_flops(),
    }


def describe_tasks(tasks: dict[str, Task]) -> dict[str, dict]:
    """Note what each task asks, and what a model gets that knows nothing."""
    names = ("title", "floor", "floor_name")
    return {key: {name: getattr(task, name) for name in names} for key, task in tasks.items()}


def all_tests(world: World, size: int) -> dict[str, Task]:
    """Return every test by name, of at most `size` questions but for the first messages."""
    real = CountLetters(world, "test", size)
    skills = {"real_words": real, "two_steps": two_step_tests(world, size)[1]}
    contact = {"first_contact": FirstContact(world), "third_turn": FirstContact(world, before=2)}
    return heldout_tasks(world, size) | skills | contact


def find_leaks(documents: Iterable[str], chats: list[Task], tasks: dict[str, Task]) -> list[str]:
    """List the test questions that stand in training text, and the first messages that training asks."""
    asked = set()

    def texts() -> Iterator[str]:
        yield from documents
        for chat in chats:
            for conversation in chat:
                messages = conversation["messages"]
                asked.update(message_key(message["content"]) for message in messages[::2])
                yield from (content_text(message["content"]) for message in messages)

    questions = {k: task for k, task in tasks.items() if not isinstance(task, FirstContact)}
    found = contamination(texts(), questions)
    return found + [text for _, text in first_messages() if message_key(text) in asked]


def score_hard(model: GPT, tokenizer: Tokenizer, world: World, config: EvaluationConfig) -> dict:
    """Ask problems of two steps, none of which chose a checkpoint, greedily and in several tries each.

    Returns:
        "greedy" and "sampled" scores, and "pass_at": the chance of a right one in 1, 2, ... tries.
    """
    engine, tries = Engine(PackedGPT(model), tokenizer), config.tries
    _, task = two_step_tests(world, config.hard_questions)
    greedy, _ = evaluate_task(engine, task, config.max_tokens, config.batch_size)
    right = count_right(engine, task, tries, config.max_tokens, seed=config.seed)
    chances = {
        k: sum(pass_at_k(tries, c, k) for c in right) / len(right) for k in range(1, tries + 1)
    }
    sampled = mean_with_interval([c / tries for c in right])
    return {"greedy": dataclasses.asdict(greedy), "sampled": sampled, "pass_at": chances}


def evaluate_models(
    folder: Path,
    inputs: dict[str, Path],
    data: DataConfig,
    chat: ChatDataConfig,
    config: EvaluationConfig,
) -> dict:
    """Measure the untrained model and that of every stage, one file a finished piece.

    Everything runs in float32 with fixed seeds, so a piece measured again comes out the same.
    """
    world, tokenizer = World(data.world_seed), Tokenizer.load(inputs["tokenizer"])
    models, tasks = load_models(inputs, tokenizer), all_tests(world, config.questions)
    stream = stream_documents(training_shards(inputs["data"]), loop=False)
    chats = [stage_conversations(stage, data, chat, tokenizer) for stage in ("mid", "sft")]
    chats.append(practice(data, chat))
    pieces = {
        "bits_per_byte": partial(measure_bits, models, inputs, tokenizer, config),
        "samples": partial(story_samples, models["base"], tokenizer, config),
        "contamination": partial(find_leaks, (text for text, _ in stream), chats, tasks),
    }
    for model, task in product(models, tasks):
        piece = partial(score_task, models, model, tokenizer, tasks[task], config)
        pieces[f"{model}.{task}"] = piece
    for model in ("sft", "rl"):
        pieces[f"{model}.hard"] = partial(score_hard, models[model], tokenizer, world, config)
    for name in track(pieces, description="evaluation", disable=not Console().is_terminal):
        if not (folder / f"{name}.json").exists():
            atomic_write(folder / f"{name}.json", json.dumps(pieces[name](), indent=1))
    return describe_model(models["base"]) | {"tasks": describe_tasks(tasks)}
