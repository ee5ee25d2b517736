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
import argparse
import codecs
import inspect
from collections.abc import Iterable, Iterator
from itertools import islice

import matplotlib.pyplot as plt

from nanochat_lib.data.documents import python_docs
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

# %% [markdown]
# ## share_curve
#
# **Experiment.** A tokenizer is trained once, on a mixture somebody chose, and everybody pays by the token.
# Who pays how much? Take two kinds of text and train vocabularies on mixtures of them that are equally
# long: with n the number of training documents of the smaller kind, a share s means the first
# `round(s * n)` training documents of `second` and the first `n - round(s * n)` of `first`. Every fifth
# document of each kind (numbers 4, 9, 14, ...) is never trained on; on those measure the bytes per token.
#
# Then say what you saw: is there a share that is fair to both? What would you choose, and for whom?


# %%
#| exercise share_curve
def share_curve(
    first: list[str], second: list[str], shares: list[float], vocab_size: int
) -> list[tuple[float, float]]:
    """Measure how two kinds of text compress as the training mixture moves from one to the other.

    Args:
        first: documents of one kind.
        second: documents of the other.
        shares: of the second kind among the training documents, from 0 to 1.
        vocab_size: tokens of each vocabulary, at least 256.

    Returns:
        For each share: bytes per token on held-out documents of the first kind, and of the second.
    """
    raise NotImplementedError("exercise tokenizer.share_curve")


# %%
# alt: bytes per token over the share of code in training: manual pages fall slowly, code rises steeply at first
def check_share_curve() -> None:
    """Manual pages against source code, from Python's own library."""
    manual = "\n".join(islice(python_docs(), 40)).split("\n\n")[:200]
    code = inspect.getsource(argparse).split("\n\n")[:200]
    shares = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0]
    curve = share_curve(manual, code, shares, vocab_size=600)
    assert curve[-1][1] > curve[0][1], f"code never learned to read code: {curve}"
    figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
    for column, name in enumerate(("manual pages", "source code")):
        values = [row[column] for row in curve]
        axes.plot(shares, values, marker="o")
        axes.annotate(f" {name}", (1.0, values[-1]), annotation_clip=False)
    axes.set(xlabel="share of code in training", ylabel="bytes per token", xlim=(-0.03, 1.25))
    plt.show()


check_share_curve()
