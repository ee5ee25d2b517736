"""Run the laptop profile with five seeds, and without one idea of the chat stages at a time.

`make study-contact` writes records/chat/runs.json. Each variant is a full run with one thread, two at once; one
that is in the record is not repeated. The ideas that need no whole run have studies/capabilities.py.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import nanochat_lib.tasks.unknown as unknown
from nanochat_lib.capstone.profiles import Profile, load_profile
from nanochat_lib.capstone.run import run_profile
from nanochat_lib.common import atomic_write
from nanochat_lib.model.gpt import GPTConfig
from nanochat_lib.tasks.spelling import count_aloud
from nanochat_lib.training import finetune

RECORD = Path(__file__).parents[1] / "records/chat/runs.json"
SEEDS = 5


def as_it_is(profile: Profile) -> Profile:
    """Change nothing: what all others are compared with."""
    return profile


def rows_in_packing_order(profile: Profile) -> Profile:
    """Leave the conversations of a row in the order in which they were packed."""

    class Ordered:
        """A generator that does not shuffle."""

        def shuffle(self, items: list) -> None:
            """Do nothing."""

    finetune.local_generator = lambda *parts: Ordered()
    return profile


def one_stage(profile: Profile) -> Profile:
    """Fine-tune for the steps of both stages, without midtraining."""
    steps = profile.mid.steps + profile.sft.steps
    return dataclasses.replace(
        profile,
        mid=dataclasses.replace(profile.mid, steps=1),
        sft=dataclasses.replace(profile.sft, steps=steps - 1),
    )


def strangers_in_a_row(profile: Profile) -> Profile:
    """Let a conversation read the others that share its row."""
    return dataclasses.replace(
        profile,
        mid=dataclasses.replace(profile.mid, separate=False),
        sft=dataclasses.replace(profile.sft, separate=False),
    )


def without_the_tool(profile: Profile) -> Profile:
    """Count aloud, and do not check with the calculator."""

    def count_answer(word: str, letter: str) -> list[dict]:
        text = (
            f"I count {letter} in {word}: {count_aloud(word, letter)}.\n#### {word.count(letter)}"
        )
        return [{"type": "text", "text": text}]

    replace_everywhere("count_answer", count_answer)
    return profile


def letters_without_spaces(profile: Profile) -> Profile:
    """Spell in one piece, "st1rawber2r3y", so that letters share tokens."""

    def joined(word: str, letter: str) -> str:
        return count_aloud(word, letter).replace(" ", "")

    replace_everywhere("count_aloud", joined)
    return profile


def without_value_embeddings(profile: Profile) -> Profile:
    """Leave the value embeddings out of the model."""
    GPTConfig.has_value_embed = lambda config, layer_idx: False
    return profile


def without_refusals(profile: Profile) -> Profile:
    """Leave out everything that is to be refused."""
    refused = ("Strangers", "OtherTopics", "OtherTongues", "Noise", "FailedCalls")
    for name in refused:
        del unknown.SFT_SHARES[getattr(unknown, name)]
    return profile


def replace_everywhere(name: str, function: Callable) -> None:
    """Put a function in the place of another in every module that has it by name."""
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("nanochat_lib.") and hasattr(module, name):
            setattr(module, name, function)


VARIANTS = (
    as_it_is,
    strangers_in_a_row,
    without_value_embeddings,
    without_refusals,
    rows_in_packing_order,
    one_stage,
)
RUNS = [f"as_it_is {seed}" for seed in range(SEEDS)] + [f"{v.__name__} 0" for v in VARIANTS[1:]]


def with_seed(profile: Profile, seed: int) -> Profile:
    """Draw weights, text and conversations anew; world, tests and held-out words stay."""
    parts = {part: getattr(profile, part) for part in ("data", "base", "chat", "rl")}
    seeded = {name: dataclasses.replace(part, seed=seed) for name, part in parts.items()}
    return dataclasses.replace(profile, **seeded)


def measure(run: str, path: str) -> None:
    """Run one variant with one seed and write what its report says."""
    name, seed = run.split()
    variant = {v.__name__: v for v in VARIANTS}[name]
    profile = with_seed(variant(load_profile("laptop")), int(seed))
    with TemporaryDirectory() as folder:
        run_folder = run_profile(profile, Path(folder) / name)
        report = json.loads((run_folder / "report.json").read_text(encoding="utf-8"))
    contact = report["contact"]
    found = {
        "changed": (variant.__doc__ or "").strip(),
        "tasks": report["tasks"],
        "bits_per_byte": report["bits_per_byte"],
        "hard": report["hard"],
        "contact": {key: contact[key] for key in ("endless", "refused", "known")},
    }
    atomic_write(Path(path), json.dumps(found))


def main(*wanted: str) -> None:
    """Run what the record lacks, or those that are named such as "one_stage 0"."""
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    missing = [run for run in wanted or RUNS if run not in record]
    with TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:

        def start(run: str) -> dict:
            out = Path(folder) / f"{run}.json"
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, __file__, "run", run, str(out)]
            subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
            return json.loads(out.read_text(encoding="utf-8"))

        for run, found in zip(missing, pool.map(start, missing)):
            record[run] = found
            record = {name: record[name] for name in RUNS if name in record}
            atomic_write(RECORD, json.dumps(record, indent=1) + "\n")
            scores = {task: row["rl"]["accuracy"] for task, row in found["tasks"].items()}
            print(run, scores, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        measure(sys.argv[2], sys.argv[3])
    else:
        main(*sys.argv[1:])
