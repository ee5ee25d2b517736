"""Run the nano profile again and again in children that are killed, and print what each attempt ended with.

    python attempts.py MANIFEST FOLDER SEED KILLS

Importing torch takes longer than the whole run, so one process imports and then forks: each attempt is a child.
"""

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
import torch._dynamo  # noqa: F401 - the first optimizer would import it, in every child again

from nanochat_lib.capstone.profiles import load_profile
from nanochat_lib.capstone.run import run_profile


def attempt(profile: object, folder: Path, seconds: float | None) -> str:
    """Run in a child; kill it with no chance to clean up after `seconds`."""
    child = os.fork()
    if child == 0:
        try:
            run_profile(profile, folder)
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    deadline = time.monotonic() + (seconds or 1e9)
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "finished" if status == 0 else "failed"
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "killed"


def main() -> None:
    manifest, folder, seed, kills = sys.argv[1:]
    torch.set_num_threads(1)
    profile = load_profile("nano", Path(manifest))
    started = time.monotonic()
    outcome = attempt(profile, Path(folder) / "undisturbed", None)
    whole = time.monotonic() - started
    print("RESULT", outcome, flush=True)
    rng = random.Random(int(seed))
    for _ in range(int(kills)):
        # Each attempt is cut somewhere in its first half: together they pass through all stages.
        outcome = attempt(profile, Path(folder) / "disturbed", rng.uniform(0.05, 0.5) * whole)
        print("RESULT", outcome, flush=True)
    print("RESULT", attempt(profile, Path(folder) / "disturbed", None), flush=True)


main()
