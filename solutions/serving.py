# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: serving
#
# Two streams that must not be cut in the wrong place: bytes into characters, and text before a
# phrase that ends it.

# %%
from collections.abc import Iterable, Iterator

# %% [markdown]
# ## split_utf8
#
# The chapter leaves whole characters to Python's incremental decoder. Write the heart of it
# yourself. Given bytes that may end inside a character, return the text that is certain and the
# bytes to keep for later: at most 3, and only if they *could* still become a character. The first
# byte of a character tells its length: below 80 hex it stands alone, C2 to DF begins 2 bytes, E0 to
# EF 3, F0 to F4 4; bytes 80 to BF continue. Bytes that can no longer become valid text must not be
# kept for ever: decode them with `errors="replace"`.
#
# For this exercise an incomplete character is a first byte followed by too few continuing bytes, at
# the very end. (Python is a little stricter: it also knows that after E0 the next byte must be A0
# or above.)


# %%
#| exercise split_utf8
def split_utf8(data: bytes) -> tuple[str, bytes]:
    """Decode all but an incomplete character at the end; return the text and that rest."""
    ### BEGIN SOLUTION
    for n_rest in range(1, min(3, len(data)) + 1):
        first = data[-n_rest]
        if 0x80 <= first <= 0xBF:
            continue  # a continuing byte: look further left for the one that began
        length = 4 if 0xF0 <= first <= 0xF4 else 3 if 0xE0 <= first <= 0xEF else 2
        if 0xC2 <= first <= 0xF4 and n_rest < length:
            return data[:-n_rest].decode("utf-8", errors="replace"), data[-n_rest:]
        break
    return data.decode("utf-8", errors="replace"), b""
    ### END SOLUTION


# %%
assert split_utf8("né".encode()[:2]) == ("n", b"\xc3")
assert split_utf8("né".encode()) == ("né", b"")
assert split_utf8("\N{WAVING HAND SIGN}".encode()[:3]) == ("", b"\xf0\x9f\x91")
assert split_utf8(b"a\xa9") == ("a\ufffd", b"")

# %% [markdown]
# ## stop_at
#
# A base model asked in the form `Q: ... A:` answers and then invents the next `Q:`. Programs stop
# such a stream at a phrase. But the pieces come cut anywhere: `"an", "swer\n", "Q", ": next"`.
# Yield the text as early as possible, but never a character of the phrase, nor anything after its
# first occurrence. So a tail that could still be the beginning of the phrase must wait; when it
# turns out not to be, it comes out after all, and what still waits when the pieces end comes out
# too. Stop taking pieces once the phrase is complete: each costs a step of the model. `stop` is not
# empty. How you cut the text into yielded pieces is your affair, but no piece is empty.


# %%
#| exercise stop_at
def stop_at(pieces: Iterable[str], stop: str) -> Iterator[str]:
    """Pass text through up to the first occurrence of `stop`, which may span pieces."""
    ### BEGIN SOLUTION
    waiting = ""
    for piece in pieces:
        waiting += piece
        before, found, _ = waiting.partition(stop)
        if found:
            if before:
                yield before
            return
        sizes = range(min(len(stop) - 1, len(waiting)), 0, -1)
        n_held = next((n for n in sizes if waiting.endswith(stop[:n])), 0)
        if len(waiting) > n_held:
            yield waiting[: len(waiting) - n_held]
            waiting = waiting[len(waiting) - n_held :]
    if waiting:
        yield waiting
    ### END SOLUTION


# %%
assert "".join(stop_at(["an", "swer\n", "Q", ": next"], "\nQ:")) == "answer"
assert "".join(stop_at(["a\n", "Quiet"], "\nQ:")) == "a\nQuiet"
assert list(stop_at(["ab", "\n"], "\nQ:")) == ["ab", "\n"]
