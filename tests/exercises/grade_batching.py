"""Grade the exercises of the batching chapter."""

import random
import time

import torch


def grade_last_steps(module) -> None:
    """By hand, then against a scheduler that takes one step after another."""
    cases = [
        (([(0, 1, 3), (0, 1, 2), (1, 1, 1)], 2, 8), [2, 1, 2]),
        (([(0, 20, 1), (0, 1, 1)], 1, 8), [2, 3]),
        (([(5, 1, 1)], 1, 8), [5]),
        (([(3, 1, 1), (0, 1, 2)], 1, 8), [3, 1]),
        (([(0, 16, 2)], 4, 8), [2]),
    ]
    for arguments, expected in cases:
        got = module.last_steps(*arguments)
        assert list(got) == expected, f"last_steps{arguments} = {got}, expected {expected}"
    dice = random.Random(0)
    for _ in range(30):
        requests = [
            (dice.randint(0, 9), dice.randint(1, 30), dice.randint(1, 9)) for _ in range(12)
        ]
        n_rows, chunk = dice.randint(1, 4), dice.choice([1, 7, 100])
        got = module.last_steps(list(requests), n_rows, chunk)
        assert list(got) == _slowly(requests, n_rows, chunk), (requests, n_rows, chunk)


def _slowly(requests: list[tuple[int, int, int]], n_rows: int, chunk: int) -> list[int]:
    """Take one step after another."""
    left = [list(request[1:]) for request in requests]
    ends: list[int | None] = [None] * len(requests)
    waiting = sorted(range(len(requests)), key=lambda i: requests[i][0])
    active: list[int] = []
    step = 0
    while None in ends:
        while waiting and requests[waiting[0]][0] <= step and len(active) < n_rows:
            active.append(waiting.pop(0))
        for i in list(active):
            if left[i][0] > 0:
                left[i][0] -= chunk
            if left[i][0] <= 0:
                left[i][1] -= 1
            if left[i][1] == 0:
                ends[i] = step
                active.remove(i)
        step += 1
    return ends


def grade_tokens_saved(module) -> None:
    """By hand, against each with each, and in time."""
    system = list(range(100, 120))
    cases = [
        (([system + [1, 2], system + [3], system + [1, 9]],), 41),
        (([[1] * 15 + [2], [1] * 15 + [3]],), 0),
        (([system, system],), 19),
        (([[1, 2, 3], [1, 2, 4], [1, 2, 4]], 1), 4),
        (([[1], [1]], 1), 0),
        (([],), 0),
    ]
    for arguments, expected in cases:
        got = module.tokens_saved(*arguments)
        assert got == expected, f"tokens_saved{arguments} = {got}, expected {expected}"
    dice = random.Random(1)
    prompts = [[dice.randrange(2) for _ in range(dice.randint(1, 12))] for _ in range(200)]
    slow = 0
    for i, prompt in enumerate(prompts):
        best = 0
        for other in prompts[:i]:
            same = 0
            while same < min(len(other), len(prompt) - 1) and other[same] == prompt[same]:
                same += 1
            best = max(best, same)
        slow += best if best >= 3 else 0
    assert module.tokens_saved(prompts, 3) == slow, "compared with each with each"
    long = [[7] * 200 + [i, i + 1] for i in range(3_000)]
    start = time.perf_counter()
    assert module.tokens_saved(long) == 200 * 2_999 + 0
    assert time.perf_counter() - start < 20, "too slow: is each prompt compared with each?"


class _Engine:
    """Count tokens without a model: a step takes 2 ms, and half a millisecond more for each row."""

    def __init__(self):
        self.rows, self.held, self.most = [], [], 0

    class Row:
        def __init__(self, request):
            self.request, self.tokens, self.finished = request, [], False

    @property
    def busy(self) -> bool:
        return any(not row.finished for row in self.rows)

    def submit(self, request):
        row = self.Row(request)
        self.rows.append(row)
        self.most = max(self.most, sum(not row.finished for row in self.rows))
        return row

    def cancel(self, row) -> None:
        row.finished = True

    def step(self) -> list:
        live = [row for row in self.rows if not row.finished]
        time.sleep(0.002 + 0.0005 * len(live))
        for row in live:
            row.tokens.append(1)
        self.rows = live
        return [(row, 1, 1) for row in live]


def grade_company(module) -> None:
    """Measure an engine whose times are known."""
    engine = _Engine()
    curve = module.company(engine, [1, 2], [1, 4, 16], steps=15)
    assert not engine.busy, "requests were left behind: cancel them"
    assert engine.most == 16, f"at most {engine.most} requests at once, expected 16"
    for count, (rate, wait) in zip((1, 4, 16), curve):
        expected = 0.002 + 0.0005 * count
        assert 0.9 * expected < wait < 3 * expected, (
            f"{count} people wait {1000 * wait:.1f} ms for a token, a step takes {1000 * expected:.1f}"
        )
        assert abs(rate * wait - count) < 0.02 * count, (
            f"{rate:.0f} tokens a second, {wait:.4f} s from token to token: that is not {count} people"
        )
    assert torch.tensor([rate for rate, _ in curve]).diff().gt(0).all()
    seeds = []

    class Spy(_Engine):
        def submit(self, request):
            seeds.append(request.seed)
            assert request.temperature == 1
            return super().submit(request)

    module.company(Spy(), [1], [3], steps=2)
    assert len(set(seeds)) == 3, "each request needs a seed of its own"


MUTANTS = {
    "last_steps": [
        """
def last_steps(requests, n_rows, chunk):
    '''Gives the first token a step after the prompt is read.'''
    free, ends = [0] * n_rows, [0] * len(requests)
    for i in sorted(range(len(requests)), key=lambda i: requests[i][0]):
        arrival, prompt, answer = requests[i]
        row = free.index(min(free))
        ends[i] = max(arrival, free[row]) + -(-prompt // chunk) - 1 + answer
        free[row] = ends[i] + 1
    return ends
""",
        """
def last_steps(requests, n_rows, chunk):
    '''Serves in the order of the list, whenever they come.'''
    free, ends = [0] * n_rows, []
    for arrival, prompt, answer in requests:
        row = free.index(min(free))
        ends.append(max(arrival, free[row]) + -(-prompt // chunk) - 1 + answer - 1)
        free[row] = ends[-1] + 1
    return ends
""",
        """
def last_steps(requests, n_rows, chunk):
    '''Takes turns instead of the first free row.'''
    free, ends = [0] * n_rows, [0] * len(requests)
    for n, i in enumerate(sorted(range(len(requests)), key=lambda i: requests[i][0])):
        arrival, prompt, answer = requests[i]
        row = n % n_rows
        ends[i] = max(arrival, free[row]) + -(-prompt // chunk) - 1 + answer - 1
        free[row] = ends[i] + 1
    return ends
""",
    ],
    "tokens_saved": [
        """
def tokens_saved(prompts, least=16):
    '''Never reads the last token of a prompt that was seen whole.'''
    root, saved = {}, 0
    for prompt in prompts:
        node, shared, going = root, 0, True
        for token in prompt:
            going = going and token in node
            shared += going
            node = node.setdefault(token, {})
        saved += shared if shared >= least else 0
    return saved
""",
        """
def tokens_saved(prompts, least=16):
    '''Goes on counting after the first difference.'''
    root, saved = {}, 0
    for prompt in prompts:
        node, shared = root, 0
        for place, token in enumerate(prompt):
            shared += (place, token) in root
            root[place, token] = {}
        shared = min(shared, len(prompt) - 1)
        saved += shared if shared >= least else 0
    return saved
""",
        """
def tokens_saved(prompts, least=16):
    '''Looks at the prompt before alone.'''
    saved = 0
    for before, prompt in zip(prompts, prompts[1:]):
        shared = 0
        while shared < min(len(before), len(prompt) - 1) and before[shared] == prompt[shared]:
            shared += 1
        saved += shared if shared >= least else 0
    return saved
""",
    ],
    "company": [
        """
def company(engine, prompt, row_counts, steps=20):
    '''One after another: nobody has company.'''
    curve = []
    for count in row_counts:
        start = time.perf_counter()
        for seed in range(count):
            row = engine.submit(Request(prompt, seed=seed))
            for _ in range(steps):
                engine.step()
            engine.cancel(row)
        seconds = time.perf_counter() - start
        curve.append((count * steps / seconds, seconds / steps))
    return curve
""",
        """
def company(engine, prompt, row_counts, steps=20):
    '''Leaves the requests of one count in the engine for the next.'''
    curve = []
    for count in row_counts:
        for seed in range(count):
            engine.submit(Request(prompt, seed=seed))
        engine.step()
        start = time.perf_counter()
        tokens = sum(len(engine.step()) for _ in range(steps))
        seconds = time.perf_counter() - start
        curve.append((tokens / seconds, seconds / steps))
    return curve
""",
        """
def company(engine, prompt, row_counts, steps=20):
    '''Divides the waiting among the people.'''
    curve = []
    for count in row_counts:
        rows = [engine.submit(Request(prompt, seed=seed)) for seed in range(count)]
        engine.step()
        start = time.perf_counter()
        tokens = sum(len(engine.step()) for _ in range(steps))
        seconds = time.perf_counter() - start
        for row in rows:
            engine.cancel(row)
        engine.step()
        curve.append((tokens / seconds, seconds / tokens))
    return curve
""",
    ],
}
