# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # One file: a model that you can mail
#
# To show your model to a friend you could rent a server, or ask the friend to install Python and torch. Or
# you send one file. A browser is a computer that everybody has, and a model of a million weights is
# smaller than a photograph:
#
# ```python
# export_html(ExportConfig())     # in a terminal: nanochat export html
# ```
#
# It writes a page that holds the weights, the tokenizer, the calculator and a small engine in JavaScript.
# It opens from the disk, without a network, and answers as our own engine does. You need the int8 weights
# of chapter `decoding` and the page of the server. On a laptop the chapter takes about 10 seconds.

# %%
import matplotlib.pyplot as plt
import regex
import torch

from nanochat_lib.course.manifest import library_root
from nanochat_lib.inference.engine import Engine
from nanochat_lib.model.gpt import MODERN, GPTConfig
from nanochat_lib.tokenizer.bpe import SPLIT_PATTERN
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.optim import OptimConfig, build_optimizers

# %% [markdown]
# ## A byte for each weight
#
# In float32 a million weights are 4 MB, and as text in a page 5.3 MB. Chapter `decoding` stored each row of
# a matrix as whole numbers from -127 to 127 times a step of its own. Here is one row by hand: the largest
# weight, 1.27, makes a step of 0.01, and the row becomes 50, -127, 2.

# %%
# NBVAL_CHECK_OUTPUT
row = torch.tensor([0.5, -1.27, 0.021])
step = row.abs().max() / 127
print(f"step {step:.3f}:", (row / step).round().int().tolist())

# %% [markdown]
# `PackedGPT` rounds only what it multiplies by. A file should be small in all its parts, so we round every
# table as well: embeddings are looked up row by row, and each row has its step. What is no table, a handful of
# single numbers, stays as it is.

# %%
#| default_exp serving.one_file
# A trained model as one HTML file: its weights in bytes, and all that a browser needs to run it.

# %%
#| export
import copy
import re
from dataclasses import asdict

import torch
from jaxtyping import Float, Float32, Int8
from torch import Tensor

from nanochat_lib.model.gpt import GPT


# %%
#| export
def round_rows(
    weight: Float[Tensor, "rows columns"],
) -> tuple[Int8[Tensor, "rows columns"], Float32[Tensor, " rows"]]:
    """Round each row to whole multiples of its largest weight's 127th part; return these and the parts."""
    steps = weight.float().abs().amax(1).clamp(min=1e-12) / 127
    return (weight.float() / steps[:, None]).round().to(torch.int8), steps


def rounded(model: GPT) -> GPT:
    """Copy a model and round its tables: what it computes is what the file will compute."""
    model = copy.deepcopy(model).float().cpu().eval()
    for weight in model.state_dict().values():
        if weight.dim() == 2:
            whole, steps = round_rows(weight)
            weight.copy_(whole * steps[:, None])
    return model


# %% [markdown]
# Does a model survive that? We train one that knows five answers by heart, as chapter `serving` does, and ask
# it before and after.

# %%
answers = {
    "hi": "Hello there!",
    "who are you?": "I am one file.",
    "what is 6*7?": "Forty-two.",
    "where do you live?": "In your browser.",
    "goodbye": "See you soon.",
}
chats = [
    {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": say}]}
    for ask, say in answers.items()
]
tokenizer = Tokenizer.train([*answers, *answers.values()], vocab_size=300)
rendered = [tokenizer.render_conversation(chat) for chat in chats]
longest = max(len(ids) for ids, _ in rendered)
ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rendered])
mask = torch.tensor([mask + [0] * (longest - len(mask)) for _, mask in rendered])
idx, targets = ids[:, :-1], ids[:, 1:].masked_fill(mask[:, 1:] == 0, -1)

# %%
sizes = {"n_layer": 2, "n_embd": 64, "n_head": 2, "n_kv_head": 2, "sequence_len": 96}
switches = dict.fromkeys(MODERN, True)
model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **sizes, **switches))
optimizers = build_optimizers(model, OptimConfig())
for _ in range(60):
    loss = model(idx, targets)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
print(f"loss {loss.item():.4f}")


# %%
def greedy(model: GPT, question: str) -> str:
    """Answer a question with the likeliest tokens."""
    prompt = tokenizer.render_for_completion({"messages": [{"role": "user", "content": question}]})
    [(tokens, _)] = Engine(model.eval(), tokenizer).generate_batch([prompt], 40)
    return tokenizer.decode(tokens)


# %%
# NBVAL_CHECK_OUTPUT
small = rounded(model)
for question in answers:
    print(f"{question:20} {greedy(model, question):20} {greedy(small, question)}")


# %% [markdown]
# Every answer is the same. What the rounding moves is small beside what the model is sure of. How coarse may
# the steps become before an answer breaks? The loss says it sooner than the answers do:


# %%
def loss_with(levels: int) -> float:
    """Return the loss when the largest weight of each row is `levels` steps."""
    coarse = copy.deepcopy(model)
    for weight in coarse.state_dict().values():
        if weight.dim() == 2:
            steps = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / levels
            weight.copy_((weight / steps).round() * steps)
    with torch.no_grad():
        return coarse(idx, targets).item()


with torch.no_grad():
    exact = model.eval()(idx, targets).item()
bits = range(3, 9)
losses = [loss_with(2 ** (n - 1) - 1) for n in bits]
fig, ax = plt.subplots(figsize=(6.5, 3))
ax.semilogy(bits, losses, marker="o", color="#2456a6")
ax.axhline(exact, color="0.6", lw=1)
ax.text(3, exact, "float32", color="0.4", va="bottom")
ax.set(
    xlabel="bits a weight", ylabel="loss (nats a token)", title="Eight bits cost nothing one sees"
)
fig.tight_layout()

# %% [markdown]
# *The loss of the little model, on a logarithmic axis, when all its tables are rounded to so many bits. At
# eight the point lies on the line of the exact weights.*
#
# ## Bytes with a table of contents
#
# A file of weights is a list of names, sizes and places, and then the bytes. JavaScript can look at a buffer as
# whole numbers or as floats, but floats must begin at a multiple of four bytes. So each table is padded to
# such a place before its steps follow.


# %%
#| export
def pack(model: GPT) -> tuple[dict, bytes]:
    """Write the tables of a model as whole numbers and steps, one after the other.

    Returns:
        The contents, for JSON: `config`; `tensors`, name -> [rows, columns, place of the first byte], after whose
        int8 values, and zeros up to a multiple of 4 bytes, come the steps, float32, one a row; and
        `scalars`, name -> the number or numbers that are no table. And the bytes, little-endian.
    """
    tensors, scalars, data = {}, {}, bytearray()
    vocab_size = model.config.vocab_size  # padding rows stay at home
    for name, weight in model.state_dict().items():
        if weight.dim() < 2:
            scalars[name] = weight.tolist() if weight.numel() > 1 else weight.item()
            continue
        if name.startswith(("wte.", "lm_head.")) or name.endswith("value_embed.table.weight"):
            weight = weight[:vocab_size]
        whole, steps = round_rows(weight.cpu())
        tensors[name] = [*whole.shape, len(data)]
        data += whole.numpy().tobytes()
        data += bytes(-len(data) % 4) + steps.numpy().astype("<f4").tobytes()
    return {"config": asdict(model.config), "tensors": tensors, "scalars": scalars}, bytes(data)


# %% [markdown]
# Who reads that can be thirty lines of JavaScript or four of Python. We read one table back and compare it with
# the rounded model's.

# %%
contents, data = pack(model)
rows, columns, place = contents["tensors"]["blocks.0.attn.c_q.weight"]
whole = torch.frombuffer(bytearray(data[place : place + rows * columns]), dtype=torch.int8)
steps_at = place + -(-rows * columns // 4) * 4
steps = torch.frombuffer(bytearray(data[steps_at : steps_at + 4 * rows]), dtype=torch.float32)
read_back = whole.view(rows, columns) * steps[:, None]
assert torch.equal(read_back, small.blocks[0].attn.c_q.weight), "is a place not counted in bytes?"
print(f"{len(data):,} bytes, {len(data) / model.num_params():.2f} for each parameter")

# %% [markdown]
# ## The same words in another language
#
# Before the weights see anything, text must become the same tokens. Merging is easy to write again: pairs and
# their ranks. The trap is the pattern that cuts text into words. `\s` is white space in Python's `regex`, in Rust
# and in JavaScript, but not the same white space:

# %%
# NBVAL_CHECK_OUTPUT
ours = {f"{c:04x}" for c in range(0x110000) if regex.match(r"\s", chr(c))}
theirs = {*range(9, 14), 0x20, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F}
theirs = {f"{c:04x}" for c in theirs | {0x3000, 0xFEFF}}  # ECMA-262, sections 12.2 and 12.3
print("only in Python and Rust:", ours - theirs)
print("only in JavaScript:", theirs - ours)

# %% [markdown]
# A byte-order mark and an old line end: nobody types them, and some files begin with one. A model that gets one
# other token there gives another answer, and nobody would ever find out why. JavaScript can say
# `\p{White_Space}`, which is Python's meaning.
#
# Two more things do not exist there. A possessive quantifier, `++`, gives nothing back once it has matched; in
# our pattern nothing that follows would want anything back, so the plain one matches the same. And `(?i:...)`,
# letters of either case, becomes a list of the cases. Unicode has a third case of the letter s, the long ſ of
# old prints, and both Python and Rust count it.


# %%
#| export
def javascript_pattern(pattern: str) -> str:
    r"""Write a split pattern of ours for JavaScript's regular expressions with the flag u.

    Example: r"\s++|(?i:[st]|ll)" -> r"\p{White_Space}+|(?:[sS\u017ftT]|[lL][lL])"

    Args:
        pattern: made by `split_pattern`, or GPT-2's; of possessive quantifiers it is assumed that what follows
            them needs nothing of what they have matched, as it is there.

    Raises:
        ValueError: the pattern has a group of a kind that is not translated.
    """
    cases = {"s": r"sS\u017f", "k": r"kK\u212a"}

    def either_case(group: re.Match) -> str:
        in_class, out = False, ""
        for c in group[1]:
            in_class = (in_class or c == "[") and c != "]"
            both = cases.get(c.lower(), c.lower() + c.upper()) if c.isascii() and c.isalpha() else c
            out += both if in_class or both == c else f"[{both}]"
        return f"(?:{out})"

    found = re.sub(r"\(\?i:([\w|\[\]]*)\)", either_case, pattern)
    other = re.search(r"\(\?(?![:=!])", found)
    if other:
        raise ValueError(
            f"the pattern has {found[other.start() :][:12]!r}: no way to say it is known"
        )
    found = re.sub(r"([?+*]|\{[\d,]+\})\+", r"\1", found)
    return found.replace(r"\s", r"\p{White_Space}").replace(r"\S", r"\P{White_Space}")


# %%
# NBVAL_CHECK_OUTPUT
assert javascript_pattern(r"\s++|(?i:[st]|ll)") == r"\p{White_Space}+|(?:[sS\u017ftT]|[lL][lL])"
print(SPLIT_PATTERN)
print(javascript_pattern(SPLIT_PATTERN))

# %% [markdown]
# ## The engine
#
# `web/engine.js` is the rest: some 450 lines that begin with the tokenizer and end with a server inside the page,
# which answers the routes that the page would ask of `nanochat serve`. So the page is the same one, and asks
# whoever is there. In the middle stands the model. Here is its attention, a loop over heads and a loop over
# what was read, without a matrix in sight:


# %%
def shown(name: str) -> str:
    """Cut one method out of the engine's text."""
    text = (library_root() / "web/engine.js").read_text(encoding="utf-8")
    start = text.index(f"\n    {name}(") + 1
    return text[start : text.index("\n    }\n", start) + 7]


print(shown("attend"))

# %% [markdown]
# Everything you know is there: the rotation of queries and keys (`turn`), the value embedding and its gate, the
# keys that stand one place later, scores over the root of the head's size, softmax with its largest score
# taken out first, and the weighted average. It computes one token a call and keeps keys and values in two
# arrays: a KV cache.
#
# How do we know that it is right? Not by reading. The tests open exported files in a JavaScript engine and compare
# with ours: logits within 0.0001 of float32, tokens of any text that a test can think of, the calculator on
# everything it accepts and much that it does not, and the greedy answers to 200 questions, token by token.
#
# ## Closing the file
#
# The page gets its scripts, which the server would send one by one, and the contents as JSON, the bytes in it
# as base64, which writes three bytes as four letters. A page may say what it is allowed to do, and this one allows itself
# the scripts and the style that it was written with, named by their hashes, and nothing else: no other
# script, no image, no request to anywhere. That is a promise that the browser keeps, to your friend who opens a
# file from the internet, and to you: a conversation cannot leave it.


# %%
#| export
import base64
import hashlib
import json

from nanochat_lib.course.manifest import library_root
from nanochat_lib.tokenizer.tokenizer import Tokenizer


# %%
#| export
def source_hash(text: str) -> str:
    """Name a script or a style in a content-security policy."""
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"


def in_script(data: object) -> str:
    """Write JSON that may stand inside a script element: no `<` can begin a tag there."""
    return json.dumps(data, ensure_ascii=True).replace("<", "\\u003c")


def inside(model: GPT, tokenizer: Tokenizer, name: str) -> dict:
    """Gather what the engine in a page wants to know, ready for JSON.

    Args:
        model: its tables are rounded.
        tokenizer: the one it was trained with.
        name: is shown; any text.
    """
    contents, data = pack(model)
    ranks = sorted(tokenizer.ranks, key=tokenizer.ranks.__getitem__)
    contents["name"] = name
    contents["tokenizer"] = {
        "pattern": javascript_pattern(tokenizer.pattern),
        "special_tokens": list(tokenizer.special_ids),
        "ranks": [base64.b64encode(token).decode("ascii") for token in ranks],
    }
    contents["weights"] = base64.b64encode(data).decode("ascii")
    return contents


def read_script(match: re.Match) -> str:
    """Put a script where the page names its file."""
    text = (library_root() / match[1]).read_text(encoding="utf-8")
    safe = text.replace("</script", "<\\/script")  # the same to JavaScript, and ends no element
    return f"<script>{safe}</script>"


def one_file(contents: dict) -> str:
    """Return a page that holds a model and all it needs to answer; `contents` come from `inside`."""
    page = (library_root() / "web/chat.html").read_text(encoding="utf-8")
    page = page.replace(' nonce="NONCE"', "")
    page = re.sub(r'<script src="/([\w./]+)"></script>', read_script, page)
    scripts = " ".join(map(source_hash, re.findall(r"<script>(.*?)</script>", page, re.DOTALL)))
    styles = " ".join(map(source_hash, re.findall(r"<style>(.*?)</style>", page, re.DOTALL)))
    policy = f"default-src 'none'; script-src {scripts}; style-src {styles}; base-uri 'none'; form-action 'none'"
    head, rest = page.split("<title>", 1)
    body, script = rest.split("<script>", 1)
    return (
        f'{head}<meta http-equiv="Content-Security-Policy" content="{policy}">\n<title>{body}'
        f'<script type="application/json" id="contents">{in_script(contents)}</script>\n'
        f"<script>{script}"
    )


# %%
contents = inside(model, tokenizer, "by heart")
page = one_file(contents)
print(f"{len(page):,} characters, of them {len(contents['weights']):,} weights")

# %% [markdown]
# ## What goes wrong: a name that ends the script
#
# A browser looks for the end of a script before anybody reads the script. So a text inside it, a run's name or a
# token's bytes, could close the element and go on as part of the page. JSON alone does not help: it keeps
# `<` as it is. `in_script` writes each `<` in JSON's other way, which means the same and begins no tag.

# %%
# NBVAL_CHECK_OUTPUT
name = "</script><img src=x onerror=alert(1)>"
careless = f"<script>{json.dumps({'name': name})}</script>"
print(careless)
print(f"<script>{in_script({'name': name})}</script>")
assert json.loads(in_script({"name": name})) == {"name": name}
assert one_file(contents | {"name": name}).count(name) == 0

# %% [markdown]
# ## The command

# %%
#| export
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat_lib.common import atomic_write
from nanochat_lib.serving.runs import find_run, last_stage
from nanochat_lib.training.checkpoint import load_model

MOST_BYTES = 200_000_000  # a browser holds such a page; each weight is a byte
MARK = '<html lang="en">\n<head>\n<meta charset="utf-8">'  # how our pages begin


# %%
#| export
@dataclass(frozen=True)
class ExportConfig:
    """Write a trained model as one HTML file that answers in any browser, without a server."""

    run: str | None = None
    """name of the run; the newest one by default"""
    stage: Literal["rl", "sft", "mid"] | None = None
    """rl by default, or sft if the run has no rl"""
    output: Path | None = None
    """the file; RUN.html in the present folder by default"""


def export_html(config: ExportConfig) -> Path:
    """Write the file, and say where it is.

    Raises:
        ValueError: there is no such model, it is too large for a browser, or the output is another kind of file.
    """
    folder = find_run(config.run, config.stage)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    model, _ = load_model(folder / (config.stage or last_stage(folder)), tokenizer)
    if model.num_params() > MOST_BYTES:
        raise ValueError(
            f"{folder.name} has {model.num_params():,} weights, a page carries at most "
            f"{MOST_BYTES:,}: use `nanochat serve`"
        )
    path = Path(f"{folder.name}.html") if config.output is None else config.output
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace")[:200]:
        raise ValueError(f"{path} is there already and is no page of ours: name another --output")
    text = one_file(inside(model, tokenizer, folder.name))
    atomic_write(path, text)
    print(f"{path}: {len(text) / 1e6:.1f} MB, open it in a browser; it needs no network")
    return path


# %% [markdown]
# ## What it comes to
#
# `make bench-one-file` opens the newest run's file in a headless Chromium and asks it 200 held-out questions, as
# our engine is asked with the same rounded weights. The record that the repository keeps:

# %%
record = json.loads(
    (library_root() / "records/inference/one_file.json").read_text(encoding="utf-8")
)
print(f"{record['bytes'] / 1e6:.1f} MB, open after {record['seconds_to_open']} s")
print(
    f"{record['equal_answers']} of {record['questions']} answers equal the engine's, token by token"
)
print(f"logits differ by {record['largest_difference_of_logits']:.0e} at most")
print(
    f"handled well: {record['handled_exact']} with float32 weights, {record['handled_rounded']} rounded"
)
rates = ("tokens_per_second", "engine_tokens_per_second", "tokens_per_second_read_or_written")
page_rate, engine_rate, read = (record[name] for name in rates)
print(f"tokens a second, one question after the other: page {page_rate}, engine {engine_rate}")
products = read * record["bytes"] / 2  # some half of the page is weights, a byte each
print(
    f"{products / 1e6:,.0f} million products a second, or {products / 1e8:.0f} tokens of 100 million weights"
)
assert record["equal_answers"] >= record["questions"] - 1

# %% [markdown]
# A loop in JavaScript, a number at a time and without one vector instruction, stays within a small factor of torch
# on this model. That says more about what a call of torch costs than about JavaScript: at width 96 there is
# little to multiply. For a model a hundred times as large, WebAssembly or the graphics card would pay.
#
# ## Recap
#
# Weights in bytes, with a step for each row, answer as the exact ones do, and a quarter of the space is
# enough. A model is its numbers and some four hundred and fifty lines that anybody can write again in another
# language; tests of agreement, not faith, say that the two are one. And what a page may do, it can promise in a
# line that the browser enforces.
#
# The library has `rounded`, `pack`, `one_file` and the command `nanochat export html`. Exercises: pack two weights
# into a byte, and find out which tables suffer most from it.
