"""Pretraining end to end on a few documents."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from nanochat_lib.data.documents import write_shards
from nanochat_lib.evaluation.bpb import evaluate_bpb
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training import pretrain as module
from nanochat_lib.training.checkpoint import load_model
from nanochat_lib.training.pretrain import PretrainConfig, pretrain, validation_batches

SMALL = PretrainConfig(
    depth=1,
    recipe="modern",
    sequence_len=32,
    device_batch_size=4,
    total_batch_tokens=256,
    tokens=256 * 12,
    eval_every=6,
    eval_tokens=500,
    save_seconds=0.0,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    names = ["Ada", "Bo", "Cy", "Di"]
    texts = [f"{a} likes {b}. {b} lives near {c}." for a in names for b in names for c in names]
    train = write_shards(texts, folder / "train", documents_per_shard=30, row_group_size=7)
    val = write_shards(texts[::9], folder / "val")
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)})
    return train, val, tokenizer


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8"])
def test_pretraining_learns_and_resumes_to_the_bit(corpus, tmp_path, dtype):
    small = replace(SMALL, dtype=dtype)
    summary = pretrain(small, *corpus, tmp_path / "quiet", progress=None)
    assert summary["steps"] == 12 and summary["tokens"] == 256 * 12
    assert summary["params"] == GPT(SMALL.model_config(265)).num_params()
    assert summary["final_loss"] < summary["first_loss"] - 0.5
    assert json.loads(json.dumps(summary)) == summary

    def crash(info):
        if info["step"] in (1, 5, 8):
            raise RuntimeError

    for _ in range(3):
        with pytest.raises(RuntimeError):
            pretrain(small, *corpus, tmp_path / "rough", crash)
    again = pretrain(small, *corpus, tmp_path / "rough", None)
    assert again["evals"] == summary["evals"] and len(again["evals"]) == 3
    quiet, meta = load_model(tmp_path / "quiet", corpus[2])
    rough, _ = load_model(tmp_path / "rough")
    assert all(torch.equal(p, q) for p, q in zip(quiet.parameters(), rough.parameters()))
    assert meta["stage"] == "base" and meta["tokenizer_hash"] == corpus[2].hash
    batches = validation_batches(SMALL, corpus[1], corpus[2], torch.device("cpu"))
    bits = evaluate_bpb(quiet, batches, torch.tensor(corpus[2].token_bytes()))
    near = 1e-6 if dtype == "float32" else 0.05  # a checkpoint is loaded to compute the plain way
    assert bits == pytest.approx(summary["evals"][-1][1], abs=near)


def test_another_seed_is_another_run(corpus, tmp_path):
    short = replace(SMALL, tokens=256, eval_every=0)
    first = pretrain(short, corpus[0], None, corpus[2], tmp_path / "0", None)
    other = pretrain(replace(short, seed=1), corpus[0], None, corpus[2], tmp_path / "1", None)
    assert first["evals"] == [] and first["first_loss"] != other["first_loss"]


@pytest.mark.parametrize("depth, steps", [(20, 21_400), (32, 71_680)])
def test_twenty_tokens_a_parameter(depth, steps):
    with torch.device("meta"):
        model = GPT(GPTConfig.from_depth(depth, vocab_size=65_536, sequence_len=2048))
    config = PretrainConfig(depth=depth, total_batch_tokens=524_288)
    assert config.steps(model.num_params()) == steps
    assert PretrainConfig(tokens=1).steps(10**6) == 1


def test_model_sizes_follow_the_configuration():
    assert PretrainConfig().model_config(1024).n_embd == 128
    assert PretrainConfig(head_dim=64).model_config(1024).n_head == 2
    assert not PretrainConfig().model_config(1024).smear
    assert PretrainConfig(smear=True).model_config(1024).smear
    assert not PretrainConfig(recipe="modern", smear=False).model_config(1024).smear


def test_validation_batches_are_limited_and_end(corpus):
    config = replace(SMALL, eval_tokens=200)
    batches = validation_batches(config, corpus[1], corpus[2], torch.device("cpu"))
    assert len(batches) == 200 // 128
    everything = validation_batches(
        replace(SMALL, eval_tokens=10**9), corpus[1], corpus[2], torch.device("cpu")
    )
    assert len(everything) > len(batches)


def test_the_command_line_reads_the_configuration(corpus, tmp_path, monkeypatch, capsys):
    corpus[2].save(tmp_path / "tokenizer")
    arguments = f"--data {corpus[0][0].parent} --tokenizer {tmp_path / 'tokenizer'} --folder {tmp_path / 'run'}"
    options = "--config.depth 1 --config.sequence-len 32 --config.total-batch-tokens 256 --config.tokens 512"
    monkeypatch.setattr(sys, "argv", ["pretrain", *arguments.split(), *options.split()])
    module.main()
    assert '"steps": 2' in capsys.readouterr().out
    assert load_model(tmp_path / "run")[1]["step"] == 2
