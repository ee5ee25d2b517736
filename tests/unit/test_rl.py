"""Reinforcement learning: the sampler and the learner are one policy, six losses by definition, resume, guards."""

import json
import math
import os
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nanochat_lib.data.tinyworld import World
from nanochat_lib.evaluation.samples import count_right, mean_with_interval, pass_at_k
from nanochat_lib.inference.engine import Engine
from nanochat_lib.inference.sampling import sample, sampled_logprobs
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.tasks.base import Task, content_text
from nanochat_lib.tasks.gsm8k import GSM8K
from nanochat_lib.tasks.larger import Larger
from nanochat_lib.tasks.steps import CHOOSING, TwoSteps, two_step_tests
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.checkpoint import latest_checkpoint, load_model, save_checkpoint
from nanochat_lib.training.finetune import ConversationLoader
from nanochat_lib.training.policy import (
    LOSSES,
    group_advantages,
    kl_terms,
    policy_terms,
    token_weights,
)
from nanochat_lib.training.rl import train_rl
from nanochat_lib.training.rl_processes import SamplerProcess
from nanochat_lib.training.rl_sampler import RLConfig, Sampler
from nanochat_lib.training.rl_trainer import RLTrainer
from nanochat_lib.training.rollouts import Answer, ask, chosen_logprobs, pack_answers

DATA = Path(os.environ.get("NANOCHAT_TEST_DATA", ""))
WORLD = World(0)
TOKENIZER = Tokenizer.train(["How many are there? There are 3 + 4 = 7 of them, I say."] * 3, 330)
SPECIAL = TOKENIZER.encode_special
SIZES = {"n_embd": 32, "n_head": 2, "n_kv_head": 1, "n_layer": 2, "sequence_len": 96}


def shaken(seed: int = 0) -> GPT:
    """A model whose every weight does something, with smear and value embeddings."""
    model = GPT(GPTConfig(vocab_size=TOKENIZER.vocab_size, smear=True, value_embeds=True, **SIZES))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.15, generator=generator)
    model.first_token = TOKENIZER.bos_id
    return model


def talk(question: str, answer: str = "7") -> dict:
    user = {"role": "user", "content": question}
    return {"messages": [user, {"role": "assistant", "content": answer}]}


TALKS = [talk("How many are there?"), talk("3 + 4"), talk("Say it, I say, of them all.")]


@pytest.mark.parametrize("temperature, top_k", [(1.0, None), (0.6, None), (1.4, 5), (1.0, 1)])
def test_sampler_and_learner_agree_on_every_chosen_token(temperature, top_k):
    model = shaken()
    groups = ask(Engine(model, TOKENIZER), TALKS, 6, 40, temperature, top_k, seed=3)
    answers = [answer for group in groups for answer in group]
    seen = 0
    for packed in pack_answers(answers, 96, 4, TOKENIZER.bos_id):
        assert len(packed.idx) <= 4
        new, entropy = chosen_logprobs(model, packed, temperature, top_k)
        assert torch.allclose(new, packed.logprob, atol=2e-5)
        assert bool((entropy > 0).all()) and not entropy.requires_grad
        seen += len(new)
    assert seen == sum(sum(answer.mask) for answer in answers)


def test_sampled_logprobs_are_the_odds_of_the_sampler():
    logits = torch.tensor([[1.0, 0.5, -0.5, -3.0]])
    for temperature, top_k in ((1.0, None), (0.5, None), (2.0, 2)):
        uniforms = torch.rand(40_000, generator=torch.Generator().manual_seed(1))
        drawn = sample(logits.expand(40_000, 4), uniforms, temperature, top_k)
        share = torch.bincount(drawn, minlength=4) / 40_000
        odds = sampled_logprobs(logits.expand(4, 4), torch.arange(4), temperature, top_k).exp()
        possible = share > 0
        assert torch.allclose(odds[possible], share[possible], atol=0.01)
    assert sampled_logprobs(logits, torch.tensor([0]), temperature=0.0).tolist() == [0.0]


def with_tool() -> Answer:
    """An answer in which a tool wrote three tokens."""
    start, end = SPECIAL("<|python_start|>"), SPECIAL("<|python_end|>")
    output = [SPECIAL("<|output_start|>"), *TOKENIZER.encode("7"), SPECIAL("<|output_end|>")]
    call = [start, *TOKENIZER.encode("3+4"), end]
    tokens = [*call, *output, *TOKENIZER.encode("7"), SPECIAL("<|assistant_end|>")]
    mask = [1] * len(call) + [0] * len(output) + [1, 1]
    prompt = TOKENIZER.render_for_completion(TALKS[1])
    return Answer(prompt, tokens, mask, [-1.0] * len(tokens), stopped=True)


def test_what_a_tool_wrote_is_never_learned():
    answer = with_tool()
    other = Answer(TOKENIZER.render_for_completion(TALKS[0]), [5, 6], [1, 1], [-1.0, -2.0], False)
    (packed,) = pack_answers([other, answer], 96, 8, TOKENIZER.bos_id)
    mine = packed.answer == 1
    assert packed.token[mine].tolist() == [t for t, m in zip(answer.tokens, answer.mask) if m]
    for row, position, token in zip(packed.row, packed.position, packed.token):
        assert packed.idx[row, position + 1] == token, "the choice is made one place before"


def test_an_answer_does_not_read_its_neighbours_in_the_row():
    model, answer = shaken(), with_tool()
    lonely = chosen_logprobs(model, pack_answers([answer], 96, 1, TOKENIZER.bos_id)[0])[0]
    three = pack_answers([answer, answer, answer], 96, 8, TOKENIZER.bos_id)
    for packed in three:
        together = chosen_logprobs(model, packed)[0]
        for number in packed.answer.unique():
            assert torch.allclose(together[packed.answer == number], lonely, atol=1e-5)


def test_answers_that_do_not_fit_say_so():
    with pytest.raises(ValueError, match="raise sequence_len or lower max_tokens"):
        pack_answers([with_tool()], 8, 1, TOKENIZER.bos_id)
    assert pack_answers([], 8, 1, TOKENIZER.bos_id) == []


def test_advantages_by_hand():
    assert group_advantages([1.0, 0.0, 0.0, 1.0]) == [0.5, -0.5, -0.5, 0.5]
    scaled = group_advantages([1.0, 0.0, 0.0, 0.0], "grpo")
    assert scaled == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-4)
    for loss in LOSSES:
        assert group_advantages([0.25] * 5, loss) == [0.0] * 5
        assert sum(group_advantages([1.0, 0.5, 0.0], loss)) == pytest.approx(0)
    with pytest.raises(ValueError):
        group_advantages([])
    with pytest.raises(Exception, match="'ppo'"):  # by the type checker of these tests, if it is on
        group_advantages([1.0], "ppo")


def test_reinforce_with_a_baseline_is_the_gradient_of_a_bandit():
    """All outcomes of two pulls, weighted with their probability: no luck is left in it."""
    pays = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    z = torch.tensor([0.4, -0.3, 0.1], dtype=torch.float64, requires_grad=True)
    p = torch.softmax(z, -1)
    (true,) = torch.autograd.grad((p * pays).sum(), z, retain_graph=True)
    logp, total = torch.log_softmax(z, -1), torch.zeros(3, dtype=torch.float64)
    for a in range(3):
        for b in range(3):
            advantage = group_advantages([float(pays[a]), float(pays[b])])
            new = torch.stack([logp[a], logp[b]])
            terms, _ = policy_terms(
                new, new.detach(), torch.tensor(advantage), torch.tensor([0, 1])
            )
            (push,) = torch.autograd.grad(terms.sum(), z, retain_graph=True)
            total += (p[a] * p[b]).detach() * push
    # a group of n with its own mean as baseline gives (n - 1) times the gradient, summed over n
    assert torch.allclose(total, true, atol=1e-12)


def slow_objective(loss: str, new, old, advantage, lengths, max_tokens: int) -> Tensor:
    """The objective as the papers write it, token by token."""
    answers, at = [], 0
    for length, a in zip(lengths, advantage):
        part = range(at, at + length)
        at += length
        ratios = [(new[i] - old[i]).exp() for i in part]
        if loss == "gspo":
            whole = (sum(new[i] - old[i] for i in part) / length).exp()
            low, high = 1 - 0.2 / 1000, 1 + 0.28 / 1000
            answers.append([torch.minimum(whole * a, whole.clamp(low, high) * a)] * length)
        elif loss == "reinforce":
            answers.append([a * new[i] for i in part])
        elif loss == "cispo":
            answers.append([r.detach().clamp(max=1.28) * a * new[i] for r, i in zip(ratios, part)])
        else:
            high = 1.28 if loss == "dapo" else 1.2
            answers.append([torch.minimum(r * a, r.clamp(0.8, high) * a) for r in ratios])
    if loss in ("grpo", "gspo"):
        return sum(sum(terms) / len(terms) for terms in answers) / len(answers)
    tokens = [term for terms in answers for term in terms]
    return sum(tokens) / (len(answers) * max_tokens if loss == "dr_grpo" else len(tokens))


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_what_their_papers_say(loss):
    generator, lengths = torch.Generator().manual_seed(5), [3, 1, 4]
    old = -3 * torch.rand(8, generator=generator)
    answer = torch.tensor([0] * 3 + [1] + [2] * 4)
    advantage = torch.tensor([0.7, -1.1, -0.2])
    moved = old + 0.5 * torch.randn(8, generator=generator)
    gradients = []
    for slow in (False, True):
        new = moved.clone().requires_grad_()
        if slow:
            value = slow_objective(loss, new, old, advantage, lengths, 16)
        else:
            weights = torch.tensor(token_weights(lengths, loss, 16))
            terms, _ = policy_terms(new, old, advantage[answer], answer, loss)
            value = (weights[answer] * terms).sum()
        value.backward()
        gradients.append((value.detach(), new.grad))
    assert torch.allclose(gradients[0][0], gradients[1][0], atol=1e-6)
    assert torch.allclose(gradients[0][1], gradients[1][1], atol=1e-6)


def test_the_clip_stops_what_went_far_and_lets_corrections_through():
    old, answer = torch.zeros(4), torch.arange(4)
    new = torch.tensor([0.5, -0.5, 0.5, -0.5])  # ratios 1.65, 0.61
    praise = torch.tensor([1.0, 1.0, -1.0, -1.0])
    for loss in ("grpo", "dapo"):
        _, clipped = policy_terms(new, old, praise, answer, loss)
        assert clipped.tolist() == [True, False, False, True]


def test_kl_terms_are_never_negative_and_their_mean_is_the_divergence():
    policy = torch.log_softmax(torch.tensor([0.2, 1.0, -0.4], dtype=torch.float64), -1)
    reference = torch.log_softmax(torch.tensor([0.9, 0.1, 0.0], dtype=torch.float64), -1)
    terms = kl_terms(policy, reference)
    exact = torch.nn.functional.kl_div(reference, policy, log_target=True, reduction="sum")
    assert bool((terms >= 0).all()) and torch.isclose((policy.exp() * terms).sum(), exact)


class Digit(Task):
    """Reward answers that hold a digit; ask the same few questions."""

    def __init__(self, size: int = 6, wanted: str = "7"):
        super().__init__("train")
        self.size, self.wanted, self.asked = size, wanted, []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        self.asked.append(self.check_index(index))
        return talk(f"{index} + 4")

    def evaluate(self, conversation: dict, response: str) -> bool:
        return self.wanted in response


def start(folder: Path) -> Path:
    meta = {"config": vars(shaken().config), "tokenizer_hash": TOKENIZER.hash}
    save_checkpoint(folder / "start", 0, shaken(), [], meta)
    return folder / "start"


SMALL = RLConfig(
    steps=6,
    questions=4,
    samples=6,
    max_tokens=12,
    sequence_len=96,
    replay=0.5,
    replay_rows=2,
    mask_truncated=False,
    drop_after=99,
    eval_every=2,
    save_seconds=0.0,
)


class AlsoCutOff(Digit):
    """Give half a reward for a length, so that there is spread among answers that end."""

    def reward(self, conversation: dict, response: str) -> float:
        return len(response) / 20


def trainer_for(config: RLConfig, task: Task, model: GPT | None = None) -> RLTrainer:
    model = model or shaken()
    return RLTrainer(config, model, TOKENIZER, Sampler(config, model, TOKENIZER, task))


def chats() -> ConversationLoader:
    class Chats(Digit):
        pass

    return ConversationLoader(Chats(8), TOKENIZER, 2, 64)


@pytest.mark.parametrize("loss, staleness", [("reinforce", 0), ("gspo", 2)])
def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path, loss, staleness):
    changed = {"loss": loss, "staleness": staleness, "updates": 2, "kl": 0.01, "refills": 1}
    config = RLConfig(**{**vars(SMALL), **changed})
    source, ends = start(tmp_path), []

    class Stop(Exception):
        pass

    def stop_at_three(info: dict) -> None:
        if info["step"] == 3:
            raise Stop

    def evaluate(model) -> float:
        return float(model.lm_head.weight.detach().sum())

    for name in ("whole", "stopped"):
        folder = tmp_path / name
        if name == "stopped":
            with pytest.raises(Stop):
                train_rl(
                    config,
                    AlsoCutOff(),
                    TOKENIZER,
                    source,
                    folder,
                    chats(),
                    evaluate,
                    stop_at_three,
                )
            assert latest_checkpoint(folder / "training").name == "step_000002"
        summary = train_rl(config, AlsoCutOff(), TOKENIZER, source, folder, chats(), evaluate, None)
        weights = (latest_checkpoint(folder / "training") / "model.safetensors").read_bytes()
        chosen = (latest_checkpoint(folder) / "model.safetensors").read_bytes()
        ends.append((weights, chosen, summary["evals"], summary["chosen"]))
    assert ends[0] == ends[1]
    history = json.loads((tmp_path / "whole/rl.json").read_text(encoding="utf-8"))
    assert [note["step"] for note in history] == [1, 2, 3, 4, 5, 6]
    assert any(note.get("entropy", 0) > 0 for note in history), "nothing was learned: no test"
    assert history[0]["gap"] < 1e-4 and any(note.get("kl", 0) > 0 for note in history)
    assert (history[2]["gap"] > 1e-3) == (staleness > 0), "stale answers come from other weights"


@pytest.mark.parametrize("staleness", [0, 2])
def test_two_processes_give_the_bytes_of_one_also_after_the_sampler_was_killed(tmp_path, staleness):
    config = RLConfig(**{**vars(SMALL), "staleness": staleness, "steps": 5, "refills": 1})
    source, ends = start(tmp_path), []
    task = Larger("train")
    for name, sampling in (("one", Sampler), ("two", SamplerProcess), ("killed", Killed)):
        run = (config, task, TOKENIZER, source, tmp_path / name, chats(), None, None)
        if name == "killed":
            with pytest.raises(ValueError, match=r"the sampling process ended \(exit code -9\)"):
                train_rl(*run, sampling=Killed)
            sampling = SamplerProcess
        train_rl(*run, sampling=sampling)
        path = latest_checkpoint(tmp_path / name / "training")
        ends.append((path / "model.safetensors").read_bytes())
    assert ends[0] == ends[1] == ends[2]


class Killed(SamplerProcess):
    """A sampler that is killed when it is asked for batch 3."""

    def start(self, number: int) -> None:
        if number == 3:
            self.process.kill()
            self.process.wait()
        super().start(number)


def test_another_setting_is_another_run(tmp_path):
    source = start(tmp_path)
    train_rl(SMALL, Digit(), TOKENIZER, source, tmp_path / "rl", chats(), None, None)
    other = RLConfig(**{**vars(SMALL), "samples": 5})
    with pytest.raises(ValueError, match="samples=6, now samples=5"):
        train_rl(other, Digit(), TOKENIZER, source, tmp_path / "rl", chats(), None, None)
    with pytest.raises(ValueError, match="needs conversations"):
        train_rl(SMALL, Digit(), TOKENIZER, source, tmp_path / "new", None, None, None)


def test_the_best_checkpoint_stays(tmp_path):
    values = iter([0.1, 0.5, 0.3, 0.2])
    folder = tmp_path / "rl"
    summary = train_rl(
        SMALL,
        Digit(),
        TOKENIZER,
        start(tmp_path),
        folder,
        chats(),
        lambda model: next(values),
        None,
    )
    assert summary["evals"] == [[0, 0.1], [2, 0.5], [4, 0.3], [6, 0.2]]
    assert summary["chosen"] == 2 and latest_checkpoint(folder).name == "step_000002"


def test_the_chosen_model_goes_part_of_the_way(tmp_path):
    source, ends = start(tmp_path), {}
    for blend in (1.0, 0.25):
        config, folder = RLConfig(**{**vars(SMALL), "blend": blend}), tmp_path / str(blend)
        train_rl(config, AlsoCutOff(), TOKENIZER, source, folder, chats(), None, None)
        ends[blend] = dict(load_model(folder)[0].named_parameters())
    moved = 0.0
    for name, old in shaken().named_parameters():
        moved += float((ends[1.0][name] - old).detach().abs().sum())
        assert torch.allclose(ends[0.25][name] - old, 0.25 * (ends[1.0][name] - old), atol=1e-5)
    assert moved > 1


def test_groups_without_spread_change_nothing_and_are_refilled():
    config = RLConfig(**{**vars(SMALL), "refills": 2, "replay": 0.0})
    trainer = trainer_for(config, Digit(wanted="no such text"))
    before = [p.clone() for p in trainer.model.parameters()]
    facts = trainer.step()
    assert facts["mixed"] == facts["reward"] == 0 and facts["tries"] == 3 * 4 * 6
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters()))


def test_a_pass_asks_every_question_once_and_solved_ones_no_more():
    config = RLConfig(**{**vars(SMALL), "replay": 0.0, "drop_after": 1})
    trainer = Sampler(config, shaken(), TOKENIZER, Digit(6))
    first = trainer.next_questions(6)
    assert sorted(first) == list(range(6))
    trainer.solved = {"2": 1, "4": 1}
    second = trainer.next_questions(8)
    assert set(second) == {0, 1, 3, 5} and sorted(second[:4]) == [0, 1, 3, 5]
    trainer.solved = {str(i): 1 for i in range(6)}
    assert len(trainer.next_questions(3)) == 3, "when all are solved, all are asked again"


def test_answers_that_were_cut_off_earn_nothing_and_may_be_left_out():
    found = {}
    for masked in (True, False):
        config = RLConfig(**{**vars(SMALL), "max_tokens": 2, "mask_truncated": masked})
        answers, facts = Sampler(config, shaken(), TOKENIZER, AlsoCutOff()).collect(0)
        found[masked] = answers
        assert facts["truncated"] > 0
        assert all(a.reward == 0 for a in answers if not a.stopped)
    assert all(a.stopped for a in found[True])


@pytest.mark.parametrize(
    "name, value", [("steps", 0), ("samples", 1), ("kl", math.nan), ("replay", -1.0)]
)
def test_bad_settings_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        RLConfig(**{name: value})


def test_it_learns_what_is_rewarded(tmp_path):
    """From a model that is right by chance to one that is right."""
    changed = {"steps": 30, "replay": 0.0, "lr_scale": 1.0, "questions": 8}
    trainer = trainer_for(RLConfig(**{**vars(SMALL), **changed}), AlsoCutOff(40))
    rewards = [trainer.step()["reward"] for _ in range(30)]
    assert sum(rewards[-5:]) > 1.5 * sum(rewards[:5]), rewards


def test_pass_at_k_counts_draws_without_putting_back():
    rng = random.Random(0)
    for tries, right, k in ((4, 2, 1), (4, 2, 2), (5, 1, 3), (6, 6, 2), (6, 0, 6)):
        marks = [i < right for i in range(tries)]
        hits = sum(any(rng.sample(marks, k)) for _ in range(20_000)) / 20_000
        assert pass_at_k(tries, right, k) == pytest.approx(hits, abs=0.015)
    for wrong in ((4, 5, 1), (4, 1, 0), (4, 1, 5)):
        with pytest.raises(ValueError):
            pass_at_k(*wrong)


def test_counted_tries_and_their_interval():
    engine = Engine(shaken(), TOKENIZER)
    right = count_right(engine, Digit(5), 6, 12, batch_size=2)
    assert len(right) == 5 and all(0 <= c <= 6 for c in right)
    assert right == count_right(engine, Digit(5), 6, 12, batch_size=2)
    score = mean_with_interval([0.0, 0.5, 1.0, 0.5])
    assert score["accuracy"] == 0.5 and score["low"] < 0.5 < score["high"] and score["n"] == 4


def test_two_step_questions_that_choose_and_that_report_are_apart_and_never_asked_in_training():
    choosing, reporting = two_step_tests(WORLD, 60)
    assert len(choosing) == CHOOSING and len(reporting) == 60
    texts = [[t[i]["messages"][0]["content"] for i in range(len(t))] for t in (choosing, reporting)]
    assert not set(texts[0]) & set(texts[1])
    train = TwoSteps(WORLD, "train", 2_000)
    asked = {train[i]["messages"][0]["content"] for i in range(2_000)}
    assert not asked & set(texts[0] + texts[1])


def test_a_two_step_answer_is_right_when_its_last_number_is_the_result():
    task = TwoSteps(WORLD, "test", 40)
    for conversation in (task[i] for i in range(40)):
        parts = conversation["messages"][1]["content"]
        outputs = [int(p["text"]) for p in parts if p["type"] == "python_output"]
        calls = [p["text"] for p in parts if p["type"] == "python"]
        assert [eval(call) for call in calls] == outputs and outputs[-1] == conversation["result"]
        result = conversation["result"]
        assert task.evaluate(conversation, f"<|output_end|>The answer is {result}.")
        for wrong in (
            f"The answer is {result + 1}.",
            "",
            f"{result} or {result + 1}",
            f"-{result + 1}",
        ):
            assert not task.evaluate(conversation, f"<|output_end|>{wrong}")


@pytest.mark.skipif(not (DATA / "gsm8k").is_dir(), reason="NANOCHAT_TEST_DATA names no samples")
def test_gsm8k_goes_through_the_same_code(tmp_path):
    task = GSM8K("test", DATA / "gsm8k/test.jsonl")
    wide = GPT(GPTConfig(vocab_size=TOKENIZER.vocab_size, **{**SIZES, "sequence_len": 1024}))
    config = RLConfig(
        **{**vars(SMALL), "replay": 0.0, "sequence_len": 1024, "questions": 2, "samples": 2}
    )
    trainer = trainer_for(config, task, wide)
    assert trainer.step()["tries"] == 4
    conversation = task[0]
    assert task.reward(conversation, content_text(conversation["messages"][-1]["content"])) == 1.0
