# Generated from chapters/18_rl.py by `course build`; edit that file.
"""The sampling half of reinforcement learning: choose questions, ask, grade."""

import time
from dataclasses import asdict, dataclass

import torch

from nanochat_lib.common import local_generator
from nanochat_lib.evaluation.chat import response_text
from nanochat_lib.inference.engine import Engine
from nanochat_lib.inference.packed import PackedGPT
from nanochat_lib.model.gpt import GPT
from nanochat_lib.tasks.base import Task
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.optim import OptimConfig
from nanochat_lib.training.policy import Loss, group_advantages
from nanochat_lib.training.rollouts import Answer, ask

__all__ = ["RLConfig", "Sampler"]


@dataclass(frozen=True)
class RLConfig:
    """Choose how much to ask, how to learn from it, and what to hold on to.

    A step asks `questions` questions `samples` times each, again up to `refills` times where too few groups had
    spread, and makes `updates` updates. Answers are `staleness` steps old when they are learned from. `replay`
    weighs `replay_rows` rows of conversations in each update, `kl` the distance to the model one started from.
    `blend` is how much of the way from the old weights to the new ones the chosen model goes. Learning rates are
    those of `optim` times `lr_scale`; they fall to 0 over the last `cooldown_fraction` of the steps.
    `drop_after`: a question that was solved in every try so often is not asked again.
    """

    steps: int = 60
    questions: int = 16
    samples: int = 8
    refills: int = 0
    max_tokens: int = 96
    temperature: float = 1.0
    top_k: int | None = None
    loss: Loss = "reinforce"
    updates: int = 1
    clip_low: float = 0.2
    clip_high: float = 0.28
    kl: float = 0.0
    replay: float = 1.0
    replay_rows: int = 24
    staleness: int = 0
    blend: float = 1.0
    mask_truncated: bool = True
    drop_after: int = 2
    sequence_len: int = 256
    max_rows: int = 64
    optim: OptimConfig = OptimConfig(embedding_lr=0.03, head_lr=0.002)
    lr_scale: float = 0.3
    cooldown_fraction: float = 0.5
    eval_every: int = 20
    seed: int = 0
    save_seconds: float = 30.0

    def __post_init__(self) -> None:
        counts = ("steps", "questions", "samples", "updates", "sequence_len", "max_rows")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("kl", "replay", "clip_low", "clip_high", "lr_scale", "refills", "staleness"):
            if not getattr(self, name) >= 0:  # so written, NaN fails too
                raise ValueError(f"{name}={getattr(self, name)}: must be 0 or more")
        if not 0 < self.blend <= 1:
            raise ValueError(f"blend={self.blend}: must be above 0 and at most 1")
        if self.samples < 2:
            raise ValueError("samples=1: a single try has nothing to be compared with")


class Sampler:
    """Ask a task's questions and grade the answers, one numbered batch after another.

    Args:
        config: how many questions, tries, and how to draw.
        model: answers; it may learn in between.
        tokenizer: the model's.
        task: its `reward` grades.
    """

    def __init__(self, config: RLConfig, model: GPT, tokenizer: Tokenizer, task: Task):
        self.config, self.model, self.task = config, model, task
        self.engine = Engine(model, tokenizer)
        self.asked, self.solved = 0, {}  # questions drawn; question -> times all tries were right
        self.waiting: list[tuple[list[Answer], dict]] = []

    def start(self, number: int) -> None:
        """Draw and grade a batch with the weights of this moment, and let it wait."""
        self.waiting.append(self.collect(number))

    def finish(self) -> tuple[list[Answer], dict]:
        """Hand over the batch that has waited longest."""
        return self.waiting.pop(0)

    def close(self) -> None:
        """Let go of what a sampler may hold; this one holds nothing."""

    def state_dict(self) -> dict:
        """Write what is needed to go on, waiting answers among it, as JSON can hold it."""
        waiting = [[[asdict(a) for a in answers], facts] for answers, facts in self.waiting]
        return {"asked": self.asked, "solved": self.solved, "waiting": waiting}

    def load_state_dict(self, state: dict) -> None:
        """Go on from what `state_dict` wrote."""
        self.asked, self.solved = state["asked"], dict(state["solved"])
        self.waiting = [
            ([Answer(**a) for a in answers], facts) for answers, facts in state["waiting"]
        ]

    def next_questions(self, count: int) -> list[int]:
        """Draw the next questions of a shuffled pass, without those that are always solved."""
        n, chosen = len(self.task), []
        bored = {int(i) for i, times in self.solved.items() if times >= self.config.drop_after}
        if len(bored) >= n:  # all are: start over
            self.solved, bored = {}, set()
        while len(chosen) < count:
            epoch, place = divmod(self.asked, n)
            seed = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
            order = torch.randperm(n, generator=seed)
            rest = order[place : place + count].tolist()
            for index in rest[: count - len(chosen)]:
                self.asked += 1
                if index not in bored:
                    chosen.append(index)
        return chosen

    def try_questions(self, number: int, attempt: int) -> tuple[list[list[Answer]], float]:
        """Ask and grade some questions for a batch; return the groups and the seconds that grading took."""
        config, tokenizer = self.config, self.engine.tokenizer
        indices = self.next_questions(config.questions)
        conversations = [self.task[i] for i in indices]
        seed = local_generator("rl", config.seed, number, attempt).getrandbits(48)
        how = (config.samples, config.max_tokens, config.temperature, config.top_k, seed)
        groups = ask(self.engine, conversations, *how)
        start = time.perf_counter()
        for index, conversation, group in zip(indices, conversations, groups):
            for answer in group:
                response = response_text(tokenizer, answer.tokens)
                if answer.stopped:
                    answer.reward = self.task.reward(conversation, response)
            rewards = [answer.reward for answer in group]
            for answer, advantage in zip(group, group_advantages(rewards, config.loss)):
                answer.advantage = advantage
            name = str(index)
            perfect = min(rewards) == max(rewards) and rewards[0] > 0
            if perfect:
                self.solved[name] = self.solved.get(name, 0) + 1
            else:
                self.solved.pop(name, None)
        return groups, time.perf_counter() - start

    def collect(self, number: int) -> tuple[list[Answer], dict]:
        """Ask until enough groups have spread; return what is to be learned from, and what was seen."""
        config, start = self.config, time.perf_counter()
        self.engine.model = PackedGPT(
            self.model, self.model.cos.dtype
        )  # the weights of this moment
        seen, mixed, grading = [], [], 0.0
        for attempt in range(config.refills + 1):
            groups, seconds = self.try_questions(number, attempt)
            seen, grading = seen + groups, grading + seconds
            mixed += [g for g in groups if max(a.reward for a in g) > min(a.reward for a in g)]
            if len(mixed) >= config.questions:
                break
        answers = [answer for group in seen for answer in group]
        kept = [a for group in mixed[: config.questions] for a in group]
        if config.mask_truncated:
            kept = [a for a in kept if a.stopped]
        n, rewards = len(answers), [a.reward for a in answers]
        mean = sum(rewards) / n
        facts = {
            "reward": mean,
            "reward_std": (sum((r - mean) ** 2 for r in rewards) / n) ** 0.5,
            "mixed": len(mixed) / len(seen),
            "solved": sum(min(a.reward for a in g) > 0 for g in seen) / len(seen),
            "tries": n,
            "length": sum(len(a.tokens) for a in answers) / n,
            "truncated": sum(not a.stopped for a in answers) / n,
            "seconds_reward": grading,
            "seconds_rollout": time.perf_counter() - start - grading,
        }
        return kept, facts
