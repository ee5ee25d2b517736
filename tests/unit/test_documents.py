"""Documents: sources, shards, and a stream that resumes with the very next document."""

import ast
import json
import os
import sys
from itertools import count, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lib.common import Ranks
from nanochat_lib.data import documents as d

SAMPLES = os.environ.get("NANOCHAT_TEST_DATA")
needs_samples = pytest.mark.skipif(not SAMPLES, reason="NANOCHAT_TEST_DATA is not set")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Corpora of 11 documents in shards and row groups of several sizes."""
    texts = [f"document {i}\n" for i in range(11)]
    sizes = [(11, 11), (4, 2), (5, 2), (3, 1), (1, 1), (100, 3)]
    folder = tmp_path_factory.mktemp("corpora")
    return texts, {
        size: d.write_shards(iter(texts), folder / f"{size[0]}_{size[1]}", *size) for size in sizes
    }


def test_shards_have_the_sizes_asked_for(corpora):
    shards = corpora[1][5, 2]
    assert [path.name for path in shards] == [f"shard_0000{i}.parquet" for i in range(3)]
    groups = [
        [
            pq.read_metadata(path).row_group(g).num_rows
            for g in range(pq.read_metadata(path).num_row_groups)
        ]
        for path in shards
    ]
    assert groups == [[2, 2, 1], [2, 2, 1], [1]]
    assert d.list_shards(shards[0].parent) == shards


def test_documents_survive_the_round_trip(tmp_path):
    texts = ["", "\n", "\u2028", "\0", "ü" * 1000, "\N{WAVING HAND SIGN}", " end "]
    shards = d.write_shards(texts, tmp_path)
    assert [text for text, _ in d.stream_documents(shards, loop=False)] == texts


def test_writing_is_lazy_and_replaces_an_older_corpus(tmp_path):
    d.write_shards("abcdef", tmp_path, documents_per_shard=2)
    assert len(d.list_shards(tmp_path)) == 3
    assert len(d.write_shards("gh", tmp_path, documents_per_shard=2)) == 1
    assert len(d.list_shards(tmp_path)) == 1

    def failing():
        yield from ("a", "b", "c")
        raise RuntimeError("source broke")

    with pytest.raises(RuntimeError):
        d.write_shards(failing(), tmp_path, documents_per_shard=2, row_group_size=1)
    assert [path.name for path in d.list_shards(tmp_path)] == [
        "shard_00000.parquet"
    ]  # whole, or absent


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (-1, 1)])
def test_write_shards_refuses_sizes_below_one(tmp_path, sizes):
    with pytest.raises(ValueError, match="sizes start at 1"):
        d.write_shards(["a"], tmp_path, *sizes)


def test_no_documents_and_no_shards_are_errors(tmp_path):
    with pytest.raises(ValueError, match="no documents"):
        d.write_shards([], tmp_path)
    with pytest.raises(ValueError, match="no parquet files"):
        d.list_shards(tmp_path)
    with pytest.raises(ValueError, match="no shards"):
        d.stream_documents([])


def oracle(texts, per_shard, rank=0, world_size=1, group=1):
    """Yield (document number, epoch, owner) in reading order, from arithmetic alone."""
    for epoch in count():
        n_groups = 0
        for first in range(0, len(texts), per_shard):
            shard = list(range(first, min(first + per_shard, len(texts))))
            for start in range(0, len(shard), group):
                if n_groups % world_size == rank:
                    yield from ((i, epoch) for i in shard[start : start + group])
                n_groups += 1


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_resuming_after_any_document_goes_on_with_the_next(corpora, data):
    texts, shards = corpora
    size = data.draw(st.sampled_from(sorted(shards)))
    n_groups = sum(pq.read_metadata(path).num_row_groups for path in shards[size])
    world_size = data.draw(st.integers(1, min(3, n_groups)))
    rank = data.draw(st.integers(0, world_size - 1))
    ranks = Ranks(rank, rank, world_size)
    expected = list(islice(oracle(texts, size[0], rank, world_size, size[1]), 30))
    stream = list(islice(d.stream_documents(shards[size], ranks=ranks), 30))
    assert [text for text, _ in stream] == [texts[i] for i, _ in expected]
    assert [position.epoch for _, position in stream] == [epoch for _, epoch in expected]
    stop = data.draw(st.integers(0, 24))
    resumed = d.stream_documents(shards[size], start=stream[stop][1], ranks=ranks)
    assert list(islice(resumed, 5)) == stream[stop + 1 : stop + 6]


def test_two_spellings_of_one_position(corpora):
    shards = corpora[1][5, 2]
    assert d.Position(0, 0, 5) < d.Position(0, 1, 0) < d.Position(1, 0, 0)
    for after, before in [((0, 0, 5), (0, 1, 0)), ((0, 2, 1), (1, 0, 0))]:
        a, b = (d.stream_documents(shards, d.Position(*p)) for p in (after, before))
        assert list(islice(a, 12)) == list(islice(b, 12))


def test_ranks_share_everything_and_nothing_twice(corpora):
    texts, shards = corpora
    for world_size in (2, 3, 5):
        parts = [
            [
                t
                for t, _ in d.stream_documents(
                    shards[3, 1], ranks=Ranks(r, r, world_size), loop=False
                )
            ]
            for r in range(world_size)
        ]
        assert sorted(sum(parts, [])) == sorted(texts)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert all(part == sorted(part, key=texts.index) for part in parts)


def test_one_group_a_shard_still_feeds_every_rank(corpora):
    shards = corpora[1][1, 1]
    for rank in range(3):
        assert (
            next(d.stream_documents(shards, ranks=Ranks(rank, rank, 3)))[0] == f"document {rank}\n"
        )


def test_a_rank_without_text_is_an_error(corpora):
    with pytest.raises(ValueError, match="leave rank 1 without text"):
        next(d.stream_documents(corpora[1][11, 11], ranks=Ranks(1, 1, 2)))


def test_wrong_arguments_fail_at_the_call(corpora):
    with pytest.raises(ValueError, match="corpus of 3 shards"):
        d.stream_documents(corpora[1][5, 2], start=d.Position(0, 3, 0))


def test_only_the_row_groups_needed_are_read(corpora, monkeypatch):
    read = []
    original = d.read_row_group
    monkeypatch.setattr(
        d, "read_row_group", lambda path, g: read.append((path.name, g)) or original(path, g)
    )
    stream = d.stream_documents(corpora[1][5, 2], start=d.Position(0, 0, 3))
    assert read == []
    assert next(stream)[0] == "document 3\n"
    assert read == [("shard_00000.parquet", 1)]
    next(stream)
    assert read[1:] == [("shard_00000.parquet", 2)]


def test_other_columns_are_ignored_and_a_missing_one_is_named(tmp_path):
    path = tmp_path / "000_00000.parquet"
    pq.write_table(pa.table({"id": [1, 2], "text": ["a", "b"]}), path)
    assert [text for text, _ in d.stream_documents([path], loop=False)] == ["a", "b"]
    pq.write_table(pa.table({"content": ["a"]}), path)
    with pytest.raises(ValueError, match="content"):
        next(d.stream_documents([path]))


def test_docstrings_in_order_and_complete():
    source = Path(json.__file__).read_text(encoding="utf-8")
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    found = [text for node in nodes if (text := ast.get_docstring(node))]
    assert sorted(d.docstrings(source)) == sorted(found) and len(found) > 3
    inner = 'class A:\n  "a"\n  def f(self):\n    "f"\n    async def g(): "g"\nclass B: "b"'
    assert list(d.docstrings(inner)) == ["a", "f", "g", "b"]


def test_python_docs_are_english_in_a_fixed_order_and_import_nothing():
    before = set(sys.modules) | {"pydoc_data", "pydoc_data.topics"}
    first = list(islice(d.python_docs(), 400))
    assert list(islice(d.python_docs(), 400)) == first
    assert not {"antigravity", "this"} & (set(sys.modules) - before)
    assert sum(map(len, first)) > 400_000
    assert sum(text.count(" the ") for text in first) > 3_000


def test_drop_duplicates_keeps_the_first_of_each():
    texts = ["b", "a", "b", "", "a", "", "c"]
    assert list(d.drop_duplicates(texts)) == ["b", "a", "", "c"]
    assert next(d.drop_duplicates(str(i) for i in count())) == "0"  # lazy


def test_json_lines_with_every_line_end_unicode_knows(tmp_path):
    rows = [{"text": f"a{end}b"} for end in "\v\f\x1c\x1d\x1e\x85\u2028\u2029\r"]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "x.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8", newline="")
    assert list(d.read_json_lines(tmp_path / "x.jsonl")) == rows
    (tmp_path / "windows.jsonl").write_bytes(b'{"a": 1}\r\n{"a": 2}\r\n')
    assert list(d.read_json_lines(tmp_path / "windows.jsonl")) == [{"a": 1}, {"a": 2}]


def test_a_broken_json_line_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n\n{"a": \n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.jsonl, line 3"):
        list(d.read_json_lines(tmp_path / "x.jsonl"))


def test_text_files_keep_their_bytes(tmp_path):
    (tmp_path / "a.txt").write_bytes("ä\r\nb".encode())
    assert list(d.read_text_files([tmp_path / "a.txt"])) == ["ä\r\nb"]
    (tmp_path / "b.txt").write_bytes(b"ok\xff")
    with pytest.raises(ValueError, match=r"b\.txt is not UTF-8 at byte 2"):
        list(d.read_text_files([tmp_path / "b.txt"]))


def test_local_data_sets_of_both_kinds(corpora, tmp_path):
    texts, shards = corpora
    assert list(d.from_datasets(shards[5, 2][0].parent)) == texts
    assert list(d.from_datasets(shards[5, 2][1], split="validation")) == texts[5:10]
    (tmp_path / "x.jsonl").write_text(
        "".join(json.dumps({"body": text}) + "\n" for text in texts), encoding="utf-8"
    )
    assert list(d.from_datasets(str(tmp_path), column="body")) == texts
    with pytest.raises(ValueError, match="row 0 has no text in 'text'"):
        next(d.from_datasets(tmp_path / "x.jsonl"))


def test_a_folder_without_data_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match="no parquet and no JSON"):
            next(d.from_datasets(place))


@needs_samples
def test_real_web_pages_through_the_whole_chain(tmp_path):
    source = Path(SAMPLES) / "webtext_dclm"
    pages = list(d.from_datasets(source))
    by_hand = [
        json.loads(line)["text"]
        for line in (source / "web.jsonl").read_bytes().split(b"\n")
        if line
    ]
    assert pages == by_hand and len(pages) == 114
    shards = d.write_shards(pages, tmp_path, documents_per_shard=50, row_group_size=8)
    assert [text for text, _ in d.stream_documents(shards, loop=False)] == pages


@needs_samples
def test_the_trivia_record_with_a_next_line_character():
    path = Path(SAMPLES) / "core_extra" / "triviaqa_sm_sub.jsonl"
    rows = list(d.read_json_lines(path))
    assert len(path.read_text(encoding="utf-8").splitlines()) > len(rows)
    assert sum("\x85" in json.dumps(row, ensure_ascii=False) for row in rows) == 1
    assert len(rows) == path.read_bytes().count(b"\n") == 64
