# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The capstone: from raw text to a chat, in one command
#
# We have all the parts: text, tokenizer, model, optimizer, loader, tasks, fine-tuning, engine. Do
# they make a whole? And when somebody asks "how good is it?", what may we answer? This chapter
# ties the parts into one run that anybody can start, stop, kill and repeat, and that ends with a
# report in which no number was typed.
#
# ```python
# run_profile(load_profile("laptop"))   # minutes later: report.md, and a model that talks
# ```
#
# You need every chapter before this one, but only their names. What decides which stage must run
# again, and what lays out the page, stands in the workshop (chapters "pipeline" and "report"). Here
# are the stages, what a run costs, and how to read its report. The chapter runs a small profile
# from start to end, kills a training process on the way, and takes about half a minute on a laptop.
# It ends with the record of a real laptop run: the small one shows that every part works, not that
# the model is any good.

# %%
import contextlib
import io
import subprocess
import sys
import tempfile
import time

import matplotlib.pyplot as plt

from nanochat_lib.capstone.layout import markdown_table, show_tools, task_rows
from nanochat_lib.evaluation.chat import wilson_interval

scratch = tempfile.TemporaryDirectory()

# %% [markdown]
# ## The stages of nanochat
#
# Six stages make a chat model. Each is a module of its own, with its settings beside it, and
# that is no question of taste: a stage's fingerprint covers its module and all that it imports.
# If data and training shared a file, an edit to the training would regenerate the data, which
# would rebuild the tokenizer, which would...
#
# ```text
# data ──> tokenizer ──> base ──> mid ──> sft ──> rl ──> evaluation ──> report
#   └──────────┴───────────┴────────┴───────┴──────┴─────────┘   each may read all folders before it
# ```
#
# ### Data
#
# The corpus is TinyWorld from chapter "tinyworld": lists first, then the mixture. Real English is
# mixed in, from Python's own documentation, because a model that never saw real text cannot be
# measured on it. Three small functions prepare it.

# %%
#| default_exp capstone.stage_data
# Stage 1: write the corpus.

# %%
#| export
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nanochat_lib
from nanochat_lib.capstone.pipeline import nearest
from nanochat_lib.capstone.record import read_json
from nanochat_lib.common import atomic_write, local_generator
from nanochat_lib.data.documents import list_shards, python_docs, stream_documents, write_shards
from nanochat_lib.data.synthetic import curriculum, validation_documents
from nanochat_lib.data.tinyworld import World


# %%
#| export
@dataclass(frozen=True)
class DataConfig:
    """Size the corpus: synthetic documents, and a share of real English.

    The warm-up documents come first, then `documents` of the mix, with the English spread evenly among them.
    English is cut into passages of about `passage_bytes`, because a packed row crops what does not fit it.
    """

    world_seed: int = 0
    seed: int = 0
    warmup_documents: int = 1000
    documents: int = 4000
    validation_documents: int = 200
    english_bytes: int = 100_000
    english_validation_bytes: int = 20_000
    passage_bytes: int = 500


# %% [markdown]
# Packing crops a document that is longer than a row, so a manual page of 20,000 bytes would
# mostly be thrown away. We cut it between lines.


# %%
#| export
def passages(text: str, most_bytes: int) -> Iterator[str]:
    """Cut a text between lines into pieces of at most `most_bytes`; a longer line stays whole."""
    piece, size = [], 0
    for line in re.findall(r".*\n|.+", text):  # splitlines() would cut at form feeds and others too
        n_bytes = len(line.encode("utf-8"))
        if piece and size + n_bytes > most_bytes:
            yield "".join(piece)
            piece, size = [], 0
        piece.append(line)
        size += n_bytes
    if piece:
        yield "".join(piece)


# %%
# NBVAL_CHECK_OUTPUT
pieces = list(passages("one\ntwo\nthree is longer\n", most_bytes=8))
print(pieces)
assert "".join(pieces) == "one\ntwo\nthree is longer\n"

# %% [markdown]
# Training and validation never share a document, only the library it came from. If passages of
# one page stood on both sides, the validation score would reward remembering the page.


# %%
#| export
def english_passages(config: DataConfig) -> tuple[list[str], list[str]]:
    """Take passages of Python's documentation for training and for validation, never from one document.

    Returns:
        Training passages, shuffled, and validation passages (from every tenth document).
    """
    parts = {"train": [], "validation": []}
    room = {"train": config.english_bytes, "validation": config.english_validation_bytes}
    for i, text in enumerate(python_docs()):
        if max(room.values()) <= 0:
            break
        part = "validation" if i % 10 == 9 else "train"
        for passage in passages(text, config.passage_bytes):
            if room[part] > 0:
                parts[part].append(passage)
                room[part] -= len(passage.encode("utf-8"))
    local_generator("english", config.seed).shuffle(parts["train"])
    return parts["train"], parts["validation"]


# %%
#| export
def spread(documents: Iterable[str], extras: list[str], total: int) -> Iterator[str]:
    """Mix extras evenly into a stream of about `total` documents.

    Example: documents a b c d, extras x y, total 4 -> a b x c d y.
    """
    given = 0
    for number, document in enumerate(documents, start=1):
        yield document
        due = number * len(extras) // max(total, 1)
        yield from extras[given:due]
        given = max(given, due)


# %%
#| export
def prepare_data(folder: Path, inputs: dict[str, Path], config: DataConfig) -> dict:
    """Write the training shards and two validation sets; count documents and bytes of each."""
    world = World(config.world_seed)
    english, english_held_out = english_passages(config)
    if config.warmup_documents:
        warmup = curriculum(world, config.warmup_documents, 0, config.seed)
        write_shards(warmup, folder / "warmup")
    mixture = curriculum(world, 0, config.documents, config.seed)
    write_shards(spread(mixture, english, config.documents), folder / "train")
    # Another seed: validation asks for documents of the same kinds, not for the same documents.
    validation = validation_documents(world, config.validation_documents, config.seed + 1)
    write_shards(validation, folder / "validation_tinyworld")
    if english_held_out:
        write_shards(english_held_out, folder / "validation_english")
    counts = {}
    for part in ("train", "validation_english", "validation_tinyworld", "warmup"):
        shards = list_shards(folder / part) if (folder / part).exists() else []
        sizes = (
            [len(text.encode()) for text, _ in stream_documents(shards, loop=False)]
            if shards
            else []
        )
        counts[part] = {"documents": len(sizes), "bytes": sum(sizes)}
    english_bytes = sum(len(text.encode()) for text in english)
    return {"parts": counts, "english_share": english_bytes / counts["train"]["bytes"]}


# %% [markdown]
# Pretraining reads the warm-up, then the mixture. Fine-tuning, which keeps a share of text so that
# the facts are not forgotten, reads the mixture alone: lists hold no facts.


# %%
#| export
def training_shards(data: Path) -> list[Path]:
    """List the shards of pretraining text in reading order: the warm-up, if any, then the mixture."""
    warmup = data / "warmup"
    return (list_shards(warmup) if warmup.exists() else []) + list_shards(data / "train")


def validation_sets(data: Path) -> dict[str, list[Path]]:
    """Map the name of each validation set that was written to its shards."""
    names = ("validation_english", "validation_tinyworld")
    return {name: list_shards(data / name) for name in names if (data / name).exists()}


# %%
assert list(spread("abcd", ["x", "y"], total=4)) == list("abxcdy")
with tempfile.TemporaryDirectory() as name:
    tiny = DataConfig(
        warmup_documents=20, documents=80, english_bytes=3_000, validation_documents=5
    )
    print(prepare_data(Path(name), {}, tiny))

# %% [markdown]
# ### Tokenizer, base model, fine-tuning
#
# The next three stages only call what we have. The tokenizer learns from the whole training text,
# English included. Its record keeps the compression on both validation sets, because bits per
# byte and tokens per byte together tell where a loss comes from.

# %%
#| default_exp capstone.stage_tokenizer
# Stage 2: learn the vocabulary.

# %%
#| export
from nanochat_lib.data.documents import stream_documents
from nanochat_lib.tokenizer.bpe import split_pattern
from nanochat_lib.tokenizer.tokenizer import Tokenizer


# %%
#| export
@dataclass(frozen=True)
class TokenizerConfig:
    """Size the vocabulary, special tokens included, and say how many digits a token may hold."""

    vocab_size: int = 1024
    max_digits: int = 1


def train_tokenizer(folder: Path, inputs: dict[str, Path], config: TokenizerConfig) -> dict:
    """Learn the vocabulary from the training text; measure how it compresses the validation sets."""
    texts = (text for text, _ in stream_documents(training_shards(inputs["data"]), loop=False))
    tokenizer = Tokenizer.train(texts, config.vocab_size, split_pattern(config.max_digits))
    tokenizer.save(folder)
    bytes_per_token = {}
    for name, shards in validation_sets(inputs["data"]).items():
        texts = [text for text, _ in stream_documents(shards, loop=False)]
        n_tokens = sum(len(ids) for ids in tokenizer.encode(texts))
        bytes_per_token[name] = sum(len(text.encode()) for text in texts) / n_tokens
    return {"hash": tokenizer.hash, "bytes_per_token": bytes_per_token}


# %%
#| default_exp capstone.stage_base
# Stage 3: pretrain the base model.

# %%
#| export
from nanochat_lib.machine import machine_summary
from nanochat_lib.data.documents import list_shards
from nanochat_lib.training.pretrain import PretrainConfig, pretrain

# %% [markdown]
# Where a model was trained belongs to its record: seconds without a machine say nothing.


# %%
#| export
def train_base(folder: Path, inputs: dict[str, Path], config: PretrainConfig) -> dict:
    """Pretrain on the curriculum, in file order."""
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    train_shards = training_shards(inputs["data"])
    validation_shards = list_shards(inputs["data"] / "validation_tinyworld")
    summary = pretrain(config, train_shards, validation_shards, tokenizer, folder)
    return {"summary": summary, "machine": machine_summary()}


# %%
#| default_exp capstone.stage_chat
# Stages 4 and 5: midtraining and fine-tuning on conversations.

# %%
#| export
from nanochat_lib.tasks.base import Task
from nanochat_lib.tasks.practice import chat_mixture
from nanochat_lib.tasks.unknown import MID_SHARES, SFT_SHARES
from nanochat_lib.training.finetune import FinetuneConfig, finetune

# %% [markdown]
# Midtraining and fine-tuning read conversations, each its own mixture (chapter `contact`), and again
# some pretraining text, so that what the base model knew is not overwritten. They are one function
# with two diets.


# %%
#| export
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


# %% [markdown]
# ### Reinforcement learning
#
# What fine-tuning left half learned on purpose, problems of two steps, is practised for a reward
# (chapter `rl`). Beside each update goes a batch of the fine-tuning conversations.

# %%
#| default_exp capstone.stage_rl
# Stage 6: reinforcement learning on what can be checked.

# %%
#| export
from nanochat_lib.capstone.stage_chat import ChatDataConfig, stage_conversations
from nanochat_lib.data.english import first_messages
from nanochat_lib.evaluation.chat import evaluate_task
from nanochat_lib.inference.engine import Engine
from nanochat_lib.inference.packed import PackedGPT
from nanochat_lib.model.gpt import GPT
from nanochat_lib.tasks.steps import TwoSteps, two_step_tests
from nanochat_lib.tasks.tinyworld import message_key
from nanochat_lib.training.finetune import ConversationLoader
from nanochat_lib.training.rl import train_rl
from nanochat_lib.training.rl_sampler import RLConfig

QUESTIONS = 4_000  # to practise; the laptop profile asks half of them


# %%
#| export
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


# %% [markdown]
# ### Evaluation
#
# Five models answer the same held-out questions: the one we started from, and those of the four
# trainings. The first two look like a waste of time. They are the control group: if an
# untrained network gets 25%, then 30% after training is no skill. The base model has never seen
# the markers of a conversation, so it shows what fine-tuning adds.

# %%
#| default_exp capstone.stage_evaluation
# Stage 7: measure the models against floors and against each other.

# %%
#| export
import math
from collections.abc import Callable
from functools import partial
from itertools import islice, product
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from nanochat_lib.common import atomic_write
from nanochat_lib.evaluation.bpb import BigramModel, bigram_counts, evaluate_bpb
from nanochat_lib.evaluation.chat import evaluate_task
from nanochat_lib.evaluation.contact import FirstContact
from nanochat_lib.evaluation.samples import count_right, mean_with_interval, pass_at_k
from nanochat_lib.inference.engine import Engine
from nanochat_lib.inference.packed import PackedGPT
from nanochat_lib.model.gpt import GPT
from nanochat_lib.tasks.base import Task, content_text
from nanochat_lib.data.synthetic import OPENINGS
from nanochat_lib.tasks.contact import CountLetters
from nanochat_lib.data.english import first_messages
from nanochat_lib.tasks.contamination import contamination
from nanochat_lib.tasks.steps import two_step_tests
from nanochat_lib.tasks.tinyworld import heldout_tasks, message_key
from nanochat_lib.training.checkpoint import load_model
from nanochat_lib.training.loader import PackingLoader


# %%
#| export
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


# %%
#| export
def load_models(inputs: dict[str, Path], tokenizer: Tokenizer) -> dict[str, GPT]:
    """Load the trained models, and build the one that training started from, on the CPU."""
    base, meta = load_model(inputs["base"], tokenizer)
    chat = {stage: load_model(inputs[stage], tokenizer)[0] for stage in ("mid", "sft", "rl")}
    untrained = GPT(base.config)
    untrained.init_weights(torch.Generator().manual_seed(meta["pretrain"]["seed"]))
    return {"untrained": untrained, "base": base, **chat}


# %% [markdown]
# Bits per byte get two floors from chapter "baseline": a model that finds all tokens equally
# likely, and one that counts pairs. Both have the same call as the GPT, so one function measures
# all of them on the same batches.


# %%
#| export
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


# %%
coin = uniform_model(vocab_size=2)(torch.zeros(1, 3), torch.zeros(1, 3))
assert torch.allclose(coin, torch.full((1, 3), math.log(2))), (
    f"got {coin.tolist()}: are these nats?"
)


# %%
#| export
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


# %%
#| export
def story_samples(model: GPT, tokenizer: Tokenizer, config: EvaluationConfig) -> list[dict]:
    """Let the base model go on after the openings of stories."""
    openings = OPENINGS[: config.samples]
    prompts = [tokenizer.encode(text, prepend=tokenizer.bos_id) for text in openings]
    answers = Engine(model, tokenizer).generate_batch(
        prompts, config.sample_tokens, temperature=config.temperature, seed=config.seed
    )
    texts = [tokenizer.decode([i for i in ids if i != tokenizer.bos_id]) for ids, _ in answers]
    return [{"opening": o, "continuation": t} for o, t in zip(openings, texts)]


# %% [markdown]
# The stage consists of pieces, each of which leaves one file: bits per byte, the samples, the
# contamination check, and a file for each model and task. After a kill, only the piece in hand is
# lost.


# %%
#| export
def score_task(
    models: dict[str, GPT], model: str, tokenizer: Tokenizer, task: Task, config: EvaluationConfig
) -> dict:
    """Ask one model the questions of one task; keep the score and every answer."""
    few = {"untrained": config.baseline_questions, "base": config.baseline_questions}
    limit = few.get(model)  # None: all there are
    engine = Engine(PackedGPT(models[model]), tokenizer)
    score, answers = evaluate_task(engine, task, config.max_tokens, config.batch_size, limit)
    return {"score": dataclasses.asdict(score), "answers": answers}


# %%
#| export
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


# %% [markdown]
# The tests are TinyWorld's five, letters of real words, problems of two steps, and the first messages. The last are often
# too short to be searched for in all texts ("hi"); they are leaks where a whole training question is
# one of them.


# %%
#| export
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


# %% [markdown]
# What reinforcement changed gets more questions than the table has, and several tries at each: the share of right tries, and
# the chance that one of $k$ is right.


# %%
#| export
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


# %%
#| export
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


# %% [markdown]
# ## Profiles
#
# A *profile* holds every setting of a run. It is a dataclass of the stages' own dataclasses, with
# laptop-sized defaults; `course.toml` names what differs.

# %%
#| default_exp capstone.profiles
# Profiles: every setting of a run, read from course.toml.

# %%
#| export
import tomllib
import typing
from nanochat_lib.training.finetune import FinetuneConfig
from nanochat_lib.training.pretrain import PretrainConfig
from nanochat_lib.training.rl_sampler import RLConfig


# %%
#| export
@dataclass(frozen=True)
class Profile:
    """Hold every setting of a run; each stage has its own part."""

    name: str
    about: str = ""
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    base: PretrainConfig = PretrainConfig()
    chat: ChatDataConfig = ChatDataConfig()
    mid: FinetuneConfig = FinetuneConfig()
    sft: FinetuneConfig = FinetuneConfig()
    rl: RLConfig = RLConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


# %% [markdown]
# Whoever edits a settings file makes typing mistakes. A program that ignores `documnts = 90_000`
# runs for an hour with the wrong corpus, so unknown names are errors. So are values of the wrong
# type.


# %%
#| export
import math


def check_value(value: object, wanted: object, where: str) -> object:
    """Return a TOML value as the type a field wants, or say what it should have been.

    Raises:
        ValueError: the value has another type, or is none of the choices of a Literal.
    """
    choices = typing.get_args(wanted)
    if typing.get_origin(wanted) is typing.Literal:
        if value in choices:
            return value
        raise ValueError(f"{where} = {value!r}: must be one of {', '.join(map(repr, choices))}")
    if typing.get_origin(wanted) is tuple and isinstance(value, list):
        return tuple(value)
    allowed = choices or (wanted,)
    if float in allowed and type(value) is int:
        return float(value)
    if type(value) is float and not math.isfinite(value):
        raise ValueError(f"{where} = {value!r}: must be a finite number")
    if type(value) in allowed:  # not isinstance: True would pass as a number
        return value
    names = " or ".join(kind.__name__ for kind in allowed if kind is not type(None))
    raise ValueError(f"{where} = {value!r}: must be {names}")


# %%
#| export
def fill_config(start: object, table: dict, where: str) -> object:
    """Change a configuration by a TOML table; what the table leaves out stays as it is.

    Example: fill_config(DataConfig(), {"documents": 9}, "profile.mini.data") -> DataConfig(documents=9).

    Args:
        start: a dataclass object; fields that are dataclasses are changed by sub-tables.
        table: field name -> value.
        where: the table's name, for messages.

    Returns:
        A new object of the same class.

    Raises:
        ValueError: an unknown name (the nearest known one is given), or a value of the wrong type.
    """
    wanted = typing.get_type_hints(type(start))
    values = {}
    for key, value in table.items():
        if key not in wanted:
            raise ValueError(f"[{where}] has no setting {key!r}: {nearest(key, wanted)}")
        if not dataclasses.is_dataclass(wanted[key]):
            values[key] = check_value(value, wanted[key], f"{where}.{key}")
        elif isinstance(value, dict):
            values[key] = fill_config(getattr(start, key), value, f"{where}.{key}")
        else:
            raise ValueError(f"{where}.{key} = {value!r}: must be a table [{where}.{key}]")
    return dataclasses.replace(start, **values)


# %%
# NBVAL_CHECK_OUTPUT
for table in ({"documnts": 9}, {"documents": "many"}, {"documents": True}):
    try:
        fill_config(DataConfig(), table, "profile.mini.data")
    except ValueError as error:
        print(error)

# %% [markdown]
# The last of these is a Python speciality: `True` is an `int`, and `isinstance` would let it
# through as 1.


# %%
#| export
def manifest_path() -> Path:
    """Return the course.toml that lies beside the installed library."""
    return Path(nanochat_lib.__file__).parents[1] / "course.toml"


def load_profile(name: str, manifest: Path | None = None) -> Profile:
    """Read the profile `name` from a manifest.

    Args:
        name: a table [profile.NAME].
        manifest: a TOML file; course.toml if None.

    Raises:
        ValueError: no such file or profile, no TOML, or a setting that no stage knows.
    """
    manifest = manifest_path() if manifest is None else Path(manifest)
    if not manifest.is_file():
        raise ValueError(f"no {manifest}: run inside the course, or name a file with --manifest")
    try:
        profiles = tomllib.loads(manifest.read_text(encoding="utf-8-sig")).get("profile", {})
    except ValueError as error:  # no UTF-8, or no TOML
        raise ValueError(f"{manifest} cannot be read: {error}") from error
    if name not in profiles:
        raise ValueError(f"no profile {name!r} in {manifest.name}: {nearest(name, profiles)}")
    return fill_config(Profile(name), profiles[name], f"profile.{name}")


# %% [markdown]
# ## The plan of a run
#
# Before an hour of computing comes a minute of arithmetic. Parameters follow from the sizes,
# tokens from the settings, and the work from both: `estimate_flops` (chapter "transformer")
# counts floating-point operations a token, forward and backward, so a training run costs that
# many times its tokens. (Reinforcement is left out: how many tokens it takes is known afterwards.)
# A model on the `meta` device has shapes but no weights, so we can plan a model that would never fit into this machine.


# %%
# NBVAL_CHECK_OUTPUT
def plan(profile: Profile) -> dict[str, int]:
    """Derive what the trainings of a profile cost, before any of it is computed."""
    with torch.device("meta"):
        model = GPT(profile.base.model_config(profile.tokenizer.vocab_size))
    steps = profile.base.steps(model.num_params())
    tokens = steps * profile.base.total_batch_tokens
    tokens += sum(s.steps * s.total_batch_tokens for s in (profile.mid, profile.sft))
    flops = model.estimate_flops() * tokens
    return {"parameters": model.num_params(), "steps": steps, "tokens": tokens, "flops": flops}


d20 = Profile(
    "d20",
    tokenizer=TokenizerConfig(vocab_size=65_536),
    base=PretrainConfig(20, 64, sequence_len=2_048, total_batch_tokens=524_288),
)
work = plan(d20)
print(f"{work['parameters']:,} parameters, {work['steps']:,} steps, {work['flops']:.2e} operations")

# %% [markdown]
# This is nanochat's d20 at 20 tokens a parameter. An H100 multiplies bfloat16 matrices at up to
# 989e12 operations a second (NVIDIA's data sheet, dense). If eight of them reach 40% of that, the
# run takes hours, not days:

# %%
# NBVAL_CHECK_OUTPUT
print(f"{work['flops'] / (8 * 989e12 * 0.4) / 3600:.1f} hours")

# %% [markdown]
# ## Run it
#
# The `micro` profile passes through every stage in well under a minute. We cut it down further,
# so that the chapter stays short, and write it to a manifest of our own, as you would for an
# experiment.

# %%
manifest = Path(scratch.name) / "mine.toml"
manifest.write_text(
    """
[profile.mine]
about = "micro, smaller: for this chapter"
data = {warmup_documents = 300, documents = 900, validation_documents = 40, english_bytes = 20_000}
tokenizer = {vocab_size = 512}
chat = {conversations = 600}

[profile.mine.base]
depth = 2
smear = true
sequence_len = 192
total_batch_tokens = 1536
tokens = 90_000
eval_tokens = 3072
save_seconds = 0.3

[profile.mine.mid]
steps = 40
sequence_len = 192
total_batch_tokens = 1536
text_fraction = 0.15

[profile.mine.sft]
steps = 60
sequence_len = 192
total_batch_tokens = 1536
text_fraction = 0.15

[profile.mine.rl]
steps = 2
questions = 4
samples = 4
max_tokens = 48
sequence_len = 192
replay_rows = 4

[profile.mine.evaluation]
questions = 20
baseline_questions = 10
hard_questions = 20
max_tokens = 48
batches = 2
samples = 1
sample_tokens = 32
""",
    encoding="utf-8",
)
profile = load_profile("mine", manifest)
work = plan(profile)
print(
    f"{work['parameters']:,} parameters, {work['tokens']:,} tokens, {work['flops']:.2e} operations"
)

# %%
#| default_exp capstone.run
# Tie the stages to a profile: one call from raw text to a report.

# %%
#| export
from collections.abc import Callable
from nanochat_lib.capstone.layout import MODELS
from nanochat_lib.capstone.pipeline import Stage, nearest, run_stages
from nanochat_lib.capstone.report import write_report
from nanochat_lib.common import atomic_write, run_dir
from nanochat_lib.training.checkpoint import FILES

SHARDS = (f"*/shard_{5 * '[0-9]'}.parquet",)
TRAINING = (*(f"step_{6 * '[0-9]'}/{name}" for name in FILES), "losses.json")
REINFORCEMENT = (
    *(f"{folder}step_{6 * '[0-9]'}/{name}" for folder in ("", "training/") for name in FILES),
    "rl.json",
)
SCORES = tuple(f"{name}.json" for name in ("bits_per_byte", "samples", "contamination"))
SCORES += tuple(f"{model}.*.json" for model in MODELS)
STAGES = (
    Stage("data", prepare_data, settings=("data",), writes=SHARDS),
    Stage(
        "tokenizer",
        train_tokenizer,
        needs=("data",),
        settings=("tokenizer",),
        writes=("tokenizer.json",),
    ),
    Stage(
        "base",
        train_base,
        needs=("data", "tokenizer"),
        settings=("base",),
        resumes=True,
        writes=TRAINING,
    ),
    Stage(
        "mid",
        train_mid,
        needs=("data", "tokenizer", "base"),
        settings=("data", "chat", "mid"),
        resumes=True,
        writes=TRAINING,
    ),
    Stage(
        "sft",
        train_sft,
        needs=("data", "tokenizer", "mid"),
        settings=("data", "chat", "sft"),
        resumes=True,
        writes=TRAINING,
    ),
    Stage(
        "rl",
        reinforce,
        needs=("data", "tokenizer", "sft"),
        settings=("data", "chat", "sft", "rl"),
        resumes=True,
        writes=REINFORCEMENT,
    ),
    Stage(
        "evaluation",
        evaluate_models,
        needs=("data", "tokenizer", "base", "mid", "sft", "rl"),
        settings=("data", "chat", "evaluation"),
        resumes=True,
        writes=SCORES,
    ),
)


# %%
#| export
def claim_folder(run_folder: Path, profile: Profile) -> None:
    """Make a folder this profile's run, unless it holds something else.

    Raises:
        ValueError: it holds files that no run wrote, or the run of another profile.
    """
    path = run_folder / "run.json"
    there = sorted(entry.name for entry in run_folder.glob("[!.]*")) if run_folder.is_dir() else []
    about = read_json(path) if path.exists() else {}
    if there and not (isinstance(about, dict) and {"profile", "about"} <= about.keys()):
        raise ValueError(
            f"{run_folder} holds {there[0]}, and no run wrote that: give the run another --name"
        )
    if about and about["profile"] != profile.name:
        raise ValueError(
            f"{run_folder} is a run of profile {about['profile']!r}: give this one another --name"
        )
    atomic_write(path, json.dumps({"profile": profile.name, "about": profile.about}))


# %%
#| export
def run_profile(
    profile: Profile,
    run_folder: Path | None = None,
    start: str | None = None,
    announce: Callable[[str], None] = print,
) -> Path:
    """Bring a whole run up to date and write its report.

    Args:
        profile: every setting.
        run_folder: where the run lives; run_dir(profile.name) if None.
        start: stage to run again, with all after it; "report" repeats only the report.
        announce: receives one line a stage.

    Returns:
        The run's folder, with report.md and report.json in it.

    Raises:
        ValueError: no stage is called `start`, another process is at work in the folder, or it
            holds something else.
    """
    run_folder = run_folder or run_dir(profile.name)
    names = [*(stage.name for stage in STAGES), "report"]
    if start is not None and start not in names:
        raise ValueError(f"no stage {start!r}: {nearest(start, names)}")
    claim_folder(run_folder, profile)
    run_stages(STAGES, profile, run_folder, None if start == "report" else start, announce)
    write_report(run_folder)
    return run_folder


# %% [markdown]
# And off it goes. Training draws a progress bar in a terminal; here we keep its lines to
# ourselves.

# %%
# NBVAL_CHECK_OUTPUT
lines = []
with contextlib.redirect_stdout(io.StringIO()):
    mine = run_profile(profile, Path(scratch.name) / "mine", announce=lines.append)
print("\n".join(line for line in lines if ": done" not in line))

# %% [markdown]
# ## The cost, beside the estimate
#
# Did the run do what the plan said? It counted its own tokens and parameters:

# %%
# NBVAL_CHECK_OUTPUT
report = read_json(mine / "report.json")
tokens = sum(report["training"][stage]["tokens"] for stage in ("base", "mid", "sft"))
print(f"planned {work['parameters']:,} parameters and {work['tokens']:,} tokens")
print(f"counted {report['model']['parameters']:,} parameters and {tokens:,} tokens")
assert (report["model"]["parameters"], tokens) == (work["parameters"], work["tokens"])

# %% [markdown]
# And the disk? A checkpoint holds each weight in 4 bytes. Muon keeps one number beside each
# weight of a matrix inside the blocks, $12LC^2$ of them, and AdamW two beside each of the others.
# Two checkpoints are kept a training.

# %%
sizes = report["model"]["config"]
matrices = 12 * sizes["n_layer"] * sizes["n_embd"] ** 2
worked_out = 4 * work["parameters"] + 4 * matrices + 8 * (work["parameters"] - matrices)
newest = max((mine / "base").glob("step_*"))
measured = sum(path.stat().st_size for path in newest.glob("*.safetensors"))
print(f"a checkpoint: {worked_out / 1e6:.2f} MB worked out, {measured / 1e6:.2f} MB on disk")
assert 1 < measured / worked_out < 1.02, "more than names and shapes was added"

# %% [markdown]
# The small rest is the header with names and shapes. For the d20 model of 561M parameters the
# same sum gives several gigabytes a checkpoint, which is why only two are kept.
#
# ## Kill it
#
# A promise that was not tested is a hope. We train the base model once more, in a process of its
# own and into another folder, wait for its first checkpoint, and kill it with no chance to clean
# up.

# %%
killed = Path(scratch.name) / "killed"
program = f"""
from pathlib import Path
from nanochat_lib.capstone.profiles import load_profile
from nanochat_lib.capstone.stage_base import train_base
mine = Path({str(mine)!r})
inputs = {{"data": mine / "data", "tokenizer": mine / "tokenizer"}}
train_base(Path({str(killed)!r}), inputs, load_profile("mine", Path({str(manifest)!r})).base)
"""
process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
while not list(killed.glob("step_*/meta.json")) and process.poll() is None:
    time.sleep(0.02)
process.kill()
process.wait()
left = [path.name for path in killed.glob("step_*")]
assert left and newest.name not in left, f"{left}: the process was done before we killed it"

# %% [markdown]
# The same call continues, as the pipeline would make it. It has to end with the same weights as
# the run that nobody disturbed: not similar ones, the same bytes.

# %%
# NBVAL_CHECK_OUTPUT
inputs = {"data": mine / "data", "tokenizer": mine / "tokenizer"}
with contextlib.redirect_stdout(io.StringIO()):
    train_base(killed, inputs, profile.base)
weights = [
    (run / newest.name / "model.safetensors").read_bytes() for run in (mine / "base", killed)
]
print("same bytes:", weights[0] == weights[1])
assert weights[0] == weights[1], "resuming changed the weights: is a part of the state not saved?"

# %% [markdown]
# Two things make this work, both from chapter "pretraining": a checkpoint holds the loader's
# position and the optimizer's state beside the weights, and nothing is drawn from a random
# generator whose state is not saved.
#
# ## Reading a report card
#
# This is the table of our small run. It learned for seconds, so do not expect much; the question
# is what the numbers allow us to say.

# %%
print(markdown_table(task_rows(report)))

# %%
# alt: accuracy of five models on nine tasks as dots with 95% intervals, and the floor of each task as a short grey line
figure, ax = plt.subplots(figsize=(8, 3), layout="constrained")
for i, model in enumerate(MODELS):
    rows = [row[model] for row in report["tasks"].values()]
    places = [x + 0.16 * (i - 2) for x in range(len(rows))]
    middle = [100 * row["accuracy"] for row in rows]
    below = [100 * (row["accuracy"] - row["low"]) for row in rows]
    above = [100 * (row["high"] - row["accuracy"]) for row in rows]
    ax.errorbar(places, middle, (below, above), fmt="o", color=f"C{i}", label=model, capsize=3)
floors = [100 * row["chance"]["accuracy"] for row in report["tasks"].values()]
ax.hlines(
    floors,
    [x - 0.4 for x in range(len(floors))],
    [x + 0.4 for x in range(len(floors))],
    color="0.5",
)
ax.set_xticks(range(len(floors)), [key.replace("_", "\n") for key in report["tasks"]])
ax.set_ylabel("held-out questions right (%)")
ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=5, frameon=False)
plt.show()

# %% [markdown]
# *Each dot is an accuracy, each bar its 95% interval, grey lines are the floors. Notice how long the
# bars are: ten questions, none of them answered, cannot tell a model that knows nothing from one
# that knows a quarter of the answers.*
#
# Two habits follow from the picture.
#
# **No accuracy without its floor.** 25% on four options is what a coin with four sides gets. And
# the floor is not always chance: on a task where most answers are 1, always saying "1" does well.
# The tasks bring their own floors for that reason.
#
# **No accuracy without its interval.** How long the bar is depends mostly on the number of
# questions:

# %%
# NBVAL_CHECK_OUTPUT
for n in (10, 50, 200, 1_000):
    low, high = wilson_interval(round(0.6 * n), n)
    print(f"60% of {n:>5} questions: {100 * low:.0f}% to {100 * high:.0f}%")

# %% [markdown]
# So 200 questions separate 60% from 70%, but not from 65%. To halve the interval takes four times
# the questions. And the interval knows only about the choice of questions: another training seed
# moves the result too, and nobody sees that in one run.
#
# One more line of the report deserves a look before any score is believed:

# %%
# NBVAL_CHECK_OUTPUT
print("held-out questions found in training text:", report["contamination"]["count"])

# %% [markdown]
# ## The record of a real run
#
# What does the same code reach in the laptop's few minutes? A run was kept, by `nanochat report laptop
# --record`:

# %%
from nanochat_lib.course.manifest import library_root

record = library_root() / "records" / "laptop"
laptop = read_json(record / "report.json")
minutes = sum(laptop["stages"].values()) / 60
print(f"{minutes:.1f} minutes on {laptop['machine']['cpu']}, {laptop['machine']['cores']} cores\n")
print(markdown_table(task_rows(laptop)))
for turn in laptop["transcript"][::2]:
    print(f"\n> {turn['question']}\n{show_tools(turn['response'])}")

# %%
# alt: training loss of the recorded run in three panels, base, mid and sft, each falling, with a jump in the base panel
losses = read_json(record / "losses.json")
figure, panels = plt.subplots(1, 3, figsize=(6.5, 3), sharey=True, layout="constrained")
for axes, (stage, kept) in zip(panels, losses.items()):
    axes.plot(
        [i * kept["every"] for i in range(len(kept["losses"]))], kept["losses"], linewidth=0.7
    )
    axes.set(title=stage, xlabel="step")
panels[0].set_ylabel("loss (nats per token)")
plt.show()

# %%
jump = max(
    range(20, 380),
    key=lambda i: (
        sum(losses["base"]["losses"][i : i + 5]) - sum(losses["base"]["losses"][i - 5 : i])
    ),
)
jump *= losses["base"]["every"]
base_run, lists = laptop["training"]["base"], laptop["data"]["parts"]["warmup"]["bytes"]
read = jump * base_run["tokens"] // base_run["steps"]
print(f"the base loss jumps at step {jump} of {base_run['steps']}, after {read:,} tokens;")
print(f"the warm-up lists are {lists:,} bytes: {lists / read:.1f} bytes a token")
assert 1.5 < lists / read < 3, "the jump is not where the lists end"

# %% [markdown]
# *Left the base model, then midtraining and fine-tuning. The base loss falls on the warm-up lists, jumps where
# they end and the mixture of stories and English begins, and falls again: new text, not a broken
# run. Made-up words and single letters take about two bytes a token, so that is where the lists are read.*

# %% [markdown]
# ## The command
#
# What remains is to give all this a name that can be typed. The command line comes from
# dataclasses, through tyro; torch is imported only after the arguments turned out to be good, so
# that a typing mistake costs a fraction of a second.

# %%
#| default_exp cli
# The command `nanochat`.

# %%
#| export
import os
import shlex
import sys
from typing import Annotated
import tyro
from nanochat_lib.common import base_dir, run_dir
from nanochat_lib.terminal import as_command


# %%
#| export
def physical_cores() -> int:
    """Count the cores this process may use: hyperthreads once, and no more than a container's quota."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    siblings = {Path(topology.format(cpu)) for cpu in allowed}
    if siblings and all(path.exists() for path in siblings):
        cores = len({path.read_text(encoding="utf-8") for path in siblings})
    else:
        cores = len(allowed) or os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    limit, period = quota.read_text(encoding="utf-8").split() if quota.exists() else ("max", "1")
    return cores if limit == "max" else max(1, min(cores, round(int(limit) / int(period))))


# %%
#| export
@dataclass(frozen=True)
class RunArguments:
    """Run a profile of course.toml: data, tokenizer, base model, fine-tuning, evaluation, report.

    A stage whose settings, inputs and code have not changed is skipped, and one that was stopped
    continues, so the same command always finishes the run.
    """

    profile: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROFILE")]
    """name of a table [profile.NAME]"""
    start: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """run this stage and all after it again: data, tokenizer, base, mid, sft, rl, evaluation, report"""
    resume: bool = True
    """--no-resume starts again from the first stage"""
    name: str | None = None
    """name of the run's folder (default: the profile's name)"""
    manifest: Path | None = None
    """read profiles from this file instead of course.toml"""


@dataclass(frozen=True)
class ReportArguments:
    """Write a finished run's report again from its records, and print its tables."""

    run: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="RUN")] = None
    """name of the run (default: the newest)"""
    readme: Path | None = None
    """also write the results between the marks of this README"""
    record: bool = False
    """also keep the report and the loss curves in records/RUN of the course"""


# %%
#| export
def print_report(report: dict, run_folder: Path) -> None:
    """Print the tables, where the report lies and how to talk to the model."""
    from rich.console import Console

    from nanochat_lib.capstone import layout

    console = Console()
    tasks = layout.task_rows(report, layout.MODELS[1:])  # one more would not fit 80 columns
    tables = (layout.hard_rows(report), layout.bits_rows(report), layout.stage_rows(report))
    for rows in (tasks, *tables):
        console.print(layout.terminal_table(rows))
    talk = shlex.join([".venv/bin/nanochat", "chat", "--run", run_folder.name])
    for line in (f"report: {run_folder / 'report.md'}", f"talk to it: {talk}"):
        console.print(line, soft_wrap=True, markup=False)  # a [v2] in a name is no mark-up


# %%
#| export
def run_command(arguments: list[str]) -> None:
    """Run a profile, and print its report."""
    options = tyro.cli(RunArguments, prog="nanochat run", args=arguments)
    # These import torch, which takes seconds: only now, when the arguments are known to be good.
    from nanochat_lib.capstone.profiles import load_profile
    from nanochat_lib.capstone.record import read_json
    from nanochat_lib.capstone.run import run_profile

    profile = load_profile(options.profile, options.manifest)
    start = options.start or (None if options.resume else "data")
    name = profile.name if options.name is None else options.name
    run_folder = run_profile(profile, run_dir(name), start)
    print_report(read_json(run_folder / "report.json"), run_folder)


def report_command(arguments: list[str]) -> None:
    """Write a run's report again, and print it."""
    options = tyro.cli(ReportArguments, prog="nanochat report", args=arguments)
    from nanochat_lib.capstone.report import fill_readme, write_report, write_run_record
    from nanochat_lib.course.manifest import library_root

    runs = sorted(base_dir().glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    if not runs and options.run is None:
        raise ValueError(f"no run in {base_dir()}: make one with nanochat run laptop")
    run_folder = runs[-1].parent if options.run is None else run_dir(options.run)
    found = write_report(run_folder)
    if options.readme:
        fill_readme(options.readme, run_folder)
    if options.record:
        write_run_record(run_folder, library_root() / "records" / run_folder.name)
    print_report(found, run_folder)


def chat_command(arguments: list[str]) -> None:
    """Talk to a trained model."""
    for option, value in zip(arguments, arguments[1:]):
        if option in ("-p", "--prompt") and value.startswith("-"):
            hint = shlex.quote(f"--prompt={value}")
            raise ValueError(f"{option} needs a text; one that begins with a dash goes as {hint}")
    from nanochat_lib.serving.cli import ChatConfig, chat

    options = tyro.cli(ChatConfig, prog="nanochat chat", args=arguments)
    if options.prompt is None and sys.stdin is None:
        raise ValueError("standard input is closed: give one message with --prompt")
    chat(options)


# %%
#| export
def serve_command(arguments: list[str]) -> None:
    """Serve a trained model."""
    from nanochat_lib.serving.serve import ServeConfig, serve

    serve(tyro.cli(ServeConfig, prog="nanochat serve", args=arguments))


def export_command(arguments: list[str]) -> None:
    """Write a trained model for other places: as one HTML file, or as a folder for other engines."""
    kind, *rest = arguments or [""]
    if kind == "html":
        from nanochat_lib.serving.one_file import ExportConfig, export_html

        export_html(tyro.cli(ExportConfig, prog="nanochat export html", args=rest))
    elif kind == "hf":
        from nanochat_lib.serving.hugging_face import ExportHFConfig, export_hf

        export_hf(tyro.cli(ExportHFConfig, prog="nanochat export hf", args=rest))
    else:
        raise ValueError(
            "export what? nanochat export html writes one file that answers in a browser, nanochat export hf a "
            "folder for transformers and vLLM"
        )


# %%
#| export
COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "run": (run_command, "train a profile's model through all stages, resuming whatever is there"),
    "report": (report_command, "write and print the report of a finished run"),
    "chat": (chat_command, "talk to a trained model in the terminal"),
    "serve": (serve_command, "serve a trained model to programs, with OpenAI's API"),
    "export": (
        export_command,
        "html, hf: write a model as one page that answers by itself, or for vLLM",
    ),
}


def usage() -> str:
    """List the commands."""
    lines = [f"  nanochat {name:8}{summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(["usage:", *lines, "", "nanochat COMMAND --help lists a command's options"])


# %%
#| export
def main(arguments: list[str] | None = None) -> None:
    """Run one command; a mistake of the caller's ends in one line, not in a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name, *rest = arguments or ["help"]
    if name in ("-h", "--help", "help"):
        with as_command("nanochat"):
            print(usage())
        return
    if name not in COMMANDS:
        sys.exit(f"nanochat: no command {name!r}: {nearest(name, COMMANDS)}")
    # The OpenMP library reads these when torch loads it. Threads that wait by spinning for long, its
    # default, take the cores from each other as soon as a second program wants them.
    os.environ.setdefault("OMP_NUM_THREADS", str(physical_cores()))
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    with as_command(f"nanochat {name}"):
        try:
            COMMANDS[name][0](rest)
        except KeyboardInterrupt:
            again = shlex.join(["nanochat", *arguments])
            print(f"\nstopped; the same command continues: {again}")
            sys.exit(130)


# %% [markdown]
# Two environment variables are set before torch is loaded. OpenMP's threads wait for each other by spinning: they burn their core until the others arrive.
# Alone on a machine that is fastest. With a second busy program, each waits for threads that are
# not running, on cores that it keeps from running them. Threads that sleep at once are no answer:
# waking them takes longer than the short waits inside a training step. So we let them spin
# briefly, then sleep. A laptop-sized step with two threads took 269 ms with
# `OMP_WAIT_POLICY=PASSIVE`, 183 ms with `GOMP_SPINCOUNT=10000` and 164 to 182 ms with the default,
# alone on a machine with two AVX2 cores (medians of 20 steps, 23 November 2026).

# %%
# NBVAL_CHECK_OUTPUT
try:
    main(["rnu"])
except SystemExit as stopped:
    print(stopped)
scratch.cleanup()

# %% [markdown]
# ## Recap
#
# Five stages, each a function from settings and folders to a folder, make a chat model from
# nothing; a plan says what they cost before they run, and a kill at any moment loses nothing. A
# number is a result when its floor, its interval and its machine stand beside it.
#
# `nanochat_lib.capstone` and `nanochat_lib.cli` are now in the library: `make speedrun` runs the
# laptop profile, `nanochat chat` talks to it. The exercises ask how often to save when machines
# die at random, what can be skipped when a stage ran again but produced the same bytes, and whether one
# version is better than another or had luck with its seeds.
