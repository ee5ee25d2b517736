"""Grade the exercises of the pretraining chapter."""

import math
import random

import pytest
import torch


class _Point(torch.nn.Module):
    """A weight drawn towards noisy targets: SGD jumps about their mean as far as its rate throws it."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(50))

    def forward(self, inputs, targets):
        return (self.w - targets).square().mean() * 25 + 0 * inputs.sum()


def grade_cooldown_curve(module) -> None:
    """The recursion by hand, then the sign: settling must pay on a noisy target."""
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.zeros(1), 1 + torch.randn(50, generator=generator)) for _ in range(60)]
    held_out = [(torch.zeros(1), torch.ones(50))] * 2
    fractions = [0.0, 0.25, 0.5, 1.0]
    got = module.cooldown_curve(_Point, batches, held_out, 0.5, fractions)
    for fraction, loss in zip(fractions, got):
        w = torch.zeros(50)
        for t, (_, target) in enumerate(batches):
            rate = 0.5 * min(1, (60 - t) / (fraction * 60)) if fraction else 0.5
            w = w - rate * (w - target)  # the gradient of a weight is w - target
        want = float((w - 1).square().mean()) * 25
        assert math.isclose(loss, want, rel_tol=1e-3), (
            f"fraction {fraction}: {loss:.4f} on held-out, expected {want:.4f}: the rate of step t is "
            "lr * min(1, (n - t) / (fraction * n)), the start is the same each time"
        )
    twice = module.cooldown_curve(_Point, batches[:4], held_out, 0.1, [0.5, 0.5])
    assert twice[0] == twice[1], f"the same training twice gave {twice}: each starts afresh"
    assert got[0] > 2 * got[2], f"a cooldown over half the steps must pay here, got {got}"


def grade_noise_scale(module) -> None:
    """By hand, then gradients whose signal and noise are known."""
    two = [torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0])]
    for tokens in (1, 64):
        got, want = module.noise_scale(two, tokens), 2 / 3 * tokens
        assert math.isclose(got, want, rel_tol=1e-6), (
            f"micro-batches (3, 0) and (1, 0) of {tokens} tokens: {got:.3f}, expected {want:.3f}: one "
            "micro-batch has mean squared length 5, both together 4"
        )
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(20_000, generator=generator) / 20_000**0.5  # squared length about 1
    for tokens, n, variance in ((32, 8, 300.0), (128, 16, 300.0), (32, 8, 30.0)):
        spread = (variance / tokens / 20_000) ** 0.5
        noisy = [signal + spread * torch.randn(20_000, generator=generator) for _ in range(n)]
        got, want = module.noise_scale(noisy, tokens), variance / float(signal.square().sum())
        assert abs(got / want - 1) < 0.1, (
            f"{n} micro-batches of {tokens} tokens, true noise scale {want:.0f}: got {got:.0f}"
        )
    nothing = module.noise_scale([torch.tensor([1.0]), torch.tensor([-1.0])], 4)
    assert nothing == math.inf, f"opposite gradients are all noise: got {nothing}"
    with pytest.raises(ValueError):
        module.noise_scale([torch.ones(3)], 4)


def grade_fit_scaling_law(module) -> None:
    """Laws that are known, noise that is small, and a prediction beyond what was measured."""
    sizes = [2e5, 1e6, 3e6, 1e7, 6e7]
    for E, A, alpha in ((1.69, 406.0, 0.34), (0.5, 20.0, 0.2), (2.0, 3_000.0, 0.6)):
        got = module.fit_scaling_law(list(sizes), [E + A * n**-alpha for n in sizes])
        assert all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(got, (E, A, alpha))), (
            f"the law {E} + {A} N^-{alpha} came out as {got}"
        )
    rng = random.Random(0)
    noisy = [1.69 + 406 * n**-0.34 + rng.gauss(0, 0.01) for n in sizes]
    E, A, alpha = module.fit_scaling_law(list(sizes), noisy)
    ahead, true = E + A * 1e9**-alpha, 1.69 + 406 * 1e9**-0.34
    assert abs(ahead - true) < 0.15, f"predicts {ahead:.2f} for a billion, the law says {true:.2f}"
    flat = module.fit_scaling_law(sizes, [2.0] * 5)
    assert math.isclose(flat[0], 2.0) and abs(flat[1]) < 1e-9, f"equal losses gave {flat}"
    for wrong in ([1e6, 1e7], [1e6, 1e6, 1e7]):
        with pytest.raises(ValueError):
            module.fit_scaling_law(wrong, [2.0] * len(wrong))


MUTANTS = {
    "cooldown_curve": [
        '''def cooldown_curve(make_model, batches, held_out, lr, fractions):
    """Go on training the same model with the next cooldown."""
    n, curve, model = len(batches), [], make_model()
    for fraction in fractions:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        for t, (inputs, targets) in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1, (n - t) / (fraction * n)) if fraction else lr
            optimizer.zero_grad()
            model(inputs, targets).backward()
            optimizer.step()
        with torch.no_grad():
            curve.append(sum(model(*pair).item() for pair in held_out) / len(held_out))
    return curve
''',
        '''def cooldown_curve(make_model, batches, held_out, lr, fractions):
    """Warm up over the first fraction instead of cooling down over the last."""
    n, curve = len(batches), []
    for fraction in fractions:
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        for t, (inputs, targets) in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1, (t + 1) / (fraction * n)) if fraction else lr
            optimizer.zero_grad()
            model(inputs, targets).backward()
            optimizer.step()
        with torch.no_grad():
            curve.append(sum(model(*pair).item() for pair in held_out) / len(held_out))
    return curve
''',
        '''def cooldown_curve(make_model, batches, held_out, lr, fractions):
    """Set the rate once, when the optimizer is made."""
    curve = []
    for fraction in fractions:
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr * (1 - fraction / 2))
        for inputs, targets in batches:
            optimizer.zero_grad()
            model(inputs, targets).backward()
            optimizer.step()
        with torch.no_grad():
            curve.append(sum(model(*pair).item() for pair in held_out) / len(held_out))
    return curve
''',
    ],
    "noise_scale": [
        '''def noise_scale(gradients, tokens):
    """Take the mean of the micro-batches for the true gradient: it has noise in it as well."""
    if len(gradients) < 2:
        raise ValueError("two")
    mean = torch.stack(gradients).mean(0)
    spread = sum(float((g - mean).square().sum()) for g in gradients) / (len(gradients) - 1)
    length = float(mean.square().sum())
    return tokens * spread / length if length > 0 else math.inf
''',
        '''def noise_scale(gradients, tokens):
    """Count in micro-batches instead of tokens."""
    if len(gradients) < 2:
        raise ValueError("two")
    n = len(gradients)
    small = sum(float(g.square().sum()) for g in gradients) / n
    large = float(torch.stack(gradients).mean(0).square().sum())
    length = (n * large - small) / (n - 1)
    return (small - large) / (1 - 1 / n) / length if length > 0 else math.inf
''',
        '''def noise_scale(gradients, tokens):
    """Return a negative number where all is noise."""
    if len(gradients) < 2:
        raise ValueError("two")
    n = len(gradients)
    small = sum(float(g.square().sum()) for g in gradients) / n
    large = float(torch.stack(gradients).mean(0).square().sum())
    return (small - large) / (1 / tokens - 1 / (n * tokens)) / ((n * large - small) / (n - 1))
''',
    ],
    "fit_scaling_law": [
        '''def fit_scaling_law(sizes, losses):
    """Fit a pure power law on logarithms: no loss that size cannot remove."""
    if len(set(sizes)) < 3:
        raise ValueError("three")
    x, y = [math.log(n) for n in sizes], [math.log(v) for v in losses]
    a, b = sum(x) / len(x), sum(y) / len(y)
    slope = sum((u - a) * (v - b) for u, v in zip(x, y)) / sum((u - a) ** 2 for u in x)
    return 0.0, math.exp(b - slope * a), -slope
''',
        '''def fit_scaling_law(sizes, losses):
    """Fix the exponent at one half and fit the line."""
    if len(set(sizes)) < 3:
        raise ValueError("three")
    x = [n**-0.5 for n in sizes]
    a, b = sum(x) / len(x), sum(losses) / len(losses)
    slope = sum((u - a) * (v - b) for u, v in zip(x, losses)) / sum((u - a) ** 2 for u in x)
    return b - slope * a, slope, 0.5
''',
        '''def fit_scaling_law(sizes, losses):
    """Take the lowest loss for E."""
    if len(set(sizes)) < 3:
        raise ValueError("three")
    rest = [(math.log(n), math.log(v - min(losses) + 1e-9)) for n, v in zip(sizes, losses)]
    a, b = (sum(c) / len(rest) for c in zip(*rest))
    slope = sum((u - a) * (v - b) for u, v in rest) / sum((u - a) ** 2 for u, _ in rest)
    return min(losses), math.exp(b - slope * a), -slope
''',
    ],
}
