"""Time whole training steps of our GPT, in one run beside nanochat's where NANOCHAT_CHECKOUT names a checkout.

`make bench-training` prints a table; with --record it is also kept in records/training/speed.json. Each measurement is a process of its
own: a model with random tokens, forward, backward, optimizer. Cold start is the first step with all that it triggers
(compiling, allocating); the rate is the median of the steps after it; memory is the process's peak. Both sides take
turns, and the middle of their runs is shown.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

RECORD = Path(__file__).parents[1] / "records/training/speed.json"
# name: (layers, width, heads, T, B, vocabulary, measured steps)
CASES = {
    "laptop": (4, 128, 2, 256, 4, 1_024, 30),
    "d4/256": (4, 256, 2, 512, 8, 8_192, 6),
    "d6/384": (6, 384, 3, 512, 32, 32_768, 2),
}
REPEATS = {"laptop": 3, "d4/256": 3, "d6/384": 1}  # in turns, so that a slow minute hits both sides


def ours(case: tuple) -> tuple:
    """Build our GPT and its optimizers; return (call, step, FLOPs a token)."""
    from nanochat_lib.model.gpt import GPT, GPTConfig
    from nanochat_lib.training.optim import build_optimizers

    layers, width, heads, length, _, vocab_size, _ = case
    config = GPTConfig(
        width, heads, heads, True, length, vocab_size, layers, smear=True
    )  # the modern recipe
    model = GPT(config)
    optimizers = build_optimizers(model)

    def step() -> None:
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)

    return model, step, model.estimate_flops()


def theirs(case: tuple, checkout: Path) -> tuple:
    """Build nanochat's GPT and its optimizer, with full windows as ours has; the same three things."""
    sys.path.insert(0, str(checkout))
    from nanochat.gpt import GPT, GPTConfig

    layers, width, heads, length, _, vocab_size, _ = case
    config = GPTConfig(length, vocab_size, layers, heads, heads, width, "L")
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cpu")
    model.init_weights()
    optimizer = model.setup_optimizer()

    def step() -> None:
        optimizer.step()
        model.zero_grad(set_to_none=True)

    return model, step, model.estimate_flops()


def gemm_peak() -> float:
    """Measure the float32 rate of one large matrix product, in operations a second; the best of ten."""
    a, seconds = torch.randn(1_024, 1_024), []
    for _ in range(10):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return 2 * 1_024**3 / min(seconds)


def measure(whose: str, name: str, mode: str) -> dict:
    """Measure one line of the table in this process.

    Args:
        whose: "ours" or "nanochat".
        name: of the case.
        mode: "eager", "compiled" (float32 both) or "bf16" (autocast, eager). It says what happens to the
            model; nanochat's optimizer compiles its own updates in every mode.
    """
    case = CASES[name]
    peak = gemm_peak()
    built = ours(case) if whose == "ours" else theirs(case, Path(os.environ["NANOCHAT_CHECKOUT"]))
    model, step, flops = built
    length, rows, vocab_size, steps = case[3:]
    call = torch.compile(model, dynamic=False) if mode == "compiled" else model
    amp = torch.autocast("cpu", torch.bfloat16) if mode == "bf16" else nullcontext()
    idx, targets = torch.randint(vocab_size, (2, rows, length), generator=torch.Generator())
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        with amp:
            loss = call(idx, targets)
        loss.backward()
        step()
        seconds.append(time.perf_counter() - start)
    rate = rows * length / statistics.median(seconds[1:])
    return {
        "cold_seconds": round(seconds[0], 2),
        "tokens_per_second": round(rate),
        "gflops": round(rate * flops / 1e9, 1),
        "share_of_gemm_peak": round(rate * flops / peak, 3),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_000),
    }


def in_a_process(*arguments: str) -> dict | None:
    """Run this file for one line of the table; None, with a reason printed, if it fails."""
    command = [sys.executable, __file__, "--one", *arguments]
    with TemporaryDirectory() as cache:  # a compiler's cache of its own: each cold start is cold
        settings = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache}
        done = subprocess.run(command, capture_output=True, encoding="utf-8", env=settings)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        print(f"{' '.join(arguments)}: failed: {lines[-1] if lines else done.returncode}")
        return None
    return json.loads(done.stdout.splitlines()[-1])


def has_bf16() -> bool:
    """True if this processor multiplies bfloat16 itself; where it is emulated it is far slower."""
    path = Path("/proc/cpuinfo")
    flags = path.read_text(encoding="utf-8") if path.exists() else ""
    return "amx_bf16" in flags or "avx512_bf16" in flags


def main() -> None:
    """Measure the chosen cases and print them with ratios."""
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    command.add_argument("--record", action="store_true", help="keep the table in records/")
    command.add_argument("--one", nargs=3, metavar=("WHOSE", "CASE", "MODE"))
    options = command.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    sides = ["ours"] + ["nanochat"] * bool(os.environ.get("NANOCHAT_CHECKOUT"))
    if len(sides) == 1:
        print("NANOCHAT_CHECKOUT names no checkout of karpathy/nanochat: measured without it")
    modes = ["eager", "compiled"] + ["bf16"] * has_bf16()
    from nanochat_lib.common import atomic_write
    from nanochat_lib.machine import machine_summary

    record = {"machine": {k: v for k, v in machine_summary().items() if k != "disk_free_gb"}}
    print(
        f"{'':28}{'tokens/s':>10}{'GFLOP/s':>9}{'of peak':>9}{'cold':>8}{'memory':>10}{'ratio':>7}"
    )
    for name in options.cases:
        for mode in modes:
            runs = {whose: [] for whose in sides}
            for _ in range(REPEATS[name]):
                for whose in sides:
                    found = in_a_process(whose, name, mode)
                    runs[whose] += [found] if found else []
            for whose in [side for side in sides if runs[side]]:
                middle = sorted(runs[whose], key=lambda run: run["tokens_per_second"])
                found = middle[len(middle) // 2]
                found["all_tokens_per_second"] = [run["tokens_per_second"] for run in runs[whose]]
                record.setdefault(name, {}).setdefault(mode, {})[whose] = found
                ratio = ""
                if whose == "nanochat" and runs["ours"]:
                    mine = record[name][mode]["ours"]["tokens_per_second"]
                    ratio = f"{mine / found['tokens_per_second']:.2f}"
                print(
                    f"{name:8} {mode:9} {whose:9}{found['tokens_per_second']:>10,}"
                    f"{found['gflops']:>9}{found['share_of_gemm_peak']:>9.0%}"
                    f"{found['cold_seconds']:>7}s{found['peak_mb']:>7,} MB{ratio:>7}",
                    flush=True,
                )
    if not options.record:
        return
    kept = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    same = kept.get("machine") == record["machine"]  # cases measured elsewhere are not mixed in
    atomic_write(RECORD, json.dumps((kept if same else {}) | record, indent=1) + "\n")


if __name__ == "__main__":
    main()
