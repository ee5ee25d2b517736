# Generated from chapters/90_course_tool.py by `course build`; edit that file.
"""Run every gate and tell what is wrong."""

from pathlib import Path

from nanochat_lib.course.exercise_gate import exercises_gate
from nanochat_lib.course.gates import (
    Gate,
    cells_gate,
    docs_gate,
    drift_gate,
    format_gate,
    run_gate,
    sources_gate,
)
from nanochat_lib.course.manifest import Problem
from nanochat_lib.course.planner import make_plan

__all__ = ["GATES", "check"]

GATES: dict[str, Gate] = {
    "sources": sources_gate,
    "format": format_gate,
    "drift": drift_gate,
    "run": run_gate,
    "cells": cells_gate,
    "docs": docs_gate,
    "exercises": exercises_gate,
}


def check(root: Path) -> dict[str, list[Problem]]:
    """Run every gate; nothing is executed and nothing is written.

    Args:
        root: the folder of course.toml.

    Returns:
        Gate name to its problems, empty where all is well.

    Raises:
        CourseError: course.toml cannot be read.
    """
    plan = make_plan(root)
    return {name: gate(root, plan) for name, gate in GATES.items()}
