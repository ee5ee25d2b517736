"""Adapters: nothing at first, exact when merged, saved and loaded, and trained through the loop."""

import copy
import json

import pytest
import torch
from torch import nn

from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.tasks.base import Task
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training import lora as module
from nanochat_lib.training.checkpoint import load_model, save_checkpoint
from nanochat_lib.training.finetune import FinetuneConfig
from nanochat_lib.training.lora import (
    LoRAConfig,
    LoRALinear,
    add_lora,
    finetune_lora,
    load_adapter,
    lora_layers,
    merge_lora,
)
from nanochat_lib.training.precision import prepare

TEXTS = ["What comes after a? It is b. ", "one two three "] * 9
TOKENIZER = Tokenizer.train(TEXTS, vocab_size=300)

SIZES = GPTConfig(
    n_layer=2, n_head=2, n_kv_head=1, n_embd=32, vocab_size=TOKENIZER.vocab_size, sequence_len=64
)
IDS = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(1))


class Alphabet(Task):
    """What comes after a letter."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        a, b = "abcdefghi"[index : index + 2]
        user = {"role": "user", "content": f"What comes after {a}?"}
        return {"messages": [user, {"role": "assistant", "content": f"It is {b}."}]}


def small_model() -> GPT:
    model = GPT(SIZES)
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():  # the initial head is zero: every output would be the same
        for p in model.parameters():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    return model


def shake(model: nn.Module) -> None:
    """Give every B values, as training would."""
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B.weight, std=0.1)


def test_an_untrained_adapter_changes_nothing_and_only_adapters_learn():
    model = small_model()
    with torch.no_grad():
        before = model(IDS)
        add_lora(model, LoRAConfig(rank=4))
        assert torch.equal(model(IDS), before)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning and all(".lora_" in name for name in learning)
    assert len(lora_layers(model)) == 6 * SIZES.n_layer + 1


def test_the_layer_is_the_formula():
    layer = LoRALinear(nn.Linear(5, 7, bias=False), rank=2, alpha=6.0)
    nn.init.normal_(layer.lora_B.weight)
    x = torch.randn(3, 5)
    a, b, w = layer.lora_A.weight, layer.lora_B.weight, layer.linear.weight
    assert torch.allclose(layer(x), x @ w.T + 3.0 * x @ a.T @ b.T, atol=1e-5)
    assert torch.allclose(layer(x), x @ layer.weight.T, atol=1e-5)


def test_merging_keeps_the_outputs_and_leaves_a_plain_model():
    model = add_lora(small_model(), LoRAConfig(rank=4))
    shake(model)
    with torch.no_grad():
        apart = model(IDS)
        merged = merge_lora(model)
        assert torch.allclose(merged(IDS), apart, atol=1e-4)
    assert not lora_layers(merged) and all(p.requires_grad for p in merged.parameters())
    assert merged.state_dict().keys() == small_model().state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_through_the_fast_forms_are_those_of_the_plain_ones(dtype):
    plain = add_lora(small_model(), LoRAConfig(rank=4))
    shake(plain)
    fast = copy.deepcopy(plain)
    prepare(fast, [], dtype)
    targets = IDS.roll(-1, dims=1)
    for model in (plain, fast):
        model(IDS, targets).backward()
    for (name, p), q in zip(plain.named_parameters(), fast.parameters()):
        if p.requires_grad:
            error = (p.grad - q.grad).norm() / p.grad.norm().clamp(min=1e-8)
            assert error < (1e-4 if dtype == torch.float32 else 0.1), (name, error)


def test_bad_ranks_targets_and_second_adapters_are_refused():
    for rank in (0, 6):
        with pytest.raises(ValueError, match="1 to 5"):
            LoRALinear(nn.Linear(5, 7, bias=False), rank, 1.0)
    with pytest.raises(ValueError, match="rank 2"):
        LoRALinear(nn.Linear(5, 7), 2, 1.0)
    with pytest.raises(ValueError, match="none of these layers: c_qq"):
        add_lora(small_model(), LoRAConfig(targets=("c_qq",)))
    with pytest.raises(ValueError, match="adapters already"):
        add_lora(add_lora(small_model(), LoRAConfig()), LoRAConfig())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    meta = {"config": SIZES.__dict__, "tokenizer_hash": TOKENIZER.hash}
    save_checkpoint(folder / "base", 1, small_model(), [], meta)
    config = FinetuneConfig(
        steps=6, device_batch_size=2, sequence_len=48, total_batch_tokens=96, compile="off"
    )
    arguments = (
        config,
        LoRAConfig(rank=2),
        Alphabet(),
        TOKENIZER,
        folder / "base",
        folder / "lora",
    )
    return folder, arguments, finetune_lora(*arguments, progress=None)


def test_training_writes_an_adapter_and_a_merged_model_that_agree(trained):
    folder, _, summary = trained
    assert summary["steps"] == 6
    base, _ = load_model(folder / "base", TOKENIZER)
    merged, meta = load_model(folder / "lora", TOKENIZER)
    assert meta["stage"] == "lora"
    with torch.no_grad():
        before = base(IDS)
        apart = load_adapter(folder / "lora", base, TOKENIZER)
        assert torch.allclose(apart(IDS), merged(IDS), atol=1e-4)
        assert not torch.allclose(apart(IDS), before, atol=1e-4), "training changed nothing"


def test_going_on_after_the_end_writes_the_same_again(trained):
    folder, arguments, _ = trained
    path = folder / "lora" / "adapter.safetensors"
    before = path.read_bytes()
    finetune_lora(*arguments, progress=None)
    assert path.read_bytes() == before


def test_a_folder_of_other_adapters_is_not_trained_on(trained):
    config, _, *rest = trained[1]
    with pytest.raises(ValueError, match="'rank': 2.* now .*'rank': 4"):
        finetune_lora(config, LoRAConfig(rank=4), *rest, progress=None)


def test_an_adapter_refuses_other_models_and_tokenizers(trained, tmp_path):
    folder, *_ = trained
    other = GPT(GPTConfig(n_layer=1, n_head=2, n_kv_head=2, n_embd=32, vocab_size=256))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match="other sizes"):
        load_adapter(folder / "lora", other)
    assert all(torch.equal(before[k], v) for k, v in other.state_dict().items())
    with pytest.raises(ValueError, match="no adapter.safetensors"):
        load_adapter(tmp_path, other)
    about = json.loads((folder / "lora/adapter.json").read_text(encoding="utf-8"))
    about["tokenizer_hash"] = "another"
    (tmp_path / "adapter.json").write_text(json.dumps(about), encoding="utf-8")
    (tmp_path / "adapter.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="another"):
        load_adapter(tmp_path, small_model(), TOKENIZER)


def test_module_says_what_it_exports():
    assert {"LoRALinear", "add_lora", "merge_lora", "finetune_lora"} <= set(module.__all__)
