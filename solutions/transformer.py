# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: the transformer
#
# What depth does a budget buy, and how does a loss fit into memory that its logits do not?

# %%
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.model.losses import token_losses

# %% [markdown]
# ## depth_for_budget
#
# You have a number of floating-point operations to spend and follow the rule of 20 training tokens
# a weight. How deep a classic model can you afford? Use `GPTConfig.from_depth` for the sizes (its
# widths are not always 64 times the depth) and what this chapter derived, or the meta device, for
# the counts. Nothing may be allocated: depth 50 has billions of weights.


# %%
#| exercise depth_for_budget
def depth_for_budget(flops: float, vocab_size: int, sequence_len: int) -> int:
    """Find the largest depth whose training at 20 tokens a weight stays within the budget.

    Example: 4e19 operations at a vocabulary of 65,536 and 2,048 tokens a row -> 20.

    Args:
        flops: operations to spend, forward and backward passes together.
        vocab_size: tokens in the vocabulary.
        sequence_len: tokens a row.

    Returns:
        The depth, at least 1.

    Raises:
        ValueError: not even depth 1 is affordable.
    """

    ### BEGIN SOLUTION
    def cost(depth: int) -> int:
        config = GPTConfig.from_depth(depth, vocab_size=vocab_size, sequence_len=sequence_len)
        with torch.device("meta"):
            model = GPT(config)
        return 20 * model.num_params() * model.estimate_flops()

    if cost(1) > flops:
        raise ValueError(f"{flops:.1e} FLOPs are too few: depth 1 takes {cost(1):.1e}")
    depth = 1
    while cost(depth + 1) <= flops:
        depth += 1
    return depth
    ### END SOLUTION


# %%
assert depth_for_budget(4e19, 65_536, 2_048) == 20
assert depth_for_budget(1e15, 1_024, 256) == 3

# %% [markdown]
# ## chunked_loss
#
# At a vocabulary of 65,536, the float32 logits of 32 rows of 2,048 tokens take 16 GiB, far more
# than the rest of the model, and they exist only to become one number. Compute that number from the
# normalized stream at the top of the model, a few positions at a time: never hold logits for more
# than `chunk` positions.
#
# The result must equal `token_losses` of all logits: softcapped, cut to `vocab_size`, averaged over
# the targets that are not -1 (and 0 where there are none). Chunks hold different numbers of such
# targets; mind what you average.


# %%
#| exercise chunked_loss
def chunked_loss(
    x: Tensor, head: Tensor, targets: Tensor, vocab_size: int, softcap: float, chunk: int
) -> Tensor:
    """Compute the mean loss with logits for at most `chunk` positions at a time.

    Args:
        x: the normalized stream, shape (B, T, C).
        head: weights of the head, shape (padded vocabulary, C).
        targets: the right ids, -1 where nothing counts, shape (B, T).
        vocab_size: rows of the head that are tokens; the rest is padding.
        softcap: the limit of the logits.
        chunk: positions at a time, at least 1; need not divide B * T.

    Returns:
        The mean loss in nats, a scalar.
    """
    ### BEGIN SOLUTION
    total = x.new_zeros(())
    for rows, answers in zip(x.flatten(0, 1).split(chunk), targets.flatten().split(chunk)):
        logits = softcap * torch.tanh(F.linear(rows, head[:vocab_size]) / softcap)
        total = total + F.cross_entropy(logits, answers, ignore_index=-1, reduction="sum")
    return total / (targets != -1).sum().clamp(min=1)
    ### END SOLUTION


# %%
generator = torch.Generator().manual_seed(0)
x, head = torch.randn(2, 5, 8, generator=generator), torch.randn(64, 8, generator=generator)
targets = torch.tensor([[1, 2, -1, -1, -1], [3, 4, 5, -1, 49]])
whole = token_losses(15 * torch.tanh(F.linear(x, head)[..., :50] / 15), targets)
for chunk in (1, 3, 10):
    assert torch.isclose(chunked_loss(x, head, targets, 50, 15.0, chunk), whole), f"chunk={chunk}"

# %% [markdown]
# ## remove_part
#
# **Experiment.** Which parts does a transformer need, and for what? Take one out and train. Write
# `remove_part(model, part)`, which changes a fresh GPT in place: "attention" or "mlp" makes that half of
# every block add nothing to the stream; "rotation" makes the model blind to positions; "norm" makes every
# block read the stream as it is. Nothing else may change, and a model without rotations must still run
# on rows of any length up to its limit.
#
# Then say what you saw on letters of which each is the sum of the two before it: which models learn
# nothing at all, not even slowly, and which only learn later? (Guessing costs 2.079 nats, knowing the rule 0.951.)


# %%
#| exercise remove_part
def remove_part(model: GPT, part: str) -> None:
    """Take one part out of a GPT, in place.

    Args:
        model: a GPT that no step of training has changed yet.
        part: "attention", "mlp", "rotation" or "norm".

    Raises:
        ValueError: another part.
    """

    ### BEGIN SOLUTION
    def nothing(x: Tensor, *rest: object) -> Tensor:
        return torch.zeros_like(x)

    def unnormed(block: torch.nn.Module) -> Callable:
        def forward(x: Tensor, cos: Tensor, sin: Tensor, *more: object) -> Tensor:
            x = x + block.attn(x, cos, sin, *more[:2])  # the cache and the borders
            return x + block.mlp(x)

        return forward

    if part == "rotation":
        model.cos.fill_(1.0)
        model.sin.zero_()
        return
    for block in model.blocks:
        if part == "attention":
            block.attn.forward = nothing
        elif part == "mlp":
            block.mlp.forward = nothing
        elif part == "norm":
            block.forward = unnormed(block)
        else:
            raise ValueError(f"no part {part!r}: take attention, mlp, rotation or norm")
    ### END SOLUTION


# %%
def second_order_rows(generator: torch.Generator, B: int = 16, T: int = 32) -> Tensor:
    """Write rows of letters 0 to 7, each the sum of the two before it, or one time in four a random one."""
    rows = torch.randint(8, (B, T + 1), generator=generator)
    for t in range(2, T + 1):
        keep = torch.rand(B, generator=generator) < 0.75
        rows[:, t] = rows[:, t].where(~keep, (rows[:, t - 1] + rows[:, t - 2]) % 8)
    return rows


def check_remove_part() -> None:
    """Train the whole model and four that lack a part, on the same rows."""
    for part in (None, "attention", "mlp", "rotation", "norm"):
        config = GPTConfig(64, 2, 2, sequence_len=32, vocab_size=8, n_layer=2)
        model, generator = GPT(config), torch.Generator().manual_seed(1)
        if part is not None:
            remove_part(model, part)
        optimizer, losses = torch.optim.Adam(model.parameters(), lr=6e-3), []
        for _ in range(250):
            rows = second_order_rows(generator)
            loss = model(rows[:, :-1], rows[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"without {part or 'nothing':9} {sum(losses[-25:]) / 25:.3f} nats a letter")


check_remove_part()
