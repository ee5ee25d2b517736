# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Start: what we build, and what it costs
#
# How does a program come to answer questions in English? You can read about it, or you can build
# one. Here we build it: text goes in at one end, and at the other a model talks to you. Every piece
# is written in front of you, run, and used by the next.
#
# The course is for a reader who can program in Python and remembers what a matrix product and a
# derivative are. No machine learning is assumed, and no graphics card: a laptop does everything in
# minutes. The same code, with one number turned up, describes a model five hundred times larger for
# a machine with eight GPUs.
#
# This first chapter shows the whole in twelve lines, then the map, then what it costs:
#
# ```python
# successors["he "]    # what may come after "he ": a language model, in one line of a table
# ```
#
# It needs Python, and takes about 5 seconds on a laptop.

# %% [markdown]
# ## The whole course in twelve lines
#
# A language model does one thing: given some text, it says how likely each possible next piece is.
# Let the pieces be letters and let the model look back at three of them. Then learning is counting.

# %%
text = "the cat sat on the mat. the cat ate the rat. the rat ran at the cat. "
successors: dict[str, list[str]] = {}
for before, after in zip(zip(text, text[1:], text[2:]), text[3:]):
    successors.setdefault("".join(before), []).append(after)

# %% [markdown]
# What did it learn? After `the` comes a blank, every time. After `he` and a blank comes what may
# start the next word.

# %%
# NBVAL_CHECK_OUTPUT
print(successors["the"], successors["he "])

# %% [markdown]
# To write, draw one of the letters seen, append it, and go on. A seeded generator (we come back to
# it) makes the draw the same for everybody.

# %%
import random

draw = random.Random(1)
written = "the"
while len(written) < 60:
    written += draw.choice(successors[written[-3:]])
written

# %% [markdown]
# It writes sentences that nobody typed, and it understands nothing. Yet every stage of the real
# thing is already there: *text*, cut into *tokens* (letters); a *model* with a *context* (three
# letters) and *parameters* (the table); *training* (filling the table); *sampling* (the draw). What
# separates this from a chat model is a better answer at each stage, and each chapter gives one.
#
# Why not just count more? Because the table explodes. With eight tokens of context from a
# vocabulary of 1,024 it has a hundred thousand times more rows than there are grains of sand on all
# beaches (some $10^{19}$), and nearly all of them never occur:

# %%
rows = 1_024**8
assert rows == 2**80
print(f"{rows:.2e} rows")

# %% [markdown]
# So from the attention chapter on, the table becomes a function with far fewer parameters than
# rows: one that shares what it learned between contexts that are alike. That is all a neural
# network is for, here.

# %% [markdown]
# ## The map
#
# Here is the big version, in parts. Each chapter asks one question, and its functions land in the
# library `nanochat_lib`. The map is read from `course.toml`, the file that the course is built from,
# so it shows what is there; a part without chapters is still to come.

# %%
import textwrap

import matplotlib.pyplot as plt

from nanochat_lib.course.manifest import WORKSHOP, library_root, read_manifest

parts = read_manifest(library_root()).by_part()
ideas = {part: [c.slug for c in parts[part]] for part in parts if part != WORKSHOP}
for part, slugs in ideas.items():
    print(f"{part:28}{', '.join(slugs) or 'to come'}")

# %%
# alt: one row of boxes for each part of the course, each box a chapter, in reading order.
COLOURS = ["#e8eef7", "#f7efe2", "#e6f3ea", "#f3e6ef", "#eeeeee"]
figure, axes = plt.subplots(figsize=(6.5, 3))
for row, (part, slugs) in enumerate(ideas.items()):
    y = -row
    axes.text(-0.1, y + 0.3, textwrap.fill(part, 14), ha="right", va="center", size=7)
    for column, slug in enumerate(slugs or ["to come"]):
        edge = "#33558b" if slugs else "#bbbbbb"
        colour = COLOURS[row % len(COLOURS)]
        axes.add_patch(plt.Rectangle((column, y), 0.92, 0.62, facecolor=colour, edgecolor=edge))
        axes.text(column + 0.46, y + 0.31, slug, ha="center", va="center", size=6.5)
axes.set(xlim=(-1.4, 6), ylim=(-len(ideas) + 0.9, 0.75))
axes.axis("off")
plt.show()

# %% [markdown]
# *The parts in the order in which we build them. The score that counting gets (`baseline`) comes
# before the first network: we want to know what good is before we are tempted to call a result
# good.*
#
# Beside these parts stands the **workshop**: chapters about files, commands, progress bars and
# pipelines. The library needs them, and a reader of ideas does not. `course list` shows them all,
# with their questions, their level and how long they take.

# %%
for chapter in parts[WORKSHOP]:
    print(f"{chapter.slug:14}{chapter.asks}")

# %% [markdown]
# ## How to read, how to build
#
# A chapter is one Python file, `chapters/NN_slug.py`. Cells start with `# %%`, prose stands in
# comments, and any editor that knows the format (VS Code, JupyterLab, PyCharm) runs it cell by
# cell. The notebook beside it is the same chapter, executed. Read in order; a chapter uses only
# what earlier ones built.
#
# A cell that begins with `#| export` does double duty: it runs here, and `course build` copies it
# into the library. So the library holds nothing that you have not seen explained. The commands
# worth knowing on the first day:
#
# | command | what happens |
# |---|---|
# | `make speedrun` | sets up, trains a small model from raw text, writes a report |
# | `make test` | runs every notebook and every test |
# | `course list` | shows the chapters and their exercises |
# | `course read SLUG` | shows a chapter in the terminal |
# | `course build SLUG` | runs a chapter you changed and exports its code |
# | `course check` | says what no longer fits together |
#
# The exercises are empty functions, each with a check that you can see. They ask for something the
# chapter did not print. `course start` copies them to `my-course/`, a folder of your own that no
# other command writes to. There:
#
# | command | what happens |
# |---|---|
# | `course status` | shows what is done, what is next, how many minutes are left |
# | `course grade SLUG.NAME` | says whether your answer is right; if not, what came out and what was expected |
# | `course hint SLUG.NAME` | gives the next of three hints |
# | `course solution SLUG.NAME` | shows an answer beside yours, once you have one |
# | `course reset SLUG.NAME` | puts one exercise back, and keeps a copy of what you wrote |
# | `course watch` | grades whatever you save |

# %% [markdown]
# ## The cost of a model, before we have one
#
# Training takes about 6 floating-point operations for each parameter and each token: 2 forward (a
# multiplication and an addition), and twice that backward. (The transformer chapter derives it, and
# adds what attention costs.) Our laptop model has 0.69 million parameters and reads 8.6
# million tokens.


# %%
# NBVAL_CHECK_OUTPUT
def training_flops(n_parameters: float, n_tokens: float) -> float:
    """Estimate the operations of a training run: 6 for each parameter and token."""
    return 6 * n_parameters * n_tokens


laptop_flops = training_flops(0.69e6, 8.6e6)
node_flops = (
    3.49e9 * 20 * 561e6
)  # the exact count of operations a token, from chapter "transformer"
print(f"laptop: {laptop_flops:.1e} operations; eight GPUs: {node_flops:.1e}")

# %% [markdown]
# The second line is the large profile: 561 million parameters, and 20 tokens for each. How fast is
# this machine? A product of two n-by-n matrices takes $2n^3$ operations; we time one. The best of
# several runs is the fairest, because everything that disturbs a run makes it slower.

# %%
import time

import torch

a, times = torch.ones(512, 512), []
for _ in range(4):
    begin = time.perf_counter()
    a @ a
    times.append(time.perf_counter() - begin)
flops_per_second = 2 * 512**3 / min(times)
minutes = laptop_flops / flops_per_second / 60
years = node_flops / flops_per_second / (365 * 24 * 3_600)
print(f"here: {flops_per_second / 1e9:.0f} GFLOP/s")
print(f"at best {minutes:.1f} minutes for the laptop profile, {years:.0f} years for the large one")

# %% [markdown]
# "At best", because a training step is not one big matrix product, and a run also makes its data and
# sits its exams. What it really takes stands in the record of a run, which `nanochat report --record`
# wrote:

# %%
import json

record = json.loads((library_root() / "records/laptop/report.json").read_text(encoding="utf-8"))
print({stage: f"{seconds / 60:.1f} min" for stage, seconds in record["stages"].items()})
print(f"on {record['machine']['cpu']}, {record['machine']['cores']} cores")

# %% [markdown]
# Minutes, then, for ours. For the large one take eight H100 at 989 TFLOP/s each in bfloat16 (NVIDIA's data sheet, dense) and assume
# that training reaches 40% of it:

# %%
# NBVAL_CHECK_OUTPUT
hours = node_flops / (8 * 989e12 * 0.40) / 3_600
print(f"{hours:.1f} hours")

# %% [markdown]
# Years on a laptop, hours on the node, and the same code on both: that is why this course makes
# everything run small first.

# %% [markdown]
# ## Recap
#
# A language model predicts the next piece of text, and a chat model is a pipeline of stages that
# make that prediction good and useful. Counting does it for three letters; a function with few
# parameters does it for thousands of words. Its cost is known before it exists: six operations for
# each parameter and token.
#
# The exercise asks what more context does to the twelve-line model. Next: the text itself.
