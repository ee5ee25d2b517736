"""The Tokenizer: round trips, files, special tokens no text can reach, conversations and masks."""

import copy
import json
import os
import pickle
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lib.tokenizer.bpe import encode_bpe, rust_tokenizer, split_pattern, train_bpe
from nanochat_lib.tokenizer.conversation import conversation_segments
from nanochat_lib.tokenizer.tokenizer import MAX_SPACE_RUN, SPECIAL_TOKENS, Tokenizer

TEXTS = [
    "the cat that sat on the mat",
    "What is 12 times 12? It is 144, he said.",
    "Beryl and Oskar bought seven green turnips; how much did the turnips cost them?",
] * 5
TOKENIZER = Tokenizer.train(TEXTS, vocab_size=330)
needs_rust = pytest.mark.skipif(rust_tokenizer() is None, reason="rustbpe is not built here")
TOOL_ANSWER = [
    {"type": "text", "text": "I count: "},
    {"type": "python", "text": "12*12"},
    {"type": "python_output", "text": "144"},
    {"type": "text", "text": "It is 144."},
]


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(content: str | list) -> dict:
    return {"role": "assistant", "content": content}


def conversation(*messages: dict) -> dict:
    return {"messages": list(messages)}


def ids_of(*pieces: str) -> list[int]:
    """Spell a row: names of special tokens as themselves, everything else as text."""
    row = []
    for piece in pieces:
        known = piece in TOKENIZER.special_ids
        row += [TOKENIZER.special_ids[piece]] if known else encode_bpe(piece, TOKENIZER.ranks)
    return row


# --- sizes and ids -------------------------------------------------------------------------------


def test_vocab_size_includes_the_special_tokens_at_the_end():
    assert TOKENIZER.vocab_size == 330 and len(TOKENIZER.ranks) == 321
    assert [TOKENIZER.encode_special(name) for name in SPECIAL_TOKENS] == list(range(321, 330))
    assert TOKENIZER.bos_id == TOKENIZER.encode_special("<|bos|>") == 321
    assert len(SPECIAL_TOKENS) == 9
    assert TOKENIZER.ranks == dict(train_bpe(TEXTS, 321))


def test_smallest_vocabulary_and_texts_that_run_out_of_pairs():
    assert Tokenizer.train(TEXTS, 265).encode("at") == [97, 116]
    assert Tokenizer.train(["ab"], 1000).vocab_size == 257 + 9
    with pytest.raises(ValueError, match="vocab_size is 264.*265"):
        Tokenizer.train(TEXTS, 264)


def test_pattern_reaches_training_and_encoding():
    single = Tokenizer.train(["12 12 12 12 cats cats"], 300, split_pattern(1))
    assert b"12" not in single.ranks and len(single.encode("1212")) == 4
    assert b"12" in Tokenizer.train(["12 12 12 12 cats cats"], 300).ranks


@pytest.mark.parametrize(
    ("ranks", "special", "message"),
    [
        ({b"a": 0, b"b": 2}, ("<|bos|>",), "ranks must be 0 to 1"),
        ({bytes([b]): b for b in range(255)}, ("<|bos|>",), "byte 255 has no token"),
        ({bytes([b]): b for b in range(256)}, (), "at least one"),
        ({bytes([b]): b for b in range(256)}, ("<|x|>", "<|x|>"), "each once"),
    ],
)
def test_impossible_vocabularies_are_refused(ranks, special, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer(ranks, special_tokens=special)


# --- encode and decode ---------------------------------------------------------------------------


@given(st.text())
@settings(max_examples=30, deadline=None)
def test_round_trip(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text and TOKENIZER.decode_bytes(ids) == text.encode()
    lengths = TOKENIZER.token_bytes()
    assert sum(lengths[i] for i in ids) == len(text.encode())


@given(st.lists(st.sampled_from([*SPECIAL_TOKENS, "<|", "bos", "|>", "a", " "])).map("".join))
@settings(max_examples=30, deadline=None)
def test_no_text_makes_a_special_token(text):
    assert max(TOKENIZER.encode(text), default=0) < len(TOKENIZER.ranks)
    row, mask = TOKENIZER.render_conversation(conversation(user(text), assistant(text)))
    special = [i for i in row if i >= len(TOKENIZER.ranks)]
    shape = ["bos", "user_start", "user_end", "assistant_start", "assistant_end"]
    assert special == ids_of(*[f"<|{name}|>" for name in shape])


def test_prepend_append_and_lists():
    cat, bos, end = encode_bpe("cat", TOKENIZER.ranks), TOKENIZER.bos_id, 325
    assert TOKENIZER.encode("cat", prepend="<|bos|>") == [bos, *cat]
    assert TOKENIZER.encode("cat", prepend=bos, append="<|assistant_end|>") == [bos, *cat, end]
    assert TOKENIZER.encode("cat", append=0) == [*cat, 0]
    assert TOKENIZER.encode(["cat", "", "cat"], prepend=bos) == [[bos, *cat], [bos], [bos, *cat]]
    assert TOKENIZER.encode([]) == [] and TOKENIZER.encode("") == []


def test_decode_shows_special_tokens_and_broken_characters():
    wave = TOKENIZER.encode("\N{WAVING HAND SIGN}")
    assert TOKENIZER.decode(wave[:2]) == "\ufffd"
    assert TOKENIZER.decode_bytes(wave[:2]) == "\N{WAVING HAND SIGN}".encode()[:2]
    assert TOKENIZER.decode([TOKENIZER.bos_id, 97]) == "<|bos|>a"


@pytest.mark.parametrize("bad", [-1, 330, 10**12])
def test_unknown_ids_are_named(bad):
    for call in (
        lambda: TOKENIZER.decode([97, bad]),
        lambda: TOKENIZER.encode("a", prepend=bad),
        lambda: TOKENIZER.encode("a", append=bad),
    ):
        with pytest.raises(ValueError, match=f"unknown token id {bad}.*329"):
            call()


def test_unknown_names_are_named():
    for call in (TOKENIZER.encode_special, lambda name: TOKENIZER.encode("a", prepend=name)):
        with pytest.raises(ValueError, match=r"<\|system\|>.*<\|bos\|>"):
            call("<|system|>")


def without_rust(tokenizer: Tokenizer = TOKENIZER) -> Tokenizer:
    """The same tokenizer as it is where rustbpe is not installed."""
    other = copy.copy(tokenizer)
    other._rust = None
    return other


def test_long_runs_of_space_are_refused_before_tiktoken_panics():
    slow = without_rust()
    with pytest.raises(ValueError, match="500,001 white-space characters in a row from 1"):
        slow.encode("a" + " " * (MAX_SPACE_RUN + 1))
    with pytest.raises(ValueError, match="text 1: 500,000 white-space characters"):
        slow.encode(["a", "\u3000" * MAX_SPACE_RUN])
    nearly = (" " * (MAX_SPACE_RUN - 1) + "a") * 2
    assert slow.decode(slow.encode(nearly)) == nearly


@needs_rust
def test_our_crate_takes_any_run_of_space():
    for text in ("a" + " " * 3_000_000, "\u3000" * 3_000_000, "\n" * 2_000_000 + "x"):
        assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@needs_rust
@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.characters(), max_size=60), max_size=4))
def test_both_encoders_give_the_same_ids(texts):
    assert TOKENIZER.encode(texts) == without_rust().encode(texts)
    assert [TOKENIZER.encode(text) for text in texts] == TOKENIZER.encode(texts)


@needs_rust
def test_both_encoders_agree_on_many_threads_and_on_surrogates(monkeypatch):
    texts = [text * 3 for text in TEXTS] + [
        "half \ud83d a pair",
        "a pair \ud83d\ude00",
        "\u200d\u0301e",
    ]
    expected = without_rust().encode(texts, prepend="<|bos|>")
    assert TOKENIZER.encode(texts, prepend="<|bos|>") == expected
    monkeypatch.setattr("nanochat_lib.tokenizer.tokenizer.PARALLEL_CHARACTERS", 0)
    assert TOKENIZER.encode(texts, prepend="<|bos|>") == expected


def test_a_copy_and_a_pickle_are_the_same_tokenizer():
    for other in (copy.deepcopy(TOKENIZER), pickle.loads(pickle.dumps(TOKENIZER))):
        assert other.hash == TOKENIZER.hash and other.encode("the cat") == TOKENIZER.encode(
            "the cat"
        )


def test_token_bytes():
    lengths = TOKENIZER.token_bytes()
    assert len(lengths) == TOKENIZER.vocab_size
    assert lengths[:256] == [1] * 256 and lengths[321:] == [0] * 9
    for token, rank in TOKENIZER.ranks.items():
        assert lengths[rank] == len(token)


# --- files ---------------------------------------------------------------------------------------


def test_save_and_load(tmp_path):
    TOKENIZER.save(tmp_path / "new" / "folder")
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == ["tokenizer.json"]
    loaded = Tokenizer.load(tmp_path / "new" / "folder")
    assert loaded.ranks == TOKENIZER.ranks and loaded.pattern == TOKENIZER.pattern
    assert loaded.special_ids == TOKENIZER.special_ids and loaded.hash == TOKENIZER.hash
    assert loaded.encode(TEXTS[1]) == TOKENIZER.encode(TEXTS[1])
    description = json.loads((tmp_path / "new" / "folder" / "tokenizer.json").read_bytes())
    assert set(description) == {"pattern", "ranks", "special_tokens"}


def test_hash_depends_on_ranks_pattern_and_special_tokens():
    swapped = {
        **TOKENIZER.ranks,
        **{t: 256 + 257 - r for t, r in TOKENIZER.ranks.items() if 256 <= r < 258},
    }
    variants = [
        TOKENIZER,
        Tokenizer(swapped, TOKENIZER.pattern),
        Tokenizer(TOKENIZER.ranks, split_pattern(1)),
        Tokenizer(TOKENIZER.ranks, TOKENIZER.pattern, SPECIAL_TOKENS[:-1]),
        Tokenizer(TOKENIZER.ranks, TOKENIZER.pattern, SPECIAL_TOKENS[::-1]),
    ]
    assert len({t.hash for t in variants}) == 5
    assert len(TOKENIZER.hash) == 16 and int(TOKENIZER.hash, 16) >= 0
    again = Tokenizer(dict(reversed(TOKENIZER.ranks.items())), TOKENIZER.pattern)
    assert again.hash == TOKENIZER.hash, "the order of the dictionary must not matter"


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="train a tokenizer"):
        Tokenizer.load(tmp_path)
    for damaged in ("", "[]", "{}", '{"ranks": ["?"], "pattern": "a", "special_tokens": []}'):
        (tmp_path / "tokenizer.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(ValueError, match="no tokenizer of this course"):
            Tokenizer.load(tmp_path)


# --- conversations -------------------------------------------------------------------------------


def test_rendering_and_mask_by_hand():
    row, mask = TOKENIZER.render_conversation(
        conversation(user("12 times 12?"), assistant(TOOL_ANSWER), user("he"), assistant("cat"))
    )
    spelled = [
        ("<|bos|>", 0),
        *[("<|user_start|>", 0), ("12 times 12?", 0), ("<|user_end|>", 0)],
        ("<|assistant_start|>", 0),
        ("I count: ", 1),
        *[("<|python_start|>", 1), ("12*12", 1), ("<|python_end|>", 1)],
        *[("<|output_start|>", 0), ("144", 0), ("<|output_end|>", 0)],
        ("It is 144.", 1),
        ("<|assistant_end|>", 1),
        *[("<|user_start|>", 0), ("he", 0), ("<|user_end|>", 0)],
        *[("<|assistant_start|>", 0), ("cat", 1), ("<|assistant_end|>", 1)],
    ]
    assert row == ids_of(*[piece for piece, _ in spelled])
    assert mask == [m for piece, m in spelled for _ in ids_of(piece)]


def test_max_tokens_cuts_both():
    talk = conversation(user("the cat"), assistant("the mat"))
    row, mask = TOKENIZER.render_conversation(talk)
    for n in (1, 5, len(row), len(row) + 9):
        assert TOKENIZER.render_conversation(talk, max_tokens=n) == (row[:n], mask[:n])
    with pytest.raises(ValueError, match="max_tokens is 0"):
        TOKENIZER.render_conversation(talk, max_tokens=0)


def test_system_message_joins_the_first_user_message_and_the_input_is_left_alone():
    messages = [{"role": "system", "content": "Be kind."}, user("Hi"), assistant("Ho"), user("Hm")]
    merged = conversation(user("Be kind.\n\nHi"), assistant("Ho"), user("Hm"))
    before = json.dumps(messages)
    talk = {"messages": messages}
    assert TOKENIZER.render_conversation(talk) == TOKENIZER.render_conversation(merged)
    assert json.dumps(messages) == before


def test_completion_is_how_the_conversation_begins():
    talk = conversation(user("Hi"), assistant("Ho"), user("12?"), assistant(TOOL_ANSWER))
    row, _ = TOKENIZER.render_conversation(talk)
    prompt = TOKENIZER.render_for_completion(talk)
    assert prompt == row[: len(prompt)] and prompt[-1] == TOKENIZER.encode_special(
        "<|assistant_start|>"
    )
    assert TOKENIZER.render_for_completion({"messages": talk["messages"][:3]}) == prompt
    assert len(talk["messages"]) == 4


def test_a_call_that_fails_is_read_and_not_learned():
    call = [{"type": "python", "text": "12*"}, {"type": "python_output", "text": "error"}]
    said = [{"type": "text", "text": "he"}, *call, *TOOL_ANSWER]
    segments = conversation_segments(conversation(user("a"), assistant(said)))
    learned = [text for text, special, mask in segments if mask and not special]
    assert learned == ["he", "I count: ", "12*12", "It is 144."]
    assert [mask for text, _, mask in segments if text == "<|python_start|>"] == [0, 1]


def test_empty_texts_are_allowed():
    segments = conversation_segments(conversation(user(""), assistant("")))
    assert [s for s in segments if not s[1]] == [("", False, 0), ("", False, 1)]
    _, mask = TOKENIZER.render_conversation(conversation(user(""), assistant([])))
    assert mask == [0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("talk", "message"),
    [
        ({}, "list of messages"),
        ({"messages": []}, "list of messages"),
        (conversation(assistant("Hi")), r"message 0 \(assistant\): expected user"),
        (conversation(user("a"), user("b")), r"message 1 \(user\): expected assistant"),
        (
            conversation(user("a"), {"role": "tool", "content": "b"}),
            r"message 1 \(tool\): expected assistant",
        ),
        (
            conversation(user("a"), {"content": "b"}),
            "message 1: got .*, expected a dict with role and content",
        ),
        (
            conversation({"role": "system", "content": "s"}),
            "message 0 .system.: nobody speaks after it",
        ),
        (conversation({"role": "system", "content": "s"}, assistant("b")), "message 1 .assistant"),
        (
            conversation(user("a"), {"role": "system", "content": "s"}),
            "message 1 .system.: expected assistant",
        ),
        (
            conversation({"role": "user"}),
            "message 0: got .*, expected a dict with role and content",
        ),
        (conversation(user([{"type": "text", "text": "a"}])), "message 0 .*only the assistant"),
        (conversation(user("a"), assistant(7)), "message 1 .assistant.: content is 7"),
        (
            conversation(user("a"), assistant([{"type": "image", "text": "x"}])),
            "message 1 .assistant., part 0",
        ),
        (
            conversation(user("a"), assistant([*TOOL_ANSWER, {"type": "text"}])),
            "message 1 .assistant., part 4",
        ),
        (conversation(user("a"), assistant(["x"])), "message 1 .assistant., part 0"),
        (
            conversation({"role": "system", "content": "s"}, user("a"), assistant([3])),
            "message 2 .assistant., part 0",
        ),
    ],
)
def test_bad_conversations_name_the_message(talk, message):
    with pytest.raises(ValueError, match=message):
        TOKENIZER.render_conversation(talk)


def test_nothing_to_answer():
    for talk in ({"messages": []}, conversation(assistant("Hi"))):
        with pytest.raises(ValueError, match="list of messages"):
            TOKENIZER.render_for_completion(talk)


# --- without Rust --------------------------------------------------------------------------------


@pytest.mark.parametrize("stand_in", [None, types.ModuleType("rustbpe")])
def test_works_without_rustbpe(monkeypatch, stand_in):
    # None: not installed. An empty module: the crate's own folder, found from the project's folder.
    monkeypatch.setitem(sys.modules, "rustbpe", stand_in)
    with pytest.warns(UserWarning, match="rustbpe is not installed") as caught:
        slow = Tokenizer.train(iter(TEXTS), vocab_size=330)
    assert len(caught) == 1 and slow.hash == TOKENIZER.hash
    assert slow.encode("What is 12?") == TOKENIZER.encode("What is 12?")


@needs_rust
def test_no_warning_with_rustbpe():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Tokenizer.train(TEXTS, vocab_size=300)


# --- real samples --------------------------------------------------------------------------------

DATA = os.environ.get("NANOCHAT_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="NANOCHAT_TEST_DATA is not set")


@needs_data
def test_gpt2_files():
    gpt2 = Tokenizer.from_gpt2_files(Path(DATA) / "gpt2_tokenizer")
    assert gpt2.vocab_size == 50_257 and gpt2.bos_id == 50_256
    assert gpt2.encode("hello world", prepend="<|endoftext|>") == [50_256, 31_373, 995]
    with pytest.raises(ValueError, match="no special token.*endoftext"):
        gpt2.render_conversation(conversation(user("Hi"), assistant("Ho")))


@needs_data
def test_real_conversations_render():
    lines = (Path(DATA) / "chat_messages" / "conversations.jsonl").read_text(encoding="utf-8")
    talks = [json.loads(line) for line in lines.split("\n") if line]
    n_system = 0
    for talk in talks:
        row, mask = TOKENIZER.render_conversation(talk)
        spoken = TOKENIZER.decode([i for i, m in zip(row, mask) if m])
        answers = [m["content"] for m in talk["messages"] if m["role"] == "assistant"]
        assert spoken == "".join(f"{answer}<|assistant_end|>" for answer in answers)
        n_system += talk["messages"][0]["role"] == "system"
    assert len(talks) == 64 and n_system > 0


def test_an_iterator_of_texts_is_not_used_up_by_its_check():
    texts = ["one", "two three"]
    expected = TOKENIZER.encode(texts)
    assert len(expected) == 2
    assert TOKENIZER.encode(text for text in texts) == expected
    assert TOKENIZER.encode(tuple(texts)) == TOKENIZER.encode(iter(texts)) == expected
    names = ("<|bos|>", "<|x|>")
    assert Tokenizer(TOKENIZER.ranks, special_tokens=(n for n in names)).special_ids.keys() == {
        *names
    }
    assert TOKENIZER.decode(i for i in expected[0]) == "one"


@pytest.mark.parametrize("texts", [["a", None], ["a", 3], ("a", b"b")])
def test_a_text_that_is_no_str_is_named(texts):
    with pytest.raises(ValueError, match="text 1 is .*: expected a str"):
        TOKENIZER.encode(text for text in texts)  # whose items no type check sees


def test_what_is_no_conversation_is_said_in_a_line():
    """In a process without run-time type checks, as users have it."""
    program = """
from nanochat_lib.tokenizer.tokenizer import Tokenizer
tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)})
for wrong in (None, [], "hi", 3, {}, {"messages": None}, {"messages": [None]}, {"messages": ["a"]}):
    for render in (tokenizer.render_conversation, tokenizer.render_for_completion):
        try:
            render(wrong)
        except ValueError as error:
            print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8")
    lines = done.stdout.splitlines()
    assert len(lines) == 16, done.stderr
    assert all("list of messages" in line or "message 0: got" in line for line in lines)
