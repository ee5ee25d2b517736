# Generated from chapters/15_tasks.py by `course build`; edit that file.
"""GSM8K: word problems whose calculations become tool calls."""

import re
from decimal import Decimal
from pathlib import Path

from nanochat_lib.inference.calculator import calculate
from nanochat_lib.tasks.base import content_text
from nanochat_lib.tasks.rows import RowTask, required

__all__ = ["CALCULATION", "split_calculations", "FINAL", "final_number", "GSM8K"]

CALCULATION = re.compile(r"<<([^<>=]+)=([^<>]*)>>")


def split_calculations(answer: str) -> list[dict]:
    """Turn a worked answer into parts: every <<expression=result>> becomes a call and its output.

    The output is what our calculator returns, so that the model trains on what it will see: the
    data says 144.00 where the calculator says 144. Where it cannot calculate, the data's own
    result stays.
    """
    parts, done = [], 0
    for match in CALCULATION.finditer(answer):
        expression, result = match.groups()
        parts.append({"type": "text", "text": answer[done : match.start()]})
        parts.append({"type": "python", "text": expression})
        output = calculate(expression)
        parts.append({"type": "python_output", "text": result if output is None else output})
        done = match.end()
    parts.append({"type": "text", "text": answer[done:]})
    return [part for part in parts if part["text"]]


FINAL = re.compile(
    r"[\s*]*(?P<mark>[-+$€£\s]{0,4})(?P<number>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?!(?:[^\w\n]|_)*[0-9]|[eExX][-+]?[0-9])"  # the line holds more of a number: 10 000, 1/2, 1e3, 5:30
)


def final_number(text: str) -> Decimal | None:
    """Read the number after the last ####, or None.

    Example: "#### $1,200.50" and "#### -€5 each" -> 1200.50 and -5; "about 12", "#### 1/2" -> None.

    Sign and currency may come in either order; commas part groups of three; words may follow. Where
    more digits follow without a word between, the number has not ended, and there is none.
    """
    before, marker, after = text.rpartition("####")
    found = FINAL.match(after.replace("\N{MINUS SIGN}", "-"))
    if not marker or not found:
        return None
    sign = -1 if "-" in found["mark"] else 1
    return sign * Decimal(found["number"].replace(",", ""))


class GSM8K(RowTask):
    """Grade-school word problems; calculations go to the calculator, "#### n" ends the answer.

    Args:
        split: "train" (7,473 problems) or "test" (1,319).
        path: a local file with the hub's columns question and answer.

    Source: Cobbe et al. 2021 (arXiv:2110.14168); hub: openai/gsm8k.
    """

    def __init__(self, split: str = "train", path: str | Path | None = None):
        super().__init__(path, "openai/gsm8k", "main", split)

    def read_row(self, row: dict) -> dict:
        """Build the conversation, with the worked answer in parts."""
        question, answer = required(row, question=str, answer=str)
        parts = split_calculations(answer)
        if final_number(answer) is None:
            raise ValueError(f"the answer ends {answer[-40:]!r}, expected a number after ####")
        user = {"role": "user", "content": question}
        return {"messages": [user, {"role": "assistant", "content": parts}]}

    def evaluate(self, conversation: dict, response: str) -> bool:
        """Compare the final numbers as numbers: 1,200 is 1200.00."""
        truth = final_number(content_text(conversation["messages"][-1]["content"]))
        if truth is None:
            raise ValueError("the reference answer has no number after ####")
        return final_number(response) == truth
