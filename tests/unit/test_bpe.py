"""The Python trainer and encoder against counting anew, tiktoken and GPT-2's own files."""

import os
import random
from collections import Counter
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lib.tokenizer.bpe import (
    GPT2_PATTERN,
    SPLIT_PATTERN,
    count_pairs,
    count_words,
    encode_bpe,
    merge_pair,
    read_gpt2_ranks,
    split_pattern,
    split_words,
    train_bpe,
)

BYTES = {bytes([byte]): byte for byte in range(256)}
ENGLISH = [
    "the cat that sat on the mat saw the other cat's hat, and that was that!",
    "In 1989 there were 12345 cats; by 2024 there'll be 67,890.\n\n  They don't mind.\n",
    "naïve café 語彙 \N{WAVING HAND SIGN}\N{WAVING HAND SIGN} the end of the text\t\tof the cats",
] * 3
# Characters that every Unicode release since 14 knows: engines differ on newer ones.
OLD_CHARACTERS = st.characters(exclude_categories=["Cs", "Cn"])
# Few letters, so that runs, overlaps and ties are the rule.
CROWDED = st.lists(st.text(st.sampled_from("aab é1\n'"), max_size=40), max_size=4).filter(any)


def counting_anew(texts: list[str], vocab_size: int) -> list[bytes]:
    """Learn merges on strings of private characters, where str.replace does the merging."""
    words = Counter(word for text in texts for word in split_words(text))
    spelled = {word: "".join(map(chr, word.encode())) for word in words}
    tokens = [bytes([byte]) for byte in range(256)]
    while len(tokens) < vocab_size:
        pairs = Counter()
        for word, n in words.items():
            for i in range(len(spelled[word]) - 1):
                pairs[spelled[word][i : i + 2]] += n
        if not pairs:
            break
        best = sorted(pairs, key=lambda p: (-pairs[p], ord(p[0]), ord(p[1])))[0]
        spelled = {w: s.replace(best, chr(len(tokens))) for w, s in spelled.items()}
        tokens.append(tokens[ord(best[0])] + tokens[ord(best[1])])
    return tokens


# --- words ---------------------------------------------------------------------------------------


def test_words_by_hand():
    assert split_words("Don't pay $12345 for  2!!\n x") == [
        *["Don", "'t", " pay", " $", "12", "34", "5", " for", " ", " ", "2", "!!\n", " x"]
    ]
    assert split_words("HE'LL a \n \n  b") == ["HE", "'LL", " a", " \n \n", " ", " b"]
    assert split_words("") == []


def test_digits():
    for n in (1, 2, 3, 5):
        pieces = split_words("x" + "9" * 30, split_pattern(n))
        assert max(map(len, pieces)) == n and len(pieces) == 1 + 30 // n
    assert split_pattern(2) == SPLIT_PATTERN
    with pytest.raises(ValueError, match="max_digits is 0"):
        split_pattern(0)


@given(st.text(OLD_CHARACTERS))
@settings(max_examples=30, deadline=None)
def test_words_lose_nothing(text):
    assert "".join(split_words(text)) == text


@given(st.text(OLD_CHARACTERS), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_words_are_those_of_tiktoken(text, max_digits):
    pattern = split_pattern(max_digits)
    # With every word a token of its own, tiktoken shows its cuts.
    words = {word.encode() for word in split_words(text, pattern) if len(word.encode()) > 1}
    ranks = BYTES | {word: 256 + i for i, word in enumerate(sorted(words))}
    encoding = tiktoken.Encoding("t", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    expected = [word.encode() for word in split_words(text, pattern)]
    assert encoding.decode_tokens_bytes(encoding.encode_ordinary(text)) == expected


def test_text_outside_the_pattern_is_dropped_and_empty_matches_are_no_words():
    assert split_words("ab12cd", r"\d*") == ["12"]


def test_count_words():
    assert count_words(["a b", "a", " b"]) == {"a": 2, " b": 2}
    assert count_words([]) == {}
    with pytest.raises(TypeError, match="one str"):
        count_words("text")
    with pytest.raises(TypeError, match="one str"):
        train_bpe("text", 300)


# --- training ------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(0, 2), st.integers(0, 2))
@settings(max_examples=30, deadline=None)
def test_merge_pair_is_replace(ids, left, right):
    text = "".join(map(str, ids)).replace(f"{left}{right}", "9")
    assert merge_pair(ids, (left, right), 9) == [int(c) for c in text]


def test_count_pairs_weighs_words():
    pairs = count_pairs([[1, 2, 1, 2], [2, 1], [5]], [10, 3, 7])
    assert pairs == {(1, 2): 20, (2, 1): 13}


def test_training_by_hand():
    # "at" three times; then "th" (116, 104) and "at " (256, 32) tie: the smaller goes first.
    learned = [token for token, _ in train_bpe(["the cat that sat"], 259, r"[\s\S]+")]
    assert learned[256:] == [b"at", b"th", b"at "]


def test_ties_go_to_the_smallest_pair_of_ids():
    # Words "ba" and "ab" once each: (97, 98) before (98, 97), whatever comes first in the text.
    for texts in (["ba", "ab"], ["ab", "ba"]):
        assert [t for t, _ in train_bpe(texts, 300)][256:] == [b"ab", b"ba"]


@given(CROWDED)
@settings(max_examples=30, deadline=None)
def test_training_equals_counting_anew(texts):
    expected = counting_anew(texts, 285)
    assert train_bpe(texts, 285) == [(token, rank) for rank, token in enumerate(expected)]


def test_training_equals_counting_anew_on_english():
    assert [t for t, _ in train_bpe(ENGLISH, 400)] == counting_anew(ENGLISH, 400)


def test_training_reads_any_iterable_once_and_order_does_not_matter():
    shuffled = random.Random(0).sample(ENGLISH, len(ENGLISH))
    assert train_bpe(iter(shuffled), 350) == train_bpe(ENGLISH, 350)


def test_a_pair_whose_count_fell_to_one_is_still_learned():
    # "ab" goes first and takes one of the two "bc" away.
    learned = [token for token, _ in train_bpe(["abc", "ab", "ab", "bc"], 300)]
    assert learned[256:] == [b"ab", b"bc", b"abc"]


def test_small_vocabularies_begin_large_ones():
    assert train_bpe(ENGLISH, 400)[:300] == train_bpe(ENGLISH, 300)


def test_no_merge_crosses_a_word():
    for token, _ in train_bpe(ENGLISH, 500)[256:]:
        assert b" " not in token.lstrip(b" "), f"{token} glues two words"


def test_training_ends_when_no_pair_is_left():
    assert [t for t, _ in train_bpe(["ab"], 1000)][256:] == [b"ab"]
    for empty in ([], ["", ""]):
        with pytest.raises(ValueError, match="the corpus is empty"):
            train_bpe(empty, 1000)
    with pytest.raises(ValueError, match="vocab_size is 255"):
        train_bpe(["ab"], 255)


# --- encoding ------------------------------------------------------------------------------------


def test_lowest_rank_first_not_longest_match():
    assert encode_bpe("abc", BYTES | {b"bc": 256, b"ab": 257}) == [97, 256]
    assert encode_bpe("", BYTES) == []


def test_every_token_encodes_to_itself():
    ranks = dict(train_bpe(ENGLISH, 400))
    words = {token: rank for token, rank in ranks.items() if token.isascii()}
    assert {rank: encode_bpe(token.decode(), ranks) for token, rank in words.items()} == {
        rank: [rank] for rank in words.values()
    }


RANKS = dict(train_bpe(ENGLISH, 450))
ENCODING = tiktoken.Encoding(
    "t", pat_str=SPLIT_PATTERN, mergeable_ranks=RANKS, special_tokens={"<|bos|>": 450}
)


@given(
    st.lists(st.sampled_from([*"".join(ENGLISH), "the", " cat", "<|bos|>", "that"])).map("".join)
)
@settings(max_examples=30, deadline=None)
def test_encoding_equals_tiktoken(text):
    ids = encode_bpe(text, RANKS)
    assert ids == ENCODING.encode_ordinary(text)
    assert ENCODING.decode_bytes(ids) == text.encode()


# --- GPT-2 ---------------------------------------------------------------------------------------

DATA = os.environ.get("NANOCHAT_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="NANOCHAT_TEST_DATA is not set")


@pytest.fixture(scope="module")
def gpt2() -> Path:
    return Path(DATA) / "gpt2_tokenizer"


@needs_data
def test_gpt2_ranks_follow_its_merges(gpt2):
    ranks = read_gpt2_ranks(gpt2 / "encoder.json")
    assert sorted(ranks.values()) == list(range(50_256))
    assert ranks[b" the"] == 262 and ranks[b"\n"] == 198 and ranks[b"!"] == 0
    merges = (gpt2 / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    lengths = {rank: len(token) for token, rank in ranks.items()}
    assert [len(m) - 1 == lengths[256 + i] for i, m in enumerate(merges)].count(False) == 0


@needs_data
def test_gpt2_ids_equal_tiktoken_and_transformers(gpt2):
    from transformers import GPT2Tokenizer

    ranks = read_gpt2_ranks(gpt2 / "encoder.json")
    encoding = tiktoken.Encoding(
        "gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
    theirs = GPT2Tokenizer(str(gpt2 / "encoder.json"), str(gpt2 / "vocab.bpe"))
    assert encode_bpe("hello world", ranks, GPT2_PATTERN) == [31373, 995]
    for name in ("cs336_address.txt", "cs336_german.txt"):
        text = (gpt2 / name).read_text(encoding="utf-8") + " it's 12345  \n\n x"
        ids = encode_bpe(text, ranks, GPT2_PATTERN)
        assert ids == encoding.encode_ordinary(text) == theirs.encode(text)
