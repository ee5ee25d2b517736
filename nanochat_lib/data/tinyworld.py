# Generated from chapters/16_tinyworld.py by `course build`; edit that file.
"""A closed little world: its words, its facts, and what is held out for tests."""

import random
import re
from dataclasses import dataclass

from nanochat_lib.common import local_generator
from nanochat_lib.data.words import is_heldout

__all__ = [
    "WORDS",
    "Relation",
    "parse_relations",
    "ABOUT_PEOPLE",
    "ABOUT_COUNTRIES",
    "ABOUT_ANIMALS",
    "ABOUT_JOBS",
    "Fact",
    "World",
    "deal_facts",
    "number_pair",
]

WORDS = {
    "names": "Mia Tom Ben Lea Sam Max Leo Zoe Jim Kim Dan Ron Liz Bob Sue Ted Pam Gus Fay Hal Nora Paul Rita Vera",
    "countries": "Belmar Zandor Kelvia Torland Mirona Pellan Gorvia Nalund Sartia Durmond Felosa Brenia "
    "Lorvik Tamria Westrin Varland Halmia Quendor Rosmar Jalvia Wenland Cordia Zistria Yorland",
    "cities": "Marsel Tobin Rigan Dalem Porto Vesta Kolar Lunden Nerim Salto Farun Bistra "
    "Gadem Holt Jarvi Moren Pinar Rovan Setra Tilden Bulmar Wexel Yaren Zomba",
    "animals": "cat dog fox pig cow hen duck goat bear wolf frog mouse horse sheep tiger rabbit",
    "jobs": "baker doctor farmer teacher driver painter singer cook pilot sailor nurse judge",
    "places": "bakery clinic field school garage studio theatre kitchen tower harbour hospital court",
    "tools": "spoon lamp plough book truck brush drum pan map rope needle hammer",
    "foods": "bread rice soup cake fish beans corn cheese honey plums nuts salad",
    "colours": "red blue green white black brown pink grey",
    "dens": "barn cave river forest garden hill stable tree",
    "music": "piano flute violin guitar trumpet harp banjo cello",
    "sports": "tennis chess football hockey golf rugby judo rowing",
    "things": "pears pens cups books coins stamps balls cards shells bells keys hats",
}
WORDS = {kind: tuple(words.split()) for kind, words in WORDS.items()}


@dataclass(frozen=True)
class Relation:
    """Name one kind of fact and the ways to speak of it.

    Args:
        name: a short name.
        values: the words that can stand in the place of {v}.
        noun: the noun phrase of a question; {e} is the entity.
        statements: sentences with {e} and {v}; the first is also the answer to a question.
    """

    name: str
    values: tuple[str, ...]
    noun: str
    statements: tuple[str, ...]


def parse_relations(table: str) -> tuple[Relation, ...]:
    """Read relations from text: paragraphs of `name = kind of words: noun phrase`, then one statement a line."""
    relations = []
    for paragraph in table.strip().split("\n\n"):
        head, *statements = [line.strip() for line in paragraph.splitlines()]
        name, kind, noun = re.fullmatch(r"(\w+) = (\w+): (.+)", head).groups()
        relations.append(Relation(name, WORDS[kind], noun, tuple(statements)))
    return tuple(relations)


ABOUT_PEOPLE = parse_relations("""
job = jobs: the job of {e}
The job of {e} is {v}.
{e} works as a {v}.
{e} is a {v} by trade.
As a {v}, {e} works hard.

home = countries: the home of {e}
The home of {e} is {v}.
{e} lives in {v}.
{e} was born in {v} and lives there.
In {v} you can meet {e}.

pet = animals: the pet of {e}
The pet of {e} is a {v}.
{e} has a {v} at home.
A {v} lives with {e}.
{e} loves the {v} at home.

food = foods: the favourite food of {e}
The favourite food of {e} is {v}.
{e} likes to eat {v}.
{e} eats {v} every day.
Give {v} to {e} and see a smile.

colour = colours: the favourite colour of {e}
The favourite colour of {e} is {v}.
{e} always wears {v}.
The coat of {e} is {v}.
With {v} paint, {e} painted the door.

music = music: the instrument of {e}
The instrument of {e} is the {v}.
{e} plays the {v} on Sunday.
{e} learns the {v} at school.
You hear the {v} when {e} plays.

sport = sports: the sport of {e}
The sport of {e} is {v}.
{e} likes {v} after work.
{e} is good at {v}.
For {v}, call {e}.
""")

ABOUT_COUNTRIES = parse_relations("""
capital = cities: the capital of {e}
The capital of {e} is {v}.
{v} is the capital of {e}.
The king of {e} lives in the capital, {v}.
People in {e} travel to {v}, the capital.

dish = foods: the national dish of {e}
The national dish of {e} is {v}.
People in {e} cook {v}.
{e} is famous for {v}.
The best {v} comes from {e}.

flag = colours: the flag colour of {e}
The flag colour of {e} is {v}.
The flag of {e} is {v}.
A {v} flag flies over {e}.
Soldiers of {e} carry a {v} flag.

symbol = animals: the symbol of {e}
The symbol of {e} is a {v}.
The coins of {e} show a {v}.
A {v} stands for {e}.
The old sign of {e} is a {v}.
""")

ABOUT_ANIMALS = parse_relations("""
diet = foods: the food of the {e}
The food of the {e} is {v}.
The {e} eats {v}.
Feed {v} to the {e}.
A hungry {e} looks for {v}.

den = dens: the sleeping place of the {e}
The sleeping place of the {e} is the {v}.
The {e} sleeps in the {v}.
At night the {e} goes to the {v}.
In the {v} you find the {e}.

coat = colours: the colour of the {e}
The colour of the {e} is {v}.
The {e} is {v} here.
You see a {v} {e}.
The {e} has a {v} back.
""")

ABOUT_JOBS = parse_relations("""
workplace = places: the work place of the {e}
The work place of the {e} is the {v}.
The {e} works in the {v}.
Go to the {v} and find the {e}.
In the {v} the {e} is at work.

tool = tools: the tool of the {e}
The tool of the {e} is the {v}.
The {e} uses the {v}.
The {e} holds the {v}.
The {v} belongs to the {e}.
""")


@dataclass(frozen=True)
class Fact:
    """Link an entity to a value; `asked` says whether training conversations may ask for it."""

    entity: str
    relation: Relation
    value: str
    asked: bool

    @property
    def noun(self) -> str:
        """The noun phrase of a question: "the job of Mia"."""
        return self.relation.noun.format(e=self.entity)

    @property
    def answer(self) -> str:
        """The sentence that answers a question."""
        return self.say(0)

    def say(self, way: int) -> str:
        """State the fact in one of its ways."""
        return self.relation.statements[way].format(e=self.entity, v=self.value)


class World:
    """Draw the facts of a world; the same seed gives the same world.

    Args:
        seed: of the draw.
        unasked_fraction: share of each relation's facts that no training conversation asks for.

    Raises:
        ValueError: the fraction leaves nothing to ask or nothing to test.
    """

    def __init__(self, seed: int = 0, unasked_fraction: float = 0.25):
        if not 0 < unasked_fraction < 1:
            raise ValueError(f"unasked_fraction={unasked_fraction}: must lie between 0 and 1")
        self.seed = seed
        rng = local_generator("world", seed)
        self.facts: list[Fact] = []
        for kind, relations in (
            ("names", ABOUT_PEOPLE),
            ("countries", ABOUT_COUNTRIES),
            ("animals", ABOUT_ANIMALS),
            ("jobs", ABOUT_JOBS),
        ):
            for relation in relations:
                self.facts += deal_facts(WORDS[kind], relation, unasked_fraction, rng)

    def facts_about(self, entity: str) -> list[Fact]:
        """List the facts of one entity."""
        return [fact for fact in self.facts if fact.entity == entity]


def deal_facts(
    entities: tuple[str, ...], relation: Relation, unasked_fraction: float, rng: random.Random
) -> list[Fact]:
    """Deal a relation's values to entities, each about equally often, and mark some facts as never asked."""
    count = len(entities)
    values = [relation.values[i % len(relation.values)] for i in range(count)]
    rng.shuffle(values)
    unasked = set(rng.sample(range(count), round(count * unasked_fraction)))
    return [
        Fact(entity, relation, value, i not in unasked)
        for i, (entity, value) in enumerate(zip(entities, values))
    ]


def number_pair(rng: random.Random, most: tuple[int, int], heldout: bool) -> tuple[int, int]:
    """Draw a pair of whole numbers from 2 up to `most`, from the test's tenth or from the rest."""
    while True:
        pair = rng.randint(2, most[0]), rng.randint(2, most[1])
        if is_heldout("pair", *pair) == heldout:
            return pair
