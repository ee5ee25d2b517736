"""A real GPT whose weights make it recite: for tests that need to know what a model will say."""

import torch

from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.tokenizer.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["a b c"], vocab_size=265)
SPECIAL = TOKENIZER.encode_special
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def chained_gpt(*chains: str | list) -> GPT:
    """Make a GPT that follows each token by the next one of its chain; what is in no chain, by "x".

    Args:
        chains: lists of text and of <|names|>; the first begins where the assistant speaks.
    """
    config = GPTConfig(
        sequence_len=128, vocab_size=265, n_layer=1, n_embd=272, n_head=1, n_kv_head=1
    )
    model = GPT(config).eval()  # its block adds nothing yet
    following = torch.full((265,), ord("x"))
    for chain in chains:
        ids = []
        for part in chain:
            ids += [SPECIAL(part)] if part.startswith("<|") else TOKENIZER.encode(part)
        following[torch.tensor(ids[:-1])] = torch.tensor(ids[1:])
    with torch.no_grad():
        model.wte.weight.zero_().fill_diagonal_(1.0)  # each token a direction of its own
        model.lm_head.weight.zero_()[following, torch.arange(265)] = 1.0
    return model


def alphabet_gpt() -> GPT:
    """Make a GPT that says the alphabet to every chat."""
    return chained_gpt(["<|assistant_start|>", ALPHABET, "<|assistant_end|>"])


def counting_gpt() -> GPT:
    """Make a GPT that works out 3*4, says the result and stops."""
    return chained_gpt(
        ["<|assistant_start|>", "Q", "<|python_start|>", "3*4", "<|python_end|>"],
        ["<|output_end|>", ".", "<|assistant_end|>"],
    )
