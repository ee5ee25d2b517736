# Generated from chapters/09_speed.py by `course build`; edit that file.
"""One number format for a whole run: bfloat16 or float16 beside float32 master weights, and float8."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nanochat_lib.model.attention import CausalSelfAttention, fused_attention, rope_tables
from nanochat_lib.model.gpt import GPT
from nanochat_lib.training.fused import (
    JointAttention,
    QuickNorm,
    QuickSquaredReLU,
    keep_freed_memory,
    quick_newton_schulz,
    scores_attention,
)
from nanochat_lib.training.optim import Muon

__all__ = [
    "CastLinear",
    "to_float8",
    "Float8Product",
    "Float8Linear",
    "flash_attention_3",
    "best_attention",
    "prepare",
]


class CastLinear(nn.Linear):
    """Multiply in a short format; the weight stays in float32, and so does its gradient."""

    compute_dtype = torch.bfloat16

    def forward(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows D"]:
        """Return x times the transposed weight, in compute_dtype."""
        return F.linear(x.to(self.compute_dtype), self.weight.to(self.compute_dtype))


def to_float8(
    x: Float[Tensor, "R C"], dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[Tensor, Float[Tensor, ""]]:
    """Round a tensor to float8 with one scale.

    Example: [1, -4] -> ([112, -448], 1/112), because 448 is the largest number.

    Args:
        x: any float dtype, shape (R, C).
        dtype: torch.float8_e4m3fn or torch.float8_e5m2.

    Returns:
        The rounded numbers, and the float32 scale that multiplies them back.

    Source: Micikevicius et al. 2022 (arXiv:2209.05433), section 3.
    """
    scale = x.abs().max().float().clamp(min=1e-12) / torch.finfo(dtype).max
    return (x.float() / scale).to(dtype), scale


class Float8Product(torch.autograd.Function):
    """Multiply by a transposed weight with float8 operands, forward and in both products backward.

    torch's kernel wants the first operand stored by rows, the second by columns, and sizes that are
    multiples of 16.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Float[Tensor, "N C"], weight: Tensor
    ) -> Float[Tensor, "N D"]:
        """Return x @ weight.T in x's dtype."""
        (x8, x_scale), (w8, w_scale) = to_float8(x), to_float8(weight)
        ctx.save_for_backward(x8, x_scale, w8, w_scale)
        ctx.dtype = x.dtype
        return torch._scaled_mm(x8, w8.T, x_scale, w_scale, out_dtype=x.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of x, in its dtype, and of the weight, in float32."""
        x8, x_scale, w8, w_scale = ctx.saved_tensors
        g8, g_scale = to_float8(grad, torch.float8_e5m2)
        w_by_columns, x_by_columns = w8.T.contiguous().T, x8.T.contiguous().T
        grad_x = torch._scaled_mm(g8, w_by_columns, g_scale, w_scale, out_dtype=ctx.dtype)
        grad_weight = torch._scaled_mm(
            g8.T.contiguous(), x_by_columns, g_scale, x_scale, out_dtype=ctx.dtype
        )
        return grad_x, grad_weight.float()


class Float8Linear(nn.Linear):
    """Multiply in float8 with tensor-wise scales; the weight stays in float32. Has never run on a GPU."""

    def forward(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows D"]:
        """Return x times the transposed weight, in bfloat16."""
        flat = Float8Product.apply(x.flatten(0, -2).bfloat16(), self.weight)
        return flat.view(*x.shape[:-1], -1)


def flash_attention_3() -> Callable[..., Tensor] | None:
    """Load FlashAttention 3 where the `kernels` package and a Hopper GPU are; never run so far."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        return None
    try:
        from kernels import get_kernel

        kernel = get_kernel("kernels-community/flash-attn3")
    except (ImportError, OSError):  # no such package, or no network
        return None

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            return fused_attention(q, k, v, mask)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # it wants (B, T, H, D)
        y = kernel.flash_attn_func(q, k, v, causal=True)
        return (y[0] if isinstance(y, tuple) else y).transpose(1, 2)

    return attend


def best_attention(device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    """Choose the kernel of every attention layer."""
    if device.type == "cuda":
        return (dtype != torch.float32 and flash_attention_3()) or fused_attention
    return scores_attention if dtype == torch.bfloat16 else fused_attention


def prepare(model: nn.Module, optimizers: list[torch.optim.Optimizer], dtype: torch.dtype) -> None:
    """Let a model's blocks compute in a format and, on a CPU, in few passes; weights stay float32.

    The process keeps freed memory from now on.

    Args:
        model: a GPT; any other module is left alone.
        optimizers: of the model.
        dtype: float32, bfloat16, float16, or float8_e4m3fn: products in float8, the rest in bfloat16.
    """
    if not isinstance(model, GPT):
        return
    float8 = dtype == torch.float8_e4m3fn
    dtype = torch.bfloat16 if float8 else dtype
    c, device = model.config, model.wte.weight.device
    keep_freed_memory()
    tables = rope_tables(c.sequence_len, c.head_dim, c.rope_base, device)
    model.cos, model.sin = (table.to(dtype) for table in tables)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        fits = name.startswith("blocks.") and not any(n % 16 for n in module.weight.shape)
        module.__class__ = Float8Linear if float8 and fits else CastLinear
        # A GPU's float32 products are so slow that the head's are short, too; its logits are not.
        short = device.type == "cuda" or not name.startswith("lm_head")
        module.compute_dtype = dtype if short else torch.float32
    for block in model.blocks:
        block.attn.attend = best_attention(device, dtype)
        if device.type == "cpu":  # a GPU has kernels for these
            block.norm = partial(QuickNorm.apply, dtype)
            plain = all(isinstance(part, CastLinear) for part in block.attn.children())
            joint = plain and not float8
            block.attn.__class__ = JointAttention if joint else CausalSelfAttention
            block.mlp.activate = QuickSquaredReLU.apply
    for optimizer in optimizers:
        if isinstance(optimizer, Muon):
            optimizer.orthogonalize = quick_newton_schulz
