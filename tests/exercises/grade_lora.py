"""Grade the exercises of the chapter on LoRA."""

import pytest
import torch


def grade_nearest_adapter(module) -> None:
    torch.manual_seed(3)
    for (n_out, n_in), alpha in (((7, 11), 16.0), ((11, 7), 1.0), ((9, 9), 4.0)):
        change = torch.randn(n_out, n_in, dtype=torch.float64)
        values = torch.linalg.svdvals(change)
        for rank in (1, 3, 7):
            a, b = module.nearest_adapter(change, rank, alpha)
            assert a.shape == (rank, n_in) and b.shape == (n_out, rank), "shapes of A and B"
            lost = (change - alpha / rank * b @ a).square().sum()
            best = values[rank:].square().sum()
            assert torch.allclose(lost, best, atol=1e-9), f"{lost:.4f} is lost, {best:.4f} must be"
            assert torch.allclose(a.norm(dim=1), b.norm(dim=0)), "A and B share each value equally"
    for rank, alpha in ((0, 1.0), (8, 1.0), (2, 0.0)):
        with pytest.raises(ValueError):
            module.nearest_adapter(torch.randn(7, 9), rank, alpha)


def grade_join_adapters(module) -> None:
    torch.manual_seed(4)
    first = torch.randn(2, 6), torch.randn(5, 2)
    second = torch.randn(3, 6), torch.randn(5, 3)
    for alphas in ((2.0, 3.0), (16.0, 8.0)):
        a, b = module.join_adapters(first, second, alphas)
        wanted = sum(alpha / b.shape[1] * b @ a for (a, b), alpha in zip((first, second), alphas))
        assert a.shape == (5, 6) and b.shape == (5, 5)
        assert torch.allclose(b @ a, wanted, atol=1e-4), "the product is not the sum of both"
        assert torch.equal(a, torch.cat((first[0], second[0]))), "A is the rows of both, unscaled"
    with pytest.raises(ValueError):
        module.join_adapters(first, (torch.randn(3, 7), torch.randn(5, 3)), (1.0, 1.0))
    with pytest.raises(ValueError):
        module.join_adapters(first, (torch.randn(3, 6), torch.randn(4, 3)), (1.0, 1.0))


def grade_rank_of_change(module) -> None:
    """Known spectra first, then the sign: noise needs more rank than a product."""
    torch.manual_seed(5)
    q, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))
    change = q @ torch.diag(torch.tensor([4.0, 2.0, 2.0, 1.0, 0, 0, 0, 0]).double()) @ q.T
    before = {"w": torch.randn(8, 8).double(), "same": torch.ones(3, 3), "gain": torch.ones(4)}
    after = {"w": before["w"] + change, "same": torch.ones(3, 3), "gain": torch.zeros(4)}
    # squares 16, 4, 4, 1 of 25
    for share, rank in ((0.5, 1), (0.7, 2), (0.9, 3), (0.97, 4)):
        found = module.rank_of_change(before, after, share)
        assert found == {"w": rank}, f"share {share}: {found}, expected {{'w': {rank}}}"
    big = {"w": torch.zeros(40, 60)}
    low = {"w": torch.randn(40, 3) @ torch.randn(3, 60)}
    noise = {"w": torch.randn(40, 60)}
    assert module.rank_of_change(big, low, 0.999)["w"] <= 3
    assert module.rank_of_change(big, noise, 0.9)["w"] > 15
    for share in (0.0, 1.1):
        with pytest.raises(ValueError):
            module.rank_of_change(big, low, share)
    with pytest.raises(ValueError):
        module.rank_of_change(big, {"v": torch.zeros(40, 60)}, 0.5)


MUTANTS = {
    "nearest_adapter": [
        """def nearest_adapter(change, rank, alpha):
    '''Forget the scale alpha / rank: the adapter changes the weight by too much or too little.'''
    if not 1 <= rank <= min(change.shape) or not alpha > 0:
        raise ValueError
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    root = s[:rank].sqrt()
    return root[:, None] * v[:rank], u[:, :rank] * root
""",
        """def nearest_adapter(change, rank, alpha):
    '''Leave all singular values to B.'''
    if not 1 <= rank <= min(change.shape) or not alpha > 0:
        raise ValueError
    u, s, v = torch.linalg.svd(change * rank / alpha, full_matrices=False)
    return v[:rank], u[:, :rank] * s[:rank]
""",
    ],
    "join_adapters": [
        """def join_adapters(first, second, alphas):
    '''Drop the scales.'''
    (a1, b1), (a2, b2) = first, second
    if a1.shape[1] != a2.shape[1] or b1.shape[0] != b2.shape[0]:
        raise ValueError
    return torch.cat((a1, a2), dim=0), torch.cat((b1, b2), dim=1)
""",
        """def join_adapters(first, second, alphas):
    '''Divide both by the new rank instead of by their own.'''
    (a1, b1), (a2, b2) = first, second
    if a1.shape[1] != a2.shape[1] or b1.shape[0] != b2.shape[0]:
        raise ValueError
    rank = len(a1) + len(a2)
    return torch.cat((a1, a2)), torch.cat((b1 * alphas[0] / rank, b2 * alphas[1] / rank), dim=1)
""",
    ],
    "rank_of_change": [
        """def rank_of_change(before, after, share):
    '''Add up singular values instead of their squares.'''
    if not 0 < share <= 1 or before.keys() != after.keys():
        raise ValueError
    ranks = {}
    for name, matrix in before.items():
        change = (after[name] - matrix).double()
        if change.ndim == 2 and change.any():
            held = torch.linalg.svdvals(change).cumsum(0)
            ranks[name] = int((held < share * held[-1]).sum()) + 1
    return ranks
""",
        """def rank_of_change(before, after, share):
    '''Measure the weight after instead of the change.'''
    if not 0 < share <= 1 or before.keys() != after.keys():
        raise ValueError
    ranks = {}
    for name, matrix in after.items():
        if matrix.ndim == 2 and not torch.equal(matrix, before[name]):
            held = torch.linalg.svdvals(matrix.double()).square().cumsum(0)
            ranks[name] = int((held < share * held[-1]).sum()) + 1
    return ranks
""",
    ],
}
