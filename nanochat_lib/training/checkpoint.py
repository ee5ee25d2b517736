# Generated from chapters/95_checkpoints.py by `course build`; edit that file.
"""Write and read checkpoints: complete or absent, and only with their own tokenizer."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nanochat_lib.common import atomic_write, remove_files
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.tokenizer.tokenizer import Tokenizer

__all__ = [
    "named_states",
    "list_checkpoints",
    "latest_checkpoint",
    "FILES",
    "remove_leftovers",
    "save_checkpoint",
    "check_tokenizer",
    "read_meta",
    "load_checkpoint",
    "load_model",
]


def named_states(
    model: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> list[tuple[str, dict]]:
    """List each parameter's optimizer state under a readable name.

    Example: "1.Muon.blocks.0.mlp.c_fc.weight" -> {"momentum_buffer": ...}.

    Args:
        model: owns the parameters.
        optimizers: hold the states; a parameter not yet updated has an empty one.

    Returns:
        Pairs of a name and the optimizer's own dictionary, which may be filled in place.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    return [
        (f"{i}.{type(optimizer).__name__}.{names[id(p)]}", optimizer.state[p])
        for i, optimizer in enumerate(optimizers)
        for group in optimizer.param_groups
        for p in group["params"]
    ]


def list_checkpoints(folder: Path | str) -> list[Path]:
    """List the complete checkpoints of a run, oldest first; step_000100_copy and the like are none."""
    found = [path.parent for path in Path(folder).glob("step_*/meta.json")]
    ours = [path for path in found if re.fullmatch("step_[0-9]{6,}", path.name)]
    return sorted(ours, key=lambda path: int(path.name.removeprefix("step_")))


def latest_checkpoint(folder: Path | str) -> Path | None:
    """Find the newest complete checkpoint of a run, or None."""
    checkpoints = list_checkpoints(folder)
    return checkpoints[-1] if checkpoints else None


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file and wait until the disk has it."""
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)
    except SafetensorError as error:  # a full disk
        raise OSError(f"cannot write {path}: {error}") from error
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


FILES = ("meta.json", "model.safetensors", "optimizer.safetensors")


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed while it saved left behind, and nothing else."""
    for path in folder.glob(".step_*"):
        if re.fullmatch(r"\.step_[0-9]{6,}(_replaced)?", path.name):
            halves = [half.name for half in path.glob(".meta.json.*.tmp")]
            remove_files(path, [*FILES, *halves])


def save_checkpoint(
    folder: Path | str,
    step: int,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    meta: dict,
) -> Path:
    """Write folder/step_000123, complete or not at all, and keep the newest two.

    Args:
        folder: the run's folder, written by one process only.
        step: updates done so far.
        model: its state_dict goes to model.safetensors.
        optimizers: their states go to optimizer.safetensors, plain numbers to meta.json.
        meta: anything JSON can hold: the config, the loader's state, the tokenizer's hash.

    Returns:
        The new folder.

    Raises:
        OSError: the disk is full or refuses; the older checkpoints stay.
    """
    folder = Path(folder)
    remove_leftovers(folder)
    final = folder / f"step_{step:06d}"
    temporary, replaced = folder / f".{final.name}", folder / f".{final.name}_replaced"
    temporary.mkdir(parents=True, exist_ok=True)
    tensors, numbers = {}, {}
    for name, state in named_states(model, optimizers):
        for key, value in state.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{name}.{key}"] = value
    meta = meta | {"step": step, "optimizer_numbers": numbers}
    try:
        _write_tensors(temporary / "model.safetensors", model.state_dict())
        _write_tensors(temporary / "optimizer.safetensors", tensors)
        atomic_write(temporary / "meta.json", json.dumps(meta))
        if final.exists():
            os.replace(final, replaced)
        os.replace(temporary, final)
    finally:
        remove_leftovers(folder)
    for old in list_checkpoints(folder)[:-2]:
        if not old.is_symlink():  # a link leads to somebody's own
            remove_files(old, FILES)
    return final


def check_tokenizer(meta: dict, tokenizer_hash: str | None, path: Path) -> None:
    """Refuse a checkpoint that was trained with another tokenizer.

    Raises:
        ValueError: both hashes are known and differ.
    """
    saved = meta.get("tokenizer_hash")
    if saved and tokenizer_hash and saved != tokenizer_hash:
        raise ValueError(
            f"{path} was trained with tokenizer {saved}, this one is {tokenizer_hash}: its ids mean "
            "other tokens. Load the tokenizer of that run."
        )


def _read(path: Path, read: Callable[[Path], dict]) -> dict:
    """Read one file of a checkpoint; a damaged one is named, with the way out."""
    try:
        return read(path)
    except (ValueError, SafetensorError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): move {path.parent.name} away to use the checkpoint before it"
        ) from error


def read_meta(path: Path) -> dict:
    """Read the meta.json of a checkpoint."""
    return _read(path / "meta.json", lambda path: json.loads(path.read_text(encoding="utf-8")))


def load_checkpoint(
    path: Path | str,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer] | None = None,
    tokenizer_hash: str | None = None,
) -> dict:
    """Fill a model, and its optimizers if given, from one checkpoint.

    Args:
        path: a folder that save_checkpoint wrote.
        model: of the same sizes; keeps its device.
        optimizers: built as before; learning rates and other options are not touched.
        tokenizer_hash: hash of the tokenizer about to be used.

    Returns:
        The saved meta.

    Raises:
        ValueError: a file is damaged, the tokenizer differs, or the optimizers cover other parameters.
    """
    path = Path(path)
    meta = read_meta(path)
    check_tokenizer(meta, tokenizer_hash, path)
    model.load_state_dict(_read(path / "model.safetensors", load_file))
    if optimizers is None:
        return meta
    devices = {name: p.device for name, p in model.named_parameters()}
    saved = _read(path / "optimizer.safetensors", load_file) | meta["optimizer_numbers"]
    for name, state in named_states(model, optimizers):
        device = devices[name.split(".", 2)[2]]
        state.clear()
        for key in [key for key in saved if key.rpartition(".")[0] == name]:
            value, field = saved.pop(key), key.rpartition(".")[2]
            on_device = (
                isinstance(value, Tensor) and field != "step"
            )  # torch keeps steps on the CPU
            state[field] = value.to(device) if on_device else value
    if saved:
        raise ValueError(f"{path} has states that no optimizer wants, such as {min(saved)}")
    return meta


def load_model(
    folder: Path | str,
    tokenizer: Tokenizer | None = None,
    device: torch.device | str = "cpu",
) -> tuple[GPT, dict]:
    """Build the GPT of a checkpoint.

    Args:
        folder: a run's folder (its newest checkpoint is taken) or one checkpoint's.
        tokenizer: if given, must be the one trained with.
        device: where the model goes.

    Returns:
        The model and the checkpoint's meta.

    Raises:
        ValueError: there is no complete checkpoint, or the tokenizer differs.
    """
    folder = Path(folder)
    path = folder if (folder / "meta.json").exists() else latest_checkpoint(folder)
    if path is None or not (path / "model.safetensors").exists():
        raise ValueError(f"no complete checkpoint in {folder}: did the training finish a save?")
    model = GPT(GPTConfig(**read_meta(path)["config"]))
    meta = load_checkpoint(path, model, None, tokenizer.hash if tokenizer else None)
    return model.to(device), meta
