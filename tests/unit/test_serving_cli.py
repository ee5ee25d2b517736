"""The terminal chat: whole characters, whole turns, a useful word when there is no model."""

import os
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.serving import cli
from nanochat_lib.serving.cli import (
    ChatConfig,
    Conversation,
    chat,
    find_run,
    stream_text,
    turns_to_drop,
)
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.checkpoint import save_checkpoint

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
        monkeypatch.setattr(cli, "find_run", lambda name, stage: cli.Path("some_run"))
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
        "/clear",
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
    assert written.count("/clear forgets") == 3 and written.count("(forgotten)") == 1
    assert "takes 102 tokens" in written and "the oldest messages are forgotten" in written
    assert written.endswith("ok\n\n")  # Ctrl-D ends on a fresh line


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
    folder = cli.base_dir() / name
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
