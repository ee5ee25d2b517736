# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: tokenizer
#
# Training threw away how each token was made, and printing a token at a time breaks characters.
# Here we get the first back and repair the second.

# %%
import codecs
from collections.abc import Iterable, Iterator

from nanochat_lib.tokenizer.bpe import encode_bpe, train_bpe

# %% [markdown]
# ## recover_merges
#
# The ranks say *which* bytes each token covers and when it was learned, but not which two tokens
# were merged to make it. Other libraries store that pair: to export our tokenizer to them we need
# it. `abc` may have come from `a` + `bc` or from `ab` + `c`, and the ranks decide which.
#
# Return the pair of ids (left, right) for every token of two bytes or more, in order of rank.
# Single bytes need not have the ids 0 to 255: GPT-2's have not.


# %%
#| exercise recover_merges
def recover_merges(ranks: dict[bytes, int]) -> list[tuple[int, int]]:
    """Return the two ids that were merged into each token of two or more bytes.

    Example: the bytes, then "ab" = 256 and "abc" = 257 -> [(97, 98), (256, 99)].

    Args:
        ranks: bytes of each token -> its id, as training returns them.

    Returns:
        (left id, right id), in order of the merged token's rank.
    """
    raise NotImplementedError("exercise tokenizer.recover_merges")


# %%
letters = {bytes([byte]): byte for byte in range(256)}
assert recover_merges(letters | {b"ab": 256, b"abc": 257}) == [(97, 98), (256, 99)]
trained = dict(train_bpe(["the cat that sat on the mat"], 270))
tokens = {rank: token for token, rank in trained.items()}
for rank, (left, right) in enumerate(recover_merges(trained), start=256):
    assert tokens[left] + tokens[right] == tokens[rank], f"token {rank} is not its two halves"

# %% [markdown]
# ## stream_text
#
# A model's tokens arrive one at a time, each as a few bytes that may begin or end inside a
# character. Turn the chunks of bytes into pieces of text, so that a reader sees every character as
# soon as it is complete and never a replacement character for one that is only late. Bytes that are
# really invalid do become U+FFFD, at once, and so does a character that is still incomplete when
# the chunks end: joined, the pieces equal all chunks decoded together with `errors="replace"`.
# Yield no empty strings.


# %%
#| exercise stream_text
def stream_text(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield text as soon as its characters are complete.

    Example: b"a", b"\\xc3", b"\\xa9!" -> "a", "é!".

    Args:
        chunks: pieces of UTF-8, cut anywhere.
    """
    raise NotImplementedError("exercise tokenizer.stream_text")


# %%
assert list(stream_text([b"a", b"\xc3", b"\xa9!"])) == ["a", "é!"], "is the late byte waited for?"
wave = "hi \N{WAVING HAND SIGN}"
pieces = list(stream_text(bytes([i]) for i in encode_bpe(wave, letters)))
assert pieces == ["h", "i", " ", "\N{WAVING HAND SIGN}"]
