"""Documents: sources, shards, and a stream that resumes with the very next document."""

import ast
import gzip
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
from nanochat_lib.tasks.rows import load_rows

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


def texts_in(folder) -> list[str]:
    return [text for text, _ in d.stream_documents(d.list_shards(folder), loop=False)]


def test_a_corpus_can_be_rewritten_from_its_own_stream(tmp_path):
    d.write_shards([f"text {i}" for i in range(30)], tmp_path, 7, 3)
    own = (text.upper() for text, _ in d.stream_documents(d.list_shards(tmp_path), loop=False))
    shards = d.write_shards(own, tmp_path, 10, 4)
    assert texts_in(tmp_path) == [f"TEXT {i}" for i in range(30)]
    assert sorted(tmp_path.iterdir()) == shards and len(shards) == 3  # the old ones are gone


def failing():
    yield "new"
    raise ZeroDivisionError


@pytest.mark.parametrize("documents", [[], failing()])
def test_an_old_corpus_stays_until_the_new_one_is_whole(tmp_path, documents):
    d.write_shards(["old one", "old two"], tmp_path, 1)
    with pytest.raises((ValueError, ZeroDivisionError)):
        d.write_shards(documents, tmp_path)
    assert texts_in(tmp_path) == ["old one", "old two"] and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["shard_00000.parquet", "shard_00007.parquet", "shard_x.parquet"])
@pytest.mark.parametrize("kind", ["parquet", "page", "empty"])
def test_shards_of_others_are_never_replaced(tmp_path, name, kind):
    if kind == "parquet":
        pq.write_table(pa.table({"text": ["theirs"]}), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(b"<html>" if kind == "page" else b"")
    (tmp_path / "notes.md").write_text("mine", encoding="utf-8")
    before = (tmp_path / name).read_bytes()
    with pytest.raises(ValueError, match=f"{name} was not written by write_shards: choose another"):
        d.write_shards(["new"], tmp_path)
    assert (tmp_path / name).read_bytes() == before and len(list(tmp_path.iterdir())) == 2


ODD = ["split[12].jsonl", "a::b.jsonl", "a*b.jsonl", "{a,b}?.jsonl", "x%20y #1.jsonl", "~.jsonl"]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("folder", ["plain", "[v2] data", "a::b"])
def test_a_path_is_read_literally(tmp_path, name, folder):
    place = tmp_path / folder
    place.mkdir()
    for other in ("split1.jsonl", "acb.jsonl", "ax.jsonl", "x y #1.jsonl"):
        (place / other).write_text('{"text": "a neighbour"}\n', encoding="utf-8")
    (place / name).write_text('{"text": "asked for"}\n', encoding="utf-8")
    for streaming in (True, False):
        assert list(d.from_datasets(place / name, streaming=streaming)) == ["asked for"]
    assert load_rows(place / name, "hub/name")[0] == {"text": "asked for"}
    table = place / name.replace("jsonl", "parquet")
    pq.write_table(pa.table({"text": ["asked for"]}), table)
    assert list(d.from_datasets(table)) == ["asked for"]
    assert load_rows(table, "hub/name")[0] == {"text": "asked for"}


def test_only_data_is_read_from_a_folder(tmp_path):
    row = '{"text": "no data"}\n'
    for name in (
        ".ipynb_checkpoints/train-checkpoint.jsonl",
        ".cache/huggingface/download/train.jsonl.metadata",
        ".cache/huggingface/train.json",
        "train.jsonl.lock",
        "train.jsonl.bak",
        "dataset_infos.json",
        "sub/dataset_info.json",
        "sub/state.json",
        "_temporary/part.json",
        "_SUCCESS",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(row, encoding="utf-8")
    (tmp_path / "train.jsonl").write_text('{"text": "data"}\n', encoding="utf-8")
    assert list(d.from_datasets(tmp_path)) == ["data"]


def test_a_parquet_folder_of_spark_is_read_in_its_parent(tmp_path):
    spark = tmp_path / "corpus.parquet"
    spark.mkdir()
    for i in range(2):
        pq.write_table(pa.table({"text": [f"part {i}"]}), spark / f"part-0000{i}.parquet")
    (spark / "_SUCCESS").touch()
    (spark / "_metadata").write_bytes(b"x")
    assert list(d.from_datasets(tmp_path)) == texts_in(tmp_path) == ["part 0", "part 1"]


NO_PARQUET = {
    "empty": (b"", "it is empty"),
    "page": (b"\n<!DOCTYPE html><html>", "it is a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "text": (b'{"text": "a"}\n', "it starts with"),
    "cut": (None, "it is cut short"),
}


@pytest.mark.parametrize("case", NO_PARQUET)
def test_what_is_no_parquet_is_named_with_the_way_out(tmp_path, case):
    data, words = NO_PARQUET[case]
    path = d.write_shards(["x" * 1000] * 50, tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-40] if data is None else data)
    for read in (
        lambda: list(d.from_datasets(path)),
        lambda: next(d.stream_documents([path])),
        lambda: load_rows(path, "hub/name") if data else list(d.from_datasets(path)),
    ):
        with pytest.raises(ValueError, match=rf"{path.name} is no parquet file; .*{words}"):
            read()


COLUMNS = {
    "null": (pa.array(["a", "b", None]), 2),
    "bytes": (pa.array([b"a"]), 0),
    "list": (pa.array([["a"]]), 0),
    "struct": (pa.array([{"text": "a"}]), 0),
    "int": (pa.array([1]), 0),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_row_without_text_is_named(tmp_path, kind):
    column, row = COLUMNS[kind]
    pq.write_table(pa.table({"text": column}), tmp_path / "x.parquet", row_group_size=1)
    for read in (d.from_datasets(tmp_path), d.stream_documents([tmp_path / "x.parquet"])):
        with pytest.raises(ValueError, match=f"x.parquet, row {row}: no text in 'text'"):
            list(islice(read, 5))


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
def test_every_way_to_store_text_is_read(tmp_path, kind):
    pq.write_table(pa.table({"text": pa.array(["a", "b"]).cast(kind)}), tmp_path / "x.parquet")
    assert list(d.from_datasets(tmp_path)) == texts_in(tmp_path) == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ('{"text": "a"}\n{"text": "caf\xe9"}\n'.encode("latin-1"), "line 2 is not UTF-8.*Latin-1"),
        ('{"text": "a"}\n'.encode("utf-16"), "line 1 is not UTF-8.*UTF-16"),
        (b'{"text": "a"}\n{"text": "b', "line 2 is no JSON"),
        (b'{"text": "a"}\n7\n', "line 2, row 1 has no text in 'text'"),
        (b'{"text": null}\n', "line 1, row 0 has no text in 'text'"),
    ],
)
def test_a_broken_line_names_file_and_line(tmp_path, data, words):
    (tmp_path / "x.jsonl").write_bytes(data)
    with pytest.raises(ValueError, match=f"x.jsonl, {words}"):
        list(d.from_datasets(tmp_path / "x.jsonl"))


def test_marks_line_ends_lists_and_compression_are_accepted(tmp_path):
    (tmp_path / "bom.jsonl").write_bytes(
        b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b\xe2\x80\xa8c"}\r\n'
    )
    assert list(d.from_datasets(tmp_path / "bom.jsonl")) == ["a", "b\u2028c"]
    (tmp_path / "list.json").write_text('[{"text": "a"},\n {"text": "b"}]', encoding="utf-8")
    assert list(d.from_datasets(tmp_path / "list.json")) == ["a", "b"]
    with gzip.open(tmp_path / "z.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"text": "a"}\n')
    assert list(d.from_datasets(tmp_path / "z.jsonl.gz")) == ["a"]
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfa")
    assert list(d.read_text_files([tmp_path / "bom.txt"])) == ["a"]


def test_half_a_character_becomes_the_replacement_character_everywhere(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "cut \\ud83d"}\n', encoding="utf-8")
    assert list(d.from_datasets(tmp_path / "x.jsonl")) == ["cut \ufffd"]
    d.write_shards(["cut \ud83d", "\ud83d\ude00"], tmp_path / "s")
    assert texts_in(tmp_path / "s") == ["cut \ufffd", "\N{GRINNING FACE}"]
    assert list(d.drop_duplicates(["cut \ud83d", "b", "cut \ud83d"])) == ["cut \ud83d", "b"]
