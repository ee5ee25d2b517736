# Generated from chapters/11_pretraining.py by `course build`; edit that file.
"""Do one step of training: its sizes, its learning rate, its gradient, with or without a compiler."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nanochat_lib.common import print0
from nanochat_lib.training.fused import loss_function

__all__ = [
    "LoopConfig",
    "lr_multiplier",
    "accumulate_gradient",
    "COMPILE_PAYS_FLOPS",
    "should_compile",
    "compile_or_eager",
]


@dataclass(frozen=True)
class LoopConfig:
    """Say how long to train, in which portions, and how the learning rate moves.

    `steps` updates of `total_batch_tokens` each, in micro-batches of device_batch_size x sequence_len tokens. The
    rate rises over the first warmup_fraction of the steps and falls to final_lr_fraction over the last
    cooldown_fraction. `eval_every` counts steps, 0 for never. `grad_clip` bounds the gradient's norm, 0 for no
    bound. `dtype` is "auto" or a format that pick_dtype knows; `compile` is "auto", "on" or "off".
    """

    steps: int = 1000
    device_batch_size: int = 8
    sequence_len: int = 256
    total_batch_tokens: int = 2048
    warmup_fraction: float = 0.0
    cooldown_fraction: float = 0.5
    final_lr_fraction: float = 0.0
    eval_every: int = 0
    save_seconds: float = 30.0
    grad_clip: float = 0.0
    dtype: str = "auto"
    compile: str = "auto"

    def __post_init__(self) -> None:
        micro = self.device_batch_size * self.sequence_len
        if micro < 1 or self.total_batch_tokens < 1 or self.total_batch_tokens % micro:
            raise ValueError(
                f"total_batch_tokens={self.total_batch_tokens} is no multiple of device_batch_size x "
                f"sequence_len = {micro}: change one of them"
            )
        for name in ("warmup_fraction", "cooldown_fraction", "final_lr_fraction"):
            if not 0 <= getattr(self, name) <= 1:  # so written, NaN fails too
                raise ValueError(f"{name}={getattr(self, name)}: must lie between 0 and 1")
        if not (self.grad_clip >= 0 and self.save_seconds >= 0):
            raise ValueError(
                f"grad_clip={self.grad_clip} and save_seconds={self.save_seconds}: need 0 or more"
            )
        if self.compile not in ("auto", "on", "off"):
            raise ValueError(f"compile={self.compile!r} is unknown: use 'auto', 'on' or 'off'")

    @property
    def micro_batches(self) -> int:
        """Micro-batches whose gradients make one step."""
        return self.total_batch_tokens // (self.device_batch_size * self.sequence_len)


def lr_multiplier(step: int, config: LoopConfig) -> float:
    """Compute what to multiply every initial learning rate by at a step: a trapezoid.

    Example: 10 steps, no warmup, cooldown 0.5 to 0 -> 1 for steps 0 to 5, then 0.8, 0.6, 0.4, 0.2.

    Args:
        step: updates done before this one, from 0 to steps - 1.
        config: steps and the three fractions.

    Returns:
        A factor above 0 and up to 1.
    """
    warmup = round(config.warmup_fraction * config.steps)
    cooldown = round(config.cooldown_fraction * config.steps)
    if step < warmup:
        return (step + 1) / warmup
    if step <= config.steps - cooldown:
        return 1.0
    share = (config.steps - step) / cooldown
    final = config.final_lr_fraction
    return final + share * (1 - final)  # in this order rounding cannot make it rise


def accumulate_gradient(
    model: Callable[..., Tensor],
    batches: list[tuple[Tensor, Tensor]],
    device: torch.device,
    scaler: torch.amp.GradScaler | None = None,
) -> Tensor:
    """Add to the gradient as one large batch of all micro-batches would.

    Each micro-batch's mean loss is weighted by its number of targets, so unequal ones are not distorted.

    Args:
        model: called as model(inputs, targets), returns the mean loss over targets that are not -1.
        batches: pairs (inputs, targets), int64, shape (B, T) each.
        device: where the model is.
        scaler: multiplies the loss, and so the gradient, where float16 needs it.

    Returns:
        The mean loss over all targets, detached, a scalar on the device.
    """
    counts = [int((targets != -1).sum()) for _, targets in batches]
    total = torch.zeros((), device=device)
    for count, (inputs, targets) in zip(counts, batches):
        loss = model(inputs.to(device), targets.to(device))
        if len(batches) > 1:
            loss = loss * (count / max(1, sum(counts)))
        (loss if scaler is None else scaler.scale(loss)).backward()
        total += loss.detach()
    return total


COMPILE_PAYS_FLOPS = (
    1e13  # about twice the work that compiling must speed up by a third to pay for itself
)


def should_compile(model: nn.Module, config: LoopConfig, device: torch.device) -> bool:
    """Decide whether torch.compile pays, from the configuration alone, so that a resumed run agrees.

    Args:
        model: its size counts.
        config: `compile` "on" and "off" decide by themselves.
        device: CUDA always pays; a CPU needs a C++ compiler and enough work.
    """
    if config.compile != "auto" or device.type == "cuda":
        return config.compile != "off"
    compilers = [os.environ.get("CXX"), "g++", "clang++", "cl"]
    if device.type != "cpu" or not any(shutil.which(name) for name in compilers if name):
        return False
    n_params = sum(p.numel() for p in model.parameters())
    return 6 * n_params * config.total_batch_tokens * config.steps >= COMPILE_PAYS_FLOPS


def compile_or_eager(
    model: nn.Module, config: LoopConfig, device: torch.device
) -> Callable[..., Tensor]:
    """Compile the model if it pays and works here; otherwise compute its loss as fast as without.

    One forward and backward on zeros shows whether it works; the gradient is thrown away.
    """
    if not should_compile(model, config, device):
        return loss_function(model)
    try:
        compiled = loss_function(model, compiled=True)
        zeros = torch.zeros(config.device_batch_size, config.sequence_len, dtype=torch.long)
        accumulate_gradient(compiled, [(zeros, zeros)], device)
    except (RuntimeError, OSError, ImportError) as error:  # the compilers fail in many ways
        print0(f"torch.compile does not work here ({type(error).__name__}): training without it")
        compiled = loss_function(model)
    model.zero_grad(set_to_none=True)
    return compiled
