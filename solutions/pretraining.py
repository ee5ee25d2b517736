# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: pretraining
#
# What does packing cost if nothing may be cropped, and what model does a budget buy?

# %%
import math

# %% [markdown]
# ## padding_share
#
# The chapter's loader crops when nothing fits. Conversations must not be cropped: half an answer
# teaches the model to stop in the middle. So fine-tuning pads instead.
#
# Write `padding_share(lengths, capacity)`: pack *all* documents into rows of `capacity` slots, whole,
# and return the share of slots that stay empty. Each row opens with the first document still
# waiting; then, again and again, the longest waiting document that fits (the earliest of equals) is
# added; when none fits, the row is closed. The last row counts in full. All documents may be seen at
# once. A document longer than a row is a `ValueError` that names its length.


# %%
#| exercise padding_share
def padding_share(lengths: list[int], capacity: int) -> float:
    """Compute the share of empty slots when documents are packed whole.

    Args:
        lengths: tokens of each document, at least 1, in reading order.
        capacity: slots in a row.

    Returns:
        Between 0 and 1; 0 for no documents.

    Raises:
        ValueError: a document does not fit into a row.
    """
    ### BEGIN SOLUTION
    too_long = [length for length in lengths if length > capacity]
    if too_long:
        raise ValueError(f"a document of {too_long[0]} tokens does not fit a row of {capacity}")
    waiting, n_rows = list(lengths), 0
    while waiting:
        room, n_rows = capacity - waiting.pop(0), n_rows + 1
        while fitting := [length for length in waiting if length <= room]:
            waiting.remove(max(fitting))
            room -= max(fitting)
    return 1 - sum(lengths) / (n_rows * capacity) if n_rows else 0.0
    ### END SOLUTION


# %%
assert padding_share([], 10) == 0.0
assert padding_share([3, 6, 4, 2], 10) == 0.25, "rows 3 + 6 and 4 + 2: 15 of 20 slots"
assert padding_share([5, 6, 5, 4], 10) == 0.0, "5 + 5 and 6 + 4"

# %% [markdown]
# ## compute_optimal
#
# Somebody gives you a budget of compute, in floating-point operations. With about 6 operations a
# parameter and token, and the best balance at `ratio` tokens a parameter, how many parameters should
# the model have, and how many tokens should it read? Solve the two equations on paper.
#
# Then the dial: our GPT has 12 · depth · width² parameters in its blocks and 2 · vocab · width in
# embedding and head, with width = 64 · depth. Return the *largest depth* whose model, at `ratio`
# tokens for each of its parameters, still fits the budget, counted as 6 · parameters · tokens. If
# not even depth 1 fits, raise a `ValueError`.


# %%
#| exercise compute_optimal
def compute_optimal(
    flops: float, vocab_size: int = 65_536, ratio: float = 20.0
) -> tuple[float, float, int]:
    """Split a budget of compute into parameters and tokens, and find the depth that fits it.

    Args:
        flops: floating-point operations, for all of training.
        vocab_size: rows of the embedding and of the head.
        ratio: tokens a parameter.

    Returns:
        The best number of parameters, of tokens, and the largest affordable depth.

    Raises:
        ValueError: the budget does not even pay for depth 1.
    """
    ### BEGIN SOLUTION
    params = math.sqrt(flops / (6 * ratio))

    def size(depth: int) -> int:
        width = 64 * depth
        return 12 * depth * width**2 + 2 * vocab_size * width

    if size(1) > params:
        raise ValueError(f"{flops:.3g} operations do not pay for depth 1: {size(1):,} parameters")
    depth = 1
    while size(depth + 1) <= params:
        depth += 1
    return params, ratio * params, depth
    ### END SOLUTION


# %%
params, tokens, depth = compute_optimal(6 * 560_988_160 * 20 * 560_988_160)
assert (round(params), round(tokens), depth) == (560_988_160, 11_219_763_200, 20)
