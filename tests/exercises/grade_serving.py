"""Grade the exercises of the serving chapter."""

import math
import random


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


def grade_tokens_to_read(module) -> None:
    """The last token of a reply, forgotten turns, edits in the middle, and prompts read twice."""
    read = module.tokens_to_read
    cases = [
        ([], []),
        ([([1, 2, 3], [7])], [3]),
        ([([1, 2, 3], [7, 8]), ([1, 2, 3, 7, 8, 4], [9])], [3, 2]),
        ([([1, 2], [7]), ([1, 2, 7, 3], [8])], [2, 2]),
        ([([1, 2], []), ([1, 2, 3], [8])], [2, 1]),
        ([([1, 2, 3], [4]), ([1, 2, 3], [4])], [3, 1]),
        ([([1, 2, 3], [4, 5]), ([1, 2, 3, 4], [9])], [3, 1]),
        ([([1, 2, 3, 4, 5], [6]), ([1, 4, 5, 6, 7], [8])], [5, 4]),
        ([([1, 2, 3], [4, 5]), ([9, 2, 3, 4, 5], [6])], [3, 5]),
        ([([1, 2, 3, 4], [5]), ([1, 2], [6]), ([1, 2, 3, 4, 5], [7])], [4, 1, 3]),
    ]
    for turns, want in cases:
        asked = [(list(prompt), list(reply)) for prompt, reply in turns]
        got = list(read(asked))
        assert got == want, f"turns {turns}: got {got}, expected {want}"
        assert asked == turns, "the caller's lists were changed"


def grade_mean_waits(module) -> None:
    """Small days by hand, then crowds against a slow clock."""
    cases = [
        ([(0, 1), (0, 3), (0, 2)], 2, (3.0, 7 / 3)),
        ([(0, 4)], 3, (4.0, 4.0)),
        ([(5, 2)], 1, (2.0, 2.0)),
        ([(0, 2), (1, 2)], 1, (2.5, 2.5)),
        ([(0, 3), (1, 1)], 2, (3.0, 2.0)),
        ([(3, 1), (0, 2)], 1, (1.5, 1.5)),
        ([(0, 2)] * 4, 2, (3.0, 3.0)),
    ]
    for requests, slots, want in cases:
        got = module.mean_waits(list(requests), slots)
        assert all(math.isclose(a, b) for a, b in zip(got, want)), (
            f"requests {requests} on {slots} slots: mean waits {got}, expected {want}"
        )
    rng = random.Random(4)
    for _ in range(20):
        requests = [(rng.randrange(40), rng.choice((1, 2, 15))) for _ in range(25)]
        got, want = (
            module.mean_waits(requests, 3),
            (_slow(requests, 3, False), _slow(requests, 3, True)),
        )
        assert all(math.isclose(a, b) for a, b in zip(got, want)), f"{requests}: {got}, not {want}"
    crowd = [(t, 30 if t % 5 == 0 else 2) for t in range(60)]
    static, continuous = module.mean_waits(crowd, 4)
    assert static > 1.5 * continuous, (
        f"mixed lengths punish static batching: {static}, {continuous}"
    )


def _slow(requests: list[tuple[int, int]], slots: int, continuous: bool) -> float:
    """Move one clock and look at everybody at every tick."""
    state = [[arrival, i, length, False, None] for i, (arrival, length) in enumerate(requests)]
    queue = sorted(state, key=lambda r: (r[0], r[1]))
    for t in range(10_000):
        inside = [r for r in queue if r[3] and r[4] is None]
        if continuous or not inside:
            for r in queue:
                if not r[3] and r[0] <= t and len(inside) < slots:
                    r[3] = True
                    inside.append(r)
        for r in inside:
            r[2] -= 1
            if r[2] == 0:
                r[4] = t + 1
        if all(r[4] is not None for r in queue):
            break
    return sum(r[4] - r[0] for r in queue) / len(queue)


MUTANTS = {
    "stop_at": [
        """
def stop_at(pieces, stop):
    '''Finds the phrase only inside one piece.'''
    for piece in pieces:
        before, found, _ = piece.partition(stop)
        if before:
            yield before
        if found:
            return
""",
        """
def stop_at(pieces, stop):
    '''Waits for the end of the stream.'''
    text = "".join(pieces).partition(stop)[0]
    if text:
        yield text
""",
        """
def stop_at(pieces, stop):
    '''What waits at the end is lost.'''
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
        """
def stop_at(pieces, stop):
    '''Holds back one candidate only: loses the second start in a false start.'''
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
    "tokens_to_read": [
        '''def tokens_to_read(turns):
    """Believe that the last token of a reply was read too; it was only drawn."""
    cached, counts = [], []
    for prompt, reply in turns:
        same = 0
        while same < min(len(cached), len(prompt) - 1) and cached[same] == prompt[same]:
            same += 1
        counts.append(len(prompt) - same)
        cached = prompt + reply
    return counts
''',
        '''def tokens_to_read(turns):
    """Read nothing where the whole prompt is in the cache: then nothing can be said."""
    cached, counts = [], []
    for prompt, reply in turns:
        same = 0
        while same < min(len(cached), len(prompt)) and cached[same] == prompt[same]:
            same += 1
        counts.append(len(prompt) - same)
        cached = prompt + reply[:-1]
    return counts
''',
        '''def tokens_to_read(turns):
    """Subtract lengths, without looking at what the cache holds."""
    cached, counts = 0, []
    for prompt, reply in turns:
        counts.append(max(1, len(prompt) - cached))
        cached = len(prompt) + max(0, len(reply) - 1)
    return counts
''',
    ],
    "mean_waits": [
        '''def mean_waits(requests, slots):
    """Start a static batch only when it is full: the first ones wait for company."""
    means = []
    for continuous in (False, True):
        waiting = sorted(range(len(requests)), key=lambda i: requests[i][0])
        running, t, waits = {}, 0, 0
        while waiting or running:
            if continuous or (not running and sum(requests[i][0] <= t for i in waiting) >= min(slots, len(waiting))):
                while waiting and len(running) < slots and requests[waiting[0]][0] <= t:
                    number = waiting.pop(0)
                    running[number] = requests[number][1]
            t += 1
            for number in list(running):
                running[number] -= 1
                if not running[number]:
                    waits += t - requests[number][0]
                    del running[number]
        means.append(waits / len(requests))
    return tuple(means)
''',
        '''def mean_waits(requests, slots):
    """Measure from the start of the run, not from the arrival."""
    means = []
    for continuous in (False, True):
        waiting = sorted(range(len(requests)), key=lambda i: requests[i][0])
        running, t, waits = {}, 0, 0
        while waiting or running:
            if continuous or not running:
                while waiting and len(running) < slots and requests[waiting[0]][0] <= t:
                    number = waiting.pop(0)
                    running[number] = requests[number][1]
            t += 1
            for number in list(running):
                running[number] -= 1
                if not running[number]:
                    waits += t - 0
                    del running[number]
        means.append(waits / len(requests))
    return tuple(means)
''',
        '''def mean_waits(requests, slots):
    """Board whenever a slot is free under both policies."""
    means = []
    for continuous in (False, True):
        waiting = sorted(range(len(requests)), key=lambda i: requests[i][0])
        running, t, waits = {}, 0, 0
        while waiting or running:
            if True:
                while waiting and len(running) < slots and requests[waiting[0]][0] <= t:
                    number = waiting.pop(0)
                    running[number] = requests[number][1]
            t += 1
            for number in list(running):
                running[number] -= 1
                if not running[number]:
                    waits += t - requests[number][0]
                    del running[number]
        means.append(waits / len(requests))
    return tuple(means)
''',
    ],
}
