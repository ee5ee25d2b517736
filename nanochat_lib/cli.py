# Generated from chapters/20_capstone.py by `course build`; edit that file.
"""The command `nanochat`."""

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nanochat_lib.capstone.pipeline import nearest
from nanochat_lib.common import base_dir, run_dir
from nanochat_lib.terminal import as_command

__all__ = [
    "physical_cores",
    "RunArguments",
    "ReportArguments",
    "print_report",
    "run_command",
    "report_command",
    "chat_command",
    "serve_command",
    "export_command",
    "COMMANDS",
    "usage",
    "main",
]


def physical_cores() -> int:
    """Count the cores this process may use: hyperthreads once, and no more than a container's quota."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    siblings = {Path(topology.format(cpu)) for cpu in allowed}
    if siblings and all(path.exists() for path in siblings):
        cores = len({path.read_text(encoding="utf-8") for path in siblings})
    else:
        cores = len(allowed) or os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    limit, period = quota.read_text(encoding="utf-8").split() if quota.exists() else ("max", "1")
    return cores if limit == "max" else max(1, min(cores, round(int(limit) / int(period))))


@dataclass(frozen=True)
class RunArguments:
    """Run a profile of course.toml: data, tokenizer, base model, fine-tuning, evaluation, report.

    A stage whose settings, inputs and code have not changed is skipped, and one that was stopped
    continues, so the same command always finishes the run.
    """

    profile: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROFILE")]
    """name of a table [profile.NAME]"""
    start: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """run this stage and all after it again: data, tokenizer, base, mid, sft, rl, evaluation, report"""
    resume: bool = True
    """--no-resume starts again from the first stage"""
    name: str | None = None
    """name of the run's folder (default: the profile's name)"""
    manifest: Path | None = None
    """read profiles from this file instead of course.toml"""


@dataclass(frozen=True)
class ReportArguments:
    """Write a finished run's report again from its records, and print its tables."""

    run: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="RUN")] = None
    """name of the run (default: the newest)"""
    readme: Path | None = None
    """also write the results between the marks of this README"""
    record: bool = False
    """also keep the report and the loss curves in records/RUN of the course"""


def print_report(report: dict, run_folder: Path) -> None:
    """Print the tables, where the report lies and how to talk to the model."""
    from rich.console import Console

    from nanochat_lib.capstone import layout

    console = Console()
    tasks = layout.task_rows(report, layout.MODELS[1:])  # one more would not fit 80 columns
    tables = (layout.hard_rows(report), layout.bits_rows(report), layout.stage_rows(report))
    for rows in (tasks, *tables):
        console.print(layout.terminal_table(rows))
    talk = shlex.join([".venv/bin/nanochat", "chat", "--run", run_folder.name])
    for line in (f"report: {run_folder / 'report.md'}", f"talk to it: {talk}"):
        console.print(line, soft_wrap=True, markup=False)  # a [v2] in a name is no mark-up


def run_command(arguments: list[str]) -> None:
    """Run a profile, and print its report."""
    options = tyro.cli(RunArguments, prog="nanochat run", args=arguments)
    # These import torch, which takes seconds: only now, when the arguments are known to be good.
    from nanochat_lib.capstone.profiles import load_profile
    from nanochat_lib.capstone.record import read_json
    from nanochat_lib.capstone.run import run_profile

    profile = load_profile(options.profile, options.manifest)
    start = options.start or (None if options.resume else "data")
    name = profile.name if options.name is None else options.name
    run_folder = run_profile(profile, run_dir(name), start)
    print_report(read_json(run_folder / "report.json"), run_folder)


def report_command(arguments: list[str]) -> None:
    """Write a run's report again, and print it."""
    options = tyro.cli(ReportArguments, prog="nanochat report", args=arguments)
    from nanochat_lib.capstone.report import fill_readme, write_report, write_run_record
    from nanochat_lib.course.manifest import library_root

    runs = sorted(base_dir().glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    if not runs and options.run is None:
        raise ValueError(f"no run in {base_dir()}: make one with nanochat run laptop")
    run_folder = runs[-1].parent if options.run is None else run_dir(options.run)
    found = write_report(run_folder)
    if options.readme:
        fill_readme(options.readme, run_folder)
    if options.record:
        write_run_record(run_folder, library_root() / "records" / run_folder.name)
    print_report(found, run_folder)


def chat_command(arguments: list[str]) -> None:
    """Talk to a trained model."""
    for option, value in zip(arguments, arguments[1:]):
        if option in ("-p", "--prompt") and value.startswith("-"):
            hint = shlex.quote(f"--prompt={value}")
            raise ValueError(f"{option} needs a text; one that begins with a dash goes as {hint}")
    from nanochat_lib.serving.cli import ChatConfig, chat

    options = tyro.cli(ChatConfig, prog="nanochat chat", args=arguments)
    if options.prompt is None and sys.stdin is None:
        raise ValueError("standard input is closed: give one message with --prompt")
    chat(options)


def serve_command(arguments: list[str]) -> None:
    """Serve a trained model."""
    from nanochat_lib.serving.serve import ServeConfig, serve

    serve(tyro.cli(ServeConfig, prog="nanochat serve", args=arguments))


def export_command(arguments: list[str]) -> None:
    """Write a trained model for other places: as one HTML file, or as a folder for other engines."""
    kind, *rest = arguments or [""]
    if kind == "html":
        from nanochat_lib.serving.one_file import ExportConfig, export_html

        export_html(tyro.cli(ExportConfig, prog="nanochat export html", args=rest))
    elif kind == "hf":
        from nanochat_lib.serving.hugging_face import ExportHFConfig, export_hf

        export_hf(tyro.cli(ExportHFConfig, prog="nanochat export hf", args=rest))
    else:
        raise ValueError(
            "export what? nanochat export html writes one file that answers in a browser, nanochat export hf a "
            "folder for transformers and vLLM"
        )


COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "run": (run_command, "train a profile's model through all stages, resuming whatever is there"),
    "report": (report_command, "write and print the report of a finished run"),
    "chat": (chat_command, "talk to a trained model in the terminal"),
    "serve": (serve_command, "serve a trained model to programs, with OpenAI's API"),
    "export": (
        export_command,
        "html, hf: write a model as one page that answers by itself, or for vLLM",
    ),
}


def usage() -> str:
    """List the commands."""
    lines = [f"  nanochat {name:8}{summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(["usage:", *lines, "", "nanochat COMMAND --help lists a command's options"])


def main(arguments: list[str] | None = None) -> None:
    """Run one command; a mistake of the caller's ends in one line, not in a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name, *rest = arguments or ["help"]
    if name in ("-h", "--help", "help"):
        with as_command("nanochat"):
            print(usage())
        return
    if name not in COMMANDS:
        sys.exit(f"nanochat: no command {name!r}: {nearest(name, COMMANDS)}")
    # The OpenMP library reads these when torch loads it. Threads that wait by spinning for long, its
    # default, take the cores from each other as soon as a second program wants them.
    os.environ.setdefault("OMP_NUM_THREADS", str(physical_cores()))
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    with as_command(f"nanochat {name}"):
        try:
            COMMANDS[name][0](rest)
        except KeyboardInterrupt:
            again = shlex.join(["nanochat", *arguments])
            print(f"\nstopped; the same command continues: {again}")
            sys.exit(130)


if __name__ == "__main__":
    raise SystemExit(main())
