# Generated from chapters/18_contact.py by `course build`; edit that file.
"""What surrounds TinyWorld: small talk, sums, problems in new frames, questions of all kinds, real words."""

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

__all__ = [
    "REPLIES",
    "Talk",
    "any_number",
    "Operation",
    "OPERATIONS",
    "worked",
    "Sums",
    "anybody",
    "STORYLINES",
    "cast",
    "Problems",
    "Questions",
    "YesNo",
    "Stories",
    "as_quoted",
    "as_written",
    "Letters",
    "Spell",
    "CountLetters",
]

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
