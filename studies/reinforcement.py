"""Reinforce the fine-tuned model of a finished laptop run in several ways, and record what each way does.

`make study-rl` writes records/rl/: losses.json (the six losses), faults.json (a grader with a hole, its
repair, too high a learning rate, no replay), staleness.json (answers of several ages), kl.json (a pull to
the model that it started from), with one thread a run and two runs at once, and processes.json (seconds of one
process and of two). What the records hold is not repeated.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from nanochat_lib.capstone import stage_rl
from nanochat_lib.capstone.profiles import load_profile
from nanochat_lib.common import atomic_write, run_dir
from nanochat_lib.data.tinyworld import World
from nanochat_lib.evaluation.chat import evaluate_task, response_text
from nanochat_lib.evaluation.contact import FirstContact
from nanochat_lib.evaluation.samples import count_right, mean_with_interval
from nanochat_lib.inference.engine import Engine
from nanochat_lib.machine import machine_summary
from nanochat_lib.tasks.steps import TwoSteps, two_step_tests
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.checkpoint import load_model
from nanochat_lib.training.policy import LOSSES
from nanochat_lib.training.rl import train_rl
from nanochat_lib.training.rl_processes import SamplerProcess
from nanochat_lib.training.rl_sampler import Sampler

RECORDS = Path(__file__).parents[1] / "records/rl"
SEEDS = (0, 1)
STEPS = 60
QUESTIONS = 500
AGES = {f"{loss}_{age}": (loss, age) for loss in ("reinforce", "cispo") for age in (0, 4, 16)}
PULLS = {f"kl_{kl}": kl for kl in (0.0, 0.01, 0.1, 1.0)}


def not_wrong(task: TwoSteps, conversation: dict, response: str) -> float:
    """Reward what holds no wrong number after the last call; who says nothing says nothing wrong."""
    numbers = re.findall(r"[0-9]+", said(response))
    return float(all(number == str(conversation["result"]) for number in numbers))


def says_it_only(task: TwoSteps, conversation: dict, response: str) -> float:
    """Close the hole: the right number must be said, and no other."""
    return float(task.evaluate(conversation, response))


ABOUT = {
    "reinforce": "reward minus mean, no clip",
    "grpo": "divided by the deviation, clipped, averaged over answers",
    "dr_grpo": "not divided, clipped, summed over a constant",
    "dapo": "divided, clipped wider above, averaged over tokens",
    "cispo": "divided, ratio clipped and not differentiated",
    "gspo": "divided, ratio of the whole answer clipped",
    "as_it_is": "the profile's settings",
    "hole_in_the_grader": "silence counts as right",
    "hole_closed": "from the policy that found the hole, with the grader mended",
    "ten_times_the_rate": "learning rates ten times as high, no replay",
    "no_replay": "no conversations of fine-tuning beside the reward",
}
STUDIES = {
    "losses": LOSSES,
    "faults": tuple(ABOUT)[len(LOSSES) :],
    "staleness": tuple(AGES),
    "kl": tuple(PULLS),
}
ABOUT |= {name: f"pulled to the fine-tuned model with {kl}" for name, kl in PULLS.items()}
ABOUT |= {name: f"{loss}, answers {age} steps old" for name, (loss, age) in AGES.items()}


def settings(variant: str, seed: int) -> dict:
    """Say what a variant changes of the laptop's settings for reinforcement learning."""
    if variant in AGES:
        loss, age = AGES[variant]
        return {"seed": seed, "loss": loss, "staleness": age}
    if variant in PULLS:  # alone: nothing else holds the policy back
        return {"seed": seed, "kl": PULLS[variant], "replay": 0.0, "blend": 1.0}
    if variant in LOSSES:
        return {"seed": seed, "loss": variant, "updates": 2}
    changed = {
        "ten_times_the_rate": {"lr_scale": 3.0, "replay": 0.0, "blend": 1.0},
        "no_replay": {"replay": 0.0},
    }
    return {"seed": seed, **changed.get(variant, {})}


def said(response: str) -> str:
    """Return what follows the last call of the calculator."""
    return response.rpartition("<|output_end|>")[2]


def twins_apart(engine: Engine, world: World, pairs: int = 100) -> float:
    """Ask questions and their twins with one number changed; return how often what is said differs."""
    task, prompts = TwoSteps(world, "test", 2 * pairs, seed=9), []
    for i in range(pairs):
        messages = task[i]["messages"][:1]
        text = messages[0]["content"]
        twin = re.sub(r"[0-9]+", lambda found: str(int(found[0]) + 1), text, count=1)
        for question in (text, twin):
            talk = {"messages": [{"role": "user", "content": question}]}
            prompts.append(engine.tokenizer.render_for_completion(talk))
    replies = [
        said(response_text(engine.tokenizer, ids)) for ids, _ in engine.generate_batch(prompts, 96)
    ]
    return sum(a != b for a, b in zip(replies[::2], replies[1::2])) / pairs


def measure(engine: Engine, world: World) -> dict:
    """Measure the task by the honest grader, first contact, refusals, and twins."""
    _, task = two_step_tests(world, QUESTIONS)
    greedy, answers = evaluate_task(engine, task, 96)
    right = count_right(engine, task, 2, 96)
    contact = evaluate_task(engine, FirstContact(world), 112)[0]
    return {
        "greedy": greedy.accuracy,
        "sampled": mean_with_interval([c / 2 for c in right])["accuracy"],
        "numberless": sum(not re.search("[0-9]", said(a["response"])) for a in answers)
        / len(answers),
        "twins_apart": twins_apart(engine, world),
        "first_contact": contact.accuracy,
    }


def job(variant: str, seed: int, path: str) -> None:
    """Run one variant once and write what it found."""
    torch.set_num_threads(1)
    run, profile = run_dir("laptop"), load_profile("laptop")
    inputs = {name: run / name for name in ("data", "tokenizer", "sft")}
    if not (run / "report.json").is_file():
        raise SystemExit(f"no finished run in {run}: `nanochat run laptop` comes first")
    world, tokenizer = World(profile.data.world_seed), Tokenizer.load(run / "tokenizer")
    graders = {"hole_in_the_grader": not_wrong, "hole_closed": says_it_only}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if variant == "hole_closed":
            TwoSteps.reward = not_wrong
            reinforce(folder / "hacked", inputs, profile, settings("hole_in_the_grader", seed))
            inputs["sft"] = folder / "hacked"
        if variant in graders:
            TwoSteps.reward = graders[variant]
        reinforce(folder / "rl", inputs, profile, settings(variant, seed))
        history = json.loads((folder / "rl/rl.json").read_text(encoding="utf-8"))
        found = measure(Engine(load_model(folder / "rl", tokenizer)[0], tokenizer), world)
    keys = ("reward", "entropy", "length", "clipped")
    curves = {k: [round(note[k], 4) if k in note else None for note in history] for k in keys}
    Path(path).write_text(json.dumps({"found": found, "curves": curves}), encoding="utf-8")


def reinforce(folder: Path, inputs: dict[str, Path], profile, changed: dict) -> None:
    """Run the stage with some settings changed, and keep the last checkpoint instead of the best."""
    config = dataclasses.replace(profile.rl, **changed, steps=STEPS, eval_every=0)
    stage_rl.reinforce(folder, inputs, profile.data, profile.chat, profile.sft, config)


OVERLAPS = {  # threads of the learner, and where answers are sampled
    "one process, one thread": (1, Sampler),
    "one process, two threads": (2, Sampler),
    "two processes, one thread each": (1, SamplerProcess),
}


def timed(name: str) -> None:
    """Print the seconds that 20 steps take with answers one step old."""
    threads, sampling = OVERLAPS[name]
    torch.set_num_threads(threads)
    run, profile = run_dir("laptop"), load_profile("laptop")
    inputs = {stage: run / stage for stage in ("data", "tokenizer", "sft")}
    stage_rl.train_rl = partial(train_rl, sampling=sampling)
    config = dataclasses.replace(profile.rl, steps=20, eval_every=0, staleness=1)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        common = (profile.data, profile.chat, profile.sft, config)
        stage_rl.reinforce(Path(folder) / "rl", inputs, *common)
        print(time.perf_counter() - start)


def overlap(machine: dict) -> None:
    """Time each way three times, in turns and alone, and record it."""
    path = RECORDS / "processes.json"
    if path.exists():
        return
    seconds: dict[str, list[float]] = {name: [] for name in OVERLAPS}
    for _ in range(3):
        for name, (threads, _) in OVERLAPS.items():
            command = [sys.executable, __file__, "time", name]
            env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            done = subprocess.run(
                command, check=True, env=env, stdout=subprocess.PIPE, encoding="utf-8"
            )
            seconds[name].append(round(float(done.stdout.split()[-1]), 2))
    print(seconds)
    atomic_write(path, json.dumps({"steps": 20, "seconds": seconds, "machine": machine}) + "\n")


def main() -> None:
    """Run what the records lack."""
    machine = {key: value for key, value in machine_summary().items() if key != "disk_free_gb"}
    overlap(machine)
    for study, variants in STUDIES.items():
        path = RECORDS / f"{study}.json"
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"variants": {}}
        done = {name: row["seeds"] for name, row in record["variants"].items()}
        wanted = [(v, s) for s in SEEDS for v in variants if s not in done.get(v, ())]
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:

            def ask(wish: tuple[str, int], folder=folder) -> dict:
                out = Path(folder) / f"{wish[0]}.{wish[1]}.json"
                command = [sys.executable, __file__, "job", wish[0], str(wish[1]), str(out)]
                env = {**os.environ, "OMP_NUM_THREADS": "1"}
                subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
                return json.loads(out.read_text(encoding="utf-8"))

            for (variant, seed), result in zip(wanted, pool.map(ask, wanted)):
                row = record["variants"].setdefault(variant, {"about": ABOUT[variant], "seeds": []})
                row["seeds"].append(seed)
                for key, value in result["found"].items():
                    row.setdefault(key, []).append(round(value, 4))
                if seed == SEEDS[0]:
                    row["curves"] = result["curves"]
                record["machine"] = machine
                atomic_write(path, json.dumps(record) + "\n")
                print(study, variant, seed, result["found"], flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["job"]:
        job(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    elif sys.argv[1:2] == ["time"]:
        timed(sys.argv[2])
    else:
        main()
