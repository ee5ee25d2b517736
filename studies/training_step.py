"""Take the laptop's training step apart, change one thing at a time, and record what each change bought.

`make study-speed` writes records/training/step.json, which the chapter on speed reads. Variants take turns in
one process, so that a slow minute hits all of them; a rate is the median over the turns. What needs a
process of its own (memory given back, the compiler with its cold start, a processor without bfloat16) gets one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from nanochat_lib.common import atomic_write, cpu_features
from nanochat_lib.machine import machine_summary
from nanochat_lib.model.attention import CausalSelfAttention, causal_mask, fused_attention
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.training.fused import keep_freed_memory, loss_function, scores_attention
from nanochat_lib.training.optim import OptimConfig, build_optimizers, newton_schulz
from nanochat_lib.training.precision import prepare
from nanochat_lib.training.profile import best_seconds, profile_step

RECORD = Path(__file__).parents[1] / "records/training/step.json"
LAPTOP = GPTConfig.from_depth(4, 1024, 256, "modern", aspect_ratio=32, head_dim=64)
B, T, V = 4, 256, 1024
OLDER = {  # what makes torch and its libraries use nothing newer than AVX2
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}


class Variant:
    """Hold one way to make a training step, with a model of its own.

    Args:
        dtype: what to compute in.
        sliced: the loss in slices of rows.
        few: norms, rotations and squared ReLU in few passes; queries, keys and values by one product.
        quick: Newton-Schulz among small matrices.
        attend: the attention kernel.
        compiled: "", "model" or "blocks".
    """

    def __init__(
        self,
        dtype: torch.dtype = torch.float32,
        sliced: bool = False,
        few: bool = False,
        quick: bool = False,
        attend: Callable = fused_attention,
        compiled: str = "",
    ) -> None:
        self.model = GPT(LAPTOP)
        self.optimizers = build_optimizers(
            self.model, OptimConfig(embedding_lr=0.03, head_lr=0.002)
        )
        if dtype != torch.float32 or few or quick:
            prepare(self.model, self.optimizers, dtype)
            for block in () if few else self.model.blocks:
                del block.norm, block.mlp.activate
                block.attn.__class__ = CausalSelfAttention
        for block in self.model.blocks:
            block.attn.attend = attend
        if not quick:
            self.optimizers[1].orthogonalize = newton_schulz
        if compiled == "blocks":
            for block in self.model.blocks:
                block.compile(dynamic=False)
        self.loss = self.model
        if sliced:
            self.loss = loss_function(self.model, compiled=compiled == "model")
        generator = torch.Generator().manual_seed(0)
        self.batch = torch.randint(V, (2, B, T), generator=generator)

    def step(self) -> None:
        """Make one update."""
        self.loss(*self.batch).backward()
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad(set_to_none=True)


def take_turns(variants: dict[str, Variant], rounds: int, steps: int = 12) -> dict[str, float]:
    """Measure the milliseconds a step takes: the median over rounds of each round's median."""
    found = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            variant.step()
            seconds = []
            for _ in range(steps):
                start = time.perf_counter()
                variant.step()
                seconds.append(time.perf_counter() - start)
            found[name].append(statistics.median(seconds))
    return {name: round(1e3 * statistics.median(times), 1) for name, times in found.items()}


def window_attention(q, k, v, mask=None):  # noqa: ANN001, ANN201
    """Read the nearest 64 tokens, by a mask: the kernel computes the rest all the same."""
    return fused_attention(q, k, v, causal_mask(q.size(2), 64) if mask is None else mask)


QUICK = {"sliced": True, "few": True, "quick": True}


def ladder() -> dict[str, Variant]:
    """Build the variants that add one change each; the last two only where bfloat16 is multiplied."""
    keep_freed_memory()
    found = {
        "memory kept": Variant(),
        "loss in slices": Variant(sliced=True),
        "few passes": Variant(sliced=True, few=True),
        "quick Newton-Schulz": Variant(**QUICK),
    }
    if cpu_features() & {"amx_bf16", "avx512_bf16"}:
        short = {"dtype": torch.bfloat16, **QUICK}
        found["bfloat16"] = Variant(**short)
        found["scores in memory"] = Variant(**short, attend=scores_attention)
    return found


def dead_ends() -> dict[str, Variant]:
    """Build the variants that were tried and left out; compare with "quick Newton-Schulz"."""
    return {
        "without them": Variant(**QUICK),
        "scores in memory, float32": Variant(**QUICK, attend=scores_attention),
        "a window of 64 by a mask": Variant(**QUICK, attend=window_attention),
    }


@contextmanager
def quicker_products():  # noqa: ANN201
    """Let torch use bfloat16 inside float32 products where it can."""
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


def roofline() -> dict[str, list[float]]:
    """Measure [operations a byte, GFLOP/s] of the kinds of operation that a step is made of."""
    x, w, wide = torch.randn(B * T, 128), torch.randn(128, 512), torch.randn(B * T, 512)
    table, attn = torch.randn(B * T, V), CausalSelfAttention(LAPTOP, 0)
    q = torch.randn(B, 2, T, 64)
    product = 2 * B * T * 128 * 512
    looking = 4 * B * 2 * T * T * 64 / 2
    found = {
        "product": (product, 4 * (x.numel() + w.numel() + wide.numel()), lambda: x @ w),
        "attention": (looking, 4 * 4 * q.numel(), lambda: attn.attend(q, q, q)),
        "squared ReLU": (2 * wide.numel(), 4 * 4 * wide.numel(), lambda: wide.relu().square()),
        "add": (x.numel(), 3 * 4 * x.numel(), lambda: x + x),
        "softmax": (5 * table.numel(), 2 * 4 * table.numel(), lambda: table.softmax(1)),
    }
    return {
        name: [round(flops / size, 3), round(flops / best_seconds(work, 30) / 1e9, 2)]
        for name, (flops, size, work) in found.items()
    }


def peaks() -> dict:
    """Measure what this machine does at best: products by format, and bytes copied."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(1024, 1024).to(dtype)
        found[str(dtype)[6:]] = round(2 * 1024**3 / best_seconds(lambda a=a: a @ a) / 1e9, 1)
    large = torch.randn(2**25)
    other = torch.empty_like(large)
    copied = 2 * large.nbytes / best_seconds(lambda: other.copy_(large), 6)
    return {"peak_gflops": found, "gigabytes_per_second": round(copied / 1e9, 1)}


def in_a_process(what: str, settings: dict[str, str]) -> dict:
    """Run `what` of ONE in a fresh process with an empty compiler cache; return what it prints as JSON."""
    with TemporaryDirectory() as cache:
        command = [sys.executable, __file__, "--one", what]
        settings = os.environ | settings | {"TORCHINDUCTOR_CACHE_DIR": cache}
        done = subprocess.run(
            command, stdout=subprocess.PIPE, encoding="utf-8", env=settings, check=True
        )
    return json.loads(done.stdout.splitlines()[-1])


def compiled(what: str) -> dict:
    """Measure the first step, with all the compiling it triggers, and the later ones beside eager ones."""
    variant = Variant(compiled=what, **QUICK)
    start = time.perf_counter()
    variant.step()
    cold = time.perf_counter() - start
    turns = take_turns({"ms": variant, "eager_ms": Variant(**QUICK)}, 9, 4)
    return {"cold_seconds": round(cold, 1), **turns}


def older() -> dict:
    """Measure the ladder with AVX2 alone, and what bfloat16 costs where it is emulated."""
    found = climb(dict(list(ladder().items())[:4]))
    emulated = {"bfloat16, emulated": Variant(torch.bfloat16, **QUICK)}
    return found | take_turns(emulated, 1, 4) | peaks()


def plain() -> dict:
    """Measure the plain step in a process that gives its memory back."""
    return take_turns({"plain": Variant()}, 1)


def climb(variants: dict[str, Variant]) -> dict[str, float]:
    """Measure variants in nine short parts, each after its own plain process; return the medians."""
    parts = []
    for _ in range(9):
        parts.append(in_a_process("plain", {}) | take_turns(variants, 4, 3))
    return {name: statistics.median(part[name] for part in parts) for name in parts[0]}


ONE = {
    "plain": plain,
    "model": lambda: compiled("model"),
    "blocks": lambda: compiled("blocks"),
    "older": older,
}


def main() -> None:
    """Measure everything and write the record."""
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--one", choices=list(ONE))
    options = command.parse_args()
    if options.one:
        print(json.dumps(ONE[options.one]()))
        return
    record = {"machine": {k: v for k, v in machine_summary().items() if k != "disk_free_gb"}}
    best = [peaks()]  # several times: a slow minute must not lower the roof
    record["roofline"] = roofline()
    record["profile"] = profile_step(Variant().step, B * T * V)
    record["ladder"] = climb(ladder())
    best.append(peaks())
    record["dead_ends"] = take_turns(dead_ends(), 9, 4)
    with quicker_products():
        record["dead_ends"]["products of medium precision"] = take_turns(
            {"it": Variant(**QUICK)}, 9, 4
        )["it"]
    for what in ("model", "blocks"):
        record[f"compiled_{what}"] = in_a_process(what, {})
    record["older"] = in_a_process("older", OLDER)
    best.append(peaks())
    record["peak_gflops"] = {
        dtype: max(found["peak_gflops"][dtype] for found in best)
        for dtype in best[0]["peak_gflops"]
    }
    record["gigabytes_per_second"] = max(found["gigabytes_per_second"] for found in best)
    atomic_write(RECORD, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
