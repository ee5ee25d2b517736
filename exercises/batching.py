# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: batching
#
# Follow a scheduler step by step, find beginnings that are worth sharing, and measure what each person pays
# for company.

# %%
import time


from nanochat_lib.inference.engine import Engine
from nanochat_lib.inference.row import Request
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.tokenizer.tokenizer import Tokenizer

# %% [markdown]
# ## last_steps
#
# Requests come at given steps, each with a prompt and an answer of known lengths, on a machine with `n_rows`
# rows. A request takes a row at the first step at or after its arrival at which one is free; who came earlier
# goes first, and among those who came together the one that is listed first. A row reads at most `chunk`
# tokens of its prompt in a step. The step that reads the last of them gives the first token of the answer, and
# each step after it one more. A row that gave its last token in step t is free for another in step t + 1.
# Return for each request the step in which its answer ended.


# %%
#| exercise last_steps
def last_steps(requests: list[tuple[int, int, int]], n_rows: int, chunk: int) -> list[int]:
    """Say when each answer ends.

    Args:
        requests: (step of arrival, tokens of the prompt, tokens of the answer), the last two at least 1.
        n_rows: answers in the making at once.
        chunk: tokens of a prompt that a row reads in one step.
    """
    raise NotImplementedError("exercise batching.last_steps")


# %%
assert last_steps([(0, 1, 3), (0, 1, 2), (1, 1, 1)], n_rows=2, chunk=8) == [2, 1, 2]
assert last_steps([(0, 20, 1), (0, 1, 1)], n_rows=1, chunk=8) == [2, 3]

# %% [markdown]
# ## tokens_saved
#
# Prompts come one after another, and all that was read is kept. Each reads what no earlier prompt has read:
# the longest beginning that it shares with any earlier one is copied, except that the last token of a prompt
# is always read, and that fewer than `least` shared tokens are not worth a copy. How many tokens are copied
# in all? Thousands of long prompts must not take minutes: do not compare each with each.


# %%
#| exercise tokens_saved
def tokens_saved(prompts: list[list[int]], least: int = 16) -> int:
    """Count the tokens of all prompts that need not be read again."""
    raise NotImplementedError("exercise batching.tokens_saved")


# %%
system = list(range(100, 120))
assert tokens_saved([system + [1, 2], system + [3], system + [1, 9]]) == 20 + 21
assert tokens_saved([[1] * 15 + [2], [1] * 15 + [3]]) == 0
assert tokens_saved([system, system]) == 19

# %% [markdown]
# ## company
#
# **Experiment.** Batching against latency: with more people at once the machine gives more tokens a second in
# all, and each person waits longer for the next one. Measure both. For each number of rows submit that many
# requests of the same prompt with different seeds, at temperature 1, take one step, then time `steps` steps.
# Report for each number of rows the tokens a second in all, and the seconds that one person waits for a token.
#
# Then say what you saw: how many people would you let on a machine, and what would you promise them?


# %%
#| exercise company
def company(
    engine: Engine, prompt: list[int], row_counts: list[int], steps: int = 20
) -> list[tuple[float, float]]:
    """Measure throughput and waiting for several numbers of people.

    Args:
        engine: idle; it must be idle again at the end.
        prompt: ids; the context has room for it and for steps + 1 tokens.
        row_counts: how many requests at once.
        steps: timed steps, each of which gives every request one token.

    Returns:
        (tokens a second of all together, seconds from one token to the next), for each count.
    """
    raise NotImplementedError("exercise batching.company")


# %%
tokenizer = Tokenizer.train(["a b c"], vocab_size=265)
model = GPT(GPTConfig(sequence_len=128, vocab_size=265, n_layer=2, n_embd=128))
curve = company(Engine(model, tokenizer), [65] * 20, [1, 8, 64])
for count, (rate, wait) in zip((1, 8, 64), curve):
    print(
        f"{count:3} people: {rate:7,.0f} tokens a second, {1000 * wait:.1f} ms from token to token"
    )
assert curve[2][0] > curve[0][0]
