# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # LoRA: fine-tune a model without changing it
#
# Fine-tuning writes a new copy of every weight, and its optimizer holds another. For ten tasks that is ten models. Yet what a
# small data set changes may be simple. LoRA bets that the *difference* between the weights before and after is nearly of low rank
# (an exercise looks). So leave the weight $W$ alone and learn the difference as a product of two thin matrices:
#
# $$ y = W x + \frac{\alpha}{r} B A x $$
#
# $W$ has shape (out, in) and stays frozen, $A$ is (r, in), $B$ is (out, r), and the rank $r$ is small. This is LoRA, low-rank
# adaptation (Hu et al. 2021, arXiv:2106.09685). An adapter is a file of a few hundredths of the model's size, it can be swapped
# while the model stays, and if one likes it merges into the weights, after which it costs nothing.
#
# ```python
# add_lora(model, LoRAConfig(rank=8))      # the model computes the same; now only A and B learn
# ```
#
# You need the fine-tuning loop. On a laptop the chapter takes 20 seconds.

# %%
#| default_exp training.lora
# Low-rank adapters: attach, train, save, load, merge.

# %%
#| export
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

# %%
import tempfile

import matplotlib.pyplot as plt

from nanochat_lib.model.gpt import GPTConfig

# %% [markdown]
# ## One layer
#
# $B$ starts as zeros, so that nothing has changed before the first step, whatever $A$ is. Were both zero, neither would ever
# get a gradient: the gradient of $B$ is proportional to $A$, and that of $A$ to $B$. The factor $\alpha / r$ is there
# so that the learning rate need not be searched again for every rank (section 4.1 of the paper).


# %%
#| export
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


# %%
torch.manual_seed(0)
plain = nn.Linear(6, 4, bias=False)
adapted = LoRALinear(plain, rank=2, alpha=4.0)
x = torch.randn(5, 6)
assert torch.equal(adapted(x), plain(x)), "an untrained adapter must change nothing"
nn.init.normal_(adapted.lora_B.weight)
before = adapted(x)
assert not torch.allclose(before, plain(x)) and torch.allclose(
    adapted.merged()(x), before, atol=1e-5
)

# %% [markdown]
# ## A whole model
#
# Which layers? Any linear layer whose name ends in one of the `targets`; by default all six of a block and the head. Everything
# else, the embeddings among it, is frozen.


# %%
#| export
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


# %%
# NBVAL_CHECK_OUTPUT
config = GPTConfig(n_layer=2, n_head=2, n_kv_head=2, n_embd=64, vocab_size=128, sequence_len=32)
model = GPT(config)
model.init_weights(torch.Generator().manual_seed(0))
tokens = torch.randint(0, 128, (2, 16), generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    before = model(tokens)
whole = sum(p.numel() for p in model.parameters())
add_lora(model, LoRAConfig(rank=4))
learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
print(f"{len(lora_layers(model))} layers adapted; {learning:,} of {whole:,} numbers learn")
with torch.no_grad():
    assert torch.equal(model(tokens), before)

# %% [markdown]
# ## Train it
#
# The loop, the loader and the checkpoints are those of full fine-tuning. `finetune` lets us change the model after it was loaded:
# we attach adapters and hand back one AdamW for them, as the paper does.


# %%
#| export
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


# %% [markdown]
# ## Keep it apart, or merge it
#
# The adapter alone is two small files: the matrices, and what they belong to. Loading checks the tokenizer and the shapes, because
# an adapter on the wrong base gives no error of its own, only nonsense.


# %%
#| export
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


# %% [markdown]
# ## Full against low rank, on a toy
#
# As in chapter `finetuning`: pretraining states a fact about every number, fine-tuning asks about some, the test about others.
# Same data, same steps: all weights on one side, adapters of several ranks on the other. First the base.


# %%
class LastDigits(Task):
    """Ask for the last digit of a number; every seventh number is for the test."""

    def __init__(self, split: str = "train"):
        super().__init__(split)
        numbers = [n for n in range(100, 1000) if (n % 7 == 3) == (split == "test")]
        self.numbers = local_generator("digits", split).sample(numbers, len(numbers))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict:
        n = self.numbers[self.check_index(index)]
        user = {"role": "user", "content": f"How does {n} end?"}
        return {"messages": [user, {"role": "assistant", "content": f"It ends in {n % 10}."}]}

    def evaluate(self, conversation: dict, response: str) -> bool:
        return response == conversation["messages"][-1]["content"]


# %%
from nanochat_lib.common import local_generator
from nanochat_lib.data.documents import write_shards
from nanochat_lib.evaluation.chat import evaluate_task
from nanochat_lib.inference.engine import Engine
from nanochat_lib.training.loader import PackingLoader
from nanochat_lib.training.loop import LoopConfig, train
from nanochat_lib.training.optim import OptimConfig, build_optimizers

work = Path(tempfile.mkdtemp())
numbers = local_generator("numbers").sample(range(100, 1000), 900)
documents = [f"{n} ends in {n % 10}." for n in numbers]
examples = [m["content"] for i in range(50) for m in LastDigits()[i]["messages"]]
tokenizer = Tokenizer.train(documents[:200] + examples, vocab_size=300)
shards = write_shards(documents, work / "text", documents_per_shard=900)
sizes = GPTConfig(
    sequence_len=64,
    vocab_size=tokenizer.vocab_size,
    n_layer=2,
    n_head=2,
    n_kv_head=2,
    n_embd=64,
    smear=True,
)
base = GPT(sizes)
base.init_weights(torch.Generator().manual_seed(0))
loop = LoopConfig(
    steps=300,
    device_batch_size=16,
    sequence_len=32,
    total_batch_tokens=512,
    dtype="float32",
    compile="off",
)
meta = {"config": asdict(sizes), "tokenizer_hash": tokenizer.hash}
rates = OptimConfig(embedding_lr=0.03, head_lr=0.002)
loader = PackingLoader(shards, tokenizer, 16, 32)
run = train(base, build_optimizers(base, rates), loader, loop, work / "base", meta, progress=None)
print(f"base: {run['seconds']:.1f} s, loss {run['first_loss']:.2f} to {run['final_loss']:.2f}")

# %%
config = FinetuneConfig(
    steps=120,
    device_batch_size=8,
    sequence_len=64,
    total_batch_tokens=512,
    dtype="float32",
    compile="off",
)
losses = {}
for rank in (0, 1, 4, 16):
    name = f"rank {rank}" if rank else "all weights"
    folder = work / name
    arguments = (LastDigits(), tokenizer, work / "base", folder)
    if rank:
        run = finetune_lora(config, LoRAConfig(rank=rank), *arguments, progress=None)
    else:
        run = finetune(config, *arguments, progress=None)
    source = folder / "training" if rank else folder
    losses[name] = json.loads((source / "losses.json").read_text(encoding="utf-8"))["losses"]
    model, _ = load_model(folder, tokenizer)
    score, _ = evaluate_task(Engine(model, tokenizer), LastDigits("test"), max_tokens=12, limit=100)
    kept = "adapter.safetensors" if rank else f"step_{config.steps:06d}/model.safetensors"
    size = (folder / kept).stat().st_size
    seconds, right = run["seconds"], f"{score.accuracy:.0%} [{score.low:.0%}, {score.high:.0%}]"
    print(f"{name:12}{size / 1e3:6.0f} kB {seconds:5.1f} s   {right}")

# %%
# alt: training loss of full and low-rank fine-tuning; all reach nearly zero within 40 of 120 steps, rank 1 last
fig, ax = plt.subplots(figsize=(6.5, 3))
for (name, values), color in zip(losses.items(), ("black", "tab:red", "tab:orange", "tab:blue")):
    smooth = [
        sum(values[max(0, i - 5) : i + 5]) / len(values[max(0, i - 5) : i + 5])
        for i in range(len(values))
    ]
    ax.plot(smooth, color=color, label=name)
ax.set(xlabel="step", ylabel="loss (nats per token)")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# *Training loss of the same fine-tuning with all weights and with adapters of three ranks.*
#
# ### What goes wrong: a frozen head
#
# Adapters on the blocks alone, the usual choice, learn far more slowly here:

# %%
blocks_only = LoRAConfig(rank=16, targets=("c_q", "c_k", "c_v", "c_proj", "c_fc"))
arguments = (LastDigits(), tokenizer, work / "base", work / "blocks only")
run = finetune_lora(config, blocks_only, *arguments, progress=None)
with_head = losses["rank 16"][-6:]
print(f"loss {run['final_loss']:.2f} without the head, {sum(with_head) / 6:.2f} with it")
assert run["final_loss"] > 3 * sum(with_head) / 6

# %% [markdown]
# Pretraining never saw `<|assistant_end|>`. Its row of the head was only ever pushed down, and with the head frozen it is left to
# the blocks to lift it. Whoever adapts a base model to tokens that are new to it must let the head learn.
#
# The adapter that was saved does what the merged model does, attached to the base it belongs to and to no other:

# %%
model, _ = load_model(work / "base", tokenizer)
apart = load_adapter(work / "rank 4", model, tokenizer)
merged, _ = load_model(work / "rank 4", tokenizer)
with torch.no_grad():
    tokens = torch.randint(0, 256, (2, 20))
    assert torch.allclose(apart(tokens), merged(tokens), atol=1e-4)
try:
    load_adapter(
        work / "rank 4", GPT(config=GPTConfig(n_layer=1, n_embd=64, n_head=2, n_kv_head=2))
    )
except ValueError as error:
    print(str(error).replace(str(work), "WORK"))

# %% [markdown]
# ### The same on the laptop's model
#
# The question above is a narrow one, and a thin difference answers it. `make study-capabilities` takes the laptop's model after
# midtraining and gives it the first 600 steps of fine-tuning on all chats: with all its weights, and with adapters of two ranks, two
# seeds each.

# %%
from nanochat_lib.course.manifest import library_root

record = json.loads((library_root() / "records/chat/lora.json").read_text(encoding="utf-8"))
for row in record["variants"].values():
    facts, contact = (100 * sum(row[key]) / len(row[key]) for key in ("facts", "first_contact"))
    peak = max(row["peak_bytes"]) / 1e6
    print(
        f"{row['about']:20}{row['trained'][0]:8,} learn  facts {facts:.1f}%  first contact {contact:.1f}%  "
        f"{min(row['seconds']):.0f} s  {peak:.0f} MB"
    )

# %%
means = {
    k: sum(r["first_contact"]) / len(r["first_contact"]) for k, r in record["variants"].items()
}
assert means["full"] > means["rank_16"] + 0.1

# %% [markdown]
# What the model could do already, the facts, survives either way. What is new and broad, talk of every kind, a thin difference
# learns more slowly: after the same steps a fifth of the messages that full fine-tuning handles are still missing, and a rank four times
# as high makes up for little of it. (All three at the rates of the laptop profile; adapters may like others.) Nor is anything saved at
# this size, in seconds or in memory: all weights with their optimizer are a hundredth of those 965 MB.
# Adapters are for models whose weights and optimizer fill the machine, and for differences that are narrow.
#
# ## Cost
#
# The forward and backward pass run through all weights as before, and two thin products more. What is saved is the gradient of
# the frozen weights (a third of the work of a layer) and their optimizer's memory. On a model as small as this the seconds above
# show no gain.

# %%
# NBVAL_CHECK_OUTPUT
full = sum(p.numel() for p in base.parameters())
for rank in (1, 8, 64):
    adapted = add_lora(GPT(sizes), LoRAConfig(rank=rank))
    learning = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    print(f"rank {rank:2}: {learning:7,} numbers learn, {learning / full:.0%} of {full:,}")

# %% [markdown]
# ## Recap
#
# A low-rank adapter learns the difference to a frozen model, starts as nothing, and ends as a small file or merged into the
# weights. The library now has `training.lora`. The exercises work out which product of rank r is nearest to a given difference,
# make one adapter of two, and measure how much of a change a low rank can hold.
