# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Decoding: where the time of a step goes
#
# A decode step multiplies each weight once, for each row. For one row that is two operations for every
# weight fetched from memory, so the step is as fast as memory, or, for a small model, as fast as Python can
# call torch. This chapter looks which of the two it is, takes out calls, shortens the weights, and lets a
# small model guess for a large one:
#
# ```python
# Engine(PackedGPT(model, torch.bfloat16), tokenizer)      # the same engine, in a hurry
# ```
#
# You need the engine of the last chapter, and from chapter `speed` the idea of a number format. On a laptop
# the chapter takes about 15 seconds.

# %%
import statistics
import time
from collections.abc import Callable
from functools import partial

import matplotlib.pyplot as plt
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat_lib.model.gpt import MODERN, GPT, GPTConfig
from nanochat_lib.tokenizer.tokenizer import Tokenizer

# %% [markdown]
# ## Two limits, worked out
#
# A machine that reads 10 GB a second from memory fetches the weights of a model with 100 million
# parameters of 4 bytes in 40 ms: 25 tokens a second for one row, whatever the processor can do. With 2 bytes
# a weight it is 50, with 1 byte 100. That is the first limit, **bytes**.
#
# The second is **calls**. Each torch function costs a few microseconds before it computes anything. A block
# of ours makes about forty calls that compute something; four blocks of them, at 5 microseconds each, take
# 0.8 ms, and no smaller model can be faster than some 1,200 tokens a second. Which limit holds for which
# model?


# %%
def shaken_gpt(n_layer: int, width: int, vocab_size: int) -> GPT:
    """Make a model in which everything matters: a fresh one adds nothing to its stream."""
    switches = dict.fromkeys(MODERN, True)
    sizes = {"n_layer": n_layer, "n_embd": width, "vocab_size": vocab_size, "sequence_len": 512}
    model = GPT(GPTConfig(n_head=width // 32, n_kv_head=width // 32, **sizes, **switches)).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    return model


laptop, larger = shaken_gpt(4, 96, 640), shaken_gpt(6, 384, 8_192)
for name, model in (("laptop", laptop), ("larger", larger)):
    print(f"{name}: {4 * model.num_scaling_params() / 1e6:.0f} MB of weights to fetch for a token")

# %%
from nanochat_lib.inference.kv_cache import KVCache


def decode_step(model, n_rows: int = 1) -> Callable[[], torch.Tensor]:
    """Make a function that decodes one token for each row, after 100 others."""
    cache = KVCache(model.config, n_rows, dtype=model.cos.dtype)
    token = torch.zeros(n_rows, 1, dtype=torch.long)

    @torch.inference_mode()
    def step() -> torch.Tensor:
        cache.lengths = [100] * n_rows
        return model.logits(model.hidden(token, cache)[:, -1])

    return step


class Counter(TorchDispatchMode):
    """Count the torch functions that compute something; a view of a tensor does not."""

    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func._schema.returns[0].alias_info
        self.calls += result is None or result.is_write
        return func(*args, **(kwargs or {}))


def calls_of(step: Callable) -> int:
    step()
    with Counter() as counter:
        step()
    return counter.calls


def milliseconds(step: Callable, tries: int = 30) -> float:
    """Time a step: the middle of many tries."""
    step()
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


# %%
for name, model in (("laptop", laptop), ("larger", larger)):
    step = decode_step(model)
    print(f"{name}: {calls_of(step)} calls, {milliseconds(step):.2f} ms for a token")

# %% [markdown]
# The laptop's model does next to no arithmetic: its 2 MB stay in the processor's own memory, and the step
# is calls. The larger one makes half as many calls again, and has 25 times as much to fetch.
#
# ## Fewer calls
#
# The plain model is written to be read and to be trained: three products for queries, keys and values; a
# norm of five calls; RoPE as two products and a roll. A copy for inference needs no gradients and may keep
# its weights in any order:
#
# - **One product** makes queries, keys and values; their weights are stacked once.
# - **Turning is one multiplication.** RoPE turns pairs of channels, and a pair is a complex number:
#   $(a + ib)\,(\cos\theta - i \sin\theta)$. Chapter `attention` pairs channel i with i + D/2; if rows of the
#   weights change places so that pairs are neighbours, torch reads them as complex numbers where they lie.
#   Queries and keys are reordered alike, so their products stay what they were.
# - **A norm is a dot product** of a vector with itself, and a root.
#
# We do the turn by hand: the pair (1, 0) at a right angle must become (0, -1), as `apply_rope` has it.

# %%
from nanochat_lib.model.attention import apply_rope

right_angle = torch.tensor([[0.0]]), torch.tensor([[1.0]])  # cos, sin
plain = apply_rope(torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), *right_angle).flatten()
turned = torch.complex(torch.tensor(1.0), torch.tensor(0.0)) * torch.complex(
    torch.tensor(0.0), -torch.tensor(1.0)
)
assert plain.tolist() == [0.0, -1.0] == torch.view_as_real(turned).tolist()

# %% [markdown]
# ## Fewer bytes
#
# bfloat16 halves the bytes and keeps 8 bits of each number; chapter `speed` trained with it. **int8** halves
# them again: each row of a weight is stored as whole multiples, from -127 to 127, of a step of its own. With
# the row (0.5, -1.27, 0.004) the step is 0.01, and what is stored is (50, -127, 0): the last number is lost.
# Such weights pay where fetching is all the work. With many rows of text at once the processor has enough to
# multiply, and unpacking bytes is in its way; there the weights are unpacked first.
#
# And the bytes have an order. The processor's library multiplies tiles of a weight at a time, and wants each tile in
# one piece. For one row it reads the weight as it lies; for several, `F.linear` rearranges the weight first, *in every
# call*, and that time is lost. `torch.compile` arranges the weights once, with two operators that one
# can call without it. Company then costs little:

# %%
weight = torch.randn(3072, 768).bfloat16()
rows = {n: torch.randn(n, 768).bfloat16() for n in (1, 8)}
if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    tiles = torch.ops.mkldnn._reorder_linear_weight(weight, 8)
    ways = {
        "as it lies": lambda x: torch.nn.functional.linear(x, weight),
        "in tiles": lambda x: torch.ops.mkldnn._linear_pointwise(x, tiles, None, "none", [], ""),
    }
    for name, way in ways.items():
        one, eight = (milliseconds(partial(way, x)) for x in rows.values())
        print(f"{name:11} one row {1000 * one:4.0f} us, eight rows {1000 * eight:4.0f} us")
    apart = (ways["in tiles"](rows[8]) - ways["as it lies"](rows[8])).abs().max().item()
    assert apart < 1.0, "the same products, added up in another order"

# %%
#| default_exp inference.packed
# A GPT for inference alone: few calls, short weights.

# %%
#| export
import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from nanochat_lib.inference.kv_cache import KVCache
from nanochat_lib.model.attention import fused_attention, rope_tables
from nanochat_lib.model.gpt import GPT

FEW_ROWS = 16  # beyond so many, int8 weights are unpacked first
EPSILON = torch.tensor(torch.finfo(torch.float32).eps)  # as rms_norm adds it


# %%
#| export
def tiles_pay(weight: Float[Tensor, "D C"]) -> bool:
    """Say whether the CPU's library multiplies a weight faster that was put into its order once.

    True for bfloat16 where the processor has instructions for it; in float32 a single row would wait longer.
    """
    if weight.dtype != torch.bfloat16 or weight.device.type != "cpu":
        return False
    library = torch.backends.mkldnn.is_available()
    return library and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Product:
    """Multiply by the transpose of one or more weights, stacked, in one number format."""

    def __init__(self, *weights: Float[Tensor, "_ C"], dtype: torch.dtype) -> None:
        """Copy the weights; torch.int8 stores each row as whole multiples of a step of its own."""
        weight = torch.cat([weight.detach().float() for weight in weights])
        self.steps = None
        self.dtype = dtype
        if dtype == torch.int8:
            self.dtype = torch.bfloat16
            steps = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            weight, self.steps = (weight / steps).round(), steps[:, 0].to(self.dtype)
        self.weight = weight.to(dtype).contiguous()
        self.tiled = self.steps is None and tiles_pay(self.weight)
        if self.tiled:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, FEW_ROWS)

    def __call__(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows D"]:
        """Return x times the transposed weight, in the format of the product."""
        x = x.to(self.dtype)
        if self.tiled:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")
        if self.steps is None:
            return F.linear(x, self.weight)
        flat = x.flatten(0, -2)
        if len(flat) <= FEW_ROWS and x.device.type == "cpu":  # its weights are read as bytes
            y = torch._weight_int8pack_mm(flat.contiguous(), self.weight, self.steps)
        else:
            y = F.linear(flat, self.weight.to(self.dtype)) * self.steps
        return y.view(*x.shape[:-1], -1)


# %%
# NBVAL_CHECK_OUTPUT
product = Product(torch.tensor([[0.5, -1.27, 0.004]]), dtype=torch.int8)
print(product.weight.tolist(), f"{product.steps.item():.4f}")


# %%
#| export
def pairs_together(weight: Float[Tensor, "D C"], head_dim: int) -> Float[Tensor, "D C"]:
    """Reorder the rows of each head so that the two channels that turn together are neighbours.

    Example: of a head of 4 channels the rows 0, 1, 2, 3 become 0, 2, 1, 3.
    """
    heads = weight.view(-1, 2, head_dim // 2, weight.shape[1])
    return heads.transpose(1, 2).reshape(weight.shape)


class PackedBlock:
    """Hold one block's weights, ready for `PackedGPT`."""

    def __init__(self, block: nn.Module, dtype: torch.dtype) -> None:
        """Join and copy the weights of a GPT's block."""
        attn, mlp = block.attn, block.mlp
        self.qkv = Product(
            pairs_together(attn.c_q.weight, attn.head_dim),
            pairs_together(attn.c_k.weight, attn.head_dim),
            attn.c_v.weight,
            dtype=dtype,
        )
        self.out = Product(attn.c_proj.weight, dtype=dtype)
        self.fc = Product(mlp.c_fc.weight, dtype=dtype)
        self.proj = Product(mlp.c_proj.weight, dtype=dtype)
        self.value_embed = copy.deepcopy(block.value_embed)


def unit(x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
    """Do what rms_norm does, in fewer passes."""
    r = torch.add(EPSILON, torch.linalg.vecdot(x, x), alpha=1 / x.shape[-1]).rsqrt_()
    return x * r.unsqueeze(-1)


# %% [markdown]
# And the model, once more. It is `GPT.hidden` of chapter `transformer`, line by line, with what was said
# above. Attention over the cache stays in float32 on a CPU: for one query torch's kernel for bfloat16 took
# five times as long (66 against 13 microseconds for 200 keys of 4 heads, AMD EPYC, 2026-11).


# %%
#| export
class PackedGPT:
    """Read tokens as a GPT does, for inference alone: few calls, one number format, no gradients.

    Holds copies of the weights: what the model learns later is not seen.
    """

    def __init__(self, model: GPT, dtype: torch.dtype = torch.float32) -> None:
        """Copy a model's weights.

        Args:
            model: is left as it is.
            dtype: of the products: float32, bfloat16, float16, or int8 (whose sums are bfloat16).
        """
        self.config, device = model.config, model.wte.weight.device
        self.wte, self.smear = copy.deepcopy(model.wte), copy.deepcopy(model.smear)
        self.blocks = [PackedBlock(block, dtype) for block in model.blocks]
        self.lm_head = Product(model.lm_head.weight[: self.config.vocab_size], dtype=dtype)
        self.x0 = (
            [0.0] * len(self.blocks) if model.x0_lambdas is None else model.x0_lambdas.tolist()
        )
        # Attention is quick in float32 on a CPU, in a short format on a GPU; a cache takes this one's.
        short = torch.float32 if device.type == "cpu" else self.lm_head.dtype
        c = self.config
        cos, sin = rope_tables(c.sequence_len, c.head_dim, c.rope_base, device)
        self.cos, self.turns = cos.to(short), torch.complex(cos, -sin)  # (T, D/2)

    @torch.inference_mode()
    def hidden(self, idx: Int[Tensor, "B T"], kv_cache: KVCache) -> Float[Tensor, "B T C"]:
        """Return what the head reads, as GPT.hidden does, and leave keys and values in the cache."""
        n_new, head_dim = idx.shape[1], self.config.head_dim
        n_q, n_kv = self.config.n_head, self.config.n_kv_head
        turns = self.turns[kv_cache.positions(n_new)].unsqueeze(2)  # (B, T, 1, D/2)
        mask = kv_cache.attention_mask(n_new)
        x = embeddings = unit(self.wte(idx))
        if self.smear is not None:
            x = self.smear(x, kv_cache.previous_embedding)
        for i, (block, x0) in enumerate(zip(self.blocks, self.x0)):
            if x0:
                x = torch.add(x, embeddings, alpha=x0)
            h = unit(x)
            qkv = block.qkv(h).float().unflatten(-1, (-1, head_dim))
            qk, v = qkv.split((n_q + n_kv, n_kv), dim=2)
            pairs = torch.view_as_complex(unit(qk).unflatten(-1, (-1, 2)))
            qk = torch.view_as_real(pairs * turns).flatten(-2).to(self.cos.dtype)
            q, k = qk.split((n_q, n_kv), dim=2)
            if block.value_embed is not None:
                v = v + block.value_embed(idx, h)
            k, v = kv_cache.update(i, k, v)
            y = fused_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
            x = x + block.out(y.transpose(1, 2).flatten(2))
            x = x + block.proj(block.fc(unit(x)).relu_().square_())
        kv_cache.advance(n_new, embeddings)
        return unit(x)

    @torch.inference_mode()
    def logits(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows V"]:
        """Score every token as GPT.logits does: float32, softly capped."""
        softcap = self.config.softcap
        return self.lm_head(x).float().div_(softcap).tanh_().mul_(softcap)


# %% [markdown]
# The judge is the plain model: in float32 the logits agree up to rounding; shorter formats differ more.

# %%
text = torch.randint(0, 640, (2, 60), generator=torch.Generator().manual_seed(1))
with torch.inference_mode():
    truth = laptop(text)
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        packed = PackedGPT(laptop, dtype)
        cache = KVCache(packed.config, 2, dtype=packed.cos.dtype)
        logits = torch.cat([packed.logits(packed.hidden(p, cache)) for p in text.split(20, 1)], 1)
        gap = (logits - truth).abs().max().item()
        same = (logits.argmax(-1) == truth.argmax(-1)).float().mean().item()
        print(
            f"{str(dtype)[6:]:8} largest difference {gap:.5f}, the same likeliest token {same:.0%}"
        )
        if dtype == torch.float32:
            assert gap < 1e-4, f"logits differ by {gap}: are pairs of channels neighbours?"

# %% [markdown]
# A model with random weights has flat odds and is easily swayed; a trained one is surer of itself. Now the
# step, in calls and in time:

# %%
table = {}
for name, model in (("laptop", laptop), ("larger", larger)):
    plain_step, packed_step = decode_step(model), decode_step(PackedGPT(model))
    table[name] = [milliseconds(plain_step)]
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        table[name].append(milliseconds(decode_step(PackedGPT(model, dtype))))
    print(f"{name}: {calls_of(plain_step)} calls become {calls_of(packed_step)}")
    assert calls_of(packed_step) < calls_of(plain_step)

# %%
# alt: milliseconds a token of two models: packing helps the small one, short weights the larger one
figure, axes = plt.subplots(1, 2, figsize=(6.5, 2.4))
for axis, (name, times) in zip(axes, table.items()):
    axis.barh(["plain", "packed", "bfloat16", "int8"][::-1], times[::-1], color="tab:blue")
    axis.set(title=name, xlabel="milliseconds a token")
figure.tight_layout()
plt.show()

# %% [markdown]
# *Notice that the larger model owes its speed to fewer bytes.* The small one gains by packing; what bfloat16
# saves it in bytes is lost in conversions. On processors without instructions for bfloat16 the third bar may be the
# longest.
#
# `make bench-inference` measures larger models, eight rows, long prompts, and eight requests that come three
# steps apart, beside nanochat's engine. Its record, in tokens a second, with the multiple of nanochat's rate:

# %%
import json

from nanochat_lib.course.manifest import library_root

record = json.loads((library_root() / "records/inference/speed.json").read_text(encoding="utf-8"))
print(f"{'':17}{'one row':>14}{'8 rows':>15}{'prompt':>16}   8 requests")
for name, sides in record["cases"].items():
    peer = sides["nanochat"]
    for side, found in sides.items():
        rates = [f"{found[k]:,.0f} ({found[k] / peer[k]:.1f})" for k in ("one", "many", "prefill")]
        line = f"{name:7}{side:10}{rates[0]:>14}{rates[1]:>15}{rates[2]:>16}"
        if "coming" in found:
            line += f"   together {found['coming'] / found['in_turn']:.1f} times as fast as in turn"
        print(line)

# %%
large = record["cases"]["d12"]
assert large["int8"]["one"] > 1.5 * large["nanochat"]["one"]
assert large["bfloat16"]["many"] > 1.5 * large["nanochat"]["many"]
assert large["bfloat16"]["prefill"] > 1.5 * large["nanochat"]["prefill"]

# %% [markdown]
# The larger the model, the more the bytes count: at d12 int8 is the fastest for one row, and bfloat16, whose
# weights lie in tiles, for eight and for a prompt. The small models wait for calls, and there a short format
# may even lose: such products have more to prepare. A prompt gains from yet another thing: only its last token
# needs the head, a quarter of all the products at d12.
#
# And company pays, but not eightfold for eight that come and go. With tiles the products hardly take longer, but
# each row reads a past of its own, a prompt that is being read holds the others up, and seldom all are there.
#
# ## Guessing ahead
#
# A large model reads ten tokens in hardly more time than one: the weights are fetched once. So let a small
# model, the **draft**, guess the next few tokens, and let the large one read them all in one pass. Its logits
# say at each place what it would have taken itself. As long as the guesses agree they are accepted; at the
# first that does not, the large model's own token is taken and the rest is forgotten. With greedy decoding
# the answer is the large model's, token for token (Leviathan et al. 2022, arXiv:2211.17192); an exercise shows
# the way for drawn tokens.
#
# A pass yields one token when the first guess is wrong, and n + 1 when all n are right. If a guess is right
# with probability a, on average $1 + a + a^2 + \ldots + a^n$: with a = 0.8 and n = 4 that is 3.36.

# %%
#| default_exp inference.speculative
# Speculative decoding: a small model guesses, a large one checks.

# %%
#| export
import torch

from nanochat_lib.inference.kv_cache import KVCache
from nanochat_lib.inference.packed import unit
from nanochat_lib.inference.row import Request, Row
from nanochat_lib.inference.scheduler import CachedModel
from nanochat_lib.tokenizer.tokenizer import Tokenizer


# %%
#| export
class Reader:
    """Read one text with one model, greedily, and take back what was read in vain."""

    def __init__(self, model: CachedModel, max_len: int) -> None:
        """Start with nothing read."""
        self.model, device = model, model.wte.weight.device
        self.cache = KVCache(model.config, 1, max_len, device, model.cos.dtype)
        self.known: list[int] = []

    @torch.inference_mode()
    def read(self, tokens: list[int]) -> list[int]:
        """Read on; return the likeliest token after each one."""
        idx = torch.tensor([tokens], device=self.cache.memory.device)
        self.known += tokens
        logits = self.model.logits(self.model.hidden(idx, self.cache)[0])
        if bool(logits.isnan().any()):
            raise ValueError("a logit is NaN: the weights are damaged; load others")
        return logits.argmax(-1).tolist()

    @torch.inference_mode()
    def agree(self, text: list[int]) -> list[int]:
        """Forget what was read beyond the text's beginning; return the tokens that are still to be read."""
        n = next((i for i, (a, b) in enumerate(zip(self.known, text)) if a != b), None)
        n = min(len(self.known), len(text)) if n is None else n
        if n < len(self.known):
            last = torch.tensor([self.known[n - 1]], device=self.cache.memory.device)
            self.cache.trim(0, n, unit(self.model.wte(last)))
            self.known = self.known[:n]
        return text[n:]


def speculate(
    model: CachedModel,
    draft: CachedModel,
    tokenizer: Tokenizer,
    request: Request,
    n_draft: int = 4,
) -> tuple[Row, int]:
    """Answer one request greedily, with guesses of a smaller model.

    Args:
        model: whose answer it is.
        draft: guesses; it has the same vocabulary.
        tokenizer: of both.
        request: its dials for drawing are not used.
        n_draft: guesses a pass.

    Returns:
        The finished row, with the tokens that the model alone would have given, and the model's passes.

    Raises:
        ValueError: the vocabularies differ, or the prompt leaves no room in either context.
    """
    if model.config.vocab_size != draft.config.vocab_size:
        sizes = model.config.vocab_size, draft.config.vocab_size
        raise ValueError(f"model and draft have vocabularies of {sizes}: they must be the same")
    limit = min(model.config.sequence_len, draft.config.sequence_len)
    prompt, room = request.prompt, limit - len(request.prompt)
    if room < 1 or not prompt:
        raise ValueError(f"a prompt of {len(prompt)} tokens in a context of {limit}: shorten it")
    row = Row(tokenizer, request, min(room, request.max_tokens or room))
    stops = frozenset({tokenizer.encode_special("<|assistant_end|>"), tokenizer.bos_id})
    large, small, passes = Reader(model, limit), Reader(draft, limit), 0
    while not row.finished:
        text = prompt + row.tokens
        guesses: list[int] = []
        while len(guesses) < min(n_draft, limit - len(text)):
            guesses.append(small.read(small.agree(text + guesses))[-1])
        unread = large.agree(text)
        choices = large.read(unread + guesses)[len(unread) - 1 :]
        passes += 1
        for choice, guess in zip(choices, [*guesses, None]):
            row.accept(choice, stops)
            if row.finished or row.last != guess:
                break
    return row, passes


# %% [markdown]
# Two models that agree now and then: the draft is the model with a little noise in its weights. The answer
# must be the one that the engine gives.

# %%
from nanochat_lib.inference.engine import Engine

tokenizer = Tokenizer.train(["a walk through the alphabet"], vocab_size=265)
model, prompt = shaken_gpt(2, 64, 265), list(b"walk through")
model.smear.scale.data.fill_(0.5)
[(alone, _)] = Engine(model, tokenizer).generate_batch([prompt], max_tokens=60)
for noise in (0.0, 0.002, 0.02, 1.0):
    draft = copy.deepcopy(model)
    for weight in draft.parameters():
        weight.data += noise * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    row, passes = speculate(model, draft, tokenizer, Request(prompt, max_tokens=60))
    assert row.tokens == alone, f"noise {noise}: {row.tokens} is not {alone}"
    print(f"noise {noise:5}: {len(alone)} tokens in {passes} passes")

# %% [markdown]
# A draft that is always right needs a fifth of the passes, a useless one as many as there are tokens. Whether
# that pays depends on what a guess costs. For the laptop's model it does not: both models' steps are calls,
# and the small one has nearly as many.
#
# ## What goes wrong: tokens that nobody takes back
#
# What the large model has read of a refused guess stands in its cache. If only the count of tokens is set
# back, all seems well, for the next token overwrites the old key. But a model with `smear` looks at its left
# neighbour's embedding, and that is still the refused token's.


# %%
def forgetful(self: Reader, text: list[int]) -> list[int]:
    n = next((i for i, (a, b) in enumerate(zip(self.known, text)) if a != b), None)
    n = min(len(self.known), len(text)) if n is None else n
    self.cache.lengths[0], self.known = n, self.known[:n]  # and the embedding?
    return text[n:]


careful, Reader.agree = Reader.agree, forgetful
row, _ = speculate(model, draft, tokenizer, Request(prompt, max_tokens=60))
Reader.agree = careful
wrong_at = next((i for i, (a, b) in enumerate(zip(row.tokens, alone)) if a != b), None)
print("first wrong token:", wrong_at)
assert wrong_at is not None

# %% [markdown]
# No error, no nonsense: another fluent answer, which only the comparison with the model alone gives away.
#
# ## Recap
#
# A step is as slow as its bytes or as its calls. Stacked products, complex turns and cheap norms take out
# calls; bfloat16 and int8 take out bytes; a draft spreads the bytes over several tokens. Each was checked
# against the plain model, which stays the one that learns.
#
# In the library now: `PackedGPT` in `nanochat_lib.inference.packed`, `speculate` in
# `nanochat_lib.inference.speculative`. In the exercises the draft guesses for drawn tokens as well, you choose
# how many guesses pay, and find out how few bits a weight can do with. The next chapter prepares the conversations and tasks whose answers
# the engine will write.
