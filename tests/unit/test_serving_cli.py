"""The terminal chat: whole characters, whole turns, a useful word when there is no model."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lib.common import base_dir
from nanochat_lib.inference.engine import Engine
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.serving import cli
from nanochat_lib.serving.cli import ChatConfig, chat, keep_lines, remember_lines, stream_text
from nanochat_lib.serving.conversation import (
    Conversation,
    reply_parts,
    turns_to_drop,
    user_turn,
)
from nanochat_lib.serving.runs import find_run
from nanochat_lib.tasks.custom_json import CustomJSON
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.checkpoint import latest_checkpoint, save_checkpoint

TOKENIZER = Tokenizer.train(["a b c"], vocab_size=265)
MERGED = Tokenizer.train(["né né né \N{SNOWMAN}\N{SNOWMAN} the the"] * 9, vocab_size=275)
SPECIAL = TOKENIZER.encode_special


class ScriptedEngine:
    """Answer every prompt with the same tokens, and remember the prompts."""

    def __init__(
        self, reply: list[int], sequence_len: int = 64, interrupt_after: int | None = None
    ):
        self.reply, self.interrupt_after, self.prompts = reply, interrupt_after, []
        self.tokenizer, self.stop_tokens = TOKENIZER, frozenset({SPECIAL("<|assistant_end|>")})
        self.model = GPT(GPTConfig(sequence_len=sequence_len, vocab_size=265, n_layer=1, n_embd=16))

    def generate(self, tokens, num_samples, max_tokens, temperature, top_k, seed):
        self.prompts.append(tokens)
        for i, token in enumerate([*self.reply, SPECIAL("<|assistant_end|>")]):
            if i == self.interrupt_after:
                raise KeyboardInterrupt
            yield [token], [1]


@pytest.fixture
def scripted(monkeypatch):
    """Make `chat` use a scripted engine; return a function that runs a session of typed lines."""

    def session(engine, lines, **settings):
        monkeypatch.setattr(cli, "find_run", lambda name, stage: Path("some_run"))
        monkeypatch.setattr(cli, "load_engine", lambda *_: engine)
        # The run-time type check wants an Engine; a chat only ever calls what the script offers.
        monkeypatch.setattr(cli, "say", getattr(cli.say, "__wrapped__", cli.say))
        monkeypatch.setattr(cli, "answer", getattr(cli.answer, "__wrapped__", cli.answer))
        typed, written = iter(lines), []

        def read(prompt):
            line = next(typed, None)
            if line is None:
                raise EOFError
            return line

        assert chat(ChatConfig(**settings), read, written.append) == 0
        return "".join(written)

    return session


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=40), st.sampled_from([TOKENIZER, MERGED]))
def test_pieces_joined_are_the_text(text, tokenizer):
    pieces = list(stream_text(tokenizer, tokenizer.encode(text)))
    assert "".join(pieces) == re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", text)
    assert all(pieces)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=20))
def test_any_bytes_print_as_python_decodes_them(data):
    text = "".join(stream_text(TOKENIZER, list(data)))
    expected = data.decode("utf-8", errors="replace")
    assert text == re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", expected)


def test_characters_come_out_whole_and_at_once():
    taken = []

    def arriving():
        for token in TOKENIZER.encode("aé\N{SNOWMAN}b"):
            taken.append(token)
            yield token

    seen = [(piece, len(taken)) for piece in stream_text(TOKENIZER, arriving())]
    assert seen == [("a", 1), ("é", 3), ("\N{SNOWMAN}", 6), ("b", 7)]


def test_tool_calls_are_framed_and_do_not_join_half_characters():
    start, end = SPECIAL("<|python_start|>"), SPECIAL("<|python_end|>")
    out, done = SPECIAL("<|output_start|>"), SPECIAL("<|output_end|>")
    ids = [start, *b"6*7", end, out, *b"42", done, *b"42"]
    assert "".join(stream_text(TOKENIZER, ids)) == "[6*7 = 42] 42"
    assert "".join(stream_text(TOKENIZER, [0xC3, start, 0xA9])) == "\ufffd[\ufffd"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(0, 200))
def test_turns_to_drop_keeps_as_many_as_fit(lengths, room):
    fitting = [n for n in range(len(lengths)) if sum(lengths[n:]) <= room]
    if fitting:
        assert turns_to_drop(lengths, room) == min(fitting)
    else:
        with pytest.raises(
            ValueError, match=f"takes {lengths[-1]} tokens, there is room for {room}"
        ):
            turns_to_drop(lengths, room)


def test_prompt_equals_the_rendered_conversation():
    conversation = Conversation(TOKENIZER, sequence_len=200, reply_tokens=50)
    messages = []
    for question, reply in (("hi", "hello"), ("<|bos|>", "no"), ("é?", "")):
        messages.append({"role": "user", "content": question})
        expected = TOKENIZER.render_for_completion({"messages": messages})
        assert conversation.ask(question) == expected
        conversation.hear(TOKENIZER.encode(reply))
        messages.append({"role": "assistant", "content": reply})
    conversation.clear()
    assert conversation.ask("hi") == TOKENIZER.render_for_completion({"messages": messages[:1]})


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 24)), min_size=1, max_size=8))
def test_a_long_conversation_always_leaves_room_for_the_reply(sizes):
    conversation = Conversation(TOKENIZER, sequence_len=64, reply_tokens=24)
    for n_question, n_reply in sizes:
        prompt = conversation.ask("q" * n_question)
        assert len(prompt) + 24 <= 64
        assert prompt[:2] == [TOKENIZER.bos_id, SPECIAL("<|user_start|>")]
        conversation.hear([97] * n_reply)


def test_a_message_that_is_too_long_changes_nothing():
    conversation = Conversation(TOKENIZER, sequence_len=64, reply_tokens=24)
    conversation.ask("hi")
    conversation.hear([97])
    before = [list(turn) for turn in conversation.turns]
    with pytest.raises(ValueError, match="make it shorter"):
        conversation.ask("q" * 60)
    assert conversation.turns == before and conversation.n_forgotten == 0


def test_session_remembers_clears_and_forgets(scripted):
    engine = ScriptedEngine(TOKENIZER.encode("ok"))
    lines = [
        "one",
        "two",
        "/reset",
        "three",
        "/help",
        "/nonsense",
        "",
        "q" * 99,
        "q" * 20,
        "q" * 20,
    ]
    written = scripted(engine, lines, max_tokens=10)
    read = [TOKENIZER.decode(prompt) for prompt in engine.prompts]
    assert read[0].count("<|user_start|>") == 1
    assert (
        read[1].count("<|user_start|>") == 2
        and "one" in read[1]
        and "ok<|assistant_end|>" in read[1]
    )
    assert "one" not in read[2] and len(read) == 5
    assert written.count("/reset forgets") == 3 and written.count("(forgotten)") == 1
    assert "takes 102 tokens" in written and "the oldest messages are forgotten" in written
    assert written.endswith("ok\n\n")  # Ctrl-D ends on a fresh line


def test_a_system_message_stays_when_turns_are_forgotten(scripted):
    engine = ScriptedEngine(TOKENIZER.encode("ok"), sequence_len=96)
    lines = ["/system Be brief.", "one", *["q" * 18] * 3, "/reset", "two", "/system", "three"]
    written = scripted(engine, [*lines, "/system " + "x" * 60, "four"], max_tokens=10)
    read = [TOKENIZER.decode(prompt) for prompt in engine.prompts]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"}]
    assert engine.prompts[0] == TOKENIZER.render_for_completion({"messages": messages})
    opening = "<|bos|><|user_start|>Be brief.\n\n"
    assert all(text.startswith(opening) for text in read[:5]) and "one" not in read[3]
    assert "brief" not in read[5] and "three" in read[6] and "four" in read[6]
    assert "takes 62 tokens, it may take 42" in written and len(engine.prompts) == 7


def test_a_saved_conversation_can_be_trained_on(scripted, tmp_path):
    marks = ["<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>"]
    start, end, out, closed = map(SPECIAL, marks)
    reply = [*b"It is ", start, *b"6*7", end, out, *b"42", closed, *b"42"]
    path = tmp_path / "a b.jsonl"
    lines = ["/save x.jsonl", "6*7?", "and you?", f"/save {path}", "/reset", "/system Hi.", "hi"]
    wrong = [f"/save {tmp_path / 'notes.txt'}", f"/save {tmp_path / 'no/folder.jsonl'}", "/save"]
    written = scripted(ScriptedEngine(reply, 256), [*lines, f"/save {path}", *wrong])
    first, second = CustomJSON(path)
    parts = [("text", "It is "), ("python", "6*7"), ("python_output", "42"), ("text", "42")]
    assert [(p["type"], p["text"]) for p in first["messages"][1]["content"]] == parts
    assert [message["role"] for message in first["messages"]] == ["user", "assistant"] * 2
    assert second["messages"][0] == {"role": "system", "content": "Hi."}
    assert "nothing has been said yet" in written and "4 messages added" in written
    assert "ends in .jsonl" in written and "cannot write" in written
    assert [path] == list(tmp_path.iterdir())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 264), max_size=30))
def test_any_reply_has_parts(tokens):
    parts = reply_parts(TOKENIZER, tokens)
    names = {"<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>"}
    plain = [token for token in tokens if token not in map(SPECIAL, names)]
    if TOKENIZER.decode(plain).isascii():
        assert "".join(part["text"] for part in parts) == TOKENIZER.decode(plain)


def test_a_message_may_have_several_lines(scripted):
    engine = ScriptedEngine(TOKENIZER.encode("ok"))
    scripted(engine, ["one\\", "two\\", "", "three"])
    read = [TOKENIZER.decode(prompt) for prompt in engine.prompts]
    assert "<|user_start|>one\ntwo<|user_end|>" in read[0] and "three" in read[1]


def test_typed_lines_are_remembered_until_the_next_chat(tmp_path):
    readline = pytest.importorskip("readline")
    path = tmp_path / "chat_history"
    path.write_text("an old line\n", encoding="utf-8")
    readline.clear_history()
    remember_lines(path)
    readline.add_history("a new line")
    keep_lines(str(path))
    assert path.read_text(encoding="utf-8").split("\n")[-3:] == ["an old line", "a new line", ""]
    readline.clear_history()
    remember_lines(tmp_path / "none yet")
    assert readline.get_current_history_length() == 0


def test_ctrl_c_stops_the_reply_and_keeps_what_was_said(scripted):
    engine = ScriptedEngine(TOKENIZER.encode("hello"), interrupt_after=2)
    written = scripted(engine, ["one", "two"])
    assert written.count("he (stopped)\n") == 2
    assert "he<|assistant_end|>" in TOKENIZER.decode(engine.prompts[1])


def test_base_model_continues_the_bare_text(scripted):
    engine = ScriptedEngine(TOKENIZER.encode("ok"))
    scripted(engine, ["one", "two"], stage="base")
    assert engine.prompts == [[TOKENIZER.bos_id, *b"one"], [TOKENIZER.bos_id, *b"two"]]


def save_run(name: str, stage: str = "sft", mtime: int | None = None) -> None:
    folder = base_dir() / name
    model = GPT(GPTConfig(sequence_len=64, vocab_size=265, n_layer=1, n_embd=16))
    TOKENIZER.save(folder / "tokenizer")
    meta = {"config": vars(model.config), "tokenizer_hash": TOKENIZER.hash}
    path = save_checkpoint(folder / stage, 1, model, [], meta)
    if mtime is not None:
        os.utime(path, (mtime, mtime))


def test_find_run_takes_the_newest_and_says_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "runs"))
    with pytest.raises(ValueError, match="make speedrun"):
        find_run(None, "sft")
    save_run("b_newer", mtime=2_000_000_000)
    save_run("c_older", mtime=1_000_000_000)
    save_run("a_base", "base")
    assert find_run(None, "sft").name == "b_newer"
    assert find_run("c_older", "sft").name == "c_older"
    assert find_run(None, "base").name == "a_base"
    with pytest.raises(ValueError, match="'d'.*there is b_newer, c_older"):
        find_run("d", "sft")
    (tmp_path / "runs" / "broken" / "sft").mkdir(parents=True)
    assert find_run(None, "sft").name == "b_newer"


def test_one_shot_with_a_real_engine(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    save_run("tiny")
    texts = []
    for seed in (1, 1, 2):
        written = []
        config = ChatConfig(prompt="hi", max_tokens=20, seed=seed, device="cpu", temperature=1.0)
        assert chat(config, write=written.append) == 0
        texts.append("".join(written))
    assert texts[0] == texts[1] != texts[2] and texts[0].endswith("\n")
    with pytest.raises(ValueError, match="make it shorter"):
        chat(ChatConfig(prompt="q" * 80, device="cpu"))
    assert torch.is_grad_enabled()


def test_command_line_knows_the_short_flag():
    import tyro

    config = tyro.cli(ChatConfig, args=["-p", "hi", "--stage", "base", "--top-k", "None"])
    assert config == ChatConfig(prompt="hi", stage="base", top_k=None)


@pytest.mark.parametrize("settings", [{"top_k": 0}, {"temperature": -1.0}, {"max_tokens": 0}])
def test_an_answer_that_fails_leaves_no_question_behind(settings):
    engine = Engine(GPT(GPTConfig(sequence_len=64, vocab_size=265, n_layer=1)), TOKENIZER)
    conversation = Conversation(TOKENIZER, 64, 24)
    for _ in range(3):
        with pytest.raises(ValueError):
            cli.answer(engine, conversation, "hi", ChatConfig(**settings), lambda text: None)
    assert conversation.turns == [] and conversation.n_forgotten == 0
    whole = [TOKENIZER.bos_id, *user_turn(TOKENIZER, "hi")]
    assert conversation.ask("hi") == whole


def test_a_terminal_that_refuses_a_character_leaves_no_question_behind():
    def refuse(text: str) -> None:
        if "\N{SNOWMAN}" in text:
            text.encode("ascii")

    engine = ScriptedEngine(TOKENIZER.encode("\N{SNOWMAN}"))
    conversation = Conversation(TOKENIZER, 64, 24)
    say = getattr(cli.answer, "__wrapped__", cli.answer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "say", getattr(cli.say, "__wrapped__", cli.say))
        with pytest.raises(UnicodeEncodeError):
            say(engine, conversation, "hi", ChatConfig(), refuse)
    assert conversation.turns == []


def test_forgetting_waits_for_the_answer_too():
    conversation = Conversation(TOKENIZER, 49, 24)
    conversation.ask("hi")
    conversation.hear(TOKENIZER.encode("hello"))
    before = [list(turn) for turn in conversation.turns]
    conversation.ask("a long question")  # only fits without the first turn
    assert conversation.turns == before and conversation.n_forgotten == 0
    conversation.hear([])
    assert conversation.n_forgotten == 1 and len(conversation.turns) == 1


def test_a_line_that_is_no_utf8_does_not_end_the_chat(monkeypatch):
    engine = ScriptedEngine(TOKENIZER.encode("yes"))
    lines = iter(["broken", "hi", "/quit"])
    monkeypatch.setattr(cli, "find_run", lambda name, stage: Path("some_run"))
    monkeypatch.setattr(cli, "load_engine", lambda *_: engine)
    monkeypatch.setattr(cli, "say", getattr(cli.say, "__wrapped__", cli.say))
    monkeypatch.setattr(cli, "answer", getattr(cli.answer, "__wrapped__", cli.answer))
    written = []

    def read(prompt: str) -> str:
        line = next(lines)
        return b"caf\xc3".decode("utf-8") if line == "broken" else line

    assert chat(ChatConfig(), read, written.append) == 0
    text = "".join(written)
    assert "no UTF-8" in text and text.endswith("yes\n")


TALK = """
import os, sys
from nanochat_lib.terminal import as_command
with as_command("test"):
    print("ready", flush=True)
    text = input("you: ")
    print([ord(c) for c in text], "caf\\u00e9 \\ufffd", flush=True)
"""


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize("typed", [b"caf\xc3\n", b"\xff\xfe\n", b"caf\xc3\xa9\n"])
def test_a_terminal_takes_half_characters_and_shows_what_it_can(locale, typed):
    """A real terminal in line mode, whose backspace removed half of an accented letter."""
    import pty

    here, there = pty.openpty()
    strict = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": locale}
    program = [sys.executable, "-c", TALK]
    environment = os.environ | strict | ({"PYTHONIOENCODING": "ascii"} if locale == "C" else {})
    with subprocess.Popen(program, stdin=there, stdout=there, stderr=there, env=environment) as run:
        os.close(there)
        os.write(here, typed)
        shown = b""
        try:
            while piece := os.read(here, 1000):
                shown += piece
        except OSError:  # the terminal's other side is closed: the program has ended
            pass
        assert run.wait() == 0, shown
    os.close(here)
    assert b"Error" not in shown and b"caf" in shown.rpartition(b"[")[2]


@pytest.mark.parametrize("name", ["exp/one", "..", ".", "x" * 300, ""])
def test_a_run_is_chosen_by_name_and_not_by_path(tmp_path, monkeypatch, name):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "my [v2] runs"))
    run = tmp_path / "my [v2] runs" / "real one"
    TOKENIZER.save(run / "tokenizer")
    save_checkpoint(run / "sft", 1, GPT(GPTConfig(n_layer=1)), [], {})
    assert find_run(None, "sft") == find_run("real one", "sft") == run
    with pytest.raises(ValueError, match="^run "):
        find_run(name, "sft")


def test_copies_of_checkpoints_do_not_stop_any_chat(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    for name in ("one", "two"):
        TOKENIZER.save(tmp_path / name / "tokenizer")
        save_checkpoint(tmp_path / name / "sft", 1600, GPT(GPTConfig(n_layer=1)), [], {})
    original = tmp_path / "two" / "sft" / "step_001600"
    for name in ("step_001600_backup", "step_best", "step_001600 copy", "step_-1"):
        shutil.copytree(original, original.with_name(name))
    assert {find_run(None, "sft").name, find_run("one", "sft").name} <= {"one", "two"}
    assert latest_checkpoint(tmp_path / "two" / "sft") == original
