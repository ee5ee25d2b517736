# Generated from chapters/18_rl.py by `course build`; edit that file.
"""One step of reinforcement learning: ask, grade, learn, note down."""

import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from nanochat_lib.common import local_generator
from nanochat_lib.model.gpt import GPT
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.finetune import ConversationLoader
from nanochat_lib.training.optim import build_optimizers
from nanochat_lib.training.policy import kl_terms, policy_terms, token_weights
from nanochat_lib.training.rl_sampler import RLConfig, Sampler
from nanochat_lib.training.rollouts import Answer, PackedAnswers, chosen_logprobs, pack_answers

__all__ = ["RLState", "RLTrainer"]


@dataclass
class RLState:
    """Hold what a run must remember besides weights and optimizers."""

    step: int = 0
    started: int = 0  # batches that the sampler was asked for
    history: list[dict] = field(default_factory=list)  # one entry a step
    evals: list[list] = field(default_factory=list)  # pairs [step, value]
    seconds: float = 0.0


class RLTrainer:
    """Do the steps of one run; `train_rl` decides when to evaluate, to save and to stop."""

    def __init__(
        self,
        config: RLConfig,
        model: GPT,
        tokenizer: Tokenizer,
        sampler: Sampler,
        replay: ConversationLoader | None = None,
        reference: GPT | None = None,
    ):
        """Keep all parts; `replay` yields fine-tuning batches, `reference` is the model to stay near."""
        if config.replay > 0 and replay is None:
            raise ValueError(
                f"replay={config.replay} needs conversations: give them, or set it to 0"
            )
        model.first_token = tokenizer.bos_id
        if reference is not None:
            reference.first_token = tokenizer.bos_id
        self.config, self.model, self.tokenizer, self.sampler = config, model, tokenizer, sampler
        self.replay, self.reference = replay, reference
        names = ("matrix_lr", "embedding_lr", "head_lr", "scalar_lr")
        rates = {name: getattr(config.optim, name) * config.lr_scale for name in names}
        self.optimizers = build_optimizers(model, replace(config.optim, **rates))
        self.state = RLState()

    def learn(self, answers: list[Answer]) -> dict:
        """Make one update from some answers and a batch of replay; return what was measured."""
        config, model, lengths = self.config, self.model, [sum(a.mask) for a in answers]
        weights = torch.tensor(token_weights(lengths, config.loss, config.max_tokens))
        seen = {"entropy": 0.0, "clipped": 0.0, "kl": 0.0, "gap": 0.0}
        first = self.tokenizer.bos_id
        for packed in pack_answers(answers, config.sequence_len, config.max_rows, first):
            packed = PackedAnswers(*(part.to(model.cos.device) for part in packed))
            found = self.backward(packed, answers, weights.to(model.cos.device))
            seen["gap"] = max(seen["gap"], float(found.pop("gap").max()))
            for name, values in found.items():
                seen[name] += float(values.sum()) / sum(lengths)
        if self.replay is not None and config.replay > 0:
            inputs, targets = (part.to(model.cos.device) for part in next(self.replay))
            loss = model(inputs, targets)
            (config.replay * loss).backward()
            seen["replay_loss"] = float(loss.detach())
        self.update()
        return seen

    def backward(
        self, packed: PackedAnswers, answers: list[Answer], weights: Tensor
    ) -> dict[str, Tensor]:
        """Add one batch of answers to the gradient; return what was measured at each chosen token."""
        config, number = self.config, packed.answer
        how = (config.temperature, config.top_k)
        new, entropy = chosen_logprobs(self.model, packed, *how)
        advantage = torch.tensor([a.advantage for a in answers], device=new.device)[number]
        bounds = (config.clip_low, config.clip_high)
        terms, clipped = policy_terms(new, packed.logprob, advantage, number, config.loss, *bounds)
        distance = torch.zeros_like(new)
        if self.reference is not None:
            with torch.no_grad():
                reference, _ = chosen_logprobs(self.reference, packed, *how)
            distance = kl_terms(new, reference)
        (-(weights[number] * (terms - config.kl * distance)).sum()).backward()
        gap = (new - packed.logprob).abs()
        found = {"entropy": entropy, "clipped": clipped, "kl": distance, "gap": gap}
        return {name: values.detach() for name, values in found.items()}

    def update(self) -> None:
        """Let the optimizers make a step, at the learning rate of this moment."""
        config = self.config
        left = (config.steps - self.state.step) / max(1.0, config.cooldown_fraction * config.steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * min(1.0, left)
            optimizer.step()
        self.model.zero_grad(set_to_none=True)

    def step(self) -> dict:
        """Ask, grade, learn; note in the history what happened, and return that note."""
        config, start = self.config, time.perf_counter()
        while self.state.started <= self.state.step + config.staleness:
            self.sampler.start(self.state.started)
            self.state.started += 1
        answers, facts = self.sampler.finish()
        asked = time.perf_counter()
        order = local_generator("updates", config.seed, self.state.step)
        order.shuffle(answers)
        notes = []
        for part in range(config.updates):
            if answers[part :: config.updates]:
                notes.append(self.learn(answers[part :: config.updates]))
        for name in notes[0] if notes else ():
            facts[name] = sum(note[name] for note in notes) / len(notes)
        if notes:
            facts["gap"] = notes[0]["gap"]  # later updates differ from the sampler on purpose
        facts["seconds_update"] = time.perf_counter() - asked
        self.state.step += 1
        self.state.seconds += time.perf_counter() - start
        self.state.history.append({"step": self.state.step, **facts})
        return facts
