"""Grade the exercises of the decoding chapter."""

import torch


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


class _Table(torch.nn.Module):
    """Its loss is a weighted sum of its weights, so rounding can be followed by hand."""

    def __init__(self, rows: list[list[float]], bias: float = 0.3):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(rows))
        self.bias = torch.nn.Parameter(torch.tensor([bias]))

    def forward(self, inputs, targets):
        return (self.w * inputs).sum() + self.bias.sum()


def grade_quantization_curve(module) -> None:
    """By hand on two rows; then a model whose rows differ, and a trained one that must not change."""
    table = _Table([[7.0, 2.4], [0.7, -0.24]])
    weights = torch.tensor([[1.0, 10.0], [100.0, 1000.0]])
    [(whole, rows)] = module.quantization_curve(table, weights, weights, [4])
    want = 7 + 2 * 10 + 1 * 100 + 0 + 0.3
    assert abs(whole - want) < 1e-3, (
        f"4 bits, one step: {whole:.3f}, expected {want:.3f}: the step is 7 / 7, and 0.7 becomes 1; "
        "the bias is no matrix"
    )
    want = 7 + 2 * 10 + 0.7 * 100 - 0.2 * 1000 + 0.3
    assert abs(rows - want) < 1e-3, f"4 bits, steps of 1 and 0.1: {rows:.3f}, expected {want:.3f}"
    assert table.w.tolist()[0][0] == 7.0 and abs(table.w.tolist()[1][1] + 0.24) < 1e-6, "changed"
    zero = module.quantization_curve(_Table([[0.0, 0.0], [0.0, 1.0]]), weights, weights, [8])
    assert all(abs(v - 1000.3) < 1e-2 for v in zero[0]), f"a row of zeros gave {zero}: a step of 0?"
    generator, linear = torch.Generator().manual_seed(0), torch.nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(64, 64, generator=generator))
        linear.weight[0] *= 40
    x = torch.randn(200, 64, generator=generator)
    truth = linear(x).detach()

    class Error(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = linear

        def forward(self, inputs, targets):
            return (self.layer(inputs) - targets)[:, 1:].square().mean()

    curve = module.quantization_curve(Error(), x, truth, [8, 6, 4, 3])
    errors = [row[1] for row in curve]
    assert errors == sorted(errors) and errors[0] > 0, f"fewer bits, more error: {errors}"
    assert all(row[0] > 20 * row[1] for row in curve[:2]), f"one large row spoils one step: {curve}"
    assert torch.equal(linear(x).detach(), truth), "the caller's model was changed"


def grade_best_draft(module) -> None:
    """By hand, then against all possibilities."""
    assert tuple(module.best_draft(0.5, 0.6)) == (0, 1.0), "guesses that cost more than they bring"
    n, speed = module.best_draft(0.8, 0.0, 4)
    assert n == 4 and abs(speed - 3.3616) < 1e-9, f"free guesses: {n}, {speed}"
    n, speed = module.best_draft(1.0, 0.5, 3)
    assert n == 3 and abs(speed - 4 / 2.5) < 1e-9, f"always right at half the cost: {n}, {speed}"
    assert module.best_draft(0.0, 0.0, 5)[0] == 0, "of equal numbers the smallest"
    for a in (0.3, 0.6, 0.9):
        for cost in (0.02, 0.1, 0.3):
            table = [sum(a**i for i in range(n + 1)) / (1 + n * cost) for n in range(17)]
            n, speed = module.best_draft(a, cost)
            assert abs(speed - max(table)) < 1e-9 and abs(table[n] - max(table)) < 1e-9, (
                f"a = {a}, cost = {cost}: {n} guesses, {speed:.3f}; {max(table):.3f} can be had"
            )


MUTANTS = {
    "best_draft": [
        """
def best_draft(a, cost, most=16):
    '''Forgets the free token after the last guess.'''
    speeds = [sum(a**i for i in range(max(n, 1))) / (1 + n * cost) for n in range(most + 1)]
    best = max(range(most + 1), key=lambda n: (speeds[n], -n))
    return best, speeds[best]
""",
        """
def best_draft(a, cost, most=16):
    '''Counts every guess as right or wrong on its own.'''
    speeds = [(1 + n * a) / (1 + n * cost) for n in range(most + 1)]
    best = max(range(most + 1), key=lambda n: (speeds[n], -n))
    return best, speeds[best]
""",
        """
def best_draft(a, cost, most=16):
    '''Never thinks of no draft at all.'''
    speeds = [sum(a**i for i in range(n + 1)) / (1 + n * cost) for n in range(most + 1)]
    best = max(range(1, most + 1), key=lambda n: (speeds[n], -n))
    return best, speeds[best]
""",
    ],
    "accept_draft": [
        """
def accept_draft(draft, q, p, uniforms):
    '''After a refusal draws from p, not from what q lacks.'''
    n = 0
    while n < len(draft) and uniforms[n] * q[n, draft[n]] < p[n, draft[n]]:
        n += 1
    drawn = (p[n].cumsum(0) <= uniforms[-1]).sum()
    return [*draft[:n], min(int(drawn), p.shape[1] - 1)]
""",
        """
def accept_draft(draft, q, p, uniforms):
    '''Keeps later tokens of the draft after a refusal.'''
    out = []
    for i, token in enumerate(draft):
        if uniforms[i] * q[i, token] < p[i, token]:
            out.append(token)
    odds = p[-1] if len(out) == len(draft) else (p[len(out)] - q[len(out)]).clamp(min=0)
    drawn = (odds.cumsum(0) / odds.sum() <= uniforms[-1]).sum()
    return [*out, min(int(drawn), p.shape[1] - 1)]
""",
        """
def accept_draft(draft, q, p, uniforms):
    '''Never adds the free token when all is accepted.'''
    for i, token in enumerate(draft):
        if uniforms[i] * q[i, token] >= p[i, token]:
            odds = (p[i] - q[i]).clamp(min=0)
            drawn = (odds.cumsum(0) / odds.sum() <= uniforms[-1]).sum()
            return [*draft[:i], min(int(drawn), p.shape[1] - 1)]
    return list(draft)
""",
    ],
    "quantization_curve": [
        '''def quantization_curve(model, inputs, targets, bits):
    """Round the model that was given, and round the rounded one again."""
    curve = []
    for number in bits:
        most, row = 2 ** (number - 1) - 1, []
        for per_row in (False, True):
            with torch.no_grad():
                for p in model.parameters():
                    if p.ndim == 2:
                        largest = p.abs().amax(dim=1, keepdim=True) if per_row else p.abs().max()
                        step = torch.where(largest > 0, largest / most, 1.0)
                        p.copy_((p / step).round() * step)
                row.append(model(inputs, targets).item())
        curve.append(tuple(row))
    return curve
''',
        '''def quantization_curve(model, inputs, targets, bits):
    """Divide by a step of zero where a row holds only zeros."""
    curve = []
    for number in bits:
        most, row = 2 ** (number - 1) - 1, []
        for per_row in (False, True):
            copied = copy.deepcopy(model)
            with torch.no_grad():
                for p in copied.parameters():
                    if p.ndim == 2:
                        step = (p.abs().amax(dim=1, keepdim=True) if per_row else p.abs().max()) / most
                        p.copy_((p / step).round() * step)
                row.append(copied(inputs, targets).item())
        curve.append(tuple(row))
    return curve
''',
        '''def quantization_curve(model, inputs, targets, bits):
    """Give each column a step, not each row."""
    curve = []
    for number in bits:
        most, row = 2 ** (number - 1) - 1, []
        for per_row in (False, True):
            copied = copy.deepcopy(model)
            with torch.no_grad():
                for p in copied.parameters():
                    if p.ndim == 2:
                        largest = p.abs().amax(dim=0, keepdim=True) if per_row else p.abs().max()
                        step = torch.where(largest > 0, largest / most, 1.0)
                        p.copy_((p / step).round() * step)
                row.append(copied(inputs, targets).item())
        curve.append(tuple(row))
    return curve
''',
        '''def quantization_curve(model, inputs, targets, bits):
    """Use one step more than there are numbers: 2 to the b - 1."""
    curve = []
    for number in bits:
        most, row = 2 ** (number - 1), []
        for per_row in (False, True):
            copied = copy.deepcopy(model)
            with torch.no_grad():
                for p in copied.parameters():
                    if p.ndim == 2:
                        largest = p.abs().amax(dim=1, keepdim=True) if per_row else p.abs().max()
                        step = torch.where(largest > 0, largest / most, 1.0)
                        p.copy_((p / step).round() * step)
                row.append(copied(inputs, targets).item())
        curve.append(tuple(row))
    return curve
''',
    ],
}
