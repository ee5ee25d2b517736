# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: LoRA
#
# The best adapter for a change that is known, two adapters as one, and how low the rank of fine-tuning is.

# %%
import torch
from torch import Tensor

# %% [markdown]
# ## nearest_adapter
#
# Somebody gives you a model that was fine-tuned with all its weights, and its base. The change of a layer is a
# matrix. Compress it into an adapter: find A and B of rank r so that `(alpha / r) * B @ A` is as near as
# possible to the change, in the sum of squares. Both factors should carry an equal share of every singular
# value, so that neither is much larger than the other.


# %%
#| exercise nearest_adapter
def nearest_adapter(change: Tensor, rank: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Compress a change of a weight into a low-rank adapter.

    Args:
        change: weight after minus weight before, shape (out, in).
        rank: r, at most min(out, in).
        alpha: the product counts alpha / r.

    Returns:
        A of shape (r, in) and B of shape (out, r).

    Raises:
        ValueError: the rank does not suit the matrix, or alpha is not positive.
    """
    ### BEGIN SOLUTION
    if not 1 <= rank <= min(change.shape) or not alpha > 0:
        raise ValueError(f"{rank=}, {alpha=} for a matrix of {tuple(change.shape)}")
    u, s, v = torch.linalg.svd(change * rank / alpha, full_matrices=False)
    root = s[:rank].sqrt()
    return root[:, None] * v[:rank], u[:, :rank] * root
    ### END SOLUTION


# %%
change = torch.randn(12, 3) @ torch.randn(3, 20)  # rank 3
for rank in (1, 2, 3):
    a, b = nearest_adapter(change, rank, alpha=16.0)
    print(
        rank, f"{(change - 16.0 / rank * b @ a).norm() / change.norm():.3f} of the change is lost"
    )

# %% [markdown]
# ## join_adapters
#
# One adapter knows spelling, another your name; both were trained on the same base. Their changes add up, and
# the sum is an adapter again, of rank r1 + r2. Write it so that its scale is 1, that is alpha equals the new
# rank, and so that A is simply the rows of both: each scale goes into B.


# %%
#| exercise join_adapters
def join_adapters(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], alphas: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Make one adapter that does what two do together.

    Args:
        first: A of shape (r1, in) and B of shape (out, r1).
        second: the same with r2.
        alphas: of both; each product counts alpha / r.

    Returns:
        A of shape (r1 + r2, in) and B of shape (out, r1 + r2), whose product counts once.

    Raises:
        ValueError: the adapters belong to layers of different sizes.
    """
    ### BEGIN SOLUTION
    (a1, b1), (a2, b2) = first, second
    if a1.shape[1] != a2.shape[1] or b1.shape[0] != b2.shape[0]:
        raise ValueError(
            f"layers of {b1.shape[0]} x {a1.shape[1]} and {b2.shape[0]} x {a2.shape[1]}"
        )
    scaled = [b * (alpha / b.shape[1]) for b, alpha in zip((b1, b2), alphas)]
    return torch.cat((a1, a2), dim=0), torch.cat(scaled, dim=1)
    ### END SOLUTION


# %%
first, second = (torch.randn(2, 6), torch.randn(5, 2)), (torch.randn(4, 6), torch.randn(5, 4))
a, b = join_adapters(first, second, (16.0, 8.0))
assert torch.allclose(b @ a, 8 * first[1] @ first[0] + 2 * second[1] @ second[0], atol=1e-4)

# %% [markdown]
# ## rank_of_change
#
# **Experiment.** LoRA bets that the change of full fine-tuning is of low rank. Is it? For each matrix that two
# states of a model have in common, find the smallest rank whose best approximation holds a share of the squared
# change. Then compare three: a fine-tuned toy with its base, a random change of the same size, and one step of
# an optimizer that makes all directions equally large, as Muon does. Which of them would an adapter of rank 8
# hold? (Your conclusion is open.)


# %%
#| exercise rank_of_change
def rank_of_change(
    before: dict[str, Tensor], after: dict[str, Tensor], share: float
) -> dict[str, int]:
    """Measure the rank that holds a share of each matrix's change.

    Args:
        before: the tensors of a model by name.
        after: the same, changed.
        share: of the sum of squares of the change, above 0 and at most 1.

    Returns:
        Name -> rank, for every matrix (two dimensions) that has changed at all.

    Raises:
        ValueError: share is out of range, or the names differ.
    """
    ### BEGIN SOLUTION
    if not 0 < share <= 1 or before.keys() != after.keys():
        raise ValueError(f"{share=}, {len(before)} tensors before and {len(after)} after")
    ranks = {}
    for name, matrix in before.items():
        change = (after[name] - matrix).double()
        if change.ndim == 2 and change.any():
            held = torch.linalg.svdvals(change).square().cumsum(0)
            enough = share * held[-1] * (1 - 1e-9)  # a share of 1 must not fail by rounding
            ranks[name] = int((held < enough).sum()) + 1
    return ranks
    ### END SOLUTION


# %%
weight = {"weight": torch.randn(64, 64)}
low = {"weight": weight["weight"] + torch.randn(64, 4) @ torch.randn(4, 64)}
noise = {"weight": weight["weight"] + torch.randn(64, 64)}
for name, after in (("low rank", low), ("random", noise)):
    print(name, rank_of_change(weight, after, 0.9)["weight"])
