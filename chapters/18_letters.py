# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Letters: a capability added by practice
#
# How many r are in strawberry? For years this question made large models look foolish, and it is no riddle why. A model does
# not see letters. It sees tokens, and that the token `berry` has two r in it stands nowhere in its input. Nobody writes it down,
# either, so it cannot be read: it has to be *taught*, token by token. A
# generator of forty lines is enough:
#
# ```python
# CountLetters(world)[0]       # a question about a word, the letters, a running count, a check with the tool
# ```
#
# The generator is in chapter `contact`; this chapter is the guide to such a capability: what a model needs, which details decide,
# what a mistake is good for, and how to see that it worked. nanochat calls the task SpellingBee. You need the chapters on tokens, on tasks
# and on first contact. On a laptop this one takes ten seconds.

# %%
#| default_exp tasks.letters
# Counting letters with a mistake in the working, and its repair.

# %%
#| export
import random
import re

from nanochat_lib.tasks.contact import CountLetters
from nanochat_lib.tasks.spelling import count_aloud

# %%
import json
from collections import Counter
from itertools import islice

import matplotlib.pyplot as plt

from nanochat_lib.common import local_generator
from nanochat_lib.data.documents import python_docs
from nanochat_lib.data.english import (
    asked_words,
    real_words,
    spelled_word,
    word_pieces,
)
from nanochat_lib.data.phrases import phrases
from nanochat_lib.data.synthetic import curriculum
from nanochat_lib.data.tinyworld import World
from nanochat_lib.tasks.base import content_text
from nanochat_lib.tokenizer.tokenizer import Tokenizer

world = World(seed=0)
texts = [*curriculum(world, 500, 3_000), *islice(python_docs(), 400)]
tokenizer, small = Tokenizer.train(texts, 1024), Tokenizer.train(texts, 512)


def cut(text: str) -> str:
    """Show the tokens of a text."""
    return "|".join(tokenizer.decode([token]) for token in tokenizer.encode(text))


# %% [markdown]
# ## What the model sees
#
# A tokenizer of 1,024 tokens, trained on TinyWorld and English, and two words in several surroundings:

# %%
for text in (" cheese", "cheese", " Cheese", " CHEESE", " school", "'school'"):
    print(f"{text:10} {cut(text)}")

# %% [markdown]
# Inside a sentence, `cheese` is one token, a number without parts. At the start of a line no space stands before it, and it is three others. With
# a capital it falls apart differently, shouted into letters. And look at the last line: within single quotes, a word that begins with s loses its s. The pattern that splits text
# before BPE (chapter `tokenizer`) takes `'s` for the ending of *it's*; words in t, d and m suffer the same. No user can know that. So all of
# it must be practised: the questions write words in all these ways.
#
# ## What an answer needs
#
# `I count e in cheese: c h e1 e2 s e3. Check: "cheese".count("e")`, the tool's 3, `#### 3`. Each part has a reason:
#
# - **The letter first.** In the question it may be `e`, `"e"s` or `Es`. The answer names it once more, as it will come in the
#   working, and from there each step only has to see whether its letter is the one that was named. Our first answers began with
#   the word alone. Their letters were right, and hits at the end of long words were overlooked: the letter asked for was too far away.
# - **The word next**, copied from the question, which attention does well; from now on it stands right behind.
# - **Each letter a token of its own**, with its space. Without spaces the tokenizer glues letters together again, and the answer
#   is cut into pieces that depend on what stands beside them:

# %%
print(cut("c h e1 e2 s e3"), "   ", cut("che1e2se3"))

# %% [markdown]
# - **A running count**, so that no number has to be kept in mind over a distance.
# - **The tool last.** It counts exactly what it is given. What it is given, the model has to copy; so the call quotes with double marks, which
#   leave the s at the word. (With single ones our model spelled strawberry right and then gave the tool *srawberry*.)
#
# Questions come in many phrasings and several languages, since a user's phrasing must not matter:

# %%
# NBVAL_CHECK_OUTPUT
asked = phrases("spelling", "count")
print(len(asked), "ways to ask:", *asked[::24], sep="\n  ")

# %% [markdown]
# ## No letter without its token
#
# Which words can a model spell that it has never spelled? Those whose *tokens* it has. A word that is a token of its own, and is held out,
# cannot be spelled by anybody who has only ever seen that token as a number. Two ways out: a smaller vocabulary, whose tokens are shorter and come
# more often; and practice words that are joined from tokens (`joined_word`, chapter `tinyworld`). How many of the held-out words have a token that
# 20,000 practice words hardly ever contain?

# %%
words = [*real_words(heldout=True), *sorted(asked_words() - set(real_words(heldout=True)))]
blind = {}
for tok in (tokenizer, small):
    pieces = word_pieces(tok)
    for name, source in (
        ("real words alone", lambda rng: rng.choice(real_words())),
        ("with joined words", lambda rng, pieces=pieces: spelled_word(rng, pieces)),
    ):
        rng = local_generator("coverage")
        seen = Counter(t for _ in range(20_000) for t in tok.encode(f" {source(rng)}"))
        rare = [word for word in words if min(seen[t] for t in tok.encode(f" {word}")) < 5]
        blind[tok.vocab_size, name] = len(rare)
        print(
            f"{tok.vocab_size:5} tokens, {name:18}{len(rare):3} of {len(words)}: {' '.join(rare[:5])}"
        )
assert blind[1024, "real words alone"] > blind[512, "with joined words"]

# %% [markdown]
# This is why the laptop profile has a small vocabulary, of 640: a few minutes of practice reach all of its tokens, often. The price is
# longer texts, the longer the smaller it is:

# %%
lengths = [sum(len(tok.encode(text)) for text in texts[:1_000]) for tok in (tokenizer, small)]
print(f"TinyWorld takes {lengths[1] / lengths[0] - 1:.0%} more tokens with 512")

# %% [markdown]
# ## Mistakes, and their repair
#
# The working can go wrong, and then the tool disagrees. What should the model do? If all it has seen are perfect solutions, a
# disagreement is a situation without precedent. So some solutions may contain a
# mistake: a letter that is not counted. The tool finds another number, and the answer says so:


# %%
#| export
class CountWithMistakes(CountLetters):
    """Count letters; in one practice conversation of ten a letter is missed, and the tool corrects it."""

    share = 0.1

    def make(self, rng: random.Random) -> dict:
        conversation = super().make(rng)
        answer = conversation["messages"][1]["content"]
        if not self.heldout and isinstance(answer, list) and rng.random() < self.share:
            conversation["messages"][1]["content"] = missed(rng, answer)
        return conversation


def missed(rng: random.Random, answer: list[dict]) -> list[dict]:
    """Rewrite an answer of `count_answer` so that one hit is overlooked and repaired at the end.

    What is wrong is a part of type "slip": the model reads it, and does not learn to say it. An answer without a hit comes
    back as it is.
    """
    _, call, output, _ = answer
    word, letter = re.findall('"(.*?)"', call["text"])
    hits = [i for i, character in enumerate(word) if character == letter]
    if not hits:
        return answer
    hit = rng.choice(hits)
    steps, rest = count_aloud(word, letter).split(), []
    for character in word[hit + 1 :]:
        known = hits.index(hit) + sum(step[0] == letter for step in rest) + 1
        rest.append(f"{letter}{known}" if character == letter else character)
    opening = answer[0]["text"].partition(":")[0]
    return [
        {"type": "text", "text": " ".join([f"{opening}:", *steps[:hit]])},
        {"type": "slip", "text": " " + " ".join([letter, *rest])},
        {"type": "text", "text": ". Check: "},
        call,
        output,
        {"type": "text", "text": f"\nI missed one.\n#### {len(hits)}"},
    ]


# %%
# NBVAL_CHECK_OUTPUT
from nanochat_lib.tasks.spelling import count_answer

rng = local_generator("a mistake")
wrong = missed(rng, count_answer("strawberry", "r"))
print(content_text(wrong))
chat = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": wrong}]}
ids, mask = tokenizer.render_conversation(chat)
print("learned:", "".join(tokenizer.decode([token]) for token, m in zip(ids, mask) if m))

# %% [markdown]
# Look at the last lines. A model that trains on every token of a mistake learns to make it, one time in ten. So the wrong letters are
# a part of type *slip*, whose loss mask is 0 (chapter `tokenizer`): they are read, not learned, as the tool's output is. What is learned is what
# comes after.
#
# ## What each detail is worth
#
# `make study-capabilities` teaches the base model of the laptop run to count letters, 1,000 steps with nothing else in the
# mixture, and takes one detail away at a time. The test are real words that no training spelled; *working* asks for every letter, every running
# count and the number, *number* for the last number alone.

# %%
from nanochat_lib.course.manifest import library_root

record = json.loads((library_root() / "records/chat/spelling.json").read_text(encoding="utf-8"))
for row in record["variants"].values():
    shares = [100 * sum(row[key]) / len(row[key]) for key in ("working", "count")]
    print(f"{row['about']:34}working {shares[0]:5.1f}%   number {shares[1]:5.1f}%")

# %%
working = {k: sum(row["working"]) / len(row["working"]) for k, row in record["variants"].items()}
assert working["words_of_the_world_alone"] < working["as_it_is"] / 2
assert working["letters_without_spaces"] < working["as_it_is"] - 0.05

# %%
# alt: share of real words spelled and counted right for each variant, one dot a seed, and the share with the right number
fig, ax = plt.subplots(figsize=(6.5, 3))
for y, row in enumerate(record["variants"].values()):
    ax.plot([100 * s for s in row["working"]], [y] * len(row["working"]), "o", color="tab:blue")
    ax.plot([100 * s for s in row["count"]], [y] * len(row["count"]), "x", color="tab:orange")
ax.set_yticks(range(len(record["variants"])), [r["about"] for r in record["variants"].values()])
ax.invert_yaxis()
ax.set(xlabel="real words never trained on (%)", xlim=(0, 103))
ax.legend(["letters and number", "number alone"], loc="upper left")
ax.spines[["top", "right"]].set_visible(False)
plt.tight_layout()
plt.show()

# %% [markdown]
# *Real words that no training spelled: a dot a seed for letters, running count and number, a cross for the number alone.*
#
# The words matter most. Practised on the few hundred words of TinyWorld alone, the model cannot spell English. Then the spaces:
# glued letters (in the counting; SimpleSpelling keeps its spaces) cost one working in six; the number survives, because the tool counts the word and not the working. SimpleSpelling, two fifths of the practice,
# gives a few words more than counting for the same steps. And two details that we believed in make no difference that this test can see.
# Where the working is right, the tool only agrees. And mistakes with their repair neither help nor harm a model that makes few. What
# does not help at one size may at another; the way to know is to take it away. (The laptop run trains without them, with `CountLetters`.)
#
# ## Guide: a capability of your own
#
# 1. **Ask what the model cannot see or do in one step**, and write the steps out, one small look back each. What a tool does better, the tool does.
# 2. **Write a task**: `make` draws a question from many phrasings and writes the solution; hold words, numbers or phrases out by checksum;
#    `evaluate` asks for the working, not only for the result.
# 3. **Check the tokens**: how is the thing cut in every way a user may write it, and does practice cover those tokens?
# 4. **Add a line to the mixture** (`SFT_SHARES`), fine-tune a finished model, and read the new row of the report *and all old ones*.
# 5. **Take details away** again, one at a time. What makes no difference goes.
#
# ## Cost
#
# A practice conversation costs what drawing a word and filling a frame cost.

# %%
import time

task = CountWithMistakes(world, "train", 2_000)
start = time.perf_counter()
sum(1 for _ in task)
print(f"{(time.perf_counter() - start) / 2_000 * 1e6:.0f} microseconds a conversation")

# %% [markdown]
# ## Recap
#
# A model sees tokens, so letters have to be taught for each of them, in all ways in which a user may write a word. The answer quotes the word, spells it with
# a running count, and lets the tool count last. Mistakes can be shown without being learned, by a mask of 0. Which of the details carry the result was
# measured by leaving them out. The library now has `tasks.letters`. The exercises find the words that practice cannot
# reach, the first wrong step of a working, and what a quotation mark does to a word.
