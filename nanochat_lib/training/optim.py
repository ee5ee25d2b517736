# Generated from chapters/08_optimizer.py by `course build`; edit that file.
"""The optimizers: Muon for matrices, AdamW for the rest."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = [
    "AdamW",
    "NEWTON_SCHULZ",
    "newton_schulz",
    "Muon",
    "OptimConfig",
    "parameter_kinds",
    "build_optimizers",
]


class AdamW(torch.optim.Optimizer):
    """Update each number by its mean gradient over the root of its mean squared gradient.

    Args:
        params: parameters of any shape, or groups of them.
        lr: learning rate.
        betas: weight of the past in the two running means.
        eps: added to the root, in units of the gradient.
        weight_decay: decoupled: shrinks the parameter itself, not through the gradient.

    Raises:
        ValueError: lr, a beta or eps lies outside its range.

    Source: Loshchilov & Hutter 2019 (arXiv:1711.05101), algorithm 2.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        fine = lr >= 0 and eps >= 0 and weight_decay >= 0  # not so for NaN, nor is NaN < 0
        if not (fine and all(0 <= beta < 1 for beta in betas)):
            raise ValueError(
                f"{lr=}, {betas=}, {eps=}, {weight_decay=}: need 0 or more, and betas below 1"
            )
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:
        """Update every parameter that has a gradient; closures are not supported."""
        if closure is not None:
            raise ValueError("AdamW takes no closure: call backward() first, then step()")
        for group in self.param_groups:
            by_step = defaultdict(list)  # one bucket, unless some parameter missed a gradient
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(
                        step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p)
                    )
                state["step"] += 1
                by_step[state["step"]].append(p)
            for step, params in by_step.items():
                self._update(params, step, group)

    def _update(self, params: list[Tensor], step: int, group: dict) -> None:
        """Update parameters that have all seen `step` gradients."""
        beta1, beta2 = group["betas"]
        grads = [p.grad for p in params]
        means = [self.state[p]["exp_avg"] for p in params]
        squares = [self.state[p]["exp_avg_sq"] for p in params]
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, (1 - beta2**step) ** 0.5)
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(params, means, roots, -group["lr"] / (1 - beta1**step))


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b, c of p(s) = a s + b s^3 + c s^5


def newton_schulz(
    g: Float[Tensor, "... M N"], steps: int = 5, dtype: torch.dtype | None = None
) -> Float[Tensor, "... M N"]:
    """Push every singular value of each matrix towards 1 and keep its singular vectors.

    Example: diag(3, 1) -> about diag(0.7, 1.1), with five steps.

    Args:
        g: one matrix or a batch of them, any float dtype, shape (..., M, N).
        steps: iterations of the polynomial; 5 reach singular values between about 0.7 and 1.2.
        dtype: what to compute in; None means bfloat16 on a GPU, float32 elsewhere.

    Returns:
        g's shape, in the dtype computed in. A matrix of zeros stays zero.

    Raises:
        ValueError: g has fewer than two dimensions.

    Source: Jordan et al. 2024, "Muon", https://kellerjordan.github.io/posts/muon/
    """
    if g.ndim < 2:
        raise ValueError(
            f"newton_schulz needs matrices, got shape {tuple(g.shape)}: use AdamW there"
        )
    if dtype is None:
        dtype = torch.bfloat16 if g.device.type == "cuda" else torch.float32
    a, b, c = NEWTON_SCHULZ
    tall = g.size(-2) > g.size(-1)
    batch, (rows, columns) = g.shape[:-2], g.shape[-2:]
    x = g.to(dtype).reshape(-1, rows, columns)
    x = x.mT if tall else x  # the Gram matrix below gets the short side
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # no singular value above 1
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).reshape(*batch, rows, columns)


class Muon(torch.optim.Optimizer):
    """Update matrices by momentum whose singular values Newton-Schulz has evened out.

    Matrices of one shape are stacked and go through one batched Newton-Schulz.

    Args:
        params: parameters with two dimensions, or groups of them.
        lr: learning rate; the update of an (M, N) matrix is also scaled by max(1, M/N)**0.5.
        momentum: weight of the past in the running mean of gradients.
        nesterov: look one step ahead along the momentum.
        weight_decay: decoupled, as in AdamW.
        ns_steps: iterations of Newton-Schulz.

    Raises:
        ValueError: a parameter is not a matrix, or lr or momentum lies outside its range.

    Source: Jordan et al. 2024, "Muon", https://kellerjordan.github.io/posts/muon/
    """

    orthogonalize = staticmethod(newton_schulz)  # called with (matrices, ns_steps)

    def __init__(
        self,
        params: Iterable,
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
    ) -> None:
        if not (lr >= 0 and weight_decay >= 0 and 0 <= momentum < 1):
            raise ValueError(
                f"{lr=}, {momentum=}, {weight_decay=}: need 0 or more, momentum below 1"
            )
        defaults = dict(lr=lr, momentum=momentum, nesterov=nesterov)
        super().__init__(params, defaults | dict(weight_decay=weight_decay, ns_steps=ns_steps))
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.ndim != 2:
                raise ValueError(
                    f"Muon got a parameter of shape {tuple(p.shape)}: use AdamW for it"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:
        """Update every parameter that has a gradient; closures are not supported."""
        if closure is not None:
            raise ValueError("Muon takes no closure: call backward() first, then step()")
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape, p.dtype, p.device].append(p)
            for same_shape in by_shape.values():
                self._update(same_shape, group)

    def _update(self, params: list[Tensor], group: dict) -> None:
        """Update parameters that all have one shape."""
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        grads = [p.grad for p in params]
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        if group["nesterov"]:
            buffers = torch._foreach_lerp(grads, buffers, group["momentum"])
        updates = self.orthogonalize(torch.stack(buffers), group["ns_steps"])
        updates = updates.to(params[0].dtype)
        rows, columns = params[0].shape
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        scale = max(1, rows / columns) ** 0.5
        torch._foreach_add_(params, list(updates.unbind()), alpha=-group["lr"] * scale)


@dataclass(frozen=True)
class OptimConfig:
    """Learning rates by kind of parameter, at width 768, and what AdamW and Muon share."""

    matrix_lr: float = 0.02  # Muon: every matrix inside the blocks
    embedding_lr: float = 0.2  # AdamW: token embeddings
    head_lr: float = 0.004  # AdamW: the output head
    scalar_lr: float = 0.02  # AdamW: gates and other parameters without two long sides
    weight_decay: float = 0.0  # of the matrices
    ns_steps: int = 5  # Muon's iterations
    betas: tuple[float, float] = (0.8, 0.95)
    eps: float = 1e-10


def parameter_kinds(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Sort a model's trainable parameters into matrix, embedding, head and scalar.

    Args:
        model: has its token embeddings in nn.Embedding modules and its output layer in `lm_head`.

    Returns:
        The four lists; every trainable parameter is in exactly one.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    kinds = {"matrix": [], "embedding": [], "head": [], "scalar": []}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if id(p) in embeddings:
            kinds["embedding"].append(p)
        elif "lm_head" in name.split("."):
            kinds["head"].append(p)
        elif p.ndim == 2 and min(p.shape) > 1:
            kinds["matrix"].append(p)
        else:
            kinds["scalar"].append(p)
    return kinds


def build_optimizers(
    model: nn.Module, config: OptimConfig = OptimConfig()
) -> list[torch.optim.Optimizer]:
    """Give each kind of parameter its optimizer and rate.

    Embedding and head rates are scaled by (n_embd / 768)**-0.5. Each group keeps its rate as
    `initial_lr` too, so that a schedule can multiply it.

    Args:
        model: a GPT; its width is read from `model.config.n_embd`.
        config: the rates.

    Returns:
        One AdamW and, where there are matrices, one Muon.

    Raises:
        ValueError: the model has nothing to train, or a weight is not contiguous in memory.
    """
    kinds = parameter_kinds(model)
    for name, p in model.named_parameters():
        if not p.is_contiguous():  # some back ends silently drop in-place updates of such a tensor
            raise ValueError(f"{name} is not contiguous: build it with .contiguous()")
    width_scale = (model.config.n_embd / 768) ** -0.5
    rates = {
        "embedding": config.embedding_lr * width_scale,
        "head": config.head_lr * width_scale,
        "scalar": config.scalar_lr,
    }
    groups = [dict(params=kinds[k], lr=lr, kind=k) for k, lr in rates.items() if kinds[k]]
    optimizers = []
    if groups:
        optimizers.append(AdamW(groups, betas=config.betas, eps=config.eps))
    if kinds["matrix"]:
        group = dict(params=kinds["matrix"], kind="matrix")
        shared = dict(weight_decay=config.weight_decay, ns_steps=config.ns_steps)
        muon = Muon([group], lr=config.matrix_lr, **shared)
        optimizers.append(muon)
    if not optimizers:
        raise ValueError("the model has no trainable parameter: is requires_grad off everywhere?")
    for group in (g for optimizer in optimizers for g in optimizer.param_groups):
        group["initial_lr"] = group["lr"]
    return optimizers
