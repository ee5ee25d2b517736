# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: decoding
#
# Let a small model guess for a large one without changing a probability, choose how many guesses pay, and find
# out how few bits a weight can do with.

# %%
import copy

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from nanochat_lib.model.gpt import GPT, GPTConfig

# %% [markdown]
# ## accept_draft
#
# A large model decodes one token a step and leaves most of the machine idle, but it can *check*
# several tokens in one step, as in a prefill. So let a small model draft tokens $t_1 \ldots t_n$,
# each drawn from its own odds $q_i$, then run the large model once over all of them to get its odds
# $p_i$ at the same places. Walk from the left: accept $t_i$ when $u_i < p_i(t_i) / q_i(t_i)$, where
# $u_i$ is a uniform number. At the first refusal stop and draw one token from the positive part of
# $p_i - q_i$, scaled to sum 1. If nothing is refused, draw one more token from $p_{n+1}$. The
# astonishing part, which the grader checks by counting: the result is distributed exactly as if the
# large model had drawn every token itself (Leviathan et al. 2022, arXiv:2211.17192).
#
# `draft` holds n ids, `q` has shape (n, V), `p` has shape (n + 1, V), `uniforms` holds n + 1
# numbers in [0, 1): number i is for the test of token i, the last is for the draw at the end. Draw
# as the chapter does: the first token whose cumulative probability is above the number. Return the
# accepted ids with the drawn one at the end, 1 to n + 1 of them.


# %%
#| exercise accept_draft
def accept_draft(draft: list[int], q: Tensor, p: Tensor, uniforms: list[float]) -> list[int]:
    """Accept a prefix of the draft, then add one token, so that the result follows the odds p."""
    ### BEGIN SOLUTION
    n_accepted = 0
    for i, token in enumerate(draft):
        # multiplied out: u < p / q without a division by zero
        if uniforms[i] * q[i, token] >= p[i, token]:
            break
        n_accepted += 1
    odds = p[n_accepted]
    if n_accepted < len(draft):
        odds = (p[n_accepted] - q[n_accepted]).clamp(min=0)
    cumulative = odds.cumsum(0) / odds.sum()
    # rounding may leave the last sum below the number: stop at the last token that adds anything
    drawn = min((cumulative <= uniforms[-1]).sum(), (cumulative < cumulative[-1]).sum())
    return [*draft[:n_accepted], int(drawn)]
    ### END SOLUTION


# %%
q = torch.tensor([[0.5, 0.5, 0.0]])
p = torch.tensor([[0.25, 0.5, 0.25], [0.0, 0.0, 1.0]])
assert accept_draft([1], q, p, [0.99, 0.5]) == [
    1,
    2,
]  # 0.5 / 0.5: always accepted, then drawn from p[1]
assert accept_draft([0], q, p, [0.40, 0.5]) == [0, 2]  # 0.25 / 0.5: accepted below 0.5
assert accept_draft([0], q, p, [0.60, 0.5]) == [
    2
]  # refused; only token 2 is likelier in p than in q

# %% [markdown]
# ## quantization_curve
#
# **Experiment.** Decoding waits for weights to arrive from memory, so half the bits are half the wait. How few
# bits will do? Round every weight *matrix* (each parameter with two dimensions) to whole multiples of a step:
# with b bits the multiples go from $-(2^{b-1} - 1)$ to $2^{b-1} - 1$, and the step is the largest absolute
# weight divided by $2^{b-1} - 1$. Do it once with one step for the whole matrix, and once with a step for each
# row. A row of zeros stays zero. Measure the loss with the rounded weights; the model you were given must
# come back as it was, also when something fails.
#
# Then say what you saw: at how many bits does it hurt, and why do the rows help most where one row is
# much larger than the others?


# %%
#| exercise quantization_curve
def quantization_curve(
    model: nn.Module, inputs: Tensor, targets: Tensor, bits: list[int]
) -> list[tuple[float, float]]:
    """Measure the loss of a model whose matrices are rounded to few bits.

    Args:
        model: called as model(inputs, targets), returns the loss.
        inputs: what it reads.
        targets: what it should say.
        bits: how many to try, each at least 2.

    Returns:
        For each number of bits: the loss with one step a matrix, and with one step a row.
    """
    ### BEGIN SOLUTION
    curve = []
    for number in bits:
        most, row = 2 ** (number - 1) - 1, []
        for per_row in (False, True):
            copy_of = copy.deepcopy(model)
            with torch.no_grad():
                for p in copy_of.parameters():
                    if p.ndim == 2:
                        largest = p.abs().amax(dim=1, keepdim=True) if per_row else p.abs().max()
                        step = torch.where(largest > 0, largest / most, 1.0)
                        p.copy_((p / step).round() * step)
                row.append(copy_of(inputs, targets).item())
        curve.append((row[0], row[1]))
    return curve
    ### END SOLUTION


# %%
# alt: loss over bits a weight: flat down to five or so, then rising steeply, later with a step for each row
def check_quantization_curve() -> None:
    """Train a small GPT on rows that count, then take its bits away."""
    model = GPT(GPTConfig(32, 2, 2, sequence_len=16, vocab_size=32, n_layer=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        rows = (torch.randint(32, (16, 1), generator=generator) + torch.arange(17)) % 32
        optimizer.zero_grad()
        loss = model(rows[:, :-1], rows[:, 1:])
        loss.backward()
        optimizer.step()
    bits = [8, 6, 5, 4, 3, 2]
    curve = quantization_curve(model, rows[:, :-1], rows[:, 1:], bits)
    assert abs(curve[0][1] - loss.item()) < 0.05, "eight bits should hardly hurt"
    assert curve[-1][0] > curve[0][0], "two bits should"
    figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
    for column, name in enumerate(("a step for each matrix", "a step for each row")):
        axes.plot(bits, [losses[column] for losses in curve], marker="o", label=name)
    axes.set(xlabel="bits a weight", ylabel="loss (nats)")
    axes.legend(frameon=False)
    plt.show()


check_quantization_curve()

# %% [markdown]
# ## best_draft
#
# A pass of the large model over n guesses and the token before them takes as long as a pass over one. A guess
# of the draft takes `cost` of that time (0.1: ten guesses take as long as one pass), and is right with
# probability `a`, each independently of the others; after the first wrong one the rest is lost. With n guesses
# a round takes $1 + n \cdot cost$ and yields $1 + a + \ldots + a^n$ tokens. Which n from 0 to `most` gives the
# most tokens for the time, and how many times as fast is that as no draft at all? Of equal n take the smallest.


# %%
#| exercise best_draft
def best_draft(a: float, cost: float, most: int = 16) -> tuple[int, float]:
    """Return the best number of guesses, and the speed that it gives, as a multiple of decoding alone."""
    ### BEGIN SOLUTION
    speeds = [sum(a**i for i in range(n + 1)) / (1 + n * cost) for n in range(most + 1)]
    best = max(range(most + 1), key=lambda n: (round(speeds[n], 12), -n))
    return best, speeds[best]
    ### END SOLUTION


# %%
n, speed = best_draft(0.8, 0.1)
print(f"right four times of five, at a tenth of the cost: {n} guesses, {speed:.2f} times as fast")
assert best_draft(0.5, 0.6) == (0, 1.0)
