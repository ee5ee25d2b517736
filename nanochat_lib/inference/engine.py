# Generated from chapters/13_batching.py by `course build`; edit that file.
"""The engine: many prompts at once, or one as a stream."""

from collections.abc import Iterator

from nanochat_lib.inference.row import Request, Row
from nanochat_lib.inference.scheduler import Scheduler

__all__ = ["Engine"]


class Engine(Scheduler):
    """Generate from a model: many prompts at once, streaming, with the calculator as a tool."""

    def generate(
        self,
        tokens: list[int],
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Stream num_samples answers to one prompt, a column of tokens at a time.

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
        rows = self._submit_all([tokens], max_tokens, temperature, top_k, seed, num_samples)
        return self._columns(rows)

    def _columns(self, rows: list[Row]) -> Iterator[tuple[list[int], list[int]]]:
        """Step until every row has ended; yield the next column when each row has it or has ended."""
        n = 0
        try:
            while n < max(len(row.logprobs) for row in rows) or not all(r.finished for r in rows):
                while not all(row.finished or len(row.logprobs) > n for row in rows):
                    self.step()
                there = [n < len(row.tokens) for row in rows]
                mask = [
                    row.mask[n] if more else int(n < len(row.logprobs))
                    for row, more in zip(rows, there)
                ]
                yield [row.tokens[n] if more else row.last for row, more in zip(rows, there)], mask
                n += 1
        finally:
            for row in rows:
                self.cancel(row)

    def generate_batch(
        self,
        prompts: list[list[int]],
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 42,
        num_samples: int = 1,
    ) -> list[tuple[list[int], list[int]]]:
        """Answer many prompts of any lengths.

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
        rows = self._submit_all(prompts, max_tokens, temperature, top_k, seed, num_samples)
        try:
            while not all(row.finished for row in rows):
                self.step()
        finally:
            for row in rows:
                self.cancel(row)
        return rows

    def _submit_all(
        self,
        prompts: list[list[int]],
        max_tokens: int | None,
        temperature: float,
        top_k: int | None,
        seed: int,
        num_samples: int,
    ) -> list[Row]:
        """Submit every prompt num_samples times, each with a seed of its own; all of them or none."""
        if num_samples < 1:
            raise ValueError(f"num_samples {num_samples}: need at least 1")
        rows: list[Row] = []
        try:
            for i, prompt in enumerate(prompts):
                for j in range(num_samples):
                    dials = (max_tokens, temperature, top_k)
                    rows.append(self.submit(Request(prompt, *dials, seed=f"{seed} {i} {j}")))
        except ValueError as error:
            for row in rows:
                self.cancel(row)
            raise ValueError(f"prompt {i}: {error}") from error
        return rows
