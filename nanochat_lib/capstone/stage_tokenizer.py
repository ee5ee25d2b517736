# Generated from chapters/20_capstone.py by `course build`; edit that file.
"""Stage 2: learn the vocabulary."""

from dataclasses import dataclass
from pathlib import Path

from nanochat_lib.capstone.stage_data import training_shards, validation_sets
from nanochat_lib.data.documents import stream_documents
from nanochat_lib.tokenizer.bpe import split_pattern
from nanochat_lib.tokenizer.tokenizer import Tokenizer

__all__ = ["TokenizerConfig", "train_tokenizer"]


@dataclass(frozen=True)
class TokenizerConfig:
    """Size the vocabulary, special tokens included, and say how many digits a token may hold."""

    vocab_size: int = 1024
    max_digits: int = 1


def train_tokenizer(folder: Path, inputs: dict[str, Path], config: TokenizerConfig) -> dict:
    """Learn the vocabulary from the training text; measure how it compresses the validation sets."""
    texts = (text for text, _ in stream_documents(training_shards(inputs["data"]), loop=False))
    tokenizer = Tokenizer.train(texts, config.vocab_size, split_pattern(config.max_digits))
    tokenizer.save(folder)
    bytes_per_token = {}
    for name, shards in validation_sets(inputs["data"]).items():
        texts = [text for text, _ in stream_documents(shards, loop=False)]
        n_tokens = sum(len(ids) for ids in tokenizer.encode(texts))
        bytes_per_token[name] = sum(len(text.encode()) for text in texts) / n_tokens
    return {"hash": tokenizer.hash, "bytes_per_token": bytes_per_token}
