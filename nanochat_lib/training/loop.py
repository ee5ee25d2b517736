# Generated from chapters/11_pretraining.py by `course build`; edit that file.
"""The one training loop that pretraining and fine-tuning share."""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from nanochat_lib.common import atomic_write, pick_dtype
from nanochat_lib.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    read_meta,
    save_checkpoint,
)
from nanochat_lib.training.loader import Prefetch
from nanochat_lib.training.precision import prepare
from nanochat_lib.training.progress import ProgressBar, postpone_interrupt
from nanochat_lib.training.step import (
    LoopConfig,
    accumulate_gradient,
    compile_or_eager,
    lr_multiplier,
)

__all__ = ["Run", "FREE_TO_CHANGE", "check_same_run", "Trainer", "train"]


@dataclass
class Run:
    """Hold all that a run must remember besides the weights; a checkpoint's meta has the same keys."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    evals: list[list] = field(default_factory=list)  # pairs [step, value]
    seconds: float = 0.0  # spent in steps that were saved
    pending: list[Tensor] = field(default_factory=list)  # losses still on the device

    def history(self) -> dict:
        """Read pending losses from the device, once for many steps, and return what JSON can hold."""
        if self.pending:
            self.losses += torch.stack(self.pending).tolist()
            self.pending = []
        names = ("step", "losses", "evals", "seconds")
        return {name: getattr(self, name) for name in names}


FREE_TO_CHANGE = (
    "save_seconds",
    "eval_every",
    "compile",
)  # settings that a resumed run may have different


def check_same_run(saved: dict, now: dict, path: Path) -> None:
    """Refuse to continue a run under settings that would make it another run.

    Raises:
        ValueError: a setting differs, with both values.
    """
    for part in ("config", "loop"):
        then = saved.get(part) or {}
        for name, value in (now.get(part) or {}).items():
            if name in then and then[name] != value and name not in FREE_TO_CHANGE:
                raise ValueError(
                    f"{path} was trained with {name}={then[name]}, now {name}={value}: "
                    "use another folder, or the old setting"
                )


class Trainer:
    """Do the steps of one run; `train` decides when to save and to stop.

    Args:
        model: trained in place; called as model(inputs, targets) for the mean loss.
        optimizers: their groups carry "initial_lr".
        loader: yields (inputs, targets), has state_dict and load_state_dict.
        config: of the loop.
        folder: where checkpoints go.
        meta: saved with each checkpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        loader: Iterator,
        config: LoopConfig,
        folder: Path,
        meta: dict,
    ) -> None:
        self.model, self.optimizers, self.loader = model, optimizers, loader
        self.config, self.folder = config, Path(folder)
        self.meta = json.loads(
            json.dumps(meta | {"loop": asdict(config)})
        )  # as a reload will see it
        self.run = Run()
        self.device = next(model.parameters()).device
        dtype = pick_dtype(self.device, config.dtype)
        prepare(model, optimizers, dtype)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self.forward: Callable[..., Tensor] = model

    def resume(self) -> None:
        """Continue from the newest checkpoint in the folder, if there is one."""
        path = latest_checkpoint(self.folder)
        if path is None:
            return
        saved = read_meta(path)
        check_same_run(saved, self.meta, path)
        load_checkpoint(path, self.model, self.optimizers, self.meta.get("tokenizer_hash"))
        self.loader.load_state_dict(saved["loader"])
        if saved.get("scaler"):
            self.scaler.load_state_dict(saved["scaler"])
        self.run = Run(saved["step"], saved["losses"], saved["evals"], saved["seconds"])

    def step(self) -> Tensor:
        """Make one update and return its mean loss, left on the device."""
        batches = []
        for _ in range(self.config.micro_batches):
            batch = next(self.loader, None)
            if batch is None:
                raise ValueError(f"the loader ended at step {self.run.step}: let it loop")
            batches.append(batch)
        loss = accumulate_gradient(self.forward, batches, self.device, self.scaler)
        if self.config.grad_clip > 0:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        factor = lr_multiplier(self.run.step, self.config)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            self.scaler.step(optimizer)
        self.scaler.update()
        self.model.zero_grad(set_to_none=True)
        self.run.pending.append(loss)
        self.run.step += 1
        if self.device.type == "cpu" or self.run.step % 50 == 0:  # a GPU would have to wait for it
            self.check_losses()
        return loss

    def check_losses(self) -> None:
        """Stop at the first loss since the last look that is no number."""
        first = len(self.run.losses)
        for step, loss in enumerate(self.run.history()["losses"][first:], start=first + 1):
            if not math.isfinite(loss):
                self.diverged(f"the loss is {loss} at step {step}")

    def check_weights(self) -> None:
        """Stop if a weight is no number, so that neither a checkpoint nor a score is made of it."""
        self.check_losses()
        for name, p in self.model.named_parameters():
            if not bool(p.isfinite().all()):
                self.diverged(f"{name} holds NaN or infinity after step {self.run.step}")

    def diverged(self, what: str) -> NoReturn:
        """Raise ValueError: what was seen, what helps, and the last good checkpoint."""
        last = latest_checkpoint(self.folder) or "not there yet"
        raise ValueError(
            f"{what}: lower the learning rates or set grad_clip; the last good checkpoint is {last}"
        )

    def evaluate(self, evaluate: Callable | None) -> None:
        """Evaluate if it is due after the steps done so far: at the start, regularly, at the end."""
        every, run = self.config.eval_every, self.run
        due = every > 0 and (run.step % every == 0 or run.step == self.config.steps)
        if evaluate is None or not due or run.step in [step for step, _ in run.evals]:
            return
        self.check_weights()
        self.model.eval()
        with torch.no_grad():
            run.evals.append([run.step, float(evaluate(self.model))])
        self.model.train()

    def save(self) -> None:
        """Write a checkpoint and the loss history."""
        self.check_weights()
        history = self.run.history()
        meta = self.meta | history | {"loader": self.loader.state_dict()}
        meta["scaler"] = self.scaler.state_dict()  # empty unless the format is float16
        save_checkpoint(self.folder, self.run.step, self.model, self.optimizers, meta)
        atomic_write(self.folder / "losses.json", json.dumps(history))

    def progress(self, loss: Tensor, steps: int, seconds: float) -> dict:
        """Describe where the run is, given the steps and seconds of this process."""
        return {
            "step": self.run.step,
            "steps": self.config.steps,
            "loss": loss,
            "seconds_per_step": seconds / steps,
            "tokens_per_second": steps * self.config.total_batch_tokens / max(seconds, 1e-9),
            "evals": self.run.evals,
        }

    def summary(self) -> dict:
        """Sum the run up; `seconds` leaves out work that was lost to a kill."""
        history = self.run.history()
        last = history["losses"][-max(1, self.run.step // 20) :]
        tokens = self.run.step * self.config.total_batch_tokens
        return {
            "steps": self.run.step,
            "tokens": tokens,
            "seconds": self.run.seconds,
            "tokens_per_second": tokens / max(self.run.seconds, 1e-9),
            "first_loss": history["losses"][0] if history["losses"] else None,
            "final_loss": sum(last) / len(last) if last else None,  # mean over the last twentieth
            "evals": history["evals"],
        }


def train(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    loader: Iterable,
    config: LoopConfig,
    folder: Path | str,
    meta: dict,
    evaluate: Callable[[nn.Module], float] | None = None,
    progress: Callable[[dict], None] | str | None = "bar",
) -> dict:
    """Train until config.steps, from the newest checkpoint in the folder if there is one.

    A process killed at any moment and started again ends with the same weights, to the bit, as one that was
    left alone. Ctrl-C finishes the step, saves, and raises KeyboardInterrupt.

    Args:
        model: trained in place, on its device.
        optimizers: from build_optimizers.
        loader: yields (inputs, targets); has state_dict and load_state_dict.
        config: of the loop.
        folder: gets step_* folders and losses.json.
        meta: saved along: "config" (of the model), "tokenizer_hash" and what else the caller wants.
        evaluate: called with the model every config.eval_every steps, at the start and at the end.
        progress: called after every step with a dict (step, steps, loss, speed, evals), or "bar", or None.

    Returns:
        steps, tokens, seconds over all resumes, first and final loss, evals.

    Raises:
        ValueError: the folder holds another run, the loader ended early, or the loss is no number.
    """
    batches = Prefetch(iter(loader))
    trainer = Trainer(model, optimizers, batches, config, Path(folder), meta)
    trainer.resume()
    run, bar = trainer.run, ProgressBar() if progress == "bar" else None
    report = bar or progress or (lambda info: None)
    if run.step < config.steps:
        trainer.forward = compile_or_eager(model, config, trainer.device)
    before, first, started = run.seconds, run.step, time.perf_counter()
    saved = started
    with postpone_interrupt() as interrupt, ExitStack() as stack:
        stack.callback(batches.close)
        if bar:
            stack.callback(bar.close)
        trainer.evaluate(evaluate)
        while run.step < config.steps:
            loss = trainer.step()
            trainer.evaluate(evaluate)
            run.seconds = before + time.perf_counter() - started
            try:
                report(trainer.progress(loss, run.step - first, run.seconds - before))
            except KeyboardInterrupt:
                interrupt.set()
            stopping = interrupt.is_set() or run.step == config.steps
            if stopping or time.perf_counter() - saved >= config.save_seconds:
                trainer.save()
                saved = time.perf_counter()
            if interrupt.is_set():
                raise KeyboardInterrupt(f"saved at step {run.step} in {folder}")
    return trainer.summary()
