"""The training loop: schedule, gradients, and a resume that is exact after a real kill."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nanochat_lib.training.checkpoint import latest_checkpoint
from nanochat_lib.training.loop import train
from nanochat_lib.training.optim import AdamW, Muon
from nanochat_lib.training.progress import postpone_interrupt
from nanochat_lib.training.step import (
    LoopConfig,
    accumulate_gradient,
    lr_multiplier,
    should_compile,
)


class Toy(nn.Module):
    """A bigram model with one hidden matrix; the same interface as the GPT."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.wte = nn.Embedding.from_pretrained(
            torch.randn(11, 8, generator=generator), freeze=False
        )
        self.matrix = nn.Parameter(torch.randn(8, 8, generator=generator) / 3)

    def forward(self, idx, targets, loss_reduction="mean"):
        logits = self.wte(idx) @ self.matrix @ self.wte.weight.T
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum"
        )
        return loss / (targets != -1).sum().clamp(min=1)


class ToyLoader:
    """Rows from a counter, with unequal numbers of targets."""

    def __init__(self, stop: int = -1) -> None:
        self.drawn, self.stop = 0, stop

    def __iter__(self):
        return self

    def __next__(self):
        if self.drawn == self.stop:
            raise StopIteration
        self.drawn += 1
        generator = torch.Generator().manual_seed(self.drawn)
        rows = torch.randint(11, (2, 6), generator=generator)
        targets = rows[:, 1:].clone()
        targets[0, self.drawn % 5 :] = -1
        return rows[:, :-1], targets

    def state_dict(self):
        return {"drawn": self.drawn}

    def load_state_dict(self, state):
        self.drawn = state["drawn"]


def setting(**changes) -> LoopConfig:
    sizes = dict(steps=12, device_batch_size=2, sequence_len=5, total_batch_tokens=20)
    options = dict(eval_every=5, save_seconds=0.0, grad_clip=1.0, dtype="float32", compile="off")
    return LoopConfig(**(sizes | options | changes))


def run(
    folder, config=None, progress=None, meta=None, evaluate=lambda model: float(model.matrix.sum())
):
    model = Toy()
    optimizers = [AdamW(model.wte.parameters(), lr=0.01), Muon([model.matrix], lr=0.02)]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    meta = {"config": {}, "tokenizer_hash": "a" * 16} if meta is None else meta
    summary = train(
        model, optimizers, ToyLoader(), config or setting(), folder, meta, evaluate, progress
    )
    return model, summary


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


class Crash(Exception):
    pass


def crash_at(*steps):
    def callback(info):
        if info["step"] in steps:
            raise Crash

    return callback


@given(
    steps=st.integers(1, 200),
    warmup=st.floats(0, 0.5),
    cooldown=st.floats(0, 0.5),
    final=st.floats(0, 1),
)
@settings(max_examples=30, deadline=None)
def test_schedule_is_a_trapezoid(steps, warmup, cooldown, final):
    config = LoopConfig(
        steps=steps, warmup_fraction=warmup, cooldown_fraction=cooldown, final_lr_fraction=final
    )
    factors = [lr_multiplier(step, config) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = factors.index(max(factors))
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_schedule_by_hand():
    config = LoopConfig(steps=10, warmup_fraction=0.2, cooldown_fraction=0.4, final_lr_fraction=0.2)
    factors = [round(lr_multiplier(step, config), 6) for step in range(10)]
    assert factors == [0.5, 1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4]


@given(counts=st.lists(st.integers(0, 6), min_size=1, max_size=5), seed=st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_micro_batches_give_the_gradient_of_one_batch(counts, seed):
    generator = torch.Generator().manual_seed(seed)
    idx = torch.randint(11, (len(counts), 6), generator=generator)
    targets = torch.randint(11, (len(counts), 6), generator=generator)
    for row, count in enumerate(counts):
        targets[row, count:] = -1
    large, small, cpu = Toy(), Toy(), torch.device("cpu")
    expected = accumulate_gradient(large, [(idx, targets)], cpu)
    micro = [(idx[i : i + 1], targets[i : i + 1]) for i in range(len(counts))]
    loss = accumulate_gradient(small, micro, cpu)
    assert torch.allclose(loss, expected, atol=1e-6)
    for p, q in zip(large.parameters(), small.parameters()):
        assert torch.allclose(p.grad, q.grad, atol=1e-5)


def test_a_resumed_run_is_the_undisturbed_one(tmp_path):
    quiet, summary = run(tmp_path / "quiet")
    assert summary["steps"] == 12 and summary["tokens"] == 240
    assert [step for step, _ in summary["evals"]] == [0, 5, 10, 12]
    for step in (1, 2, 7, 11):
        with pytest.raises(Crash):
            run(tmp_path / "rough", progress=crash_at(step))
    rough, again = run(tmp_path / "rough")
    assert same(quiet, rough)
    assert again["evals"] == summary["evals"] and again["final_loss"] == summary["final_loss"]
    losses = [
        json.loads((tmp_path / f / "losses.json").read_text(encoding="utf-8"))
        for f in ("quiet", "rough")
    ]
    assert losses[0]["losses"] == losses[1]["losses"] and len(losses[0]["losses"]) == 12


def test_saving_less_often_changes_nothing(tmp_path):
    often, _ = run(tmp_path / "often")
    for step in (3, 9):
        with pytest.raises(Crash):
            run(tmp_path / "once", setting(save_seconds=1e9), crash_at(step))
    once, _ = run(tmp_path / "once", setting(save_seconds=1e9))
    never, _ = run(tmp_path / "no_eval", setting(eval_every=0))
    assert same(often, once) and same(often, never)


def test_a_finished_run_is_not_trained_further(tmp_path):
    first, summary = run(tmp_path)
    second, again = run(tmp_path, progress=crash_at(*range(100)))
    assert same(first, second) and again == summary


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from test_loop import run, setting
run({folder!r}, setting(steps=60), progress=lambda info: (print(info["step"], flush=True), time.sleep(0.01)))
"""


def test_kill_9_at_a_random_moment(tmp_path):
    quiet, _ = run(tmp_path / "quiet", setting(steps=60))
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "killed"))
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )
    for _ in range(2):
        process.stdout.readline()  # the second step is done, so the first is saved
    time.sleep(random.uniform(0, 0.4))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    survivors = latest_checkpoint(tmp_path / "killed")
    assert survivors is not None
    resumed, _ = run(tmp_path / "killed", setting(steps=60))
    assert same(quiet, resumed), f"killed after {survivors.name}"


def test_ctrl_c_finishes_the_step_and_saves(tmp_path):
    def press(info):
        if info["step"] == 4:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="step 4"):
        run(tmp_path / "a", setting(save_seconds=1e9), press)
    assert latest_checkpoint(tmp_path / "a").name == "step_000004"
    assert signal.getsignal(signal.SIGINT) == before
    assert same(run(tmp_path / "a")[0], run(tmp_path / "b")[0])


def test_a_second_ctrl_c_does_not_wait():
    with pytest.raises(KeyboardInterrupt):
        with postpone_interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupt.is_set()
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


@pytest.mark.parametrize(
    "change, word",
    [({"steps": 13}, "steps=12, now steps=13"), ({"grad_clip": 2.0}, "grad_clip")],
)
def test_another_run_in_the_folder_is_refused(tmp_path, change, word):
    run(tmp_path)
    with pytest.raises(ValueError, match=word):
        run(tmp_path, setting(**change))
    with pytest.raises(ValueError, match="tokenizer"):
        run(tmp_path, meta={"config": {}, "tokenizer_hash": "b" * 16})
    run(tmp_path, setting(save_seconds=5.0))


def test_a_loader_that_ends_is_named(tmp_path):
    model = Toy()
    rows = ToyLoader(stop=3)
    with pytest.raises(ValueError, match="step 1"):
        train(model, [], rows, setting(eval_every=0, save_seconds=1e9), tmp_path, {}, None, None)


def test_sizes_and_switches_are_checked():
    with pytest.raises(ValueError, match="total_batch_tokens=25"):
        setting(total_batch_tokens=25)
    with pytest.raises(ValueError, match="maybe"):
        setting(compile="maybe")
    assert setting(total_batch_tokens=40).micro_batches == 4
    assert not should_compile(Toy(), setting(compile="auto"), torch.device("cpu"))
    assert should_compile(Toy(), setting(compile="auto"), torch.device("cuda"))


def test_a_failing_compiler_falls_back_to_eager(tmp_path, monkeypatch, capsys):
    def broken(model, dynamic):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    compiled, _ = run(tmp_path / "a", setting(compile="on"))
    assert "torch.compile does not work here (RuntimeError)" in capsys.readouterr().out
    assert same(compiled, run(tmp_path / "b")[0])
