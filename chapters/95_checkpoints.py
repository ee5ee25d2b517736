# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Checkpoints: what a long run leaves on the disk and on the screen
#
# A run of hours meets a full disk, a power cut, Ctrl-C, and a person who asks how long it will take.
# This chapter holds what deals with them, so that the chapter on pretraining can speak about
# training:
#
# ```python
# save_checkpoint(folder, step, model, optimizers, meta)    # whole, or not at all
# ```
#
# You need the ground, the GPT and its optimizers. On a laptop the chapter takes about 5 seconds.

# %% [markdown]
# ## Checkpoints
#
# A checkpoint holds what the next step depends on: weights, optimizer states with their step
# counters, the loader's state, the step, and, for the report, the losses so far. Tensors go to
# `safetensors` files: a JSON header and raw bytes, which cannot execute anything when opened. Names
# are readable, so that another program can pick out one matrix.

# %%
#| default_exp training.checkpoint
# Write and read checkpoints: complete or absent, and only with their own tokenizer.

# %%
#| export training.checkpoint
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


# %%
#| export training.checkpoint
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


# %% [markdown]
# Killed while writing, we must not find half a checkpoint. The trick is old: write everything into
# a folder whose name begins with a dot, force it to the disk, and rename it at the end. On one file
# system a rename happens completely or not at all. So a folder `step_000123` is complete by its
# existence.


# %%
#| export training.checkpoint
def list_checkpoints(folder: Path | str) -> list[Path]:
    """List the complete checkpoints of a run, oldest first; step_000100_copy and the like are none."""
    found = [path.parent for path in Path(folder).glob("step_*/meta.json")]
    ours = [path for path in found if re.fullmatch("step_[0-9]{6,}", path.name)]
    return sorted(ours, key=lambda path: int(path.name.removeprefix("step_")))


def latest_checkpoint(folder: Path | str) -> Path | None:
    """Find the newest complete checkpoint of a run, or None."""
    checkpoints = list_checkpoints(folder)
    return checkpoints[-1] if checkpoints else None


# %%
#| export training.checkpoint
def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file and wait until the disk has it."""
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)
    except SafetensorError as error:  # a full disk
        raise OSError(f"cannot write {path}: {error}") from error
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


# %%
#| export training.checkpoint
FILES = ("meta.json", "model.safetensors", "optimizer.safetensors")


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed while it saved left behind, and nothing else."""
    for path in folder.glob(".step_*"):
        if re.fullmatch(r"\.step_[0-9]{6,}(_replaced)?", path.name):
            halves = [half.name for half in path.glob(".meta.json.*.tmp")]
            remove_files(path, [*FILES, *halves])


# %%
#| export training.checkpoint
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


# %% [markdown]
# Loading is the reverse, with one refusal. A model continued with another tokenizer trains without
# an error, on noise: id 300 was ` the` and is now `ing`. The checkpoint carries the tokenizer's
# hash, and a different one is a `ValueError`.


# %%
#| export training.checkpoint
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


# %%
#| export training.checkpoint
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


# %%
#| export training.checkpoint
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


# %%
#| export training.checkpoint
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


# %%
import tempfile
from dataclasses import asdict

from nanochat_lib.training.optim import build_optimizers

scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)
tokenizer = Tokenizer.train(["the cat sat on the mat"], vocab_size=300)
torch.manual_seed(0)
model = GPT(GPTConfig(64, 2, 2, sequence_len=16, vocab_size=tokenizer.vocab_size, n_layer=1))
optimizers = build_optimizers(model)
ids = torch.randint(tokenizer.vocab_size, (2, 17), generator=torch.Generator().manual_seed(0))
model(ids[:, :-1], ids[:, 1:]).backward()
for optimizer in optimizers:
    optimizer.step()
meta = {"config": asdict(model.config), "tokenizer_hash": tokenizer.hash}
path = save_checkpoint(folder / "demo", 1, model, optimizers, meta)

# %%
# NBVAL_CHECK_OUTPUT
print(sorted(file.name for file in path.iterdir()))
print(*sorted(load_file(path / "optimizer.safetensors"))[:3], sep="\n")

# %%
loaded, _ = load_model(folder / "demo", tokenizer)
assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters()))
(folder / "demo" / ".step_000002").mkdir()  # what a kill in the middle of a save leaves behind
assert latest_checkpoint(folder / "demo") == path
try:
    load_checkpoint(path, loaded, tokenizer_hash="0123456789abcdef")
except ValueError as error:
    print(str(error).split(": ", 1)[1])
else:
    raise AssertionError("another tokenizer was accepted")

# %% [markdown]
# ## Watching, and stopping
#
# Ctrl-C must not land in the middle of an optimizer step, where half of the weights are new: the
# first one only sets a flag that the loop reads between steps. And the progress display reads the
# loss from the device only when it shows it. On a GPU that matters: every read waits until the queue
# of work is empty.

# %%
#| default_exp training.progress
# Watch a training run, and stop it between two steps.

# %%
#| export training.progress
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nanochat_lib.common import print0


# %%
#| export training.progress
@contextmanager
def postpone_interrupt() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event, so that it never cuts a step in two; a second one interrupts.

    Outside the main thread signals cannot be caught, and nothing changes.
    """
    asked = threading.Event()

    def remember(signum: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, previous or signal.default_int_handler)


# %%
#| export training.progress
class ProgressBar:
    """Show step, loss, speed (or a loop's own "text") and time left: a bar, or a line every ten seconds."""

    def __init__(self, every_seconds: float = 10.0) -> None:
        columns = [BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")]
        self.bar = Progress(*columns, TimeRemainingColumn(), transient=True)
        self.every_seconds = 0.5 if self.bar.console.is_terminal else every_seconds
        self.task, self.shown = None, time.perf_counter()

    def __call__(self, info: dict) -> None:
        """Take what the loop reports after each step; read the loss only when it is shown."""
        last = info["step"] == info["steps"]
        if time.perf_counter() - self.shown < self.every_seconds and not last:
            return
        self.shown = time.perf_counter()
        text = info.get("text")
        if text is None:
            text = f"loss {float(info['loss']):.3f}  {info['tokens_per_second']:,.0f} tokens/s"
            text += f"  validation {info['evals'][-1][1]:.3f}" if info["evals"] else ""
        if not self.bar.console.is_terminal:
            left = (info["steps"] - info["step"]) * info["seconds_per_step"]
            print0(f"step {info['step']}/{info['steps']}  {text}  {left:.0f} s left")
            return
        if self.task is None:
            self.bar.start()
            self.task = self.bar.add_task(text, total=info["steps"])
        self.bar.update(self.task, completed=info["step"], description=text)

    def close(self) -> None:
        """Give the terminal back."""
        if self.task is not None:
            self.bar.stop()


# %%
import os

with postpone_interrupt() as interrupt:
    os.kill(os.getpid(), signal.SIGINT)  # what Ctrl-C sends
    finished = sum(range(1000))  # and the work goes on
assert interrupt.is_set() and finished == 499_500

# %%
scratch.cleanup()

# %% [markdown]
# ## Recap
#
# A checkpoint is a folder that appears when it is whole; it names its tokenizer, keeps the optimizer's
# state under readable names, and is removed file by file. Ctrl-C waits for the end of a step.
# `training.checkpoint` and `training.progress` are now in the library; pretraining and fine-tuning
# save through them.
