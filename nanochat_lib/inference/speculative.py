# Generated from chapters/14_decoding.py by `course build`; edit that file.
"""Speculative decoding: a small model guesses, a large one checks."""

import torch

from nanochat_lib.inference.kv_cache import KVCache
from nanochat_lib.inference.packed import unit
from nanochat_lib.inference.row import Request, Row
from nanochat_lib.inference.scheduler import CachedModel
from nanochat_lib.tokenizer.tokenizer import Tokenizer

__all__ = ["Reader", "speculate"]


class Reader:
    """Read one text with one model, greedily, and take back what was read in vain."""

    def __init__(self, model: CachedModel, max_len: int) -> None:
        """Start with nothing read."""
        self.model, device = model, model.wte.weight.device
        self.cache = KVCache(model.config, 1, max_len, device, model.cos.dtype)
        self.known: list[int] = []

    @torch.inference_mode()
    def read(self, tokens: list[int]) -> list[int]:
        """Read on; return the likeliest token after each one."""
        idx = torch.tensor([tokens], device=self.cache.memory.device)
        self.known += tokens
        logits = self.model.logits(self.model.hidden(idx, self.cache)[0])
        if bool(logits.isnan().any()):
            raise ValueError("a logit is NaN: the weights are damaged; load others")
        return logits.argmax(-1).tolist()

    @torch.inference_mode()
    def agree(self, text: list[int]) -> list[int]:
        """Forget what was read beyond the text's beginning; return the tokens that are still to be read."""
        n = next((i for i, (a, b) in enumerate(zip(self.known, text)) if a != b), None)
        n = min(len(self.known), len(text)) if n is None else n
        if n < len(self.known):
            last = torch.tensor([self.known[n - 1]], device=self.cache.memory.device)
            self.cache.trim(0, n, unit(self.model.wte(last)))
            self.known = self.known[:n]
        return text[n:]


def speculate(
    model: CachedModel,
    draft: CachedModel,
    tokenizer: Tokenizer,
    request: Request,
    n_draft: int = 4,
) -> tuple[Row, int]:
    """Answer one request greedily, with guesses of a smaller model.

    Args:
        model: whose answer it is.
        draft: guesses; it has the same vocabulary.
        tokenizer: of both.
        request: its dials for drawing are not used.
        n_draft: guesses a pass.

    Returns:
        The finished row, with the tokens that the model alone would have given, and the model's passes.

    Raises:
        ValueError: the vocabularies differ, or the prompt leaves no room in either context.
    """
    if model.config.vocab_size != draft.config.vocab_size:
        sizes = model.config.vocab_size, draft.config.vocab_size
        raise ValueError(f"model and draft have vocabularies of {sizes}: they must be the same")
    limit = min(model.config.sequence_len, draft.config.sequence_len)
    prompt, room = request.prompt, limit - len(request.prompt)
    if room < 1 or not prompt:
        raise ValueError(f"a prompt of {len(prompt)} tokens in a context of {limit}: shorten it")
    row = Row(tokenizer, request, min(room, request.max_tokens or room))
    stops = frozenset({tokenizer.encode_special("<|assistant_end|>"), tokenizer.bos_id})
    large, small, passes = Reader(model, limit), Reader(draft, limit), 0
    while not row.finished:
        text = prompt + row.tokens
        guesses: list[int] = []
        while len(guesses) < min(n_draft, limit - len(text)):
            guesses.append(small.read(small.agree(text + guesses))[-1])
        unread = large.agree(text)
        choices = large.read(unread + guesses)[len(unread) - 1 :]
        passes += 1
        for choice, guess in zip(choices, [*guesses, None]):
            row.accept(choice, stops)
            if row.finished or row.last != guess:
                break
    return row, passes
