# Generated from chapters/14_forms.py by `course build`; edit that file.
"""Keep an answer to a form: which tokens may come next."""

import json
import re
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from nanochat_lib.tokenizer.tokenizer import Tokenizer

__all__ = ["Guide", "Form", "Forms"]


class Guide:
    """Follow one answer through a form."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        """Begin at the beginning."""
        self._matcher, self._vocab_size = matcher, vocab_size

    def allowed(self) -> Bool[Tensor, " V"]:
        """Mark the tokens that may come next; where the form is full, the one that ends the answer."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return torch.from_numpy(np.unpackbits(bits, bitorder="little")[: self._vocab_size]).bool()

    def accept(self, token: int) -> None:
        """Go on by a token, which must be one of those allowed."""
        self._matcher.consume_token(token)


class Form:
    """Hold a form that answers can be kept to, ready for one tokenizer."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, grammar: str) -> None:
        """Keep the compiled form, and the grammar that it was made from."""
        self._matcher, self._vocab_size, self.grammar = matcher, vocab_size, grammar

    def start(self) -> Guide:
        """Return a guide for a new answer."""
        return Guide(self._matcher.deep_copy(), self._vocab_size)


class Forms:
    """Make forms for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Prepare the vocabulary; an answer ends with <|assistant_end|>."""
        self._vocab_size = tokenizer.vocab_size
        self._vocabulary = LLTokenizer.from_tiktoken(
            encoder=tokenizer.ranks,
            special_tokens=tokenizer.special_ids,
            pattern=tokenizer.pattern,
            eos_token=tokenizer.encode_special("<|assistant_end|>"),
            n_vocab=None,
            slices=None,
        )

    def regex(self, pattern: str) -> Form:
        """Make the form of all texts that a pattern matches from end to end.

        Raises:
            ValueError: the pattern is none, or looks ahead or behind.
        """
        return self.compile(LLMatcher.grammar_from_regex(pattern), "the pattern")

    def choice(self, texts: list[str]) -> Form:
        """Make the form of one of some texts.

        Raises:
            ValueError: there is none, or an empty one.
        """
        if not texts or not all(texts):
            raise ValueError(f"choices {texts}: need at least one, and none of them empty")
        return self.regex("|".join(map(re.escape, texts)))

    def json_schema(self, schema: dict[str, Any] | bool) -> Form:
        """Make the form of JSON that fits a schema, written without superfluous white space.

        Raises:
            ValueError: the schema is none, or uses what is not known here.
        """
        try:
            compact = {"whitespace_flexible": False}
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=compact)
        except Exception as error:
            raise ValueError(f"the schema: {error}") from error
        return self.compile(grammar, "the schema")

    def compile(self, grammar: str, name: str = "the grammar") -> Form:
        """Make a form of a grammar of llguidance, such as another form's.

        Raises:
            ValueError: it is none; the text begins with the name.
        """
        complaint = LLMatcher.validate_grammar(grammar, self._vocabulary)
        if complaint:
            raise ValueError(f"{name}: {complaint}")
        return Form(LLMatcher(self._vocabulary, grammar), self._vocab_size, grammar)
