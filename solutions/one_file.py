# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: one file
#
# Put two weights into a byte, find out which tables bear it, and let a page promise no more than it needs.

# %%
import copy

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from nanochat_lib.model.gpt import GPT, GPTConfig

# %% [markdown]
# ## two_in_a_byte
#
# Whole numbers from -7 to 7 need four bits: a file with two in each byte would be half as large again. Add 8, so
# that all are from 1 to 15, and let the first of two neighbours be the lower four bits of a byte, the second
# the upper. If one number is left at the end, the upper bits of the last byte are 0.
#
# Python's `bytes` and a loop would do; a million weights deserve tensors.


# %%
#| exercise two_in_a_byte
def two_in_a_byte(whole: Tensor) -> bytes:
    """Pack int8 numbers from -7 to 7, shape (n,), into (n + 1) // 2 bytes.

    Raises:
        ValueError: a number does not fit.
    """
    ### BEGIN SOLUTION
    if len(whole) and whole.abs().max() > 7:
        raise ValueError(f"{whole.abs().max().item()} needs more than four bits: -7 to 7 fit")
    shifted = (whole + 8).to(torch.uint8)
    pairs = torch.nn.functional.pad(shifted, (0, len(whole) % 2)).view(-1, 2)
    return bytes((pairs[:, 0] | pairs[:, 1] << 4).tolist())
    ### END SOLUTION


# %%
assert two_in_a_byte(torch.tensor([-7, 7, 0], dtype=torch.int8)) == bytes([0xF1, 0x08])

# %% [markdown]
# ## read_two
#
# And the way back, as the page would do it: n numbers from the bytes.


# %%
#| exercise read_two
def read_two(data: bytes, n: int) -> Tensor:
    """Unpack the first n numbers, int8, shape (n,), of what `two_in_a_byte` wrote.

    Raises:
        ValueError: the data holds fewer.
    """
    ### BEGIN SOLUTION
    if n > 2 * len(data):
        raise ValueError(f"{n} numbers in {len(data)} bytes: at most {2 * len(data)}")
    packed = torch.tensor(list(data), dtype=torch.int16)
    return (torch.stack([packed & 15, packed >> 4], 1).flatten()[:n] - 8).to(torch.int8)
    ### END SOLUTION


# %%
whole = torch.randint(-7, 8, (101,), generator=torch.Generator().manual_seed(0)).to(torch.int8)
assert torch.equal(read_two(two_in_a_byte(whole), 101), whole)

# %% [markdown]
# ## who_suffers
#
# **Experiment.** Four bits for every table cost something. But for which? Round one table at a time (each
# parameter with two dimensions, a step for each row as in the chapter, whole numbers from $-(2^{b-1} - 1)$ to
# $2^{b-1} - 1$), leave all others exact, and measure how much the loss rises. The model comes back as it was.
#
# Then say what you saw: would you spend the bits on the embeddings, on attention or on the MLP? Where does a
# small change of a number reach every token, and where only some?


# %%
#| exercise who_suffers
def who_suffers(model: nn.Module, inputs: Tensor, targets: Tensor, bits: int) -> dict[str, float]:
    """Measure what rounding each table alone adds to the loss.

    Args:
        model: called as model(inputs, targets), returns the loss.
        inputs: what it reads.
        targets: what it should say.
        bits: of a weight, at least 2.

    Returns:
        The name of each parameter with two dimensions -> loss with it rounded, less the loss without; the largest
        first.
    """
    ### BEGIN SOLUTION
    most, found = 2 ** (bits - 1) - 1, {}
    with torch.no_grad():
        exact = model(inputs, targets).item()
        for name, weight in model.named_parameters():
            if weight.dim() != 2:
                continue
            changed = copy.deepcopy(model)
            p = changed.get_parameter(name)
            step = p.abs().amax(1, keepdim=True) / most
            p.copy_((p / step.clamp(min=1e-12)).round() * step)
            found[name] = changed(inputs, targets).item() - exact
    return dict(sorted(found.items(), key=lambda item: -item[1]))
    ### END SOLUTION


# %%
# alt: bars, one for each table of a small GPT: what rounding it alone to three bits adds to the loss
def check_who_suffers() -> None:
    """Train a small GPT on rows that count, then round one table at a time."""
    model = GPT(GPTConfig(32, 2, 2, sequence_len=16, vocab_size=32, n_layer=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        rows = (torch.randint(32, (16, 1), generator=generator) + torch.arange(17)) % 32
        optimizer.zero_grad()
        model(rows[:, :-1], rows[:, 1:]).backward()
        optimizer.step()
    found = who_suffers(model, rows[:, :-1], rows[:, 1:], 3)
    assert list(found.values()) == sorted(found.values(), reverse=True), "the largest first"
    assert len(found) == 2 + 2 * 6, f"{len(found)} tables: two outside the blocks, six in each"
    figure, axes = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    axes.barh(list(found)[::-1], list(found.values())[::-1], color="#2456a6")
    axes.set(xlabel="rise of the loss (nats a token)", title="One table at a time in three bits")


check_who_suffers()
