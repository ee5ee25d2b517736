# Generated from chapters/18_contact.py by `course build`; edit that file.
"""What the model does not know: messages to be refused, and the shares of all conversations."""

import random
import re
from functools import cache

from nanochat_lib.data.english import documentation, real_words
from nanochat_lib.data.phrases import as_typed, phrases
from nanochat_lib.data.tinyworld import WORDS
from nanochat_lib.data.words import any_word
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
    TinyWorldTask,
    WordProblems,
    exchange,
)
from nanochat_lib.tokenizer.conversation import CALL_FAILED

__all__ = [
    "REFUSAL",
    "KINDS",
    "stranger",
    "Strangers",
    "other_words",
    "OtherTopics",
    "OtherTongues",
    "FailedCalls",
    "Noise",
    "MID_SHARES",
    "SFT_SHARES",
]

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
