# Generated from chapters/98_server.py by `course build`; edit that file.
"""The command `nanochat serve`."""

import json
import os
import socket
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from nanochat_lib.model.gpt import GPT
from nanochat_lib.serving.child import load_member
from nanochat_lib.serving.one_file import inside
from nanochat_lib.serving.pool import Pool
from nanochat_lib.serving.replies import Defaults
from nanochat_lib.serving.runs import find_run, last_stage
from nanochat_lib.serving.server import PatientServer, ServerSettings, Service
from nanochat_lib.serving.worker import Answering, Worker
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.checkpoint import load_model

__all__ = ["LOOPBACK", "LARGEST_INSIDE", "ServeConfig", "look_inside", "make_worker", "serve"]

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
LARGEST_INSIDE = 5_000_000  # weights; a browser reads with them about 200 tokens a second


@dataclass(frozen=True)
class ServeConfig:
    """Serve a trained model with OpenAI's API; the variable NANOCHAT_API_KEY sets a key."""

    run: str | None = None
    """name of the run; the newest one by default"""
    stage: Literal["rl", "sft", "mid", "base"] | None = None
    """rl by default, or sft if the run has no rl"""
    host: str = "127.0.0.1"
    """0.0.0.0 lets other machines in"""
    port: int = 8000
    """0 takes any that is free"""
    temperature: float = 0.0
    """for requests that name none"""
    top_k: int | None = 50
    """for requests that name none"""
    max_rows: int = 64
    """replies in the making at once"""
    max_waiting: int = 64
    """requests that may wait for a row"""
    workers: int = 1
    """processes with an engine each, behind one queue; worker i takes GPU i where there are GPUs"""
    keep_mb: int = 256
    """memory for what past texts have left in the cache"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""


def look_inside(model: GPT, tokenizer: Tokenizer, name: str) -> str | None:
    """Return a model as JSON for the page's own engine; None for one that would be slow there."""
    small = model.num_params() <= LARGEST_INSIDE
    return json.dumps(inside(model, tokenizer, name)) if small else None


def make_worker(
    config: ServeConfig, folder: Path, stage: str, tokenizer: Tokenizer, limit: int
) -> Answering:
    """Make the worker, or the pool, that answers; `limit` is the model's context in tokens."""
    rows, waiting = config.max_rows, config.max_waiting
    about = (folder, stage, config.device, rows, config.keep_mb, config.workers)
    if config.workers == 1:
        return Worker(load_member(*about, 0), waiting)
    make = partial(load_member, *about)
    return Pool(make, config.workers, tokenizer, limit, rows, waiting)


def serve(config: ServeConfig) -> int:
    """Serve until a signal comes; replies in the making are finished first.

    Returns:
        0, the exit code.

    Raises:
        ValueError: there is no such model, or the port is taken.
    """
    if config.workers < 1 or config.max_rows < 1:
        raise ValueError(
            f"{config.workers} workers, {config.max_rows} rows: need at least 1 of each"
        )
    folder = find_run(config.run, config.stage)
    stage = config.stage or last_stage(folder)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    model, _ = load_model(folder / stage, tokenizer)
    worker = make_worker(config, folder, stage, tokenizer, model.config.sequence_len)
    key, loopback = os.environ.get("NANOCHAT_API_KEY"), config.host in LOOPBACK | {"::1"}
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        listening = socket.create_server((config.host, config.port), family=family)
    except OSError as error:
        raise ValueError(
            f"cannot listen at {config.host}:{config.port} ({error.strerror}): try --port "
            f"{config.port + 1}"
        ) from error
    settings = ServerSettings(
        model=folder.name,
        key=key,
        hosts=LOOPBACK if loopback else None,
        defaults=Defaults(config.temperature, config.top_k),
        inside=look_inside(model, tokenizer, folder.name),
    )
    server = PatientServer(Service(worker, settings))
    port = listening.getsockname()[1]
    print(
        f"{folder.name}: http://{config.host}:{port}/ for people, /v1 for programs (Ctrl-C stops)",
        flush=True,
    )
    if not loopback and key is None:
        print("whoever reaches this machine may ask: NANOCHAT_API_KEY sets a key", flush=True)
    server.run(sockets=[listening])
    return 0
