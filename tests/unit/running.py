"""A server of a scripted model, on a port of its own."""

import threading
import time

import openai
import torch
from chained import ALPHABET, SPECIAL, TOKENIZER

from nanochat_lib.inference.engine import Engine
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.serving.server import PatientServer, ServerSettings, Service
from nanochat_lib.serving.worker import Answering, Worker

JSON = {"Content-Type": "application/json"}


class ScriptedGPT(GPT):
    """Say the alphabet to every chat; a step takes `seconds`; after a ! everything breaks."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(GPTConfig(sequence_len=128, vocab_size=265, n_layer=1, n_embd=32))
        self.seconds, self.next_token = seconds, torch.full((265,), ord("x"))
        start, end = SPECIAL("<|assistant_start|>"), SPECIAL("<|assistant_end|>")
        names = [SPECIAL(f"<|{name}|>") for name in ("python_start", "python_end", "output_end")]
        chains = [[start, *ALPHABET.encode(), end], [ord("Q"), names[0], *b"3*4", names[1]]]
        chains += [[names[2], ord("."), end], [ord("W"), *"é".encode(), end]]
        for chain in chains:
            for token, following in zip(chain, chain[1:]):
                self.next_token[token] = following

    def hidden(self, idx, kv_cache=None):
        time.sleep(self.seconds)
        kv_cache.positions(idx.shape[1])
        kv_cache.advance(idx.shape[1])
        table = 10.0 * torch.nn.functional.one_hot(self.next_token[idx], 265).float()
        return table.masked_fill((idx == ord("!"))[..., None], float("nan"))

    def logits(self, x):
        return x


class Running:
    """A server on a port of its own."""

    def __init__(
        self,
        seconds: float = 0.0,
        max_rows: int = 8,
        model: GPT | None = None,
        max_waiting: int = 64,
        worker: Answering | None = None,
        **settings,
    ) -> None:
        engine = Engine(
            model or ScriptedGPT(seconds), TOKENIZER, max_rows=max_rows, keep_bytes=10**6
        )
        worker = worker or Worker(engine, max_waiting)
        self.service = Service(worker, ServerSettings(model="tiny", **settings))
        self.server = PatientServer(self.service, port=0)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> "Running":
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        assert not self.thread.is_alive(), "the server does not stop"

    def client(self, kind=openai.OpenAI, key: str = "none"):
        return kind(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def wait_until_idle(self, seconds: float = 2.0) -> None:
        end = time.monotonic() + seconds
        while not self.service.worker.idle or self.service.worker.engine.busy:
            assert time.monotonic() < end, "requests were left behind"
            time.sleep(0.005)
