# Generated from chapters/93_ground.py by `course build`; edit that file.
"""What this machine is: its processor, its memory, its disk."""

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

from nanochat_lib.common import base_dir, cpu_features, first_line

__all__ = ["machine_summary"]


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
