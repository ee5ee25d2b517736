"""Time whole training steps of our GPT, in one run beside our first one and beside nanochat's.

`make bench-training` prints a table; with RECORD=1 each line is also kept in records/training/speed.json. Each
measurement is a process of its own: a model with random tokens, forward, backward, optimizer. Cold start is
the first step with all that it triggers (compiling, allocating); the rate is the median of the steps after
it; memory is the process's peak. The sides take turns, and the middle of their runs is shown.

"first" is this library at commit 333a6e1, before the chapter on speed, taken from git; "nanochat" is the
checkout of karpathy/nanochat that NANOCHAT_CHECKOUT names. A side that is not there is skipped and said.
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

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "records/training/speed.json"
FIRST = "333a6e1"
# name: (layers, width, heads, T, B, vocabulary, measured steps)
CASES = {
    "laptop": (4, 128, 2, 256, 4, 1_024, 30),
    "d4/256": (4, 256, 2, 512, 8, 8_192, 6),
    "d6/384": (6, 384, 3, 512, 32, 32_768, 2),
}
REPEATS = {"laptop": 5, "d4/256": 3, "d6/384": 1}  # in turns, so that a slow minute hits all sides
STEPS = 2_700  # of the laptop profile: what a cold start must be paid back in


def ours(case: tuple, mode: str) -> tuple:
    """Build our GPT and its optimizers; return (call, step, FLOPs a token)."""
    from nanochat_lib.model.gpt import GPT, GPTConfig
    from nanochat_lib.training.fused import loss_function
    from nanochat_lib.training.optim import build_optimizers
    from nanochat_lib.training.precision import prepare

    layers, width, heads, length, _, vocab_size, _ = case
    modern = {"smear": True, "key_offset": True}
    model = GPT(GPTConfig(width, heads, heads, True, length, vocab_size, layers, smear=True))
    assert all(getattr(model.config, name) == value for name, value in modern.items())
    optimizers = build_optimizers(model)
    prepare(model, optimizers, torch.bfloat16 if mode == "bf16" else torch.float32)

    def step() -> None:
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)

    return loss_function(model, compiled=mode == "compiled"), step, model.estimate_flops()


def first(case: tuple, mode: str) -> tuple:
    """Build the GPT and optimizers of the first commit, which is on the path; the same three things."""
    from nanochat_lib.model.gpt import GPT, GPTConfig
    from nanochat_lib.training.optim import build_optimizers

    layers, width, heads, length, _, vocab_size, _ = case
    known = GPTConfig.__dataclass_fields__
    more = {name: True for name in ("smear", "key_offset") if name in known}
    sizes = dict(n_embd=width, n_head=heads, n_kv_head=heads, n_layer=layers)
    model = GPT(GPTConfig(**sizes, sequence_len=length, vocab_size=vocab_size, **more))
    optimizers = build_optimizers(model)

    def step() -> None:
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)

    call = torch.compile(model, dynamic=False) if mode == "compiled" else model
    return call, step, model.estimate_flops()


def nanochat(case: tuple, mode: str) -> tuple:
    """Build nanochat's GPT and its optimizer, with full windows as ours has; the same three things."""
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

    call = torch.compile(model, dynamic=False) if mode == "compiled" else model
    return call, step, model.estimate_flops()


SIDES = {"ours": ours, "first": first, "nanochat": nanochat}


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
        whose: "ours", "first" or "nanochat".
        name: of the case.
        mode: "eager", "compiled" (float32 both) or "bf16" (eager; ours by prepare, nanochat's by
            NANOCHAT_DTYPE, the first one's by autocast). nanochat's optimizer compiles its own updates
            in every mode.
    """
    case = CASES[name]
    peak = gemm_peak()
    call, step, flops = SIDES[whose](case, mode)
    length, rows, vocab_size, steps = case[3:]
    amp = nullcontext()
    if mode == "bf16" and whose == "first":
        amp = torch.autocast("cpu", torch.bfloat16)
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


def in_a_process(whose: str, name: str, mode: str, path: str) -> dict | None:
    """Run this file for one line of the table; None, with a reason printed, if it fails.

    Args:
        whose: the side.
        name: the case.
        mode: as in measure.
        path: what Python imports first: where the side's code is.
    """
    command = [sys.executable, "-P", __file__, "--one", whose, name, mode]
    settings = os.environ | {"PYTHONPATH": path}
    if whose == "nanochat":
        settings["NANOCHAT_DTYPE"] = "bfloat16" if mode == "bf16" else "float32"
    with TemporaryDirectory() as cache:  # a compiler's cache of its own: each cold start is cold
        settings["TORCHINDUCTOR_CACHE_DIR"] = cache
        done = subprocess.run(command, capture_output=True, encoding="utf-8", env=settings)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        print(f"{whose} {name} {mode}: failed: {lines[-1] if lines else done.returncode}")
        return None
    return json.loads(done.stdout.splitlines()[-1])


def has_bf16() -> bool:
    """True if this processor multiplies bfloat16 itself; where it is emulated it is far slower."""
    from nanochat_lib.common import cpu_features

    return bool(cpu_features() & {"amx_bf16", "avx512_bf16"})


def find_sides(folder: str) -> dict[str, str]:
    """Find where each side's code is; say what is missing."""
    sides = {"ours": str(ROOT)}
    archive = ["git", "-C", str(ROOT), "archive", FIRST, "nanochat_lib"]
    done = subprocess.run(archive, capture_output=True)
    if done.returncode == 0:
        subprocess.run(["tar", "x", "-C", folder], input=done.stdout, check=True)
        sides["first"] = folder
    else:
        print(f"git has no commit {FIRST} here (a shallow clone?): measured without it")
    if os.environ.get("NANOCHAT_CHECKOUT"):
        sides["nanochat"] = os.environ["NANOCHAT_CHECKOUT"]
    else:
        print("NANOCHAT_CHECKOUT names no checkout of karpathy/nanochat: measured without it")
    return sides


def compare(name: str, mode: str, sides: dict[str, str]) -> dict:
    """Measure one case in one mode for all sides, in turns; print a line for each."""
    runs = {whose: [] for whose in sides}
    for _ in range(1 if mode == "compiled" else REPEATS[name]):  # a cold start takes a minute
        for whose, path in sides.items():
            found = in_a_process(whose, name, mode, path)
            runs[whose] += [found] if found else []
    table = {}
    for whose, measured in runs.items():
        if not measured:
            continue
        measured = sorted(measured, key=lambda run: run["tokens_per_second"])
        found = table[whose] = measured[len(measured) // 2]
        found["all_tokens_per_second"] = [run["tokens_per_second"] for run in measured]
        mine = table.get("ours", found)
        speed = mine["tokens_per_second"] / found["tokens_per_second"]
        memory = mine["peak_mb"] / found["peak_mb"]
        found["ours_is_times_as_fast"], found["ours_memory_share"] = (
            round(speed, 2),
            round(memory, 2),
        )
        print(
            f"{name:7} {mode:9}{whose:9}{found['tokens_per_second']:>9,}{found['gflops']:>8}"
            f"{found['share_of_gemm_peak']:>7.0%}{found['cold_seconds']:>7}s"
            f"{found['peak_mb']:>7,} MB{speed:>7.2f}x{memory:>7.2f}",
            flush=True,
        )
    return table


def main() -> None:
    """Measure the chosen cases and print them with ratios."""
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    command.add_argument("--modes", nargs="*", default=["eager", "compiled", "bf16"])
    command.add_argument("--record", action="store_true", help="keep the lines in records/")
    command.add_argument("--one", nargs=3, metavar=("WHOSE", "CASE", "MODE"))
    options = command.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    from nanochat_lib.common import atomic_write
    from nanochat_lib.machine import machine_summary

    machine = {k: v for k, v in machine_summary().items() if k != "disk_free_gb"}
    print(
        f"{'':26}{'tokens/s':>9}{'GFLOP/s':>8}{'peak':>7}{'cold':>8}{'memory':>10}"
        f"{'ours is':>8}{'memory':>7}"
    )
    with TemporaryDirectory() as folder:
        sides = find_sides(folder)
        for name in options.cases:
            for mode in options.modes:
                if mode == "bf16" and not has_bf16():
                    continue
                table = compare(name, mode, sides)
                if not options.record:
                    continue
                kept = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
                if kept.get("machine") != machine:  # what was measured elsewhere is not mixed in
                    kept = {"machine": machine}
                kept.setdefault(name, {})[mode] = table
                atomic_write(RECORD, json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
