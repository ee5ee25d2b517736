# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Forms: an answer that a program can read
#
# Ask a model for a date and it may say "It was in spring". A person shrugs, a program breaks. One can train for a
# form, or ask politely, or throw away what does not fit and ask again. Or one makes it impossible to say
# anything else:
#
# ```python
# date = Forms(tokenizer).regex(r"\d{4}-\d{2}-\d{2}")
# Request(prompt, form=date)        # whatever the model is, it answers with a date
# ```
#
# Before each draw, all tokens that would leave the form lose their odds. You need the engine of chapter
# `batching`. On a laptop the chapter takes about 10 seconds.

# %%
import json
import time

import regex
import torch

from nanochat_lib.inference.engine import Engine
from nanochat_lib.inference.row import Request
from nanochat_lib.model.gpt import GPT, GPTConfig

# %% [markdown]
# ## Five tokens
#
# The form is `yes` or `no`, the vocabulary has five tokens. At the beginning, three of them may come; after
# `y` only two; and after `no` none, the answer must end.

# %%
# NBVAL_CHECK_OUTPUT
pieces = ["y", "e", "es", "yes", "no"]


def may_follow(text: str) -> list[str]:
    return [p for p in pieces if any(form.startswith(text + p) for form in ("yes", "no"))]


for text in ("", "y", "ye", "no"):
    print(f"{text!r:5} ->", may_follow(text))

# %% [markdown]
# A mask over the vocabulary, from what has been said: that is all of it. The model never learns that there is a
# form. It gives its odds, those outside of the form become zero, and what is left is scaled up to one.
#
# ## Any regular expression
#
# For a list of choices `startswith` does. For a pattern we must know whether a text is the *beginning* of
# something that matches, which is more than matching. Python's package `regex` can say it: `partial=True`.


# %%
def plain_mask(pattern: str, text: str, tokens: list[str]) -> list[bool]:
    """Mark the tokens after which the text can still become a match."""
    return [bool(regex.fullmatch(pattern, text + t, partial=True)) and t != "" for t in tokens]


# %%
# NBVAL_CHECK_OUTPUT
def shown(pattern: str, text: str, tokens: list[str]) -> list[str]:
    return [t for t, allowed in zip(tokens, plain_mask(pattern, text, tokens)) if allowed]


digits = ["1", "12", "123", "-", "a", "1-", "-0"]
for text in ("", "20", "202", "2025", "2025-1"):
    print(f"{text!r:9} ->", shown(r"\d{4}-\d{2}", text, digits))

# %% [markdown]
# Two things are missing. The end: the token that closes an answer is allowed exactly where the text *is* a match.
# And bytes: a token may be half of a character, `text + t` is then no text at all. To walk over bytes one
# builds the automaton of the pattern, a table of states, and follows each token's bytes through it. For forms
# that nest, such as JSON, a table of states is not enough, and a parser takes its place.
#
# That is a craft of its own, not what we came for. `llguidance` is a library that does it for many engines: it
# takes patterns and JSON schemas, and returns the mask as bits.

# %%
#| default_exp inference.forms
# Keep an answer to a form: which tokens may come next.

# %%
#| export
import json
import re
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from nanochat_lib.tokenizer.tokenizer import Tokenizer


# %%
#| export
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


# %% [markdown]
# Does it agree with the plain mask? We take a tokenizer with words, a pattern, and the beginnings of texts that fit,
# and compare all tokens that are whole ASCII text. The engine's special tokens fit no form, but for the end.

# %%
corpus = "on 2025-03-14 the bus left at 9 and the 12 children sang until 2026"
tokenizer = Tokenizer.train([corpus] * 4, vocab_size=300)
forms, pattern = Forms(tokenizer), r"[a-z]{2,5}( [0-9]+)?"
end = tokenizer.encode_special("<|assistant_end|>")
texts = [tokenizer.decode([i]) for i in range(tokenizer.bos_id)]
compared = [i for i, t in enumerate(texts) if t.isascii()]
for start in ("", "ab", "the", "abc 1", "abcde"):
    guide = forms.regex(pattern).start()
    for token in tokenizer.encode(start):
        guide.accept(token)
    ours = plain_mask(pattern, start, [texts[i] for i in compared])
    theirs = guide.allowed()
    assert theirs[compared].tolist() == ours, f"after {start!r} the two differ"
    assert theirs[end] == bool(regex.fullmatch(pattern, start)), "the end is where the text matches"
    print(
        f"{start!r:8} {sum(ours):4} of {len(ours)} tokens may follow, the end {bool(theirs[end])}"
    )

# %% [markdown]
# ## In the engine
#
# A `Request` can carry a form; its row asks for a guide of its own, hides what is not allowed before each draw,
# and tells the guide what was drawn. No other row notices. We ask a model that has learned nothing at all, and so
# says one token as readily as another.

# %%
# NBVAL_CHECK_OUTPUT
sizes = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_kv_head": 2, "sequence_len": 128}
model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **sizes)).eval()
person = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
asked = {
    "free": None,
    "date": forms.regex(r"2[0-9]{3}-[01][0-9]-[0-3][0-9]"),
    "choice": forms.choice(["yes", "no", "I do not know"]),
    "person": forms.json_schema(person),
}


def answers(form, n: int = 8) -> list[str]:
    """Draw some answers of at most 60 tokens in a form."""
    engine = Engine(model, tokenizer)
    prompt = tokenizer.render_for_completion({"messages": [{"role": "user", "content": "hi"}]})
    rows = [engine.submit(Request(prompt, 60, seed=i, form=form)) for i in range(n)]
    while engine.busy:
        engine.step()
    return [tokenizer.decode(row.tokens) for row in rows if row.reason == "stop"]


dates, choices = answers(asked["date"]), answers(asked["choice"])
assert all(regex.fullmatch(r"2\d{3}-[01]\d-[0-3]\d", text) for text in dates) and len(dates) == 8
assert set(choices) <= {"yes", "no", "I do not know"}
people = [json.loads(text) for text in answers(asked["person"], 20)]
assert all(set(found) == {"name", "age"} and type(found["age"]) is int for found in people)
print(f"{len(dates)} dates of 8, {len(choices)} choices of 8; people are JSON: {len(people) > 0}")

# %%
print("free:  ", repr(answers(None)[:1] or "no answer ended within 60 tokens"))
print("date:  ", dates[:4])
print("choice:", choices[:4])
print("person:", people[:2])

# %% [markdown]
# Perfect form, and not a word of sense: the form is the form's, the content is the model's.
#
# ## What it costs
#
# The plain mask asks the pattern once for each token of the vocabulary. The library follows only the beginnings that
# the vocabulary's tokens share, and remembers what it has seen.


# %%
def seconds_per_mask(mask, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        mask()
    return (time.perf_counter() - start) / repeats


guide = forms.regex(pattern).start()
plain = seconds_per_mask(lambda: plain_mask(pattern, "", texts), 10)
quick = seconds_per_mask(guide.allowed, 200)
print(f"{len(texts)} tokens: plain {1e6 * plain:,.0f} us, library {1e6 * quick:,.0f} us a mask")
assert plain > 3 * quick

# %% [markdown]
# A vocabulary of 32,768 takes the plain mask a hundred times as long, which is longer than most steps of a model.
#
# ## What goes wrong: odds that were never there
#
# A form takes what it gets. Where the model is sure of something that does not fit, the form keeps a millionth of
# its odds, scales that up to one, and the answer comes out as sure as any. The caller sees a clean `7` and does
# not see that the model wanted to say "I do not know". The share of the odds that was left tells it:


# %%
def share_left(logits: torch.Tensor, allowed: torch.Tensor) -> float:
    """Return how much of the model's probability a mask leaves."""
    return logits.softmax(-1)[allowed].sum().item()


logits = torch.zeros(tokenizer.vocab_size)
logits[tokenizer.encode("I")[0]] = 12.0  # a model that is sure of its first word
digits = forms.regex("[0-9]").start().allowed()
words = forms.choice(["yes", "no", "I do not know"]).start().allowed()
print(
    f"a digit: {share_left(logits, digits):.5f}, a choice with a way out: {share_left(logits, words):.5f}"
)
assert share_left(logits, digits) < 0.01 < 0.9 < share_left(logits, words)

# %% [markdown]
# So leave a way out in the form, and look at log-probabilities where it matters. A second thing: a form says what
# may come, not that it comes to an end. A string without `maxLength` may go on until the context is full, and
# half of a JSON object is no JSON. The reason `length` says so, and a caller must look at it.
#
# ## Recap
#
# A form is a mask before each draw: what cannot lead to a match loses its odds. Plain partial matching does it for
# patterns, an automaton over bytes does it fast, a parser does it for JSON. The form never makes a model
# right, and it hides how unsure it was.
#
# The library has `Forms`, `Form` and `Guide`; the server's `response_format` uses them. Exercises: masks for a list
# of choices without any library, and an experiment: how much of a model's odds do forms leave?
