# Generated from chapters/12_tasks.py by `course build`; edit that file.
"""Conversations from a file of your own: identity, house style."""

import json
from pathlib import Path

from nanochat_lib.tasks.base import Task, validate_conversation

__all__ = ["read_conversations", "CustomJSON"]


def read_conversations(path: str | Path) -> list[dict]:
    """Read a list of messages or {"messages": [...]} from each line; errors name the line."""
    conversations = []
    # Iterating a file ends lines at newlines only; str.splitlines would also cut at U+2028.
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
                value = {"messages": value} if isinstance(value, list) else value
                conversations.append(validate_conversation(value))
            except ValueError as error:  # json.JSONDecodeError is one too
                raise ValueError(f"{path}, line {number}: {error}") from error
    return conversations


class CustomJSON(Task):
    """Conversations from your own JSON lines file: identity, house style; for training only."""

    def __init__(self, path: str | Path, split: str = "train"):
        super().__init__(split)
        self.conversations = read_conversations(path)
        if not self.conversations:
            raise ValueError(
                f"{path} holds no conversation: write one JSON list of messages a line"
            )

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> dict:
        return self.conversations[self.check_index(index)]
