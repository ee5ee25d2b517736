"""Training in Rust against the Python trainer, byte for byte, and its behaviour towards callers."""

import ast
import inspect
import signal
import subprocess
import sys
import threading
import time
from itertools import chain, repeat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lib.tokenizer.bpe import GPT2_PATTERN, SPLIT_PATTERN, split_pattern, train_bpe

rustbpe = pytest.importorskip("rustbpe", reason="rustbpe is not built here")
if not hasattr(rustbpe, "Tokenizer"):
    pytest.skip("rustbpe is not built here", allow_module_level=True)

CROWDED = st.lists(st.text(st.sampled_from("aab é1\n'"), max_size=40), max_size=4).filter(any)
OLD_CHARACTERS = st.characters(exclude_categories=["Cs", "Cn"])
TEXTS = ["the cat that sat on the mat", "What is 12 times 12? It is 144, he said. Né \N{CAT}"] * 3


def trained(texts, vocab_size: int, **options) -> "rustbpe.Tokenizer":
    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(texts, vocab_size, **options)
    return tokenizer


@given(CROWDED, st.integers(256, 300), st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_merges_equal_python_on_crowded_texts(texts, vocab_size, buffer_size, num_threads):
    options = {"buffer_size": buffer_size, "num_threads": num_threads}
    rust = trained(iter(texts), vocab_size, **options)
    assert rust.get_mergeable_ranks() == train_bpe(texts, vocab_size)


PATTERNS = st.sampled_from([*map(split_pattern, (1, 2, 3)), GPT2_PATTERN, r"\w+|\s"])


@given(st.lists(st.text(OLD_CHARACTERS, max_size=60), max_size=4), PATTERNS)
@settings(max_examples=60, deadline=None)
def test_merges_equal_python_on_any_text(texts, pattern):
    texts = [*texts, "the cat"]  # never empty
    rust = trained(texts, 320, pattern=pattern)
    assert rust.get_mergeable_ranks() == train_bpe(texts, 320, pattern)
    assert rust.get_pattern() == pattern


def test_merges_equal_python_on_a_document_that_is_cut_for_the_threads():
    # Longer than the megabyte that a thread counts at a time, with and without places to cut.
    words = ["the", " cat", " sät", "\n\n", " 1989", ", that's", " ", "  x", "語彙"]
    long = "".join(words[i * i % 7 + i % 3] for i in range(400_000))
    for text in (long, long.replace(" ", "_")):
        rust = trained([text, "the cat"], 300, num_threads=3)
        assert rust.get_mergeable_ranks() == train_bpe([text, "the cat"], 300)


def test_default_pattern_and_untrained():
    fresh = rustbpe.Tokenizer()
    assert fresh.get_pattern() == SPLIT_PATTERN and fresh.vocab_size == 256
    assert fresh.encode("aé") == list("aé".encode()) and fresh.decode([97]) == "a"
    assert fresh.special_tokens == {} and repr(fresh) == "Tokenizer(vocab_size=256)"
    assert fresh.get_mergeable_ranks() == [(bytes([b]), b) for b in range(256)]
    assert trained(TEXTS, 300).get_pattern() == SPLIT_PATTERN


def test_vocab_size_counts_the_bytes_and_may_run_out_of_pairs():
    assert trained(TEXTS, 256).vocab_size == 256
    assert trained(TEXTS, 290).vocab_size == 290
    assert trained(["ab"], 1000).get_mergeable_ranks()[256:] == [(b"ab", 256)]


def test_an_empty_corpus():
    with pytest.raises(ValueError, match="the corpus is empty: 0 documents, 0 bytes"):
        trained([], 1000)
    with pytest.raises(ValueError, match="the corpus is empty: 2 documents, 0 bytes"):
        trained(iter(["", ""]), 1000)
    with pytest.raises(ValueError, match="1 documents, 3 bytes.*no word"):
        trained(["abc"], 1000, pattern=r"\d+")


@pytest.mark.parametrize("vocab_size", [255, 0, -7])
def test_vocab_size_too_small(vocab_size):
    with pytest.raises(ValueError, match=f"vocab_size is {vocab_size}:"):
        trained(TEXTS, vocab_size)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r'pattern "\(a" does not compile'):
        trained(TEXTS, 300, pattern="(a")
    with pytest.raises(ValueError, match="buffer_size is 0"):
        trained(TEXTS, 300, buffer_size=0)
    with pytest.raises(ValueError, match="num_threads is -1"):
        trained(TEXTS, 300, num_threads=-1)
    with pytest.raises(ValueError, match="vocab_size is 16777217"):
        trained(TEXTS, 2**24 + 1)
    with pytest.raises(ValueError, match="18446744073709551616 is out of range"):
        trained(TEXTS, 2**64)
    with pytest.raises(TypeError, match="item 2 of the iterator is int, expected str"):
        trained(["a", "b", 3], 300, buffer_size=1)
    with pytest.raises(TypeError, match="one str"):
        trained("abc", 300)
    with pytest.raises(TypeError, match="iterable"):
        trained(7, 300)


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
    big = ["the cat sat on the mat and that was that " * 1_000_000]
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
    assert during[0] > 3, "no other thread ran while 41 MB were counted: is the GIL held?"


def test_a_pattern_that_gives_up_ends_an_endless_iterator():
    # White space without end overflows the regex engine; the scanner of known patterns takes it.
    endless = repeat(" " * 3_000_000)
    with pytest.raises(ValueError, match="gave up at byte 0"):
        trained(endless, 300, pattern=r"\s*[\r\n]|\S+|\s+(?!\S)|\s+")
    assert trained([" " * 3_000_000], 257).get_mergeable_ranks()[256:] == [(b"  ", 256)]


def test_progress():
    seen = []
    texts = [f"the cat that sat on mat {i} {i * 7919:x} " for i in range(200_000)]
    n_bytes = sum(len(text.encode()) for text in texts)
    trained(texts, 400, progress=lambda *report: seen.append(report))
    counting = [report for report in seen if report[0] == "count"]
    assert counting[-1] == ("count", n_bytes, None) and seen[-1] == ("merge", 144, 144)
    assert seen == counting + seen[len(counting) :], "merging begins when counting is done"
    done = [report[1] for report in counting]
    assert done == sorted(done)
    with pytest.raises(KeyError, match="from progress"):
        trained(chain(texts, repeat("endless")), 400, progress=fail)
    with pytest.raises(TypeError):
        trained(texts, 400, progress=7)


def fail(*_):
    raise KeyError("from progress")


ENDLESS = """
import itertools, os, sys, threading, time
from rustbpe import Tokenizer

tokenizer = Tokenizer()
before = tokenizer.get_mergeable_ranks()
print("ready", flush=True)
try:
    {call}
except KeyboardInterrupt:
    assert tokenizer.get_mergeable_ranks() == before
    print("stopped")
"""


@pytest.mark.parametrize(
    "call",
    [
        "tokenizer.train_from_iterator(itertools.repeat('the cat ' * 500), 300)",
        "tokenizer.train_from_iterator(itertools.repeat('x y' * 500), 300, pattern='[a-w ]+')",
        # one document, and the regex engine: many seconds of work in a single call
        "tokenizer.train_from_iterator(['a b ' * 50_000_000], 300, pattern='[ab ]')",
        "[tokenizer.batch_encode(['the cat ' * 500] * 10_000) for _ in itertools.count()]",
        "tokenizer.train_from_iterator(itertools.repeat(''), 300)",
        "tokenizer.train_from_iterator(['a b ' * 300] * 10**7, 300, pattern='[ab ]', num_threads=9)",
        "[tokenizer.encode('the cat ' * 10_000_000) for _ in itertools.count()]",
        "tokenizer.encode('語。' * 50_000_000)",
        "tokenizer.encode('語語語語語語。' * 15_000_000)",
        "tokenizer.batch_encode(['the cat ' * 50_000_000])",
    ],
)
def test_ctrl_c(call):
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS.format(call=call)], stdout=subprocess.PIPE, encoding="utf-8"
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)  # inside the call, and long before its end
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "stopped\n"


def test_ctrl_c_while_merging():
    # The signal comes from the first report of merging, so that counting is over.
    call = """tokenizer.train_from_iterator(
        (f"{i:x} {i * 7919:x}" for i in range(3_000_000)), 2**24,
        progress=lambda stage, done, total: stage == "merge" and os.kill(os.getpid(), 2))"""
    done = subprocess.run(
        [sys.executable, "-c", ENDLESS.format(call=call)], capture_output=True, encoding="utf-8"
    )
    assert done.stdout == "ready\nstopped\n", done.stderr


def test_memory_does_not_grow_with_the_corpus():
    code = """
import resource
from rustbpe import Tokenizer

def peak_after(n_documents):
    documents = (f"the cat {i % 1000} sat on the mat. " * 1000 for i in range(n_documents))
    Tokenizer().train_from_iterator(documents, 500)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

small = peak_after(300)  # 8 MB of text
print(peak_after(20_000) / small)  # 500 MB
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    )
    assert float(done.stdout) < 1.5, f"peak memory grew {done.stdout.strip()} times"


def test_the_type_stub_lists_what_there_is():
    stub = Path(__file__).parents[2] / "rustbpe" / "rustbpe.pyi"
    (cls,) = [
        n for n in ast.parse(stub.read_text(encoding="utf-8")).body if isinstance(n, ast.ClassDef)
    ]
    stubbed = {n.name: n for n in cls.body if isinstance(n, ast.FunctionDef)}
    del stubbed["__init__"]
    assert stubbed.keys() == {name for name in dir(rustbpe.Tokenizer) if not name.startswith("_")}
    for name, function in stubbed.items():
        real = getattr(rustbpe.Tokenizer, name)
        assert real.__doc__, f"{name} has no docstring"
        if callable(real):
            arguments = [a.arg for a in function.args.args + function.args.kwonlyargs]
            assert list(inspect.signature(real).parameters) == arguments, name
