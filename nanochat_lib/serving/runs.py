# Generated from chapters/19_serving.py by `course build`; edit that file.
"""Find a trained run and load its model."""

from pathlib import Path

import torch

from nanochat_lib.common import base_dir, pick_device, run_dir
from nanochat_lib.inference.engine import Engine
from nanochat_lib.inference.packed import PackedGPT
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.checkpoint import latest_checkpoint, load_model

__all__ = ["last_stage", "find_run", "load_engine"]


def last_stage(folder: Path) -> str:
    """Name the stage of a run that answers: "rl" if it has a checkpoint, else "sft"."""
    return "sft" if latest_checkpoint(folder / "rl") is None else "rl"


def find_run(name: str | None, stage: str | None = None) -> Path:
    """Find the folder of a run that has a tokenizer and a checkpoint of the stage.

    Args:
        name: the run's, or None for the one with the newest checkpoint.
        stage: "rl", "sft", "mid" or "base"; None takes a run's last one.

    Raises:
        ValueError: there is none; the message lists what there is.
    """
    found = {}
    for tokenizer in base_dir().glob("*/tokenizer/tokenizer.json"):
        folder = tokenizer.parents[1]
        checkpoint = latest_checkpoint(folder / (stage or last_stage(folder)))
        if checkpoint is not None:
            found[folder.name] = checkpoint.stat().st_mtime
    kind = stage or "chat"
    if not found:
        raise ValueError(
            f"no run under {base_dir()} has a {kind} model yet: train one with `make speedrun`"
        )
    name = max(found, key=found.__getitem__) if name is None else name
    folder = run_dir(name)
    if name not in found:
        there = ", ".join(sorted(found))
        raise ValueError(f"no run {name!r} with a {kind} model: there is {there}")
    return folder


def load_engine(folder: Path, stage: str, device: str = "auto") -> Engine:
    """Load a run's tokenizer and the newest checkpoint of a stage.

    What was said stays in the cache, so that a next turn is read from where it begins. A small model gets one
    thread: two would wait for each other longer than they work.
    """
    tokenizer, where = Tokenizer.load(folder / "tokenizer"), pick_device(device)
    model, _ = load_model(folder / stage, tokenizer, where)
    if where.type == "mps":  # packed models have not been tried there
        return Engine(model.eval(), tokenizer, keep_bytes=2**26)
    if model.num_scaling_params() < 2_000_000:
        torch.set_num_threads(1)
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    return Engine(PackedGPT(model.eval(), dtype), tokenizer, keep_bytes=2**26)
