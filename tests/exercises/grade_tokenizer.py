"""Grade the exercises of the chapter on the tokenizer."""

import random

from nanochat_lib.tokenizer.bpe import encode_bpe, train_bpe

BYTES = {bytes([byte]): byte for byte in range(256)}


def replay(merges: list[tuple[int, int]]) -> dict[bytes, int]:
    tokens = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return {token: rank for rank, token in enumerate(tokens)}


def grade_recover_merges(module) -> None:
    recover = module.recover_merges
    assert recover(BYTES) == [], "single bytes were not merged"
    assert recover(BYTES | {b"ab": 256, b"bc": 257, b"abc": 258})[2] == (256, 99), "ab comes first"
    assert recover(BYTES | {b"bc": 256, b"ab": 257, b"abc": 258})[2] == (97, 256), "bc comes first"
    aaa = [(97, 97), (256, 97), (256, 256), (258, 256)]
    assert recover(replay(aaa)) == aaa, "runs of one letter merge from the left"
    text = "the cat that sat on the mat sang and sang that the bananas had banned the band " * 2
    ranks = dict(train_bpe([text], 320))
    merges = recover(ranks)
    assert len(merges) == len(ranks) - 256 and replay(merges) == ranks
    # Other ids for the single bytes, as GPT-2 has them, and a dictionary in another order.
    turned = {token: (rank + 100) % 256 if rank < 256 else rank for token, rank in ranks.items()}
    shuffled = dict(random.Random(0).sample(list(turned.items()), len(turned)))
    new_id = {rank: turned[token] for token, rank in ranks.items()}
    assert recover(shuffled) == [(new_id[left], new_id[right]) for left, right in merges]


def grade_stream_text(module) -> None:
    stream = module.stream_text
    rng = random.Random(1)
    for _ in range(100):
        text = "".join(rng.choices("aé語\N{WAVING HAND SIGN} \n", k=12)).encode()
        if rng.random() < 0.4:
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice([b"\xff", b"\xc3", b"\xe2\x82"]) + text[at:]
        cuts = sorted(rng.choices(range(len(text) + 1), k=6))
        chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
        pieces = list(stream(iter(chunks)))
        assert "".join(pieces) == text.decode(errors="replace"), chunks
        assert "" not in pieces, f"an empty piece for {chunks}"
    assert list(stream([])) == []
    assert list(stream([b"ab", b"\xf0\x9f"])) == ["ab", "\ufffd"], "the end must not swallow bytes"

    fed = []

    def feed():
        for chunk in (b"x\xc3", b"\xa9", b"\xff", b"y"):
            fed.append(chunk)
            yield chunk

    seen = [(piece, len(fed)) for piece in stream(feed())]
    assert seen == [("x", 1), ("é", 2), ("\ufffd", 3), ("y", 4)], (
        f"got {seen}: is each character out as soon as it is complete?"
    )


def _kind(letters: str, seed: int, n: int) -> list[str]:
    """Write documents from a small list of words over some letters."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(letters, k=rng.randint(3, 6))) for _ in range(40)]
    return [" ".join(rng.choices(words, k=20)) for _ in range(n)]


def grade_share_curve(module) -> None:
    """The same numbers as a plain trainer on the same mixture, then the signs of both slopes."""
    first, second = _kind("abcdefg", 1, 50), _kind("tuvwxyz", 2, 60)
    shares = [0.0, 0.25, 0.5, 1.0]
    got = module.share_curve(list(first), list(second), shares, 320)
    trained = [[d for i, d in enumerate(kind) if i % 5 != 4] for kind in (first, second)]
    for share, row in zip(shares, got):
        mixture = trained[0][: 40 - round(40 * share)] + trained[1][: round(40 * share)]
        ranks = dict(train_bpe(mixture, 320))
        for column, kind in enumerate((first, second)):
            held = kind[4::5]
            want = sum(map(len, held)) / sum(len(encode_bpe(text, ranks)) for text in held)
            assert abs(row[column] - want) < 1e-9, (
                f"share {share}: {row[column]:.4f} bytes per token on kind {column}, expected "
                f"{want:.4f}: 40 training documents in all, and every fifth one held out"
            )
    assert [r[0] for r in got] == sorted((r[0] for r in got), reverse=True), "the first kind loses"
    assert [r[1] for r in got] == sorted(r[1] for r in got), "the second kind gains"
    accents = module.share_curve(["é" * 5] * 5, ["é" * 5] * 5, [0.5], 256)
    assert accents == [(1.0, 1.0)], (
        f"got {accents}: bytes, not characters, in a vocabulary of bytes"
    )


MUTANTS = {
    "recover_merges": [
        """def recover_merges(ranks):
    '''Take the shortest left half that exists.'''
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        for i in range(1, len(token)):
            if token[:i] in ranks and token[i:] in ranks:
                merges.append((ranks[token[:i]], ranks[token[i:]]))
                break
    return merges
""",
        """def recover_merges(ranks):
    '''Take the longest left half that exists.'''
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        for i in range(len(token) - 1, 0, -1):
            if token[:i] in ranks and token[i:] in ranks:
                merges.append((ranks[token[:i]], ranks[token[i:]]))
                break
    return merges
""",
        """def recover_merges(ranks):
    '''Walk the ranks in the order of the dictionary, and through str, which breaks bytes.'''
    merges = []
    for token, rank in ranks.items():
        if len(token) > 1:
            smaller = {t: r for t, r in ranks.items() if r < rank}
            pair = encode_bpe(token.decode(errors="replace"), smaller, r"[\\s\\S]+")
            merges.append(tuple(pair))
    return merges
""",
    ],
    "stream_text": [
        """def stream_text(chunks):
    '''Decode each chunk alone: a character cut in two breaks twice.'''
    for chunk in chunks:
        if text := chunk.decode(errors="replace"):
            yield text
""",
        """def stream_text(chunks):
    '''Wait for the end.'''
    if text := b"".join(chunks).decode(errors="replace"):
        yield text
""",
        """def stream_text(chunks):
    '''Wait until all bytes so far are valid: one broken byte holds everything back.'''
    waiting = b""
    for chunk in chunks:
        waiting += chunk
        try:
            text = waiting.decode()
        except UnicodeDecodeError:
            continue
        waiting = b""
        if text:
            yield text
    if waiting:
        yield waiting.decode(errors="replace")
""",
        """def stream_text(chunks):
    '''Never flush: what is late at the end is lost.'''
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for chunk in chunks:
        if text := decoder.decode(chunk):
            yield text
""",
    ],
    "share_curve": [
        '''def share_curve(first, second, shares, vocab_size):
    """Measure on the documents that the vocabulary was trained on."""
    n, curve = min(len(first), len(second)), []
    for share in shares:
        k = round(share * n)
        ranks = dict(train_bpe(first[: n - k] + second[:k], vocab_size))
        curve.append(tuple(
            sum(len(t.encode()) for t in kind) / sum(len(encode_bpe(t, ranks)) for t in kind)
            for kind in (first, second)
        ))
    return curve
''',
        '''def share_curve(first, second, shares, vocab_size):
    """Add the second kind to all of the first: the mixtures then differ in length."""
    train = [[d for i, d in enumerate(kind) if i % 5 != 4] for kind in (first, second)]
    n, curve = min(map(len, train)), []
    for share in shares:
        ranks = dict(train_bpe(train[0] + train[1][: round(share * n)], vocab_size))
        curve.append(tuple(
            sum(len(t.encode()) for t in k[4::5]) / sum(len(encode_bpe(t, ranks)) for t in k[4::5])
            for k in (first, second)
        ))
    return curve
''',
        '''def share_curve(first, second, shares, vocab_size):
    """Count characters where bytes are asked for."""
    train = [[d for i, d in enumerate(kind) if i % 5 != 4] for kind in (first, second)]
    n, curve = min(map(len, train)), []
    for share in shares:
        k = round(share * n)
        ranks = dict(train_bpe(train[0][: n - k] + train[1][:k], vocab_size))
        curve.append(tuple(
            sum(map(len, kind[4::5])) / sum(len(encode_bpe(t, ranks)) for t in kind[4::5])
            for kind in (first, second)
        ))
    return curve
''',
    ],
}
