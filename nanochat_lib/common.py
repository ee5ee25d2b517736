# Generated from chapters/93_ground.py by `course build`; edit that file.
"""The ground: devices, number formats, seeds and files."""

import hashlib
import json
import os
import platform
import random
import secrets
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Ranks",
    "get_ranks",
    "print0",
    "pick_device",
    "first_line",
    "cpu_features",
    "pick_dtype",
    "fingerprint",
    "local_generator",
    "base_dir",
    "run_dir",
    "replace_surrogates",
    "atomic_write",
    "remove_files",
]


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


def print0(*args: object) -> None:
    """Print in the main process only, at once."""
    if get_ranks().is_main:
        print(*args, flush=True)


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


def local_generator(*seed_parts: object) -> random.Random:
    """Return a random generator of our own, seeded by the fingerprint of the parts.

    Example: local_generator("shuffle", 42, epoch) gives each epoch its own order, the same every
        run.
    """
    return random.Random(int(fingerprint(*seed_parts), 16))


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
