# Generated from chapters/18_lora.py by `course build`; edit that file.
"""Low-rank adapters: attach, train, save, load, merge."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor, nn

from nanochat_lib.common import atomic_write
from nanochat_lib.model.gpt import GPT
from nanochat_lib.tasks.base import Task
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.checkpoint import (
    check_tokenizer,
    latest_checkpoint,
    load_model,
    save_checkpoint,
)
from nanochat_lib.training.finetune import FinetuneConfig, finetune
from nanochat_lib.training.optim import AdamW

__all__ = [
    "LoRALinear",
    "LoRAConfig",
    "add_lora",
    "lora_layers",
    "merge_lora",
    "adapt",
    "finetune_lora",
    "save_adapter",
    "load_adapter",
]


class LoRALinear(nn.Module):
    """Add a trainable product of rank r to a frozen linear layer.

    Args:
        linear: the layer, without bias; its weight is frozen.
        rank: rows of A and columns of B, at least 1 and at most what the layer has.
        alpha: the product counts alpha / rank.

    Raises:
        ValueError: the rank does not suit the layer, or the layer has a bias.

    Source: Hu et al. 2021 (arXiv:2106.09685), section 4.1.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        n_out, n_in = linear.weight.shape
        if linear.bias is not None or not 1 <= rank <= min(n_out, n_in):
            raise ValueError(
                f"rank {rank} for a layer of {n_out} x {n_in}: 1 to {min(n_out, n_in)}"
            )
        self.linear, self.scale = linear, alpha / rank
        linear.weight.requires_grad_(False)
        like = {"bias": False, "device": linear.weight.device}
        self.lora_A = nn.Linear(n_in, rank, **like)  # drawn as torch draws every linear layer
        self.lora_B = nn.Linear(rank, n_out, **like)
        nn.init.zeros_(self.lora_B.weight)

    @property
    def weight(self) -> Float[Tensor, "D C"]:
        """The weight that the layer and the adapter have together, for code that asks for it."""
        return self.linear.weight + self.scale * (self.lora_B.weight @ self.lora_A.weight)

    def forward(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows D"]:
        """Apply the layer, and the adapter beside it."""
        return self.linear(x) + self.scale * self.lora_B(self.lora_A(x))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return the layer with the product added to its weight, in float32."""
        product = self.lora_B.weight.double() @ self.lora_A.weight.double()
        self.linear.weight += (self.scale * product).to(self.linear.weight.dtype)
        return self.linear


@dataclass(frozen=True)
class LoRAConfig:
    """Say which layers get an adapter, how large, and how fast it learns.

    `targets` are last parts of module names.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("c_q", "c_k", "c_v", "c_proj", "c_fc", "lm_head")
    lr: float = 0.02


def add_lora(model: nn.Module, config: LoRAConfig, seed: int = 0) -> nn.Module:
    """Freeze a model and give its target layers adapters, in place.

    Args:
        model: any module; its linear layers are found by name.
        config: rank, scale and targets.
        seed: of the draw of every A.

    Returns:
        The model, which still computes what it did.

    Raises:
        ValueError: no layer has such a name, or it has adapters already.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    chosen = [name for name in layers if name.rpartition(".")[2] in config.targets]
    if lora_layers(model) or not chosen:
        state = "has adapters already" if lora_layers(model) else "has none of these layers"
        raise ValueError(f"the model {state}: {', '.join(config.targets)}")
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in chosen:
            parent, _, last = name.rpartition(".")
            layer = LoRALinear(layers[name], config.rank, config.alpha)
            setattr(model.get_submodule(parent), last, layer)
    return model


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """List the adapted layers of a model by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


def merge_lora(model: nn.Module) -> nn.Module:
    """Add every adapter to its weight and remove it, in place; the model is a plain one again."""
    for name, layer in lora_layers(model).items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.merged())
    return model.requires_grad_(True)


def adapt(model: GPT, config: FinetuneConfig, lora: LoRAConfig) -> list[torch.optim.Optimizer]:
    """Attach adapters and return their optimizer."""
    add_lora(model, lora)
    learning = [p for p in model.parameters() if p.requires_grad]
    group = dict(params=learning, lr=lora.lr * config.lr_scale, kind="lora")
    optimizer = AdamW([group], betas=(0.9, 0.99))
    optimizer.param_groups[0]["initial_lr"] = group["lr"]
    return [optimizer]


def finetune_lora(
    config: FinetuneConfig,
    lora: LoRAConfig,
    task: Task,
    tokenizer: Tokenizer,
    base_folder: Path,
    folder: Path,
    text_shards: list[Path] | None = None,
    progress: Callable[[dict], None] | str | None = "bar",
) -> dict:
    """Train adapters on conversations; resume if `folder` holds a checkpoint of them.

    Args:
        config: as for `finetune`; its optimizers' rates are not used, `lr_scale` is.
        lora: the adapters.
        task: the conversations.
        tokenizer: the one that the base model was trained with.
        base_folder: the run whose newest checkpoint we start from.
        folder: gets `training` (to resume from), the adapter, and the merged model as a checkpoint.
        text_shards: pretraining text, needed if config.text_fraction > 0.
        progress: as for `train`.

    Returns:
        What `finetune` returns.

    Raises:
        ValueError: the folder holds adapters of other settings, or as for `finetune`.
    """
    training, path = folder / "training", folder / "adapter.json"
    about = {"lora": asdict(lora), "tokenizer_hash": tokenizer.hash}
    about = json.loads(json.dumps(about))  # tuples become lists, as in the file
    then = json.loads(path.read_text(encoding="utf-8")) if path.exists() else about
    if then != about:
        raise ValueError(f"{folder} was trained with {then}, now {about}: use another folder")
    atomic_write(path, json.dumps(about))
    summary = finetune(
        config,
        task,
        tokenizer,
        base_folder,
        training,
        text_shards,
        progress=progress,
        adapt=partial(adapt, lora=lora),
    )
    model, meta = load_model(base_folder, tokenizer)
    adapted = add_lora(model, lora)
    adapted.load_state_dict(load_file(latest_checkpoint(training) / "model.safetensors"))
    save_adapter(folder / "adapter.safetensors", adapted)
    meta = {key: meta[key] for key in ("config", "tokenizer_hash")} | {"stage": "lora"}
    save_checkpoint(folder, config.steps, merge_lora(adapted), [], meta)
    return summary


def save_adapter(path: Path, model: nn.Module) -> None:
    """Write the matrices of all adapters of a model, and nothing else of it."""
    state = {k: v for k, v in model.state_dict().items() if ".lora_" in k}
    atomic_write(path, save({k: v.detach().cpu().contiguous() for k, v in state.items()}))


def load_adapter(folder: Path, model: nn.Module, tokenizer: Tokenizer | None = None) -> nn.Module:
    """Attach the adapter of a folder to its base model, in place.

    Raises:
        ValueError: there is none, it belongs to another tokenizer, or to a model of other sizes.
    """
    path = Path(folder) / "adapter.json"
    if not path.with_name("adapter.safetensors").is_file():
        raise ValueError(f"no adapter.safetensors in {folder}: finetune_lora writes it in the end")
    about = json.loads(path.read_text(encoding="utf-8"))
    check_tokenizer(about, tokenizer.hash if tokenizer else None, path)
    lora = LoRAConfig(**about["lora"] | {"targets": tuple(about["lora"]["targets"])})
    state = load_file(path.with_name("adapter.safetensors"))
    add_lora(model, lora)
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items() if ".lora_" in k}
    if wanted != {k: tuple(v.shape) for k, v in state.items()}:
        merge_lora(model)  # untrained adapters: the weights are what they were
        raise ValueError(f"{path.parent} holds the adapter of a model of other sizes")
    model.load_state_dict(state, strict=False)
    return model
