# Generated from chapters/18_rl.py by `course build`; edit that file.
"""How often sampled answers are right: the mean, and the best of k tries."""

import math
from statistics import stdev

from nanochat_lib.evaluation.chat import response_text
from nanochat_lib.inference.engine import Engine
from nanochat_lib.tasks.base import Task

__all__ = ["pass_at_k", "count_right", "mean_with_interval"]


def pass_at_k(tries: int, right: int, k: int) -> float:
    """Estimate the chance that at least one of k tries is right, without bias.

    Example: 2 right of 4 tries -> k=1: 0.5, k=2: 1 - 1/6.

    Raises:
        ValueError: not 0 <= right <= tries or not 1 <= k <= tries.
    """
    if not (0 <= right <= tries and 1 <= k <= tries):
        raise ValueError(
            f"{right=} of {tries=}, {k=}: need 0 <= right <= tries and 1 <= k <= tries"
        )
    return 1 - math.comb(tries - right, k) / math.comb(tries, k)


def count_right(
    engine: Engine, task: Task, tries: int, max_tokens: int, batch_size: int = 32, seed: int = 0
) -> list[int]:
    """Answer every question of a task several times at temperature 1, and count the right answers of each.

    An answer that was cut off is wrong. Batches hold `batch_size` questions with all their tries.
    """
    found, tokenizer = [], engine.tokenizer
    for start in range(0, len(task), batch_size):
        conversations = [task[i] for i in range(start, min(start + batch_size, len(task)))]
        prompts = [tokenizer.render_for_completion(c) for c in conversations]
        rows = engine.rollouts(prompts, max_tokens, 1.0, None, seed + start, tries)
        for i, conversation in enumerate(conversations):
            mine = [row for row in rows[i * tries : (i + 1) * tries] if row.stopped]
            texts = [response_text(tokenizer, row.tokens) for row in mine]
            found.append(sum(task.evaluate(conversation, text) for text in texts))
    return found


def mean_with_interval(shares: list[float]) -> dict[str, float]:
    """Return mean and 95% interval of one number a question, whose tries are not independent, at least two."""
    mean = sum(shares) / len(shares)
    half = 1.96 * stdev(shares) / math.sqrt(len(shares))
    return {"accuracy": mean, "low": mean - half, "high": mean + half, "n": len(shares)}
