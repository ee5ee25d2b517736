# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Batching: many answers at once, joining and leaving
#
# A step that gives one answer its next token fetches every weight of the model from memory, and so does a
# step that gives a hundred answers theirs. So answers should travel together. But people do not arrive
# together, and their answers do not end together. This chapter builds an engine whose rows come and go at
# any step, that reads no beginning twice, and that hands the model a calculator:
#
# ```python
# engine = Engine(model, tokenizer)
# row = engine.submit(Request(prompt, temperature=0.8, seed=7))   # whenever somebody comes
# engine.step()                                                   # everybody gets a token
# ```
#
# You need the cache and `sample` of the last chapter. On a laptop the chapter takes about 15 seconds, of
# which half goes into training a small model that is worth listening to.

# %%
import random
import time
from collections import Counter

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.training.optim import OptimConfig, build_optimizers

# %% [markdown]
# ## A small model that is worth listening to
#
# To hear what these parts do we need a model with something to say, and we have a few seconds to
# train it. Its world has two kinds of text:
#
# - **walks** through the alphabet: after each letter comes the next with probability 0.6, the
#   second next with 0.3, the third next with 0.1;
# - **sums** of two digits, asked by a user. The assistant does not compute. It writes the sum
#   between `<|python_start|>` and `<|python_end|>`, a tool answers between `<|output_start|>` and
#   `<|output_end|>`, and the assistant repeats what the tool said.
#
# A tokenizer without any merges (256 bytes and the nine special tokens) is enough for it.

# %%
from nanochat_lib.tokenizer.tokenizer import Tokenizer

tokenizer = Tokenizer.train(["a walk through the alphabet"], vocab_size=256 + 9)
rng = random.Random(5)


def walk_row(length: int = 20) -> tuple[list[int], list[int]]:
    letters = [rng.randrange(26)]
    for _ in range(length - 1):
        letters.append((letters[-1] + rng.choices([1, 2, 3], [6, 3, 1])[0]) % 26)
    ids = tokenizer.encode("".join(chr(ord("a") + i) for i in letters), prepend=tokenizer.bos_id)
    return ids, [1] * len(ids)


# %% [markdown]
# There are 300 sums with the digits 0 to 9 and + - *. We keep 60 of them out of the training, to
# ask later.


# %%
def sum_conversation(question: str) -> dict:
    result = str(eval(question))  # our own text; what a model wrote never goes here, see below
    call = [{"type": "python", "text": question}, {"type": "python_output", "text": result}]
    answer = [*call, {"type": "text", "text": result}]
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


questions = [f"{a}{op}{b}" for a in range(10) for op in "+-*" for b in range(10)]
rng.shuffle(questions)
held_out, trained_on = questions[:60], questions[60:]
ids, mask = tokenizer.render_conversation(sum_conversation("3+4"))
print(tokenizer.decode(ids))
print("supervised:", tokenizer.decode([i for i, m in zip(ids, mask) if m]))

# %% [markdown]
# The mask leaves the tool's output out: the model is never taught to compute 7, only to ask and to
# copy.


# %%
def toy_batch(n_rows: int = 32) -> tuple[Tensor, Tensor]:
    sums = [
        tokenizer.render_conversation(sum_conversation(q))
        for q in rng.choices(trained_on, k=n_rows // 2)
    ]
    rows = sums + [walk_row() for _ in range(n_rows // 2)]
    longest = max(len(ids) for ids, _ in rows)
    idx = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    mask = torch.tensor([mask + [0] * (longest - len(mask)) for _, mask in rows])
    return idx[:, :-1], idx.masked_fill(mask == 0, -1)[:, 1:]


# %%
toy = GPT(
    GPTConfig(
        sequence_len=64,
        vocab_size=tokenizer.vocab_size,
        n_layer=2,
        n_embd=64,
        n_head=2,
        n_kv_head=2,
    )
)
assert toy.num_params() == 139_264
optimizers = build_optimizers(toy, OptimConfig(matrix_lr=0.02, embedding_lr=0.1, head_lr=0.004))
losses, n_steps = [], 150
for step in range(n_steps):
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = group["initial_lr"] * min(1.0, 2 * (1 - step / n_steps))
    loss = toy(*toy_batch())
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    toy.zero_grad()
    losses.append(loss.item())
assert losses[-1] < 1.2 < 5 < losses[0], f"loss went from {losses[0]:.2f} to {losses[-1]:.2f}"

# %% [markdown]
# The first loss is that of a model that knows nothing, $\ln 265 = 5.58$ nats. The floor is not
# zero: a walk's next letter has 1.295 bits of entropy, 0.898 nats, and the first letter more.
#
# Does the model know its sums? We let it go on by itself, without a tool, and read everything again for
# every token: the slow way of the last chapter, our judge in this one as well.


# %%
def ask(question: str) -> list[int]:
    return tokenizer.render_for_completion({"messages": [{"role": "user", "content": question}]})


@torch.inference_mode()
def slow_greedy(model: GPT, tokens: list[int], n_new: int) -> list[int]:
    tokens = list(tokens)
    for _ in range(n_new):
        tokens.append(model(torch.tensor([tokens]))[0, -1].argmax().item())
    return tokens[-n_new:]


print(tokenizer.decode(slow_greedy(toy, ask("7*8"), n_new=12)))

# %% [markdown]
# It asks correctly, and then has to play the tool itself, which it never learned. It needs the real
# one.
#
# ## The tool: a calculator that cannot be talked into anything
#
# The shortest calculator is Python's `eval`. But this text was written by a model, and people can
# make a model write what they like. `eval` would open files for them; even a pure sum can do harm,
# since `9**9**9` has 369,693,100 digits and would keep the machine busy for a long time. So we turn
# it round: not a list of what is forbidden but a list of what is allowed. Python's own parser gives
# us the tree of an expression without running anything:

# %%
# NBVAL_CHECK_OUTPUT
import ast

print(ast.dump(ast.parse("1 + 2*7", mode="eval").body))

# %% [markdown]
# A tree of numbers and four operators is all we evaluate. No powers: then a text of 200 characters
# cannot name a number of more than about 200 digits. One thing besides sums is worth having,
# `'strawberry'.count('r')`, because a model that reads tokens does not see letters.

# %%
#| default_exp inference.calculator
# The calculator: exact arithmetic on text that a model wrote, and nothing else.

# %%
#| export
import ast
import operator
import re
from fractions import Fraction

# %%
#| export inference.calculator
MAX_CHARACTERS = 200
ALLOWED_TEXT = re.compile(r"""(?:[0-9+\-*/(). ]|'[^'\\]*'|"[^"\\]*"|\.count(?=\())*""")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


# %% [markdown]
# Numbers are read as fractions, digit by digit from the text, so 0.1 + 0.2 is 0.3 and not
# 0.30000000000000004: a model should copy a result, not learn what binary floats do to tenths.


# %%
#| export inference.calculator
def evaluate_node(node: ast.AST, source: str) -> Fraction:
    """Compute one node of a parsed expression, exactly.

    Args:
        node: number, + - * /, sign, or `"text".count("part")`.
        source: the text that was parsed; decimals are read from it, digit by digit.

    Returns:
        The value.

    Raises:
        ValueError: any other kind of node.
        ZeroDivisionError: division by zero.
    """
    match node:
        case ast.Constant(value=int() | float()):
            return Fraction(ast.get_source_segment(source, node))
        case ast.UnaryOp() if type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](evaluate_node(node.operand, source))
        case ast.BinOp() if type(node.op) in OPERATORS:
            left, right = evaluate_node(node.left, source), evaluate_node(node.right, source)
            return OPERATORS[type(node.op)](left, right)
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str(text)), attr="count"),
            args=[ast.Constant(value=str(part))],
            keywords=[],
        ):
            return Fraction(text.count(part))
    raise ValueError(f"{type(node).__name__} is not arithmetic")


# %%
# NBVAL_CHECK_OUTPUT
for source in ("(1 + 2) * 7 / 2", "0.1 + 0.2", "'strawberry'.count('r')"):
    print(source, "=", evaluate_node(ast.parse(source, mode="eval").body, source))

# %% [markdown]
# A result becomes text again: whole numbers in full, others to six decimals.


# %%
#| export inference.calculator
def format_number(value: Fraction) -> str:
    """Write a number the short way: 12, -0.5, or rounded to six decimals, 0.333333."""
    millionths = round(value * 10**6)
    sign = "-" if millionths < 0 else ""
    whole, rest = divmod(abs(millionths), 10**6)
    return f"{sign}{whole}.{rest:06d}".rstrip("0").rstrip(".")


# %%
# NBVAL_CHECK_OUTPUT
print(
    format_number(Fraction(12)),
    format_number(Fraction(-1, 2)),
    format_number(Fraction(1, 3)),
    10**30 == int(format_number(Fraction(10**30))),
)

# %% [markdown]
# `calculate` puts a gate in front: the length, and only characters that a sum or a count can need.
# So no name, no attribute but `count` and no backslash ever reach the parser. Whatever is not
# arithmetic gives `None`.


# %%
#| export inference.calculator
def calculate(expression: str) -> str | None:
    """Work out a small sum, or count letters, without ever running code.

    Example: "(1 + 2) * 7 / 2" -> "10.5"; "'strawberry'.count('r')" -> "3"; "2**9**9" -> None.

    Args:
        expression: + - * /, parentheses, decimals, thousands commas, and `.count()` on quoted
            text; at most 200 characters. Without powers that bounds the result to 200 digits.

    Returns:
        The result, exact for whole numbers, otherwise to six decimals; None for any other text.
    """
    source = expression.strip()
    if "'" not in source and '"' not in source:
        source = THOUSANDS.sub("", source)
    if len(source) > MAX_CHARACTERS or not ALLOWED_TEXT.fullmatch(source):
        return None
    try:
        return format_number(evaluate_node(ast.parse(source, mode="eval").body, source))
    except (SyntaxError, ValueError, ZeroDivisionError, MemoryError, RecursionError):
        return None


# %%
# NBVAL_CHECK_OUTPUT
tries = [
    "12*(3+4)",
    "1,250 / 4",
    "'banana'.count('an')",
    "2/0",
    "9**9**9",
    "__import__('os')",
    "len('abc')",
    "1 +",
]
for text in tries:
    print(f"{text:22} {calculate(text)}")

# %% [markdown]
# Agreement with an independent judge: Python's own integers, on 300 random sums.

# %%
for _ in range(300):
    text = "".join(f"{rng.randint(0, 999)}{rng.choice('+-*')}" for _ in range(5)) + str(
        rng.randint(0, 999)
    )
    assert calculate(text) == str(eval(text)), f"{text}: {calculate(text)}"

# %% [markdown]
# ## One answer
#
# A request says what is asked and how: the prompt, the dials of the last chapter, a seed, and a few things
# that a service needs: what to add to some tokens' logits, penalties for tokens that the answer holds
# already, and whether to note how likely the alternatives were.

# %%
#| default_exp inference.row
# One request, and the answer in the making.

# %%
#| export
import math
import random
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from nanochat_lib.inference.calculator import calculate
from nanochat_lib.inference.sampling import check_dials
from nanochat_lib.tokenizer.conversation import CALL_FAILED
from nanochat_lib.tokenizer.tokenizer import Tokenizer

MAX_CALL = 32  # tokens; the longest sum of our sample of GSM8K has 28 characters


# %%
#| export inference.row
@runtime_checkable
class Guide(Protocol):
    """Follow one answer through a form; chapter `forms` has a real one."""

    def allowed(self) -> Bool[Tensor, " V"]:
        """Mark the tokens that may come next, one of them at least."""

    def accept(self, token: int) -> None:
        """Go on by a token."""


@runtime_checkable
class Form(Protocol):
    """Say what an answer must be."""

    def start(self) -> Guide:
        """Return a guide for a new answer."""


# %%
#| export inference.row
@dataclass(frozen=True)
class Request:
    """Ask for one answer to one prompt, in one way."""

    prompt: list[int]
    """token ids"""
    max_tokens: int | None = None
    """longest answer; None goes on to the end of the context"""
    temperature: float = 1.0
    """0 takes the likeliest token, 1 draws with the model's own odds"""
    top_k: int | None = None
    """draw among so many of the likeliest tokens"""
    top_p: float = 1.0
    """draw among the fewest tokens that hold this probability together"""
    min_p: float = 0.0
    """draw among tokens at least this share as likely as the likeliest"""
    seed: int | str = 42
    """the same seed gives the same answer, whoever else is being answered"""
    bias: Mapping[int, float] = field(default_factory=dict)
    """what is added to the logits of some tokens"""
    presence_penalty: float = 0.0
    """taken from the logit of every token that the answer holds already"""
    frequency_penalty: float = 0.0
    """taken once for each time that it does"""
    alternatives: int | None = None
    """note each token's log-probability, and so many of the likeliest; None notes nothing"""
    end_loops: bool = False
    """end an answer that repeats itself without end"""
    form: Form | None = None
    """what the answer must be: only tokens that can lead to it are drawn"""
    return_calls: bool = False
    """end the answer at a call, for somebody else to work out; False asks the calculator"""

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens {self.max_tokens}: need at least 1, or None")
        check_dials(self.temperature, self.top_k, self.top_p, self.min_p)


# %% [markdown]
# A small model may fall into repeating itself: the more often a piece stands in the text, the likelier it
# comes again. Nobody wants to read that to the end of the context.


# %%
#| export inference.row
def in_a_loop(tokens: list[int], longest: int = 16, length: int = 24, times: int = 4) -> bool:
    """Say whether a text ends in a short piece that is repeated again and again.

    Example: 24 equal tokens are a loop; so are four times the same 16.

    Args:
        tokens: ids.
        longest: tokens of the longest piece that is looked for.
        length: tokens that the repetitions must cover together, at least.
        times: how often the piece must stand there, at least.
    """
    for period in range(1, longest + 1):
        covered = period * max(times, -(-length // period))
        if len(tokens) >= covered and tokens[-covered:-period] == tokens[period - covered :]:
            return True
    return False


# %%
assert in_a_loop([1, 2] * 12) and not in_a_loop([1, 2] * 11) and not in_a_loop(list(range(64)))
assert in_a_loop(list(range(16)) * 4) and not in_a_loop(list(range(16)) * 3)

# %% [markdown]
# The answer in the making has a state: is it inside a tool call, does a tool have tokens waiting to
# be put in its mouth, has it ended? Each step hands the row the token that the model chose. The row
# takes it, unless a tool has the word: then the waiting token goes in, and the model's choice is
# thrown away. The mask tells the two apart; reinforcement learning needs that, since nobody should
# be praised for what a tool said.
#
# The tool always answers: a call that is no arithmetic gets the output `error`, and one that has not
# ended after 32 tokens is ended for the model, with the same output. Without it the model stands
# where no training has ever stood, and may repeat a token until the context is full; with it, it can
# be taught what to say next (chapter `contact`).


# %%
#| export inference.row
class Row:
    """Follow one answer: its tokens, what a tool forces next, and how it ended."""

    def __init__(self, tokenizer: Tokenizer, request: Request, budget: int) -> None:
        """Start an empty answer of at most `budget` tokens."""
        self.tokenizer, self.request, self.budget = tokenizer, request, budget
        self.tokens: list[int] = []
        self.mask: list[int] = []
        self.logprobs: list[float] = []  # one a token, and one for the stop token if it came
        self.alternatives: list[list[tuple[int, float]]] = []  # the token itself comes first
        self.last = tokenizer.bos_id
        self.reason: Literal["stop", "length", "loop", "call", "cancelled"] | None = None
        self.guide = None if request.form is None else request.form.start()
        self.n_shared = 0  # tokens of the prompt that had been read for somebody else
        self.luck = random.Random(request.seed)
        self._forced: deque[int] = deque()
        self._expression: list[int] | None = None  # the tokens since python_start

    @property
    def finished(self) -> bool:
        """Say whether the answer has ended, in whatever way."""
        return self.reason is not None

    @property
    def stopped(self) -> bool:
        """Say whether the model ended the answer."""
        return self.reason == "stop"

    def accept(
        self, sampled: int, stop_tokens: frozenset[int], logprob: float = 0.0
    ) -> tuple[int, int]:
        """Take the sampled token, unless the row has ended or a tool has the word.

        Args:
            sampled: what the model chose.
            stop_tokens: ids that end the answer; they are not kept in `tokens`.
            logprob: of the choice, in nats; a forced token has 0.

        Returns:
            The row's token for this step, and 1 when the model chose it, 0 when it was forced. A
            row that has ended repeats its last token with 0.
        """
        if self.finished:
            return self.last, 0
        mask = 0 if self._forced else 1
        self.last = self._forced.popleft() if self._forced else sampled
        self.logprobs.append(logprob if mask else 0.0)
        if mask and self.last in stop_tokens:
            self.reason = "stop"
            return self.last, 1
        self.tokens.append(self.last)
        self.mask.append(mask)
        if mask and self.guide is not None:
            self.guide.accept(self.last)
        if mask:
            self._watch_for_tool(self.last)
        if self.finished:  # by a call
            return self.last, mask
        if len(self.tokens) >= self.budget:
            self.reason = "length"
        elif self.request.end_loops and in_a_loop(self.tokens):
            self.reason = "loop"
        return self.last, mask

    def _watch_for_tool(self, token: int) -> None:
        """Collect what stands in a tool call; queue the calculator's answer when it ends."""
        special = self.tokenizer.encode_special
        if token == special("<|python_start|>"):
            self._expression = []
        elif self._expression is not None:
            ended, result = token == special("<|python_end|>"), None
            if ended and self.request.return_calls:
                self.reason = "call"
                return
            if ended:
                result = calculate(self.tokenizer.decode(self._expression))
            self._expression.append(token)
            if ended or len(self._expression) > MAX_CALL:
                self._expression = None
                output = self.tokenizer.encode(result or CALL_FAILED)
                answer = [special("<|output_start|>"), *output, special("<|output_end|>")]
                self._forced.extend(answer if ended else [special("<|python_end|>"), *answer])

    def edit(self, logits: Float[Tensor, " V"]) -> None:
        """Apply the request's biases, penalties and form to the row's logits, in place."""
        request = self.request
        for token, bias in request.bias.items():
            logits[token] += bias
        if request.presence_penalty or request.frequency_penalty:
            for token, count in Counter(self.tokens).items():
                logits[token] -= request.presence_penalty + count * request.frequency_penalty
        if self.guide is not None:
            logits.masked_fill_(~self.guide.allowed().to(logits.device), -math.inf)


# %% [markdown]
# We play the model and write `3+4` into a tool call, then `3 apples`. After `<|python_end|>` we offer
# nothing but `?`, and the row takes it only when the tool has finished.

# %%
# NBVAL_CHECK_OUTPUT
special = tokenizer.encode_special
stop, question_mark = special("<|assistant_end|>"), tokenizer.encode("?")[0]
for call in ("3+4", "3 apples"):
    row = Row(tokenizer, Request([1]), budget=40)
    ids = [special("<|python_start|>"), *tokenizer.encode(call), special("<|python_end|>")]
    for token in [*ids, *[question_mark] * 20]:
        row.accept(token, frozenset({stop}))
        if token == question_mark and row.mask[-1]:
            break
    row.accept(stop, frozenset({stop}))
    print(tokenizer.decode(row.tokens))
    print(row.mask, "ended" if row.finished else "goes on")

# %% [markdown]
# ## How long does an answer wait for its neighbours?
#
# Take four answers of 2, 9, 4 and 3 tokens and a machine with room for two rows. In batches that start
# and end together the first two take 9 steps, the other two 4: 13 steps, and in 8 of their 26 places
# nothing happens. Let the third answer take the place of the first as soon as that ends, and the fourth
# the place of the third: one row is busy for 2 + 4 + 3 steps, the other for 9. Nine steps, no empty place,
# and nobody waits for a neighbour's end.


# %%
def steps_together(lengths: list[int], n_rows: int) -> int:
    """Steps of batches that start and end together."""
    return sum(max(lengths[i : i + n_rows]) for i in range(0, len(lengths), n_rows))


def steps_in_turn(lengths: list[int], n_rows: int) -> int:
    """Steps when each answer takes the first place that gets free."""
    busy = [0] * n_rows
    for length in lengths:
        first = busy.index(min(busy))
        busy[first] += length
    return max(busy)


# %%
# NBVAL_CHECK_OUTPUT
assert (steps_together([2, 9, 4, 3], 2), steps_in_turn([2, 9, 4, 3], 2)) == (13, 9)
dice = random.Random(0)
lengths = [min(250, 1 + int(dice.expovariate(1 / 40))) for _ in range(400)]
for n_rows in (1, 8, 32):
    together, in_turn = steps_together(lengths, n_rows), steps_in_turn(lengths, n_rows)
    print(
        f"{n_rows:2} rows: {together:6,} steps together, {in_turn:6,} in turn, "
        f"{sum(lengths) / n_rows:6,.0f} if no place were ever empty"
    )

# %% [markdown]
# With lengths as answers have them (many short ones, few long), batches that end together spend most of
# their places on waiting. This is **continuous batching** (Yu et al. 2022, Orca, OSDI): the unit of
# scheduling is a step, not an answer.
#
# %% [markdown]
# ## No beginning is read twice
#
# Keys and values depend on what stands to the left, and on nothing else. Two prompts that begin alike
# share their first keys and values, to the bit, up to the first token that differs. A chat is the best
# case: its next turn begins with all that was said. So whoever comes takes a copy of the longest beginning
# that anybody in the cache has read, and reads the rest. What has ended may also be kept for a while:


# %%
#| default_exp inference.kept
# Keys and values of past texts, for prompts that begin alike.

# %%
#| export
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor

MIN_SHARED = 16  # tokens; a shorter beginning is read again


def shared_length(known: Sequence[int], prompt: Sequence[int]) -> int:
    """Count the tokens that a prompt's beginning shares with a known text, the prompt's last one excepted.

    Example: known [5, 6, 7], prompt [5, 6, 7, 8] -> 3; prompt [5, 6] -> 1, because its last token must be
    read to know what follows.
    """
    most = min(len(known), len(prompt) - 1)
    return next((i for i in range(most) if known[i] != prompt[i]), most)


class KeptTexts:
    """Keep keys and values of past texts; those that nobody came back to are dropped first."""

    def __init__(self, room: int) -> None:
        """Keep up to `room` bytes."""
        self.room, self.taken = room, 0
        self.texts: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def add(self, tokens: list[int], memory: Tensor) -> None:
        """Keep a text, (2, L, H, places, D), instead of any that it continues."""
        name, size = tuple(tokens), memory.numel() * memory.element_size()
        if size > self.room:
            return
        for other in [t for t in self.texts if t == name[: len(t)]]:
            self._drop(other)
        self.texts[name], self.taken = memory, self.taken + size
        while self.taken > self.room:
            self._drop(next(iter(self.texts)))

    def clear(self) -> None:
        """Keep nothing any more."""
        self.texts.clear()
        self.taken = 0

    def _drop(self, name: tuple[int, ...]) -> None:
        memory = self.texts.pop(name)
        self.taken -= memory.numel() * memory.element_size()

    def find(self, prompt: list[int]) -> tuple[Tensor | None, int]:
        """Return the text that shares most of a prompt's beginning, and how many tokens that is.

        Less than MIN_SHARED tokens count as none: (None, 0).
        """
        head = tuple(prompt[:MIN_SHARED])
        found = {t: shared_length(t, prompt) for t in self.texts if t[:MIN_SHARED] == head}
        best = max(found, key=found.__getitem__, default=None)
        if best is None or found[best] < MIN_SHARED:
            return None, 0
        self.texts.move_to_end(best)
        return self.texts[best], found[best]


# %%
# NBVAL_CHECK_OUTPUT
kept = KeptTexts(room=3 * 4 * 20)
for first in (1, 2, 3):
    kept.add([first] * 20, torch.zeros(20))
    kept.find([1] * 30)
print([text[0] for text in kept.texts], kept.find([1] * 18 + [9])[1], kept.find([9] * 30)[1])
kept.add([4] * 20, torch.zeros(20))
print([text[0] for text in kept.texts])

# %% [markdown]
# ## The engine
#
# Now everything comes together. The cache has one row for each answer. Those in the making stand first;
# behind them stand prompts that are still being read, for a long prompt is read in pieces: while somebody
# waits for a next token, no more than `chunk` tokens of prompts are read in a step. When a row ends, the
# last of its kind moves into the gap, so a pass always goes over neighbours and no step is spent on a row
# that has ended.
#
# Each row has random numbers of its own, from its request's seed. So an answer does not depend on who else
# is being answered, and two samples of one prompt differ from the first token on.
#
# And no row may pass the end of the context: the RoPE tables stop there, and so does everything the model
# has learned. A prompt that leaves no room is an error; an answer that reaches the end is cut.


# %%
#| default_exp inference.scheduler
# The scheduler: requests join and leave at any step, and beginnings are read once.

# %%
#| export
from collections import deque
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nanochat_lib.inference.kept import MIN_SHARED, KeptTexts, shared_length
from nanochat_lib.inference.kv_cache import KVCache
from nanochat_lib.inference.row import Request, Row
from nanochat_lib.inference.sampling import draw, likeliest
from nanochat_lib.model.attention import rms_norm
from nanochat_lib.model.gpt import GPTConfig
from nanochat_lib.tokenizer.tokenizer import Tokenizer


@runtime_checkable
class CachedModel(Protocol):
    """Say what the scheduler asks of a model: a GPT does, and so do faster ones."""

    config: GPTConfig
    wte: nn.Embedding
    cos: Tensor  # the cache takes its number format

    def hidden(self, idx: Int[Tensor, "B T"], kv_cache: KVCache) -> Float[Tensor, "B T C"]:
        """Read tokens, and leave keys and values in the cache."""

    def logits(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows V"]:
        """Score every token of the vocabulary, from what `hidden` returned."""


# %%
#| export inference.scheduler
class Scheduler:
    """Answer many requests at once; they join and leave at any step.

    Rows 0 to n_decoding - 1 of the cache are answers in the making, those after them prompts that are
    still being read. Where a row leaves, another takes its place, so that every pass goes over
    neighbouring rows.
    """

    def __init__(
        self,
        model: CachedModel,
        tokenizer: Tokenizer,
        max_rows: int = 128,
        chunk: int = 512,
        keep_bytes: int = 0,
    ) -> None:
        """Keep the model and tokenizer; weights are not copied.

        Args:
            model: a GPT, or a packed one, which is faster.
            tokenizer: the model's.
            max_rows: answers in the making at once; further requests wait.
            chunk: tokens of prompts read in one step, while answers wait for their next token.
            keep_bytes: keys and values of past texts to keep, for prompts that begin alike.
        """
        self.model, self.tokenizer = model, tokenizer
        self.max_rows, self.chunk = max_rows, chunk
        self.stop_tokens = frozenset(
            {tokenizer.encode_special("<|assistant_end|>"), tokenizer.bos_id}
        )
        self.waiting: deque[Row] = deque()
        self.rows: list[Row] = []  # row i of the cache is for self.rows[i]
        self.n_decoding = 0
        self.cache: KVCache | None = None
        self.kept = KeptTexts(keep_bytes)

    def submit(self, request: Request) -> Row:
        """Let a request wait for its turn; `step` fills the row that comes back.

        Raises:
            ValueError: the prompt is empty, or leaves no room in the context.
        """
        length, limit = len(request.prompt), self.model.config.sequence_len
        if not 1 <= length < limit:
            raise ValueError(
                f"the prompt has {length} tokens, the context has {limit}: it needs at least one "
                "token and room for one more; shorten it"
            )
        room = limit - length
        row = Row(self.tokenizer, request, min(room, request.max_tokens or room))
        self.waiting.append(row)
        return row

    def cancel(self, row: Row) -> None:
        """End an answer; its place is free at the next step."""
        if not row.finished:
            row.reason = "cancelled"
            if row in self.waiting:
                self.waiting.remove(row)

    def reset(self) -> None:
        """Forget every request and everything that was read."""
        self.waiting.clear()
        self.kept.clear()
        self.rows, self.n_decoding, self.cache = [], 0, None

    @property
    def busy(self) -> bool:
        """Say whether a step would do anything."""
        return bool(self.waiting or any(not row.finished for row in self.rows))

    # Decorated here: around a generator, the mode could leak into the caller.
    @torch.inference_mode()
    def step(self) -> list[tuple[Row, int, int]]:
        """Give every answer its next token, and read some of the prompts that wait.

        Returns:
            The rows that got a token, each with it and its mask, as `Row.accept` returns them.
        """
        self._drop_finished()
        self._admit()
        got = []
        if self.n_decoding:
            rows = self.rows[: self.n_decoding]
            logits = self._forward([[row.last] for row in rows], 0)
            got += self._choose(rows, logits)
        if self.n_decoding < len(self.rows):
            got += self._read()
        return got

    def _forward(self, pieces: list[list[int]], start: int) -> Float[Tensor, "B V"]:
        """Feed each row from `start` on its piece; return the logits that follow."""
        counts = [len(piece) for piece in pieces]
        width, device = max(counts), self.cache.memory.device
        padded = [piece + [0] * (width - len(piece)) for piece in pieces]
        self.cache.expect(counts, start)
        x = self.model.hidden(torch.tensor(padded, device=device), self.cache)  # (B, T, C)
        last = torch.tensor(counts, device=device) - 1
        return self.model.logits(x[torch.arange(len(counts), device=device), last])

    def _read(self) -> list[tuple[Row, int, int]]:
        """Read on in every prompt; those at their end draw their first token."""
        cache, first = self.cache, self.n_decoding
        rows = self.rows[first:]
        # Nobody waits for a token: read as much as memory allows.
        budget = self.chunk if first else 32 * self.chunk
        # Padding takes places as well: no row may be padded beyond the end of the context.
        room = cache.max_len - max(cache.lengths[first : first + len(rows)])
        share = max(1, min(budget // len(rows), room))
        pieces = []
        for i, row in enumerate(rows, first):
            pieces.append(row.request.prompt[cache.lengths[i] : cache.lengths[i] + share])
        logits = self._forward(pieces, first)
        ready = [i for i, row in enumerate(rows) if self._is_read(first + i)]
        if not ready:
            return []
        got = self._choose([rows[i] for i in ready], logits[ready])
        for i in ready:
            self._exchange(first + i, self.n_decoding)
            self.n_decoding += 1
        return got

    def _is_read(self, i: int) -> bool:
        """Say whether the whole prompt of a row is in the cache."""
        return self.cache.lengths[i] >= len(self.rows[i].request.prompt)

    def _exchange(self, a: int, b: int) -> None:
        """Let two rows change places."""
        if a != b:
            length, (memory, embedding) = self.cache.lengths[a], self.cache.snapshot(a)
            self.cache.move(b, a)
            self.cache.restore(b, length, memory, embedding)
            self.rows[a], self.rows[b] = self.rows[b], self.rows[a]

    def _choose(self, rows: list[Row], logits: Float[Tensor, "B V"]) -> list[tuple[Row, int, int]]:
        """Draw a token for each row, all rows with the same dials together, and let the rows accept."""
        for row, own in zip(rows, logits):
            row.edit(own)
        groups: dict[tuple, list[int]] = {}
        for i, row in enumerate(rows):
            r = row.request
            groups.setdefault((r.temperature, r.top_k, r.top_p, r.min_p), []).append(i)
        got: list = [None] * len(rows)
        for dials, members in groups.items():
            own = logits if len(groups) == 1 else logits[members]
            uniforms = torch.tensor([rows[i].luck.random() for i in members])
            drawn, odds = draw(own, uniforms, *dials)
            for i, token, logprob in zip(members, drawn.tolist(), odds.tolist()):
                got[i] = (rows[i], *rows[i].accept(token, self.stop_tokens, logprob))
        for i, row in enumerate(rows):
            if row.request.alternatives is not None and not row.stopped:
                row.alternatives.append(likeliest(logits[i], row.last, row.request.alternatives))
        return got

    def _drop_finished(self) -> None:
        """Take out the rows that have ended; the last row of each kind closes the gap."""
        for i in reversed(range(len(self.rows))):
            if not self.rows[i].finished:
                continue
            n = self.cache.lengths[i]
            if n and self.kept.room:
                self.kept.add(self._texts(i)[:n], self.cache.snapshot(i)[0])
            if i < self.n_decoding:
                self.n_decoding -= 1
                self._close(self.n_decoding, i)
                i = self.n_decoding
            self._close(len(self.rows) - 1, i)
            self.cache.forget(len(self.rows) - 1)
            self.rows.pop()

    def _close(self, source: int, target: int) -> None:
        """Move a row into a gap."""
        if source != target:
            self.cache.move(source, target)
            self.rows[target] = self.rows[source]

    def _texts(self, i: int) -> list[int]:
        """Return prompt and answer of a row; the cache holds the first of these tokens."""
        return self.rows[i].request.prompt + self.rows[i].tokens

    def _admit(self) -> None:
        """Give waiting requests a row, and what has been read of their prompts for others."""
        wanted = min(self.max_rows, len(self.rows) + len(self.waiting))
        if self.cache is None and wanted:
            config, table = self.model.config, self.model.cos
            self.cache = KVCache(config, wanted, device=table.device, dtype=table.dtype)
        elif wanted and wanted > self.cache.batch_size:
            self.cache.grow(min(self.max_rows, max(wanted, 2 * self.cache.batch_size)))
        held_back: deque[Row] = deque()
        while self.waiting and len(self.rows) < self.max_rows:
            row = self.waiting.popleft()
            prompt = row.request.prompt
            known, soon = self._shared_with_rows(prompt)
            kept, n = self.kept.find(prompt)
            if soon - max(known[1], n) >= MIN_SHARED:
                held_back.append(row)  # somebody is reading what this prompt begins with
                continue
            self.rows.append(row)
            if n > known[1]:
                self._begin(len(self.rows) - 1, prompt, n, kept)
            elif known[1]:
                self._begin(len(self.rows) - 1, prompt, known[1], self.cache.memory[:, :, known[0]])
        self.waiting.extendleft(reversed(held_back))

    def _shared_with_rows(self, prompt: list[int]) -> tuple[tuple[int, int], int]:
        """Find the row that has read most of a prompt's beginning, and what one is about to have read.

        Returns:
            (row, tokens), and the most tokens that a row will share when it has read its prompt.
        """
        best, soon = (0, 0), 0
        for i, row in enumerate(self.rows):
            if row.request.prompt[:MIN_SHARED] != prompt[:MIN_SHARED]:
                continue
            n = shared_length(self._texts(i), prompt)
            soon = max(soon, n)
            best = max(best, (i, min(n, self.cache.lengths[i])), key=lambda pair: pair[1])
        return best, soon

    def _begin(self, i: int, prompt: list[int], n: int, memory: Tensor) -> None:
        """Let a new row hold the first n tokens of its prompt, from what has been read."""
        self.rows[i].n_shared = n
        token = torch.tensor([prompt[n - 1]], device=self.cache.memory.device)
        self.cache.restore(i, n, memory, rms_norm(self.model.wte(token)))


# %% [markdown]
# Most callers have all their prompts at hand, or one and want to watch. For them the engine puts two
# conveniences on top: `generate_batch` answers many, `generate` streams, a column of tokens at a time, one
# for each sample.

# %%
#| default_exp inference.engine
# The engine: many prompts at once, or one as a stream.

# %%
#| export
from collections.abc import Iterator

from nanochat_lib.inference.row import Request, Row
from nanochat_lib.inference.scheduler import Scheduler


# %%
#| export inference.engine
class Engine(Scheduler):
    """Generate from a model: many prompts at once, streaming, with the calculator as a tool."""

    def generate(
        self,
        tokens: list[int],
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Stream num_samples answers to one prompt, a column of tokens at a time.

        Args:
            tokens: the prompt's ids.
            num_samples: answers; each is drawn on its own, from the first token on.
            max_tokens: longest answer; None goes on to the end of the context.
            temperature: 0 for the most likely token, 1 for the model's own odds.
            top_k: draw only among the k most likely tokens.
            seed: the same seed gives the same answers.

        Yields:
            (tokens, mask), num_samples long each. Mask is 1 for a token that the model chose, 0 for
            one that a tool forced and for a row that has ended. A row's last token may be a stop
            token.

        Raises:
            ValueError: the prompt is empty or leaves no room in the context.
        """
        rows = self._submit_all([tokens], max_tokens, temperature, top_k, seed, num_samples)
        return self._columns(rows)

    def _columns(self, rows: list[Row]) -> Iterator[tuple[list[int], list[int]]]:
        """Step until every row has ended; yield the next column when each row has it or has ended."""
        n = 0
        try:
            while n < max(len(row.logprobs) for row in rows) or not all(r.finished for r in rows):
                while not all(row.finished or len(row.logprobs) > n for row in rows):
                    self.step()
                there = [n < len(row.tokens) for row in rows]
                mask = [
                    row.mask[n] if more else int(n < len(row.logprobs))
                    for row, more in zip(rows, there)
                ]
                yield [row.tokens[n] if more else row.last for row, more in zip(rows, there)], mask
                n += 1
        finally:
            for row in rows:
                self.cancel(row)

    def generate_batch(
        self,
        prompts: list[list[int]],
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 42,
        num_samples: int = 1,
    ) -> list[tuple[list[int], list[int]]]:
        """Answer many prompts of any lengths.

        Args:
            prompts: one list of ids a prompt.
            max_tokens: longest answer; None goes on to the end of the context.
            temperature: as in `generate`; greedy unless told otherwise.
            top_k: as in `generate`.
            seed: as in `generate`.
            num_samples: answers to each prompt; those of one prompt stand together in the result.

        Returns:
            (tokens, mask) for each answer: without the prompt, and without the stop token.

        Raises:
            ValueError: a prompt is empty or leaves no room in the context.
        """
        rows = self.rollouts(prompts, max_tokens, temperature, top_k, seed, num_samples)
        return [(row.tokens, row.mask) for row in rows]

    def rollouts(
        self,
        prompts: list[list[int]],
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
        num_samples: int = 1,
    ) -> list[Row]:
        """Answer as `generate_batch`, and return each answer's whole row: log-probabilities, and how it ended."""
        rows = self._submit_all(prompts, max_tokens, temperature, top_k, seed, num_samples)
        try:
            while not all(row.finished for row in rows):
                self.step()
        finally:
            for row in rows:
                self.cancel(row)
        return rows

    def _submit_all(
        self,
        prompts: list[list[int]],
        max_tokens: int | None,
        temperature: float,
        top_k: int | None,
        seed: int,
        num_samples: int,
    ) -> list[Row]:
        """Submit every prompt num_samples times, each with a seed of its own; all of them or none."""
        if num_samples < 1:
            raise ValueError(f"num_samples {num_samples}: need at least 1")
        rows: list[Row] = []
        try:
            for i, prompt in enumerate(prompts):
                for j in range(num_samples):
                    dials = (max_tokens, temperature, top_k)
                    rows.append(self.submit(Request(prompt, *dials, seed=f"{seed} {i} {j}")))
        except ValueError as error:
            for row in rows:
                self.cancel(row)
            raise ValueError(f"prompt {i}: {error}") from error
        return rows


# %% [markdown]
# The judge first: greedy answers of a model with random weights, to six prompts of different lengths.


# %%
config = GPTConfig(
    sequence_len=256, vocab_size=265, n_layer=3, n_embd=64, key_offset=True, smear=True
)
shaken = GPT(config)
generator = torch.Generator().manual_seed(1)
for weight in shaken.parameters():
    weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
prompts = [
    torch.randint(0, 256, (n,), generator=generator).tolist() for n in (3, 40, 17, 5, 28, 11)
]

# %%
answers = Engine(shaken, tokenizer).generate_batch(prompts, max_tokens=8)
for tokens, (answer, _) in zip(prompts, answers):
    slow = slow_greedy(shaken, tokens, n_new=8)
    assert answer == slow[: len(answer)], f"{answer} is not {slow}"

# %% [markdown]
# The harder case: answers drawn at random, on a machine with three rows, with prompts that come while
# others are being answered, some of them beginning alike, and one person who leaves. Each answer must be
# the one that its request gets alone.

# %%
requests = [Request(p, max_tokens=20, seed=i) for i, p in enumerate(prompts)]
requests += [Request(prompts[1] + [n], max_tokens=20, seed=n) for n in (7, 8)]
alone = []
for request in requests:
    engine = Engine(shaken, tokenizer)
    row = engine.submit(request)
    while engine.busy:
        engine.step()
    alone.append(row.tokens)

# %%
engine, rows = Engine(shaken, tokenizer, max_rows=3, chunk=8, keep_bytes=2**20), []
for i, request in enumerate(requests):
    rows.append(engine.submit(request))
    engine.step()
    if i == 4:
        engine.cancel(rows[0])
while engine.busy:
    engine.step()
assert [row.tokens for row in rows[1:]] == alone[1:] and rows[0].tokens == alone[0][
    : len(rows[0].tokens)
]
print("read for somebody else already:", [row.n_shared for row in rows])
assert rows[-1].n_shared == 40

# %% [markdown]
# ## Use it: sixty sums it never saw

# %%
engine = Engine(toy, tokenizer)
answers = engine.generate_batch([ask(q) for q in held_out], max_tokens=20)
texts = [tokenizer.decode(tokens) for tokens, _ in answers]
right = sum(text.endswith(f"<|output_end|>{eval(q)}") for q, text in zip(held_out, texts))
print(texts[0])
print(f"{right} of {len(held_out)} held-out sums are right")
assert right > 40, f"only {right} right: are the forced tokens fed back to the model?"

# %% [markdown]
# The same model that could not tell 7*8 from anything now gets nearly all of them: it learned to
# ask and to copy, and these it can do for digits it has not seen together. None of its 139,264
# weights had to learn how to multiply.
#
# `generate` streams. Each step is a column: one token for every sample.

# %%
for column, mask in engine.generate(ask(held_out[1]), temperature=0.0):
    print(f"{tokenizer.decode(column)!r:18} {'tool' if mask == [0] else 'model'}")

# %% [markdown]
# Did the walks come out with the right odds? We continue the letter `d` 500 times and count what
# comes next: `e`, `f`, `g` should have 0.6, 0.3, 0.1.


# %%
def first_letters(temperature: float, top_k: int | None = None) -> Counter:
    start = tokenizer.encode("d", prepend=tokenizer.bos_id)
    samples = engine.generate(
        start, num_samples=500, max_tokens=1, temperature=temperature, top_k=top_k
    )
    column, _ = next(samples)
    return Counter(tokenizer.decode([token]) for token in column)


# %%
for temperature, top_k in ((1.0, None), (0.5, None), (1.0, 2), (0.0, None)):
    counts = first_letters(temperature, top_k).most_common(4)
    print(
        f"temperature {temperature}, top-k {top_k}:",
        ", ".join(f"{letter} {n / 500:.2f}" for letter, n in counts),
    )
share = first_letters(1.0)["e"] / 500
assert 0.4 < share < 0.8, f"the next letter came {share:.0%} of the time, 60% are expected"

# %% [markdown]
# ## What goes wrong: one first token for everybody
#
# An early version of a well-known engine prefilled one row, drew the first token from it, and only
# then copied the row for the samples. All samples of a prompt began with the same token, and
# nothing failed: the texts differed further on. But the first token is often where the choice lies.
# In reinforcement learning all samples of a question would start down the same road.


# %%
def shared_first_token(n_samples: int, seed: int) -> list[str]:
    start = tokenizer.encode("d", prepend=tokenizer.bos_id)
    [(first, _)] = engine.generate_batch([start], max_tokens=1, temperature=1.0, seed=seed)
    rest = engine.generate_batch(
        [start + first] * n_samples, max_tokens=7, temperature=1.0, seed=seed
    )
    return [tokenizer.decode(first + tokens) for tokens, _ in rest]


broken = shared_first_token(n_samples=20, seed=6)
start = tokenizer.encode("d", prepend=tokenizer.bos_id)
samples = engine.generate_batch([start], max_tokens=8, temperature=1.0, seed=6, num_samples=20)
fixed = [tokenizer.decode(tokens) for tokens, _ in samples]
print("broken:", broken[:5], "\nfixed: ", fixed[:5])
assert len({text[0] for text in broken}) == 1 < len({text[0] for text in fixed})

# %% [markdown]
# Here every row has a seed of its own, and draws its first token as it draws all others.
#
# ## Cost: who waits for whom?
#
# Reading a long prompt takes as long as many single steps. If it is read in one piece, everybody who is
# being answered waits for it. Read in pieces it takes a little longer, and nobody's stream stands still.
# We give two answers a start, let a prompt of 800 tokens come, and measure how long the steps take.

# %%
roomy = GPT(GPTConfig(sequence_len=1024, vocab_size=265, n_layer=4, n_embd=256))


def waits(chunk: int) -> list[float]:
    """Milliseconds of each step while a prompt of 800 tokens is being read and answered."""
    engine = Engine(roomy, tokenizer, chunk=chunk)
    for seed in (1, 2):
        engine.submit(Request(prompts[0], max_tokens=40, seed=seed))
    for _ in range(5):
        engine.step()
    engine.submit(Request([n % 256 for n in range(800)], max_tokens=20))
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - start)
    return [1000 * s for s in seconds]


# %%
waits(1024)  # the first time pays for setting things up
whole, pieces = (
    [min(step) for step in zip(*(waits(chunk) for _ in range(3)))] for chunk in (1024, 80)
)

# %%
# alt: milliseconds of 20 steps: one tall bar when a prompt is read whole, ten low ones when in pieces
figure, axes = plt.subplots(1, 2, figsize=(6.5, 2.6), sharey=True)
for axis, bars, title in zip(
    axes, (whole, pieces), ("read in one piece", "in pieces of 80 tokens")
):
    axis.bar(range(20), bars, color="tab:blue")
    axis.set(title=title, xlabel="step")
axes[0].set_ylabel("milliseconds")
figure.tight_layout()
plt.show()

# %%
print(f"longest wait {max(whole):.1f} ms in one piece, {max(pieces):.1f} ms in pieces")
print(f"until the prompt is read: {whole[0]:.1f} ms, {sum(pieces[:10]):.1f} ms")
assert max(pieces) < max(whole)

# %% [markdown]
# *Notice the one tall bar on the left, and the row of low ones on the right.* (The first of them is taller than the
# others, because the cache had to grow by a row.) Throughput and latency pull
# in different directions: pieces cost overhead, and the newcomer's first token comes later, but nobody's
# stream stutters.
#
# ## Recap
#
# The unit of scheduling is a step. Rows join when there is room and leave when they end; prompts are read
# in pieces behind those who wait for tokens; beginnings that have been read are copied; a row's luck is its
# own, so its answer is the same in any company. A tool evaluates a whitelist and nothing else, and what it
# says is masked.
#
# In the library now, all in `nanochat_lib.inference`: `calculate` in `calculator`, `Request` and `Row` in `row`,
# `KeptTexts` in `kept`, `Scheduler` in `scheduler` and `Engine` in `engine`. In the exercises you follow a scheduler by hand,
# find beginnings that are worth sharing, and measure what each person pays for company. The next chapter
# makes each step faster.
