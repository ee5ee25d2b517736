# Generated from chapters/09_speed.py by `course build`; edit that file.
"""Where the time of a training step goes, by kind of operation."""

import math
import time
from collections.abc import Callable

import torch

__all__ = ["best_seconds", "kind_of", "profile_step"]


def best_seconds(work: Callable[[], object], repeats: int = 10) -> float:
    """Measure the least time of several runs: what the machine can do when nobody disturbs it."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])  # the first one warms up


def kind_of(event: torch.autograd.profiler_util.FunctionEventAvg, logits: int) -> str:
    """Sort a profiled operation into one of five kinds, by its name and its largest input.

    Args:
        event: has `key` and `input_shapes`.
        logits: B * T * V; an operation on as many numbers, no product, belongs to the loss.
    """
    sizes = [math.prod(shape) for shape in event.input_shapes if shape]
    if event.key in ("aten::mm", "aten::addmm"):
        return "matrix products"
    if "scaled_dot_product" in event.key:
        return "attention"
    if event.key in ("aten::bmm", "aten::baddbmm"):
        return "Newton-Schulz"
    return "softcap and loss" if max(sizes, default=0) >= logits else "everything else"


def profile_step(step: Callable[[], None], logits: int) -> dict[str, float]:
    """Measure the milliseconds a step spends in each kind of operation, from three profiled steps.

    Args:
        step: makes one update.
        logits: B * T * V of its model and batch.

    Returns:
        Kind -> milliseconds, the largest first.
    """
    step()
    with torch.profiler.profile(record_shapes=True) as profiler:
        for _ in range(3):
            step()
    kinds = {}
    for event in profiler.key_averages(group_by_input_shape=True):
        kind = kind_of(event, logits)
        kinds[kind] = kinds.get(kind, 0) + event.self_cpu_time_total / 3e3
    return {kind: round(kinds[kind], 2) for kind in sorted(kinds, key=kinds.get, reverse=True)}
