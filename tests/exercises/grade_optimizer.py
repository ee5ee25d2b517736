"""Grade the exercises of the optimizer chapter."""

import math

import torch

from nanochat_lib.model.gpt import GPT, GPTConfig


def grade_rms_matched_scale(module) -> None:
    """Matrices with singular values of 1, of every orientation."""
    for rows, columns in ((8, 8), (40, 10), (10, 40), (1, 7)):
        generator = torch.Generator().manual_seed(rows)
        u, _, vt = torch.linalg.svd(torch.randn(rows, columns, generator=generator), False)
        for target in (1.0, 0.2):
            scaled = (u @ vt) * module.rms_matched_scale(rows, columns, target)
            rms = float(scaled.square().mean().sqrt())
            assert math.isclose(rms, target, rel_tol=1e-4), (
                f"shape ({rows}, {columns}): root-mean-square {rms:.4f}, wanted {target}"
            )


def _tiny() -> GPT:
    return GPT(GPTConfig(32, 2, 2, sequence_len=16, vocab_size=32, n_layer=1))


def _batches(steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rows that count upwards from a random start, which a model can learn."""
    generator, batches = torch.Generator().manual_seed(4), []
    for _ in range(steps):
        rows = (torch.randint(32, (8, 1), generator=generator) + torch.arange(17)) % 32
        batches.append((rows[:, :-1], rows[:, 1:]))
    return batches


class _Plane(torch.nn.Module):
    """Three weights with chosen gradients; the third is never used."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        self.unused = torch.nn.Parameter(torch.tensor(5.0))

    def forward(self, x, y):
        return (self.a * x).sum() + 0 * y.sum()


def grade_lion_losses(module) -> None:
    """Steps by hand on chosen gradients, then a GPT that must learn."""
    plane, zero = _Plane(), torch.zeros(1)
    gradients = [
        torch.tensor([5.0, -1.0]),
        torch.tensor([-0.43, 0.085]),
        torch.tensor([-0.5, -0.5]),
    ]
    want, momentum, p = [], torch.zeros(2), plane.a.detach().clone()
    for g in gradients:
        want.append(float((p * g).sum()))
        p = p - 0.1 * ((0.9 * momentum + 0.1 * g).sign() + 0.5 * p)
        momentum = 0.99 * momentum + 0.01 * g
    got = module.lion_losses(plane, [(g, zero) for g in gradients], 0.1, weight_decay=0.5)
    assert len(got) == 3 and all(math.isclose(a, b, abs_tol=1e-5) for a, b in zip(got, want)), (
        f"losses {got}, expected {want}: the direction comes from the old momentum, decay from the old p"
    )
    assert torch.allclose(plane.a.detach(), p, atol=1e-6), (
        f"weights {plane.a.tolist()}, not {p.tolist()}"
    )
    assert plane.unused.item() == 5.0, "a weight without a gradient was moved"
    model = _tiny()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    module.lion_losses(model, _batches(1), 0.01)
    moves = {n: float((p.detach() - before[n]).abs().max()) for n, p in model.named_parameters()}
    assert all(m < 0.0101 for m in moves.values()), f"one step moves by the rate, 0.01: {moves}"
    losses = module.lion_losses(_tiny(), iter(_batches(60)), 0.004)
    assert len(losses) == 60 and abs(losses[0] - math.log(32)) < 0.01, "losses before each step"
    assert losses[-1] < 1.0, f"60 steps on rows that count reach {losses[-1]:.2f} nats"


class _Bowl(torch.nn.Module):
    """A square bowl: gradient descent at a rate r multiplies the weight by 1 - 2r."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, x, y):
        return (self.w * x).square().mean() + 0 * y.sum()


def grade_rate_curve(module) -> None:
    """A bowl that can be solved by hand, a rate that blows up, then the valley of a GPT."""
    made = []

    def sgd(params, rate):
        made.append(rate)
        return torch.optim.SGD(params, lr=rate)

    one = [(torch.ones(1), torch.zeros(1))] * 30
    rates = [0.01, 0.1, 0.5, 0.99, 30.0]
    got = module.rate_curve(_Bowl, sgd, one, rates)
    assert made == rates, f"optimizers were made for {made}: one for each rate, in order"
    for rate, loss in zip(rates[:4], got):
        want = sum((1 - 2 * rate) ** (2 * step) for step in range(20, 30)) / 10
        assert math.isclose(loss, want, rel_tol=1e-3, abs_tol=1e-12), (
            f"rate {rate} on a bowl: {loss:.3g}, expected {want:.3g}: the last ten losses, each before "
            "its step, and a fresh start for every rate"
        )
    assert got[4] == math.inf, f"rate 30 blows up: got {got[4]}, expected math.inf"
    curve = module.rate_curve(_tiny, sgd, _batches(40), [1e-3, 1.0, 1e4])
    assert curve[1] < curve[0] and not any(map(math.isnan, curve)), f"got {curve}"


MUTANTS = {
    "rms_matched_scale": [
        """def rms_matched_scale(rows, columns, target):
    '''Scale by the shorter side; the root-mean-square falls with the longer one.'''
    return target * math.sqrt(min(rows, columns))""",
        """def rms_matched_scale(rows, columns, target):
    '''Scale by the rows alone, whatever the shape.'''
    return target * math.sqrt(rows)""",
        """def rms_matched_scale(rows, columns, target):
    '''Forget that only min(rows, columns) singular values exist.'''
    return target * math.sqrt(rows * columns)""",
    ],
    "lion_losses": [
        """def lion_losses(model, batches, lr, betas=(0.9, 0.99), weight_decay=0.0):
    '''Update the momentum first, so that the direction comes from the new one.'''
    momenta, losses = {}, []
    for inputs, targets in batches:
        model.zero_grad()
        loss = model(inputs, targets)
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.grad is not None:
                    m = momenta.setdefault(name, torch.zeros_like(p))
                    m.mul_(betas[1]).add_(p.grad, alpha=1 - betas[1])
                    p.sub_(lr * ((betas[0] * m + (1 - betas[0]) * p.grad).sign() + weight_decay * p))
    return losses
""",
        """def lion_losses(model, batches, lr, betas=(0.9, 0.99), weight_decay=0.0):
    '''Forget to clear the gradients: they pile up.'''
    momenta, losses = {}, []
    for inputs, targets in batches:
        loss = model(inputs, targets)
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.grad is not None:
                    m = momenta.setdefault(name, torch.zeros_like(p))
                    p.sub_(lr * ((betas[0] * m + (1 - betas[0]) * p.grad).sign() + weight_decay * p))
                    m.mul_(betas[1]).add_(p.grad, alpha=1 - betas[1])
    return losses
""",
        """def lion_losses(model, batches, lr, betas=(0.9, 0.99), weight_decay=0.0):
    '''Leave out the decay.'''
    momenta, losses = {}, []
    for inputs, targets in batches:
        model.zero_grad()
        loss = model(inputs, targets)
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.grad is not None:
                    m = momenta.setdefault(name, torch.zeros_like(p))
                    p.sub_(lr * (betas[0] * m + (1 - betas[0]) * p.grad).sign())
                    m.mul_(betas[1]).add_(p.grad, alpha=1 - betas[1])
    return losses
""",
        """def lion_losses(model, batches, lr, betas=(0.9, 0.99), weight_decay=0.0):
    '''Step along the mix itself instead of its sign.'''
    momenta, losses = {}, []
    for inputs, targets in batches:
        model.zero_grad()
        loss = model(inputs, targets)
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.grad is not None:
                    m = momenta.setdefault(name, torch.zeros_like(p))
                    p.sub_(lr * ((betas[0] * m + (1 - betas[0]) * p.grad) + weight_decay * p))
                    m.mul_(betas[1]).add_(p.grad, alpha=1 - betas[1])
    return losses
""",
    ],
    "rate_curve": [
        '''def rate_curve(make_model, make_optimizer, batches, rates):
    """Build one model and go on with it at the next rate."""
    model, curve = make_model(), []
    for rate in rates:
        optimizer, losses = make_optimizer(list(model.parameters()), rate), []
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss = model(inputs, targets)
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
        mean = sum(losses[-10:]) / 10
        curve.append(mean if math.isfinite(mean) else math.inf)
    return curve
''',
        '''def rate_curve(make_model, make_optimizer, batches, rates):
    """Let a run that blew up report NaN."""
    curve = []
    for rate in rates:
        model, losses = make_model(), []
        optimizer = make_optimizer(list(model.parameters()), rate)
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss = model(inputs, targets)
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
        curve.append(sum(losses[-10:]) / 10)
    return curve
''',
        '''def rate_curve(make_model, make_optimizer, batches, rates):
    """Average over the whole run, which rewards a fast start."""
    curve = []
    for rate in rates:
        model, losses = make_model(), []
        optimizer = make_optimizer(list(model.parameters()), rate)
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss = model(inputs, targets)
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
        mean = sum(losses) / len(losses)
        curve.append(mean if math.isfinite(mean) else math.inf)
    return curve
''',
    ],
}
