# Generated from chapters/16_capstone.py by `course build`; edit that file.
"""Tie the stages to a profile: one call from raw text to a report."""

import json
from collections.abc import Callable
from pathlib import Path

from nanochat_lib.capstone.pipeline import Stage, nearest, run_stages
from nanochat_lib.capstone.profiles import Profile
from nanochat_lib.capstone.report import write_report
from nanochat_lib.capstone.stage_base import train_base
from nanochat_lib.capstone.stage_data import prepare_data
from nanochat_lib.capstone.stage_evaluation import evaluate_models
from nanochat_lib.capstone.stage_sft import train_sft
from nanochat_lib.capstone.stage_tokenizer import train_tokenizer
from nanochat_lib.common import atomic_write, base_dir

__all__ = ["STAGES", "run_profile"]

STAGES = (
    Stage("data", prepare_data, settings=("data",)),
    Stage("tokenizer", train_tokenizer, needs=("data",), settings=("tokenizer",)),
    Stage("base", train_base, needs=("data", "tokenizer"), settings=("base",), resumes=True),
    Stage(
        "sft",
        train_sft,
        needs=("data", "tokenizer", "base"),
        settings=("data", "chat", "sft"),
        resumes=True,
    ),
    Stage(
        "evaluation",
        evaluate_models,
        needs=("data", "tokenizer", "base", "sft"),
        settings=("data", "chat", "evaluation"),
        resumes=True,
    ),
)


def run_profile(
    profile: Profile,
    run_folder: Path | None = None,
    start: str | None = None,
    announce: Callable[[str], None] = print,
) -> Path:
    """Bring a whole run up to date and write its report.

    Args:
        profile: every setting.
        run_folder: where the run lives; base_dir() / profile.name if None.
        start: stage to run again, with all after it; "report" repeats only the report.
        announce: receives one line a stage.

    Returns:
        The run's folder, with report.md and report.json in it.

    Raises:
        ValueError: no stage is called `start`, or another process is at work in the folder.
    """
    run_folder = run_folder or base_dir() / profile.name
    names = [*(stage.name for stage in STAGES), "report"]
    if start is not None and start not in names:
        raise ValueError(f"no stage {start!r}: {nearest(start, names)}")
    about = {"profile": profile.name, "about": profile.about}
    atomic_write(run_folder / "run.json", json.dumps(about))
    run_stages(STAGES, profile, run_folder, None if start == "report" else start, announce)
    write_report(run_folder)
    return run_folder
