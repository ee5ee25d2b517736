"""The packing loader: clean rows, nothing invented, nothing lost but what is counted, exact resume."""

import json
import threading
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lib.common import Ranks
from nanochat_lib.data.documents import write_shards
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.loader import PackingLoader, Prefetch, take_document

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer({bytes([byte]): byte for byte in range(256)})


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Document i is one letter repeated, of varied length, so that rows can be read back."""
    texts = [LETTERS[i % 26] * (1 + (i * 7) % 23) for i in range(90)]
    return write_shards(
        texts, tmp_path_factory.mktemp("s"), documents_per_shard=40, row_group_size=8
    )


def documents_of(row: list[int], bos: int) -> list[list[int]]:
    """Cut a row of tokens at every <|bos|>."""
    out: list[list[int]] = []
    for token in row:
        if token == bos:
            out.append([])
        else:
            out[-1].append(token)
    return out


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(1, 15))
@settings(max_examples=30, deadline=None)
def test_take_document_takes_the_best_fit(lengths, room):
    documents = [[i] * length for i, length in enumerate(lengths)]
    taken = take_document(documents, room)
    assert len(documents) == len(lengths) - 1 and taken not in documents
    fitting = [length for length in lengths if length <= room]
    assert len(taken) == (max(fitting) if fitting else min(lengths))


def test_the_oldest_document_opens_a_row(tokenizer, shards):
    documents = [[1], [2] * 5]
    assert take_document(documents, 5, oldest=True) == [1]
    loader = PackingLoader(shards, tokenizer, 1, 40, buffer_documents=8)
    inputs, _ = next(loader)
    assert inputs[0, :2].tolist() == [tokenizer.bos_id, ord("a")]


@pytest.mark.parametrize("buffer_documents", [1, 3, 64])
def test_rows_are_aligned_shifted_and_full(tokenizer, shards, buffer_documents):
    loader = PackingLoader(shards, tokenizer, 3, 30, buffer_documents=buffer_documents)
    for _ in range(10):
        inputs, targets = next(loader)
        assert inputs.shape == targets.shape == (3, 30) and inputs.dtype == torch.int64
        assert (inputs[:, 0] == tokenizer.bos_id).all()
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert (targets >= 0).all()


def test_one_pass_uses_every_document_once_and_counts_what_it_crops(tokenizer, shards):
    loader = PackingLoader(shards, tokenizer, 2, 30, loop=False, buffer_documents=16)
    seen, used = Counter(), 0
    for inputs, targets in loader:
        for x, y in zip(inputs.tolist(), targets.tolist()):
            n_real = sum(t >= 0 for t in y)
            if not n_real:
                continue
            row = x[:1] + y[:n_real]
            used += len(row)
            for document in documents_of(row, tokenizer.bos_id):
                assert len(set(document)) <= 1, "two documents without <|bos|> between them"
                seen[chr(document[0]) if document else ""] += 1
    assert used + loader.tokens_cropped == loader.tokens_read
    expected = Counter(LETTERS[i % 26] for i in range(90))
    assert sum(seen.values()) == 90 and not seen - expected - Counter({"": 90})


def test_nothing_is_cropped_when_everything_fits(tokenizer, tmp_path):
    shards = write_shards(["abc", "de", "f"] * 4, tmp_path)
    loader = PackingLoader(shards, tokenizer, 1, 5, loop=False)  # rows of 6 = 4 + 2 = 3 + 3
    assert sum(1 for _ in loader) == 6 and loader.tokens_cropped == 0


@pytest.mark.parametrize("batches_before", [0, 1, 7, 40])
def test_resume_is_exact_across_epochs(tokenizer, shards, batches_before):
    loader = PackingLoader(shards, tokenizer, 2, 25, buffer_documents=10)
    for _ in range(batches_before):
        next(loader)
    state = json.loads(json.dumps(loader.state_dict()))
    frozen = json.dumps(state)
    expected = [next(loader) for _ in range(30)]
    assert json.dumps(state) == frozen
    fresh = PackingLoader(shards, tokenizer, 2, 25, buffer_documents=10)
    next(fresh)  # a loader that was used before must forget it
    fresh.load_state_dict(state)
    for x, y in expected:
        x2, y2 = next(fresh)
        assert torch.equal(x, x2) and torch.equal(y, y2)
    assert fresh.state_dict() == loader.state_dict()


def test_state_stays_as_it_was_taken(tokenizer, shards):
    loader = PackingLoader(shards, tokenizer, 1, 25, buffer_documents=10)
    state = loader.state_dict()
    before = json.dumps(state)
    next(loader)
    assert json.dumps(state) == before


def test_ranks_read_different_documents(tokenizer, shards):
    rows = []
    for rank in range(2):
        loader = PackingLoader(shards, tokenizer, 1, 30, Ranks(rank, rank, 2), loop=False)
        rows.append({tuple(x[0].tolist()) for x, _ in loader})
    assert not rows[0] & rows[1]
    other = PackingLoader(shards, tokenizer, 1, 30, Ranks(1, 1, 2))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        other.load_state_dict(PackingLoader(shards, tokenizer, 1, 30).state_dict())


def test_sizes_start_at_one(tokenizer, shards):
    with pytest.raises(ValueError, match="sequence_len=0"):
        PackingLoader(shards, tokenizer, 1, 0)


def test_a_document_that_cannot_be_encoded_is_named_by_shard_and_row(
    tmp_path, tokenizer, monkeypatch
):
    monkeypatch.setattr(tokenizer, "_rust", None)  # tiktoken takes no such run, our crate does
    texts = ["a"] * 30 + ["b" + " " * 600_000 + "c"] + ["d"] * 9
    paths = write_shards(texts, tmp_path / "my [v2]", documents_per_shard=16, row_group_size=4)
    for size in (1, 7, 64):
        loader = PackingLoader(paths, tokenizer, 2, 32, buffer_documents=size)
        with pytest.raises(
            ValueError, match=r"my \[v2\]/shard_00001.parquet, row 14: 600,000 white"
        ):
            for _ in range(30):
                next(loader)


class Counting:
    """Counts up to a stop, or to a number that fails; remembers which threads asked."""

    def __init__(self, stop: int = 5, bad: int = -1):
        self.n, self.stop, self.bad, self.threads = 0, stop, bad, set()

    def __iter__(self):
        return self

    def __next__(self):
        self.threads.add(threading.current_thread().name)
        if self.n == self.stop:
            raise StopIteration
        self.n += 1
        if self.n == self.bad:
            raise ValueError(f"document {self.n} cannot be encoded")
        return torch.full((1, 2), self.n), torch.full((1, 2), -self.n)

    def state_dict(self):
        return {"n": self.n}

    def load_state_dict(self, state):
        self.n = state["n"]


def numbers(batches) -> list[int]:
    return [int(inputs[0, 0]) for inputs, _ in batches]


def test_prefetch_gives_the_same_batches_from_another_thread():
    loader = Counting()
    ahead = Prefetch(loader)
    assert numbers(ahead) == [1, 2, 3, 4, 5] and next(ahead, None) is None
    assert threading.current_thread().name not in loader.threads
    ahead.close()


def test_prefetch_describes_what_was_handed_out_not_what_was_read():
    loader = Counting()
    ahead = Prefetch(loader)
    assert ahead.state_dict() == {"n": 0}
    for n in (1, 2, 3):
        next(ahead)
        assert ahead.state_dict() == {"n": n}
    ahead._waiting.result()
    assert loader.n == 4 and ahead.state_dict() == {"n": 3}
    saved = ahead.state_dict()
    assert numbers(ahead) == [4, 5]
    ahead.load_state_dict(saved)
    assert numbers(ahead) == [4, 5]
    ahead.close()


def test_prefetch_raises_an_error_when_its_batch_is_asked_for():
    ahead = Prefetch(Counting(bad=3))
    assert [int(next(ahead)[0][0, 0]) for _ in range(2)] == [1, 2]
    assert ahead.state_dict() == {"n": 2}
    with pytest.raises(ValueError, match="document 3"):
        next(ahead)
    ahead.load_state_dict({"n": 3})
    assert numbers(ahead) == [4, 5]
    ahead.close()


def test_prefetch_can_be_loaded_over_an_error_that_waits():
    ahead = Prefetch(Counting(bad=2))
    next(ahead)
    ahead.load_state_dict({"n": 2})
    assert numbers(ahead) == [3, 4, 5]
    ahead.close()


def test_prefetch_starts_no_thread_before_it_is_asked(tokenizer, shards):
    before = threading.active_count()
    ahead = Prefetch(PackingLoader(shards, tokenizer, 2, 16))
    assert threading.active_count() == before
    next(ahead)
    ahead.close()
    assert threading.active_count() == before
