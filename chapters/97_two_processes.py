# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Two processes: one samples, one learns
#
# While a reinforcement step samples, nothing learns, and while it learns, nothing samples. Large trainings give the two jobs to
# different machines, and let them overlap. The price: by the time a batch of answers is learned from, the model that wrote them has
# moved on. How old may answers be?
#
# ```python
# train_rl(RLConfig(staleness=1), ..., sampling=SamplerProcess)
# ```
#
# You need chapter `rl`. On a laptop the chapter takes about 20 seconds.

# %%
#| default_exp training.rl_processes
# Sample in a process of its own, while this one learns.

# %%
#| export
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

# %%
import json
import tempfile

import matplotlib.pyplot as plt

from nanochat_lib.course.manifest import library_root
from nanochat_lib.tasks.larger import Larger
from nanochat_lib.training.checkpoint import latest_checkpoint, save_checkpoint
from nanochat_lib.training.finetune import FinetuneConfig, finetune
from nanochat_lib.training.rl import train_rl

# %% [markdown]
# ## Age first, processes second
#
# What makes answers old is the order of events, not the number of processes. With `staleness=s` the batch for step $t$ is drawn with the
# weights that step $t - s$ began with. One process can do that, too: it draws ahead and lets batches wait. So the two questions come
# apart. *What does age cost?* is answered in one process, to the bit the same every time. *What does overlap gain?* is a matter of
# seconds, and must not change a bit.
#
# ## The other process
#
# It needs little: the settings, the task, a model of the same shape. A request is the number of a batch and the weights to draw it
# with; the reply is the graded batch, and where the sampler is in its questions, for the checkpoint. They talk through the standard
# streams: if the learner goes away, these close and the sampler ends.


# %%
#| export
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


# %% [markdown]
# On this side stands a sampler like any other: `start` asks for a batch, `finish` hands one over. Sending weights must not wait for the
# other process to have time to read them, so a thread does it.


# %%
#| export
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


# %% [markdown]
# ## The same bytes
#
# The toy of chapter `rl`, 12 steps with answers that are two steps old, in one process and in two. The weights must agree to the byte.

# %%
work = Path(tempfile.mkdtemp())
train = Larger("train")
tokenizer = Tokenizer.train([m["content"] for i in range(200) for m in train[i]["messages"]], 320)
config = GPTConfig(
    vocab_size=tokenizer.vocab_size, n_embd=64, n_head=2, n_kv_head=2, n_layer=2, sequence_len=64
)
about = {"config": vars(config), "tokenizer_hash": tokenizer.hash}
save_checkpoint(work / "start", 0, GPT(config), [], about)
recipe = FinetuneConfig(
    steps=200, device_batch_size=16, sequence_len=64, total_batch_tokens=1024, compile="off"
)
finetune(recipe, train, tokenizer, work / "start", work / "imitation", progress=None)

# %%
# NBVAL_CHECK_OUTPUT
settings = RLConfig(steps=12, questions=12, max_tokens=16, sequence_len=64, replay=0.0, staleness=2)
source, weights = work / "imitation", []
for name, sampling in (("one", Sampler), ("two", SamplerProcess)):
    folder = work / name
    train_rl(settings, train, tokenizer, source, folder, progress=None, sampling=sampling)
    weights.append((latest_checkpoint(folder) / "model.safetensors").read_bytes())
print("same bytes:", weights[0] == weights[1])
assert weights[0] == weights[1]

# %% [markdown]
# ## What age costs
#
# `make study-rl` practises problems of two steps on the laptop's model with answers of several ages, with `reinforce`, which does not look at the ratio, and
# with `cispo`, which weighs old answers by it:

# %%
study = json.loads((library_root() / "records/rl/staleness.json").read_text(encoding="utf-8"))
found: dict[str, dict[int, float]] = {}
for name, row in study["variants"].items():
    loss, age = name.rsplit("_", 1)
    found.setdefault(loss, {})[int(age)] = 100 * sum(row["sampled"]) / len(row["sampled"])
    print(f"{loss:10} {age:>3} steps old: sampled {found[loss][int(age)]:.1f}%")

# %%
# alt: share of right sampled answers after training over the age of the answers learned from, a line for each of two losses
fig, ax = plt.subplots(figsize=(5.5, 3))
for loss, points in found.items():
    ax.plot(list(points), list(points.values()), marker="o", label=loss)
ax.set(xlabel="age of the answers (steps)", ylabel="sampled answers right (%)")
ax.legend()
plt.show()

# %% [markdown]
# *After 60 steps, two seeds each: how much of the gain is left when the answers are old.*
#
# A few steps of age cost next to nothing. At sixteen `reinforce`, which takes every answer for its own, loses much of the gain; `cispo`,
# which weighs each token by how likely it is by now, keeps nearly all. So it is age that the elaborate losses are for.
#
# ## What overlap gains
#
# The same study times 20 steps with answers one step old on two cores, three times each way: both cores for one process that samples
# and learns in turns, or a core for each.

# %%
timed = json.loads((library_root() / "records/rl/processes.json").read_text(encoding="utf-8"))
for name, seconds in timed["seconds"].items():
    print(f"{name:32}{sorted(seconds)[1]:6.1f} s  (from {min(seconds):.1f} to {max(seconds):.1f})")
middle = {name: sorted(seconds)[1] for name, seconds in timed["seconds"].items()}
assert middle["two processes, one thread each"] < middle["one process, one thread"]

# %% [markdown]
# Two processes beat one that has a single core, by a fifth: while one waits, the other works. They do not beat one process that uses both
# cores for sampling and then both for learning. On one small machine there is nothing to overlap; it pays where sampler and learner have
# machines of their own, and each would else stand idle while the other works.
#
# ## Recap
#
# Staleness is a property of the schedule: fix it, and one process and two give the same bytes. What overlap gains depends on the machines.
# The library now has `training.rl_processes`.
