"""The Rust tokenizer travels, takes what people have, and has one rule for half characters."""

import copy
import pickle

import numpy as np
import pytest

from nanochat_lib.tokenizer.bpe import encode_bpe, train_bpe
from nanochat_lib.tokenizer.tokenizer import Tokenizer as Ours

rustbpe = pytest.importorskip("rustbpe")
TEXTS = ["the cat sat on the mat", "caf\u00e9 \N{SNOWMAN}", "cut \ud83d", "\ud83d\ude00 whole"]


def trained(special: bool = True):
    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(TEXTS * 3, 280)
    specials = {"<|bos|>": tokenizer.vocab_size}
    return tokenizer.with_special_tokens(specials) if special else tokenizer


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("way", [lambda t: pickle.loads(pickle.dumps(t)), copy.copy, copy.deepcopy])
def test_all_of_a_tokenizer_travels(way, special):
    old = trained(special)
    new = way(old)
    assert new.get_mergeable_ranks() == old.get_mergeable_ranks()
    assert (new.get_pattern(), new.special_tokens) == (old.get_pattern(), old.special_tokens)
    assert new.batch_encode(TEXTS) == old.batch_encode(TEXTS)


def test_equal_tokenizers_have_one_fingerprint_for_datasets():
    from datasets.fingerprint import Hasher

    assert Hasher.hash(trained()) == Hasher.hash(trained())
    assert Hasher.hash(trained()) != Hasher.hash(trained(special=False))
    assert pickle.dumps(trained()) == pickle.dumps(trained())


def test_our_tokenizer_travels_too():
    ours = Ours.train(TEXTS, 280)
    for new in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
        assert new.hash == ours.hash and new.encode(TEXTS) == ours.encode(TEXTS)


def test_texts_come_in_any_container():
    from datasets import Dataset

    tokenizer, plain = trained(), ["the cat", "sat"]
    expected = tokenizer.batch_encode(plain)
    for texts in (
        tuple(plain),
        iter(plain),
        np.array(plain),
        np.array(plain, dtype=object),
        Dataset.from_dict({"text": plain})["text"],
    ):
        assert tokenizer.batch_encode(texts) == expected
    found = tokenizer.batch_encode_to_numpy(tuple(plain))
    assert [list(ids) for ids in found] == expected
    with pytest.raises(TypeError, match="pass a list of texts"):
        tokenizer.batch_encode("the cat")
    with pytest.raises(TypeError, match="item 1 of texts is int"):
        tokenizer.batch_encode(("a", 1))


def test_half_characters_have_one_rule_in_every_path():
    cut, clean = ["cut \ud83d"] * 3, ["cut \ufffd"] * 3
    first, second = rustbpe.Tokenizer(), rustbpe.Tokenizer()
    first.train_from_iterator(cut, 262)
    second.train_from_iterator(clean, 262)
    assert first.get_mergeable_ranks() == second.get_mergeable_ranks()
    assert train_bpe(cut, 262) == train_bpe(clean, 262) == first.get_mergeable_ranks()
    ranks = dict(first.get_mergeable_ranks())
    ours = Ours(ranks)
    for half, whole in (("cut \ud83d", "cut \ufffd"), ("\ud83d\ude00", "\N{GRINNING FACE}")):
        ids = encode_bpe(whole, ranks)
        assert encode_bpe(half, ranks) == ours.encode(half) == first.encode(half) == ids
        assert ours.encode([half]) == first.batch_encode([half]) == [ids]
    assert Ours.train(cut, 280).hash == Ours.train(clean, 280).hash


def test_a_file_that_cannot_be_written_or_read_is_named_and_nothing_is_left(tmp_path):
    tokenizer, folder = trained(), tmp_path / "place"
    folder.mkdir()
    for call in (tokenizer.save, rustbpe.Tokenizer.load):
        for path, error in (
            (tmp_path / "no/such.json", FileNotFoundError),
            (folder, IsADirectoryError),
            (tmp_path / ("long" * 100), OSError),
        ):
            with pytest.raises(error) as caught:
                call(str(path))
            assert caught.value.filename == str(path)
    assert [path.name for path in tmp_path.rglob("*")] == ["place"]
    tokenizer.save(str(tmp_path / "whole.json"))
    whole = (tmp_path / "whole.json").read_bytes()
    for name, damaged in (("cut", whole[:-9]), ("binary", b"\xff\xfe"), ("other", b"[]")):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name} is no tokenizer that save"):
            rustbpe.Tokenizer.load(str(tmp_path / name))


def test_half_characters_in_patterns_and_names_of_special_tokens_are_named():
    for call in (
        lambda: rustbpe.Tokenizer().train_from_iterator(["a"], 260, pattern="\ud83d"),
        lambda: trained(False).with_special_tokens({"<|\ud83d|>": 300}),
        lambda: Ours.train(["a"], 300, pattern="\ud83d"),
    ):
        with pytest.raises((ValueError, TypeError)):
            call()
