"""The study of TinyWorld still changes what it says it changes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, random, sys
sys.path.insert(0, sys.argv[1])
import tinyworld
import nanochat_lib.capstone.stage_data as stage_data
from nanochat_lib.capstone.stage_sft import chat_mixture
from nanochat_lib.data.tinyworld import World
from nanochat_lib.tasks.tinyworld import FactChoice
getattr(tinyworld, sys.argv[2])()
world = World(0)
first = list(stage_data.curriculum(world, 40, 0, 0))
mixture = list(stage_data.curriculum(world, 0, 200, 0))
choice = FactChoice(world, "train", 5)
answers = [c["messages"][1]["content"] for c in choice]
print(json.dumps({
    "lists": sum("\\n- " in text or text.startswith("- ") for text in first),
    "brackets": sum("(B)" in text for text in first),
    "sums": sum("*" in text or "+" in text for text in mixture),
    "question": choice[0]["messages"][0]["content"],
    "answers": answers,
    "graded": all(choice.evaluate(c, a) for c, a in zip(choice, answers)),
    "trained": len(chat_mixture(world, 50)),
}))
"""


@pytest.mark.parametrize(
    "variant",
    ["as_it_is", "letter_at_once", "letters_in_brackets", "sums_written_out", "no_lists_first"],
)
def test_each_variant_changes_one_thing(variant):
    command = [sys.executable, "-c", PROGRAM, str(ROOT / "studies"), variant]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["brackets"] > 0) == (variant == "letters_in_brackets")
    assert ("(A)" in found["question"]) == (variant == "letters_in_brackets")
    assert (found["sums"] > 0) == (variant == "sums_written_out")
    assert all(len(a) == 2 for a in found["answers"]) == (variant == "letter_at_once")
    assert (found["lists"] < 8) == (variant == "no_lists_first"), found["lists"]
    assert found["graded"] and found["trained"] == 50


def test_the_record_names_every_variant():
    record = json.loads((ROOT / "records/tinyworld/ablations.json").read_text(encoding="utf-8"))
    source = (ROOT / "studies/tinyworld.py").read_text(encoding="utf-8")
    assert all(f"def {variant}() -> None:" in source for variant in record) and len(record) == 5
