"""Encoding in Rust against tiktoken, the Python encoder and GPT-2's own files."""

import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lib.tokenizer.bpe import (
    GPT2_PATTERN,
    SPLIT_PATTERN,
    encode_bpe,
    read_gpt2_ranks,
    split_pattern,
)

rustbpe = pytest.importorskip("rustbpe", reason="rustbpe is not built here")
if not hasattr(rustbpe, "Tokenizer"):
    pytest.skip("rustbpe is not built here", allow_module_level=True)
Tokenizer = rustbpe.Tokenizer

CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
PATTERNS = [SPLIT_PATTERN, split_pattern(1), split_pattern(3), GPT2_PATTERN, CL100K_PATTERN]
OLD_CHARACTERS = st.characters(exclude_categories=["Cs", "Cn"])
TEXTS = [
    "the cat that sat on the mat saw the other cat's hat, and that was that!",
    "What is 12 times 12? It is 144, he said. Né \N{CAT}\n\n  They don't mind the rain.\n",
] * 3


def trained(texts, vocab_size: int, **options):
    tokenizer = Tokenizer()
    tokenizer.train_from_iterator(texts, vocab_size, **options)
    return tokenizer


def theirs(tokenizer, special_tokens=None) -> tiktoken.Encoding:
    return tiktoken.Encoding(
        "test",
        pat_str=tokenizer.get_pattern(),
        mergeable_ranks=dict(tokenizer.get_mergeable_ranks()),
        special_tokens=special_tokens or {},
    )


def all_of_unicode(around: str) -> str:
    """Every character, each between the same neighbours: some are letters, some end a word."""
    characters = (chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000)
    return "".join(around.format(character) for character in characters)


ODD = [
    "",
    " ",
    "\x00\x00\x00",
    "a\x00b\x1c\x85\u2028",
    "\r\n \r\n\t x",
    "ends in space \n  ",
    "'S 'Ll 'ſ DON'T",
    "a\ud800b",
    "\ud83d\ude00 \udc00\ud800",
    "the" * 400,
    "ab" * 5000 + " \N{CAT}" * 50,
    "=" * 3000 + "\n" * 300 + " " * 3000 + "x",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_ids_equal_tiktoken_on_odd_texts(pattern):
    tokenizer = trained([*TEXTS, all_of_unicode("a{0}")[:60_000]], 1500, pattern=pattern)
    reference = theirs(tokenizer)
    for text in ODD:
        assert tokenizer.encode(text) == reference.encode_ordinary(text), repr(text[:50])
    assert tokenizer.batch_encode(ODD, 2) == reference.encode_ordinary_batch(ODD)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_ids_equal_tiktoken_on_all_of_unicode(pattern):
    text = all_of_unicode("a{0} {0}{0}1")
    tokenizer = trained([text], 3000, pattern=pattern)
    assert tokenizer.encode(text) == theirs(tokenizer).encode_ordinary(text)


def test_ids_equal_tiktoken_on_a_million_of_one_letter():
    tokenizer = trained(["a" * 1000, "ab" * 100], 270)
    for text in ("a" * 1_000_000, "ab" * 500_000):
        assert tokenizer.encode(text) == theirs(tokenizer).encode_ordinary(text)


def test_a_token_of_a_million_bytes():
    tokenizer = trained(["a" * 2**20], 276)
    assert tokenizer.encode("b" + "a" * 2**21 + "b") == [
        98,
        *theirs(tokenizer).encode("a" * 2**21),
        98,
    ]
    assert tokenizer.encode("a" * 2**20) == [275]


CROWDED = st.text(st.sampled_from("the cat12 sé\n'!\t\u3000"), max_size=400)


@given(st.text(OLD_CHARACTERS) | CROWDED, st.sampled_from(PATTERNS))
@settings(max_examples=100, deadline=None)
def test_ids_equal_python_and_tiktoken(text, pattern):
    rust = trained(TEXTS, 320, pattern=pattern)
    ids = rust.encode(text)
    assert ids == theirs(rust).encode_ordinary(text)
    if pattern != CL100K_PATTERN:  # Python's `$` also matches before a last line end
        assert ids == encode_bpe(text, dict(rust.get_mergeable_ranks()), pattern)
    assert rust.decode(ids) == text
    assert rust.batch_encode([text, "cat"], num_threads=2) == [ids, rust.encode("cat")]
    assert rust.encode_bytes(text.encode()) == ids


@given(st.lists(st.text("ab ", min_size=2, max_size=6), unique=True, max_size=30), st.randoms())
@settings(max_examples=60, deadline=None)
def test_ids_equal_tiktoken_for_ranks_that_no_training_makes(tokens, generator):
    ranks = [bytes([byte]) for byte in range(256)] + [token.encode() for token in tokens]
    generator.shuffle(ranks)
    tokenizer = Tokenizer.from_mergeable_ranks({token: i for i, token in enumerate(ranks)})
    text = "".join(generator.choices("ab ", k=600))
    assert tokenizer.encode(text) == theirs(tokenizer).encode_ordinary(text)


def test_a_long_document_is_encoded_in_pieces_and_by_threads():
    tokenizer = trained(TEXTS, 300)
    words = ["the", " cat", " sat", "\n\n", " 1989", ", that's", " ", "  x", "語彙"]
    generator = random.Random(0)
    text = "".join(generator.choices(words, k=1_500_000))  # beyond what runs on the calling thread
    ids = tokenizer.encode(text)
    assert ids == theirs(tokenizer).encode_ordinary(text)
    assert tokenizer.batch_encode([text, "a", text], 3) == [ids, [97], ids]


def test_batch_encode():
    rust = trained(TEXTS, 300)
    expected = [rust.encode(text) for text in TEXTS]
    assert rust.batch_encode(TEXTS) == rust.batch_encode(TEXTS, num_threads=3) == expected
    assert rust.batch_encode([]) == []
    with pytest.raises(ValueError, match="num_threads is 0"):
        rust.batch_encode(TEXTS, num_threads=0)
    with pytest.raises(TypeError, match="item 1 of texts is bytes, expected str"):
        rust.batch_encode(["a", b"bytes"])


def test_numpy_arrays_without_a_list():
    rust = trained(TEXTS, 300)
    array = rust.encode_to_numpy(TEXTS[0])
    assert array.dtype == np.uint32 and array.tolist() == rust.encode(TEXTS[0])
    array[0] = 7  # it owns its memory
    arrays = rust.batch_encode_to_numpy([*TEXTS, ""], 2)
    assert [a.tolist() for a in arrays] == rust.batch_encode([*TEXTS, ""])
    assert rust.decode(rust.encode_to_numpy("the cat")) == "the cat"


@given(st.binary(max_size=60) | st.text(max_size=20).map(lambda t: t.encode("utf-8", "replace")))
@settings(max_examples=100, deadline=None)
def test_bytes_round_trip(data):
    rust = trained(TEXTS, 300)
    assert rust.decode_bytes(rust.encode_bytes(data)) == data


def test_bytes_around_a_broken_one_are_encoded_as_text():
    rust = trained(TEXTS, 300)
    assert rust.encode_bytes(b"the cat\xff\xfe that") == [
        *rust.encode("the cat"),
        *(0xFF, 0xFE),
        *rust.encode(" that"),
    ]


def test_decode_replaces_broken_characters_as_python_does():
    fresh = Tokenizer()
    for broken in (b"\xf0\x9f", b"\xe2\x82a", b"\xff\xc3(", b"a\xed\xa0\x80"):
        assert fresh.decode(list(broken)) == broken.decode(errors="replace")


@pytest.mark.parametrize("bad", [-1, 256, 2**40, 2**80, -(2**80)])
def test_unknown_ids(bad):
    for decode in (Tokenizer().decode, Tokenizer().decode_bytes):
        with pytest.raises(ValueError, match=f"unknown token id {bad}.*255"):
            decode([97, bad])
    with pytest.raises(TypeError):
        Tokenizer().decode(["a"])


# --- special tokens ------------------------------------------------------------------------------

SPECIALS = {"<|bos|>": 300, "<|end|>": 301, "<|end|><|bos|>": 305}


def with_specials():
    return trained(TEXTS, 300).with_special_tokens(SPECIALS)


def test_special_tokens_belong_to_a_new_tokenizer():
    plain = trained(TEXTS, 300)
    special = plain.with_special_tokens(SPECIALS)
    assert plain.special_tokens == {} and special.special_tokens == SPECIALS
    assert (plain.vocab_size, special.vocab_size) == (300, 306)
    assert special.get_mergeable_ranks() == plain.get_mergeable_ranks()
    assert special.decode([300, 97, 305]) == "<|bos|>a<|end|><|bos|>"
    with pytest.raises(ValueError, match="unknown token id 303"):
        special.decode([303])  # a gap
    special.train_from_iterator(TEXTS, 290)
    assert special.special_tokens == {}


SPECIAL_TEXT = st.lists(st.sampled_from(["<|bos|>", "<|end|>", "<|", "bos|>", "the cat ", "é"]))
NAMES = st.sets(st.sampled_from(list(SPECIALS)))


@given(SPECIAL_TEXT.map("".join), NAMES | st.just("all"), NAMES | st.just("all"))
@settings(max_examples=200, deadline=None)
def test_allow_and_deny_as_tiktoken(text, allowed, disallowed):
    # Without the special token that begins as another one does: which of the two tiktoken takes is open.
    specials = {name: id for name, id in SPECIALS.items() if name != "<|end|><|bos|>"}
    rust = trained(TEXTS, 300).with_special_tokens(specials)
    reference = theirs(rust, specials)
    allowed = allowed if allowed == "all" else allowed & specials.keys()
    disallowed = disallowed if disallowed == "all" else disallowed & specials.keys()
    options = {"allowed_special": allowed, "disallowed_special": disallowed}
    try:
        expected = reference.encode(text, **options)
    except ValueError:
        with pytest.raises(ValueError, match="the text holds the special token"):
            rust.encode(text, **options)
        with pytest.raises(ValueError, match="the text holds the special token"):
            rust.batch_encode_to_numpy([text], **options)
        return
    assert rust.encode(text, **options) == expected
    assert rust.encode_to_numpy(text, **options).tolist() == expected
    assert rust.batch_encode([text, text], **options) == [expected] * 2


def test_by_default_a_special_token_in_text_is_an_error():
    rust = with_specials()
    with pytest.raises(
        ValueError, match=r'"<\|end\|><\|bos\|>" at byte 3.*disallowed_special=\(\)'
    ):
        rust.encode("éa<|end|><|bos|>")
    ordinary = rust.encode("<|bos|>", disallowed_special=())
    assert max(ordinary) < 300 and rust.decode(ordinary) == "<|bos|>"
    # Of two that begin together the longer one is meant, if it is allowed.
    assert rust.encode("<|end|><|bos|>", allowed_special="all") == [305]
    short = {"<|bos|>", "<|end|>"}
    assert rust.encode("<|end|><|bos|>", allowed_special=short, disallowed_special=()) == [301, 300]


def test_bad_special_tokens():
    rust = with_specials()
    high = rust.with_special_tokens({"<s>": 2**24 - 1})
    assert high.encode("<s>", allowed_special="all") == [2**24 - 1]
    with pytest.raises(ValueError, match='no special token "<s>": this tokenizer has <|bos|>'):
        rust.encode("a", allowed_special={"<s>"})
    with pytest.raises(ValueError, match="this tokenizer has none"):
        Tokenizer().encode("a", disallowed_special={"<s>"})
    with pytest.raises(TypeError, match="one str"):
        rust.encode("a", allowed_special="<|bos|>")
    for specials, message in [
        ({"<s>": 97}, 'has id 97, which is b"a" already'),
        ({"": 400}, "no name"),
        ({"<s>": -1}, "id -1"),
        ({"<s>": 2**70}, "1180591620717411303424 is out of range"),
        ({"<s>": 2**24}, "ids are 0 to 16777215"),
        ({"<s>": 400, "<t>": 400}, "the id or the name"),
    ]:
        with pytest.raises(ValueError, match=message):
            rust.with_special_tokens(specials)


# --- ranks and files -----------------------------------------------------------------------------


def test_bad_ranks():
    ranks = {bytes([byte]): byte for byte in range(256)}
    for extra, message in [
        ({b"ab": 97}, "id 97 is given twice"),
        ({b"": 256}, "empty"),
        ({b"ab": -1}, "id -1"),
        ({b"ab": 2**80}, "1208925819614629174706176 is out of range"),
    ]:
        with pytest.raises(ValueError, match=message):
            Tokenizer.from_mergeable_ranks(ranks | extra)
    with pytest.raises(ValueError, match="byte 65 has no token"):
        Tokenizer.from_mergeable_ranks({t: i for t, i in ranks.items() if t != b"A"})
    with pytest.raises(ValueError, match='b"a" is given twice'):
        Tokenizer.from_mergeable_ranks([*ranks.items(), (b"a", 256)])
    with pytest.raises(ValueError, match="does not compile"):
        Tokenizer.from_mergeable_ranks(ranks, "(a")
    for wrong in ({"a": 1}, [(b"a", "b")], 7):
        with pytest.raises(TypeError):
            Tokenizer.from_mergeable_ranks(wrong)


def test_save_and_load(tmp_path):
    rust = trained(TEXTS, 300, pattern=split_pattern(3)).with_special_tokens(SPECIALS)
    path = tmp_path / "tokenizer.json"
    rust.save(path)
    loaded = Tokenizer.load(str(path))
    assert loaded.get_mergeable_ranks() == rust.get_mergeable_ranks()
    assert loaded.get_pattern() == rust.get_pattern()
    assert loaded.special_tokens == SPECIALS
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        Tokenizer.load(tmp_path / "none.json")
    with pytest.raises(OSError):
        Tokenizer().save(tmp_path / "no" / "folder.json")
    path = tmp_path / "other.json"
    for text in ("", "[]", '{"format": "rustbpe 2"}', "\xff"):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=r"other\.json is no tokenizer that save\(\) wrote"):
            Tokenizer.load(path)


# --- GPT-2 and GPT-4 -----------------------------------------------------------------------------

DATA = os.environ.get("NANOCHAT_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="NANOCHAT_TEST_DATA is not set")


@needs_data
@pytest.mark.parametrize("pattern", [GPT2_PATTERN, CL100K_PATTERN])
def test_ids_of_gpt2_equal_tiktoken(pattern):
    ranks = read_gpt2_ranks(Path(DATA) / "gpt2_tokenizer" / "encoder.json")
    tokenizer = Tokenizer.from_mergeable_ranks(ranks, pattern)
    tokenizer = tokenizer.with_special_tokens({"<|endoftext|>": 50_256})
    assert tokenizer.vocab_size == 50_257
    reference = theirs(tokenizer)
    texts = [*ODD, all_of_unicode("{0}a"), all_of_unicode(" {0}\n")]
    for file in sorted(Path(DATA).glob("*/*.txt")) + sorted(Path(DATA).glob("*/*.jsonl")):
        texts.append(file.read_text(encoding="utf-8", errors="replace"))
    assert len(texts) > 10
    expected = [reference.encode_ordinary(text) for text in texts]
    assert tokenizer.batch_encode(texts, 2, disallowed_special=()) == expected
