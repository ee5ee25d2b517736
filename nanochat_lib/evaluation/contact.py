# Generated from chapters/18_contact.py by `course build`; edit that file.
"""Grade first messages, strictly."""

import re

from nanochat_lib.data.english import first_messages
from nanochat_lib.data.tinyworld import WORDS, World
from nanochat_lib.tasks.base import Task
from nanochat_lib.tasks.contact import REPLIES
from nanochat_lib.tasks.spelling import counted_aloud
from nanochat_lib.tasks.tinyworld import exchange, says_only
from nanochat_lib.tasks.unknown import REFUSAL

__all__ = ["SELF", "last_number", "is_story", "states_fact", "handled", "FirstContact"]

SELF = {"who": ("name", "kind"), "made": ("origin",), "can": ("skills",)}


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
            return response.rstrip(".").rpartition(":")[2].split() == list(key[0])
        case "count":
            return counted_aloud(key[1], key[0], response)
        case "length":
            return last_number(response) == key[1]
    raise ValueError(f"a first message of kind {kind!r}: no such kind is graded")


class FirstContact(Task):
    """Type the first messages, each in a fresh chat."""

    title = "first messages as people type them, each in a fresh chat"
    floor = 0.0
    floor_name = "guessing"
    must_end = True

    def __init__(self, world: World):
        super().__init__("test")
        self.world = world

    def __len__(self) -> int:
        return len(first_messages())

    def __getitem__(self, index: int) -> dict:
        kind, message = first_messages()[self.check_index(index)]
        return {"messages": [*exchange(message, kind)], "kind": kind}

    def evaluate(self, conversation: dict, response: str) -> bool:
        """Decide whether the message was handled."""
        message = conversation["messages"][0]["content"]
        return handled(self.world, conversation["kind"], message, response)
