"""Grade the exercises of the inference chapter."""

import torch


def grade_nucleus_filter(module) -> None:
    """Check by hand, then against the definition on random rows."""
    odds = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    for p, expected in ((0.4, [1]), (0.6, [1, 3]), (0.8, [1, 2, 3]), (0.95, [0, 1, 2, 3])):
        kept = module.nucleus_filter(odds.clone(), p)[0].isfinite().nonzero()[:, 0].tolist()
        assert kept == expected, f"p = {p} kept tokens {kept}, expected {expected}"
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20, 30, generator=generator)
    original = logits.clone()
    for p in (0.05, 0.5, 0.9, 1.0):
        out = module.nucleus_filter(logits, p)
        assert torch.equal(logits, original), "the caller's logits were changed"
        assert out.shape == logits.shape, f"got shape {tuple(out.shape)}"
        for row, logit in zip(out, logits):
            kept = row.isfinite()
            assert kept.any() and torch.equal(row[kept], logit[kept]), (
                "kept logits must stay as they are"
            )
            odds = logit.softmax(-1)
            assert odds[kept].sum() > p - 1e-5, f"kept only {odds[kept].sum():.3f} of p = {p}"
            spare = odds[kept].sum() - odds[kept].min()
            assert spare < p + 1e-5, f"one token too many: {spare:.3f} is enough for p = {p}"
            if not kept.all():
                assert odds[kept].min() >= odds[~kept].max(), "a likelier token was dropped"


def grade_accept_draft(module) -> None:
    """Check single walks by hand, then count: the outcome must follow p, whatever q is."""
    q = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.4, 0.4]])
    p = torch.tensor([[0.25, 0.5, 0.25], [0.6, 0.4, 0.0], [0.1, 0.2, 0.7]])
    cases = [
        ([1, 1], [0.9, 0.9, 0.05], [1, 1, 0]),
        ([1, 1], [0.9, 0.9, 0.25], [1, 1, 1]),
        ([0, 1], [0.49, 0.9, 0.5], [0, 1, 2]),
        ([0, 1], [0.51, 0.0, 0.0], [2]),
        ([1, 2], [0.0, 0.0, 0.99], [1, 0]),
    ]
    for draft, uniforms, expected in cases:
        got = module.accept_draft(list(draft), q, p, list(uniforms))
        assert list(got) == expected, (
            f"draft {draft}, numbers {uniforms}: got {got}, expected {expected}"
        )
    n, generator = 6_000, torch.Generator().manual_seed(0)
    drafts = torch.stack([torch.multinomial(row, n, True, generator=generator) for row in q], 1)
    uniforms = torch.rand(n, 3, generator=generator)
    results = [module.accept_draft(d, q, p, u) for d, u in zip(drafts.tolist(), uniforms.tolist())]
    first = torch.bincount(torch.tensor([r[0] for r in results]), minlength=3) / n
    assert torch.allclose(first, p[0], atol=0.025), (
        f"first tokens came {first.tolist()}, p is {p[0].tolist()}"
    )
    second = torch.tensor([r[1] for r in results if len(r) > 1])
    shares = torch.bincount(second, minlength=3) / len(second)
    assert torch.allclose(shares, p[1], atol=0.03), (
        f"second tokens {shares.tolist()}, p is {p[1].tolist()}"
    )


MUTANTS = {
    "nucleus_filter": [
        # drops the token that crosses p
        """
def nucleus_filter(logits, p):
    ordered, order = logits.sort(dim=-1, descending=True)
    ordered = ordered.masked_fill(ordered.softmax(-1).cumsum(-1) > p, float("-inf"))
    return torch.empty_like(logits).scatter(1, order, ordered)
""",
        # forgets to put the tokens back in their places
        """
def nucleus_filter(logits, p):
    ordered, order = logits.sort(dim=-1, descending=True)
    odds = ordered.softmax(-1)
    return ordered.masked_fill(odds.cumsum(-1) - odds >= p, float("-inf"))
""",
        # min-p instead of top-p
        """
def nucleus_filter(logits, p):
    odds = logits.softmax(-1)
    return logits.masked_fill(odds < p * odds.amax(-1, keepdim=True), float("-inf"))
""",
    ],
    "accept_draft": [
        # after a refusal draws from p, not from what q lacks
        """
def accept_draft(draft, q, p, uniforms):
    n = 0
    while n < len(draft) and uniforms[n] * q[n, draft[n]] < p[n, draft[n]]:
        n += 1
    drawn = (p[n].cumsum(0) <= uniforms[-1]).sum()
    return [*draft[:n], min(int(drawn), p.shape[1] - 1)]
""",
        # keeps later tokens of the draft after a refusal
        """
def accept_draft(draft, q, p, uniforms):
    out = []
    for i, token in enumerate(draft):
        if uniforms[i] * q[i, token] < p[i, token]:
            out.append(token)
    odds = p[-1] if len(out) == len(draft) else (p[len(out)] - q[len(out)]).clamp(min=0)
    drawn = (odds.cumsum(0) / odds.sum() <= uniforms[-1]).sum()
    return [*out, min(int(drawn), p.shape[1] - 1)]
""",
        # never adds the free token when all is accepted
        """
def accept_draft(draft, q, p, uniforms):
    for i, token in enumerate(draft):
        if uniforms[i] * q[i, token] >= p[i, token]:
            odds = (p[i] - q[i]).clamp(min=0)
            drawn = (odds.cumsum(0) / odds.sum() <= uniforms[-1]).sum()
            return [*draft[:i], min(int(drawn), p.shape[1] - 1)]
    return list(draft)
""",
    ],
}
