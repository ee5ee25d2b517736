"""Grade the exercises of the chapter on speed."""

import math

import torch


def grade_gated_backward(module) -> None:
    """Autograd's gradients in float64, for several shapes and sizes; the arguments must survive."""
    for seed, shape in enumerate([(4,), (3, 8), (2, 3, 16), (5, 1)]):
        generator = torch.Generator().manual_seed(seed)
        a, b, grad = torch.randn((3, *shape), dtype=torch.float64, generator=generator).unbind()
        a = (a * 10.0 ** (seed - 1)).requires_grad_()
        b = b.clone().requires_grad_()
        (torch.nn.functional.silu(a) * b).backward(grad)
        given = [t.detach().clone() for t in (a, b, grad)]
        got = module.gated_backward(*given)
        assert len(got) == 2, "two gradients are wanted, of a and of b"
        for name, x, ours in zip("ab", (a, b), got):
            assert ours.shape == x.shape, f"shape {tuple(ours.shape)}, expected {tuple(x.shape)}"
            worst = float((ours - x.grad).abs().max())
            assert worst < 1e-9, f"shape {shape}: the gradient of {name} is off by {worst:.1e}"
        for name, before, after in zip(("a", "b", "grad"), (a, b, grad), given):
            assert torch.equal(before.detach(), after), f"{name} was changed: others still need it"


def grade_stochastic_round(module) -> None:
    """Neighbours only, numbers that exist stay, means are right, and the generator decides."""
    draw = module.stochastic_round
    generator = torch.Generator().manual_seed(0)
    exact = torch.tensor([0.0, 1.0, -1.0, 0.5, -384.0, 2.0**-100, 1.0078125])
    for _ in range(20):
        got = draw(exact, generator)
        assert got.dtype == torch.bfloat16 and got.shape == exact.shape, f"{got.dtype} {got.shape}"
        assert torch.equal(got.float(), exact), f"{exact.tolist()} exist, but became {got.tolist()}"
    places = torch.tensor([0.1, 0.25, 0.5, 0.9]).repeat(3)
    low = torch.tensor([1.0, 64.0, 2.0**-60]).repeat_interleave(4)
    step = low / 128
    for sign in (1, -1):
        x = sign * (low + places * step)
        draws = torch.stack([draw(x, generator).float() for _ in range(3000)])
        lower, upper = sign * low, sign * (low + step)
        assert ((draws == lower) | (draws == upper)).all(), "not one of the two neighbours"
        share = (draws == upper).float().mean(0)
        off = float((share - places).abs().max())
        assert off < 0.05, (
            f"numbers {places[:4].tolist()} of the way up, sign {sign:+d}, went to the far neighbour "
            f"with {[round(s, 2) for s in share[:4].tolist()]}"
        )
    x = torch.full((64,), 1.003)
    first, again = (draw(x, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, again), "the same generator state gives another result"
    assert len(set(first.float().tolist())) == 2, "all numbers went the same way: one draw for each"


class _Watched(torch.nn.Module):
    """A valley with two weights; notes the weights of every call."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        self.seen = []

    def forward(self, x, y):
        self.seen.append(self.w.detach().clone())
        return ((self.w - x).square() * torch.tensor([1.0, 16.0])).sum() + 0 * y.sum()


def _reference(batches, keep, lr) -> list[float]:
    """The same run, written out."""
    model, losses = _Watched(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.95))
    for step, (x, y) in enumerate(batches):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / len(batches))
        optimizer.zero_grad()
        loss = model(x, y)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.w.copy_(keep(model.w.detach()))
    return losses


def grade_stored_losses(module) -> None:
    """A valley whose run can be written out, in three storages."""
    batches = [(torch.tensor([0.3, 0.7]) + 0.01 * i, torch.zeros(1)) for i in range(40)]
    storages = {
        "all": lambda w: w,
        "short": lambda w: w.bfloat16(),
        "whole": torch.round,
    }
    made = []

    def make():
        made.append(_Watched())
        return made[-1]

    got = module.stored_losses(make, batches, storages, lr=0.05)
    assert list(got) == list(storages), f"got {list(got)}, expected {list(storages)}"
    assert len(made) == 3, f"{len(made)} models were made: a fresh one for each storage"
    for model, (name, keep) in zip(made, storages.items()):
        for weights in model.seen[1:]:
            assert torch.equal(weights, keep(weights).float()), (
                f"{name}: a batch met weights {weights.tolist()} that the storage cannot hold"
            )
        want = _reference(batches, keep, 0.05)
        assert len(got[name]) == 40 and all(
            math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6) for a, b in zip(got[name], want)
        ), (
            f"{name}: losses {got[name][:4]}..., expected {want[:4]}...: before each step, rate falling"
        )


MUTANTS = {
    "gated_backward": [
        """def gated_backward(a, b, grad):
    '''Treat the sigmoid as a constant.'''
    s = a.sigmoid()
    return grad * b * s, grad * a * s""",
        """def gated_backward(a, b, grad):
    '''Take the slope of the sigmoid for that of silu.'''
    s = a.sigmoid()
    return grad * b * s * (1 - s), grad * a * s""",
        """def gated_backward(a, b, grad):
    '''Give b the bare gate.'''
    s = a.sigmoid()
    return grad * b * (s + a * s * (1 - s)), grad * s""",
        """def gated_backward(a, b, grad):
    '''Work in the memory of the arguments.'''
    s = a.sigmoid()
    slope = s + a * s * (1 - s)
    to_b = grad * a * s
    return grad.mul_(b).mul_(slope), to_b""",
    ],
    "stochastic_round": [
        """def stochastic_round(x, generator):
    '''Round to the nearest.'''
    return x.bfloat16()""",
        """def stochastic_round(x, generator):
    '''Toss a fair coin, wherever the number lies.'''
    bits = x.contiguous().view(torch.int32)
    up = torch.randint(2, x.shape, generator=generator, dtype=torch.int32) * 0xFFFF
    return ((bits + up) & ~0xFFFF).view(torch.float32).bfloat16()""",
        """def stochastic_round(x, generator):
    '''Add noise and then round to nearest: too much noise, and neighbours are missed.'''
    noise = torch.randint(2**16, x.shape, generator=generator, dtype=torch.int32)
    return (x.contiguous().view(torch.int32) + noise).view(torch.float32).bfloat16()""",
        """def stochastic_round(x, generator):
    '''Draw once for the whole tensor.'''
    noise = torch.randint(2**16, (1,), generator=generator, dtype=torch.int32)
    bits = (x.contiguous().view(torch.int32) + noise) & ~0xFFFF
    return bits.view(torch.float32).bfloat16()""",
    ],
    "stored_losses": [
        """def stored_losses(make_model, batches, storages, lr):
    '''Go on with one model.'''
    found, model = {}, make_model()
    for name, keep in storages.items():
        losses = []
        optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.95))
        for step, (x, y) in enumerate(batches):
            optimizer.param_groups[0]["lr"] = lr * (1 - step / len(batches))
            optimizer.zero_grad()
            loss = model(x, y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            with torch.no_grad():
                for p in model.parameters():
                    p.copy_(keep(p.detach()))
        found[name] = losses
    return found""",
        """def stored_losses(make_model, batches, storages, lr):
    '''Leave the rate where it is.'''
    found = {}
    for name, keep in storages.items():
        model, losses = make_model(), []
        optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.95))
        for x, y in batches:
            optimizer.zero_grad()
            loss = model(x, y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            with torch.no_grad():
                for p in model.parameters():
                    p.copy_(keep(p.detach()))
        found[name] = losses
    return found""",
        """def stored_losses(make_model, batches, storages, lr):
    '''Round the gradients instead of the weights.'''
    found = {}
    for name, keep in storages.items():
        model, losses = make_model(), []
        optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.95))
        for step, (x, y) in enumerate(batches):
            optimizer.param_groups[0]["lr"] = lr * (1 - step / len(batches))
            optimizer.zero_grad()
            loss = model(x, y)
            loss.backward()
            for p in model.parameters():
                p.grad.copy_(keep(p.grad))
            optimizer.step()
            losses.append(loss.item())
        found[name] = losses
    return found""",
    ],
}
