# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # First contact: what a stranger types
#
# A model can score 95% on every held-out test and fail the first person who meets it. Ours did. The tests asked in eight
# frames, in clean English, about made-up words. A stranger types `hi`, `12+30`, `is the sheep pink`, or asks for the capital
# of France:
#
# ```python
# FirstContact(world)[0]["messages"][0]      # {'role': 'user', 'content': 'cheers'}
# ```
#
# Nothing is wrong with the network. What is missing is *coverage*, and the words "I do not know that". Both are data, so this
# chapter writes data: how people type, real words to spell, sums, yes and no, and a large class of messages that must be
# refused. Then it mixes two diets from it, one for midtraining and one for fine-tuning, and measures what a stranger would
# meet. You need TinyWorld and the fine-tuning loop. On a laptop the chapter takes half a minute.

# %%
#| default_exp data.phrases
# What people type: phrases from a file, the ways they are typed, and real words.

# %%
#| export
import random
import tomllib
import zlib
from functools import cache

from nanochat_lib.data.english import DATA

# %%
from collections import Counter

import matplotlib.pyplot as plt

from nanochat_lib.common import local_generator
from nanochat_lib.data.english import first_messages
from nanochat_lib.tasks.base import content_text

# %% [markdown]
# ## Write the test first
#
# Before any training data for them existed, we wrote down 265 first messages as people type them, with what would count as handled:
# `data/first_messages.tsv`, whose words chapter `tinyworld` keeps out of training. Each line has a kind and a message. The order
# matters: whoever writes the training phrases first will, without noticing, test what was trained.


# %%
# NBVAL_CHECK_OUTPUT
print(dict(Counter(kind.split()[0] for kind, _ in first_messages())))
for kind, message in first_messages()[3::24]:
    print(f"{kind:30}{message[:70]}")

# %% [markdown]
# None of these messages may be asked in training, whatever its case and punctuation: every training task gets their keys as
# its `avoid`. And the words that they ask to spell are never spelled in training. What this does not promise: the phrases below
# grew while the messages were known, and a neighbour of a message may be among them.
#
# ## Phrases, a tenth of each list kept back
#
# How do people ask where somebody lives? *Where is Mia from? home of mia. In which country does Mia live?* Such lists are long,
# so they stand in a file, `data/phrases.toml`, one phrase a line. The tenth with the smallest checksums is kept back, at
# least one of each list: a development test that shares no phrase with training, and leaves the 265 alone.


# %%
#| export
@cache
def phrase_table() -> dict[str, dict[str, tuple[str, ...]]]:
    """Read every list of phrases: section -> name -> phrases."""
    table = tomllib.loads((DATA / "phrases.toml").read_text(encoding="utf-8"))
    return {
        section: {name: tuple(text.strip().split("\n")) for name, text in lists.items()}
        for section, lists in table.items()
    }


@cache
def phrases(section: str, name: str, heldout: bool = False) -> tuple[str, ...]:
    """List one side of a list: the tenth that is kept for tests (at least one), or the rest."""
    ranked = sorted(phrase_table()[section][name], key=lambda phrase: zlib.crc32(phrase.encode()))
    cut = max(1, len(ranked) // 10)
    return tuple(ranked[:cut] if heldout else ranked[cut:])


# %%
# NBVAL_CHECK_OUTPUT
for heldout in (False, True):
    print(len(phrases("ways", "home", heldout)), phrases("ways", "home", heldout)[:3])
print({name: sum(map(len, lists.values())) for name, lists in phrase_table().items()})

# %% [markdown]
# ## How it is typed
#
# A phrase in a file is clean. On a keyboard it loses its capital and its question mark, is shouted, or gets a slip: two
# letters swapped, one lost, one doubled.


# %%
#| export
def slip(rng: random.Random, text: str) -> str:
    """Swap, lose or double one letter inside a word, if there is one."""
    places = [i for i in range(1, len(text) - 1) if text[i : i + 2].isalpha()]
    if not places:
        return text
    i = rng.choice(places)
    here, there = text[i], text[i + 1]
    return text[:i] + rng.choice((there + here, there, here + here + there)) + text[i + 2 :]


def as_typed(rng: random.Random, text: str, slips: float = 0.05) -> str:
    """Write a phrase as people do: often lower case, often without its mark, now and then with a slip."""
    case = rng.random()
    if case < 0.45:
        text = text.lower()
    elif case < 0.53:
        text = text.upper()
    end = rng.random()
    if text[-1:] in ".?!":
        if end < 0.35:
            text = text[:-1]
        elif end < 0.42:
            text = text[:-1] + rng.choice(("??", "!", " ?", "...", "!!", "."))
    elif end < 0.2:
        text += rng.choice("?.!")
    return slip(rng, text) if rng.random() < slips else text


# %%
# NBVAL_CHECK_OUTPUT
rng = local_generator("typed")
print([as_typed(rng, "Where does Mia live?", slips=0.3) for _ in range(6)])

# %% [markdown]
# ## Tasks for what is known
#
# Each task is a `TinyWorldTask`: the training side draws from the training phrases, words and pairs of numbers, the test side from
# those kept back. Small talk first. A list of phrases, one answer; the answers about itself are those of chapter `tinyworld`.

# %%
#| default_exp tasks.contact
# What surrounds TinyWorld: small talk, sums, problems in new frames, questions of all kinds, real words.

# %%
#| export
import random
import re
from dataclasses import dataclass

from nanochat_lib.data.english import real_words, spelled_word
from nanochat_lib.data.phrases import as_typed, phrases
from nanochat_lib.data.synthetic import story_document
from nanochat_lib.data.tinyworld import WORDS
from nanochat_lib.data.words import any_word, is_heldout
from nanochat_lib.tasks.spelling import count_answer, counted_aloud
from nanochat_lib.tasks.tinyworld import IDENTITY, TinyWorldTask, exchange

# %%
#| export
REPLIES = {
    "greet": "Hello! How can I help you?",
    "feel": "I am fine, thank you.",
    "thanks": "You are welcome.",
    "bye": "Goodbye!",
    **dict(zip(("name", "kind", "origin", "skills"), IDENTITY)),
}


class Talk(TinyWorldTask):
    """Greet, thank, part, and ask the model about itself."""

    def make(self, rng: random.Random) -> dict:
        kind = rng.choice(tuple(REPLIES))
        phrase = rng.choice(phrases("talk", kind, self.heldout))
        return {"messages": exchange(as_typed(rng, phrase, slips=0.1), REPLIES[kind])}


# %% [markdown]
# Sums, written as people write them, and word problems in a hundred frames about anybody and anything. The answer calls the
# calculator; all the model has to do is to find the numbers and the operation.


# %%
#| export
def any_number(rng: random.Random, most: int) -> int:
    """Draw a number from 1 to `most`, now and then round, of one digit or one repeated, as people like them."""
    number = rng.randint(1, most)
    if rng.random() < 0.75:
        return number
    digits = str(number)
    liked = rng.choice(
        (digits[0] * len(digits), digits[0] + "0" * (len(digits) - 1), "9" * len(digits), digits[0])
    )
    return min(int(liked), most)


@dataclass(frozen=True)
class Operation:
    """Name a list of phrases, a sign, how people write it, and what it does to two numbers."""

    name: str
    sign: str
    ways: tuple[str, ...]

    def draw(self, rng: random.Random, most: int, heldout: bool) -> tuple[int, int, int]:
        """Draw two numbers up to about `most` whose pair is held out or not, and the result."""
        while True:
            a, b = any_number(rng, most), any_number(rng, most)
            if is_heldout("pair", a, b) != heldout:
                continue
            if self.sign == "/":
                return a * b, b, a
            if self.sign == "-" and b > a:
                a, b = b, a
            return a, b, {"+": a + b, "-": a - b, "*": a * b}[self.sign]


OPERATIONS = (
    Operation("add", "+", ("+", " + ", " plus ", " and ")),
    Operation("subtract", "-", ("-", " - ", " minus ")),
    Operation("multiply", "*", ("*", " * ", " times ", " x ", "x", " multiplied by ")),
    Operation("divide", "/", ("/", " / ", " divided by ", " over ", " : ")),
)


def worked(expression: str, result: int, answer: str) -> list[dict]:
    """Answer with a call of the calculator and a sentence."""
    return [
        {"type": "python", "text": expression},
        {"type": "python_output", "text": str(result)},
        {"type": "text", "text": answer},
    ]


class Sums(TinyWorldTask):
    """Ask for a plain sum."""

    def make(self, rng: random.Random) -> dict:
        operation = rng.choice(OPERATIONS)
        most = rng.choice((9, 20, 99, 999, 9999) if operation.sign in "+-" else (9, 12, 30))
        a, b, result = operation.draw(rng, most, self.heldout)
        if rng.random() < 0.8:
            frame = (
                "{}" if rng.random() < 0.2 else rng.choice(phrases("sums", "frames", self.heldout))
            )
            question = frame.format(f"{a}{rng.choice(operation.ways)}{b}")
        else:
            question = rng.choice(phrases("sums", operation.name, self.heldout)).format(a, b)
        answer = f"{a} {operation.sign} {b} = {result}"
        parts = worked(f"{a}{operation.sign}{b}", result, answer)
        return {"messages": exchange(as_typed(rng, question, slips=0.02), parts)}


def anybody(rng: random.Random) -> str:
    """Draw the hero of a word problem: of the world, of another one, or somebody without a name."""
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(phrases("strangers", "people"))
    if kind < 0.6:
        return rng.choice(WORDS["names"])
    if kind < 0.85:
        return any_word(rng).capitalize()
    return "The " + rng.choice((*WORDS["jobs"], "boy", "girl", "man", "woman"))


# The lists of what a problem is put together of: a scene, what happens, the question.
STORYLINES = {
    "add": ("scene", "more", "now"),
    "subtract": ("scene", "less", "left"),
    "multiply": ("groups", "each", "total"),
    "share": ("heap", "among", "apiece"),
}


def cast(rng: random.Random) -> dict[str, str]:
    """Draw who and what a problem is about, by the names that its frames use."""
    goods = (phrases("strangers", "goods"), WORDS["things"], real_words())
    shelf = rng.choices(goods, (6, 2, 2))[0]
    g = rng.choice(shelf) + ("s" if shelf is goods[2] else "")
    h, his = rng.choice((("he", "his"), ("she", "her")))
    names = {"N": anybody(rng), "M": anybody(rng), "H": h.capitalize(), "h": h, "h2": his}
    things = {"g": g, "g1": g.removesuffix("s"), "k": rng.choice(phrases("strangers", "kin"))}
    holders = rng.choice(phrases("problems", "holders"))
    return names | things | {"x": holders, "x1": re.sub("(?<=x)es$|s$", "", holders)}


class Problems(TinyWorldTask):
    """Ask a word problem in one of many frames or put together, about anybody and anything."""

    def make(self, rng: random.Random) -> dict:
        operation = rng.choice(OPERATIONS)
        name = "share" if operation.sign == "/" else operation.name
        frame = rng.choice(phrases("problems", name, self.heldout))
        if rng.random() < 0.4:
            pieces = [phrases("problems", part, self.heldout) for part in STORYLINES[name]]
            frame = " ".join(rng.choice(piece) for piece in pieces)
        most = rng.choice((9, 20, 60) if operation.sign in "+-" else (9, 12))
        a, b, result = operation.draw(rng, most, self.heldout)
        question = frame.format(a=a, b=b, c=a, **cast(rng))
        parts = worked(f"{a}{operation.sign}{b}", result, f"The answer is {result}.")
        return {"messages": exchange(as_typed(rng, question, slips=0.02), parts)}


# %%
# NBVAL_CHECK_OUTPUT
from nanochat_lib.data.tinyworld import World

world = World(seed=0)


def show(task: TinyWorldTask, count: int = 3) -> None:
    """Print the first conversations of a task."""
    for i in range(count):
        question, answer = task[i]["messages"]
        print(f"{question['content'][:76]!r}\n    {content_text(answer['content'])[:110]!r}")


show(Sums(world))

# %% [markdown]
# Questions about the world, in every way that the lists know, and yes/no questions. Look at the answer of the latter: first the
# fact, then the verdict. The other way round, "No, the colour ...", the first token has to be decided before the fact is looked
# up. It is the letter of multiple choice over again (chapter `tinyworld`).


# %%
#| export
class Questions(TinyWorldTask):
    """Ask for a fact in any of many ways."""

    def make(self, rng: random.Random) -> dict:
        fact = rng.choice(self.facts)
        name = fact.relation.name if rng.random() < 0.7 else "any"
        frame = rng.choice(phrases("ways", name, self.heldout))
        question = frame.format(e=fact.entity, noun=fact.noun)
        return {"messages": exchange(as_typed(rng, question, slips=0.03), fact.answer)}


class YesNo(TinyWorldTask):
    """Ask whether something is so; the answer states the fact, then yes or no."""

    def make(self, rng: random.Random) -> dict:
        fact, true = rng.choice(self.facts), rng.random() < 0.5
        others = [value for value in fact.relation.values if value != fact.value]
        value = fact.value if true else rng.choice(others)
        frame = rng.choice(phrases("yes_no", fact.relation.name, self.heldout))
        answer = f"{fact.answer.removesuffix('.')}, so {'yes' if true else 'no'}."
        question = as_typed(rng, frame.format(e=fact.entity, v=value), slips=0.03)
        return {"messages": exchange(question, answer)}


class Stories(TinyWorldTask):
    """Ask for a story, sometimes about somebody in it."""

    def make(self, rng: random.Random) -> dict:
        story = story_document(self.world, rng)
        question = rng.choice(phrases("stories", "any", self.heldout))
        if rng.random() < 0.75:
            words = re.findall(r"\w+", story)
            heroes = [word for word in words if word in WORDS["names"]][:1]
            heroes += [f"a {word}" for word in words if word in WORDS["animals"]][:1]
            question = rng.choice(phrases("stories", "about", self.heldout))
            question = question.format(rng.choice(heroes))
        return {"messages": exchange(as_typed(rng, question), story)}


# %%
# NBVAL_CHECK_OUTPUT
show(Questions(world))
show(YesNo(world), 2)
show(Questions(world, "test"), 2)

# %% [markdown]
# Spelling, counting letters and counting all letters, mostly in real words. A word that is one token can only be spelled if
# that token was: so the words of the world, which the tokenizer knows as a whole, are practised too, and words joined from tokens, of
# which one may come twice or three times. Double letters are rare, so words that have one are often asked about it. And a shouted word is quoted as it was shouted: SUGAR and sugar have no
# token in common, and copying is easier than translating.


# %%
#| export
def as_quoted(word: str, question: str) -> str:
    """Return a word as the answer quotes it: in capitals where the question shouts it."""
    return word.upper() if word not in question and word.upper() in question else word


def as_written(rng: random.Random, word: str) -> str:
    """Write a word as somebody quotes it: plain, with a capital, shouted, or in quotation marks."""
    word = rng.choices((word, word.capitalize(), word.upper()), (8, 1.5, 0.5))[0]
    return rng.choices((word, f'"{word}"', f"'{word}'"), (8, 1, 1))[0]


class Letters(TinyWorldTask):
    """Ask for something about the letters of a word; a subclass says what."""

    def word(self, rng: random.Random) -> str:
        """Draw a word: one that training spells, or a real one that it never does."""
        return rng.choice(real_words(True)) if self.heldout else spelled_word(rng, self.pieces)


class Spell(Letters):
    """Ask for the letters of a word."""

    def make(self, rng: random.Random) -> dict:
        word = self.word(rng)
        frame = rng.choice(phrases("spelling", "spell", self.heldout))
        question = as_typed(rng, frame.format(as_written(rng, word)), slips=0.0)
        quoted = as_quoted(word, question)
        answer = f"I spell {quoted}: {' '.join(quoted)}."
        return {"messages": exchange(question, answer)}


class CountLetters(Letters):
    """Ask how often a letter occurs in a word, in practice now and then how many letters it has."""

    title = "letters and counts of real words that no training spelled"
    floor = 0.0
    floor_name = "guessing"

    def make(self, rng: random.Random) -> dict:
        word = self.word(rng)
        shown = as_written(rng, word)
        if not self.heldout and rng.random() < 0.1:
            frame = rng.choice(phrases("spelling", "length", self.heldout))
            question = as_typed(rng, frame.format(shown), slips=0.0)
            quoted = as_quoted(word, question)
            steps = " ".join(f"{letter}{i}" for i, letter in enumerate(quoted, start=1))
            answer = f"I number {quoted}: {steps}.\n#### {len(word)}"
            return {"messages": exchange(question, answer)}
        doubles = [a for a, b in zip(word, word[1:]) if a == b]
        pools = (doubles or word, max(word, key=word.count), word, "aeioulmnrstxp")
        letter = rng.choice(rng.choices(pools, (3, 2, 3, 2))[0])
        frame = rng.choice(phrases("spelling", "count", self.heldout and rng.random() < 0.5))
        quoted = rng.choices((letter, letter.upper(), f'"{letter}"'), (8, 1, 1))[0]
        question = as_typed(rng, frame.format(l=quoted, w=shown), slips=0.0)
        key, quoted = {"word": word, "letter": letter}, as_quoted(word, question)
        answer = count_answer(quoted, letter.upper() if quoted.isupper() else letter)
        return {"messages": exchange(question, answer), **key}

    def evaluate(self, conversation: dict, response: str) -> bool:
        """Decide whether all letters, the running count and the result are right."""
        return counted_aloud(conversation["word"], conversation["letter"], response)


# %%
show(CountLetters(world), 4)

# %% [markdown]
# ## Tasks for what is not known
#
# What would a model of this world do when it is asked for the capital of France? All answers that it has seen have the form "The
# capital of X is Y", so it names some X and Y, in a confident tone. Refusal has to be taught, and the known is a small island.
# Six kinds of sea around it:
#
# - questions that look like the world's, about somebody who does not live there;
# - requests and remarks of every other kind, in hundreds of frames filled with real words, and questions put together from
#   a question word, a subject and an ending, a thousand times more than anybody writes down;
# - sentences of ordinary English;
# - other languages, code;
# - noise: keys struck at random, smileys, a dot;
# - the model's own nonsense: in a call that cannot be worked out ("4 fields*6") the calculator answers `error` (chapter
#   `inference`), and a model that has never seen this goes on anyhow, at times without an end.
#
# The answer is one sentence, always the same, so that it costs the model one decision, at its first token.

# %%
#| default_exp tasks.unknown
# What the model does not know: messages to be refused, and the shares of all conversations.

# %%
#| export
import random
import re
from functools import cache

from nanochat_lib.data.english import documentation, real_words
from nanochat_lib.data.phrases import as_typed, phrases
from nanochat_lib.data.tinyworld import WORDS
from nanochat_lib.data.words import any_word
from nanochat_lib.tasks.tinyworld import TinyWorldTask, exchange
from nanochat_lib.tokenizer.conversation import CALL_FAILED

# %%
#| export
REFUSAL = "I do not know that. I know TinyWorld, sums and spelling."
KINDS = {"names": "people", "countries": "countries", "animals": "animals", "jobs": "jobs"}


def stranger(rng: random.Random, kind: str, heldout: bool = False) -> str:
    """Draw a name that the world does not have: known elsewhere, made up, or any English word."""
    while True:
        name = rng.choice(phrases("strangers", KINDS[kind], heldout))
        if rng.random() < 0.5:
            name = rng.choice(real_words(heldout)) if rng.random() < 0.4 else any_word(rng)
            name = name.capitalize() if kind in ("names", "countries") else name
        if name not in WORDS[kind]:
            return name


class Strangers(TinyWorldTask):
    """Ask the world's questions about somebody who does not live in it."""

    def make(self, rng: random.Random) -> dict:
        fact = rng.choice(self.facts)
        relation = fact.relation
        kind = next(kind for kind in KINDS if fact.entity in WORDS[kind])
        name = stranger(rng, kind, self.heldout)
        if rng.random() < 0.25:
            frame = rng.choice(phrases("yes_no", relation.name, self.heldout))
        else:
            any_relation = rng.random() < 0.3
            frame = rng.choice(
                phrases("ways", "any" if any_relation else relation.name, self.heldout)
            )
        noun, value = relation.noun.format(e=name), rng.choice(relation.values)
        question = frame.format(e=name, noun=noun, v=value)
        return {"messages": exchange(as_typed(rng, question, slips=0.03), REFUSAL)}


@cache
def other_words(heldout: bool = False) -> tuple[str, ...]:
    """List real words that are not the world's: what is said of a driver must not be refused."""
    world = {word.lower() for kind in WORDS.values() for word in kind}
    return tuple(word for word in real_words(heldout) if word not in world)


class OtherTopics(TinyWorldTask):
    """Ask or say anything else in English: frames filled with real words, or plain sentences."""

    def make(self, rng: random.Random) -> dict:
        words, side = other_words(self.heldout), self.heldout
        if rng.random() < 0.15:
            message = " ".join(rng.choices(documentation()[1], k=rng.choice((1, 1, 1, 2, 3, 5))))
            return {"messages": exchange(message, REFUSAL)}
        fill = {
            name: rng.choice(words) if rng.random() < 0.9 else any_word(rng) for name in ("t", "t2")
        }
        fill |= {name: stranger(rng, "names", side) for name in ("P", "P2")}
        fill |= {name: stranger(rng, "countries", side) for name in ("L", "L2")}
        fill |= {name: rng.choice(phrases("strangers", "languages", side)) for name in ("T",)}
        fill |= {"d": rng.randint(1, 9), "k": rng.choice(phrases("strangers", "kin", side))}
        message = rng.choice(phrases("unknown", "about", side))
        if rng.random() < 0.35:
            verb = rng.choice(("do", "be"))
            parts = (verb, "subjects", f"{verb}_ends")
            message = " ".join(rng.choice(phrases("unknown", part, side)) for part in parts) + "?"
        return {"messages": exchange(as_typed(rng, message.format(**fill)), REFUSAL)}


class OtherTongues(TinyWorldTask):
    """Say something in another language, or in a programming language."""

    def make(self, rng: random.Random) -> dict:
        kind = rng.choice(("foreign", "code"))
        frame = rng.choice(phrases("unknown", kind, self.heldout))
        if kind == "foreign":
            return {"messages": exchange(as_typed(rng, frame), REFUSAL)}
        a, b, c = rng.choices(real_words(self.heldout), k=3)
        fill = {"a": a, "b": b, "c": c, "A": a.capitalize(), "B": b.capitalize()}
        message = frame.format(**fill, n=rng.randint(0, 99), m=rng.randint(0, 99))
        return {"messages": exchange(message, REFUSAL)}


class FailedCalls(Problems):
    """Give up after a call that cannot be worked out; the call itself is not learned."""

    def make(self, rng: random.Random) -> dict:
        question, answer = super().make(rng)["messages"]
        words = [word for word in question["content"].split() if word.isalpha()]
        good, word = answer["content"][0]["text"], rng.choice(words)
        a, sign, b = re.split(r"(\D)", good)
        bad = rng.choice(
            (
                f"{a} {word}{sign}{b}",
                f"{a}{sign}{b} {word}",
                f"{a} {word}",
                f"{a}{sign}*{b}",
                f"{a}{sign}",
                f"{sign}{sign}",
                f"{a * rng.randint(8, 40)}{sign}",
                f"{good}{sign}{word}",
            )
        )
        call = [{"type": "python", "text": bad}, {"type": "python_output", "text": CALL_FAILED}]
        content = [*call, {"type": "text", "text": REFUSAL}]
        return {"messages": exchange(question["content"], content)}


class Noise(TinyWorldTask):
    """Strike keys at random."""

    def make(self, rng: random.Random) -> dict:
        letters, marks = "qwertyuiopasdfghjklzxcvbnm", "?!.,;:-+*/#@$%&()[]"
        faces = "\U0001f642\U0001f600\U0001f602\u2764\U0001f44d\U0001f389\U0001f436\U0001f621\U0001f914\U0001f525"
        message = rng.choice(
            (
                "".join(rng.choices(letters, k=rng.randint(2, 14))),
                rng.choice(letters + marks) * rng.randint(1, 60),
                "".join(rng.choices(marks, k=rng.randint(1, 6))),
                "".join(rng.choices(faces, k=rng.randint(1, 3))),
                " ".join("".join(rng.choices(letters, k=rng.randint(1, 8))) for _ in range(3)),
                str(rng.randint(0, 99_999)),
            )
        )
        return {"messages": exchange(message, REFUSAL)}


# %%
for kind in (Strangers, OtherTopics, OtherTongues, Noise, FailedCalls):
    print(*[kind(world)[i]["messages"][0]["content"][:60] for i in range(3)], sep=" | ")

# %% [markdown]
# One kind is known and rare: problems of two steps, with a call for each. They are one conversation in two hundred, too few to be
# learned well, and on purpose: chapter `rl` starts from what the model gets right half of the time. Held out are pairs of
# numbers, as everywhere, and a tenth of all ways to put a story together.


# %%
#| default_exp tasks.steps
# Word problems of two steps: the task that is left for reinforcement learning.


# %%
#| export
import random
import re

from nanochat_lib.data.phrases import as_typed, phrases
from nanochat_lib.data.tinyworld import World
from nanochat_lib.data.words import is_heldout
from nanochat_lib.tasks.base import TaskSlice
from nanochat_lib.tasks.contact import OPERATIONS, any_number, cast, worked
from nanochat_lib.tasks.tinyworld import TinyWorldTask, exchange


class TwoSteps(TinyWorldTask):
    """Ask a problem in which something happens twice; the answer calls the calculator for each step."""

    title = "word problems of two steps"
    floor = 0.0
    floor_name = "guessing"

    def make(self, rng: random.Random) -> dict:
        first, second = rng.choices(OPERATIONS[:2], k=2)
        result = -1
        while result < 0:
            a, b, between = first.draw(rng, rng.choice((9, 20, 60)), self.heldout)
            c = any_number(rng, rng.choice((9, 20, 60)))
            result = between + c if second.sign == "+" else between - c
        lists = ["scene", *("more" if step.sign == "+" else "less" for step in (first, second))]
        while True:
            story = [rng.choice(phrases("problems", name)) for name in lists]
            if is_heldout("story", *story) == self.heldout:
                break
        ask = rng.choice(phrases("problems", "now" if second.sign == "+" else "left"))
        names = cast(rng)
        question = " ".join(
            piece.format(a=a, b=number, **names)
            for piece, number in zip([*story, ask], (0, b, c, 0))
        )
        calls = worked(f"{a}{first.sign}{b}", between, "")[:2]
        calls += worked(f"{between}{second.sign}{c}", result, f"The answer is {result}.")
        question = as_typed(rng, question, slips=0.02)
        return {"messages": exchange(question, calls), "result": result}

    def evaluate(self, conversation: dict, response: str) -> bool:
        """Decide whether the only number said after the last call is the result."""
        said = response.rpartition("<|output_end|>")[2]
        return re.findall(r"-?[0-9]+(?:[.,:/][0-9]+)*", said) == [str(conversation["result"])]


CHOOSING = 160  # held-out questions that may choose a checkpoint; what is reported is none of them


def two_step_tests(world: World, size: int) -> tuple[TaskSlice, TaskSlice]:
    """Return the held-out questions that choose a checkpoint, and `size` others that measure it."""
    tests = TwoSteps(world, "test", CHOOSING + size)
    return tests.slice(0, CHOOSING), tests.slice(CHOOSING)


# %%
show(TwoSteps(world))

# %% [markdown]
# ## Two diets
#
# Midtraining practises skills: letters, sums, problems, questions, choices. Fine-tuning has everything, refusals
# among it; the cell below counts them. Both keep some of the pretraining text, so that facts which no conversation asks for are not forgotten.


# %%
#| export tasks.unknown
from nanochat_lib.tasks.contact import (
    CountLetters,
    Problems,
    Questions,
    Spell,
    Stories,
    Sums,
    Talk,
    YesNo,
)
from nanochat_lib.tasks.practice import Dialogue, Lookup, Repeat
from nanochat_lib.tasks.steps import TwoSteps
from nanochat_lib.tasks.tinyworld import (
    FactChoice,
    Facts,
    Identity,
    Spelling,
    WordProblems,
)

MID_SHARES = {
    Facts: 0.8,
    FactChoice: 1.9,
    WordProblems: 0.6,
    Spelling: 0.4,
    Lookup: 0.6,
    Repeat: 0.8,
    Sums: 1.0,
    Problems: 1.4,
    Questions: 1.6,
    YesNo: 0.8,
    Spell: 3.6,
    CountLetters: 3.4,
}
SFT_SHARES = {
    Facts: 0.5,
    FactChoice: 0.7,
    WordProblems: 0.4,
    Spelling: 0.2,
    Identity: 0.3,
    Lookup: 0.2,
    Repeat: 0.2,
    Dialogue: 0.2,
    Talk: 3.6,
    Sums: 1.6,
    Problems: 1.9,
    Questions: 2.4,
    YesNo: 2.0,
    Stories: 0.6,
    Spell: 2.5,
    CountLetters: 4.2,
    TwoSteps: 0.15,
    Strangers: 2.2,
    OtherTopics: 2.4,
    OtherTongues: 0.4,
    Noise: 0.2,
    FailedCalls: 0.3,
}


# %%
from nanochat_lib.tasks.practice import chat_mixture
from nanochat_lib.tasks.tinyworld import message_key

mixture = chat_mixture(world, 2_000, shares=SFT_SHARES)
asked = {message_key(c["messages"][0]["content"]) for c in mixture}
kept = {message_key(message) for _, message in first_messages()}
refused = sum(content_text(c["messages"][1]["content"]) == REFUSAL for c in mixture)
print(f"{len(asked)} different questions, {refused / 2_000:.0%} of the conversations refuse")
assert not asked & kept

# %% [markdown]
# ## A strict grader
#
# What counts as handled? A greeting must be greeted, a sum must end in its result, a question must get the fact and no other
# value, a yes/no question the fact and the right verdict, a spelling every letter, a count its number after a right spelling;
# a message beyond it all must be refused; and nothing that is known may be. A reply that does not end by itself fails
# whatever it says. And nobody stops after one message, so the same messages are asked once more as the third turn of a chat. (That test was
# written late. A model trained on single exchanges refused every later turn that we typed, and all other tests were green.)

# %%
#| default_exp evaluation.contact
# Grade first messages, strictly.

# %%
#| export
import re
import zlib

from nanochat_lib.common import local_generator
from nanochat_lib.data.english import first_messages
from nanochat_lib.data.tinyworld import WORDS, World
from nanochat_lib.tasks.base import Task
from nanochat_lib.tasks.contact import REPLIES, Questions, Spell, Sums, Talk
from nanochat_lib.tasks.spelling import counted_aloud
from nanochat_lib.tasks.tinyworld import exchange, says_only
from nanochat_lib.tasks.unknown import REFUSAL, OtherTopics

SELF = {"who": ("name", "kind"), "made": ("origin",), "can": ("skills",)}
EARLIER = (Talk, Sums, Questions, Spell, OtherTopics)  # what earlier turns may be


def last_number(response: str) -> str | None:
    """Find the last number that is said after the last call of the calculator."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", response.rpartition("<|output_end|>")[2])
    return numbers[-1] if numbers else None


def is_story(message: str, response: str) -> bool:
    """Decide whether a response has three sentences, somebody of the world, and who was asked for."""
    about = re.search(r"\babout (?:a )?(\w+)", message)
    known = any(name in response for name in WORDS["names"])
    return response.count(".") >= 3 and known and (about is None or about[1] in response)


def states_fact(world: World, key: str, response: str) -> bool:
    """Decide on a fact, "Mia.home", or on a yes/no question about it, "Mia.home=Cordia"."""
    place, asks, value = key.partition("=")
    entity, relation = place.split(".")
    fact = next(f for f in world.facts if (f.entity, f.relation.name) == (entity, relation))
    verdict = re.search(r"\b(yes|no)\W*$", response)
    wanted = ("yes" if value == fact.value else "no") if asks else None
    said = says_only(response, fact.value, fact.relation.values)
    return said and fact.entity in response and (verdict[1] if verdict else None) == wanted


def handled(world: World, kind: str, message: str, response: str) -> bool:
    """Decide whether a response meets a first message.

    Args:
        world: knows the facts.
        kind: the first column of data/first_messages.tsv, such as "sum 42".
        message: what was typed.
        response: the reply, calls of the calculator included.

    Raises:
        ValueError: the kind is unknown.
    """
    kind, *key = kind.split()
    match kind:
        case "unknown":
            return response == REFUSAL
        case "greet" | "feel" | "thanks" | "bye":
            return response == REPLIES[kind]
        case "who" | "made" | "can":
            return response in [REPLIES[name] for name in SELF[kind]]
        case "sum" | "problem":
            return last_number(response) == key[0]
        case "fact" | "yesno":
            return states_fact(world, key[0], response)
        case "story":
            return is_story(message, response)
        case "spell":
            return response.lower().rstrip(".").rpartition(":")[2].split() == list(key[0])
        case "count":
            return counted_aloud(key[1], key[0], response)
        case "length":
            return last_number(response) == key[1]
    raise ValueError(f"a first message of kind {kind!r}: no such kind is graded")


class FirstContact(Task):
    """Type the first messages, each in a fresh chat or as a later turn.

    Args:
        world: the facts.
        before: exchanges that come before the message.
    """

    floor = 0.0
    floor_name = "guessing"
    must_end = True

    def __init__(self, world: World, before: int = 0):
        super().__init__("test")
        self.title = "first messages as people type them, each in a fresh chat"
        if before:
            self.title = f"the same messages, each as turn {before + 1} of a chat"
        self.world, self.before = world, before
        self.earlier = [kind(world, "train", 50, seed=1) for kind in EARLIER] if before else []
        # In no order, so that the first hundred are a fair sample of all
        self.rows = sorted(first_messages(), key=lambda row: zlib.crc32(row[1].encode()))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        kind, message = self.rows[self.check_index(index)]
        rng = local_generator("earlier turns", index)
        tasks = rng.choices(self.earlier, k=self.before)
        turns = [turn for task in tasks for turn in task[rng.randrange(len(task))]["messages"]]
        return {"messages": [*turns, *exchange(message, kind)], "kind": kind}

    def evaluate(self, conversation: dict, response: str) -> bool:
        """Decide whether the message was handled."""
        message = conversation["messages"][-2]["content"]
        return handled(self.world, conversation["kind"], message, response)


# %%
# NBVAL_CHECK_OUTPUT
contact = FirstContact(world)
question = next(i for i in range(len(contact)) if contact[i]["kind"] == "count r strawberry 3")
right = content_text(count_answer("strawberry", "r"))
print(contact[question]["messages"][0]["content"], right, sep="\n")
assert contact.evaluate(contact[question], right)
assert not contact.evaluate(contact[question], right.replace("r2 r3", "r2"))

# %% [markdown]
# ## What the laptop model does
#
# The record of `make speedrun` in this repository has the answers of every stage. Midtraining brings the skills and knows
# nothing of manners or limits; fine-tuning brings those. Each stage must beat the one before by more than chance:

# %%
import json

from nanochat_lib.course.manifest import library_root

record = json.loads((library_root() / "records/laptop/report.json").read_text(encoding="utf-8"))
for task in ("spelling", "real_words", "first_contact"):
    for stage in ("base", "mid", "sft"):
        score = record["tasks"][task][stage]
        low, high = 100 * score["low"], 100 * score["high"]
        print(f"{task:14}{stage:5}{100 * score['accuracy']:5.1f}% [{low:.0f}, {high:.0f}]")
stages = [record["tasks"]["first_contact"][stage] for stage in ("base", "mid", "sft")]
assert all(before["high"] < after["low"] for before, after in zip(stages, stages[1:]))

# %% [markdown]
# Is that luck? `make study-contact` makes the whole run with five seeds, one thread each: other weights, other text, other
# conversations, the same world and tests. In each of the five the stages must be apart, and the last row is the run without
# anything to refuse:

# %%
studies = json.loads((library_root() / "records/chat/runs.json").read_text(encoding="utf-8"))
for name, run in studies.items():
    contact_scores = [run["tasks"]["first_contact"][stage] for stage in ("base", "mid", "sft")]
    shown = "  ".join(f"{100 * score['accuracy']:4.1f}%" for score in contact_scores)
    letters = 100 * run["tasks"]["real_words"]["sft"]["accuracy"]
    endless = run["contact"]["endless"]
    print(f"{name:20}{shown}   real words {letters:.1f}%, replies without an end: {endless}")
    if name.startswith("as_it_is"):
        assert all(a["high"] < b["low"] for a, b in zip(contact_scores, contact_scores[1:])), name

# %% [markdown]
# In every run the stages are apart, by tens of points. Without anything to refuse, a quarter of the messages is handled wrong. (Its
# letters come out a little better: whoever practises refusal does not practise something else.)
#
# Back to the recorded run, and its messages by kind:

# %%
wrong = {message_key(turn["question"]) for turn in record["contact"]["wrong"]}
asked, failed = Counter(), Counter()
for kind, message in first_messages():
    asked[kind.split()[0]] += 1
    failed[kind.split()[0]] += message_key(message) in wrong
names = sorted(asked, key=lambda kind: failed[kind] / asked[kind])

# %%
# alt: share of first messages handled, a bar for each kind; most are full, the shortest are those of stories and spelling
fig, ax = plt.subplots(figsize=(6.5, 4))
ax.barh(names, [100 * (1 - failed[kind] / asked[kind]) for kind in names], color="tab:blue")
for row, kind in enumerate(names):
    right = asked[kind] - failed[kind]
    ax.text(100 * right / asked[kind] + 1, row, f"{right} of {asked[kind]}", va="center")
ax.set(xlabel="first messages handled (%)", xlim=(0, 115))
plt.show()

# %% [markdown]
# *The 265 messages by kind, and how many of each the recorded model handled.*
#
# And here is what went wrong, every one of them, since an average hides the person who asked:

# %%
for turn in record["contact"]["wrong"]:
    print(f"{turn['question'][:40]:42}{turn['response'][:70]!r}")
known, refused = record["contact"]["known"], record["contact"]["refused"]
print(f"\n{refused} of {known} questions about what is known were refused")

# %% [markdown]
# A letter lost or doubled, a story about somebody else, a short message refused: letters and stories are what this model does
# worst. Refusing is a trade. A model that refuses more answers fewer strangers with nonsense and more friends with a shrug. The share
# of refusals in the mixture sets it, and exercise `refusal_threshold` moves it after training.
#
# ## Guide: add a capability of your own
#
# (Two capabilities have guides of their own: chapter `letters` and chapter `identity`.)
#
# All of the above was added to a finished model, and so can yours be. Four steps:
#
# 1. Write a class with `make`: a question from a list of phrases, an answer in one fixed form, whatever it needs written out
#    step by step. If the answer can be computed, let the calculator do it.
# 2. Say what is held out, by key, and write `evaluate`.
# 3. Add a line to `SFT_SHARES`, a tenth of the mixture or so, and run `nanochat run laptop --from mid`.
# 4. Look at the new row of the report *and at the old rows*: what was added may have cost something else.
#
# A task in full, to copy from: which of two numbers is larger.


# %%
class Larger(TinyWorldTask):
    """Ask for the larger of two numbers."""

    def make(self, rng: random.Random) -> dict:
        while True:
            a, b = rng.randint(1, 99), rng.randint(1, 99)
            if a != b and is_heldout("pair", a, b) == self.heldout:
                break
        frame = rng.choice(("Which is larger, {} or {}?", "{} or {}: the larger one?"))
        answer = f"{max(a, b)} is larger."
        return {"messages": exchange(as_typed(rng, frame.format(a, b)), answer)}

    def evaluate(self, conversation: dict, response: str) -> bool:
        return response == conversation["messages"][1]["content"]


# %%
show(Larger(world), 2)
mine = chat_mixture(world, 1_000, shares={**SFT_SHARES, Larger: 2.0})
print(f"{mine.counts[-1]} of 1,000 conversations are yours")

# %% [markdown]
# ## Cost
#
# A conversation costs what its generator needs, and that must be little beside a training step of 25 of them.

# %%
import time

start = time.perf_counter()
for i in range(1_000):
    mixture[i]
print(f"{(time.perf_counter() - start) * 1e3:.0f} microseconds a conversation")

# %% [markdown]
# ## Recap
#
# What a stranger meets is decided by coverage, and coverage is data: phrases as people type them, real words, and above all the
# many things that must be refused. Test messages were written first and kept out by key; phrases, words and pairs of numbers are
# held out by checksum; the grader is strict. The library now has `data.phrases`, `tasks.contact` (what is known), `tasks.unknown`
# (what is not, and the shares of both diets) and `evaluation.contact`. The exercises keep phrases apart that differ only in typing, choose
# how much to refuse, and find who opens a row.
