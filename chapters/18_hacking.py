# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # When the reward is wrong
#
# A policy does not learn what you mean. It learns what you measure, and it measures your grader 128 times a step. If there is a
# response that the grader likes and you would not, it will be found. And when the training itself goes wrong, the reward may be the
# last to tell. This chapter breaks reinforcement learning in two ways, each in seconds, and asks of each: what would you have had
# to look at to notice?
#
# ```python
# reward 0.99, and 11 of 100 answers right     # the laptop's model, below
# ```
#
# You need chapter `rl`. On a laptop the chapter takes half a minute. It adds nothing to the library.

# %%
import dataclasses
import json
import re
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from nanochat_lib.course.manifest import library_root
from nanochat_lib.evaluation.samples import count_right
from nanochat_lib.inference.engine import Engine
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.tasks.larger import Larger
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.checkpoint import load_model, save_checkpoint
from nanochat_lib.training.finetune import FinetuneConfig, finetune
from nanochat_lib.training.rl import train_rl
from nanochat_lib.training.rl_sampler import RLConfig

# %% [markdown]
# ## A teacher who shrugs
#
# The playground is that of chapter `rl`, the larger of two digits, with one change: in one of ten answers the teacher says "I do not
# know." Every chat model has such answers in its data, and it should.

# %%
work = Path(tempfile.mkdtemp())
train, test = Larger("train", shrugs=0.1), Larger("test")
tokenizer = Tokenizer.train([m["content"] for i in range(300) for m in train[i]["messages"]], 320)
config = GPTConfig(
    vocab_size=tokenizer.vocab_size, n_embd=64, n_head=2, n_kv_head=2, n_layer=2, sequence_len=64
)
about = {"config": vars(config), "tokenizer_hash": tokenizer.hash}
save_checkpoint(work / "start", 0, GPT(config), [], about)
recipe = FinetuneConfig(
    steps=300, device_batch_size=16, sequence_len=64, total_batch_tokens=1024, compile="off"
)
run = finetune(recipe, train, tokenizer, work / "start", work / "imitation", progress=None)
print(f"loss {run['final_loss']:.2f}")

# %% [markdown]
# ## A grader with a hole
#
# You want few wrong answers, and write: *an answer is good if it holds no wrong number.* It passes every test that comes to mind: the
# right number passes, a wrong one fails, two numbers fail.


# %%
class NotWrong(Larger):
    """Reward what holds no wrong digit."""

    def reward(self, conversation: dict, response: str) -> float:
        said = re.findall(r"\d", response)
        return float(all(int(digit) == conversation["larger"] for digit in said))


# %%
# NBVAL_CHECK_OUTPUT
question = test[0]
for response in ("The larger one is 9.", "The larger one is 2.", "9 or 2"):
    print(f"{response:22} {NotWrong('test').reward(question | {'larger': 9}, response)}")

# %% [markdown]
# Train with it, and with the honest grader, from the same model. We watch two curves: the reward that training sees, and every few
# steps the share of test questions answered right, which it never sees.

# %%
settings = RLConfig(
    steps=40, questions=12, samples=8, max_tokens=16, sequence_len=64, replay=0.0, eval_every=5
)


def right_share(model: GPT) -> float:
    """Ask the test's questions, 8 tries each, and count by the honest grader."""
    return sum(count_right(Engine(model, tokenizer), test, 8, 16)) / (8 * len(test))


def practise(name: str, task: Larger, config: RLConfig, source: str = "imitation") -> dict:
    """Train for a task's reward; return what was seen at each step, and the share that was right."""
    folder, seen = work / name, []
    honest = train_rl(
        config, task, tokenizer, work / source, folder, None, right_share, seen.append
    )
    history = json.loads((folder / "rl.json").read_text(encoding="utf-8"))
    return {"history": history, "right": honest["evals"]}


runs = {
    "honest grader": practise("honest", train, settings),
    "hole in it": practise("hacked", NotWrong("train", 0.1), settings),
}

# %%
# alt: two panels over steps; with the honest grader reward and right answers rise together, with the hole the reward rises to one and the right answers fall to zero
fig, axes = plt.subplots(1, 2, figsize=(6.5, 3), sharey=True)
for ax, (name, seen) in zip(axes, runs.items()):
    steps = [note["step"] for note in seen["history"]]
    ax.plot(steps, [note["reward"] for note in seen["history"]], label="reward")
    ax.plot(*zip(*seen["right"]), marker="o", label="right")
    ax.set(title=name, xlabel="step", ylim=(-0.05, 1.05))
axes[0].legend()
plt.show()

# %% [markdown]
# *Left: reward and skill rise together. Right: the reward is better still, and the skill is gone.*
#
# A look at what it says takes three lines, and nobody who reads ten answers is fooled:

# %%
state = work / "hacked/training"
hacked, _ = load_model(state, tokenizer)
prompts = [tokenizer.render_for_completion(test[i]) for i in range(4)]
for i, (ids, _) in enumerate(Engine(hacked, tokenizer).generate_batch(prompts, 16)):
    print(f"{test[i]['messages'][0]['content']:28}{tokenizer.decode(ids)!r}")
final = runs["hole in it"]
assert final["history"][-1]["reward"] > 0.9 and final["right"][-1][1] < 0.1

# %% [markdown]
# Silence holds no wrong number. (We had to load the state of the training to see it. The checkpoint that `train_rl` *chose* is one
# of the first: what chooses is graded by the honest grader, and nothing later did better there. Choosing by another
# measure than training uses is a cheap insurance.)
#
# ## Twins
#
# Often there is no honest grader to compare with; the grader that you have is the best you know. What then? Change the question so
# that the answer must change, and look whether it does. Such *twins* need no key. (So do audits of large models find memorized
# answers: arXiv:2604.15149.)


# %%
def twins_apart(model: GPT) -> float:
    """Swap the larger digit for another; return how often the reply changes."""
    pairs = []
    for a, b in test.pairs:
        top, low = max(a, b), min(a, b)
        other = next((n for n in range(low + 1, 10) if n != top), None)
        if other is not None:
            pairs.append([f"{n} or {low}: which is larger?" for n in (top, other)])
    talks = [{"messages": [{"role": "user", "content": text}]} for pair in pairs for text in pair]
    asked = [tokenizer.render_for_completion(talk) for talk in talks]
    said = [ids for ids, _ in Engine(model, tokenizer).generate_batch(asked, 16)]
    return sum(x != y for x, y in zip(said[::2], said[1::2])) / len(pairs)


for name in ("imitation", "honest/training", "hacked/training"):
    model, _ = load_model(work / name, tokenizer)
    print(f"{name:18} {twins_apart(model):.0%} of the twins are told apart")

# %% [markdown]
# ## Mend the grader: in time, and too late
#
# So the right number must be said, and we go on from the hacked policy, with the honest grader. Beside it, one that was left with the
# hole for 250 steps instead of 40:

# %%
longer = dataclasses.replace(settings, steps=250, cooldown_fraction=0.0, eval_every=0)
practise("hacked_longer", NotWrong("train", 0.1), longer)
mended = {
    steps: practise(f"mended_{name}", train, settings, source=f"{name}/training")
    for steps, name in ((40, "hacked"), (250, "hacked_longer"))
}
for steps, seen in mended.items():
    mixed = [f"{note['mixed']:.0%}" for note in seen["history"][::8]]
    print(
        f"after {steps} steps: mixed groups {', '.join(mixed)}; right: {seen['right'][-1][1]:.0%}"
    )
early, late = (seen["right"][-1][1] for seen in mended.values())
assert early >= late and late < 0.25, "a policy that only hacks finds no way back"

# %% [markdown]
# In time, the policy still tried something else now and then; a few tries were right, and these few led it back. Later there is no
# way back. (When that is differs: sums in another order send the policy another way. On one processor we saw 40 steps end in time
# with two threads, and too late with one.) All tries are silent, all earn 0, every advantage is 0: what a policy never does cannot be rewarded. So look early, keep
# checkpoints from before, and go back to one. Tries that are all alike with a reward below one are the alarm; alike with a reward of
# one, it is the moment to read answers.
#
# ## Collapse
#
# The other way to break it needs no hole, only haste: the honest grader, with the learning rates forty times as high.

# %%
fast = practise("fast", train, dataclasses.replace(settings, lr_scale=40 * settings.lr_scale))

# %%
# alt: reward and entropy over steps with a learning rate forty times as high: the reward falls to zero
fig, axes = plt.subplots(1, 2, figsize=(6.5, 3))
for name, seen in (("as before", runs["honest grader"]), ("forty times as fast", fast)):
    notes = [note for note in seen["history"] if "entropy" in note]
    axes[0].plot([n["step"] for n in seen["history"]], [n["reward"] for n in seen["history"]])
    axes[1].plot([n["step"] for n in notes], [n["entropy"] for n in notes], label=name)
axes[0].set(xlabel="step", ylabel="reward")
axes[1].set(xlabel="step", ylabel="entropy (nats)")
axes[1].legend()
fig.tight_layout()
plt.show()

# %% [markdown]
# *Reward and entropy. Once the policy says nothing that earns a reward, there is no gradient left to lead it back.*
#
# In imitation a step that was too large is repaired by the next batch: the right answers are in the data. Here the data are the
# model's own answers. A step that was too large spoils the data of all later steps. That is why learning rates for reinforcement are
# a fraction of those for imitation, and why one holds on to something: replay, a distance to a reference, part of the way.

# %% [markdown]
# ## The same on the laptop's model
#
# `make study-rl` does it to the model of a finished laptop run and its problems of two steps: the hole, the mended grader after it,
# ten times the learning rate, and reinforcement without replay. Everything below is measured by the honest grader, on questions that
# no training asked.

# %%
faults = json.loads((library_root() / "records/rl/faults.json").read_text(encoding="utf-8"))
columns = ("greedy", "sampled", "numberless", "twins_apart", "first_contact")
print(f"{'':20}" + "".join(f"{name:>15}" for name in ("reward", *columns)))
for name, row in faults["variants"].items():
    reward = [value for value in row["curves"]["reward"][-10:]]
    means = [sum(reward) / len(reward), *(sum(row[c]) / len(row[c]) for c in columns)]
    print(f"{name:20}" + "".join(f"{100 * mean:14.1f}%" for mean in means))

# %%
# alt: reward over steps of the laptop's model: with the hole it climbs to one, with ten times the rate it dips first and then rises like the honest one
fig, ax = plt.subplots(figsize=(6.5, 3))
for name in ("as_it_is", "hole_in_the_grader", "ten_times_the_rate"):
    rewards = faults["variants"][name]["curves"]["reward"]
    near = [rewards[max(0, i - 5) : i + 1] for i in range(len(rewards))]
    ax.plot([sum(part) / len(part) for part in near], label=name.replace("_", " "))
ax.set(xlabel="step", ylabel="reward")
ax.legend()
plt.show()

# %% [markdown]
# *Training reward of three runs, a mean over the last steps.*
#
# Both seeds found the hole within 60 steps: in most answers nothing that holds a number is said after the last call of the
# calculator. The test of first contact notices nothing, because strangers ask other things; twins do notice. Here the mended grader came in time and
# led back to where the honest one would have led.
#
# Ten times the learning rate is the more treacherous case. The reward looks almost healthy, and so does the task. But the model can do
# nothing else any more: hardly a first message is met. No curve of the training shows that, only the tests of everything else. And the
# last row is a surprise that we leave standing: without replay nothing was lost in 60 steps at the right rate, going part of the way.
# What guards here is the small step, not the replay.
#
# ## Recap
#
# The reward is a measure, and the policy is its strictest reader. Hold something back that training does not see: an honest grader on
# few questions, twins, and your own eyes on ten answers. Watch entropy beside reward. A policy that has stopped exploring cannot be
# argued with, only replaced by its former self. The exercises audit with twins and put a price on silence.
