"""The command line: fast help, and mistakes that end in one clear line."""

import os
import pwd
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat_lib import cli
from nanochat_lib.capstone.profiles import load_profile
from nanochat_lib.cli import main, physical_cores, print_report
from nanochat_lib.terminal import as_command


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


NANO = str(Path(__file__).parent / "nano.toml")
PATHS = ["..", ".", "", "exp/one", "../evil", "/etc", "a\\b", ".hidden", "-x", "a\nb", "x" * 300]


@pytest.mark.parametrize("name", PATHS)
def test_a_name_is_no_path(tmp_path, monkeypatch, name):
    """Every option that names a run refuses what would be a path, and writes nothing anywhere."""
    base = tmp_path / "base"
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    message = stopped("run", "nano", "--manifest", NANO, f"--name={name}")
    assert message.startswith("nanochat run: run ") and "\n" not in message and len(message) < 250
    if name[:1] != "-":
        assert stopped("report", name).startswith("nanochat report: run ")
    assert not base.exists() and list(tmp_path.iterdir()) == []


def test_a_profile_whose_name_is_a_path_is_refused_too(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    manifest = tmp_path / "my.toml"
    manifest.write_text('[profile."../up"]\nabout = "x"\n', encoding="utf-8")
    assert "run '../up'" in stopped("run", "../up", "--manifest", str(manifest))
    assert not (tmp_path / "up").exists()


@pytest.mark.parametrize("kept", ["thesis.tex", "data/shard_00000.parquet", "run.json", "sft/x"])
def test_a_folder_that_is_no_run_is_left_alone(tmp_path, monkeypatch, kept):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    mine = tmp_path / "thesis" / kept
    mine.parent.mkdir(parents=True)
    mine.write_text('{"loss": 1}', encoding="utf-8")
    message = stopped("run", "nano", "--manifest", NANO, "--name", "thesis")
    assert f"thesis holds {kept.split('/')[0]}" in message and "another --name" in message
    assert [p for p in (tmp_path / "thesis").rglob("*") if p.is_file()] == [mine]


def test_a_run_is_not_overwritten_by_another_profile(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    (tmp_path / "laptop").mkdir()
    about = '{"profile": "laptop", "about": ""}'
    (tmp_path / "laptop/run.json").write_text(about, encoding="utf-8")
    message = stopped("run", "nano", "--manifest", NANO, "--name", "laptop")
    assert "a run of profile 'laptop'" in message and "another --name" in message
    assert (tmp_path / "laptop/run.json").read_text(encoding="utf-8") == about


@pytest.mark.parametrize(
    "text", [b"[profile.nano\n", b"caf\xe9 = 1", b"[profile.nano.base]\nx=nan"]
)
def test_a_manifest_that_cannot_be_read_is_named(tmp_path, text):
    manifest = tmp_path / "my [v2].toml"
    manifest.write_bytes(text)
    message = stopped("run", "nano", "--manifest", str(manifest))
    assert "my [v2].toml cannot be read" in message or "profile.nano.base" in message
    assert "no " in stopped("run", "nano", "--manifest", str(tmp_path))  # a folder


def test_a_manifest_may_begin_with_a_byte_order_mark(tmp_path):
    manifest = tmp_path / "my.toml"
    manifest.write_bytes(b'\xef\xbb\xbf[profile.nano]\nabout = "x"\n')
    assert load_profile("nano", manifest).about == "x"


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_setting_is_nan_or_infinite(tmp_path, value):
    manifest = tmp_path / "my.toml"
    manifest.write_text(f"[profile.nano.sft]\nlr_scale = {value}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"profile.nano.sft.lr_scale = -?(nan|inf): must be a fin"):
        load_profile("nano", manifest)


SCORE = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "n": 9}
HARD = {"sft": {"greedy": SCORE, "sampled": SCORE, "pass_at": {"1": 0.5}}}
EMPTY = {"tasks": {}, "bits_per_byte": {}, "stages": {}, "hard": HARD}


def test_commands_for_pasting_are_quoted(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "300")
    for name in ("my run", "a; echo b", "it's [v2]"):
        print_report(EMPTY, tmp_path / name)
        printed = capsys.readouterr().out.splitlines()
        command = next(line for line in printed if line.startswith("talk to it: "))
        words = shlex.split(command.removeprefix("talk to it: "))
        assert words == [".venv/bin/nanochat", "chat", "--run", name]
        assert f"report: {tmp_path / name / 'report.md'}" in printed

    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "run", (interrupted, ""))
    assert stopped("run", "laptop", "--name", "a; echo b") == "130"
    assert "nanochat run laptop --name 'a; echo b'" in capsys.readouterr().out


def test_a_prompt_that_begins_with_a_dash_gets_a_hint():
    for option, text in (("-p", "-hello"), ("--prompt", "-1 + 2"), ("-p", "--run")):
        assert shlex.quote(f"--prompt={text}") in stopped("chat", option, text)


NO_TRACEBACK = {
    "a base folder that is a file": ("NANOCHAT_BASE_DIR", __file__, "Not a directory"),
    "a base folder below a file": ("NANOCHAT_BASE_DIR", f"{__file__}/x", "Not a directory"),
    "an empty home": ("HOME", "", "no home folder for ~/.cache/nanochat-course"),
}


@pytest.mark.parametrize("case", NO_TRACEBACK)
def test_a_place_that_cannot_be_written_is_one_line(monkeypatch, case):
    variable, value, expected = NO_TRACEBACK[case]
    monkeypatch.delenv("NANOCHAT_BASE_DIR", raising=False)
    monkeypatch.setenv(variable, value)
    message = stopped("run", "nano", "--manifest", NANO)
    assert expected in message and "NANOCHAT_BASE_DIR" in message and "\n" not in message


def test_an_unknown_user_without_home_is_told_what_to_set(monkeypatch):
    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.delenv("NANOCHAT_BASE_DIR", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for command in (("report",), ("chat",), ("run", "nano", "--manifest", NANO)):
        assert "set NANOCHAT_BASE_DIR" in stopped(*command)


def in_a_shell(script: str, **environment: str) -> subprocess.CompletedProcess:
    """Run bash with `nanochat` and `course` as commands of this very library."""
    functions = "".join(
        f'{name}() {{ "{sys.executable}" -m nanochat_lib.{module} "$@"; }}; '
        for name, module in (("nanochat", "cli"), ("course", "course.cli"))
    )
    return subprocess.run(
        ["bash", "-c", functions + script],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | environment,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.parametrize("command", ["nanochat --help", "course list"])
def test_a_reader_that_goes_ends_a_command_silently(command):
    done = in_a_shell(f"{command} | head -c 1 >/dev/null; sleep 0.2; {command} >&- ; true")
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    done = in_a_shell(f"set -o pipefail; {command} | (exec 0<&-; sleep 2)")
    assert done.returncode in (0, 141) and done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["nanochat --help", "course list"])
def test_a_full_disk_under_stdout_is_one_line(command):
    done = in_a_shell(f"{command} >/dev/full")
    assert done.returncode == 1 and "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_closed_standard_input_is_one_line():
    done = in_a_shell("nanochat chat <&-")
    assert done.returncode == 1 and done.stderr.startswith(
        "nanochat chat: standard input is closed"
    )


@pytest.mark.parametrize("columns", ["0", "1", "19"])
def test_a_terminal_of_no_width_is_taken_as_80_columns(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    with as_command("test"):
        print_report(EMPTY | {"stages": {"data": 1.0}}, Path("run"))
    assert "stage" in capsys.readouterr().out
