# Generated from chapters/15_tasks.py by `course build`; edit that file.
"""The mixtures of nanochat's midtraining and fine-tuning, at full size."""

from collections.abc import Mapping
from pathlib import Path

from nanochat_lib.tasks.arc import ARC
from nanochat_lib.tasks.base import Task, TaskMixture
from nanochat_lib.tasks.custom_json import CustomJSON
from nanochat_lib.tasks.gsm8k import GSM8K
from nanochat_lib.tasks.mmlu import MMLU
from nanochat_lib.tasks.smoltalk import SmolTalk
from nanochat_lib.tasks.spelling import SimpleSpelling, SpellingBee

__all__ = ["FROM_HUB", "web_diet"]

FROM_HUB = ("smoltalk", "mmlu", "gsm8k", "arc_easy", "arc_challenge")


def web_diet(
    stage: str, identity: Path, words: Path, files: Mapping[str, Path] | None = None, seed: int = 0
) -> TaskMixture:
    """Mix the conversations of one stage of a big run.

    Args:
        stage: "mid" (about 850,000 conversations) or "sft" (about 23,000).
        identity: conversations about the model, one a line, see `data.identity.write_identity`.
        words: a list of English words, one a line, to spell.
        files: local copies of data sets, by name out of FROM_HUB; the others come from the hub.
        seed: of the shuffle.

    Raises:
        ValueError: no such stage, or a file that is none of the data sets or cannot be read.

    Source: nanochat, scripts/mid_train.py and scripts/chat_sft.py, October 2025.
    """
    files = dict(files or {})
    if stage not in ("mid", "sft") or not files.keys() <= set(FROM_HUB):
        raise ValueError(
            f"stage {stage!r}, files for {', '.join(files) or 'nothing'}: "
            f"stages are 'mid' and 'sft', data sets are {', '.join(FROM_HUB)}"
        )
    chats = SmolTalk("train", files.get("smoltalk"))
    sums = GSM8K("train", files.get("gsm8k"))
    who = CustomJSON(identity)
    rows: list[tuple[Task, float]]
    if stage == "mid":
        rows = [
            (chats, 1),
            (MMLU("all", "auxiliary_train", files.get("mmlu")), 1),
            (sums, 1),
            (who, 2),
            (SimpleSpelling(200_000, "train", words), 1),
            (SpellingBee(80_000, "train", words), 1),
        ]
    else:
        rows = [
            (ARC("ARC-Easy", "train", files.get("arc_easy")), 1),
            (ARC("ARC-Challenge", "train", files.get("arc_challenge")), 1),
            (sums, 1),
            (chats.slice(0, 10_000), 1),
            (who, 1),
            (SimpleSpelling(300, "train", words), 1),
            (SpellingBee(300, "train", words), 1),
        ]
    tasks, times = zip(*rows)
    return TaskMixture(list(tasks), list(times), seed=seed)
