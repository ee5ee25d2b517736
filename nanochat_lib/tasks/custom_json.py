# Generated from chapters/15_tasks.py by `course build`; edit that file.
"""Conversations from a file of your own: identity, house style."""

from pathlib import Path

from nanochat_lib.data.files import numbered_json
from nanochat_lib.tasks.base import Task
from nanochat_lib.tokenizer.conversation import validate_conversation

__all__ = ["read_conversations", "CustomJSON"]


def read_conversations(path: str | Path) -> list[dict]:
    """Read a list of messages or {"messages": [...]} from each line; errors name the line."""
    conversations = []
    for number, value in numbered_json(path):
        value = {"messages": value} if isinstance(value, list) else value
        try:
            conversations.append(validate_conversation(value))
        except ValueError as error:
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
