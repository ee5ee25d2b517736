# Generated from chapters/16_tinyworld.py by `course build`; edit that file.
"""Training conversations about TinyWorld: practice without a test, and the mixture of all kinds."""

import random

from nanochat_lib.data.english import first_messages, word_pieces
from nanochat_lib.data.synthetic import random_thing
from nanochat_lib.data.tinyworld import WORDS, World
from nanochat_lib.data.words import made_up_word
from nanochat_lib.tasks.base import TaskMixture
from nanochat_lib.tasks.tinyworld import (
    FactChoice,
    Facts,
    Identity,
    Spelling,
    TinyWorldTask,
    WordProblems,
    exchange,
    message_key,
)
from nanochat_lib.tokenizer.tokenizer import Tokenizer

__all__ = [
    "Lookup",
    "Repeat",
    "SpellOnly",
    "SMALL_TALK",
    "SmallTalk",
    "Dialogue",
    "CHAT_SHARES",
    "chat_mixture",
]


class Lookup(TinyWorldTask):
    """Ask what somebody has, just after saying it."""

    def make(self, rng: random.Random) -> dict:
        owners = rng.sample(WORDS["names"], rng.randint(2, 4))
        lines = [f"{owner} has {random_thing(rng)}." for owner in owners]
        which = rng.randrange(len(lines))
        question = " ".join([*lines, f"What does {owners[which]} have?"])
        return {"messages": exchange(question, lines[which])}


class Repeat(TinyWorldTask):
    """Ask to say some words again."""

    def make(self, rng: random.Random) -> dict:
        text = " ".join(random_thing(rng) for _ in range(rng.randint(1, 5)))
        frame = rng.choice(("Say {}.", "Repeat after me: {}.", "Please say {} again."))
        return {"messages": exchange(frame.format(text), f"{text}.")}


class SpellOnly(TinyWorldTask):
    """Ask for the letters of a made-up word."""

    def make(self, rng: random.Random) -> dict:
        word = made_up_word(rng, heldout=False)
        frame = rng.choice(("Spell {}.", "How do you spell {}?", "What are the letters of {}?"))
        return {"messages": exchange(frame.format(word), f"I spell {word}: {' '.join(word)}.")}


SMALL_TALK = {
    "Hello!": "Hello! How can I help you?",
    "Hi!": "Hello! How can I help you?",
    "Good morning!": "Hello! How can I help you?",
    "How are you?": "I am fine, thank you.",
    "Thank you!": "You are welcome.",
    "Bye!": "Goodbye!",
}


class SmallTalk(TinyWorldTask):
    """Be polite."""

    def make(self, rng: random.Random) -> dict:
        greeting = rng.choice(tuple(SMALL_TALK))
        return {"messages": exchange(greeting, SMALL_TALK[greeting])}


class Dialogue(TinyWorldTask):
    """String two or three exchanges of the other training tasks together."""

    def make(self, rng: random.Random) -> dict:
        kinds = rng.choices(
            (SmallTalk, Facts, Identity, WordProblems, SpellOnly), k=rng.randint(2, 3)
        )
        messages = []
        for kind in kinds:
            messages += kind(self.world, "train", 1, self.seed).make(rng)["messages"]
        return {"messages": messages}


CHAT_SHARES = {
    Facts: 1.5,
    FactChoice: 2.5,
    WordProblems: 2.0,
    Spelling: 3.0,
    Identity: 0.4,
    Lookup: 1.0,
    Repeat: 0.6,
    SpellOnly: 0.6,
    SmallTalk: 0.2,
    Dialogue: 0.6,
}


def chat_mixture(
    world: World,
    size: int,
    seed: int = 0,
    shares: dict[type, float] | None = None,
    tokenizer: Tokenizer | None = None,
) -> TaskMixture:
    """Mix `size` training conversations, none of which asks one of the first messages.

    Args:
        world: the facts.
        size: conversations.
        seed: of all draws.
        shares: kind of task -> share; CHAT_SHARES if None.
        tokenizer: words to spell are then joined from its tokens, too.
    """
    shares = CHAT_SHARES if shares is None else shares
    tasks = [kind(world, "train", size, seed) for kind in shares]
    kept = frozenset(message_key(message) for _, message in first_messages())
    pieces = word_pieces(tokenizer) if tokenizer else None
    for task in tasks:
        task.avoid, task.pieces = kept, pieces
    return TaskMixture(tasks, list(shares.values()), size=size, seed=seed)
