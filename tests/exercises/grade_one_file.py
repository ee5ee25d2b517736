"""Grade the exercises of the chapter on one file."""

import pytest
import torch


def grade_two_in_a_byte(module) -> None:
    """By hand, with a number left over, and with one too large."""
    pack = lambda numbers: module.two_in_a_byte(torch.tensor(numbers, dtype=torch.int8))  # noqa: E731
    cases = {
        (-7, 7): [0xF1],
        (0, 0, 0): [0x88, 0x08],
        (1, -1, 2, -2): [0x79, 0x6A],
        (): [],
        (7,): [0x0F],
    }
    for numbers, expected in cases.items():
        got = pack(list(numbers))
        assert isinstance(got, bytes), f"{type(got).__name__}, expected bytes"
        assert got == bytes(expected), (
            f"{numbers}: got {got.hex()}, expected {bytes(expected).hex()}"
        )
    for wrong in (8, -8, 100):
        with pytest.raises(ValueError):
            pack([0, wrong])


def grade_read_two(module) -> None:
    """By hand, then all pairs; a number too many is refused."""
    got = module.read_two(bytes([0xF1, 0x08]), 3)
    assert got.dtype == torch.int8 and got.tolist() == [-7, 7, 0], f"got {got}"
    assert module.read_two(b"", 0).tolist() == []
    pairs = [(a, b) for a in range(-7, 8) for b in range(-7, 8)]
    data = bytes((a + 8) | (b + 8) << 4 for a, b in pairs)
    got = module.read_two(data, 2 * len(pairs)).view(-1, 2).tolist()
    assert got == [list(pair) for pair in pairs], "some pair does not come back"
    with pytest.raises(ValueError):
        module.read_two(bytes(2), 5)


class _Tables(torch.nn.Module):
    """Its loss is a weighted sum of its weights, so rounding can be followed by hand."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.tensor([0.3]))
        self.small = torch.nn.Parameter(torch.tensor([[3.0, 0.4]]))
        self.large = torch.nn.Parameter(torch.tensor([[30.0, 16.0], [0.3, 0.14]]))
        self.zero = torch.nn.Parameter(torch.zeros(1, 2))

    def forward(self, inputs, targets):
        return (
            self.small.sum()
            + self.large.sum() * inputs
            + self.bias.sum()
            + self.zero.sum()
            - targets
        )


def grade_who_suffers(module) -> None:
    """By hand with three bits: steps of 1, of 10 and 0.1, and of nothing."""
    model = _Tables()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    found = module.who_suffers(model, torch.tensor(2.0), torch.tensor(5.0), 3)
    assert set(found) == {"small", "large", "zero"}, f"tables {list(found)}: the bias is none"
    expected = {"large": 2 * (4.0 - 0.04), "zero": 0.0, "small": -0.4}
    for name, rise in expected.items():
        assert abs(found[name] - rise) < 1e-3, (
            f"{name}: rise {found[name]:.3f}, expected {rise:.3f}"
        )
    assert list(found) == list(expected), f"order {list(found)}: the largest rise first"
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), f"the caller's {name} was changed"


MUTANTS = {
    "two_in_a_byte": [
        """
def two_in_a_byte(whole):
    '''The first number in the upper bits.'''
    if len(whole) and whole.abs().max() > 7:
        raise ValueError
    shifted = (whole + 8).to(torch.uint8)
    pairs = torch.nn.functional.pad(shifted, (0, len(whole) % 2)).view(-1, 2)
    return bytes((pairs[:, 1] | pairs[:, 0] << 4).tolist())
""",
        """
def two_in_a_byte(whole):
    '''Lets 8 run over into its neighbour.'''
    shifted = (whole + 8).to(torch.uint8)
    pairs = torch.nn.functional.pad(shifted, (0, len(whole) % 2)).view(-1, 2)
    return bytes((pairs[:, 0] | pairs[:, 1] << 4).tolist())
""",
        """
def two_in_a_byte(whole):
    '''Pads before adding 8.'''
    if len(whole) and whole.abs().max() > 7:
        raise ValueError
    padded = torch.nn.functional.pad(whole, (0, len(whole) % 2))
    pairs = (padded + 8).to(torch.uint8).view(-1, 2)
    return bytes((pairs[:, 0] | pairs[:, 1] << 4).tolist())
""",
    ],
    "read_two": [
        """
def read_two(data, n):
    '''Shifts as if the numbers had a sign.'''
    if n > 2 * len(data):
        raise ValueError
    packed = torch.tensor(list(data), dtype=torch.uint8).view(torch.int8)
    return (torch.stack([packed & 15, packed >> 4], 1).flatten()[:n] - 8).to(torch.int8)
""",
        """
def read_two(data, n):
    '''All lower halves, then all upper ones.'''
    if n > 2 * len(data):
        raise ValueError
    packed = torch.tensor(list(data), dtype=torch.int16)
    return (torch.cat([packed & 15, packed >> 4])[:n] - 8).to(torch.int8)
""",
    ],
    "who_suffers": [
        """
def who_suffers(model, inputs, targets, bits):
    '''Rounds one table after the other and leaves them so.'''
    most, found = 2 ** (bits - 1) - 1, {}
    changed = copy.deepcopy(model)
    with torch.no_grad():
        exact = model(inputs, targets).item()
        for name, p in changed.named_parameters():
            if p.dim() == 2:
                step = p.abs().amax(1, keepdim=True) / most
                p.copy_((p / step.clamp(min=1e-12)).round() * step)
                found[name] = changed(inputs, targets).item() - exact
    return dict(sorted(found.items(), key=lambda item: -item[1]))
""",
        """
def who_suffers(model, inputs, targets, bits):
    '''One step for the whole table.'''
    most, found = 2 ** (bits - 1) - 1, {}
    with torch.no_grad():
        exact = model(inputs, targets).item()
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                changed = copy.deepcopy(model)
                p = changed.get_parameter(name)
                step = (p.abs().max() / most).clamp(min=1e-12)
                p.copy_((p / step).round() * step)
                found[name] = changed(inputs, targets).item() - exact
    return dict(sorted(found.items(), key=lambda item: -item[1]))
""",
        """
def who_suffers(model, inputs, targets, bits):
    '''Divides by a step of zero.'''
    most, found = 2 ** (bits - 1) - 1, {}
    with torch.no_grad():
        exact = model(inputs, targets).item()
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                changed = copy.deepcopy(model)
                p = changed.get_parameter(name)
                step = p.abs().amax(1, keepdim=True) / most
                p.copy_((p / step).round() * step)
                found[name] = changed(inputs, targets).item() - exact
    return dict(sorted(found.items(), key=lambda item: -item[1]))
""",
    ],
}
