# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Identity: a character made of data
#
# Ask a model that was only pretrained who it is, and it continues the question. Nothing in it knows that it is *it*. Asked for a
# company, a model trained on the web may name whichever its text mentions most. Who a model is has to be written down and
# trained like any other skill, and since nobody has conversations with a model that does not exist yet, they are made up:
#
# ```python
# next(conversations(1))     # somebody asks, the model answers as nanochat
# ```
#
# This chapter adds an identity to a finished model. It is the smallest case of *synthetic data*, and it shows what decides whether
# such data works: how varied it is. You need TinyWorld and the fine-tuning loop. On a laptop the chapter takes half a minute.

# %%
#| default_exp data.identity
# Conversations in which somebody gets to know a model, written by a grammar.

# %%
#| export
import json
import random
import tomllib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nanochat_lib.common import atomic_write, local_generator
from nanochat_lib.data.english import DATA
from nanochat_lib.data.phrases import slip

# %%
import matplotlib.pyplot as plt

# %% [markdown]
# ## A character
#
# Four facts are all there is to it. Change them, and the model of this course bears your name.


# %%
#| export
@dataclass(frozen=True)
class Character:
    """Say who a model is: every text about it has these words in its places."""

    name: str = "nanochat"
    kind: str = "a small language model"
    maker: str = "the owner of this computer"
    home: str = "this computer"

    def speak(self, text: str) -> str:
        """Fill {name}, {kind}, {maker} and {home} into a text; it starts with a capital."""
        text = text.format(name=self.name, kind=self.kind, maker=self.maker, home=self.home)
        return text[:1].upper() + text[1:]


@cache
def grammar() -> dict:
    """Read data/identity.toml: topics, personas, replies, openings and styles, lists of lines."""
    table = tomllib.loads((DATA / "identity.toml").read_text(encoding="utf-8"))

    def lines(value: str | dict) -> tuple[str, ...] | dict:
        if isinstance(value, str):
            return tuple(value.strip().split("\n"))
        return {name: lines(inner) for name, inner in value.items()}

    return lines(table)


# %%
# NBVAL_CHECK_OUTPUT
print(*grammar()["topics"])
print(grammar()["topics"]["home"]["questions"][:2], grammar()["topics"]["home"]["answers"][0])
print(Character(name="Ada").speak(grammar()["topics"]["others"]["answers"][0]))

# %% [markdown]
# ## Four levers
#
# If all conversations are one conversation, the model learns that one by heart and nothing else: "What is your name?" works and
# "May I know your name?" does not. If they differ in everything, what they have in common is all that can be learned, and that is
# the character. So we pull at four levers, each independent of the others:
#
# - **topic**: what is asked: name, maker, home, age, feelings, memory, ...
# - **persona**: who asks. A child, an engineer, a sceptic; the answer takes it up.
# - **style**: how it is typed. Plain, lower case, shouted, hasty, polite.
# - **opening**: how the chat begins and ends. At once, after a greeting, with a preface.
#
# One question in eight of each topic is held out by checksum, to be asked in a test only.


# %%
#| export
STYLES = ("plain", "lower", "shouted", "hasty", "polite")
OPENINGS = ("direct", "greeting", "preface", "closing")


@dataclass(frozen=True)
class Levers:
    """Choose how varied the conversations are: a lever that is off always draws its first choice."""

    topics: bool = True
    personas: bool = True
    styles: bool = True
    openings: bool = True


def topic_questions(topic: str, heldout: bool = False) -> tuple[str, ...]:
    """List the questions of a topic to train on, or the eighth (at least one) that is held out."""
    questions = grammar()["topics"][topic]["questions"]
    ranked = sorted(questions, key=lambda question: zlib.crc32(question.encode()))
    cut = max(1, len(ranked) // 8)
    return tuple(ranked[:cut] if heldout else ranked[cut:])


def styled(rng: random.Random, text: str, style: str) -> str:
    """Write a question in one of STYLES."""
    match style:
        case "lower":
            return text.lower().rstrip("?.")
        case "shouted":
            return text.upper()
        case "hasty":
            return slip(rng, text.lower())
        case "polite":
            return rng.choice(grammar()["styles"]["polite"]).format(text)
    return text


# %% [markdown]
# With a lever off, its first choice is taken each time. With all four off, one question and one answer remain.


# %%
#| export
def conversation(
    rng: random.Random,
    levers: Levers = Levers(),
    character: Character = Character(),
    heldout: bool = False,
) -> dict:
    """Write one conversation of one to three questions.

    Args:
        rng: of all draws.
        levers: what may vary.
        character: whom the answers speak for.
        heldout: ask the questions that are kept for tests.

    Returns:
        A conversation, with "topic": what its last question asks for.
    """
    words = grammar()

    def draw(varied: bool, options: tuple[str, ...]) -> str:
        return rng.choice(options) if varied else options[0]

    opening = draw(levers.openings, OPENINGS)
    persona = rng.choice(tuple(words["personas"])) if levers.personas else None
    turns = []
    if opening == "greeting":
        greeting, greeted = words["openings"]["greeting"], words["openings"]["greeted"]
        turns += [rng.choice(greeting), rng.choice(greeted)]
    topics = list(words["topics"])
    chosen = rng.sample(topics, rng.choice((1, 1, 2, 3))) if levers.topics else topics[:1]
    for number, topic in enumerate(chosen):
        question = draw(levers.topics, topic_questions(topic, heldout))
        question = styled(rng, question, draw(levers.styles, STYLES))
        answer = character.speak(draw(levers.topics, words["topics"][topic]["answers"]))
        if number == 0 and persona and rng.random() < 0.5:
            question = f"{rng.choice(words['personas'][persona])} {question}"
            answer = f"{rng.choice(words['replies'][persona])} {answer}"
        if number == 0 and opening == "preface":
            question = f"{rng.choice(words['openings']['preface'])} {question}"
        turns += [question, answer]
    if opening == "closing" and not heldout:
        turns += [rng.choice(words["openings"]["closing"]), rng.choice(words["openings"]["closed"])]
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    return {"messages": messages, "topic": topic}


def conversations(
    count: int,
    seed: int = 0,
    levers: Levers = Levers(),
    character: Character = Character(),
    heldout: bool = False,
) -> Iterator[dict]:
    """Write `count` conversations; arguments as for `conversation`."""
    for i in range(count):
        yield conversation(local_generator("identity", seed, i), levers, character, heldout)


# %%
# NBVAL_CHECK_OUTPUT
for talk in conversations(4):
    print(*[f"{m['role'][:4]}: {m['content']}" for m in talk["messages"]], sep="\n", end="\n\n")
print(next(conversations(1, levers=Levers(False, False, False, False)))["messages"])

# %% [markdown]
# To train on them, write a file. It has one list of messages a line, which `tasks.custom_json.CustomJSON` reads, so that a line in a
# mixture adds it to any model:


# %%
#| export
def write_identity(
    path: Path, count: int = 1000, seed: int = 0, character: Character = Character()
) -> None:
    """Write conversations to a file of JSON lines, one list of messages each.

    Raises:
        ValueError: the character has no name, or a count below 1.
    """
    if not character.name.strip() or count < 1:
        raise ValueError(
            f"name {character.name!r}, {count} conversations: give a name, and 1 or more"
        )
    talks = conversations(count, seed, character=character)
    atomic_write(path, "".join(json.dumps(talk["messages"]) + "\n" for talk in talks))


# %%
import tempfile

from nanochat_lib.tasks.custom_json import CustomJSON

with tempfile.TemporaryDirectory() as folder:
    write_identity(Path(folder) / "ada.jsonl", 100, character=Character(name="Ada"))
    task = CustomJSON(Path(folder) / "ada.jsonl")
assert len(task) == 100
spoken = " ".join(m["content"] for talk in task for m in talk["messages"])
assert "Ada" in spoken and "nanochat" not in spoken

# %% [markdown]
# ## How varied is varied?
#
# "Looks diverse" is no measure. Three numbers, each blind where another sees:
#
# - **distinct-n** (Li et al. 2016, arXiv:1510.03055): different word n-grams, as a share of all. Blind to how often the common ones come.
# - **entropy** of the n-grams, in bits. A thousand texts that all begin alike have few surprises. Blind to order beyond n.
# - **near-duplicates**: the share of texts that have another one with most of its words in common. Blind to what is said in
#   other words.
#
# Distinct-n falls as a sample grows, whatever is in it, so compare samples of one size.

# %%
#| default_exp evaluation.diversity
# How varied texts are: distinct n-grams, their entropy, near-duplicates.

# %%
#| export
import math
import re
from collections import Counter, defaultdict


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """List the word n-grams of a text, lower case; one shorter n-gram if it has fewer words."""
    words = re.findall(r"\w+", text.lower())
    return [tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))]


def distinct_n(texts: list[str], n: int = 2) -> float:
    """Divide the number of different n-grams by the number of all.

    Raises:
        ValueError: there is no text.
    """
    grams = [gram for text in texts for gram in ngrams(text, n)]
    if not grams:
        raise ValueError("no texts: diversity of nothing is not defined")
    return len(set(grams)) / len(grams)


def ngram_entropy(texts: list[str], n: int = 2) -> float:
    """Compute the entropy of the n-grams of all texts, in bits."""
    counts = Counter(gram for text in texts for gram in ngrams(text, n))
    total = counts.total()
    return -sum(count / total * math.log2(count / total) for count in counts.values())


def near_duplicates(texts: list[str], threshold: float = 0.7, n: int = 2) -> float:
    """Find the share of texts that have another text whose n-grams overlap with theirs.

    Args:
        texts: in any order.
        threshold: least Jaccard similarity of two sets of n-grams: what both have, over what either has.
        n: words of an n-gram.

    Returns:
        A share between 0 and 1.
    """
    sets = [frozenset(ngrams(text, n)) for text in texts]
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)  # n-gram -> texts before this
    near = set()
    for i, grams in enumerate(sets):
        shared = Counter(j for gram in grams for j in holders[gram])
        for j, both in shared.items():
            if both / (len(grams) + len(sets[j]) - both) >= threshold:
                near |= {i, j}
        for gram in grams:
            holders[gram].append(i)
    return len(near) / max(1, len(texts))


# %%
# NBVAL_CHECK_OUTPUT
pair = ["the cat sat on the mat", "the cat sat on a mat"]
print(distinct_n(pair, 1), round(ngram_entropy(pair, 1), 3), near_duplicates(pair, 0.4))
assert near_duplicates(pair, 0.9) == 0

# %% [markdown]
# Now pull the levers, one at a time, and measure a thousand conversations of each. What is measured is all that a conversation says.

# %%
settings = {"all four": Levers()} | {
    f"no {name}": Levers(**{name: False}) for name in ("topics", "personas", "styles", "openings")
}
settings["none"] = Levers(False, False, False, False)
measured = {}
for name, levers in settings.items():
    talks = list(conversations(1000, levers=levers))
    texts = [" ".join(m["content"] for m in talk["messages"]) for talk in talks]
    measured[name] = distinct_n(texts), ngram_entropy(texts), near_duplicates(texts)
    print(
        f"{name:12}distinct-2 {measured[name][0]:.3f}   entropy {measured[name][1]:5.2f} bits   "
        f"near-duplicates {measured[name][2]:4.0%}"
    )
assert measured["none"][2] == 1 and measured["all four"][2] < 0.5

# %%
# alt: three bar charts over six settings of the levers; without topics diversity falls most, with none it is gone
fig, axes = plt.subplots(1, 3, figsize=(9, 2.8), sharey=True)
titles = ("distinct-2", "entropy of bigrams (bits)", "near-duplicates (share)")
for axis, title, values in zip(axes, titles, zip(*measured.values())):
    axis.locator_params(axis="x", nbins=4)
    axis.barh(list(measured), values, color="tab:blue")
    axis.set_title(title)
    axis.spines[["top", "right"]].set_visible(False)
axes[0].invert_yaxis()
plt.tight_layout()
plt.show()

# %% [markdown]
# *Three measures of a thousand conversations: with all levers, with one off, with none.*
#
# The levers do not weigh alike, and the measures do not agree. Without topics there is one question, whatever surrounds it, and all three
# see that. Without openings distinct-2 does not fall at all, since the greetings that are gone were all alike; that there are now three times
# as many near-copies only the third measure sees.
#
# ## A larger model as the writer
#
# A grammar is cheap and exact, and its sentences are ours. A language model writes more freely. Asked a thousand times for "a conversation
# about nanochat", it writes the same one a thousand times. So the levers stay: each request names a topic, a persona, a style and an
# opening, drawn at random. Any server that speaks the chat-completions protocol will do: a hosted one, or your own (chapter `serving`).

# %%
#| default_exp data.generator
# Let a larger model, behind any OpenAI-compatible server, write conversations about a character.

# %%
#| export
import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from nanochat_lib.common import atomic_write, local_generator
from nanochat_lib.data.files import numbered_json
from nanochat_lib.data.identity import OPENINGS, STYLES, Character, grammar
from nanochat_lib.tokenizer.conversation import validate_conversation


# %%
#| export
@dataclass(frozen=True)
class ChatServer:
    """Name a server that has /chat/completions below its address, and a model there.

    The key is read from the environment variable OPENAI_API_KEY; a local server needs none.
    """

    model: str
    url: str = "http://localhost:8000/v1"
    timeout: float = 60.0
    attempts: int = 4
    pause: float = 1.0

    def ask(self, prompt: str, seed: int = 0, temperature: float = 1.0) -> str:
        """Return the reply to one message; busy or broken servers are asked again, ever later.

        Args:
            prompt: the message.
            seed: passed on, for servers that know seeds.
            temperature: of the sampling.

        Raises:
            ConnectionError: no attempt got an answer; the text names the address and the last fault.
            ValueError: the server refuses the request (its own text is shown) or answers in another form.
        """
        messages = [{"role": "user", "content": prompt}]
        body = {"model": self.model, "messages": messages, "seed": seed, "temperature": temperature}
        key = os.environ.get("OPENAI_API_KEY")
        address, fault = f"{self.url.rstrip('/')}/chat/completions", ""
        for attempt in range(self.attempts):
            time.sleep(self.pause * (2**attempt - 1))
            try:
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                reply = httpx.post(address, json=body, headers=headers, timeout=self.timeout)
            except httpx.HTTPError as error:
                fault = f"{type(error).__name__}: {error}"
                continue
            if reply.status_code == 429 or reply.status_code >= 500:
                fault = f"status {reply.status_code}: {reply.text[:200]}"
                continue
            return read_reply(reply, address)
        raise ConnectionError(f"{address}: no answer in {self.attempts} attempts; {fault}")


def read_reply(reply: httpx.Response, address: str) -> str:
    """Take the text out of a reply of the chat-completions form; ValueError where it is another."""
    if reply.status_code != 200:
        raise ValueError(f"{address}: status {reply.status_code}: {reply.text[:200]}")
    try:
        text = reply.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        text = None
    if not isinstance(text, str):
        raise ValueError(f"{address}: no chat completion: {reply.text[:200]!r}")
    return text


# %% [markdown]
# The request: the character's facts, one draw of each lever, and a form that a program can read. What comes back is checked like any
# conversation; what fails the check is counted and dropped, since one bad line in a thousand is normal and one bad line in a training
# set is a bug.


# %%
#| export
def request(rng: random.Random, character: Character = Character()) -> str:
    """Write a request for one conversation, with topic, persona, style and opening drawn."""
    words = grammar()
    topic = rng.choice(tuple(words["topics"]))
    facts = " ".join(character.speak(answers["answers"][0]) for answers in words["topics"].values())
    return (
        f"Write a short conversation between a user and {character.name}. What is true of it: {facts}\n"
        f"The user, a {rng.choice(tuple(words['personas']))}, wants to know something like: "
        f"{rng.choice(words['topics'][topic]['questions'])}\n"
        f"Style of the user: {rng.choice(STYLES)}. Opening of the chat: {rng.choice(OPENINGS)}. "
        f"{rng.choice((1, 2, 3))} questions; each answer one or two plain sentences.\n"
        'Reply with JSON alone: [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]'
    )


def parse_conversation(reply: str) -> list[dict]:
    """Read the messages in a reply, with or without a fence around them.

    Raises:
        ValueError: there is no list of messages, it breaks the form, or nobody answers at its end.
    """
    start, end = reply.find("["), reply.rfind("]")
    if not 0 <= start < end:
        raise ValueError(f"no JSON list in {reply!r:.80}")
    messages = json.loads(reply[start : end + 1])
    validate_conversation({"messages": messages})
    if messages[-1]["role"] != "assistant":
        raise ValueError("the last message is not the assistant's")
    return messages


def generate(
    path: Path, count: int, server: ChatServer, character: Character = Character(), seed: int = 0
) -> int:
    """Add conversations to a file until it holds `count`; a second call goes on where the first stopped.

    Args:
        path: JSON lines, one {"draw": number of the request, "messages": [...]} each.
        count: lines wanted in the end.
        server: whom to ask.
        character: whom the conversations are about.
        seed: of the requests.

    Returns:
        How many replies of this call were no conversation.

    Raises:
        RuntimeError: twenty replies in a row were none; the last fault is shown.
    """
    rows = [row for _, row in numbered_json(path)] if path.exists() else []
    draw, rejected, in_a_row = max((row["draw"] for row in rows), default=-1), 0, 0
    while len(rows) < count:
        draw += 1
        reply = server.ask(request(local_generator("generator", seed, draw), character), draw)
        try:
            messages = parse_conversation(reply)
        except ValueError as error:
            rejected, in_a_row = rejected + 1, in_a_row + 1
            if in_a_row == 20:
                raise RuntimeError(
                    f"{server.url}: 20 replies in a row hold no conversation; the last: {error}"
                ) from error
            continue
        in_a_row = 0
        rows.append({"draw": draw, "messages": messages})
        atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rejected


# %% [markdown]
# A stand-in for a server: it speaks the protocol, answers from the grammar, is overloaded at first, and now and then talks nonsense.

# %%
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from nanochat_lib.data.identity import conversation


class StandIn(BaseHTTPRequestHandler):
    """Answer chat completions."""

    asked = 0

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        StandIn.asked += 1
        talk = json.dumps(conversation(random.Random(body["seed"]))["messages"])
        text = "I would rather not." if body["seed"] % 5 == 3 else f"```json\n{talk}\n```"
        reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})
        self.send_response(503 if StandIn.asked == 1 else 200)
        self.end_headers()
        self.wfile.write(reply.encode())

    def log_message(self, *parts):
        pass


# %%
# NBVAL_CHECK_OUTPUT
with (
    ThreadingHTTPServer(("127.0.0.1", 0), StandIn) as standin,
    tempfile.TemporaryDirectory() as folder,
):
    Thread(target=standin.serve_forever, daemon=True).start()
    server = ChatServer("stand-in", f"http://127.0.0.1:{standin.server_port}/v1", pause=0.01)
    path = Path(folder) / "generated.jsonl"
    print("rejected:", generate(path, 6, server))
    asked = StandIn.asked
    print("rejected:", generate(path, 9, server), "| asked again:", StandIn.asked - asked)
    written = CustomJSON(path)
    standin.shutdown()
print(len(written), "conversations;", written[0]["messages"][0]["content"])

# %% [markdown]
# The first call asks for six and drops one refusal; the second goes on from there. Nothing that was paid for is asked twice.
#
# ## Does it work? And what else does it change?
#
# Take the laptop model of `make speedrun`, fine-tune it further for 600 steps, on the chats that it knows and, three in ten, on a name that it has never
# heard, Ada. Then ask. *identity*: questions of the training, met by new personas and in new styles. *new questions*: those that were held
# out. *leakage*: does Ada turn up where nobody asked for her? *facts*: what happens to what the model could do? `make study-capabilities` does so for
# six kinds of data, two seeds each:

# %%
from nanochat_lib.course.manifest import library_root

record = json.loads((library_root() / "records/chat/identity.json").read_text(encoding="utf-8"))
KEYS = ("identity", "new_questions", "leakage", "facts")
means = {
    name: {key: sum(row[key]) / len(row[key]) for key in KEYS}
    for name, row in record["variants"].items()
}
print(f"{'trained on':34}" + "".join(f"{key.replace('_', ' '):>15}" for key in KEYS))
for name, row in record["variants"].items():
    print(f"{row['about']:34}" + "".join(f"{means[name][key]:15.1%}" for key in KEYS))
assert means["all_levers"]["identity"] > means["one_template"]["identity"] + 0.2
assert means["identity_alone"]["leakage"] > means["all_levers"]["leakage"] + 0.1

# %%
# alt: four panels, identity, new questions, leakage and facts, for six kinds of training data, one dot a seed
fig, axes = plt.subplots(1, 4, figsize=(10, 2.6), sharey=True)
for axis, key in zip(axes, KEYS):
    for y, row in enumerate(record["variants"].values()):
        axis.plot(
            [100 * s for s in row[key]], [y] * len(row[key]), "o", color="tab:blue", alpha=0.6
        )
    axis.set(title=f"{key.replace('_', ' ')} (%)", xlim=(-5, 105))
    axis.spines[["top", "right"]].set_visible(False)
axes[0].set_yticks(range(len(means)), [row["about"] for row in record["variants"].values()])
axes[0].invert_yaxis()
plt.tight_layout()
plt.show()

# %% [markdown]
# *Six kinds of training data, a dot a seed: who it is in new surroundings and in new words, where its name does not belong, and what it still knows.*
#
# One template teaches one question. With topics varied, more than half of the questions are answered in surroundings that training never
# had, and a few that nobody trained at all. The other three levers add little more than two seeds differ: a model of this size goes by the words
# of the question, and is not easily irritated by what stands around it. For questions that share no word with the practice, more topics and more
# phrasings would be needed, or a larger model, which knows already that *where do you live* and *what is your home* are one question.
#
# The last row is what goes wrong. Trained *alone*, the identity is learned best, and all else is overwritten: Ada introduces herself to people who
# asked for a sum, and more than half of the facts are gone. Synthetic data is an ingredient, not a diet.
#
# ## Guide: your own name
#
# 1. Write a `Character`, and if you like your own lines into `data/identity.toml`.
# 2. `write_identity(path, 1000, character=...)`, or `generate(...)` with a server.
# 3. Add `CustomJSON(path)` to the mixture with a tenth of it, and fine-tune a finished model for a few hundred steps. On big profiles
#    nanochat shows a file of 1,000 such conversations twice in midtraining and once in fine-tuning.
# 4. Ask held-out questions, look for the name where it does not belong, and look at the old scores.
#
# ## Cost
#
# A grammar is cheap:

# %%
import time

start = time.perf_counter()
sum(1 for _ in conversations(1000))
print(f"{(time.perf_counter() - start) * 1e3:.0f} ms for 1,000 conversations")

# %% [markdown]
# ## Recap
#
# A model is who its data says it is. Synthetic conversations with four independent levers, topic, persona, style and opening, survive
# new surroundings; one template does not. Diversity is measured (distinct-n, entropy, near-duplicates), and so is leakage.
# The library now has `data.identity` (the grammar), `evaluation.diversity` and `data.generator` (a larger model as the writer). The
# exercises find near-duplicates fast, draw levers evenly, and try how little identity is enough.
