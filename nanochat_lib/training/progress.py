# Generated from chapters/95_checkpoints.py by `course build`; edit that file.
"""Watch a training run, and stop it between two steps."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nanochat_lib.common import print0

__all__ = ["postpone_interrupt", "ProgressBar"]


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
