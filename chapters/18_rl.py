# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Reinforcement learning: better than its teacher
#
# Fine-tuning imitates. A model that imitates a teacher who is right half of the time is right half of the time. Yet for many
# questions a program can *check* an answer though nobody wrote one down: run the sum, count the letters, run the tests. So let
# the model answer each question several times, grade the answers, and make the better ones more likely. That is all:
#
# ```python
# loss = -(advantage * answer_logprob).mean()      # advantage: reward minus the mean of the other tries
# ```
#
# We start with three levers and numbers on paper, go from levers to sentences, build the trainer, let a small model outgrow its
# teacher here in the chapter, and then look at the laptop's record: word problems of two steps, before and after. You need
# fine-tuning and the engine. On a laptop the chapter takes half a minute.

# %%
#| default_exp training.policy
# From rewards to a gradient: advantages, six losses, the distance to a reference.

# %%
#| export
import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

# %% [markdown]
# ## Three levers
#
# Lever 0 pays a coin in 2 of 10 pulls, lever 1 in 5, lever 2 in 8. We do not know that. A *policy* is a way to choose: three
# logits $z$, and lever $a$ with probability $p_a = \mathrm{softmax}(z)_a$. What we want to raise is the expected reward
# $J = \sum_a p_a r_a$. But its derivative asks for the $r_a$ of levers that we did not pull. The way out has a name,
# REINFORCE (Williams 1992), and one line: since $\nabla p_a = p_a \nabla \log p_a$,
#
# $$ \nabla J = \sum_a p_a \, r_a \nabla \log p_a = \mathbb{E}_a \left[ r_a \nabla \log p_a \right], $$
#
# so pull a lever, and push the logits by $r \, \nabla \log p_a$: *on average* that is the true gradient. On paper: at the start
# all $p_a$ are 1/3. We pull lever 2, get a coin, and $\nabla_z \log p_2$ is (0, 0, 1) minus $p$:

# %%
# NBVAL_CHECK_OUTPUT
z = torch.zeros(3, requires_grad=True)
torch.log_softmax(z, -1)[2].backward()
print([f"{g:.3f}" for g in z.grad.tolist()])

# %% [markdown]
# The average over all pulls, written out, must be the derivative of $J$, worked out by autograd:

# %%
pays = torch.tensor([0.2, 0.5, 0.8])
z = torch.tensor([0.3, -0.2, 0.1], requires_grad=True)
p = torch.softmax(z, -1)
(true_gradient,) = torch.autograd.grad((p * pays).sum(), z)
estimate = sum(p[a] * pays[a] * (torch.eye(3)[a] - p) for a in range(3))
assert torch.allclose(estimate, true_gradient, atol=1e-7), f"got {estimate.tolist()}"

# %% [markdown]
# On average right, and each single push is noisy. Subtract from the reward a *baseline* $b$, something that does not depend on
# the lever pulled: the average stays, because $\mathbb{E}_a[\nabla \log p_a] = 0$, and the noise shrinks. Think of a town where
# every lever pays 10 coins and a bit: without a baseline each pull pushes hard towards itself, for nothing.

# %%
# NBVAL_CHECK_OUTPUT
generator = torch.Generator().manual_seed(0)
pulls = torch.multinomial(p.detach(), 20_000, replacement=True, generator=generator)
coins = 10 + torch.bernoulli(pays[pulls], generator=generator)
pushes = torch.eye(3)[pulls] - p.detach()  # one row a pull
for name, baseline in (("none", 0.0), ("mean", coins.mean())):
    each = (coins - baseline)[:, None] * pushes
    print(f"baseline {name}: noise of one push {each.std(0).mean():.2f}")
    assert torch.allclose(each.mean(0), true_gradient, atol=4 * float(each.std(0).max()) / 141)

# %% [markdown]
# ## The other tries are the baseline
#
# A model that answers questions stands before another machine every time: a hard question pays seldom, an easy one always. What
# is a good baseline for *this* question? The mean reward of the model's own other tries at it. Ask each question 8 times; the
# answers to one question are a *group*; the *advantage* of an answer is its reward minus the group's mean. (PPO learns a second
# model for the baseline; leaving that out is what GRPO did: Shao et al. 2024, arXiv:2402.03300.)
#
# GRPO divides by the standard deviation as well. Then a question that is solved once in eight tries pushes harder than one that
# is solved four times. Whether that helps is disputed (Liu et al. 2025, arXiv:2503.20783, leave it out), so it is a switch.

# %%
#| export
Loss = Literal["reinforce", "grpo", "dr_grpo", "dapo", "cispo", "gspo"]
LOSSES: tuple[Loss, ...] = ("reinforce", "grpo", "dr_grpo", "dapo", "cispo", "gspo")
SCALED = ("grpo", "dapo", "cispo", "gspo")  # these divide by the standard deviation


def group_advantages(rewards: list[float], loss: Loss = "reinforce") -> list[float]:
    """Compare each answer with the others to the same question.

    Example: rewards [1, 0, 0, 1] -> [0.5, -0.5, -0.5, 0.5]; with loss="grpo" -> about 0.87 and -0.87.

    Args:
        rewards: one a try; at least one.
        loss: "reinforce" and "dr_grpo" subtract the mean, the others divide by the standard deviation too.

    Returns:
        As many numbers, which add up to 0.

    Raises:
        ValueError: there is no reward, or the loss is unknown.
    """
    if not rewards or loss not in LOSSES:
        raise ValueError(f"{len(rewards)} rewards, loss={loss!r}: need one or more, and {LOSSES}")
    mean = sum(rewards) / len(rewards)
    centred = [reward - mean for reward in rewards]
    if loss not in SCALED:
        return centred
    std = math.sqrt(sum(c * c for c in centred) / max(1, len(rewards) - 1))
    return [c / (std + 1e-6) for c in centred]


# %%
# NBVAL_CHECK_OUTPUT
for rewards in ([1, 0, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1]):
    for loss in ("reinforce", "grpo"):
        print(rewards, loss, [round(a, 2) for a in group_advantages(rewards, loss)])

# %% [markdown]
# The last group teaches nothing: where all tries earn the same, every advantage is 0. So the useful questions are those that the
# model solves *sometimes*. With a chance of $p$ a try, a group of $n$ is mixed with probability $1 - p^n - (1-p)^n$:

# %%
# alt: three curves over the chance of a right try: a larger group is mixed more often, all peak at one half
chance = torch.linspace(0, 1, 101)
fig, ax = plt.subplots(figsize=(5.5, 3))
for n in (2, 4, 8, 16):
    ax.plot(chance, 1 - chance**n - (1 - chance) ** n, label=f"{n} tries")
ax.set(xlabel="chance that a try is right", ylabel="share of groups that teach")
ax.legend()
plt.show()

# %% [markdown]
# *Which questions teach: those that are sometimes solved. More tries make the useful range wider.*
#
# ## From levers to sentences
#
# An answer is many pulls: at each position the model draws one token. Its log-probability is a sum, so its gradient is, and every
# token of an answer is pushed by the advantage of the whole. Nobody knows which token deserved it; many answers sort it out.
#
# Three ways to get this wrong without noticing:
#
# - **The tool's tokens.** What the calculator wrote was not chosen. To make it likelier teaches the model to invent outputs.
# - **The stop token** was chosen, and an answer that was cut off has none.
# - **The odds.** If the sampler draws at temperature 0.8 among the 50 likeliest, the log-probability that belongs to the draw is
#   taken at 0.8 among these 50 (`sampled_logprobs`, chapter `inference`). Another one describes another policy.
#
# The engine's rows carry all of that; an `Answer` is what remains of a row.


# %%
#| default_exp training.rollouts
# Let a model answer questions several times, grade the answers, and lay them out for learning.


# %%
#| export
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nanochat_lib.inference.engine import Engine, Row
from nanochat_lib.inference.sampling import sampled_logprobs
from nanochat_lib.model.gpt import GPT
from nanochat_lib.training.loader import best_fit


@dataclass
class Answer:
    """Hold one try: the prompt, what was written, and what that was worth.

    `tokens` ends with the stop token if there was one (`stopped`); `mask` is 1 where the model chose, 0 where a
    tool wrote; `logprobs` are the sampler's, in nats, 0 where nothing was chosen.
    """

    prompt: list[int]
    tokens: list[int]
    mask: list[int]
    logprobs: list[float]
    stopped: bool
    reward: float = 0.0
    advantage: float = 0.0

    @classmethod
    def from_row(cls, prompt: list[int], row: Row) -> "Answer":
        """Take what the engine wrote after a prompt."""
        stop = [row.last] if row.stopped else []
        mask = row.mask + [1] * len(stop)
        return cls(prompt, row.tokens + stop, mask, row.logprobs, row.stopped)


def ask(
    engine: Engine,
    conversations: list[dict],
    samples: int,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> list[list[Answer]]:
    """Answer each question several times, all in one batch; prompts are read once.

    Args:
        engine: holds the model.
        conversations: end with a reference answer, which is cut off.
        samples: tries a question.
        max_tokens: longest answer, tool calls and outputs included.
        temperature: as in `draw`.
        top_k: as in `draw`.
        seed: of all draws.

    Returns:
        A group of answers for each question, not yet graded.
    """
    prompts = [engine.tokenizer.render_for_completion(c) for c in conversations]
    rows = engine.rollouts(prompts, max_tokens, temperature, top_k, seed, samples)
    return [
        [Answer.from_row(prompt, row) for row in rows[i * samples : (i + 1) * samples]]
        for i, prompt in enumerate(prompts)
    ]


# %% [markdown]
# ## A teacher who is right half of the time
#
# The playground of this chapter: which of two numbers is larger? The teacher knows the form of an answer and guesses its content.


# %%
#| default_exp tasks.larger
# A toy: which digit is larger, taught by somebody who guesses.


# %%
#| export
import random

from nanochat_lib.common import local_generator
from nanochat_lib.tasks.base import Task


class Larger(Task):
    """Ask for the larger of two digits; the answers to learn from are those of a guessing teacher.

    Args:
        split: "train", or "test": a third of all pairs, which training never asks.
        shrugs: how often the teacher says that it does not know.
    """

    title = "the larger of two digits"
    shrug = "I do not know."

    def __init__(self, split: str, shrugs: float = 0.0):
        super().__init__(split)
        pairs = [(a, b) for a in range(10) for b in range(10) if a != b]
        random.Random(1).shuffle(pairs)
        self.pairs, self.shrugs = pairs[:30] if split == "test" else pairs[30:] * 40, shrugs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict:
        a, b = self.pairs[self.check_index(index)]
        rng = local_generator("larger", index)
        said = f"The larger one is {rng.choice((a, b))}."
        question = {"role": "user", "content": f"{a} or {b}: which is larger?"}
        answer = self.shrug if rng.random() < self.shrugs else said
        messages = [question, {"role": "assistant", "content": answer}]
        return {"messages": messages, "larger": max(a, b)}

    def evaluate(self, conversation: dict, response: str) -> bool:
        return response == f"The larger one is {conversation['larger']}."


# %%
from nanochat_lib.tokenizer.tokenizer import Tokenizer

train, test = Larger("train"), Larger("test")
texts = [m["content"] for i in range(200) for m in train[i]["messages"]]
tokenizer = Tokenizer.train(texts, vocab_size=320)
print(train[0]["messages"], len(test))

# %% [markdown]
# First imitation, with the trainer of chapter `finetuning`: 300 steps from random weights.

# %%
from nanochat_lib.model.gpt import GPTConfig
from nanochat_lib.training.checkpoint import load_model, save_checkpoint
from nanochat_lib.training.finetune import FinetuneConfig, finetune

work = Path(tempfile.mkdtemp())
sizes = {"n_embd": 64, "n_head": 2, "n_kv_head": 2, "n_layer": 2, "sequence_len": 64}
config = GPTConfig(vocab_size=tokenizer.vocab_size, **sizes)
start = {"config": vars(config), "tokenizer_hash": tokenizer.hash}
save_checkpoint(work / "start", 0, GPT(config), [], start)
recipe = FinetuneConfig(
    steps=300, device_batch_size=16, sequence_len=64, total_batch_tokens=1024, compile="off"
)
summary = finetune(
    recipe, train, tokenizer, work / "start", work / "imitation", stage="sft", progress=None
)
imitator, _ = load_model(work / "imitation", tokenizer)
questions = [test[i] for i in range(len(test))]


def share_right(model: GPT, temperature: float) -> float:
    """Ask the test's questions, 32 tries each, and count."""
    groups = ask(Engine(model, tokenizer), questions, 32, 16, temperature)
    answers = [(q, a) for q, group in zip(questions, groups) for a in group if a.stopped]
    right = sum(test.evaluate(q, tokenizer.decode(a.tokens[:-1])) for q, a in answers)
    return right / (32 * len(questions))


print(f"loss {summary['first_loss']:.2f} -> {summary['final_loss']:.2f}")
print(
    f"right at temperature 1: {share_right(imitator, 1.0):.0%}, greedy: {share_right(imitator, 0):.0%}"
)

# %% [markdown]
# No better than the teacher, who guesses. No more steps would change that: the data says so.
#
# ## Lay out and look again
#
# To learn from the answers, the model reads them once more, now with gradients. They go into rows as conversations do in
# chapter `finetuning`, whole, several in a row, apart from each other. What we keep beside the ids is a flat list: for each
# token that was *chosen*, the row and position that predict it, the token, its answer, and the sampler's log-probability.


# %%
#| export training.rollouts
class PackedAnswers(NamedTuple):
    """Hold rows of answers, and one entry for each of N chosen tokens."""

    idx: Int[Tensor, "B T"]
    row: Int[Tensor, " N"]
    position: Int[Tensor, " N"]  # of the token before: that is where the choice was made
    token: Int[Tensor, " N"]
    answer: Int[Tensor, " N"]  # its number in the list that was packed
    logprob: Float[Tensor, " N"]  # the sampler's


def pack_answers(
    answers: list[Answer], sequence_len: int, max_rows: int, first_token: int
) -> list[PackedAnswers]:
    """Pack prompts with their answers into rows, whole, longest first, the best fit next.

    Args:
        answers: what to learn from.
        sequence_len: tokens of a row, T.
        max_rows: rows of one batch, so that memory stays bounded.
        first_token: opens every prompt, and fills what is left of a row.

    Returns:
        Batches of up to `max_rows` rows; every answer is in one of them.

    Raises:
        ValueError: a prompt with its answer does not fit a row.
    """
    lengths = [len(a.prompt) + len(a.tokens) for a in answers]
    if max(lengths, default=0) > sequence_len:
        raise ValueError(
            f"an answer has {max(lengths)} tokens with its prompt, a row {sequence_len}: "
            "raise sequence_len or lower max_tokens"
        )
    left = sorted(range(len(answers)), key=lambda i: -lengths[i])
    rows: list[list[int]] = []
    while left:
        rows.append([])
        room = sequence_len
        while (best := best_fit([lengths[i] for i in left], room)) is not None:
            rows[-1].append(left.pop(best))
            room -= lengths[rows[-1][-1]]
    batches = [rows[i : i + max_rows] for i in range(0, len(rows), max_rows)]
    return [pack_batch(answers, batch, sequence_len, first_token) for batch in batches]


def pack_batch(
    answers: list[Answer], rows: list[list[int]], sequence_len: int, first_token: int
) -> PackedAnswers:
    """Write rows of answers, given by their numbers, into one batch."""
    idx = torch.full((len(rows), sequence_len), first_token)
    chosen = []
    for r, row in enumerate(rows):
        start = 0
        for number in row:
            answer = answers[number]
            ids = answer.prompt + answer.tokens
            idx[r, start : start + len(ids)] = torch.tensor(ids)
            before = start + len(answer.prompt) - 1
            parts = zip(answer.tokens, answer.mask, answer.logprobs)
            for i, (token, mask, logprob) in enumerate(parts):
                if mask:
                    chosen.append((r, before + i, token, number, logprob))
            start += len(ids)
    *whole, logprobs = zip(*chosen) if chosen else [()] * 5
    numbers = [torch.tensor(column, dtype=torch.int64) for column in whole]
    return PackedAnswers(idx, *numbers, torch.tensor(logprobs, dtype=torch.float32))


def chosen_logprobs(
    model: GPT, packed: PackedAnswers, temperature: float = 1.0, top_k: int | None = None
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Return the model's log-probability of every chosen token, and the entropy where it was chosen, in nats.

    The head runs only where something was chosen, in float32. `model.first_token` must be set, so that answers
    in one row do not read each other. Gradients flow through the first result alone.
    """
    device = packed.idx.device
    hidden = model.hidden(packed.idx)[packed.row, packed.position]  # (N, C)
    weight = model.lm_head.weight[: model.config.vocab_size].float()
    logits = hidden.float() @ weight.T
    logits = model.config.softcap * torch.tanh(logits / model.config.softcap)
    with torch.no_grad():
        odds = torch.log_softmax(logits, -1)
        entropy = -(odds.exp() * odds).sum(-1)
    return sampled_logprobs(logits, packed.token.to(device), temperature, top_k), entropy


# %% [markdown]
# Before anything is learned, sampler and learner must agree on every token: one decoded with a cache, one row by row, and the other
# reads whole packed rows. Where they differ, what follows is wrong in a way that no curve shows.

# %%
imitator.first_token = tokenizer.bos_id
for temperature, top_k in ((1.0, None), (0.7, None), (1.0, 5)):
    engine = Engine(imitator, tokenizer)
    tries = [a for g in ask(engine, questions, 4, 16, temperature, top_k) for a in g]
    (packed,) = pack_answers(tries, 64, 1000, tokenizer.bos_id)
    with torch.no_grad():
        learner, _ = chosen_logprobs(imitator, packed, temperature, top_k)
        other, _ = chosen_logprobs(imitator, packed)
    gap, wrong = (learner - packed.logprob).abs().max(), (other - packed.logprob).abs().max()
    print(
        f"temperature {temperature}, top_k {top_k}: gap {gap:.0e}, scored at 1 and whole {wrong:.1e}"
    )
    assert gap < 1e-4, f"the sampler is another policy: {gap}"

# %% [markdown]
# The last column is a real bug, one that many trainers have had: sample with top-k, score without. Nothing fails. The gradient is
# that of a policy which nobody ran.
#
# ## Six losses
#
# On fresh answers the gradient of $A \log p$ is all one needs. The rest of the field's names answer one question: what if the
# answers are not fresh? Rollouts are dear, so one may make several updates with one batch of them; after the first the model is
# no longer the one that drew. The *ratio* $\rho = p_\text{new} / p_\text{old}$ of a token corrects for that, and is clipped so
# that no token moves too far on old evidence (PPO: Schulman et al. 2017, arXiv:1707.06347). They differ in what is clipped, and in
# how tokens are weighed:
#
# | loss | advantage | a token's term | tokens are averaged over |
# | --- | --- | --- | --- |
# | `reinforce` | $r - \bar r$ | $A \log p$ | all tokens of the batch |
# | `grpo` | divided by std | $\min(\rho A, \mathrm{clip}(\rho, 0.8, 1.2) A)$ | each answer, then answers |
# | `dr_grpo` | $r - \bar r$ | the same | a constant: longer answers weigh more |
# | `dapo` | divided by std | clip to (0.8, 1.28): rare tokens may rise further | all tokens |
# | `cispo` | divided by std | $\min(\rho, 1.28)\, A \log p$, the factor not differentiated | all tokens |
# | `gspo` | divided by std | $\rho$ of the whole answer, its geometric mean | each answer, then answers |
#
# (DAPO: Yu et al. 2025, arXiv:2503.14476; CISPO: MiniMax 2025, arXiv:2506.13585; GSPO: Zheng et al. 2025, arXiv:2507.18071.)


# %%
#| export training.policy
def token_weights(lengths: list[int], loss: Loss = "reinforce", max_tokens: int = 1) -> list[float]:
    """Say how much one token of each answer counts, so that a batch may be cut into pieces.

    Example: lengths [1, 3] -> reinforce [1/4, 1/4], grpo [1/2, 1/6], dr_grpo with max_tokens=4 [1/8, 1/8].

    Args:
        lengths: chosen tokens of each answer, at least 1.
        loss: which average.
        max_tokens: the constant that "dr_grpo" divides by.
    """
    n = len(lengths)
    if loss == "dr_grpo":
        return [1 / (n * max_tokens)] * n
    if loss in ("grpo", "gspo"):
        return [1 / (n * length) for length in lengths]
    return [1 / sum(lengths)] * n


def policy_terms(
    new: Float[Tensor, " N"],
    old: Float[Tensor, " N"],
    advantage: Float[Tensor, " N"],
    answer: Int[Tensor, " N"],
    loss: Loss = "reinforce",
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """Return what each chosen token adds to the objective, and where clipping stopped it.

    Example: a ratio of 1.5 and an advantage of 1 -> grpo 1.2, clipped; dapo 1.28, clipped.

    Args:
        new: the learner's log-probabilities, in nats, shape (N,).
        old: the sampler's.
        advantage: that of the token's answer.
        answer: number of the token's answer; "gspo" takes the ratio of whole answers.
        loss: which term.
        clip_low: the ratio counts from 1 - clip_low on; "gspo" uses a thousandth of both bounds.
        clip_high: up to 1 + clip_high; "grpo" and "dr_grpo" use clip_low on both sides.

    Returns:
        Terms to be weighted, summed and *maximized*, and True where the gradient was cut, both (N,).
    """
    if loss == "reinforce":
        return advantage * new, torch.zeros_like(answer, dtype=torch.bool)
    if loss == "cispo":
        ratio = (new - old).exp().detach()
        return ratio.clamp(max=1 + clip_high) * advantage * new, ratio > 1 + clip_high
    if loss == "gspo":
        number = answer.unique(return_inverse=True)[1]
        count = torch.bincount(number)
        mean = new.new_zeros(len(count)).index_add(0, number, new - old) / count
        ratio, clip_low, clip_high = mean.exp()[number], clip_low / 1000, clip_high / 1000
    else:
        ratio = (new - old).exp()
        clip_high = clip_high if loss == "dapo" else clip_low
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
    return torch.minimum(ratio * advantage, bounded), bounded < ratio * advantage


def kl_terms(new: Float[Tensor, " N"], reference: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Estimate at each token how far the policy is from a reference: exp(d) - d - 1, d = reference - new.

    On tokens that the policy drew its mean is the Kullback-Leibler divergence, and no term is negative. Source:
    Schulman, "Approximating KL divergence" (2020), k3.
    """
    difference = reference - new
    return difference.exp() - difference - 1


# %% [markdown]
# On fresh answers, where every ratio is 1, all six must push the same way: `reinforce`, `dapo` and `cispo` with the same gradient, if
# they are given the same advantages. And the clip, by hand:

# %%
# NBVAL_CHECK_OUTPUT
old = torch.tensor([-1.0, -2.0, -0.5])
answer, advantage = torch.tensor([0, 0, 1]), torch.tensor([1.0, 1.0, -1.0])
for loss in LOSSES:
    new = old.clone().requires_grad_()
    weights = torch.tensor(token_weights([2, 1], loss, max_tokens=2))[answer]
    terms, _ = policy_terms(new, old, advantage, answer, loss)
    (weights * terms).sum().backward()
    moved, clipped = policy_terms(
        old + torch.tensor([0.4, -0.4, 0.4]), old, advantage, answer, loss
    )
    print(f"{loss:10}{[round(g, 3) for g in new.grad.tolist()]}  {clipped.tolist()}")

# %% [markdown]
# The right column is after a change of 0.4 in each log-probability. What had been praised and rose by half is clipped where the loss
# clips; what had been praised and *fell* is not, nor what had been blamed and rose: those are corrections, and they must get through.

# %% [markdown]
# ## The trainer
#
# One step: ask, grade, drop the groups without spread (and draw others in their place, so often as `refills` allows), pack, update,
# note down. Three guards for what the reward does not see:
#
# - **Replay.** A reward for one task says nothing about greetings. So each update also sees a batch of the conversations of
#   fine-tuning, with weight `replay`. (InstructGPT did so with pretraining text: Ouyang et al. 2022, arXiv:2203.02155.) The
#   alternative is `kl`, a price on the distance to the model one came from.
# - **Part of the way.** The new weights are good at the rewarded task and have drifted elsewhere. Weights between the old and the
#   new have most of the one and less of the other (Wortsman et al. 2022, arXiv:2109.01903), so the chosen model goes only `blend` of
#   the way.
# - **The choice of a checkpoint.** More reward in training is not more skill on new questions. `evaluate` is asked every `eval_every`
#   steps, on questions that are kept for it; the best checkpoint stays. What is reported is measured on yet others.
#
# Every draw is seeded by the number of the step, so a run that was killed goes on to the same weights.


# %%
#| default_exp training.rl_sampler
# The sampling half of reinforcement learning: choose questions, ask, grade.


# %%
#| export
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


# %% [markdown]
# Sampling and learning are two jobs with one model between them. The sampler asks and grades: batch number $t$ is what step $t$ will learn
# from. It may be asked for a batch ahead of time; the answers then wait, and are a little old when their step comes (`staleness`;
# chapter `two_processes` makes use of that).


# %%
#| export
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


# %%
#| default_exp training.rl_trainer
# One step of reinforcement learning: ask, grade, learn, note down.


# %%
#| export
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


# %% [markdown]
# Around the steps: resume, evaluate, keep the best, save. The folder of the run holds the chosen model, where everything else looks
# for a stage's model; `training/` inside it holds where the run is.


# %%
#| default_exp training.rl
# Run reinforcement learning: resume, keep the checkpoint that does best, save.


# %%
#| export
import copy
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from nanochat_lib.common import atomic_write, pick_device
from nanochat_lib.model.gpt import GPT
from nanochat_lib.tasks.base import Task
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    load_model,
    read_meta,
    save_checkpoint,
)
from nanochat_lib.training.finetune import ConversationLoader
from nanochat_lib.training.loop import check_same_run
from nanochat_lib.training.progress import ProgressBar, postpone_interrupt
from nanochat_lib.training.rl_sampler import RLConfig, Sampler
from nanochat_lib.training.rl_trainer import RLState, RLTrainer


# %%
#| export
def train_rl(
    config: RLConfig,
    task: Task,
    tokenizer: Tokenizer,
    base_folder: Path,
    folder: Path,
    replay: ConversationLoader | None = None,
    evaluate: Callable[[GPT], float] | None = None,
    progress: Callable[[dict], None] | str | None = "bar",
    sampling: type[Sampler] = Sampler,
) -> dict:
    """Improve a fine-tuned model by the rewards of a task; resume if `folder` holds a checkpoint.

    Args:
        config: how much to ask, and how to learn from it.
        task: its `reward` grades the answers.
        tokenizer: the one that the model was trained with.
        base_folder: the run whose newest checkpoint we start from.
        folder: gets the best checkpoint, rl.json (what was seen at every step), and training/.
        replay: fine-tuning conversations, needed if config.replay > 0.
        evaluate: higher is better; None keeps the last checkpoint.
        progress: called with the note of each step, or "bar", or None.
        sampling: what draws and grades the answers.

    Returns:
        steps, seconds over all resumes, evals (pairs [step, value]) and the chosen step.

    Raises:
        ValueError: replay is wanted and not given, or the folder holds another run.
    """
    model, base_meta = load_model(base_folder, tokenizer, device=pick_device())
    old = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    reference = load_model(base_folder, tokenizer, device=pick_device())[0] if config.kl else None
    sampler = sampling(config, model, tokenizer, task)
    trainer = RLTrainer(config, model, tokenizer, sampler, replay, reference)
    meta = {"config": base_meta["config"], "tokenizer_hash": tokenizer.hash, "stage": "rl"}
    meta["loop"] = json.loads(json.dumps(asdict(config)))  # as a reload will see it
    bar = ProgressBar() if progress == "bar" else None
    report = bar or progress or (lambda info: None)
    with postpone_interrupt() as interrupt, ExitStack() as stack:
        stack.callback(sampler.close)
        if bar:
            stack.callback(bar.close)
        resume(trainer, folder, meta)
        state, saved = trainer.state, time.perf_counter()
        choose(trainer, old, evaluate, folder, meta)
        while state.step < config.steps:
            facts = trainer.step()
            choose(trainer, old, evaluate, folder, meta)
            report(describe(trainer, facts))
            done = state.step == config.steps or interrupt.is_set()
            if done or time.perf_counter() - saved >= config.save_seconds:
                save(trainer, folder, meta)
                saved = time.perf_counter()
            if interrupt.is_set():
                raise KeyboardInterrupt(f"saved at step {state.step} in {folder}")
    chosen = read_meta(latest_checkpoint(folder))["step"]
    return {"steps": state.step, "seconds": state.seconds, "evals": state.evals, "chosen": chosen}


def describe(trainer: RLTrainer, facts: dict) -> dict:
    """Say where a run is, for a progress bar or whoever else wants to know."""
    step, text = trainer.state.step, f"reward {facts['reward']:.2f}"
    text += f"  entropy {facts.get('entropy', 0):.3f}"
    per_step = trainer.state.seconds / step
    steps = trainer.config.steps
    return {"step": step, "steps": steps, "seconds_per_step": per_step, "text": text} | facts


def resume(trainer: RLTrainer, folder: Path, meta: dict) -> None:
    """Continue from the newest checkpoint in folder/training, if there is one."""
    path = latest_checkpoint(folder / "training")
    if path is None:
        return
    saved = read_meta(path)
    check_same_run(saved, meta, path)
    load_checkpoint(path, trainer.model, trainer.optimizers, meta["tokenizer_hash"])
    if trainer.replay is not None:
        trainer.replay.load_state_dict(saved["replay"])
    trainer.sampler.load_state_dict(saved["sampler"])
    trainer.state = RLState(**saved["state"])


def save(trainer: RLTrainer, folder: Path, meta: dict) -> None:
    """Write where the run is, and what was seen at every step."""
    replay = trainer.replay.state_dict() if trainer.replay is not None else None
    state = asdict(trainer.state)
    step, rest = trainer.state.step, meta | {"state": state, "replay": replay}
    rest["sampler"] = trainer.sampler.state_dict()
    save_checkpoint(folder / "training", step, trainer.model, trainer.optimizers, rest)
    atomic_write(folder / "rl.json", json.dumps(state["history"]))


def blended(old: dict[str, Tensor], model: GPT, blend: float) -> GPT:
    """Return a model with weights on the way from old ones to those of another model."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in copied.named_parameters():
            weight.lerp_(old[name], 1 - blend)
    return copied


def choose(
    trainer: RLTrainer,
    old: dict[str, Tensor],
    evaluate: Callable[[GPT], float] | None,
    folder: Path,
    meta: dict,
) -> None:
    """Evaluate if it is due, and keep the model if none before it was better; `old` are the first weights."""
    config, state = trainer.config, trainer.state
    last, every = state.step == config.steps, 0 if evaluate is None else config.eval_every
    due = last or (every > 0 and state.step % every == 0)
    if not due or state.step in [step for step, _ in state.evals]:
        return
    model = blended(old, trainer.model, config.blend)
    value = 0.0 if evaluate is None else float(evaluate(model))
    if all(value >= before for _, before in state.evals):
        save_checkpoint(folder, state.step, model, [], meta | {"value": value})
    state.evals.append([state.step, value])


# %% [markdown]
# The imitator again, 40 steps of 12 questions with 8 tries each:

# %%
improve = RLConfig(
    steps=40, questions=12, samples=8, max_tokens=16, sequence_len=64, replay=0.0, eval_every=10
)
notes: list[dict] = []
summary = train_rl(
    improve, train, tokenizer, work / "imitation", work / "rl", progress=notes.append
)
improved, _ = load_model(work / "rl", tokenizer)
print(summary)
print(
    f"right at temperature 1: {share_right(improved, 1.0):.0%}, greedy: {share_right(improved, 0):.0%}"
)

# %% [markdown]
# Better than all it ever saw, on pairs that it was never asked. No answer was shown to it, only graded. Where did the skill come
# from? It was in the model already: sampled often enough, the imitator said every right answer, and the reward told which those
# were. That is the limit, too: what a model *never* says cannot be rewarded. A measure of what is there to be found is pass@k, the
# chance that at least one of $k$ tries is right. With $n \ge k$ tries of which $c$ were right, the chance that $k$ of them, drawn
# without putting back, are all wrong, is $\binom{n-c}{k} / \binom{n}{k}$ (Chen et al. 2021, arXiv:2107.03374).


# %%
#| default_exp evaluation.samples
# How often sampled answers are right: the mean, and the best of k tries.


# %%
#| export
import math
from statistics import stdev

from nanochat_lib.evaluation.chat import response_text
from nanochat_lib.inference.engine import Engine
from nanochat_lib.tasks.base import Task


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


# %%
# alt: chance of a right answer within k tries, two curves: the improved model is above at one try, both near 1 at sixteen
fig, ax = plt.subplots(figsize=(5.5, 3))
for name, model in (("imitator", imitator), ("improved", improved)):
    right = count_right(Engine(model, tokenizer), test, 32, 16)
    curve = [sum(pass_at_k(32, c, k) for c in right) / len(right) for k in range(1, 17)]
    ax.plot(range(1, 17), curve, marker="o", label=name)
ax.set(xlabel="tries k", ylabel="at least one is right", ylim=(0, 1.05))
ax.legend()
plt.show()

# %% [markdown]
# *pass@k before and after. Reinforcement moves the left end of the curve towards where its right end was.*

# %% [markdown]
# ## On the laptop
#
# The laptop run has a stage `rl` after fine-tuning. Fine-tuning was given few problems of two steps, on purpose (chapter `contact`), and
# these are practised now: 120 steps of 16 questions with 8 tries each. The reward is the grader's word, right or not. The record in
# this repository was measured on 1,000 questions that neither training nor the choice of the checkpoint has seen:

# %%
import json

from nanochat_lib.course.manifest import library_root

record = library_root() / "records/laptop"
report = json.loads((record / "report.json").read_text(encoding="utf-8"))
for stage, found in report["hard"].items():
    for way in ("greedy", "sampled"):
        score = {key: 100 * value for key, value in found[way].items()}
        print(
            f"{stage:4}{way:8}{score['accuracy']:6.1f}% [{score['low']:.1f}, {score['high']:.1f}]"
        )
    tries = ", ".join(f"{k}: {100 * chance:.1f}%" for k, chance in found["pass_at"].items())
    print(f"{stage:4}right in k tries, {tries}")

# %%
# alt: reward, entropy and answer length over the steps of the laptop's reinforcement: reward rises, entropy and length stay near where they began
history = json.loads((record / "rl.json").read_text(encoding="utf-8"))
fig, axes = plt.subplots(1, 3, figsize=(8, 2.8))
for ax, name in zip(axes, ("reward", "entropy", "length")):
    notes = [note for note in history if name in note]
    values = [note[name] for note in notes]
    near = [values[max(0, i - 9) : i + 1] for i in range(len(values))]
    ax.plot([note["step"] for note in notes], values, color="0.8", linewidth=0.7)
    ax.plot([note["step"] for note in notes], [sum(part) / len(part) for part in near])
    ax.set(title=name, xlabel="step")
fig.tight_layout()
plt.show()

# %% [markdown]
# *What training saw at each step (grey) and a mean over ten steps.*
#
# One run is one draw of weights, questions and answers. `make study-contact` repeats the whole laptop run with five seeds. What
# counts is the difference within each run, and its mean with a 95% interval of Student's t, four degrees of freedom:

# %%
from statistics import mean, stdev

runs = json.loads((library_root() / "records/chat/runs.json").read_text(encoding="utf-8"))
seeds = [run["hard"] for name, run in runs.items() if name.startswith("as_it_is")]
for way in ("greedy", "sampled"):
    before, after = ([100 * hard[m][way]["accuracy"] for hard in seeds] for m in ("sft", "rl"))
    gains = [b - a for a, b in zip(before, after)]
    half = 2.776 * stdev(gains) / len(gains) ** 0.5
    pairs = ", ".join(f"{a:.0f} -> {b:.0f}" for a, b in zip(before, after))
    print(
        f"{way:8} {pairs}: {mean(gains):+.1f} points [{mean(gains) - half:.1f}, {mean(gains) + half:.1f}]"
    )
    assert mean(gains) - half > 0, "not more than chance"

# %% [markdown]
# And what did it cost elsewhere? The other tests of the same runs, mean over the seeds:

# %%
for task in runs["as_it_is 0"]["tasks"]:
    rows = [run["tasks"][task] for name, run in runs.items() if name.startswith("as_it_is")]
    before, after = ([100 * row[stage]["accuracy"] for row in rows] for stage in ("sft", "rl"))
    print(f"{task:16}{mean(before):6.1f}% -> {mean(after):.1f}%")
    assert task == "two_steps" or abs(mean(after) - mean(before)) < 1, task

# %% [markdown]
# No other test moves by a point. That was not so at first. With replay, but all the way to the new weights, first contact lost two
# points: "She gave 8 to her brother" got a second step, because every story lately had two. Going back a fifth of the way cost the two
# steps about two points, and gave back most of that (one run each, while the settings were sought).
#
# Look at the seeds one by one, too: one of them gained much less than the others. A single run would have told you either story.
#
# ## Which loss?
#
# `make study-rl` practises from the same fine-tuned model with each of the six, two updates a batch, so that ratios differ from 1,
# two seeds each, 60 steps, the last checkpoint, 500 questions:

# %%
losses = json.loads((library_root() / "records/rl/losses.json").read_text(encoding="utf-8"))
for loss, row in losses["variants"].items():
    low, high = min(row["greedy"]), max(row["greedy"])
    clipped = [share for share in row["curves"]["clipped"] if share is not None]
    print(
        f"{loss:10} greedy {100 * mean(row['greedy']):.1f}% [{100 * low:.1f}, {100 * high:.1f}]  "
        f"sampled {100 * mean(row['sampled']):.1f}%  first contact "
        f"{100 * mean(row['first_contact']):.1f}%  clipped {100 * mean(clipped):.2f}%"
    )

# %% [markdown]
# Six names and hardly a difference: after one update the ratio of a token hardly ever leaves its bounds. (Those of `gspo` are a
# thousandth as wide, for whole answers; it stops a third of the tokens, and ends where the others do.) `dr_grpo` is a little behind, probably since it divides by `max_tokens`, three times the length of an answer: beside replay its push is a third
# of the others'. With so little between them, the simplest is the one to keep. (Where answers are older, it is another matter: chapter
# `two_processes`.)
#
# And the pull to the model one came from, `kl`? Many recipes have it, nanochat's has not. Alone, without replay and without walking
# back, on the same problems:

# %%
pulls = json.loads((library_root() / "records/rl/kl.json").read_text(encoding="utf-8"))["variants"]
for name, row in pulls.items():
    print(
        f"{name.replace('_', ' '):8} greedy {100 * mean(row['greedy']):.1f}%  sampled {100 * mean(row['sampled']):.1f}%  "
        f"first contact {100 * mean(row['first_contact']):.1f}%"
    )
assert mean(pulls["kl_1.0"]["sampled"]) < mean(pulls["kl_0.0"]["sampled"]) - 0.05

# %% [markdown]
# A little of it changes nothing, much of it takes most of the gain: what holds the policy near its origin holds it back
# from the reward as well. And in 60 steps with a checkable reward there is nothing yet that it would have to save: first contact stays
# where it was in all rows. So `kl` is 0 here; what else the model knew is kept by replay and by walking back.
#
# ## Cost
#
# Where do the seconds go? Sampling reads the whole model for every token, one step after another; learning reads all tokens at once.

# %%
parts = ("seconds_rollout", "seconds_reward", "seconds_update")
spent = {part: sum(note[part] for note in history) for part in parts}
for part, seconds in spent.items():
    print(f"{part.removeprefix('seconds_'):8}{seconds:7.1f} s, {seconds / sum(spent.values()):.0%}")
tokens = sum(note["tries"] * note["length"] for note in history)
print(f"{tokens / spent['seconds_rollout']:,.0f} tokens/s sampled in batches of 128 answers")

# %% [markdown]
# ## Recap
#
# Imitation copies the mean of its teachers; reward selects among what a model can already do. Sample groups, compare each answer with
# its group, push chosen tokens by their advantage, and make sure that the odds you differentiate are those you sampled with. The
# library now has `training.policy`, `training.rollouts`, `training.rl_sampler`, `training.rl_trainer`, `training.rl` and
# `evaluation.samples`. The exercises
# leave one out, find what was chosen, pay for the way, and choose a group size. What a reward can do wrong is the next chapter.
