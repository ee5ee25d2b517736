"""Checkpoints: complete or absent, exact, readable, and only with their own tokenizer."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import nanochat_lib.training.checkpoint as checkpoint
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.training.checkpoint import (
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_model,
    save_checkpoint,
)
from nanochat_lib.training.optim import build_optimizers

CONFIG = GPTConfig(
    64,
    2,
    2,
    sequence_len=8,
    vocab_size=64,
    n_layer=1,
    smear=True,
    value_embeds=True,
    x0_lambdas=True,
)


def trained(steps: int):
    """A model and its optimizers after some steps on random gradients."""
    model, generator = GPT(CONFIG), torch.Generator().manual_seed(0)
    optimizers = build_optimizers(model)
    for _ in range(steps):
        update(model, optimizers, generator)
    return model, optimizers


def update(model, optimizers, generator) -> None:
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    for optimizer in optimizers:
        optimizer.step()


def meta(**more) -> dict:
    return {"config": asdict(CONFIG), "tokenizer_hash": "a" * 16} | more


def test_round_trip_continues_to_the_bit(tmp_path):
    model, optimizers = trained(3)
    path = save_checkpoint(tmp_path, 3, model, optimizers, meta(note=[1, {"x": None}]))
    other, other_optimizers = trained(1)  # has states of its own, which must go
    loaded = load_checkpoint(path, other, other_optimizers, "a" * 16)
    assert loaded["step"] == 3 and loaded["note"] == [1, {"x": None}]
    for m, o in ((model, optimizers), (other, other_optimizers)):
        update(m, o, torch.Generator().manual_seed(9))
    for p, q in zip(model.parameters(), other.parameters()):
        assert torch.equal(p, q)


def test_torchs_own_optimizer_survives_too(tmp_path):
    def make():
        model = GPT(CONFIG)
        return model, [torch.optim.AdamW(model.parameters(), lr=0.01)]

    (a, oa), (b, ob) = make(), make()
    update(a, oa, torch.Generator().manual_seed(1))
    load_checkpoint(save_checkpoint(tmp_path, 1, a, oa, meta()), b, ob)
    for m, o in ((a, oa), (b, ob)):
        update(m, o, torch.Generator().manual_seed(2))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


def test_names_are_readable_and_steps_are_plain_numbers(tmp_path):
    path = save_checkpoint(tmp_path, 7, *trained(2), meta())
    assert path.name == "step_000007"
    assert "1.Muon.blocks.0.mlp.c_fc.weight.momentum_buffer" in load_file(
        path / "optimizer.safetensors"
    )
    saved = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    assert saved["optimizer_numbers"]["0.AdamW.wte.weight.step"] == 2


def test_the_newest_two_stay(tmp_path):
    model, optimizers = trained(1)
    for step in (5, 10, 999_999, 1_000_000):
        save_checkpoint(tmp_path, step, model, optimizers, meta())
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_999999", "step_1000000"]
    assert latest_checkpoint(tmp_path).name == "step_1000000"
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_saving_a_step_again_replaces_it(tmp_path):
    save_checkpoint(tmp_path, 1, *trained(1), meta(which="first"))
    path = save_checkpoint(tmp_path, 1, *trained(1), meta(which="second"))
    assert json.loads((path / "meta.json").read_text(encoding="utf-8"))["which"] == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]


@pytest.mark.parametrize("stop_at", ["_write_tensors", "atomic_write", "replace"])
def test_a_save_that_dies_leaves_the_old_checkpoint(tmp_path, monkeypatch, stop_at):
    model, optimizers = trained(1)
    old = save_checkpoint(tmp_path, 1, model, optimizers, meta())

    def die(*args, **kwargs):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if stop_at == "replace" else checkpoint, stop_at, die)
        with pytest.raises(OSError):
            save_checkpoint(tmp_path, 2, model, optimizers, meta())
    assert latest_checkpoint(tmp_path) == old
    load_checkpoint(old, *trained(1))
    save_checkpoint(tmp_path, 2, model, optimizers, meta())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000001", "step_000002"]


def test_another_tokenizer_is_refused_by_both_hashes(tmp_path):
    path = save_checkpoint(tmp_path, 1, *trained(1), meta())
    with pytest.raises(ValueError, match="a" * 16 + ".*" + "b" * 16):
        load_checkpoint(path, GPT(CONFIG), None, "b" * 16)
    load_checkpoint(path, GPT(CONFIG), None, None)


def test_load_model_builds_what_was_saved(tmp_path):
    model, optimizers = trained(2)
    path = save_checkpoint(tmp_path, 2, model, optimizers, meta())
    for where in (tmp_path, path):
        loaded, saved = load_model(where)
        assert loaded.config == CONFIG and saved["step"] == 2
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), loaded.parameters()))
    with pytest.raises(ValueError, match="no complete checkpoint"):
        load_model(tmp_path / "empty")


def test_states_without_an_optimizer_are_refused(tmp_path):
    model, optimizers = trained(1)
    path = save_checkpoint(tmp_path, 1, model, optimizers, meta())
    with pytest.raises(ValueError, match="no optimizer wants"):
        load_checkpoint(path, model, optimizers[:1])


FOREIGN = ["step_001600_backup", "step_best", "step_000003 copy", "step_3", "step_", "step_00000x"]


@pytest.mark.parametrize("name", FOREIGN)
def test_folders_with_other_names_are_no_checkpoints_and_stay(tmp_path, name):
    first = save_checkpoint(tmp_path, 1, *trained(1), meta())
    shutil.copytree(first, tmp_path / name)
    for step in (2, 3, 4):
        last = save_checkpoint(tmp_path, step, *trained(1), meta())
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_000003", "step_000004"]
    assert latest_checkpoint(tmp_path) == last and load_model(tmp_path)[1]["step"] == 4
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(checkpoint.FILES)


def test_notes_inside_an_old_checkpoint_survive_it(tmp_path):
    notes = save_checkpoint(tmp_path, 1, *trained(1), meta()) / "notes.md"
    notes.write_text("this one was good", encoding="utf-8")
    (tmp_path / ".step_by_step.txt").write_text("mine", encoding="utf-8")
    (tmp_path / ".step_mine").mkdir()
    for step in (2, 3, 4):
        save_checkpoint(tmp_path, step, *trained(1), meta())
    assert [path.name for path in notes.parent.iterdir()] == ["notes.md"]
    assert len(list_checkpoints(tmp_path)) == 2  # the rest of step 1 is no checkpoint any more
    assert (tmp_path / ".step_by_step.txt").exists() and (tmp_path / ".step_mine").exists()


def test_a_link_to_a_checkpoint_elsewhere_is_not_followed_to_delete(tmp_path):
    elsewhere = save_checkpoint(tmp_path / "elsewhere", 1, *trained(1), meta())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "step_000001").symlink_to(elsewhere)
    for step in (2, 3, 4):
        save_checkpoint(tmp_path / "run", step, *trained(1), meta())
    assert sorted(path.name for path in elsewhere.iterdir()) == sorted(checkpoint.FILES)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "meta.json"])
def test_a_disk_that_fills_during_a_save_loses_nothing(tmp_path, monkeypatch, file):
    good = save_checkpoint(tmp_path, 1, *trained(1), meta())

    def full_tensors(tensors, path):
        path.write_bytes(b"half")
        if path.name == file:
            raise SafetensorError("No space left on device (os error 28)")

    def full(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(checkpoint, "save_file", full_tensors)
    monkeypatch.setattr(checkpoint, "atomic_write", full)
    with pytest.raises(OSError, match=f"{file}.*No space left|No space left.*{file}"):
        save_checkpoint(tmp_path, 2, *trained(1), meta())
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == [good.name]  # and no half one fills it
    assert load_model(tmp_path)[1]["step"] == 1
    assert save_checkpoint(tmp_path, 2, *trained(1), meta()).exists()


def test_a_real_limit_on_the_size_of_files_is_one_error_with_a_name(tmp_path):
    program = f"""
import resource, signal, sys
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.training.checkpoint import save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save_checkpoint({str(tmp_path)!r}, 1, GPT(GPTConfig(vocab_size=64, n_layer=1)), [], {{}})
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8")
    assert "model.safetensors" in done.stdout and not list(tmp_path.iterdir()), done.stderr


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "page"])
def test_a_damaged_checkpoint_is_named_with_the_way_out(tmp_path, file, damage):
    path = save_checkpoint(tmp_path, 3, *trained(1), meta()) / file
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "page": b"<html>"}[damage])
    model, optimizers = trained(1)
    with pytest.raises(ValueError, match=f"step_000003/{file} is damaged .*move step_000003 away"):
        load_checkpoint(path.parent, model, optimizers)
