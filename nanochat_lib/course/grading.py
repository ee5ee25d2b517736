# Generated from chapters/96_learner.py by `course build`; edit that file.
"""Run the referee and survive it."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nanochat_lib.course.manifest import library_root

__all__ = ["MOST_PRINTED", "Verdict", "resident_bytes", "grade_file"]

MOST_PRINTED = 10_000_000  # bytes


@dataclass(frozen=True)
class Verdict:
    """Hold what the referee says.

    Args:
        outcome: "passed", "todo" or "failed".
        message: what came out and what was expected.
        line: the line of the answer that it is about.
        mistake: a known mistake that ends the same way.
        seconds: what the grading took.
        printed: the end of what the answer printed.
    """

    outcome: str
    message: str = ""
    line: int | None = None
    mistake: str | None = None
    seconds: float = 0.0
    printed: str = ""


def resident_bytes(pid: int) -> int:
    """Return the memory that a process holds; 0 where nobody can tell."""
    with suppress(OSError, ValueError, IndexError):
        if Path("/proc/self/statm").exists():
            pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
            return int(pages) * os.sysconf("SC_PAGE_SIZE")
        said = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True).stdout
        return int(said) * 1024
    return 0


def _watched(child: subprocess.Popen, printed: Path, seconds: float, memory_mb: int) -> str:
    """Wait for the child, and say why it had to be killed; "" if it ended by itself."""
    end, why = time.monotonic() + seconds, ""
    try:
        while child.poll() is None and not why:
            time.sleep(0.05)
            if resident_bytes(child.pid) > memory_mb * 1_000_000:
                why = f"it takes more than {memory_mb:,} MB of memory"
            elif printed.stat().st_size > MOST_PRINTED:
                why = f"it prints more than {MOST_PRINTED // 1_000_000} MB"
            elif time.monotonic() > end:
                why = "it is still running, and does not let itself be interrupted"
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    return why


def _death(code: int, trace: str, path: Path, seconds: float) -> Verdict:
    """Say how a child died that left no verdict."""
    shown = str(path).encode("ascii", "backslashreplace").decode()  # as faulthandler writes it
    found = re.search(rf'File "{re.escape(shown)}", line (\d+)', trace)
    line = int(found[1]) if found else None
    if code < 0:
        return Verdict("failed", f"it crashed Python itself ({signal.Signals(-code).name})", line)
    if "most recent call first" in trace:
        message = f"it is still running after {seconds:g} seconds: a loop that does not end?"
        return Verdict("failed", message, line, seconds=seconds)
    message = f"it ended Python itself (exit code {code}) before the grader was done"
    return Verdict("failed", message)


def grade_file(
    root: Path, path: Path, slug: str, name: str, seconds: float = 60.0, memory_mb: int = 4000
) -> Verdict:
    """Grade one exercise in a process of its own.

    Args:
        root: the folder of course.toml.
        path: the learner's script or notebook.
        slug: the chapter.
        name: the exercise.
        seconds: the time limit.
        memory_mb: the limit on resident memory, in 10^6 bytes.
    """
    with tempfile.TemporaryDirectory(prefix="course-grade-") as place:
        printed, result, trace = (Path(place, name) for name in ("printed", "result", "trace"))
        work = Path(place, "work")
        work.mkdir()
        words = [root.resolve(), path.resolve(), slug, name, result, trace, seconds]
        paths = [str(library_root())]
        paths += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
        settings = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1", "MPLBACKEND": "agg"}
        settings["OMP_NUM_THREADS"] = "1"  # models this small lose time on a second thread
        with open(printed, "wb") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "nanochat_lib.course.referee", *map(str, words)],
                cwd=work, env=os.environ | settings, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            why = _watched(child, printed, seconds + 3, memory_mb)
        with open(printed, "rb") as output:
            output.seek(max(0, printed.stat().st_size - 1500))
            said = output.read().decode("utf-8", "replace").strip()
        if result.exists():
            fields = json.loads(result.read_text(encoding="utf-8"))
            return Verdict(**{k: v for k, v in fields.items() if k != "at"}, printed=said)
        if why:
            return Verdict("failed", why, printed=said)
        traced = trace.read_text(encoding="utf-8") if trace.exists() else ""
        death = _death(child.returncode, traced, path.resolve(), seconds)
        return Verdict(death.outcome, death.message, death.line, None, death.seconds, said)
