"""Take one idea at a time out of TinyWorld, run the whole laptop profile, and record what is left.

`make study-tinyworld` writes records/tinyworld/ablations.json; the chapter on TinyWorld reads it.
Each variant is a full run, about six minutes on two cores; one that is in the record is not repeated.
"""

import json
import random
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nanochat_lib.data.synthetic as synthetic
from nanochat_lib.capstone.profiles import load_profile
from nanochat_lib.capstone.run import run_profile
from nanochat_lib.common import atomic_write
from nanochat_lib.data.synthetic import list_document, word_problem
from nanochat_lib.data.tinyworld import World
from nanochat_lib.machine import machine_summary
from nanochat_lib.tasks.tinyworld import FactChoice

RECORD = Path(__file__).parents[1] / "records/tinyworld/ablations.json"
OPTION = re.compile(r"^(- \w+) ([A-G])$", re.MULTILINE)


def as_it_is() -> None:
    """Change nothing: what all others are compared with."""


def letter_at_once() -> None:
    """Answer a multiple choice with the letter alone, and grade the letter alone."""
    make = FactChoice.make

    def only_letter(task: FactChoice, rng: random.Random) -> dict:
        conversation = make(task, rng)
        conversation["messages"][-1]["content"] = f"{conversation['letter']}."
        return conversation

    def is_letter(task: FactChoice, conversation: dict, response: str) -> bool:
        return re.findall(r"\b[A-D]\b", response) == [conversation["letter"]]

    FactChoice.make, FactChoice.evaluate = only_letter, is_letter


def letters_in_brackets() -> None:
    """Put the letters of lists and options in brackets: "- soup (B)"."""
    make = FactChoice.make

    def bracketed(task: FactChoice, rng: random.Random) -> dict:
        conversation = make(task, rng)
        question = conversation["messages"][0]
        question["content"] = OPTION.sub(r"\1 (\2)", question["content"])
        return conversation

    def bracketed_list(world: World, rng: random.Random) -> str:
        return OPTION.sub(r"\1 (\2)", list_document(world, rng))

    FactChoice.make = bracketed
    replace_maker("list_document", bracketed_list)


def sums_written_out() -> None:
    """Let pretraining read "24/6=4" where it reads the numbers and the result."""

    def written_out(world: World, rng: random.Random) -> str:
        lines = []
        for _ in range(rng.randint(2, 3)):
            problem = word_problem(rng, heldout=False)
            lines.append(
                f"{problem.question} {problem.expression}={problem.result}. {problem.answer}"
            )
        return "\n".join(lines)

    replace_maker("sums_document", written_out)


def no_lists_first() -> None:
    """Leave out the lists that open the curriculum; as many documents of the mixture come instead."""
    curriculum = synthetic.curriculum

    def mixture_only(world: World, warmup_documents: int, documents: int, seed: int = 0):
        if documents == 0:
            return synthetic.mixed_documents(world, warmup_documents, "instead", seed)
        return curriculum(world, 0, documents, seed)

    import nanochat_lib.capstone.stage_data as stage_data

    stage_data.curriculum = mixture_only


def replace_maker(name: str, maker) -> None:
    """Put another writer in the place of one kind of document."""
    synthetic.MAKERS = tuple(
        (maker if old.__name__ == name else old, share) for old, share in synthetic.MAKERS
    )
    setattr(synthetic, name, maker)


VARIANTS = (as_it_is, letter_at_once, letters_in_brackets, sums_written_out, no_lists_first)


def main(name: str | None = None) -> None:
    """Run the variants that the record lacks, each in a process of its own; or one, by name."""
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    if name is None:
        import subprocess

        for variant in VARIANTS:
            if variant.__name__ not in record:
                subprocess.run([sys.executable, __file__, variant.__name__], check=True)
        return
    variant = {v.__name__: v for v in VARIANTS}[name]
    variant()
    with TemporaryDirectory() as folder:
        run_folder = run_profile(load_profile("laptop"), Path(folder) / name)
        report = json.loads((run_folder / "report.json").read_text(encoding="utf-8"))
    record[name] = {
        "changed": (variant.__doc__ or "").strip(),
        "tasks": {task: scores["sft"] for task, scores in report["tasks"].items()},
        "seconds": round(sum(report["stages"].values())),
        "machine": machine_summary(),
    }
    for entry in record.values():
        entry["machine"].pop("disk_free_gb", None)  # of no interest, and of one moment
    atomic_write(RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
