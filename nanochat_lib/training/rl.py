# Generated from chapters/18_rl.py by `course build`; edit that file.
"""Run reinforcement learning: resume, keep the checkpoint that does best, save."""

import copy
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from nanochat_lib.common import atomic_write, pick_device
from nanochat_lib.model.gpt import GPT
from nanochat_lib.tasks.base import Task
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    load_model,
    read_meta,
    save_checkpoint,
)
from nanochat_lib.training.finetune import ConversationLoader
from nanochat_lib.training.loop import check_same_run
from nanochat_lib.training.progress import ProgressBar, postpone_interrupt
from nanochat_lib.training.rl_sampler import RLConfig, Sampler
from nanochat_lib.training.rl_trainer import RLState, RLTrainer

__all__ = ["train_rl", "describe", "resume", "save", "blended", "choose"]


def train_rl(
    config: RLConfig,
    task: Task,
    tokenizer: Tokenizer,
    base_folder: Path,
    folder: Path,
    replay: ConversationLoader | None = None,
    evaluate: Callable[[GPT], float] | None = None,
    progress: Callable[[dict], None] | str | None = "bar",
    sampling: type[Sampler] = Sampler,
) -> dict:
    """Improve a fine-tuned model by the rewards of a task; resume if `folder` holds a checkpoint.

    Args:
        config: how much to ask, and how to learn from it.
        task: its `reward` grades the answers.
        tokenizer: the one that the model was trained with.
        base_folder: the run whose newest checkpoint we start from.
        folder: gets the best checkpoint, rl.json (what was seen at every step), and training/.
        replay: fine-tuning conversations, needed if config.replay > 0.
        evaluate: higher is better; None keeps the last checkpoint.
        progress: called with the note of each step, or "bar", or None.
        sampling: what draws and grades the answers.

    Returns:
        steps, seconds over all resumes, evals (pairs [step, value]) and the chosen step.

    Raises:
        ValueError: replay is wanted and not given, or the folder holds another run.
    """
    model, base_meta = load_model(base_folder, tokenizer, device=pick_device())
    old = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    reference = load_model(base_folder, tokenizer, device=pick_device())[0] if config.kl else None
    sampler = sampling(config, model, tokenizer, task)
    trainer = RLTrainer(config, model, tokenizer, sampler, replay, reference)
    meta = {"config": base_meta["config"], "tokenizer_hash": tokenizer.hash, "stage": "rl"}
    meta["loop"] = json.loads(json.dumps(asdict(config)))  # as a reload will see it
    bar = ProgressBar() if progress == "bar" else None
    report = bar or progress or (lambda info: None)
    with postpone_interrupt() as interrupt, ExitStack() as stack:
        stack.callback(sampler.close)
        if bar:
            stack.callback(bar.close)
        resume(trainer, folder, meta)
        state, saved = trainer.state, time.perf_counter()
        choose(trainer, old, evaluate, folder, meta)
        while state.step < config.steps:
            facts = trainer.step()
            choose(trainer, old, evaluate, folder, meta)
            report(describe(trainer, facts))
            done = state.step == config.steps or interrupt.is_set()
            if done or time.perf_counter() - saved >= config.save_seconds:
                save(trainer, folder, meta)
                saved = time.perf_counter()
            if interrupt.is_set():
                raise KeyboardInterrupt(f"saved at step {state.step} in {folder}")
    chosen = read_meta(latest_checkpoint(folder))["step"]
    return {"steps": state.step, "seconds": state.seconds, "evals": state.evals, "chosen": chosen}


def describe(trainer: RLTrainer, facts: dict) -> dict:
    """Say where a run is, for a progress bar or whoever else wants to know."""
    step, text = trainer.state.step, f"reward {facts['reward']:.2f}"
    text += f"  entropy {facts.get('entropy', 0):.3f}"
    per_step = trainer.state.seconds / step
    steps = trainer.config.steps
    return {"step": step, "steps": steps, "seconds_per_step": per_step, "text": text} | facts


def resume(trainer: RLTrainer, folder: Path, meta: dict) -> None:
    """Continue from the newest checkpoint in folder/training, if there is one."""
    path = latest_checkpoint(folder / "training")
    if path is None:
        return
    saved = read_meta(path)
    check_same_run(saved, meta, path)
    load_checkpoint(path, trainer.model, trainer.optimizers, meta["tokenizer_hash"])
    if trainer.replay is not None:
        trainer.replay.load_state_dict(saved["replay"])
    trainer.sampler.load_state_dict(saved["sampler"])
    trainer.state = RLState(**saved["state"])


def save(trainer: RLTrainer, folder: Path, meta: dict) -> None:
    """Write where the run is, and what was seen at every step."""
    replay = trainer.replay.state_dict() if trainer.replay is not None else None
    state = asdict(trainer.state)
    step, rest = trainer.state.step, meta | {"state": state, "replay": replay}
    rest["sampler"] = trainer.sampler.state_dict()
    save_checkpoint(folder / "training", step, trainer.model, trainer.optimizers, rest)
    atomic_write(folder / "rl.json", json.dumps(state["history"]))


def blended(old: dict[str, Tensor], model: GPT, blend: float) -> GPT:
    """Return a model with weights on the way from old ones to those of another model."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in copied.named_parameters():
            weight.lerp_(old[name], 1 - blend)
    return copied


def choose(
    trainer: RLTrainer,
    old: dict[str, Tensor],
    evaluate: Callable[[GPT], float] | None,
    folder: Path,
    meta: dict,
) -> None:
    """Evaluate if it is due, and keep the model if none before it was better; `old` are the first weights."""
    config, state = trainer.config, trainer.state
    last, every = state.step == config.steps, 0 if evaluate is None else config.eval_every
    due = last or (every > 0 and state.step % every == 0)
    if not due or state.step in [step for step, _ in state.evals]:
        return
    model = blended(old, trainer.model, config.blend)
    value = 0.0 if evaluate is None else float(evaluate(model))
    if all(value >= before for _, before in state.evals):
        save_checkpoint(folder, state.step, model, [], meta | {"value": value})
    state.evals.append([state.step, value])
