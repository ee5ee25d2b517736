# Generated from chapters/18_contact.py by `course build`; edit that file.
"""Grade first messages, strictly."""

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

__all__ = ["SELF", "EARLIER", "last_number", "is_story", "states_fact", "handled", "FirstContact"]

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
