# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # TinyWorld: a world small enough to master
#
# A model of a million parameters, trained for minutes, cannot learn English, history and arithmetic. Trained on the web it
# babbles, and we could not tell a bug from a small brain. So we make a world that fits: some people, countries, animals and
# jobs, a few hundred facts, and a generator that writes as much text about them as we like. In it every stage of this course
# has to *work*, measurably:
#
# ```python
# World(seed=0).facts[0].answer      # 'The job of Mia is cook.'
# ```
#
# The generator is also a lesson of its own. Large models learn their manners, their tools and much of their reasoning from
# synthetic data, and the same three questions decide whether that teaches or deceives: is it varied enough, is it right, and
# is what we test on really absent from what we train on? You need the tasks of the last chapter. On a laptop this one takes
# 10 seconds.

# %%
#| default_exp data.tinyworld
# A closed little world: its words, its facts, and what is held out for tests.

# %%
#| export
import random
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nanochat_lib.common import local_generator

# %% [markdown]
# ## Words
#
# Everything in this world is one word. Every name and thing starts with a consonant, so that "a" is always right and we need
# no grammar for it; countries and cities are invented, so that no text from outside can contain their facts.

# %%
#| export
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

# %%
# NBVAL_CHECK_OUTPUT
print({kind: len(words) for kind, words in WORDS.items()})

# %% [markdown]
# ## A fact, and five ways to say it
#
# "Mia works as a doctor" links an entity (Mia) by a relation (job) to a value (doctor). A relation knows its values and how
# it is spoken of: a noun phrase for questions, an answer, and some plain statements. Why several? Allen-Zhu and Li
# (arXiv:2309.14316) trained models on biographies: where each fact was stated in one wording only, models could recite
# the text and could not answer questions about it; with several wordings they could. A fact must be met from more than one side.


# %%
#| export
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


# %% [markdown]
# Some statements begin with the entity and some with the value, because a model that has only read "Mia ... doctor" has
# learned nothing about "the doctor ...". Here are the seven relations of a person:

# %%
#| export
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

# %%
#| export
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

# %%
#| export
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

# %% [markdown]
# ## Drawing a world, and holding part of it out
#
# A world is one draw of values for every entity and relation. Values are dealt out like cards, so that each comes about equally
# often: if half the people were doctors, "doctor" would be a good guess and our scores would flatter.
#
# A quarter of the facts of each relation is marked *never asked*. The text states them like all others, but no training
# conversation asks for them. A test asks exactly these. To answer, a model must have stored the fact from reading and must
# have learned the manner of answering from other questions: the combination is new.


# %%
#| export
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


# %%
# NBVAL_CHECK_OUTPUT
world = World(seed=0)
unasked = [fact for fact in world.facts if not fact.asked]
print(f"{len(world.facts)} facts, {len(unasked)} of them never asked")
print(*[fact.answer for fact in world.facts_about("Mia")], sep="\n")

# %% [markdown]
# How much is there to know? A fact among $n$ equally likely values is worth $\log_2 n$ bits, so the world holds:

# %%
import math

bits = sum(math.log2(len(fact.relation.values)) for fact in world.facts)
print(f"{bits:.0f} bits")
assert 1_000 < bits < 1_500, f"{bits:.0f} bits: did a list of words shrink?"

# %% [markdown]
# That is nothing: models store about two bits a parameter when they have seen each fact often enough (Allen-Zhu and Li,
# arXiv:2404.05405). A million parameters have room for a thousand such worlds. What will be scarce is not room but *exposures*: the same
# paper needs some hundreds to a thousand of them for each fact, and our text is short.
#
# ## Words and numbers that are held out
#
# Facts are one thing that we hold out. Made-up words for spelling and pairs of numbers for sums are others, drawn from sets
# too large for a list. The last chapter's checksum gives each of them its side.


# %%
#| export
from nanochat_lib.data.words import is_heldout, made_up_word


def number_pair(rng: random.Random, most: tuple[int, int], heldout: bool) -> tuple[int, int]:
    """Draw a pair of whole numbers from 2 up to `most`, from the test's tenth or from the rest."""
    while True:
        pair = rng.randint(2, most[0]), rng.randint(2, most[1])
        if is_heldout("pair", *pair) == heldout:
            return pair


# %%
# NBVAL_CHECK_OUTPUT
rng = local_generator("a look")
print([made_up_word(rng, heldout=False) for _ in range(6)])
share = sum(is_heldout("pair", a, b) for a in range(100) for b in range(100)) / 10_000
print(f"{share:.3f} of all number pairs are held out")

# %% [markdown]
# ## Real words
#
# Letters are practised on words: made-up ones, those of the world, and real ones. A made-up word such as *tuvol* is cut into
# tokens differently from *strawberry*, and what was learned on the one kind does not carry over. Real words come from the text that
# the course reads anyway, the documentation of Python's standard library. A tenth of them is held out by checksum, and so is every
# word in a list of first messages that a later chapter keeps for its test (`data/first_messages.tsv`).

# %%
#| default_exp data.english
# Real words, the words that training spells, and the first messages that are kept for a test.

# %%
#| export
import random
import re
from collections import Counter
from functools import cache
from pathlib import Path

import nanochat_lib
from nanochat_lib.data.documents import python_docs
from nanochat_lib.data.tinyworld import WORDS
from nanochat_lib.data.words import is_heldout, made_up_word
from nanochat_lib.tokenizer.tokenizer import Tokenizer

DATA = Path(nanochat_lib.__file__).parents[1] / "data"


@cache
def first_messages() -> tuple[tuple[str, str], ...]:
    """Read the kept-back messages: pairs of a kind, such as "sum 42", and a message.

    Raises:
        ValueError: a line of the file is no such pair, with its number.
    """
    path, rows = DATA / "first_messages.tsv", []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        kind, tab, message = line.partition("\t")
        if tab and kind and message:
            rows.append((kind, message))
        elif line:
            raise ValueError(f"{path}, line {number}: {line!r} is not KIND<tab>MESSAGE")
    return tuple(rows)


@cache
def asked_words() -> frozenset[str]:
    """List the words that the first messages ask to spell or to count letters in."""
    parts = [kind.split() for kind, _ in first_messages()]
    place = {"spell": 1, "length": 1, "count": 2}
    return frozenset(part[place[part[0]]] for part in parts if part[0] in place)


@cache
def documentation() -> tuple[dict[str, int], tuple[str, ...]]:
    """Read Python's documentation: its lower-case words of 3 to 12 letters, counted, and plain sentences."""
    words, sentences = Counter(), set()
    for text in python_docs():
        words.update(re.findall(r"(?<![\w`.'_])[a-z]{3,12}(?![\w`'_(])", text))
        sentences.update(re.findall(r"(?:(?<=\. )|(?<=\n\n))[A-Z][a-z][^.\n>`|=_]{15,90}\.", text))
    return words, tuple(sorted(sentences))


@cache
def real_words(heldout: bool = False) -> tuple[str, ...]:
    """List English words; held out are a tenth of those that occur twice, and what the first messages ask."""
    counts, _ = documentation()
    words = sorted(word for word, count in counts.items() if count >= (2 if heldout else 1))
    return tuple(w for w in words if (is_heldout("word", w) or w in asked_words()) == heldout)


# %% [markdown]
# What a model sees of a word are tokens, and it can only spell a word all of whose tokens it has practised. So the words of the world, which
# the tokenizer knows as a whole, are practised often. And where real words run out, new ones are made of their parts: the start of
# one word and the end of another, or, once there is a tokenizer, two of its tokens. *Schoolat* is no word, but where the tokenizer has a
# token *school* it has that token in it, and so the word *school* itself can stay held out.


# %%
#| export
@cache
def world_words() -> tuple[str, ...]:
    """List the words of the world, lower case, but for what is held out."""
    words = {word.lower() for kind in WORDS.values() for word in kind}
    return tuple(sorted(words - asked_words() - set(real_words(heldout=True))))


Pieces = tuple[tuple[str, ...], tuple[str, ...]]


def word_pieces(tokenizer: Tokenizer) -> Pieces:
    """List the tokens in lower case that begin a word, without their space, and those that go on with one."""
    texts = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    starts = [text[1:] for text in texts if re.fullmatch(r" [a-z]{2,}", text)]
    return tuple(starts), tuple(text for text in texts if re.fullmatch(r"[a-z]+", text))


def joined_word(rng: random.Random, pieces: Pieces | None = None) -> str:
    """Make up a word out of the parts of others, or out of tokens, of which one may be repeated."""
    words = real_words() + world_words()
    while True:
        if pieces and rng.random() < 0.5:
            start, ends = rng.choice(pieces[0]), rng.choices(pieces[1], k=rng.choice((1, 1, 2)))
            word = start + ends[0] * rng.choice((1, 1, 1, 2, 2, 3)) + "".join(ends[1:])
        else:
            first, second = rng.choice(words), rng.choice(words)
            word = first[: rng.randint(1, len(first))] + second[rng.randrange(len(second)) :]
        if 3 <= len(word) <= 12 and not is_heldout("word", word) and word not in asked_words():
            return word


def spelled_word(rng: random.Random, pieces: Pieces | None = None) -> str:
    """Draw a word to spell in training: half of them real, the rest of the world, joined or made up."""
    kind = rng.random()
    if kind < 0.5:
        return rng.choice(real_words())
    if kind < 0.65:
        return rng.choice(world_words())
    return joined_word(rng, pieces) if kind < 0.93 else made_up_word(rng, heldout=False)


# %%
print(f"{len(real_words()):,} words to train on, {len(real_words(heldout=True))} held out")
print([spelled_word(rng) for _ in range(8)], [joined_word(rng) for _ in range(4)])
assert "strawberry" not in real_words()

# %% [markdown]
# ## Word problems
#
# A problem is a small story, the expression that solves it and a sentence with the result. The four kinds need the four
# operations. From here on the exports go to a second module, which holds all that the generator writes.

# %%
#| default_exp data.synthetic
# Text about TinyWorld, as much as one likes: word problems, documents and their order.


# %%
#| export
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


# %%
# NBVAL_CHECK_OUTPUT
rng = local_generator("a look at problems")
for _ in range(3):
    problem = word_problem(rng, heldout=False)
    print(f"{problem.question}\n    {problem.expression} -> {problem.answer}")

# %% [markdown]
# ## From facts to documents
#
# Pretraining reads documents, not tables. Six kinds of them cover what we want to see later. Mixed facts and portraits state the
# world:


# %%
#| export
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


# %%
# NBVAL_CHECK_OUTPUT
print(facts_document(world, local_generator(1)))

# %% [markdown]
# Stories teach the shape of English: who did what, where, with whom, and what then. This is a grammar in the old sense: a few
# slots, filled at random, with the names kept straight from sentence to sentence.

# %%
#| export
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


# %%
# NBVAL_CHECK_OUTPUT
print(story_document(world, local_generator(2)))

# %% [markdown]
# Lists look silly. To answer "which letter stands behind *soup*?" a model must look back, find the
# word and copy what followed it. The circuit that does this, an induction head (Olsson et al., arXiv:2209.11895), forms suddenly,
# and in a small model late. Documents that can only be predicted by copying should make it form early, so our curriculum
# begins with nothing else. (Whether it matters, too, stands at the end.)


# %%
#| export
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


# %%
for seed in (3, 4, 7):
    print(list_document(world, local_generator(seed)))

# %% [markdown]
# The last two kinds prepare skills: letters of made-up words, and word problems with their numbers picked out. The sum itself,
# `24/6=4`, is not written out: in conversations the calculator will come in between, and text should not show the very
# strings that a conversation will continue otherwise. (The end of the chapter asks whether that matters.)


# %%
#| export
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


# %%
#| export
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


# %%
documents = list(curriculum(world, 200, 2_000))
assert documents == list(curriculum(world, 200, 2_000)), "one seed, two corpora: what is unseeded?"
n_bytes = sum(len(text) for text in documents)
print(f"{len(documents):,} documents, {n_bytes:,} bytes")

# %% [markdown]
# ## How varied is it?
#
# A generator that repeats itself teaches repetition. Two quick measures: how many documents are exact copies, and how well a
# general compressor does. Real English prose shrinks to about a third under gzip; text from templates
# shrinks further, and by how much tells how thin the templates are.

# %%
import zlib

from nanochat_lib.data.documents import python_docs


def compressed_share(texts: list[str]) -> float:
    """Return the size under zlib as a share of the size before."""
    raw = "\n".join(texts).encode()
    return len(zlib.compress(raw, 9)) / len(raw)


by_kind = {
    maker.__name__.removesuffix("_document"): [
        maker(world, local_generator("variety", i)) for i in range(1_500)
    ]
    for maker, _ in MAKERS
}
english = []
for text in python_docs():
    english.append(text)
    if sum(map(len, english)) > 200_000:
        break
variety = {kind: compressed_share(texts) for kind, texts in by_kind.items()}
variety["English"] = compressed_share(english)
copies = {kind: 1 - len(set(texts)) / len(texts) for kind, texts in by_kind.items()}
print({kind: f"{share:.0%}" for kind, share in variety.items()})
assert max(copies.values()) < 0.2, f"copies: {copies}"

# %%
# alt: bar chart of the compressed size of six kinds of synthetic documents and of English prose
import matplotlib.pyplot as plt

fig, ax = plt.subplots(figsize=(6.5, 3))
colours = ["tab:grey" if kind == "English" else "tab:blue" for kind in variety]
ax.barh(list(variety), [100 * share for share in variety.values()], color=colours)
ax.invert_yaxis()
ax.set_xlabel("size after zlib (% of the text)")
ax.spines[["top", "right"]].set_visible(False)
plt.tight_layout()
plt.show()

# %% [markdown]
# Look at the stories: they compress to a fraction of what English needs, since a grammar of a few dozen sentences is all they
# have. A model will learn it within minutes and will then be fluent in this and in nothing else. Spelling and lists
# compress worst, because made-up words are close to random.
#
# ## Conversations that ask
#
# Now the tasks. Each is a `Task` of the last chapter: an index gives a conversation, the same one for ever, and a grader reads
# answers. A common base class seeds every item by its kind, split and index. For tests it also drops
# repeated questions, so that 200 items are 200 different ones.

# %%
#| default_exp tasks.tinyworld
# Tasks about TinyWorld: training conversations, and tests on what training never showed.

# %%
#| export
from abc import abstractmethod
from nanochat_lib.tasks.base import Task, content_text
from nanochat_lib.data.english import Pieces
from nanochat_lib.tasks.spelling import count_answer, counted_aloud


def exchange(question: str, answer: str | list[dict]) -> list[dict]:
    """Return the two messages of a question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def message_key(message: str) -> str:
    """Reduce a message to its words, so that case and punctuation make no difference.

    Example: "Hello!" -> "hello"; a message without any word stands for itself.
    """
    return " ".join(re.findall(r"\w+", message.lower())) or message.strip()


class TinyWorldTask(Task):
    """Draw conversations by index; a subclass writes `make` and, if it can be tested, `evaluate`.

    Args:
        world: the facts.
        split: "train" or "test"; a test draws only from what is held out, without repeated questions.
        size: number of conversations; a test may have fewer, where there are no more questions.
        seed: of the draws.

    `avoid` may be set to the keys of messages that are kept for a test, `pieces` to what words are joined from.

    Raises:
        ValueError: an unknown split, or a size below 1.
    """

    avoid: frozenset[str] = frozenset()
    pieces: Pieces | None = None

    def __init__(self, world: World, split: str = "train", size: int = 1_000, seed: int = 0):
        if split not in ("train", "test") or size < 1:
            raise ValueError(f"split={split!r}, size={size}: use 'train' or 'test', and 1 or more")
        super().__init__(split)
        self.world, self.size, self.seed = world, size, seed
        self.facts = [fact for fact in world.facts if fact.asked == (split == "train")]
        self.rows = self.distinct_rows() if split == "test" else range(size)

    @property
    def heldout(self) -> bool:
        """True if this is a test."""
        return self.split == "test"

    def distinct_rows(self) -> list[int]:
        """Find the first draws whose questions differ; stop when new ones have become rare."""
        seen, rows, draw = set(), [], 0
        while len(rows) < self.size and draw < 20 * self.size:
            question = self.draw(draw)["messages"][0]["content"]
            if question not in seen:
                seen.add(question)
                rows.append(draw)
            draw += 1
        return rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.draw(self.rows[self.check_index(index)])

    def draw(self, number: int) -> dict:
        """Make draw `number`, whatever was drawn before it; nothing in `avoid` is asked."""
        name = type(self).__name__
        rng = local_generator(name, self.split, self.world.seed, self.seed, number)
        while True:
            conversation = self.make(rng)
            messages = conversation["messages"]
            if not any(message_key(m["content"]) in self.avoid for m in messages[::2]):
                return conversation

    @abstractmethod
    def make(self, rng: random.Random) -> dict:
        """Write one conversation."""


# %% [markdown]
# ### Facts
#
# A question puts the noun phrase of a fact into one of eight frames. Each relation goes through training without two of
# them, and half of the test questions use those two: "Please name the job of ..." is new although "Please name" and
# "the job of" are not. So a test question always asks for an unasked fact, and often in an unheard way.

# %%
#| export
FRAMES = (
    "What is {}?",
    "Tell me {}.",
    "Do you know {}?",
    "Please name {}.",
    "I want to know {}.",
    "Can you tell me {}?",
    "Say what {} is.",
    "Hello! What is {}?",
)


def ask(fact: Fact, rng: random.Random, heldout: bool) -> str:
    """Ask for a fact, in a frame that training uses for its relation or in one that it does not."""
    first = zlib.crc32(fact.relation.name.encode()) % len(FRAMES)
    unheard = {first, (first + 3) % len(FRAMES)}
    frames = [frame for i, frame in enumerate(FRAMES) if (i in unheard) == heldout]
    return rng.choice(frames).format(fact.noun)


def says_only(response: str, value: str, values: Iterable[str]) -> bool:
    """True if the response has `value` as a word, and no other of `values`."""
    words = set(re.findall(r"\w+", response))
    return words & set(values) == {value}


class Facts(TinyWorldTask):
    """Ask for a fact in free form."""

    title = "facts never asked in training"
    floor_name = "a random value"

    @property
    def floor(self) -> float:
        """The mean chance of guessing the value among those of its relation."""
        return sum(1 / len(fact.relation.values) for fact in self.facts) / len(self.facts)

    def make(self, rng: random.Random) -> dict:
        fact = rng.choice(self.facts)
        question = ask(fact, rng, heldout=self.heldout and rng.random() < 0.5)
        key = {"value": fact.value, "values": list(fact.relation.values)}
        return {"messages": exchange(question, fact.answer), **key}

    def evaluate(self, conversation: dict, response: str) -> bool:
        """Decide whether the response names the right value and no other."""
        return says_only(response, conversation["value"], conversation["values"])


# %%
# NBVAL_CHECK_OUTPUT
facts = Facts(world, "test", 200)
example = facts[0]
print(example["messages"][0]["content"], "->", example["messages"][1]["content"])
print(len(facts), f"questions, floor {facts.floor:.3f}")
assert facts.evaluate(example, example["messages"][1]["content"])
assert not facts.evaluate(example, " ".join(example["values"])), "naming everything is no answer"

# %% [markdown]
# ### Multiple choice: the fact, then the letter
#
# With four options the model answers in two steps: it says the fact, then copies the letter that stands behind the word
# it has just said. Asked for the letter at once, it would have to recall the fact and look it up in a single pass, without a
# word to hold on to. This is chain of thought at its smallest; what it is worth stands at the end of the chapter.


# %%
#| export
class FactChoice(TinyWorldTask):
    """Ask for a fact with four options; the answer states the fact, then the letter."""

    title = "multiple choice: the fact, then the letter"
    floor = 0.25

    def make(self, rng: random.Random) -> dict:
        fact = rng.choice(self.facts)
        question = ask(fact, rng, heldout=self.heldout and rng.random() < 0.5)
        options = rng.sample([v for v in fact.relation.values if v != fact.value], 3) + [fact.value]
        rng.shuffle(options)
        lines = [f"- {option} {letter}" for letter, option in zip("ABCD", options)]
        letter = "ABCD"[options.index(fact.value)]
        answer = f"{fact.answer.removesuffix('.')} {letter}."
        key = {"letter": letter, "value": fact.value}
        return {"messages": exchange("\n".join([question, *lines]), answer), **key}

    def evaluate(self, conversation: dict, response: str) -> bool:
        """Decide whether the response states the right value, and the right letter and no other."""
        letters = re.findall(r"\b[A-D]\b", response)
        return letters == [conversation["letter"]] and conversation["value"] in response.split()


# %%
# NBVAL_CHECK_OUTPUT
choice = FactChoice(world, "test", 50)
print(*[message["content"] for message in choice[3]["messages"]], sep="\n")
assert not choice.evaluate(choice[3], choice[3]["letter"]), "the letter alone may be luck"

# %% [markdown]
# ### Word problems, with the calculator
#
# The answer calls the tool; what the tool prints is given, not said, so the loss mask leaves it out. The grader
# reads only the text after the tool call and wants exactly one number in it.


# %%
#| export
class WordProblems(TinyWorldTask):
    """Ask for the result of a word problem; the answer uses the calculator."""

    title = "word problems with the calculator"
    floor = 0.0
    floor_name = "guessing"

    def make(self, rng: random.Random) -> dict:
        problem = word_problem(rng, self.heldout)
        parts = [
            {"type": "python", "text": problem.expression},
            {"type": "python_output", "text": str(problem.result)},
            {"type": "text", "text": problem.answer},
        ]
        return {"messages": exchange(problem.question, parts), "result": problem.result}

    def evaluate(self, conversation: dict, response: str) -> bool:
        """Decide whether the only number said after the tool call is the result."""
        said = response.rpartition("<|output_end|>")[2]
        numbers = re.findall(r"[-\u2212]?[0-9]+(?:[.,:/][0-9]+)*", said)  # whole: 12 is not in 12.5
        return numbers == [str(conversation["result"])]


# %%
# NBVAL_CHECK_OUTPUT
problems = WordProblems(world, "test", 50)
for message in problems[1]["messages"]:
    print(message["content"])
assert problems.evaluate({"result": 12}, "<|output_start|>12<|output_end|>That is 12 pens.")
assert not problems.evaluate({"result": 12}, "<|output_start|>12<|output_end|>That is 1 pen or 12.")

# %% [markdown]
# ### Spelling and counting
#
# How many *n* are in *banana*? A model that sees tokens does not see letters; it has to learn the letters of each token. The
# answer is the one of the last chapter: it spells the word, counts while it goes, and checks with the calculator.


# %%
#| export
class Spelling(TinyWorldTask):
    """Ask how often a letter occurs in a made-up word; the answer spells, counting as it goes."""

    title = "letters and counts of new words"
    floor = 0.0
    floor_name = "guessing"

    def make(self, rng: random.Random) -> dict:
        word = made_up_word(rng, self.heldout)
        letter = rng.choice(word) if rng.random() < 0.8 else rng.choice("aeioulmnrst")
        frames = ("How many {} are in {}?", "How often is {} in {}?", "Count the letter {} in {}.")
        question = rng.choice(frames).format(letter, word)
        key = {"word": word, "letter": letter}
        return {"messages": exchange(question, count_answer(word, letter)), **key}

    def evaluate(self, conversation: dict, response: str) -> bool:
        """Decide whether all letters, the running count and the result are right."""
        return counted_aloud(conversation["word"], conversation["letter"], response)


# %%
# NBVAL_CHECK_OUTPUT
spelling = Spelling(world, "test", 50)
question, answer = spelling[0]["messages"]
right = content_text(answer["content"])
print(question["content"], right, sep="\n")
assert spelling.evaluate(spelling[0], right)
assert not spelling.evaluate(spelling[0], right.replace(": s ", ": z ")), (
    "right count, wrong letters"
)

# %% [markdown]
# ### Identity
#
# Nothing in the text says who the model is. A few sentences in the conversations do, and that is all that an assistant's
# identity is made of. Openings and cores combine to many phrasings; a third of those with an opening is never trained on.

# %%
#| export
OPENERS = ("", "Hello! ", "Hi, ", "Please tell me: ", "Good day. ", "One question: ", "Now, ")
IDENTITY = {
    "I am nanochat, a small language model trained on this computer.": (
        "who are you?",
        "what is your name?",
        "what are you called?",
        "who am I talking to?",
        "do you have a name?",
        "tell me your name.",
    ),
    "I am a language model, not a person.": (
        "are you a person?",
        "are you a robot?",
        "are you human?",
        "what kind of thing are you?",
        "are you alive?",
    ),
    "You made me, by building every part of me.": (
        "who made you?",
        "who built you?",
        "who trained you?",
        "where do you come from?",
    ),
    "I know TinyWorld, do sums, spell words and tell stories. Ask me: What is the capital of Belmar?": (
        "what can you do?",
        "how can you help me?",
        "what do you know?",
        "what are you good at?",
    ),
}


class Identity(TinyWorldTask):
    """Ask the model about itself."""

    title = "who it is, in unseen phrasings"
    floor = 1 / len(IDENTITY)
    floor_name = "one of the answers"

    def make(self, rng: random.Random) -> dict:
        while True:
            answer = rng.choice(tuple(IDENTITY))
            opener, core = rng.choice(OPENERS), rng.choice(IDENTITY[answer])
            question = opener + core
            # A bare core is always trained: any longer phrasing of it would contain it.
            if (opener != "" and zlib.crc32(question.encode()) % 3 == 0) == self.heldout:
                break
        question = question[0].upper() + question[1:]
        return {"messages": exchange(question, answer), "answer": answer}

    def evaluate(self, conversation: dict, response: str) -> bool:
        """Decide whether the response is the answer to this question."""
        return response.strip() == conversation["answer"]


# %%
# NBVAL_CHECK_OUTPUT
identity = Identity(world, "test", 200)
print(len(identity), "unseen phrasings, such as:", identity[0]["messages"][0]["content"])

# %% [markdown]
# These are the five tests:


# %%
#| export
def heldout_tasks(world: World, size: int = 200) -> dict[str, TinyWorldTask]:
    """Return the five tests, of at most `size` questions each, by name."""
    kinds = {
        "facts": Facts,
        "word_problems": WordProblems,
        "multiple_choice": FactChoice,
        "spelling": Spelling,
        "identity": Identity,
    }
    return {name: kind(world, "test", size) for name, kind in kinds.items()}


# %% [markdown]
# ### Practice without a test
#
# Four more kinds are training only: looking something up, repeating, spelling without counting, and small talk.
# A dialogue strings two or three exchanges of any kind together, so that the model learns to answer the last question and
# not the first.

# %%
#| default_exp tasks.practice
# Training conversations about TinyWorld: practice without a test, and the mixture of all kinds.


# %%
#| export
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


# %%
#| export
from nanochat_lib.data.english import first_messages, word_pieces
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.tasks.base import TaskMixture


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


# %%
# NBVAL_CHECK_OUTPUT
chat = chat_mixture(world, 3_000)
tests = heldout_tasks(world, 200)
print({name: len(task) for name, task in tests.items()})
print(chat[0]["messages"][0]["content"])

# %% [markdown]
# ## Is the test really held out?
#
# We promised that no test question is in the training text. Promises are checked. `contamination` lists each question of a test that
# stands, word for word, in a training document or conversation. Whole-text search for a thousand questions in megabytes is slow, so we
# index questions by their first three words and compare only there.


# %%
#| default_exp tasks.contamination
# Find test questions in training text.


# %%
#| export
def words_of(text: str) -> list[str]:
    """Cut a text into lower-case words and numbers."""
    return re.findall(r"\w+", text.lower())


def contamination(texts: Iterable[str], tasks: dict[str, Task]) -> list[str]:
    """List the test questions that occur in training text, ignoring case and punctuation.

    Args:
        texts: training documents and messages.
        tasks: the tests; the first message of each conversation is the question.

    Returns:
        The questions found, each once, sorted.
    """
    questions: dict[tuple[str, ...], list[tuple[list[str], str]]] = {}
    for task in tasks.values():
        for i in range(len(task)):
            question = task[i]["messages"][0]["content"]
            words = words_of(question)
            questions.setdefault(tuple(words[:3]), []).append((words, question))
    found = set()
    for text in texts:
        words = words_of(text)
        for start in range(len(words) - 2):
            for wanted, question in questions.get(tuple(words[start : start + 3]), ()):
                if words[start : start + len(wanted)] == wanted:
                    found.add(question)
    return sorted(found)


def training_texts(task: Task) -> Iterator[str]:
    """Yield every message of a task's conversations as text."""
    for i in range(len(task)):
        for message in task[i]["messages"]:
            content = message["content"]
            yield content if isinstance(content, str) else " ".join(p["text"] for p in content)


# %%
leaked = contamination([*documents, *training_texts(chat)], tests)
assert leaked == [], f"{len(leaked)} test questions in the training text, such as {leaked[:2]}"
planted = tests["facts"][0]["messages"][0]["content"]
assert contamination(["So: " + planted.upper()], tests) == [planted], "the detector is blind"

# %% [markdown]
# ## What goes wrong: splitting conversations instead of facts
#
# The usual way to hold out data is to shuffle the items and keep a tenth. Let us do that with conversations about facts
# and count how many of the "unseen" test conversations ask for a fact that training also asks for:

# %%
# NBVAL_CHECK_OUTPUT
items = [Facts(world, "train", 3_000)[i]["messages"] for i in range(3_000)]
train, test = items[:2_700], items[2_700:]
answers = {messages[1]["content"] for messages in train}
exact = sum(messages in train for messages in test) / len(test)
leak = sum(messages[1]["content"] in answers for messages in test) / len(test)
print(f"{exact:.0%} of the test is in training word for word, {leak:.0%} asks for a trained answer")
assert leak > 0.9

# %% [markdown]
# A model that learned answers by heart would pass such a test. Holding out whole facts, and checking it by
# key and not by wording, is what makes the score mean that the model can use what it has read:

# %%
trained = {Facts(world, "train", 3_000)[i]["messages"][1]["content"] for i in range(3_000)}
tested = {tests["facts"][i]["messages"][1]["content"] for i in range(len(tests["facts"]))}
assert not trained & tested, f"asked in both: {sorted(trained & tested)[:3]}"

# %% [markdown]
# ## What is each idea worth?
#
# Four times this chapter said "because": lists come first, sums are not written out, the letter comes after the fact and stands
# right behind its option. Reasons are cheap. `make study-tinyworld` runs the whole laptop profile again, each time without one of
# these ideas, and keeps the held-out scores (these were kept before midtraining came, when made-up words alone were spelled and
# counts were not checked with the calculator):

# %%
import json

from nanochat_lib.course.manifest import library_root

path = library_root() / "records/tinyworld/ablations.json"
ablations = json.loads(path.read_text(encoding="utf-8"))
columns = ("facts", "multiple_choice", "word_problems", "spelling")
print(f"{'':20}" + "".join(f"{column:>20}" for column in columns))
for variant, record in sorted(ablations.items()):
    cells = [
        f"{100 * score['accuracy']:.0f} [{100 * score['low']:.0f}, {100 * score['high']:.0f}]"
        for score in (record["tasks"][column] for column in columns)
    ]
    print(f"{variant:20}" + "".join(f"{cell:>20}" for cell in cells))
at_once, as_it_is = (
    ablations[v]["tasks"]["multiple_choice"] for v in ("letter_at_once", "as_it_is")
)
assert at_once["low"] < 0.25 < 0.8 < as_it_is["low"], "the letter alone should be near chance"

# %% [markdown]
# One idea of the four can be seen: without the fact before the letter, multiple choice is at chance. The other three cannot. A bracket does no harm, sums written out do no harm, and without lists at the start the model copies as well in the end
# (its heads have offset keys, chapter `attention`, and can copy from the first step). Spelling without them is lower, but the
# intervals overlap. One run each, so small differences mean nothing; and three good reasons out of four left no trace in the scores.
# That is what ablations are for, and why they are run again when the model changes.
#
# ## Cost
#
# Generating text must not slow down training. How long does one conversation take?

# %%
import time

start = time.perf_counter()
n_characters = sum(len(text) for i in range(500) for text in training_texts(chat.slice(i, i + 1)))
microseconds = (time.perf_counter() - start) / 500 * 1e6
print(f"{microseconds:.0f} microseconds and {n_characters / 500:.0f} characters a conversation")

# %% [markdown]
# About forty tokens come out each time, so a core writes them far faster than it can train on them.
#
# ## Recap
#
# A generated world lets us state what a model should know and test exactly that: facts that were read and never asked, phrasings,
# numbers and words that training never used. Variety can be measured, and contamination checked. The library now has
# `data.tinyworld` (the world), `data.english` (real words), `data.synthetic` (documents and the curriculum) and `tasks.tinyworld` (conversations, five held-out
# tests, the contamination check). The exercises measure how much a text says, hold out
# combinations instead of facts, and train a model that knows its facts from one side only. The next chapter trains on the conversations.
