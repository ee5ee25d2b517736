# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The ground: devices, number formats, seeds and files
#
# Every chapter stands on a few dozen lines that are not about language models: where numbers live
# and how wide they are, randomness that repeats, files that are never half written, and a command
# that ends in one line when the disk is full. A reader of ideas can take them as given. Here they
# are built, one at a time, each after the accident that it prevents. In use:
#
# ```python
# local_generator("dice", 42).randint(1, 6)    # 3, today, tomorrow, and on your machine
# ```
#
# It needs Python and torch, and takes about 10 seconds on a laptop.

# %%
#| default_exp common

# %% [markdown]
# ## Where do tensors live?
#
# Now the ground. A tensor is a block of numbers on a *device*: the main memory next to the CPU, or
# the memory on a GPU. An operation runs where its inputs are, and inputs on two devices are an
# error. So one function decides once, at the start of a program.

# %%
#| export
import os
from dataclasses import dataclass


# %% [markdown]
# On a machine with eight GPUs we start eight copies of the program, one a GPU. The launcher
# `torchrun` tells each copy who it is through three environment variables. We wrap them first,
# because the device depends on them. Two machines of two GPUs each make a world of four:
#
# | machine | `RANK` | `LOCAL_RANK` | `WORLD_SIZE` |
# |---|---|---|---|
# | first | 0, 1 | 0, 1 | 4 |
# | second | 2, 3 | 0, 1 | 4 |


# %%
#| export
@dataclass(frozen=True)
class Ranks:
    """Say which of a group of processes this one is, as torchrun counts them.

    Args:
        rank: number of this process among all of them, from 0.
        local_rank: its number on its own machine, which is also the number of its GPU.
        world_size: how many processes there are.

    Raises:
        ValueError: a rank lies outside the world.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.world_size and 0 <= self.local_rank < self.world_size):
            raise ValueError(f"{self} is impossible: ranks count from 0 to world_size - 1")

    @property
    def is_main(self) -> bool:
        """True in the one process that prints and saves."""
        return self.rank == 0


# %%
second_gpu_of_second_machine = Ranks(rank=3, local_rank=1, world_size=4)
assert not second_gpu_of_second_machine.is_main and Ranks().is_main

# %% [markdown]
# Reading the variables is one line. Refusing half of them is the part that matters: a program that
# sees a `WORLD_SIZE` of 8 but no `RANK`, and shrugs, becomes one of eight processes that all
# believe they are number 0. They overwrite one another's checkpoints, and nothing fails.


# %%
#| export
def get_ranks() -> Ranks:
    """Read RANK, LOCAL_RANK and WORLD_SIZE, which torchrun sets; without them we are alone.

    Raises:
        ValueError: only some of the three are set, or one is no number.
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    found = {name: os.environ[name] for name in names if name in os.environ}
    if not found:
        return Ranks()
    missing = [name for name in names if name not in found]
    if missing or not all(value.isdigit() for value in found.values()):
        raise ValueError(f"cannot tell the ranks from {found}: start with torchrun, or unset them")
    return Ranks(*(int(found[name]) for name in names))


# %% [markdown]
# No launcher started this notebook, so we are alone. To play the third of four processes we borrow
# the environment for one line.

# %%
# NBVAL_CHECK_OUTPUT
from unittest.mock import patch

print(get_ranks())
with patch.dict(os.environ, {"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}):
    print(get_ranks())
with patch.dict(os.environ, {"WORLD_SIZE": "4"}):
    try:
        get_ranks()
    except ValueError as error:
        print(error)

# %% [markdown]
# Eight processes that print the same line make eight lines. So the library prints through this:


# %%
#| export
def print0(*args: object) -> None:
    """Print in the main process only, at once."""
    if get_ranks().is_main:
        print(*args, flush=True)


# %%
# NBVAL_CHECK_OUTPUT
for rank in range(4):
    with patch.dict(os.environ, {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "4"}):
        print0(f"hello from rank {rank} of 4")

# %% [markdown]
# Now the device. Two details are deliberate. `import torch` stands inside the function: it takes a
# second, and a command such as `course list` should not pay for it. And an Apple GPU is used when
# you ask for `mps` by name, never by "auto", because the course has not been tested on one.


# %%
#| export
def pick_device(name: str = "auto") -> "torch.device":
    """Choose where tensors live.

    Args:
        name: "auto" (this rank's CUDA GPU where there is one, else the CPU), "cpu", "cuda",
            "cuda:1", "mps".

    Raises:
        ValueError: torch does not know the name, or does not see the device.
    """
    import torch  # slow to import, and commands that need no tensors should start at once

    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", get_ranks().local_rank)
    try:
        device = torch.device("cpu" if name == "auto" else name)
    except RuntimeError as error:
        raise ValueError(f"no device is called {name!r}: try auto, cpu, cuda or mps") from error
    visible = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.mps.is_available())}
    if (device.index or 0) >= visible.get(device.type, 0):
        raise ValueError(f"torch sees no device {name!r} here: try auto or cpu")
    return device


# %%
import torch

device = pick_device()
assert pick_device("cpu") == torch.device("cpu")
print(f"this machine: {device}")

# %% [markdown]
# ## How wide is a number?
#
# A `float32` has 1 sign bit, 8 bits of exponent and 23 bits of fraction. `bfloat16` keeps the sign
# and the whole exponent and cuts the fraction to 7 bits. So it reaches as far and sees less finely:
# half the memory, and fewer transistors for a multiplier.

# %%
# NBVAL_CHECK_OUTPUT
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    info = torch.finfo(dtype)
    print(
        f"{str(dtype):15} {info.bits} bits, largest {info.max:.2e}, 1 + {info.eps:.1e} is next to 1"
    )

# %% [markdown]
# The older 16-bit format, `float16`, stops at 65,504: gradients overflow or vanish, and training
# code must scale them by hand. bfloat16 needs no such care, which is why the field moved to it.
#
# Seven bits of fraction (eight with the leading 1) count to 256 and no further. Add 1 a thousand
# times and see where the sum stays:

# %%
# NBVAL_CHECK_OUTPUT
one = torch.tensor(1.0, dtype=torch.bfloat16)
total = torch.tensor(0.0, dtype=torch.bfloat16)
for _ in range(1_000):
    total += one
print(total.item())
assert total.item() == 256.0

# %% [markdown]
# From 256 on, the neighbours are 2 apart, and 256 + 1 rounds back to 256. So nobody sums in
# bfloat16: hardware multiplies in bfloat16 and adds up in float32, and we keep the parameters in
# float32 so that small updates survive. Only the big matrix products are worth narrowing.
#
# And only where the hardware has a multiplier for it. Elsewhere the CPU converts back and forth and
# gains nothing. Do not believe us: measure. The best of several runs is the fairest, because
# everything that disturbs a run makes it slower.

# %%
import time


def seconds_of_matmul(dtype: torch.dtype, n: int = 512, runs: int = 3) -> float:
    """Time the product of two n-by-n matrices on the CPU: the best of some runs."""
    a = torch.ones(n, n, dtype=dtype)
    times = []
    for _ in range(runs + 1):  # the first one warms up
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return min(times[1:])


float32_seconds = seconds_of_matmul(torch.float32)
ratio = seconds_of_matmul(torch.bfloat16) / float32_seconds
print(f"here bfloat16 takes {ratio:.2f} times as long as float32")

# %% [markdown]
# What did you get? On a server CPU with AMX, a unit for bfloat16 matrices, the ratio is below 1. On
# a CPU with AVX2 only, such as most laptops, it is above 1: the narrow format costs time. The CPU
# says what it has:

# %%
#| export
import platform
import shutil
import subprocess
from pathlib import Path


# %%
#| export
def first_line(*command: str) -> str:
    """Return the first line that a command prints; "" where it is missing, fails or hangs."""
    program = shutil.which(command[0])
    if program is None:
        return ""
    try:
        done = subprocess.run([program, *command[1:]], capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    text = done.stdout.decode("utf-8", errors="replace")  # whatever the locale
    return text.partition("\n")[0].strip() if done.returncode == 0 else ""


# %%
#| export
def cpu_features() -> frozenset[str]:
    """Name the vector units of this CPU that matter to us.

    Returns:
        A subset of "avx2", "avx512f", "avx512_bf16", "amx_bf16" and "neon"; empty where we cannot
        tell.
    """
    if platform.machine().lower() in ("arm64", "aarch64"):
        return frozenset({"neon"})
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        flags = next((line for line in lines if line.startswith("flags")), "").split()
    elif platform.system() == "Darwin":
        flags = first_line("sysctl", "-n", "machdep.cpu.leaf7_features").lower().split()
    else:
        flags = []
    return frozenset(flags) & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}


# %%
print(sorted(cpu_features()))

# %% [markdown]
# The rule follows: bfloat16 on NVIDIA GPUs from the Ampere generation on (compute capability 8.0)
# and on CPUs with AMX or `avx512_bf16`; float16 on the two GPU generations before that; float32
# everywhere else, because a format that the hardware emulates is many times slower. Chapter `speed`
# measures what it brings, and uses the other names.


# %%
#| export
def pick_dtype(device: "torch.device", name: str = "auto") -> "torch.dtype":
    """Choose the number format for the big matrix products.

    Args:
        device: where they will run.
        name: "auto" (bfloat16 where the hardware multiplies it, float16 on older GPUs, else
            float32), "float32", "bfloat16", "float16" or "float8".

    Raises:
        ValueError: the name is none of these.
    """
    import torch

    if name in ("float32", "bfloat16", "float16"):
        return getattr(torch, name)
    if name == "float8":
        return torch.float8_e4m3fn
    if name != "auto":
        known = "auto, float32, bfloat16, float16 or float8"
        raise ValueError(f"no number format {name!r} here: try {known}")
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        older = torch.float16 if capability >= (7, 0) else torch.float32
        return torch.bfloat16 if capability >= (8, 0) else older
    multiplies = device.type == "cpu" and cpu_features() & {"amx_bf16", "avx512_bf16"}
    return torch.bfloat16 if multiplies else torch.float32


# %%
dtype = pick_dtype(device)
assert pick_dtype(torch.device("cpu"), "bfloat16") == torch.bfloat16  # your word beats our rule
print(f"big products run in {dtype}")

# %% [markdown]
# ## Randomness that repeats
#
# Initial weights, the order of documents and every sampled token are random, and a result that
# cannot be repeated cannot be debugged. The usual recipe is to seed *the* generator, the global
# one, at the top of the program. Watch what it does. Here is an experiment: some weights, then some
# data.


# %%
import random


def experiment(log_a_sample: bool) -> tuple[float, float]:
    """Draw a weight and a datum from the global generator, as most scripts do."""
    random.seed(42)
    weight = random.random()
    if log_a_sample:
        random.choice(["just", "a", "log", "line"])  # innocent
    datum = random.random()
    return weight, datum


# %% [markdown]
# Then somebody adds a line that logs a random sample. It touches neither weight nor datum.

# %%
# NBVAL_CHECK_OUTPUT
before, after = experiment(log_a_sample=False), experiment(log_a_sample=True)
print(f"without the log line: weight {before[0]:.3f}, datum {before[1]:.3f}")
print(f"with the log line:    weight {after[0]:.3f}, datum {after[1]:.3f}")
assert before[0] == after[0] and before[1] != after[1]

# %% [markdown]
# The datum changed. One extra draw shifted everything after it, and next week you will search your
# model for the reason that the loss moved. The same happens when a library you import draws once,
# when an evaluation runs in the middle of training, and when training resumes and some draws are
# not repeated.
#
# The cure: whoever needs randomness owns a generator, and its seed names what it is for. The order
# of epoch 3 depends on `("order", 42, 3)` and on nothing that happened before. To turn such names
# into a seed we need a function from values to numbers that is the same everywhere. Python's own
# `hash` is not:

# %%
import sys


def hash_in_a_new_process(text: str) -> str:
    """Ask a fresh Python for hash(text)."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    command = [sys.executable, "-c", f"print(hash({text!r}))"]
    return subprocess.run(
        command, env=clean, capture_output=True, encoding="utf-8", check=True
    ).stdout


assert hash_in_a_new_process("order") != hash_in_a_new_process("order")

# %% [markdown]
# Python salts the hash of strings in each process, as a defence against crafted keys. So we take a
# hash that is standard, SHA-256, over a spelling that is standard, JSON with sorted keys. JSON has
# a trap of its own: it spells the key `1` as `"1"`, so two different dictionaries would look the
# same.

# %%
#| export
import hashlib
import json

# %%
# NBVAL_CHECK_OUTPUT
print(json.dumps({1: "a"}), json.dumps({"1": "a"}))


# %%
#| export
def _check_keys(value: object) -> None:
    """Refuse dictionary keys that JSON would turn into others: 1 and "1" must not look alike."""
    if isinstance(value, dict):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise ValueError(f"key {wrong[0]!r} is no string: JSON has no other keys")
    children = value.values() if isinstance(value, dict) else value
    if isinstance(value, (dict, list, tuple)):
        for child in children:
            _check_keys(child)


# %%
#| export
def fingerprint(*parts: object) -> str:
    """Hash JSON values into 16 hex digits: equal values give equal digits, on every machine.

    Args:
        parts: numbers, strings, booleans, None, and lists, tuples or dictionaries of them.

    Returns:
        The first 64 bits of the SHA-256 of the parts as canonical JSON (sorted keys, no spaces,
        ASCII).

    Raises:
        ValueError: a part is no JSON value: a Path, a set, NaN, a key that is no string.
    """
    _check_keys(parts)
    try:
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"no fingerprint of {parts!r:.200}: make it of numbers, strings, lists and dictionaries"
        ) from error
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


# %%
# NBVAL_CHECK_OUTPUT
print(fingerprint("order", 42, 3))
print(fingerprint({"depth": 4, "recipe": "classic"}))
assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
assert (
    len({fingerprint(1), fingerprint(1.0), fingerprint("1"), fingerprint([1]), fingerprint(True)})
    == 5
)

# %% [markdown]
# And what is no JSON is refused, with the way out, rather than hashed by the address it has in
# memory today:

# %%
# NBVAL_CHECK_OUTPUT
for wrong in (Path("corpus"), float("nan"), {1: "a"}):
    try:
        fingerprint(wrong)
    except ValueError as error:
        print(error)

# %% [markdown]
# A generator of our own is now two lines. For tensors the same number seeds a `torch.Generator`.

# %%
#| export
import random


# %%
#| export
def local_generator(*seed_parts: object) -> random.Random:
    """Return a random generator of our own, seeded by the fingerprint of the parts.

    Example: local_generator("shuffle", 42, epoch) gives each epoch its own order, the same every
        run.
    """
    return random.Random(int(fingerprint(*seed_parts), 16))


# %%
# NBVAL_CHECK_OUTPUT
print([local_generator("order", 42, epoch).randint(1, 100) for epoch in range(6)])
print(local_generator("dice", 42).randint(1, 6))

# %% [markdown]
# The experiment again, with an owner for each draw. The log line may draw all it likes.


# %%
def careful_experiment(log_a_sample: bool) -> tuple[float, float]:
    """Draw a weight and a datum, each from a generator of its own."""
    weight = local_generator("weight", 42).random()
    if log_a_sample:
        local_generator("log", 42).choice(["just", "a", "log", "line"])
    return weight, local_generator("datum", 42).random()


assert careful_experiment(log_a_sample=False) == careful_experiment(log_a_sample=True)

tensor_generator = torch.Generator().manual_seed(int(fingerprint("weights", 42)[:8], 16))
first = torch.randn(3, generator=tensor_generator)
torch.randn(1_000)  # somebody uses the global generator
tensor_generator.manual_seed(int(fingerprint("weights", 42)[:8], 16))
assert torch.equal(first, torch.randn(3, generator=tensor_generator))

# %% [markdown]
# ## Where files live
#
# A run leaves shards, checkpoints and a report behind. They go under one folder, never into the
# repository, and a variable moves it to a larger disk.


# %%
#| export
def base_dir() -> Path:
    """Return the folder of all runs: $NANOCHAT_BASE_DIR, or a cache folder at home.

    Raises:
        ValueError: it starts at a home folder, and this user has none.
    """
    chosen = os.environ.get("NANOCHAT_BASE_DIR") or "~/.cache/nanochat-course"
    try:
        folder = Path(chosen).expanduser()
    except RuntimeError:  # HOME is not set, and the system does not know this user
        folder = None
    if folder is None or (chosen[0] == "~" and os.environ.get("HOME") == ""):
        raise ValueError(f"no home folder for {chosen}: set NANOCHAT_BASE_DIR to a folder")
    return folder


# %% [markdown]
# A run's name becomes a folder's, so it must be a name and no path: `..` would write outside.


# %%
#| export
def run_dir(name: str) -> Path:
    """Return the folder of the run called `name`.

    Raises:
        ValueError: the name is empty, a path, hidden, longer than 100 bytes, or cannot be printed.
    """
    if not name or name[0] in ".-" or {"/", "\\"} & set(name) or not name.isprintable():
        raise ValueError(f"run {name!r:.80}: a name has no / or \\, and begins with no . or -")
    if len(name.encode("utf-8")) > 100:
        raise ValueError(
            f"run {name!r:.80} has {len(name.encode('utf-8'))} bytes: 100 are the most"
        )
    return base_dir() / name


# %%
with patch.dict(os.environ, {"NANOCHAT_BASE_DIR": "~/big-disk"}):
    assert run_dir("my run") == base_dir() / "my run" == Path.home() / "big-disk" / "my run"

# %% [markdown]
# ## What goes wrong: the file that is half there
#
# Training writes its progress every half minute. One day the machine runs out of memory in the
# middle of a write, the system kills the process, and `progress.json` holds half an object. The run
# cannot resume.
#
# The child process below opens the file for writing, which empties it at
# once; writes half; and dies by the signal that no program can catch, number 9.

# %%
import signal
import tempfile

folder = Path(tempfile.mkdtemp())
progress = folder / "progress.json"
progress.write_text('{"step": 100}', encoding="utf-8")

careless = """
import os, signal, sys
with open(sys.argv[1], "w") as file:
    file.write('{"step": 2')
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""

# %%
# NBVAL_CHECK_OUTPUT
done = subprocess.run([sys.executable, "-c", careless, str(progress)])
assert done.returncode == -signal.SIGKILL
print(progress.read_text(encoding="utf-8"))
try:
    json.loads(progress.read_text(encoding="utf-8"))
except json.JSONDecodeError as error:
    print(error)

# %% [markdown]
# Both are gone: step 200 never arrived, and step 100 was thrown away first.
#
# The cure is to write the new content under another name and to rename it when it is whole. POSIX
# promises that a rename replaces the old file in one step: whoever opens the name finds all of the
# old or all of the new.

# %%
#| export
import secrets
from collections.abc import Iterable
from contextlib import suppress


# %%
#| export
def replace_surrogates(text: str) -> str:
    """Make a text that UTF-8 can hold: half a UTF-16 pair becomes U+FFFD, two halves their character.

    Python reads the half from JSON such as "\\ud83d", and raises only where it is written.
    """
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def atomic_write(path: Path | str, data: bytes | str) -> None:
    """Write a whole file or nothing: readers see the old content or the new, never a part.

    Args:
        path: where the file goes; missing parent folders are created.
        data: the content; text is written as UTF-8, with line ends as they are.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same folder: a rename is atomic only inside one file system.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(replace_surrogates(data).encode() if isinstance(data, str) else data)
            file.flush()
            # Without this, a power cut can leave the new name on an empty file.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# %% [markdown]
# To test it we kill it where it hurts most: after the bytes are written and before the rename. The
# child runs the very function above, with `os.fsync` replaced by the same signal.

# %%
import inspect

careful = f"""
import os, secrets, signal, sys
from pathlib import Path
{inspect.getsource(replace_surrogates)}
{inspect.getsource(atomic_write)}
os.fsync = lambda number: os.kill(os.getpid(), signal.SIGKILL)
atomic_write(sys.argv[1], '{{"step": 200}}')
"""
progress.write_text('{"step": 100}', encoding="utf-8")

# %%
# NBVAL_CHECK_OUTPUT
done = subprocess.run([sys.executable, "-c", careful, str(progress)])
assert done.returncode == -signal.SIGKILL
print(progress.read_text(encoding="utf-8"), "and", len(list(folder.glob(".*.tmp"))), "leftover")

# %% [markdown]
# Step 100 is still there. The leftover is harmless: its name starts with a dot and nobody reads it.
# Undisturbed, the function leaves the new content and nothing else:

# %%
for old in folder.glob(".*.tmp"):
    old.unlink()
atomic_write(progress, '{"step": 200}')
assert json.loads(progress.read_text(encoding="utf-8")) == {"step": 200}
assert replace_surrogates("cut \ud83d") == "cut \ufffd"
assert [path.name for path in folder.iterdir()] == ["progress.json"]

# %% [markdown]
# What does it cost? The rename is free; `os.fsync` waits until the disk has the bytes. Measure both
# ways:


# %%
def seconds_of(action: object, runs: int = 20) -> float:
    """Time one call, the best of some runs."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


page = b"x" * 4_096
plain = seconds_of(lambda: (folder / "page").write_bytes(page))
safe = seconds_of(lambda: atomic_write(folder / "page", page))
print(f"a page of 4 KB: {1e3 * plain:.2f} ms plain, {1e3 * safe:.2f} ms atomic")

# %% [markdown]
# Milliseconds: nothing once every half minute, hours for a million small files. So we write few
# files, and large ones.
#
# Deleting has a rule as well: by name, and only what we wrote. Somebody's notes beside it stay.


# %%
#| export
def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Remove files by name, then the folders that this leaves empty: nothing else is ever deleted.

    Args:
        folder: where they are.
        names: paths below it; missing ones are fine.
    """
    emptied = {folder}
    for path in (folder / name for name in names):
        path.unlink(missing_ok=True)
        emptied |= {parent for parent in path.parents if folder in parent.parents}
    for path in sorted(emptied, reverse=True):
        with suppress(OSError):  # something else is in it
            path.rmdir()


# %% [markdown]
# ## Work that is not done twice
#
# Put fingerprint and atomic write together and a pipeline can skip what it has. Each stage leaves a
# mark that holds the fingerprint of its settings. Same fingerprint: skip. Another one, or no mark:
# do the work, then write the mark, last.


# %%
def stage(mark: Path, settings: dict, work: object) -> str:
    """Do the work unless a mark says that it was done with these very settings."""
    wanted = fingerprint(settings)
    if mark.exists() and mark.read_text(encoding="utf-8") == wanted:
        return "skipped"
    work()
    atomic_write(mark, wanted)
    return "done"


# %%
# NBVAL_CHECK_OUTPUT
mark = folder / "tokenizer.done"
for settings in ({"vocab_size": 512}, {"vocab_size": 512}, {"vocab_size": 1024}):
    print(settings, stage(mark, settings, lambda: None))

# %% [markdown]
# Why must the mark come last? Kill the process between work and mark and the work is done again,
# which is slow. With mark first, it would never be done, which is wrong.

# %% [markdown]
# ## Use it: what is this machine?
#
# `course doctor` and every report say what they ran on. This is the whole library's first question
# to a machine:


# %%
#| default_exp machine
# What this machine is: its processor, its memory, its disk.


# %%
#| export
def _memory_gb() -> float:
    """Return the memory this process may use, in GB of 1e9 bytes, within a container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text(encoding="utf-8").strip().isdigit():
        total = min(total, int(limit.read_text(encoding="utf-8")))
    return round(total / 1e9, 1)


def _cpu_name() -> str:
    """Return the CPU's product name, or its architecture where we cannot tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return names[0] if names else platform.machine()
    return first_line("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()


# %% [markdown]
# The description holds no user, host or folder name that you would not want to post.

# %%
#| export
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path


def machine_summary() -> dict:
    """Describe this machine in plain JSON values, without names or paths that identify it.

    Returns:
        platform, cpu, cores (that this process may use), features, memory_gb, gpus (name and GB),
        disk_free_gb (under base_dir), python, torch, and cargo, compiler, browser: what was found,
        or None.
    """
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    folder = base_dir().absolute()
    existing = next(parent for parent in [folder, *folder.parents] if parent.exists())
    affinity = getattr(os, "sched_getaffinity", None)
    compilers = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    browsers = ["chromium", "chromium-browser", "google-chrome", "firefox"]
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "features": sorted(cpu_features()),
        "memory_gb": _memory_gb(),
        "gpus": [f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB" for gpu in gpus],
        "disk_free_gb": round(shutil.disk_usage(existing).free / 1e9, 1),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "cargo": first_line("cargo", "--version") or None,
        "compiler": next(
            (line for name in compilers if (line := first_line(name, "--version"))), None
        ),
        "browser": next((name for name in browsers if shutil.which(name)), None),
    }


# %%
for name, value in machine_summary().items():
    print(f"{name:14} {value}")

# %% [markdown]
# Machines also fail: the disk fills, the terminal shows no accents, `head` reads a line and goes.
# Our commands run inside this, and answer in one line.

# %%
#| default_exp terminal
# How a command begins and ends in whatever terminal there is.


# %%
#| export
import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def _close_stdout() -> None:
    """Write out what still can be; the rest goes nowhere, or Python would complain as it ends."""
    with suppress(OSError):
        sys.stdout.flush()
    with suppress(OSError, AttributeError):  # a closed stream is None
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def as_command(name: str) -> Iterator[None]:
    """Run a command: what is wrong outside the program ends in one line, not in a traceback.

    What the terminal cannot show becomes "?", and a width that nothing fits in 80 columns.

    Args:
        name: stands before the message.
    """
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if os.environ.get("COLUMNS", "80").isdigit() and int(os.environ.get("COLUMNS", 80)) < 20:
        os.environ["COLUMNS"] = "80"
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader went, as `head` does
        _close_stdout()
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        _close_stdout()
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        place = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EEXIST)
        elsewhere = bool(error.filename) and error.errno in place
        hint = "; NANOCHAT_BASE_DIR names another place for runs" if elsewhere else ""
        sys.exit(f"{name}: {what}{hint}")
    except (ValueError, RuntimeError) as error:
        sys.exit(f"{name}: {error}")


# %% [markdown]
# ## Recap
#
# A program asks once where its tensors live and how wide they are; whoever draws a random number
# owns a generator with a name; a file is whole or absent; a folder is emptied by the names of its
# files; and what is wrong outside the program ends in one line. `nanochat_lib.common` now holds
# `pick_device`, `pick_dtype`, `get_ranks`, `print0`, `base_dir`, `run_dir`, `atomic_write`,
# `remove_files`, `fingerprint` and `local_generator`; `machine` and `terminal` serve the commands.
#
# The exercises ask you to publish a whole folder in one step, and to split data so that it stays
# split when more data comes.
