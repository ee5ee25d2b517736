# Generated from chapters/16_tinyworld.py by `course build`; edit that file.
"""Text about TinyWorld, as much as one likes: word problems, documents and their order."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from nanochat_lib.common import local_generator
from nanochat_lib.data.english import spelled_word
from nanochat_lib.data.tinyworld import WORDS, Fact, World, number_pair

__all__ = [
    "Problem",
    "word_problem",
    "add_problem",
    "subtract_problem",
    "multiply_problem",
    "share_problem",
    "facts_document",
    "portrait_document",
    "state",
    "OPENINGS",
    "OUTDOORS",
    "MOODS",
    "FINDS",
    "MEETINGS",
    "DISCOVERIES",
    "TURNS",
    "ENDINGS",
    "story_document",
    "random_thing",
    "list_document",
    "spelling_document",
    "sums_document",
    "MAKERS",
    "mixed_documents",
    "curriculum",
    "validation_documents",
]


@dataclass(frozen=True)
class Problem:
    """Hold one word problem: what is asked, what to calculate, and how to say the result."""

    question: str
    expression: str
    result: int
    answer: str


def word_problem(rng: random.Random, heldout: bool) -> Problem:
    """Draw a problem of one of four kinds; its pair of numbers is held out or not."""
    kind = rng.choice((add_problem, subtract_problem, multiply_problem, share_problem))
    first, second = rng.sample(WORDS["names"], 2)
    return kind(rng, heldout, first, second, rng.choice(WORDS["things"]))


def add_problem(rng: random.Random, heldout: bool, first: str, second: str, things: str) -> Problem:
    """Make a problem of a + b."""
    a, b = number_pair(rng, (99, 99), heldout)
    story = rng.choice(
        (
            f"{first} has {a} {things}. {second} gives {first} {b} more.",
            f"{first} finds {a} {things} and buys {b} more.",
            f"There are {a} {things} on the table. {second} brings {b} more to {first}.",
        )
    )
    question = f"{story} How many {things} does {first} have now?"
    return Problem(question, f"{a}+{b}", a + b, f"{first} has {a + b} {things} now.")


def subtract_problem(
    rng: random.Random, heldout: bool, first: str, second: str, things: str
) -> Problem:
    """Make a problem of a - b with a > b."""
    b, difference = number_pair(rng, (60, 39), heldout)
    a = b + difference
    story = rng.choice(
        (
            f"{first} has {a} {things} and gives {b} to {second}.",
            f"There are {a} {things}. {first} takes {b} of them to {second}.",
            f"{first} had {a} {things} and lost {b} on the way to {second}.",
        )
    )
    question = f"{story} How many {things} are left?"
    return Problem(question, f"{a}-{b}", difference, f"There are {difference} {things} left.")


def multiply_problem(
    rng: random.Random, heldout: bool, first: str, second: str, things: str
) -> Problem:
    """Make a problem of a * b."""
    a, b = number_pair(rng, (12, 30), heldout)
    story = rng.choice(
        (
            f"{first} has {a} boxes with {b} {things} in each box.",
            f"{first} buys {a} bags. Each bag holds {b} {things}.",
            f"For {a} days {first} gets {b} {things} a day from {second}.",
        )
    )
    question = f"{story} How many {things} is that in all?"
    return Problem(question, f"{a}*{b}", a * b, f"That is {a * b} {things} in all.")


def share_problem(
    rng: random.Random, heldout: bool, first: str, second: str, things: str
) -> Problem:
    """Make a problem of a / b that comes out even."""
    b, each = number_pair(rng, (12, 20), heldout)
    a = b * each
    story = rng.choice(
        (
            f"{first} shares {a} {things} among {b} friends.",
            f"{first} puts {a} {things} into {b} equal boxes.",
            f"{first} and {second} have {a} {things} and put them on {b} plates.",
        )
    )
    question = f"{story} How many {things} is that for each?"
    return Problem(question, f"{a}/{b}", each, f"That is {each} {things} for each.")


def facts_document(world: World, rng: random.Random) -> str:
    """State three to six facts from anywhere in the world."""
    return state(rng.sample(world.facts, rng.randint(3, 6)), rng)


def portrait_document(world: World, rng: random.Random) -> str:
    """State all facts about one person, country, animal or job, in any order."""
    facts = world.facts_about(rng.choice(world.facts).entity)
    return state(rng.sample(facts, len(facts)), rng)


def state(facts: list[Fact], rng: random.Random) -> str:
    """State each fact in one of its ways."""
    return " ".join(fact.say(rng.randrange(len(fact.relation.statements))) for fact in facts)


OPENINGS = ("One day", "One morning", "Last week", "In the spring", "On a cold day", "Long ago")
OUTDOORS = "park market river bridge forest sea hill garden".split()
MOODS = "happy sad tired brave quiet proud kind hungry".split()
FINDS = (
    "small box",
    "gold coin",
    "lost {pet}",
    "blue bird",
    "long letter",
    "broken chair",
    "warm coat",
)
MEETINGS = (
    "{a} saw {b} there.",
    "There was {b}, who looked {mood}.",
    "{b} was there with a {pet}.",
    "A {pet} came out and looked at {a}.",
)
DISCOVERIES = (
    '"What is that?" asked {b}. It was a {find}.',
    "They found a {find} near a tree.",
    '"Look, a {find}!" said {a}.',
    "{b} showed {a} a {find}.",
)
TURNS = (
    "{a} was {mood}, so {b} gave {a} some {food}.",
    '"We must help," said {b}, and {a} said yes.',
    "{a} wanted to keep it, but {b} said no.",
    "They sat down and ate {food}.",
)
ENDINGS = (
    "Then they went home and had {food} for dinner.",
    "After that, {a} and {b} were good friends.",
    "{a} never forgot that day.",
    "In the evening they told the story to everyone.",
    "Then {a} slept well.",
    "And they all laughed.",
)


def story_document(world: World, rng: random.Random) -> str:
    """Tell a story of five sentences about two people."""
    a, b = rng.sample(WORDS["names"], 2)
    pet, food = rng.choice(WORDS["animals"]), rng.choice(WORDS["foods"])
    find, mood = rng.choice(FINDS).format(pet=pet), rng.choice(MOODS)
    plot = [f"{rng.choice(OPENINGS)} {{a}} went to the {rng.choice(OUTDOORS)}."]
    plot += [rng.choice(part) for part in (MEETINGS, DISCOVERIES, TURNS, ENDINGS)]
    return " ".join(plot).format(a=a, b=b, pet=pet, food=food, find=find, mood=mood)


def random_thing(rng: random.Random) -> str:
    """Draw a word of the world, another word or a number below 100."""
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(WORDS[rng.choice(tuple(WORDS))])
    return spelled_word(rng) if kind < 0.7 else str(rng.randint(1, 99))


def list_document(world: World, rng: random.Random) -> str:
    """Write a list and parts of it again, so that only copying predicts the second half."""
    # Not a set: its order changes with each process, and with it the corpus.
    things = list(dict.fromkeys(random_thing(rng) for _ in range(rng.randint(3, 7))))
    style = rng.randrange(4)
    if style == 0:
        return " ".join([", ".join(things) + "."] * rng.randint(2, 3))
    if style == 1:
        return f"Say it again: {', '.join(things)}. Yes: {', '.join(things)}."
    if style == 2:
        owners = rng.sample(WORDS["names"], len(things))
        lines = [f"{owner} has {thing}." for owner, thing in zip(owners, things)]
        return " ".join(lines + rng.sample(lines, min(3, len(lines))))
    letters = rng.sample("ABCDEFG"[: len(things)], len(things))
    lines = [f"- {thing} {letter}" for thing, letter in zip(things, letters)]
    again = [line.removeprefix("- ") for line in rng.sample(lines, min(4, len(lines)))]
    return "\n".join(lines) + "\nSo " + ", so ".join(again) + "."


def spelling_document(world: World, rng: random.Random) -> str:
    """Spell three to six words."""
    sentences = []
    for _ in range(rng.randint(3, 6)):
        word = spelled_word(rng)
        way = rng.choice(("The letters of {}: {}.", "To write {} we need {}.", "{} is {}."))
        sentences.append(way.format(word, " ".join(word)))
    return " ".join(sentences)


def sums_document(world: World, rng: random.Random) -> str:
    """Tell two or three word problems, the numbers that matter in their order, and the result."""
    lines = []
    for _ in range(rng.randint(2, 3)):
        problem = word_problem(rng, heldout=False)
        numbers = re.findall(r"\d+", problem.expression)
        lines.append(f"{problem.question} Take {' and '.join(numbers)}. {problem.answer}")
    return "\n".join(lines)


MAKERS = (
    (facts_document, 0.46),
    (portrait_document, 0.14),
    (story_document, 0.12),
    (list_document, 0.10),
    (sums_document, 0.08),
    (spelling_document, 0.10),
)


def mixed_documents(world: World, count: int, *seed: object) -> Iterator[str]:
    """Write `count` documents of all kinds, about in the shares of MAKERS."""
    makers, shares = zip(*MAKERS)
    for i in range(count):
        rng = local_generator("document", world.seed, *seed, i)
        yield rng.choices(makers, shares)[0](world, rng)


def curriculum(world: World, warmup_documents: int, documents: int, seed: int = 0) -> Iterator[str]:
    """Write the training text in order: lists alone first, then the mixture of all kinds.

    Args:
        world: what the text is about.
        warmup_documents: how many lists come first.
        documents: how many documents of all kinds follow.
        seed: another seed gives other documents about the same world.

    Raises:
        ValueError: a count is negative.
    """
    if warmup_documents < 0 or documents < 0:
        raise ValueError(f"cannot write {warmup_documents} + {documents} documents: use 0 or more")
    for i in range(warmup_documents):
        yield list_document(world, local_generator("warm-up", world.seed, seed, i))
    yield from mixed_documents(world, documents, "train", seed)


def validation_documents(world: World, count: int, seed: int = 0) -> Iterator[str]:
    """Write documents of all kinds that the curriculum of no seed contains, but for coincidence."""
    yield from mixed_documents(world, count, "validation", seed)
