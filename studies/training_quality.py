"""Run the whole laptop profile the plain way and the fast way, over three seeds, and record what came out.

`make study-quality` writes records/training/quality.json, which the chapter on speed reads. The plain way
is this library with nothing from the chapter on speed: float32, the loss as one table, the direct
Newton-Schulz. A run that is in the record is not repeated. Runs use one thread each, two at a time.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from tempfile import TemporaryDirectory

import nanochat_lib.training.loop as loop
import nanochat_lib.training.step as step
from nanochat_lib.capstone.profiles import load_profile
from nanochat_lib.capstone.run import run_profile
from nanochat_lib.common import atomic_write
from nanochat_lib.machine import machine_summary

RECORD = Path(__file__).parents[1] / "records/training/quality.json"
WAYS, SEEDS = ("plain", "fast"), (0, 1, 2)


def train_the_plain_way() -> None:
    """Take the fast ways out of the training loop of this process."""
    loop.prepare = lambda model, optimizers, dtype: None
    step.loss_function = lambda model: model


def one_run(way: str, seed: int) -> dict:
    """Run all stages with another seed for data, weights and conversations; return what counts."""
    if way == "plain":
        train_the_plain_way()
    profile = load_profile("laptop")
    parts = {
        name: dataclasses.replace(getattr(profile, name), seed=seed)
        for name in ("data", "base", "chat")
    }
    with TemporaryDirectory() as folder:
        done = run_profile(dataclasses.replace(profile, **parts), Path(folder) / way)
        report = json.loads((done / "report.json").read_text(encoding="utf-8"))
    return {
        "bits_per_byte": report["bits_per_byte"],
        "tasks": {task: scores["sft"] for task, scores in report["tasks"].items()},
    }


def in_a_process(way: str, seed: int) -> dict:
    """Make one run in a process of its own, with one thread."""
    command = [sys.executable, __file__, "--one", way, str(seed)]
    settings = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, encoding="utf-8", env=settings, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def read_record() -> dict:
    """Read what earlier calls have measured."""
    if RECORD.exists():
        return json.loads(RECORD.read_text(encoding="utf-8"))
    machine = {k: v for k, v in machine_summary().items() if k != "disk_free_gb"}
    return {"machine": machine, "runs": {}}


def main() -> None:
    """Make the runs that the record lacks."""
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--one", nargs=2, metavar=("WAY", "SEED"))
    options = command.parse_args()
    if options.one:
        print(json.dumps(one_run(options.one[0], int(options.one[1]))))
        return
    missing = [(w, s) for s in SEEDS for w in WAYS if f"{w} {s}" not in read_record()["runs"]]
    with ThreadPoolExecutor(2) as pool:
        runs = {pool.submit(in_a_process, *pair): "{} {}".format(*pair) for pair in missing}
        for run in as_completed(runs):
            record = read_record()
            record["runs"][runs[run]] = run.result()
            atomic_write(RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
            print(f"{runs[run]}: done", flush=True)


if __name__ == "__main__":
    main()
