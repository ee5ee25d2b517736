# Generated from chapters/02_tokenizer.py by `course build`; edit that file.
"""Byte-pair encoding: learn a vocabulary from text, and encode text with it."""

import heapq
import json
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import regex

from nanochat_lib.common import replace_surrogates

__all__ = [
    "merge_pair",
    "split_pattern",
    "SPLIT_PATTERN",
    "split_words",
    "count_words",
    "count_pairs",
    "train_bpe",
    "rust_tokenizer",
    "train_ranks",
    "encode_bpe",
    "GPT2_PATTERN",
    "read_gpt2_ranks",
]


def merge_pair(ids: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    """Replace each occurrence of a pair by one new id, from left to right.

    Example: merge_pair([1, 1, 1, 2], (1, 1), 9) -> [9, 1, 2].
    """
    merged = []
    i = 0
    while i < len(ids):
        if i + 1 < len(ids) and ids[i] == pair[0] and ids[i + 1] == pair[1]:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def split_pattern(max_digits: int = 2) -> str:
    r"""Build the regex whose matches are the words that merges stay inside.

    Args:
        max_digits: longest run of digits that is one word, 1 or more.

    Returns:
        A pattern for `regex`, tiktoken and rustbpe that covers every character of every text.

    Raises:
        ValueError: max_digits is below 1.

    Source: the pattern cl100k_base of tiktoken, where max_digits is 3.
    """
    if max_digits < 1:
        raise ValueError(f"max_digits is {max_digits}: a number needs at least one digit in a word")
    alternatives = [
        r"'(?i:[sdmt]|ll|ve|re)",  # the tail of a contraction: 's 're 'll
        r"[^\r\n\p{L}\p{N}]?+\p{L}+",  # letters, with at most one other character in front
        rf"\p{{N}}{{1,{max_digits}}}",  # a few digits
        r" ?[^\s\p{L}\p{N}]++[\r\n]*",  # punctuation, and the line ends after it
        r"\s*[\r\n]",  # white space up to the end of a line
        r"\s+(?!\S)",  # white space, but for the last one before a word
        r"\s+",
    ]
    return "|".join(alternatives)


SPLIT_PATTERN = split_pattern()


def split_words(text: str, pattern: str = SPLIT_PATTERN) -> list[str]:
    """Cut text into the words that merges stay inside; text that no match covers is dropped."""
    text = replace_surrogates(text)
    return [match.group() for match in regex.finditer(pattern, text) if match.group()]


def count_words(texts: Iterable[str], pattern: str = SPLIT_PATTERN) -> Counter[str]:
    """Count equal words over all texts.

    Raises:
        TypeError: texts is one string, whose items would be single characters.
    """
    if isinstance(texts, str):
        raise TypeError("texts is one str: pass an iterable of documents, such as [text]")
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split_words(text, pattern))
    return counts


def count_pairs(words: list[list[int]], counts: list[int]) -> Counter[tuple[int, int]]:
    """Count neighbouring ids over all words, each word as often as it occurs."""
    pairs: Counter[tuple[int, int]] = Counter()
    for ids, count in zip(words, counts):
        for pair in zip(ids, ids[1:]):
            pairs[pair] += count
    return pairs


def _pop_most_frequent(
    heap: list[tuple[int, tuple[int, int]]], pairs: Counter[tuple[int, int]]
) -> tuple[int, int] | None:
    """Take the best pair off a heap of (-count, pair) whose counts are never too low."""
    while heap:
        claimed, pair = heapq.heappop(heap)
        if -claimed == pairs[pair]:
            return pair
        if pairs[pair] > 0:
            heapq.heappush(heap, (-pairs[pair], pair))
    return None


def train_bpe(
    texts: Iterable[str], vocab_size: int, pattern: str = SPLIT_PATTERN
) -> list[tuple[bytes, int]]:
    """Learn a byte-pair vocabulary: merge the most frequent pair, among equals the smallest.

    Args:
        texts: documents, read once.
        vocab_size: tokens in the end, counting the 256 single bytes and no special tokens.
        pattern: regex whose matches are the words that merges stay inside.

    Returns:
        (bytes, rank) in order of rank; fewer than vocab_size where the text runs out of pairs.

    Raises:
        ValueError: vocab_size is below 256, or no text holds a word.

    Source: Sennrich et al. 2016 (arXiv:1508.07909), algorithm 1, on bytes.
    """
    if vocab_size < 256:
        raise ValueError(f"vocab_size is {vocab_size}: the single bytes alone are 256")
    word_counts = count_words(texts, pattern)
    if not word_counts:
        raise ValueError("the corpus is empty: no document holds a word to learn from")
    words, counts = [list(word.encode()) for word in word_counts], list(word_counts.values())
    pairs = count_pairs(words, counts)
    where: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for index, ids in enumerate(words):
        for pair in zip(ids, ids[1:]):
            where[pair].add(index)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    tokens = [bytes([byte]) for byte in range(256)]
    while len(tokens) < vocab_size and (best := _pop_most_frequent(heap, pairs)) is not None:
        born = _apply_merge(best, len(tokens), words, counts, pairs, where)
        for pair in born:
            heapq.heappush(heap, (-pairs[pair], pair))
        tokens.append(tokens[best[0]] + tokens[best[1]])
    return [(token, rank) for rank, token in enumerate(tokens)]


def _apply_merge(
    pair: tuple[int, int],
    new_id: int,
    words: list[list[int]],
    counts: list[int],
    pairs: Counter[tuple[int, int]],
    where: defaultdict[tuple[int, int], set[int]],
) -> set[tuple[int, int]]:
    """Merge a pair in the words that hold it, keep the counts true, and return the pairs born."""
    born = set()
    for index in where.pop(pair):
        old, new = words[index], merge_pair(words[index], pair, new_id)
        for lost in zip(old, old[1:]):
            pairs[lost] -= counts[index]
        for kept in zip(new, new[1:]):
            pairs[kept] += counts[index]
            if new_id in kept:
                born.add(kept)
                where[kept].add(index)
        words[index] = new
    return born


def rust_tokenizer() -> type | None:
    """Return the class that the crate rustbpe offers, or None where it is not installed."""
    try:
        # Not `import rustbpe`: in the project's folder that would find the crate's own folder.
        from rustbpe import Tokenizer
    except ImportError:
        return None
    return Tokenizer


def train_ranks(texts: Iterable[str], vocab_size: int, pattern: str) -> dict[bytes, int]:
    """Learn ranks with rustbpe, or with the slower train_bpe where it is not installed.

    Args:
        texts: documents, read once.
        vocab_size: tokens in the end, counting the 256 single bytes and no special tokens.
        pattern: regex whose matches are the words that merges stay inside.
    """
    rust = rust_tokenizer()
    if rust is None:
        warnings.warn(
            "rustbpe is not installed: training with the slower Python trainer, same result. "
            "To build it, install Rust and run `pip install ./rustbpe` in the project's folder.",
            stacklevel=3,
        )
        return dict(train_bpe(texts, vocab_size, pattern))
    trainer = rust()
    trainer.train_from_iterator(texts, vocab_size, pattern=pattern)
    return dict(trainer.get_mergeable_ranks())


def encode_bpe(text: str, ranks: dict[bytes, int], pattern: str = SPLIT_PATTERN) -> list[int]:
    """Encode text by merging, inside each word, the pair of lowest rank until none is left.

    Example: with the merges "at", then "cat", the word "cats" becomes the ids of "cat" and "s".

    Args:
        text: any text; special tokens in it are ordinary characters.
        ranks: bytes of each token -> its id; ids rise in the order the tokens were learned.
        pattern: the regex that training used.

    Returns:
        Token ids.
    """
    encoded = []
    for word in split_words(text, pattern):
        pieces = [bytes([byte]) for byte in word.encode()]
        while len(pieces) > 1:
            merged = [left + right for left, right in zip(pieces, pieces[1:])]
            best = min(merged, key=lambda piece: ranks.get(piece, len(ranks)))
            if best not in ranks:
                break
            i = merged.index(best)
            pieces[i : i + 2] = [best]
        encoded += [ranks[piece] for piece in pieces]
    return encoded


GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def read_gpt2_ranks(encoder_json: Path | str) -> dict[bytes, int]:
    """Read GPT-2's vocabulary into bytes -> rank, without its one special token.

    Args:
        encoder_json: the file encoder.json (vocab.json at Hugging Face) of GPT-2.

    Returns:
        50,257 - 1 entries for GPT-2.

    Source: openai/gpt-2, src/encoder.py, for the printable stand-ins of bytes.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    byte_of = {chr(byte): byte for byte in printable}
    unprintable = [byte for byte in range(256) if byte not in printable]
    byte_of |= {chr(256 + n): byte for n, byte in enumerate(unprintable)}
    vocabulary = json.loads(Path(encoder_json).read_text(encoding="utf-8"))
    vocabulary.pop("<|endoftext|>", None)
    return {bytes(byte_of[c] for c in token): rank for token, rank in vocabulary.items()}
