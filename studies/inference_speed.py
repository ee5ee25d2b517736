"""Time our engine in one run beside the plain model and beside nanochat's engine.

`make bench-inference` prints a table; with RECORD=1 it is also kept in records/inference/speed.json. Each
measurement is a process of its own, with random weights and a tokenizer that knows no stop: 64 tokens
for one row and for 8 rows after a prompt of 100, the first token after a prompt of 400, and, for our engine,
8 requests that come one after another and at different times. The sides take turns, and the middle of
their runs is shown. Beside each rate stands its share of what the machine could do: reading weights for one
row, multiplying matrices for a prompt.

"plain" is our engine with the model as it was trained, "nanochat" the checkout of karpathy/nanochat that
NANOCHAT_CHECKOUT names; a side that is not there is skipped and said.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from nanochat_lib.common import atomic_write
from nanochat_lib.machine import machine_summary

RECORD = Path(__file__).parents[1] / "records/inference/speed.json"
# name: (layers, width, heads, vocabulary)
CASES = {"laptop": (4, 96, 3, 640), "d4": (4, 256, 2, 8_192), "d12": (12, 768, 6, 32_768)}
SIDES = ("nanochat", "plain", "float32", "bfloat16", "int8")
LENGTH, PROMPT, NEW, LONG, MANY = 512, 100, 64, 400, 8
BYTES = {"bfloat16": 2, "int8": 1}
REPEATS = 3


class NoStops:
    """A tokenizer for random weights: no token ends an answer, none calls a tool."""

    bos_id = -1

    def encode_special(self, name: str) -> int:
        """Give an id that no model writes."""
        return -1

    def get_bos_token_id(self) -> int:
        """Give what nanochat asks for."""
        return -1


def build(side: str, case: tuple):
    """Build a model with random weights, and an engine around it."""
    layers, width, heads, vocab_size = case
    if side == "nanochat":
        from nanochat.engine import Engine
        from nanochat.gpt import GPT, GPTConfig

        with torch.device("meta"):
            model = GPT(GPTConfig(LENGTH, vocab_size, layers, heads, heads, width, "L"))
        model.to_empty(device="cpu")
        model.init_weights()
        return model.eval(), Engine(model, NoStops())
    from nanochat_lib.inference.engine import Engine
    from nanochat_lib.inference.packed import PackedGPT
    from nanochat_lib.model.gpt import GPT, MODERN, GPTConfig

    sizes = dict(n_embd=width, n_head=heads, n_kv_head=heads, n_layer=layers)
    switches = dict.fromkeys(MODERN, True)
    model = GPT(GPTConfig(**sizes, sequence_len=LENGTH, vocab_size=vocab_size, **switches)).eval()
    model.x0_lambdas.data += 0.1  # as nanochat's, which adds the embedding in every layer
    return model, Engine(
        model if side == "plain" else PackedGPT(model, getattr(torch, side)), NoStops()
    )


def decode_rate(engine, n_rows: int) -> float:
    """Tokens a second of n_rows answers, from the second token on."""
    prompt = [(7 * i) % 600 for i in range(PROMPT)]
    columns = engine.generate(prompt, n_rows, max_tokens=NEW, temperature=1.0, top_k=50)
    next(columns)
    start = time.perf_counter()
    n = sum(1 for _ in columns)
    return n_rows * n / (time.perf_counter() - start)


def prefill_rate(engine) -> float:
    """Tokens of a prompt a second, up to the first token of the answer."""
    prompt = [(11 * i) % 600 for i in range(LONG)]
    start = time.perf_counter()
    next(engine.generate(prompt, 1, max_tokens=2, temperature=0.0))
    return LONG / (time.perf_counter() - start)


def arrivals(engine) -> tuple[float, float]:
    """Tokens a second of 8 requests, one after another, and coming three steps apart."""
    from nanochat_lib.inference.row import Request

    rates = []
    for apart in (10**9, 3):
        todo = [
            Request([(s + 5 * i) % 600 for i in range(PROMPT)], NEW, seed=s) for s in range(MANY)
        ]
        rows, step, start = [], 0, time.perf_counter()
        while todo or engine.busy:
            if todo and (step % apart == 0 or not engine.busy):
                rows.append(engine.submit(todo.pop(0)))
            engine.step()
            step += 1
        rates.append(sum(len(row.tokens) for row in rows) / (time.perf_counter() - start))
    return rates[0], rates[1]


def measure(side: str, name: str) -> dict:
    """Measure one line of the table in this process."""
    model, engine = build(side, CASES[name])
    decode_rate(engine, 1), prefill_rate(engine)  # the first time pays for setting things up
    found = {
        "one": decode_rate(engine, 1),
        "many": decode_rate(engine, MANY),
        "prefill": prefill_rate(engine),
    }
    if side != "nanochat":
        found["in_turn"], found["coming"] = arrivals(engine)
        weights = model.num_scaling_params()
        found["bandwidth"] = found["one"] * weights * BYTES.get(side, 4) / bandwidth()
        head = (
            model.config.vocab_size * model.config.n_embd
        )  # of a prompt only the last token needs it
        body = weights - head
        found["gemm"] = 2 * body * found["prefill"] / gemm_peak(side)
    return found


def bandwidth() -> float:
    """Measure how many bytes a second a large array is read with; the best of ten."""
    x, seconds = torch.ones(64_000_000), []
    for _ in range(10):
        start = time.perf_counter()
        x.sum()
        seconds.append(time.perf_counter() - start)
    return 4 * len(x) / min(seconds)


def gemm_peak(side: str) -> float:
    """Measure the rate of a large matrix product in a side's format, in operations a second; the best of ten."""
    dtype = torch.bfloat16 if side in BYTES else torch.float32
    a, seconds = torch.randn(1_024, 1_024).to(dtype), []
    for _ in range(10):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return 2 * 1_024**3 / min(seconds)


def run(side: str, name: str) -> dict | None:
    """Measure in a process of its own; None when the side is not there."""
    env, checkout = dict(os.environ), os.environ.get("NANOCHAT_CHECKOUT")
    if side == "nanochat":
        if checkout is None:
            return None
        env["PYTHONPATH"] = checkout
    command = [sys.executable, __file__, "--measure", side, name]
    done = subprocess.run(command, env=env, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"{side}, {name}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure what is asked for, print the table, and keep it if wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs=2, metavar=("SIDE", "CASE"))
    parser.add_argument("--record", action="store_true", help="write records/inference/speed.json")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return
    table: dict = {}
    print("tokens a second; in brackets, times nanochat's\n")
    print(
        f"{'':17}{'one row':>16}{'8 rows':>17}{'prompt':>18}{'8 in turn':>10}{'coming':>15}  share"
    )
    for name in CASES:
        runs = {side: [] for side in SIDES}
        for _ in range(REPEATS):
            for side in SIDES:
                runs[side].append(run(side, name))
        if runs["nanochat"][0] is None:
            del runs["nanochat"]
            print(f"{name:7} nanochat: NANOCHAT_CHECKOUT names no checkout, skipped")
        middle = {
            side: {key: statistics.median(r[key] for r in found) for key in found[0]}
            for side, found in runs.items()
        }
        table[name] = middle
        peer = middle.get("nanochat", {})
        for side, m in middle.items():
            rates = [
                f"{m[k]:,.0f} ({m[k] / peer[k]:.1f})" if peer else f"{m[k]:,.0f}"
                for k in ("one", "many", "prefill")
            ]
            line = f"{name:7}{side:10}{rates[0]:>16}{rates[1]:>17}{rates[2]:>18}"
            if "coming" in m:
                line += (
                    f"{m['in_turn']:>10,.0f}{m['coming']:>8,.0f} ({m['coming'] / m['in_turn']:.1f})"
                )
                line += f"  {m['bandwidth']:.0%} of bandwidth, {m['gemm']:.0%} of products"
            print(line, flush=True)
    if args.record:
        machine = {key: value for key, value in machine_summary().items() if key != "disk_free_gb"}
        RECORD.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(RECORD, json.dumps({"cases": table, "machine": machine}, indent=1) + "\n")


if __name__ == "__main__":
    main()
