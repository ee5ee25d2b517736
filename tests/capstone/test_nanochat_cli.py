"""The command line: fast help, and mistakes that end in one clear line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat_lib.cli import main, physical_cores


def stopped(*arguments: str) -> str:
    """Run a command that must fail, and return the message it exits with."""
    with pytest.raises(SystemExit) as exit:
        main(list(arguments))
    return str(exit.value)


def test_help_lists_every_command_without_loading_torch():
    code = (
        "import sys; from nanochat_lib.cli import main; main(['--help']);"
        "print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    )
    assert all(f"nanochat {name}" in done.stdout for name in ("run", "report", "chat"))
    assert done.stdout.endswith("False False\n")


def test_unknown_command_names_the_nearest():
    assert stopped("caht") == "nanochat: no command 'caht': did you mean 'chat'?"


def test_unknown_option_is_refused_before_anything_runs(capsys):
    assert stopped("run", "laptop", "--form", "sft") == "2"
    assert "--from" in capsys.readouterr().err


def test_unknown_profile_and_stage_end_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    assert stopped("run", "latpop").startswith("nanochat run: no profile 'latpop'")
    manifest = str(Path(__file__).parent / "nano.toml")
    message = stopped("run", "nano", "--manifest", manifest, "--from", "evalation")
    assert message == "nanochat run: no stage 'evalation': did you mean 'evaluation'?"


def test_report_without_a_run_says_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    assert "make one with nanochat run" in stopped("report")
    assert "not done" in stopped("report", "absent")


def test_cores_are_those_this_process_may_use():
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)
    if hasattr(os, "sched_setaffinity"):
        allowed = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {min(allowed)})
            assert physical_cores() == 1
        finally:
            os.sched_setaffinity(0, allowed)
