"""Grade the exercises of the serving chapter."""

import codecs


def grade_split_utf8(module) -> None:
    """Cut texts everywhere, compare with Python's decoder, and feed bytes that are no text."""
    text = "na\u00efve \u2603 \U0001f44b z\u00df\u6c34\U0010ffff"
    data = text.encode()
    for end in range(len(data) + 1):
        decoder = codecs.getincrementaldecoder("utf-8")()
        expected = decoder.decode(data[:end])
        got = module.split_utf8(data[:end])
        rest = decoder.getstate()[0]
        assert got == (expected, rest), f"{data[:end]!r}: got {got}, expected {(expected, rest)}"
    streamed, rest = "", b""
    for byte in data:
        piece, rest = module.split_utf8(rest + bytes([byte]))
        streamed += piece
    assert (streamed, rest) == (text, b""), f"byte by byte: got {streamed!r}, kept {rest!r}"
    hopeless = (
        b"\xff",
        b"\xc0",
        b"a\x80",
        b"\x80\x80\x80\x80",
        b"\xf5",
        b"\xc3(",
        b"\xe2\x98\x83\x83",
    )
    for data in hopeless:
        got = module.split_utf8(data)
        expected = (data.decode("utf-8", errors="replace"), b"")
        assert got == expected, (
            f"{data!r}: got {got}, expected {expected}: is a bad byte kept for ever?"
        )
    assert module.split_utf8(b"\xff\xc3") == ("\ufffd", b"\xc3")


def grade_stop_at(module) -> None:
    """Cut texts at all places; what precedes the phrase must come out, early, and nothing else."""
    for text, stop in (
        ("answer\nQ: next", "\nQ:"),
        ("aaab", "aab"),
        ("no phrase here\n", "\nQ:"),
        ("ababac", "abac"),
        ("stop", "stop"),
        ("xx stop stop", "stop"),
        ("\n\nQ\nQ:", "\nQ:"),
    ):
        expected = text.partition(stop)[0]
        cuts = [list(text), [text], *([text[:i], text[i:]] for i in range(len(text) + 1))]
        for pieces in cuts:
            got = list(module.stop_at(iter(pieces), stop))
            assert "".join(got) == expected, (
                f"{pieces} up to {stop!r}: got {got}, expected {expected!r}"
            )
            assert all(got), f"{pieces}: an empty piece in {got}"
    taken = []
    arriving = (
        taken.append(piece) or piece for piece in ["hello", " wor", "ld", "\n", "Q:", "more"]
    )
    stream = module.stop_at(arriving, "\nQ:")
    assert next(stream) == "hello" and taken == ["hello"], (
        f"took {taken} before giving anything out"
    )
    assert "".join(stream) == " world" and taken[-1] == "Q:", (
        f"took {taken}: stop when the phrase is complete"
    )


MUTANTS = {
    "split_utf8": [
        # keeps any bytes at the end that do not decode
        """
def split_utf8(data):
    for n in range(min(3, len(data)) + 1):
        try:
            return data[: len(data) - n].decode("utf-8"), data[len(data) - n :]
        except UnicodeDecodeError:
            pass
    return data.decode("utf-8", errors="replace"), b""
""",
        # every character has at most two bytes
        """
def split_utf8(data):
    if data and 0xC2 <= data[-1] <= 0xF4:
        return data[:-1].decode("utf-8", errors="replace"), data[-1:]
    return data.decode("utf-8", errors="replace"), b""
""",
        # drops the incomplete end
        """
def split_utf8(data):
    return data.decode("utf-8", errors="ignore"), b""
""",
    ],
    "stop_at": [
        # finds the phrase only inside one piece
        """
def stop_at(pieces, stop):
    for piece in pieces:
        before, found, _ = piece.partition(stop)
        if before:
            yield before
        if found:
            return
""",
        # waits for the end of the stream
        """
def stop_at(pieces, stop):
    text = "".join(pieces).partition(stop)[0]
    if text:
        yield text
""",
        # what waits at the end is lost
        """
def stop_at(pieces, stop):
    waiting = ""
    for piece in pieces:
        waiting += piece
        before, found, _ = waiting.partition(stop)
        if found:
            if before:
                yield before
            return
        sizes = range(min(len(stop) - 1, len(waiting)), 0, -1)
        held = next((n for n in sizes if waiting.endswith(stop[:n])), 0)
        if len(waiting) > held:
            yield waiting[: len(waiting) - held]
            waiting = waiting[len(waiting) - held :]
""",
        # holds back one candidate only: loses the second start in a false start
        """
def stop_at(pieces, stop):
    matched = 0
    for piece in pieces:
        out = ""
        for letter in piece:
            if letter == stop[matched]:
                matched += 1
                if matched == len(stop):
                    if out:
                        yield out
                    return
            else:
                out += stop[:matched] + letter
                matched = 0
        if out:
            yield out
    if matched:
        yield stop[:matched]
""",
    ],
}
