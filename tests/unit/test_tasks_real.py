"""The loaders against samples of the real data sets, and our own rows with their known traps."""

import json
import os
from pathlib import Path

import pytest

from nanochat_lib.tasks.arc import ARC
from nanochat_lib.tasks.base import content_text
from nanochat_lib.tasks.custom_json import CustomJSON
from nanochat_lib.tasks.diets import web_diet
from nanochat_lib.tasks.gsm8k import GSM8K, final_number, split_calculations
from nanochat_lib.tasks.mmlu import MMLU
from nanochat_lib.tasks.rows import load_rows
from nanochat_lib.tasks.smoltalk import SmolTalk
from nanochat_lib.tokenizer.conversation import validate_conversation

DATA = Path(os.environ.get("NANOCHAT_TEST_DATA", ""))
real = pytest.mark.skipif(
    not os.environ.get("NANOCHAT_TEST_DATA"), reason="NANOCHAT_TEST_DATA names no folder of samples"
)


@pytest.fixture(autouse=True, scope="module")
def quiet_cache(tmp_path_factory):
    """Keep the data sets' cache inside the test's folder."""
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = before


def reference(conversation: dict) -> str:
    return content_text(conversation["messages"][-1]["content"])


def write(path: Path, rows: list) -> Path:
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        encoding="utf-8",
    )
    return path


@real
@pytest.mark.parametrize(
    ("make", "folder", "size"),
    [
        (lambda p: ARC("ARC-Easy", "test", p), "arc/ARC-Easy-test.jsonl", 64),
        (lambda p: ARC("ARC-Challenge", "test", p), "arc/ARC-Challenge-test.jsonl", 64),
        (lambda p: MMLU("all", "test", p), "mmlu/test.jsonl", 171),
        (lambda p: MMLU("all", "dev", p), "mmlu/dev.jsonl", 285),
    ],
)
def test_multiple_choice_samples(make, folder, size):
    task = make(DATA / folder)
    raw = [json.loads(line) for line in (DATA / folder).open(encoding="utf-8")]
    assert len(task) == size == len(raw) and task.floor == 0.25
    for conversation, row in zip(task, raw):
        validate_conversation(conversation)
        answer = row["answerKey"] if "answerKey" in row else "ABCD"[row["answer"]]
        assert reference(conversation) == answer and task.evaluate(conversation, answer)
        wrong = [letter for letter in conversation["letters"] if letter != answer]
        assert len(wrong) == 3 and not any(task.evaluate(conversation, letter) for letter in wrong)
        question = conversation["messages"][0]["content"]
        choices = row["choices"]["text"] if "answerKey" in row else row["choices"]
        assert question.startswith(row["question"])
        assert f"- {choices['ABCD'.index(answer)]} ({answer})" in question


@real
@pytest.mark.parametrize(("name", "size"), [("train", 256), ("test", 128)])
def test_gsm8k_samples(name, size):
    task = GSM8K(name, DATA / f"gsm8k/{name}.jsonl")
    assert len(task) == size
    for conversation in task:
        parts = conversation["messages"][-1]["content"]
        validate_conversation(conversation)
        assert task.evaluate(conversation, reference(conversation))
        truth = final_number(reference(conversation))
        assert task.evaluate(conversation, f"#### {float(truth):,.1f}")
        assert not task.evaluate(conversation, f"#### {truth + 1}")
        assert not task.evaluate(conversation, f"#### 1{truth}") and not task.evaluate(
            conversation, ""
        )
        assert "<<" not in reference(conversation)
        assert [p["type"] for p in parts].count("python") == [p["type"] for p in parts].count(
            "python_output"
        )


@real
def test_gsm8k_calculations_agree_with_the_data():
    """For all 1,241 marked calculations our calculator gives the number that the authors wrote."""
    seen = 0
    for name in ("train", "test"):
        for line in (DATA / f"gsm8k/{name}.jsonl").open(encoding="utf-8"):
            answer = json.loads(line)["answer"]
            written = [call.split(">>")[0].split("=")[1] for call in answer.split("<<")[1:]]
            outputs = [
                p["text"] for p in split_calculations(answer) if p["type"] == "python_output"
            ]
            assert len(written) == len(outputs)
            for theirs, ours in zip(written, outputs):
                assert float(theirs) == pytest.approx(float(ours), abs=0.01)
                seen += 1
    assert seen == 1241


@real
def test_gsm8k_grader_agrees_with_published_verdicts():
    """Four models' answers with their is_correct; their last line reads "A: 18"."""
    task = GSM8K("test", DATA / "gsm8k/test.jsonl")
    rows = [json.loads(line) for line in (DATA / "gsm8k/example_model_solutions.jsonl").open()]
    checked = 0
    for conversation, row in zip(task, rows):
        assert conversation["messages"][0]["content"].split() == row["question"].split()
        for name in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
            solution = row[name]["solution"].replace("\nA: ", "\n#### ")
            assert task.evaluate(conversation, solution) == row[name]["is_correct"], solution
            checked += 1
    assert checked == 512


@real
def test_chat_and_identity_samples():
    chat = SmolTalk("train", DATA / "chat_messages/conversations.jsonl")
    identity = CustomJSON(DATA / "identity_conversations/identity_conversations.jsonl")
    assert (len(chat), len(identity)) == (64, 100)
    roles = [conversation["messages"][0]["role"] for conversation in chat]
    assert set(roles) == {"system", "user"}
    assert max(len(conversation["messages"]) for conversation in identity) == 24
    with pytest.raises(ValueError, match="no grader"):
        chat.evaluate(chat[0], "hello")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 59,616", "59616"),
        ("#### -3", "-3"),
        ("####7", "7"),
        ("#### $1,200.50", "1200.5"),
        ("#### 18.", "18"),
        ("#### .5", "0.5"),
        ("#### 1\n#### 2", "2"),
        ("#### -1,875 dollars", "-1875"),
        ("12", None),
        ("#### none", None),
        ("", None),
    ],
)
def test_final_number(text, number):
    from decimal import Decimal

    assert final_number(text) == (None if number is None else Decimal(number))


def test_calculations_become_parts_that_join_to_the_answer():
    parts = split_calculations("So <<48/2=24>>24 and <<f(x)=9>>9.\n#### 33")
    kinds = ["text", "python", "python_output", "text", "python", "python_output", "text"]
    assert [p["type"] for p in parts] == kinds
    assert [p["text"] for p in parts][1:3] == ["48/2", "24"], "the calculator's result"
    assert parts[5]["text"] == "9", "where it cannot calculate, the data's result stays"
    assert "".join(p["text"] for p in parts if p["type"] == "text") == "So 24 and 9.\n#### 33"


def test_arc_with_numbers_for_labels_and_three_options(tmp_path):
    rows = [
        {
            "question": "a?",
            "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]},
            "answerKey": "3",
        },
        {"question": "b?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A"},
    ]
    task = ARC(path=write(tmp_path / "arc.jsonl", rows))
    assert task[0]["letters"] == ["A", "B", "C"] and reference(task[0]) == "C"
    assert task.floor == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert not task.evaluate(task[1], "C")
    rows[0]["answerKey"] = "C"
    with pytest.raises(ValueError, match="not among the labels"):
        ARC(path=write(tmp_path / "bad.jsonl", rows))[0]


def test_mmlu_auxiliary_train_is_wrapped_once_more(tmp_path):
    row = {"question": "q?", "subject": "", "choices": ["a", "b", "c", "d"], "answer": 2}
    task = MMLU(split="auxiliary_train", path=write(tmp_path / "aux.jsonl", [{"train": row}]))
    assert reference(task[0]) == "C"


def test_rows_come_from_parquet_too(tmp_path):
    import pyarrow
    import pyarrow.parquet

    row = {"question": "Two and two?", "answer": "<<2+2=4>>4\n#### 4"}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "rows.parquet")
    task = GSM8K(path=tmp_path / "rows.parquet")
    assert task.evaluate(task[0], "#### 4.0")


def test_smoltalk_names_the_row_whose_roles_are_wrong(tmp_path):
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    task = SmolTalk(path=write(tmp_path / "chat.jsonl", [{"messages": messages}]))
    with pytest.raises(ValueError, match="row 0: message 1"):
        task[0]


QUESTION = {"question": "a?", "choices": ["x", "y"], "answer": 1}
SCIENCE = {"question": "a?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A"}
SUM = {"question": "a?", "answer": "#### 2"}


@pytest.mark.parametrize(
    ("task", "row", "complaint"),
    [
        (GSM8K, SUM | {"question": None}, "column question is None, expected str"),
        (GSM8K, {"question": "a?"}, "column answer is missing, among question"),
        (GSM8K, SUM | {"answer": 2}, "column answer is 2, expected str"),
        (GSM8K, SUM | {"answer": "it is 2"}, "the answer ends 'it is 2'"),
        (MMLU, QUESTION | {"answer": None}, "column answer is None, expected int"),
        (MMLU, QUESTION | {"answer": "B"}, "column answer is 'B', expected int"),
        (MMLU, QUESTION | {"choices": None}, "column choices is None, expected list"),
        (MMLU, QUESTION | {"choices": ["x", None]}, "the options are .*None.*, expected text"),
        (MMLU, QUESTION | {"answer": 2}, "option 2 of 2"),
        (ARC, SCIENCE | {"answerKey": None}, "column answerKey is None, expected str"),
        (ARC, SCIENCE | {"choices": {"text": ["x", "y"]}}, "column label is missing, among text"),
        (ARC, SCIENCE | {"choices": {"text": ["x"], "label": ["A"]}}, "option 0 of 1"),
        (SmolTalk, {"text": "a"}, "a conversation is a dict"),
        (SmolTalk, {"messages": None}, "a conversation is a dict"),
        (SmolTalk, {"messages": [{"role": "user", "content": None}]}, "message 0 .user.: content"),
    ],
)
def test_a_row_that_holds_no_conversation_is_named_with_its_file(tmp_path, task, row, complaint):
    path = write(tmp_path / "odd [1].jsonl", [row])
    with pytest.raises(ValueError, match=r"odd \[1\]\.jsonl, row 0: .*" + complaint):
        task(path=path)[0]


def test_custom_json_reads_lists_and_dicts_and_keeps_odd_line_ends(tmp_path):
    messages = [
        {"role": "user", "content": "one\u2028two"},
        {"role": "assistant", "content": "ok"},
    ]
    path = write(tmp_path / "own.jsonl", [messages, {"messages": messages}])
    task = CustomJSON(path)
    assert len(task) == 2 and task[0]["messages"][0]["content"] == "one\u2028two"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{oops\n", "line 1"),
        ('\n[{"role": "user"}]\n', "line 2: message 0"),
        ("", "no conversation"),
    ],
)
def test_custom_json_names_the_line(tmp_path, text, complaint):
    (tmp_path / "own.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=complaint):
        CustomJSON(tmp_path / "own.jsonl")


def test_missing_and_foreign_files_are_named(tmp_path):
    for name in ("absent.jsonl", "rows.csv"):
        with pytest.raises(ValueError, match=name):
            load_rows(tmp_path / name, "openai/gsm8k")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="is empty"):
        load_rows(tmp_path / "empty.jsonl", "openai/gsm8k")


# --- the diets of a big run -----------------------------------------------------------------------


def diet_files() -> dict:
    return {
        "smoltalk": DATA / "chat_messages/conversations.jsonl",
        "mmlu": DATA / "mmlu/dev.jsonl",
        "gsm8k": DATA / "gsm8k/train.jsonl",
        "arc_easy": DATA / "arc/ARC-Easy-test.jsonl",
        "arc_challenge": DATA / "arc/ARC-Challenge-test.jsonl",
    }


@real
@pytest.mark.parametrize("stage, rest", [("mid", 280_000), ("sft", 600)])
def test_a_diet_has_every_row_of_its_data_sets(stage, rest, tmp_path):
    words = tmp_path / "words.txt"
    made_up = [f"{a}{b}{c}ing" for a in "bdf" for b in "aeio" for c in "lmn"]
    words.write_text("\n".join(made_up), encoding="utf-8")
    identity = DATA / "identity_conversations/identity_conversations.jsonl"
    diet = web_diet(stage, identity, words, diet_files())
    chats, mmlu, sums, exams = 64, 285, 256, 128
    known = chats + sums + (mmlu + 2 * 100 if stage == "mid" else exams + 100)
    assert len(diet) == known + rest
    kinds = {type(diet.tasks[diet.locate(i)[0]]).__name__ for i in range(min(2_000, len(diet)))}
    assert {"SimpleSpelling", "SpellingBee"} <= kinds
    for i in range(0, len(diet), max(1, len(diet) // 300)):
        validate_conversation(diet[i])


def test_a_diet_names_what_it_does_not_know(tmp_path):
    for stage, files in (("pre", {}), ("mid", {"smaltalk": tmp_path})):
        with pytest.raises(ValueError, match="smoltalk, mmlu, gsm8k, arc_easy, arc_challenge"):
            web_diet(stage, tmp_path, tmp_path, files)
