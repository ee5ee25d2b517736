# Generated from chapters/20_capstone.py by `course build`; edit that file.
"""Tie the stages to a profile: one call from raw text to a report."""

import json
from collections.abc import Callable
from pathlib import Path

from nanochat_lib.capstone.layout import MODELS
from nanochat_lib.capstone.pipeline import Stage, nearest, run_stages
from nanochat_lib.capstone.profiles import Profile
from nanochat_lib.capstone.record import read_json
from nanochat_lib.capstone.report import write_report
from nanochat_lib.capstone.stage_base import train_base
from nanochat_lib.capstone.stage_chat import train_mid, train_sft
from nanochat_lib.capstone.stage_data import prepare_data
from nanochat_lib.capstone.stage_evaluation import evaluate_models
from nanochat_lib.capstone.stage_rl import reinforce
from nanochat_lib.capstone.stage_tokenizer import train_tokenizer
from nanochat_lib.common import atomic_write, run_dir
from nanochat_lib.training.checkpoint import FILES

__all__ = ["SHARDS", "TRAINING", "REINFORCEMENT", "SCORES", "STAGES", "claim_folder", "run_profile"]

SHARDS = (f"*/shard_{5 * '[0-9]'}.parquet",)
TRAINING = (*(f"step_{6 * '[0-9]'}/{name}" for name in FILES), "losses.json")
REINFORCEMENT = (
    *(f"{folder}step_{6 * '[0-9]'}/{name}" for folder in ("", "training/") for name in FILES),
    "rl.json",
)
SCORES = tuple(f"{name}.json" for name in ("bits_per_byte", "samples", "contamination"))
SCORES += tuple(f"{model}.*.json" for model in MODELS)
STAGES = (
    Stage("data", prepare_data, settings=("data",), writes=SHARDS),
    Stage(
        "tokenizer",
        train_tokenizer,
        needs=("data",),
        settings=("tokenizer",),
        writes=("tokenizer.json",),
    ),
    Stage(
        "base",
        train_base,
        needs=("data", "tokenizer"),
        settings=("base",),
        resumes=True,
        writes=TRAINING,
    ),
    Stage(
        "mid",
        train_mid,
        needs=("data", "tokenizer", "base"),
        settings=("data", "chat", "mid"),
        resumes=True,
        writes=TRAINING,
    ),
    Stage(
        "sft",
        train_sft,
        needs=("data", "tokenizer", "mid"),
        settings=("data", "chat", "sft"),
        resumes=True,
        writes=TRAINING,
    ),
    Stage(
        "rl",
        reinforce,
        needs=("data", "tokenizer", "sft"),
        settings=("data", "chat", "sft", "rl"),
        resumes=True,
        writes=REINFORCEMENT,
    ),
    Stage(
        "evaluation",
        evaluate_models,
        needs=("data", "tokenizer", "base", "mid", "sft", "rl"),
        settings=("data", "chat", "evaluation"),
        resumes=True,
        writes=SCORES,
    ),
)


def claim_folder(run_folder: Path, profile: Profile) -> None:
    """Make a folder this profile's run, unless it holds something else.

    Raises:
        ValueError: it holds files that no run wrote, or the run of another profile.
    """
    path = run_folder / "run.json"
    there = sorted(entry.name for entry in run_folder.glob("[!.]*")) if run_folder.is_dir() else []
    about = read_json(path) if path.exists() else {}
    if there and not (isinstance(about, dict) and {"profile", "about"} <= about.keys()):
        raise ValueError(
            f"{run_folder} holds {there[0]}, and no run wrote that: give the run another --name"
        )
    if about and about["profile"] != profile.name:
        raise ValueError(
            f"{run_folder} is a run of profile {about['profile']!r}: give this one another --name"
        )
    atomic_write(path, json.dumps({"profile": profile.name, "about": profile.about}))


def run_profile(
    profile: Profile,
    run_folder: Path | None = None,
    start: str | None = None,
    announce: Callable[[str], None] = print,
) -> Path:
    """Bring a whole run up to date and write its report.

    Args:
        profile: every setting.
        run_folder: where the run lives; run_dir(profile.name) if None.
        start: stage to run again, with all after it; "report" repeats only the report.
        announce: receives one line a stage.

    Returns:
        The run's folder, with report.md and report.json in it.

    Raises:
        ValueError: no stage is called `start`, another process is at work in the folder, or it
            holds something else.
    """
    run_folder = run_folder or run_dir(profile.name)
    names = [*(stage.name for stage in STAGES), "report"]
    if start is not None and start not in names:
        raise ValueError(f"no stage {start!r}: {nearest(start, names)}")
    claim_folder(run_folder, profile)
    run_stages(STAGES, profile, run_folder, None if start == "report" else start, announce)
    write_report(run_folder)
    return run_folder
