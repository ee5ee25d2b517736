# Generated from chapters/12_inference.py by `course build`; edit that file.
"""The engine: batched and streaming generation, the calculator as a tool."""

from collections import deque
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from nanochat_lib.inference.calculator import calculate
from nanochat_lib.inference.kv_cache import KVCache
from nanochat_lib.inference.sampling import sample, sampled_logprobs
from nanochat_lib.model.gpt import GPT
from nanochat_lib.tokenizer.conversation import CALL_FAILED
from nanochat_lib.tokenizer.tokenizer import Tokenizer

__all__ = ["MAX_CALL", "Row", "Engine"]

MAX_CALL = 32  # tokens; the longest sum of our sample of GSM8K has 28 characters


class Row:
    """Follow one answer: its tokens, what a tool forces next, and whether it has ended."""

    def __init__(self, tokenizer: Tokenizer, budget: int) -> None:
        """Start an empty answer of at most `budget` tokens."""
        self.tokenizer, self.budget = tokenizer, budget
        self.tokens: list[int] = []
        self.mask: list[int] = []
        self.logprobs: list[float] = []  # one a token, and one for the stop token if it came
        self.last = tokenizer.bos_id
        self.finished = self.stopped = False
        self._forced: deque[int] = deque()
        self._expression: list[int] | None = None  # the tokens since python_start

    def accept(
        self, sampled: int, stop_tokens: frozenset[int], logprob: float = 0.0
    ) -> tuple[int, int]:
        """Take the sampled token, unless the row has ended or a tool has the word.

        Args:
            sampled: what the model chose.
            stop_tokens: ids that end the answer; they are not kept in `tokens`.
            logprob: of the choice, in nats; a forced token has 0.

        Returns:
            The row's token for this step, and 1 when the model chose it, 0 when it was forced. A
            row that has ended repeats its last token with 0.
        """
        if self.finished:
            return self.last, 0
        mask = 0 if self._forced else 1
        self.last = self._forced.popleft() if self._forced else sampled
        self.logprobs.append(logprob if mask else 0.0)
        if mask and self.last in stop_tokens:
            self.finished = self.stopped = True
            return self.last, 1
        self.tokens.append(self.last)
        self.mask.append(mask)
        if mask:
            self._watch_for_tool(self.last)
        self.finished = len(self.tokens) >= self.budget
        return self.last, mask

    def _watch_for_tool(self, token: int) -> None:
        """Collect what stands in a tool call; queue the calculator's answer when it ends."""
        special = self.tokenizer.encode_special
        if token == special("<|python_start|>"):
            self._expression = []
        elif self._expression is not None:
            ended, result = token == special("<|python_end|>"), None
            if ended:
                result = calculate(self.tokenizer.decode(self._expression))
            self._expression.append(token)
            if ended or len(self._expression) > MAX_CALL:
                self._expression = None
                output = self.tokenizer.encode(result or CALL_FAILED)
                answer = [special("<|output_start|>"), *output, special("<|output_end|>")]
                self._forced.extend(answer if ended else [special("<|python_end|>"), *answer])


class Engine:
    """Generate from a model: many prompts at once, streaming, with the calculator as a tool."""

    def __init__(self, model: GPT, tokenizer: Tokenizer) -> None:
        """Keep the model and tokenizer; weights are not copied."""
        self.model, self.tokenizer = model, tokenizer
        self.stop_tokens = frozenset(
            {tokenizer.encode_special("<|assistant_end|>"), tokenizer.bos_id}
        )

    def generate(
        self,
        tokens: list[int],
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Stream num_samples answers to one prompt, a column of tokens a step.

        Args:
            tokens: the prompt's ids.
            num_samples: answers; each is drawn on its own, from the first token on.
            max_tokens: longest answer; None goes on to the end of the context.
            temperature: 0 for the most likely token, 1 for the model's own odds.
            top_k: draw only among the k most likely tokens.
            seed: the same seed gives the same answers.

        Yields:
            (tokens, mask), num_samples long each. Mask is 1 for a token that the model chose, 0 for
            one that a tool forced and for a row that has ended. A row's last token may be a stop
            token.

        Raises:
            ValueError: the prompt is empty or leaves no room in the context.
        """
        rows = self._start_rows([tokens], num_samples, max_tokens)
        return self._columns([tokens], rows, temperature, top_k, seed)

    def generate_batch(
        self,
        prompts: list[list[int]],
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 42,
        num_samples: int = 1,
    ) -> list[tuple[list[int], list[int]]]:
        """Answer many prompts of any lengths in one batch.

        Args:
            prompts: one list of ids a prompt.
            max_tokens: longest answer; None goes on to the end of the context.
            temperature: as in `generate`; greedy unless told otherwise.
            top_k: as in `generate`.
            seed: as in `generate`.
            num_samples: answers to each prompt; those of one prompt stand together in the result.

        Returns:
            (tokens, mask) for each answer: without the prompt, and without the stop token.

        Raises:
            ValueError: a prompt is empty or leaves no room in the context.
        """
        rows = self.rollouts(prompts, max_tokens, temperature, top_k, seed, num_samples)
        return [(row.tokens, row.mask) for row in rows]

    def rollouts(
        self,
        prompts: list[list[int]],
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
        num_samples: int = 1,
    ) -> list[Row]:
        """Answer as `generate_batch`, and return each answer's whole row: log-probabilities, and how it ended."""
        if not prompts:
            return []
        rows = self._start_rows(prompts, num_samples, max_tokens)
        for _ in self._columns(prompts, rows, temperature, top_k, seed):
            pass
        return rows

    def _start_rows(
        self, prompts: list[list[int]], num_samples: int, max_tokens: int | None
    ) -> list[Row]:
        """Check the prompts and give every answer its budget of tokens."""
        limit = self.model.config.sequence_len
        if num_samples < 1 or (max_tokens is not None and max_tokens < 1):
            raise ValueError(
                f"num_samples {num_samples} and max_tokens {max_tokens}: need at least 1"
            )
        for i, prompt in enumerate(prompts):
            if not 1 <= len(prompt) < limit:
                raise ValueError(
                    f"prompt {i} has {len(prompt)} tokens, the context has {limit}: it needs at "
                    "least one token and room for one more; shorten it"
                )
        rooms = [limit - len(prompt) for prompt in prompts for _ in range(num_samples)]
        return [Row(self.tokenizer, min(room, max_tokens or room)) for room in rooms]

    # Each step is decorated: around the generator below, the mode could leak into the caller.
    @torch.inference_mode()
    def _prefill(
        self, prompts: list[list[int]], num_samples: int, max_len: int
    ) -> tuple[Tensor, KVCache]:
        """Read all prompts in one pass; return the logits (B, V) that follow, and the cache."""
        weight = next(self.model.parameters())
        lengths = [len(prompt) for prompt in prompts]
        padded = [p + [self.tokenizer.bos_id] * (max(lengths) - len(p)) for p in prompts]
        cache = KVCache(self.model.config, len(prompts), max_len, weight.device, weight.dtype)
        cache.set_lengths(lengths)
        logits = self.model(torch.tensor(padded, device=weight.device), kv_cache=cache)  # (B, T, V)
        rows = torch.arange(len(prompts), device=weight.device)
        logits = logits[rows, cache.lengths - 1]  # (B, V)
        if num_samples > 1:
            logits, cache = logits.repeat_interleave(num_samples, 0), cache.expand(num_samples)
        return logits, cache

    @torch.inference_mode()
    def _decode(self, tokens: list[int], cache: KVCache) -> Float[Tensor, "B V"]:
        """Feed one token a row; return the logits for the next."""
        return self.model(
            torch.tensor(tokens, device=cache.lengths.device)[:, None], kv_cache=cache
        )[:, -1]

    def _columns(
        self,
        prompts: list[list[int]],
        rows: list[Row],
        temperature: float,
        top_k: int | None,
        seed: int,
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Prefill, then decode until every row has ended; yield each step's tokens and mask."""
        generator = torch.Generator().manual_seed(seed)
        num_samples = len(rows) // len(prompts)
        max_len = max(len(prompts[i // num_samples]) + row.budget for i, row in enumerate(rows))
        logits, cache = self._prefill(prompts, num_samples, max_len)
        held = list(range(len(rows)))  # the rows that the cache holds
        while True:
            # A number for every row, ended or not: no row's luck depends on its neighbours.
            uniforms = torch.rand(len(rows), generator=generator)[held]
            drawn = sample(logits, uniforms, temperature, top_k)
            odds = sampled_logprobs(logits, drawn, temperature, top_k)
            sampled = dict(zip(held, zip(drawn.tolist(), odds.tolist())))
            column = []
            for i, row in enumerate(rows):
                token, logprob = sampled.get(i, (row.last, 0.0))
                column.append(row.accept(token, self.stop_tokens, logprob))
            yield [token for token, _ in column], [mask for _, mask in column]
            active = [i for i in held if not rows[i].finished]
            if not active:
                return
            # Dropping copies the cache: wait until half has ended, or ended rows need room.
            if len(active) <= len(held) // 2 or cache.longest == cache.max_len:
                cache, held = cache.select([held.index(i) for i in active]), active
            logits = self._decode([rows[i].last for i in held], cache)
