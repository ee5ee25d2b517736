# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exercises: forms
#
# Build the mask of a list of choices without a library, and find out what a form takes from a model.

# %%
import matplotlib.pyplot as plt
import torch

from nanochat_lib.inference.forms import Form, Forms
from nanochat_lib.inference.kv_cache import KVCache
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.tokenizer.tokenizer import Tokenizer

# %% [markdown]
# ## choices_mask
#
# For a list of choices no pattern is needed. What has been said so far is `said`, as bytes; each token stands for
# some bytes, and special tokens for none. A token may follow if some choice begins with what has been said and
# the token; the answer may end if what has been said *is* a choice. Bytes, not text: with the choice `é`, the token
# of its first byte alone is a good beginning.
#
# One trap: a choice may be the beginning of another, `no` of `nobody`. Then after `no` both may come, the end and
# more.


# %%
#| exercise choices_mask
def choices_mask(choices: list[bytes], said: bytes, tokens: list[bytes]) -> tuple[list[bool], bool]:
    """Say which tokens may follow, one bool a token, and whether the answer may end here."""
    raise NotImplementedError("exercise forms.choices_mask")


# %%
tokens = [b"n", b"o", b"no", b"body", b"yes", b""]
assert choices_mask([b"no", b"nobody"], b"", tokens) == (
    [True, False, True, False, False, False],
    False,
)
assert choices_mask([b"no", b"nobody"], b"no", tokens) == (
    [False, False, False, True, False, False],
    True,
)

# %% [markdown]
# ## shares_left
#
# **Experiment.** Before each draw a form hides part of the vocabulary. How much of the model's own probability does
# it leave? Follow the answer that takes the likeliest allowed token at each step, and note the share of the odds
# that all allowed tokens have together, before they are scaled up. Stop after the token that ends the answer, or
# after `most` steps.
#
# Then say what you saw: which form leaves a trained model nearly everything, and what does a form that the model would
# never have taken do at its first token, and after it?


# %%
#| exercise shares_left
@torch.inference_mode()
def shares_left(model: GPT, prompt: list[int], form: Form, end: int, most: int = 40) -> list[float]:
    """Return, for each step of a greedy answer in a form, the probability that the form left.

    Args:
        model: scores the next token.
        prompt: ids.
        form: what the answer is kept to.
        end: the id that ends an answer.
        most: longest answer, the end included.
    """
    raise NotImplementedError("exercise forms.shares_left")


# %%
# alt: the share of the odds that a form leaves at each token: near one for the answer that the model knows, near zero for another
def check_shares_left() -> None:
    """Teach a small model one answer, then ask for it and for others."""
    tokenizer = Tokenizer.train(["blue red"], vocab_size=265)
    chat = {
        "messages": [{"role": "user", "content": "sky?"}, {"role": "assistant", "content": "blue"}]
    }
    ids, mask = map(torch.tensor, tokenizer.render_conversation(chat))
    model = GPT(GPTConfig(32, 2, 2, sequence_len=32, vocab_size=265, n_layer=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        targets = ids[1:].masked_fill(mask[1:] == 0, -1)
        model(ids[None, :-1], targets[None]).backward()
        optimizer.step()
    prompt, forms = tokenizer.render_for_completion(chat), Forms(tokenizer)
    end = tokenizer.encode_special("<|assistant_end|>")
    found = {
        "blue or red": shares_left(model.eval(), prompt, forms.choice(["blue", "red"]), end),
        "red": shares_left(model, prompt, forms.choice(["red"]), end),
        "four digits": shares_left(model, prompt, forms.regex("[0-9]{4}"), end),
    }
    assert min(found["blue or red"]) > 0.9, "it learned to say blue"
    assert found["red"][0] < 0.1, "it did not learn to say red"
    figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
    for (name, shares), color in zip(found.items(), ("#2456a6", "#a33a2a", "0.5")):
        axes.plot(range(1, len(shares) + 1), shares, marker="o", color=color, label=name)
    axes.set(xlabel="token of the answer", ylabel="share of the odds left")
    axes.legend()


check_shares_left()
