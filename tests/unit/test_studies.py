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
from nanochat_lib.tasks.practice import chat_mixture
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


def run_program(program: str, *arguments: str) -> str:
    """Run a program that may import the studies, in a process of its own; return what it prints."""
    start = f"import sys; sys.path.insert(0, {str(ROOT / 'studies')!r})\n"
    command = [sys.executable, "-c", start + program, *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_variant_of_the_step_learns_from_its_batch():
    program = """
import training_step as study
study.cpu_features = lambda: {"avx512_bf16"}  # build all of them, whatever processor this is
for name, variant in (study.ladder() | study.dead_ends()).items():
    before = float(variant.loss(*variant.batch))
    variant.step()
    variant.step()
    assert float(variant.loss(*variant.batch)) < before - 0.1, name
    print(name, variant.model.blocks[0].mlp.c_fc(variant.model.wte(variant.batch[0])).dtype)
"""
    lines = run_program(program).splitlines()
    assert len(lines) == 9 and "memory kept torch.float32" in lines
    assert "bfloat16 torch.bfloat16" in lines


def test_the_plain_way_is_plain():
    program = """
import training_quality as study
study.train_the_plain_way()
from nanochat_lib.model.gpt import GPT, GPTConfig
model = GPT(GPTConfig(n_layer=1))
study.loop.prepare(model, [], None)
print(type(model.lm_head).__name__, study.step.loss_function(model) is model)
"""
    assert run_program(program) == "Linear True\n"


@pytest.mark.parametrize("mode", ["eager", "bf16"])
def test_the_bench_times_this_library(mode):
    program = """
import json
import training_speed as study
study.CASES["tiny"] = (1, 64, 1, 16, 2, 100, 2)
print(json.dumps(study.measure("ours", "tiny", sys.argv[1])))
"""
    found = json.loads(run_program(program, mode).splitlines()[-1])
    assert found["tokens_per_second"] > 0 and found["peak_mb"] > 50
    assert 0 < found["share_of_gemm_peak"] < 1


def test_the_records_of_the_chapter_on_speed_are_whole():
    folder = ROOT / "records/training"
    quality = json.loads((folder / "quality.json").read_text(encoding="utf-8"))
    assert sorted(quality["runs"]) == [f"{way} {n}" for way in ("fast", "plain") for n in range(3)]
    step = json.loads((folder / "step.json").read_text(encoding="utf-8"))
    rungs = ["plain", "memory kept", "loss in slices", "few passes", "quick Newton-Schulz"]
    assert list(step["ladder"])[:5] == rungs
    _, product = step["roofline"]["product"]
    assert product < 1.05 * step["peak_gflops"]["float32"], "the peak was measured in a slow minute"
    speed = json.loads((folder / "speed.json").read_text(encoding="utf-8"))
    assert {"eager", "bf16"} <= set(speed["laptop"])


@pytest.mark.parametrize(
    "variant",
    [
        "as_it_is",
        "strangers_in_a_row",
        "without_value_embeddings",
        "rows_in_packing_order",
        "one_stage",
        "without_the_tool",
        "letters_without_spaces",
        "without_refusals",
    ],
)
def test_each_variant_of_the_chat_stages_changes_one_thing(variant):
    program = """
import json
import re
import contact
from nanochat_lib.capstone.profiles import load_profile
profile = getattr(contact, sys.argv[1])(load_profile("laptop"))
from nanochat_lib.capstone.stage_chat import stage_conversations
from nanochat_lib.capstone.stage_evaluation import all_tests
from nanochat_lib.data.tinyworld import World
from nanochat_lib.tasks.base import content_text
from nanochat_lib.training import finetune
mixture = stage_conversations("sft", profile.data, profile.chat)
answers = [content_text(mixture[i]["messages"][1]["content"]) for i in range(400)]
spelling = all_tests(World(0), 5)["spelling"]
numbers = list(range(50))
finetune.local_generator("a row").shuffle(numbers)
print(json.dumps({
    "shuffled": numbers != list(range(50)),
    "steps": profile.mid.steps > 1,
    "separate": profile.mid.separate and profile.sft.separate,
    "values": profile.base.model_config(512).has_value_embed(1),
    "tool": any(".count(" in a for a in answers),
    "spaces": any("# " in a and re.search(r": (\\w\\d? ){6}", a) and not re.search(r" \\w1 \\w2 \\w3 ", a)
                  for a in answers),
    "refusals": any("I do not know" in a for a in answers),
    "graded": all(spelling.evaluate(c, content_text(c["messages"][1]["content"])) for c in spelling),
}))
"""
    found = json.loads(run_program(program, variant))
    wrong = {
        "rows_in_packing_order": "shuffled",
        "one_stage": "steps",
        "strangers_in_a_row": "separate",
        "without_value_embeddings": "values",
        "without_the_tool": "tool",
        "letters_without_spaces": "spaces",
        "without_refusals": "refusals",
    }
    missing = [key for key, value in found.items() if not value]
    assert missing == ([wrong[variant]] if variant in wrong else [])


def test_the_records_of_the_chat_studies_hold_what_the_studies_run():
    program = """
import json
import capabilities
import contact
print(json.dumps({"studies": {k: v[1] for k, v in capabilities.STUDIES.items()}, "runs": contact.RUNS,
                  "about": capabilities.ABOUT, "seeds": contact.SEEDS}))
"""
    known = json.loads(run_program(program))
    paths = {path.stem: path for path in (ROOT / "records/chat").glob("*.json")}
    assert {"spelling", "identity"} <= set(paths) <= {*known["studies"], "runs"}
    for study, variants in known["studies"].items():
        if study not in paths:
            continue
        record = json.loads(paths[study].read_text(encoding="utf-8"))
        assert list(record["variants"]) == list(variants), study
        for name, row in record["variants"].items():
            values = [row[key] for key in row.keys() - {"about"}]
            assert {len(value) for value in values} == {len(row["seeds"])}, f"{study}.{name}"
            assert row["about"] == known["about"][name] and len(row["seeds"]) > 1


def test_the_variants_of_reinforcement_change_what_they_say():
    program = """
import dataclasses
import json
import reinforcement as study
from nanochat_lib.capstone.profiles import load_profile
from nanochat_lib.data.tinyworld import World
from nanochat_lib.tasks.base import content_text
from nanochat_lib.tasks.steps import TwoSteps
plain = load_profile("laptop").rl
changed = {}
for variant in study.ABOUT:
    config = dataclasses.replace(plain, **study.settings(variant, plain.seed))
    names = [f.name for f in dataclasses.fields(config)]
    changed[variant] = sorted(n for n in names if getattr(config, n) != getattr(plain, n))
task = TwoSteps(World(0), "test", 1)
truth = content_text(task[0]["messages"][1]["content"])
graded = {response: [study.not_wrong(task, task[0], response), study.says_it_only(task, task[0], response)]
          for response in (truth, truth + " 1000 9999", "I do not know that.")}
print(json.dumps({"changed": changed, "graded": list(graded.values())}))
"""
    found = json.loads(run_program(program))
    changed = found["changed"]
    for loss in ("grpo", "dr_grpo", "dapo", "cispo", "gspo"):
        assert changed[loss] == ["loss", "updates"]
    assert changed["reinforce"] == ["updates"] and changed["no_replay"] == ["replay"]
    assert changed["ten_times_the_rate"] == ["blend", "lr_scale", "replay"]
    for variant in ("as_it_is", "hole_in_the_grader", "hole_closed", "reinforce_0"):
        assert changed[variant] == []
    assert changed["reinforce_4"] == ["staleness"] and changed["cispo_16"] == ["loss", "staleness"]
    assert found["graded"] == [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]], "silence passes one of them"


def test_the_records_of_reinforcement_hold_what_the_studies_run():
    known = json.loads(
        run_program(
            "import json, reinforcement as s; print(json.dumps([s.STUDIES, s.ABOUT, s.STEPS]))"
        )
    )
    for study, variants in known[0].items():
        record = json.loads((ROOT / f"records/rl/{study}.json").read_text(encoding="utf-8"))
        assert sorted(record["variants"]) == sorted(variants)
        for name, row in record["variants"].items():
            assert row["about"] == known[1][name] and row["seeds"] == [0, 1]
            assert len(row["greedy"]) == len(row["first_contact"]) == 2
            assert len(row["curves"]["reward"]) == known[2]
    faults = json.loads((ROOT / "records/rl/faults.json").read_text(encoding="utf-8"))["variants"]
    hole, honest = faults["hole_in_the_grader"], faults["as_it_is"]
    assert hole["curves"]["reward"][-1] > honest["curves"]["reward"][-1], "the hole pays better"
    assert max(hole["greedy"]) < min(honest["greedy"]), "and teaches less"
