"""The rules of skipping, continuing and repeating, on stages that take no time."""

import json
import random
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from nanochat_lib.capstone import pipeline
from nanochat_lib.capstone.pipeline import Stage, code_skeleton, file_sizes, read_record, run_stages


@dataclass(frozen=True)
class WordSettings:
    text: str = "one two two"
    shout: bool = False


@dataclass(frozen=True)
class Settings:
    words: WordSettings = WordSettings()
    limit: int = 10


def split(folder: Path, inputs: dict[str, Path], words: WordSettings) -> dict:
    (folder / "words.txt").write_text("\n".join(words.text.split()), encoding="utf-8")
    return {"words": len(words.text.split())}


def count(folder: Path, inputs: dict[str, Path], limit: int) -> dict:
    words = (inputs["split"] / "words.txt").read_text(encoding="utf-8").split()[:limit]
    (folder / "counts.json").write_text(
        json.dumps({word: words.count(word) for word in words}), encoding="utf-8"
    )
    return {}


SPLIT = Stage("split", split, settings=("words",))
COUNT = Stage("count", count, needs=("split",), settings=("limit",))
STAGES = (SPLIT, COUNT)


def reasons(folder: Path, settings: Settings = Settings(), stages=STAGES, **options) -> list[str]:
    """Run, and return why each stage ran."""
    lines: list[str] = []
    run_stages(stages, settings, folder, announce=lines.append, **options)
    return [line.split(": ", 1)[1] for line in lines if ": done" not in line]


def test_first_run_does_everything_and_second_nothing(tmp_path):
    assert reasons(tmp_path) == ["not run yet", "not run yet"]
    assert json.loads((tmp_path / "count/counts.json").read_text(encoding="utf-8")) == {
        "one": 1,
        "two": 2,
    }
    assert reasons(tmp_path) == ["up to date", "up to date"]


def test_changed_setting_reruns_its_stage_and_what_follows(tmp_path):
    reasons(tmp_path)
    other = replace(Settings(), words=WordSettings(text="three"))
    assert reasons(tmp_path, other) == [
        "settings changed: words.text",
        "inputs changed: split",
    ]
    assert json.loads((tmp_path / "count/counts.json").read_text(encoding="utf-8")) == {"three": 1}


def test_setting_of_a_later_stage_leaves_earlier_ones_alone(tmp_path):
    reasons(tmp_path)
    assert reasons(tmp_path, replace(Settings(), limit=1)) == [
        "up to date",
        "settings changed: limit",
    ]


def test_setting_that_no_stage_declares_changes_nothing(tmp_path):
    reasons(tmp_path)
    assert reasons(tmp_path, stages=(SPLIT, replace(COUNT, needs=("split",)))) == ["up to date"] * 2


def test_changed_code_reruns(tmp_path):
    reasons(tmp_path)

    def split_differently(folder: Path, inputs: dict[str, Path], words: WordSettings) -> dict:
        (folder / "words.txt").write_text("\n".join(words.text.split("o")), encoding="utf-8")
        return {}

    split_differently.__qualname__ = "split"  # an edit in place keeps the name
    assert reasons(tmp_path, stages=(replace(SPLIT, run=split_differently), COUNT)) == [
        "code changed: split",
        "inputs changed: split",
    ]


def test_code_of_imported_modules_counts_through_any_number_of_steps(tmp_path, monkeypatch):
    library = {
        "nanochat_lib.far": "LIMIT = 1",
        "nanochat_lib.near": "def f():\n    from nanochat_lib import far\n    return far.LIMIT",
        "nanochat_lib.stage": "from nanochat_lib.near import f",
        "nanochat_lib.unrelated": "x = 1",
    }
    monkeypatch.setattr(pipeline, "module_source", library.get)

    def run(folder: Path, inputs: dict[str, Path]) -> dict:
        return {}

    run.__module__ = "nanochat_lib.stage"
    before = pipeline.code_fingerprints(run)
    assert list(before) == ["nanochat_lib.far", "nanochat_lib.near", "nanochat_lib.stage"]
    library["nanochat_lib.far"] = "LIMIT = 2"
    after = pipeline.code_fingerprints(run)
    assert {name for name in before if before[name] != after[name]} == {"nanochat_lib.far"}


def test_a_file_of_phrases_counts_for_the_stages_that_read_it(tmp_path, monkeypatch):
    from nanochat_lib.capstone.run import STAGES as real

    stages = {stage.name: stage for stage in real}
    reached = {name: pipeline.code_fingerprints(stage.run) for name, stage in stages.items()}
    for name in ("mid", "sft", "evaluation"):
        assert {"data/phrases.toml", "data/first_messages.tsv"} <= reached[name].keys()
    assert "data/phrases.toml" not in reached["tokenizer"] | reached["base"]
    changed = tmp_path / "phrases.toml"
    changed.write_text("another phrase", encoding="utf-8")
    monkeypatch.setattr(pipeline, "data_files", lambda: [changed])
    after = pipeline.code_fingerprints(stages["sft"].run)
    assert after["data/phrases.toml"] != reached["sft"]["data/phrases.toml"]


def test_comments_docstrings_and_layout_are_not_code():
    plain = "def f(x):\n    return x + 1\n"
    dressed = 'def f(x):\n    """Add."""\n    # why\n    return x+1\n'
    redressed = 'def f(x):\n    """Add one."""\n    return (x\n + 1)\n'
    assert code_skeleton(dressed) == code_skeleton(redressed)
    assert code_skeleton(plain) != code_skeleton(plain.replace("1", "2"))
    assert code_skeleton('x = "a"') != code_skeleton('x = "b"')


def test_every_real_stage_sees_the_code_below_it():
    from nanochat_lib.capstone.run import STAGES as real

    reached = {stage.name: pipeline.code_fingerprints(stage.run).keys() for stage in real}
    assert "nanochat_lib.model.gpt" in reached["base"] & reached["evaluation"]
    assert "nanochat_lib.training.finetune" in reached["sft"] - reached["base"]
    assert "nanochat_lib.data.tinyworld" in reached["data"]
    assert not any("training" in name for name in reached["data"] | reached["tokenizer"])


def test_start_repeats_a_stage_and_what_follows(tmp_path):
    reasons(tmp_path)
    assert reasons(tmp_path, start="count") == ["up to date", "not run yet"]
    assert reasons(tmp_path, start="split") == ["not run yet", "not run yet"]


def test_unknown_start_names_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="no stage 'cuont': did you mean 'count'"):
        reasons(tmp_path, start="cuont")


@pytest.mark.parametrize("damage", ["delete", "truncate"])
def test_missing_or_damaged_result_is_made_again(tmp_path, damage):
    reasons(tmp_path)
    result = tmp_path / "split/words.txt"
    result.unlink() if damage == "delete" else result.write_text("", encoding="utf-8")
    assert reasons(tmp_path) == ["words.txt is missing or has another size", "up to date"]
    assert result.read_text(encoding="utf-8") == "one\ntwo\ntwo"


def test_result_of_other_settings_is_removed_first(tmp_path):
    def parts(folder: Path, inputs: dict[str, Path], words: WordSettings) -> dict:
        for word in words.text.split():
            (folder / word).mkdir()
            (folder / word / "part.txt").write_text(word, encoding="utf-8")
        return {}

    stages = (replace(SPLIT, run=parts),)
    reasons(tmp_path, replace(Settings(), words=WordSettings(text="one two")), stages)
    reasons(tmp_path, replace(Settings(), words=WordSettings(text="new")), stages)
    assert set(file_sizes(tmp_path / "split")) == {"new/part.txt"}
    assert not (tmp_path / "split/one").exists()


CAREFUL = (replace(SPLIT, writes=("words.txt",)), COUNT)


@pytest.mark.parametrize(
    "state", ["never ran", "done", "killed while it ran", "killed while it cleaned"]
)
@pytest.mark.parametrize("name", ["notes.md", "drafts/words.txt", "words.txt.bak"])
def test_files_of_others_stop_a_run_before_anything_is_removed(tmp_path, state, name):
    if state != "never ran":
        reasons(tmp_path, stages=CAREFUL)
        record = read_record(tmp_path / "split")
        if state == "killed while it ran":
            record = {key: record[key] for key in ("stage", "fingerprint", "wanted")}
            record["state"] = "running"
        elif state == "killed while it cleaned":
            record["state"] = "removing"
        (tmp_path / "split/stage.json").write_text(json.dumps(record), encoding="utf-8")
    mine = tmp_path / "split" / name
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("mine", encoding="utf-8")
    before = file_sizes(tmp_path, ("*.txt", "*.md", "*.bak"))
    for start in (None, "split"):
        with pytest.raises(ValueError, match=f"split/{name} was not written by this run: move it"):
            other = replace(Settings(), words=WordSettings(text="other"))
            reasons(tmp_path, other, CAREFUL, start=start)
        assert before.items() <= file_sizes(tmp_path).items()
    mine.unlink()
    assert len(reasons(tmp_path, other, CAREFUL)) == 2  # out of the way, and the run goes on


def test_a_file_of_others_in_a_late_stage_stops_the_run_before_the_first_works(tmp_path):
    (tmp_path / "count").mkdir()
    (tmp_path / "count/chapter1.txt").write_text("of a thesis", encoding="utf-8")
    with pytest.raises(ValueError, match="count/chapter1.txt was not written by this run"):
        reasons(tmp_path)
    assert not (tmp_path / "split").exists()


def test_notes_beside_a_training_do_not_stop_it_from_continuing(tmp_path):
    def fail_once(folder: Path, inputs: dict[str, Path]) -> dict:
        if not (folder / "part").exists():
            (folder / "part").write_text("half", encoding="utf-8")
            raise KeyboardInterrupt
        return {}

    stages = (Stage("work", fail_once, resumes=True, writes=("part",)),)
    with pytest.raises(KeyboardInterrupt):
        reasons(tmp_path, stages=stages)
    (tmp_path / "work/notes.md").write_text("rate 0.02 looks good", encoding="utf-8")
    assert reasons(tmp_path, stages=stages) == ["continues where it was stopped"]
    assert read_record(tmp_path / "work")["files"].keys() == {"part"}
    assert (tmp_path / "work/notes.md").exists()


def test_a_kill_between_two_deletions_leaves_the_proof_and_no_result(tmp_path, monkeypatch):
    reasons(tmp_path, stages=CAREFUL)
    other = replace(Settings(), words=WordSettings(text="other"))

    def killed(folder, names):
        raise KeyboardInterrupt

    monkeypatch.setattr("nanochat_lib.capstone.record.remove_files", killed)
    with pytest.raises(KeyboardInterrupt):
        reasons(tmp_path, other, CAREFUL)
    monkeypatch.undo()
    assert reasons(tmp_path, stages=CAREFUL) == ["not run yet", "up to date"]


@pytest.mark.parametrize("text", ["", "{", '["mine"]', '{"state": "done"}', "caf\xe9"])
def test_a_damaged_record_is_named_and_nothing_is_removed(tmp_path, text):
    reasons(tmp_path)
    (tmp_path / "split/stage.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"split/stage.json .*: move .* away"):
        reasons(tmp_path)
    assert (tmp_path / "split/words.txt").exists()


def test_failing_stage_stays_unfinished_and_only_a_resuming_one_keeps_its_files(tmp_path):
    for resumes in (True, False):
        attempts: list[int] = []

        def fail_once(folder: Path, inputs: dict[str, Path], log=attempts) -> dict:
            log.append(len(list(folder.glob("part"))))
            (folder / "part").write_text("half", encoding="utf-8")
            if len(log) == 1:
                raise KeyboardInterrupt
            return {}

        stages = (Stage("work", fail_once, resumes=resumes),)
        folder = tmp_path / str(resumes)
        with pytest.raises(KeyboardInterrupt):
            run_stages(stages, None, folder, announce=lambda line: None)
        assert read_record(folder / "work")["state"] == "running"
        assert reasons(folder, stages=stages) == ["continues where it was stopped"]
        assert attempts == [0, int(resumes)]


def test_seconds_add_up_over_attempts(tmp_path):
    (tmp_path / "work").mkdir()
    stages = (Stage("work", split, settings=("words",)),)
    run_stages(stages, Settings(), tmp_path, announce=lambda line: None)
    record = read_record(tmp_path / "work")
    (tmp_path / "work/stage.json").write_text(
        json.dumps(record | {"state": "running"}), encoding="utf-8"
    )
    (tmp_path / "work/seconds.json").write_text("100.0", encoding="utf-8")
    run_stages(stages, Settings(), tmp_path, announce=lambda line: None)
    assert 100 < read_record(tmp_path / "work")["seconds"] < 101


def test_two_processes_never_share_a_run(tmp_path):
    code = f"""
    from pathlib import Path
    from nanochat_lib.capstone.pipeline import only_one
    with only_one(Path({str(tmp_path)!r})):
        print("locked", flush=True)
        input()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(ValueError, match="another process is working in"):
            reasons(tmp_path)
        other.kill()  # no clean-up: the lock must die with its holder
        other.wait()
    assert reasons(tmp_path) == ["not run yet", "not run yet"]


KILLED = """
import json, sys, time
from pathlib import Path
from nanochat_lib.capstone.pipeline import Stage, run_stages
from nanochat_lib.common import atomic_write

def plain(folder, inputs):
    for i in range(20):
        (folder / f"{i}.txt").write_text(str(i))
        time.sleep(0.005)
    return {"files": len(list(folder.glob("*.txt")))}  # not the clock, which comes after a second

def resuming(folder, inputs):
    files = sorted((inputs["plain"]).glob("*.txt"))
    for path in files:
        if not (folder / path.name).exists():
            atomic_write(folder / path.name, path.read_text() * 2)
            time.sleep(0.005)
    return {"sum": sum(int(path.read_text()) for path in folder.glob("*.txt"))}

print("started", flush=True)
stages = (Stage("plain", plain), Stage("resuming", resuming, needs=("plain",), resumes=True))
records = run_stages(stages, None, Path(sys.argv[1]), announce=lambda line: None)
print(json.dumps({name: [r["fingerprint"], r["files"], r["result"]] for name, r in records.items()}))
"""


def test_kill_at_random_moments_changes_nothing(tmp_path):
    script = tmp_path / "stages.py"
    script.write_text(KILLED, encoding="utf-8")

    def start(folder: str) -> subprocess.Popen:
        command = [sys.executable, str(script), str(tmp_path / folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"started\n"
        return process

    undisturbed = start("a").communicate()[0]
    rng, killed = random.Random(0), 0
    # From early to late, so that the first attempts surely die and the last come far.
    for seconds in sorted(rng.uniform(0.0, 0.3) for _ in range(12)):
        process = start("b")
        time.sleep(seconds)
        killed += process.poll() is None
        process.kill()
        process.communicate()
    assert killed >= 3, "most attempts finished first: little was tested"
    assert start("b").communicate()[0] == undisturbed
