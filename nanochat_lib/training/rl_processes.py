# Generated from chapters/97_two_processes.py by `course build`; edit that file.
"""Sample in a process of its own, while this one learns."""

import contextlib
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load, save

import nanochat_lib
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.tasks.base import Task
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.rl_sampler import RLConfig, Sampler
from nanochat_lib.training.rollouts import Answer

__all__ = ["serve", "SamplerProcess"]


def serve(threads: int) -> None:
    """Sample for the process at the other end of the standard streams, until it hangs up."""
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever prints must not disturb the replies
    torch.set_num_threads(threads)
    config, sizes, tokenizer, task = pickle.load(requests)
    model = GPT(GPTConfig(**sizes))
    sampler = Sampler(config, model, tokenizer, task)
    while True:
        try:
            number, weights, progress = pickle.load(requests)
        except EOFError:
            return
        model.load_state_dict(load(weights))
        if progress is not None:
            sampler.load_state_dict(progress)
        sampler.start(number)
        pickle.dump((sampler.finish(), sampler.state_dict()), replies)
        replies.flush()


class SamplerProcess(Sampler):
    """Sample in another process, with as many threads as this one has.

    Args:
        config: settings of the run; without `staleness` nothing can overlap.
        model: its weights are sent along with every request.
        tokenizer: the model's; it and the task must be picklable.
        task: asks and grades, over there.

    Raises:
        ValueError: the other process has ended; saved work is not lost.
    """

    def __init__(self, config: RLConfig, model: GPT, tokenizer: Tokenizer, task: Task):
        super().__init__(config, model, tokenizer, task)
        self.model, self.progress, self.moved = model, super().state_dict(), False
        self.in_flight, self.sender = 0, ThreadPoolExecutor(1)
        program = "import sys; from nanochat_lib.training.rl_processes import serve; serve(int(sys.argv[1]))"
        command = [sys.executable, "-c", program, str(torch.get_num_threads())]
        paths = [
            str(Path(nanochat_lib.__file__).parents[1]),
            *filter(None, [os.environ.get("PYTHONPATH")]),
        ]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        pipe = subprocess.PIPE
        # In a session of its own: Ctrl-C is for the learner, which ends it.
        self.process = subprocess.Popen(
            command, env=env, stdin=pipe, stdout=pipe, start_new_session=True
        )
        self.send((config, asdict(model.config), tokenizer, task))

    def send(self, message: tuple) -> None:
        """Write a message to the other process, in a thread: it may be busy."""

        def write(data: bytes) -> None:
            with contextlib.suppress(OSError):  # it has ended, which the next `receive` will tell
                self.process.stdin.write(data)
                self.process.stdin.flush()

        self.sender.submit(write, pickle.dumps(message))

    def start(self, number: int) -> None:
        """Ask for a batch drawn with the weights of this moment."""
        state = self.model.state_dict()
        weights = save({name: weight.detach().cpu() for name, weight in state.items()})
        progress = self.progress if self.moved else None
        self.moved = False
        self.send((number, weights, progress))
        self.in_flight += 1

    def receive(self) -> None:
        """Wait for the batch that was asked for first."""
        try:
            batch, self.progress = pickle.load(self.process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise ValueError(
                f"the sampling process ended (exit code {self.process.wait()}): start the run again, "
                "it goes on from its last checkpoint"
            ) from None
        self.in_flight -= 1
        self.waiting.append(batch)

    def finish(self) -> tuple[list[Answer], dict]:
        """Hand over the batch that was asked for first."""
        if not self.waiting:
            self.receive()
        return self.waiting.pop(0)

    def state_dict(self) -> dict:
        """Wait for all that is under way, and write what is needed to go on."""
        while self.in_flight:
            self.receive()
        self.asked, self.solved = self.progress["asked"], self.progress["solved"]
        return super().state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Go on from what `state_dict` wrote; the other process learns of it with the next request."""
        super().load_state_dict(state)
        self.progress, self.moved = {**state, "waiting": []}, True

    def close(self) -> None:
        """End the other process."""
        self.process.kill()
        self.process.wait()
        self.sender.shutdown()
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                stream.close()
