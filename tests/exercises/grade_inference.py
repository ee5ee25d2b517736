"""Grade the exercises of the inference chapter."""

import torch


def grade_typical_filter(module) -> None:
    """Check by hand, then against the definition on random rows."""
    odds = torch.tensor([[0.6, 0.2, 0.1, 0.1]]).log()
    for p, expected in ((0.15, [1]), (0.5, [0, 1]), (0.79, [0, 1]), (1.0, [0, 1, 2, 3])):
        kept = module.typical_filter(odds.clone(), p)[0].isfinite().nonzero()[:, 0].tolist()
        assert kept == expected, f"p = {p} kept tokens {kept}, expected {expected}"
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20, 30, generator=generator)
    original = logits.clone()
    for p in (0.05, 0.5, 0.9):
        out = module.typical_filter(logits, p)
        assert torch.equal(logits, original), "the caller's logits were changed"
        assert out.shape == logits.shape, f"got shape {tuple(out.shape)}"
        for row, logit in zip(out, logits):
            kept, odds = row.isfinite(), logit.softmax(-1)
            assert kept.any() and torch.equal(row[kept], logit[kept]), (
                "kept logits must stay as they are"
            )
            distance = (-odds.log() - torch.distributions.Categorical(odds).entropy()).abs()
            assert odds[kept].sum() > p - 1e-5, f"kept only {odds[kept].sum():.3f} of p = {p}"
            farthest = distance.masked_fill(~kept, -1).argmax()
            spare = odds[kept].sum() - odds[farthest]
            assert spare < p + 1e-5, f"one token too many: {spare:.3f} is enough for p = {p}"
            if not kept.all():
                assert distance[kept].max() <= distance[~kept].min() + 1e-5, (
                    "a token nearer to the entropy was dropped"
                )


def grade_rows_that_fit(module) -> None:
    """Check by hand: whole rows, windows, and nothing below zero."""
    cases = [
        ((1000, 0, [None], 1, 1, 10, 2), 25),  # 2 x 10 x 2 bytes a row
        ((1000, 600, [None, None], 1, 1, 10, 2), 5),
        ((1000, 0, [None, 4], 1, 1, 10, 1), 35),  # 10 + 4 tokens, key and value
        ((1000, 0, [100, 4], 1, 1, 10, 1), 35),  # a window longer than the text
        ((999, 1000, [None], 1, 1, 1, 1), 0),
        ((1000, 0, [None], 3, 5, 4, 2), 4),
    ]
    for arguments, expected in cases:
        got = module.rows_that_fit(*arguments)
        assert got == expected, f"rows_that_fit{arguments} = {got}, expected {expected}"


def grade_repetition_curve(module) -> None:
    """A model that always says the next number, one that says one thing, and a coin."""

    def counter(text: list[int]) -> torch.Tensor:
        return 30.0 * torch.nn.functional.one_hot(torch.tensor((text[-1] + 1) % 100), 100).float()

    def coin(text: list[int]) -> torch.Tensor:
        return torch.tensor([1.0, 0.0])

    assert list(module.repetition_curve(counter, [0.0, 1.0], 2, 50)) == [0.0, 0.0]
    [share] = module.repetition_curve(counter, [0.0], 1, 200)
    assert abs(share - 0.5) < 1e-6, f"200 steps around a circle of 100: {share:.3f}, expected 0.5"
    [share] = module.repetition_curve(coin, [0.0], 3, 20)
    assert abs(share - 0.95) < 1e-6, f"one token for ever: {share:.3f}, 19 of 20 pairs are old"
    [short] = module.repetition_curve(coin, [1.0], 40, 3)
    assert 0.1 < short < 0.6, f"coins, 3 throws: {short:.3f}; do all texts get the same numbers?"
    first, second = (module.repetition_curve(coin, [1.0], 5, 8) for _ in range(2))
    assert list(first) == list(second), "the same seeds must give the same texts"
    seen = []

    def spy(text: list[int]) -> torch.Tensor:
        seen.append(tuple(text))
        return coin(text)

    module.repetition_curve(spy, [1.0], 6, 6)
    assert len(set(seen)) > 12, "texts must differ: one generator for each"


MUTANTS = {
    "typical_filter": [
        """
def typical_filter(logits, p):
    '''Top-p instead: nearest to no surprise at all.'''
    ordered, order = logits.sort(dim=-1, descending=True)
    odds = ordered.softmax(-1)
    ordered = ordered.masked_fill(odds.cumsum(-1) - odds >= p, float("-inf"))
    return torch.empty_like(logits).scatter(1, order, ordered)
""",
        """
def typical_filter(logits, p):
    '''Drops the token that crosses p.'''
    odds = logits.log_softmax(-1)
    entropy = -(odds.exp() * odds).sum(-1, keepdim=True)
    order = (-odds - entropy).abs().argsort(dim=-1, stable=True)
    held = odds.exp().gather(1, order).cumsum(-1)
    kept = torch.empty_like(held, dtype=torch.bool).scatter(1, order, held <= p)
    return logits.masked_fill(~kept, float("-inf"))
""",
        """
def typical_filter(logits, p):
    '''One entropy for all rows.'''
    odds = logits.log_softmax(-1)
    entropy = -(odds.exp() * odds).sum(-1).mean()
    order = (-odds - entropy).abs().argsort(dim=-1, stable=True)
    probabilities = odds.exp().gather(1, order)
    before = probabilities.cumsum(-1) - probabilities
    kept = torch.empty_like(before, dtype=torch.bool).scatter(1, order, before < p)
    return logits.masked_fill(~kept, float("-inf"))
""",
    ],
    "rows_that_fit": [
        """
def rows_that_fit(memory, weights, windows, n_kv_head, head_dim, tokens, number_bytes=2):
    '''Counts keys and forgets values.'''
    kept = sum(tokens if w is None else min(w, tokens) for w in windows)
    return max(0, (memory - weights) // (kept * n_kv_head * head_dim * number_bytes))
""",
        """
def rows_that_fit(memory, weights, windows, n_kv_head, head_dim, tokens, number_bytes=2):
    '''Lets a window be longer than the text.'''
    kept = sum(tokens if w is None else w for w in windows)
    return max(0, (memory - weights) // (2 * kept * n_kv_head * head_dim * number_bytes))
""",
        """
def rows_that_fit(memory, weights, windows, n_kv_head, head_dim, tokens, number_bytes=2):
    '''Owes memory where the weights alone do not fit.'''
    kept = sum(tokens if w is None else min(w, tokens) for w in windows)
    return (memory - weights) // (2 * kept * n_kv_head * head_dim * number_bytes)
""",
    ],
    "repetition_curve": [
        """
def repetition_curve(logits_of, temperatures, n_texts=10, length=50):
    '''Gives every text the same numbers.'''
    curve = []
    for temperature in temperatures:
        shares = []
        for i in range(n_texts):
            generator, text = torch.Generator().manual_seed(0), [0]
            for _ in range(length):
                uniform = torch.rand(1, generator=generator)
                text.append(int(sample(logits_of(text)[None], uniform, temperature)[0]))
            pairs = list(zip(text, text[1:]))
            shares.append(1 - len(set(pairs)) / len(pairs))
        curve.append(sum(shares) / len(shares))
    return curve
""",
        """
def repetition_curve(logits_of, temperatures, n_texts=10, length=50):
    '''Counts tokens that were seen, not pairs.'''
    curve = []
    for temperature in temperatures:
        shares = []
        for i in range(n_texts):
            generator, text = torch.Generator().manual_seed(i), [0]
            for _ in range(length):
                uniform = torch.rand(1, generator=generator)
                text.append(int(sample(logits_of(text)[None], uniform, temperature)[0]))
            shares.append(1 - len(set(text)) / len(text))
        curve.append(sum(shares) / len(shares))
    return curve
""",
    ],
}
