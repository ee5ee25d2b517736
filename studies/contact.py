"""Take one idea at a time out of the chat stages, run the laptop profile, and record what is left.

`make study-contact` writes records/chat/ablations.json. Each variant is a full run, about seven minutes on
two cores; one that is in the record is not repeated.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import nanochat_lib.tasks.practice as practice
import nanochat_lib.tasks.unknown as unknown
from nanochat_lib.capstone.profiles import Profile, load_profile
from nanochat_lib.capstone.run import run_profile
from nanochat_lib.common import atomic_write
from nanochat_lib.machine import machine_summary
from nanochat_lib.tasks.contact import Spell
from nanochat_lib.tasks.spelling import count_aloud
from nanochat_lib.training import finetune

RECORD = Path(__file__).parents[1] / "records/chat/ablations.json"


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


def without_text(profile: Profile) -> Profile:
    """Replay no pretraining text in either stage."""
    return dataclasses.replace(
        profile,
        mid=dataclasses.replace(profile.mid, text_fraction=0.0),
        sft=dataclasses.replace(profile.sft, text_fraction=0.0),
    )


def without_simple_spelling(profile: Profile) -> Profile:
    """Never ask for the letters of a word alone."""
    for shares in (unknown.MID_SHARES, unknown.SFT_SHARES):
        del shares[Spell]
    practice.SpellOnly = practice.SmallTalk  # in dialogues
    return profile


def without_the_tool(profile: Profile) -> Profile:
    """Count aloud, and do not check with the calculator."""

    def count_answer(word: str, letter: str) -> list[dict]:
        text = f"I spell {word}: {count_aloud(word, letter)}.\n#### {word.count(letter)}"
        return [{"type": "text", "text": text}]

    replace_everywhere("count_answer", count_answer)
    return profile


def letters_without_spaces(profile: Profile) -> Profile:
    """Spell in one piece, "st1rawber2r3y", so that letters share tokens."""

    def joined(word: str, letter: str) -> str:
        return count_aloud(word, letter).replace(" ", "")

    replace_everywhere("count_aloud", joined)
    return profile


def without_refusals(profile: Profile) -> Profile:
    """Leave out everything that is to be refused."""
    for kind in (unknown.Strangers, unknown.OtherTopics, unknown.OtherTongues, unknown.Noise):
        del unknown.SFT_SHARES[kind]
    return profile


def replace_everywhere(name: str, function: Callable) -> None:
    """Put a function in the place of another in every module that has it by name."""
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("nanochat_lib.") and hasattr(module, name):
            setattr(module, name, function)


VARIANTS = (
    as_it_is,
    rows_in_packing_order,
    one_stage,
    without_text,
    without_simple_spelling,
    without_the_tool,
    letters_without_spaces,
    without_refusals,
)


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
    profile = variant(load_profile("laptop"))
    with TemporaryDirectory() as folder:
        run_folder = run_profile(profile, Path(folder) / name)
        report = json.loads((run_folder / "report.json").read_text(encoding="utf-8"))
    contact = report["contact"]
    machine = {key: value for key, value in machine_summary().items() if key != "disk_free_gb"}
    record[name] = {
        "changed": (variant.__doc__ or "").strip(),
        "tasks": {task: scores["sft"] for task, scores in report["tasks"].items()},
        "bits_per_byte": {text: bits["sft"] for text, bits in report["bits_per_byte"].items()},
        "contact": {key: contact[key] for key in ("endless", "refused", "known")},
        "seconds": round(sum(report["stages"].values())),
        "machine": machine,
    }
    atomic_write(RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
