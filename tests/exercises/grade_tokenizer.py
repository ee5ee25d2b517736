"""Grade the exercises of the chapter on the tokenizer."""

import random

from nanochat_lib.tokenizer.bpe import train_bpe

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


MUTANTS = {
    "recover_merges": [
        """def recover_merges(ranks):
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        for i in range(1, len(token)):
            if token[:i] in ranks and token[i:] in ranks:
                merges.append((ranks[token[:i]], ranks[token[i:]]))
                break
    return merges
""",
        """def recover_merges(ranks):
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        for i in range(len(token) - 1, 0, -1):
            if token[:i] in ranks and token[i:] in ranks:
                merges.append((ranks[token[:i]], ranks[token[i:]]))
                break
    return merges
""",
        """def recover_merges(ranks):
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
    for chunk in chunks:
        if text := chunk.decode(errors="replace"):
            yield text
""",
        """def stream_text(chunks):
    if text := b"".join(chunks).decode(errors="replace"):
        yield text
""",
        """def stream_text(chunks):
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
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for chunk in chunks:
        if text := decoder.decode(chunk):
            yield text
""",
    ],
}
