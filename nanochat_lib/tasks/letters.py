# Generated from chapters/18_letters.py by `course build`; edit that file.
"""Counting letters with a mistake in the working, and its repair."""

import random
import re

from nanochat_lib.tasks.contact import CountLetters
from nanochat_lib.tasks.spelling import count_aloud

__all__ = ["CountWithMistakes", "missed"]


class CountWithMistakes(CountLetters):
    """Count letters; in one practice conversation of ten a letter is missed, and the tool corrects it."""

    share = 0.1

    def make(self, rng: random.Random) -> dict:
        conversation = super().make(rng)
        answer = conversation["messages"][1]["content"]
        if not self.heldout and isinstance(answer, list) and rng.random() < self.share:
            conversation["messages"][1]["content"] = missed(rng, answer)
        return conversation


def missed(rng: random.Random, answer: list[dict]) -> list[dict]:
    """Rewrite an answer of `count_answer` so that one hit is overlooked and repaired at the end.

    What is wrong is a part of type "slip": the model reads it, and does not learn to say it. An answer without a hit comes
    back as it is.
    """
    _, call, output, _ = answer
    word, letter = re.findall('"(.*?)"', call["text"])
    hits = [i for i, character in enumerate(word) if character == letter]
    if not hits:
        return answer
    hit = rng.choice(hits)
    steps, rest = count_aloud(word, letter).split(), []
    for character in word[hit + 1 :]:
        known = hits.index(hit) + sum(step[0] == letter for step in rest) + 1
        rest.append(f"{letter}{known}" if character == letter else character)
    opening = answer[0]["text"].partition(":")[0]
    return [
        {"type": "text", "text": " ".join([f"{opening}:", *steps[:hit]])},
        {"type": "slip", "text": " " + " ".join([letter, *rest])},
        {"type": "text", "text": ". Check: "},
        call,
        output,
        {"type": "text", "text": f"\nI missed one.\n#### {len(hits)}"},
    ]
