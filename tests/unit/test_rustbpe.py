"""The Rust crate against the Python trainer, byte for byte, and its behaviour towards callers."""

import ast
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lib.tokenizer.bpe import SPLIT_PATTERN, encode_bpe, split_pattern, train_bpe

rustbpe = pytest.importorskip("rustbpe", reason="rustbpe is not built here")
if not hasattr(rustbpe, "Tokenizer"):
    pytest.skip("rustbpe is not built here", allow_module_level=True)

CROWDED = st.lists(st.text(st.sampled_from("aab é1\n'"), max_size=40), max_size=4)
OLD_CHARACTERS = st.characters(exclude_categories=["Cs", "Cn"])
TEXTS = ["the cat that sat on the mat", "What is 12 times 12? It is 144, he said. Né \N{CAT}"] * 3


def trained(texts, vocab_size: int, **options) -> "rustbpe.Tokenizer":
    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(texts, vocab_size, **options)
    return tokenizer


@given(CROWDED, st.integers(256, 300), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_merges_equal_python_on_crowded_texts(texts, vocab_size, buffer_size):
    rust = trained(iter(texts), vocab_size, buffer_size=buffer_size)
    assert rust.get_mergeable_ranks() == train_bpe(texts, vocab_size)


@given(st.lists(st.text(OLD_CHARACTERS, max_size=60), max_size=4), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_merges_equal_python_on_any_text(texts, max_digits):
    pattern = split_pattern(max_digits)
    rust = trained(texts, 320, pattern=pattern)
    assert rust.get_mergeable_ranks() == train_bpe(texts, 320, pattern)
    assert rust.get_pattern() == pattern


def test_default_pattern_and_untrained():
    fresh = rustbpe.Tokenizer()
    assert fresh.get_pattern() == SPLIT_PATTERN and fresh.vocab_size == 256
    assert fresh.encode("aé") == list("aé".encode()) and fresh.decode([97]) == "a"
    assert fresh.get_mergeable_ranks() == [(bytes([b]), b) for b in range(256)]
    assert trained(TEXTS, 300).get_pattern() == SPLIT_PATTERN


def test_vocab_size_counts_the_bytes_and_may_run_out_of_pairs():
    assert trained(TEXTS, 256).vocab_size == 256
    assert trained(TEXTS, 290).vocab_size == 290
    assert trained(["ab"], 1000).get_mergeable_ranks()[256:] == [(b"ab", 256)]
    assert trained([], 1000).vocab_size == 256


@given(st.text(OLD_CHARACTERS) | st.text(st.sampled_from("the cat12 \n"), max_size=400))
@settings(max_examples=30, deadline=None)
def test_encoding_equals_python(text):
    rust = trained(TEXTS, 320)
    ids = rust.encode(text)
    assert ids == encode_bpe(text, dict(rust.get_mergeable_ranks()))
    assert rust.decode(ids) == text
    assert rust.batch_encode([text, "cat"], num_threads=2) == [ids, rust.encode("cat")]


def test_long_words_equal_python():
    word = (
        "that cat sat at the mat".replace(" ", "") * 40
    )  # beyond the length where the method changes
    rust = trained(TEXTS, 320)
    assert rust.encode(word) == encode_bpe(word, dict(rust.get_mergeable_ranks()))


def test_batch_encode():
    rust = trained(TEXTS, 300)
    expected = [rust.encode(text) for text in TEXTS]
    assert rust.batch_encode(TEXTS) == rust.batch_encode(TEXTS, num_threads=3) == expected
    assert rust.batch_encode([]) == []
    with pytest.raises(ValueError, match="num_threads is 0"):
        rust.batch_encode(TEXTS, num_threads=0)
    with pytest.raises(TypeError):
        rust.batch_encode([b"bytes"])


def test_decode_replaces_broken_characters_as_python_does():
    fresh = rustbpe.Tokenizer()
    for broken in (b"\xf0\x9f", b"\xe2\x82a", b"\xff\xc3(", b"a\xed\xa0\x80"):
        assert fresh.decode(list(broken)) == broken.decode(errors="replace")


@pytest.mark.parametrize("bad", [-1, 256, 2**40])
def test_unknown_ids(bad):
    with pytest.raises(ValueError, match=f"unknown token id {bad}.*255"):
        rustbpe.Tokenizer().decode([97, bad])


@pytest.mark.parametrize("vocab_size", [255, 0, -7])
def test_vocab_size_too_small(vocab_size):
    with pytest.raises(ValueError, match=f"vocab_size is {vocab_size}:"):
        trained(TEXTS, vocab_size)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r'pattern "\(a" does not compile'):
        trained(TEXTS, 300, pattern="(a")
    with pytest.raises(ValueError, match="buffer_size is 0"):
        trained(TEXTS, 300, buffer_size=0)
    with pytest.raises(TypeError, match="item 2 of the iterator is int, expected str"):
        trained(["a", "b", 3], 300, buffer_size=1)
    with pytest.raises(TypeError, match="one str"):
        trained("abc", 300)
    with pytest.raises(TypeError, match="iterable"):
        trained(7, 300)
    with pytest.raises(UnicodeEncodeError):
        trained(["\ud800"], 300)


def test_exceptions_of_the_iterator_pass_and_leave_the_tokenizer_as_it_was():
    tokenizer = trained(TEXTS, 300)
    before = tokenizer.get_mergeable_ranks()

    def breaks():
        yield "xyz xyz xyz"
        raise KeyError("shard 3")

    with pytest.raises(KeyError, match="shard 3"):
        tokenizer.train_from_iterator(breaks(), 400)
    assert tokenizer.get_mergeable_ranks() == before and tokenizer.get_pattern() == SPLIT_PATTERN


def test_training_again_starts_afresh():
    tokenizer = trained(TEXTS, 300)
    tokenizer.train_from_iterator(["xy xy xy"], 258, pattern=r"\S+")
    assert tokenizer.get_mergeable_ranks()[256:] == [(b"xy", 256)]
    assert tokenizer.get_pattern() == r"\S+"


def test_the_iterator_is_read_in_buffers_and_may_use_the_tokenizer():
    tokenizer = rustbpe.Tokenizer()
    seen = []

    def documents():
        for text in TEXTS:
            seen.append(tokenizer.encode("a"))  # the old model serves while the new one is trained
            yield text

    tokenizer.train_from_iterator(documents(), 290, buffer_size=2)
    assert seen == [[97]] * len(TEXTS) and tokenizer.vocab_size == 290


def test_other_threads_run_while_words_are_counted():
    big = ["the cat sat on the mat and that was that " * 20_000]
    ticks, done = [], threading.Event()

    def tick():
        while not done.wait(0.001):
            ticks.append(1)

    thread = threading.Thread(target=tick)
    tokenizer = rustbpe.Tokenizer()
    during = []

    def documents():
        yield from big
        during.append(len(ticks))  # buffer 1 is counted when the second is asked for

    thread.start()
    tokenizer.train_from_iterator(documents(), 260, buffer_size=1)
    done.set()
    thread.join()
    assert during[0] > 3, "no other thread ran while 800 kB were counted: is the GIL held?"


def test_the_type_stub_lists_what_there_is():
    stub = Path(__file__).parents[2] / "rustbpe" / "rustbpe.pyi"
    (cls,) = [n for n in ast.parse(stub.read_text()).body if isinstance(n, ast.ClassDef)]
    stubbed = {n.name for n in cls.body if isinstance(n, ast.FunctionDef)} - {"__init__"}
    assert stubbed == {name for name in dir(rustbpe.Tokenizer) if not name.startswith("_")}
