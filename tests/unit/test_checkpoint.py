"""Checkpoints: complete or absent, exact, readable, and only with their own tokenizer."""

import json
import os
from dataclasses import asdict

import pytest
import torch
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

CONFIG = GPTConfig(64, 2, 2, sequence_len=8, vocab_size=64, n_layer=1, smear=True)


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
