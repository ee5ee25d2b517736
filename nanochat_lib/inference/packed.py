# Generated from chapters/14_decoding.py by `course build`; edit that file.
"""A GPT for inference alone: few calls, short weights."""

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from nanochat_lib.inference.kv_cache import KVCache
from nanochat_lib.model.attention import fused_attention, rope_tables
from nanochat_lib.model.gpt import GPT

__all__ = [
    "FEW_ROWS",
    "EPSILON",
    "tiles_pay",
    "Product",
    "pairs_together",
    "PackedBlock",
    "unit",
    "PackedGPT",
]

FEW_ROWS = 16  # beyond so many, int8 weights are unpacked first
EPSILON = torch.tensor(torch.finfo(torch.float32).eps)  # as rms_norm adds it


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
