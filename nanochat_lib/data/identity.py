# Generated from chapters/18_identity.py by `course build`; edit that file.
"""Conversations in which somebody gets to know a model, written by a grammar."""

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

__all__ = [
    "Character",
    "grammar",
    "STYLES",
    "OPENINGS",
    "Levers",
    "topic_questions",
    "styled",
    "conversation",
    "conversations",
    "write_identity",
]


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
