# Generated from chapters/16_tinyworld.py by `course build`; edit that file.
"""Tasks about TinyWorld: training conversations, and tests on what training never showed."""

import random
import re
import zlib
from abc import abstractmethod
from collections.abc import Iterable

from nanochat_lib.common import local_generator
from nanochat_lib.data.english import Pieces
from nanochat_lib.data.synthetic import word_problem
from nanochat_lib.data.tinyworld import Fact, World
from nanochat_lib.data.words import made_up_word
from nanochat_lib.tasks.base import Task
from nanochat_lib.tasks.spelling import count_answer, counted_aloud

__all__ = [
    "exchange",
    "message_key",
    "TinyWorldTask",
    "FRAMES",
    "ask",
    "says_only",
    "Facts",
    "FactChoice",
    "WordProblems",
    "Spelling",
    "OPENERS",
    "IDENTITY",
    "Identity",
    "heldout_tasks",
]


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
