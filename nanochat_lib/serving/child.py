# Generated from chapters/98_pool.py by `course build`; edit that file.
"""What runs in a process of a pool: an engine, and the requests that it answers."""

import signal
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from nanochat_lib.inference.engine import Engine
from nanochat_lib.inference.forms import Forms
from nanochat_lib.inference.row import Request
from nanochat_lib.serving.runs import load_engine
from nanochat_lib.serving.worker import Arrival, arrival

__all__ = ["News", "Child", "load_member", "child_main"]

News = list[tuple[int, Arrival, int]]  # a request's number, what arrived, tokens read before


class Child:
    """What runs in a process: an engine, and the requests that it answers."""

    def __init__(self, connection: Connection, engine: Engine) -> None:
        """Begin with nothing to do."""
        self.connection, self.engine = connection, engine
        self.forms, self.rows = Forms(engine.tokenizer), {}

    def run(self) -> None:
        """Answer until the pipe ends."""
        self.connection.send([])  # ready
        while True:
            news = []
            while self.connection.poll(0 if self.engine.busy or news else None):
                news += self.hear(*self.connection.recv())
            news += self.step()
            self.connection.send(news)

    def hear(self, number: int, request: Request | None, grammar: str | None) -> News:
        """Take a request, or let one go."""
        if request is None:
            row = self.rows.pop(number, None)
            if row is not None:
                self.engine.cancel(row)
            return []
        try:
            form = None if grammar is None else self.forms.compile(grammar)
            self.rows[number] = self.engine.submit(replace(request, form=form))
        except ValueError as error:
            return [(number, Arrival(0, error=str(error)), 0)]
        return []

    def step(self) -> News:
        """Step the engine; if that fails, everybody in it hears of it."""
        try:
            got = {id(row): token for row, token, _ in self.engine.step()}
        except Exception as error:  # whatever it was, the callers must hear of it
            lost, self.rows = self.rows, {}
            self.engine.reset()
            message = f"{type(error).__name__}: {error}"
            return [(number, Arrival(0, error=message), 0) for number in lost]
        brought = [(n, row) for n, row in self.rows.items() if id(row) in got]
        self.rows = {n: row for n, row in self.rows.items() if not row.finished}
        return [(n, arrival(row, got[id(row)], 0), row.n_shared) for n, row in brought]


def load_member(
    folder: Path, stage: str, device: str, max_rows: int, keep_mb: int, n: int, index: int
) -> Engine:
    """Load the engine of process `index` out of n, in its own memory or on its own GPU.

    Args:
        folder: a run's.
        stage: whose newest checkpoint answers.
        device: as in `pick_device`; with several processes auto and cuda spread over the GPUs.
        max_rows: replies in the making at once.
        keep_mb: memory for what past texts have left in the cache.
        n: processes.
        index: from 0.
    """
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if n > 1 and gpus > 1:
        device = f"cuda:{index % gpus}"  # has never run on several GPUs
    engine = load_engine(folder, stage, device)
    engine.max_rows, engine.kept.room = max_rows, keep_mb * 10**6
    return engine


def child_main(descriptor: int) -> None:
    """Run a process of a pool, at the other end of whose pipe the parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    connection = Connection(descriptor)
    try:
        make_engine, index = connection.recv()
        Child(connection, make_engine(index)).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent has gone
