"""NaN passes no guard: every comparison with it is false, so each guard asks for what is right."""

import math
import re
from pathlib import Path

import pytest
import torch

from nanochat_lib.evaluation.bpb import BigramModel, bits_per_byte, evaluate_bpb
from nanochat_lib.evaluation.chat import evaluate_categorical
from nanochat_lib.inference.engine import Engine
from nanochat_lib.inference.sampling import sample
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.tasks.base import Task
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.checkpoint import latest_checkpoint
from nanochat_lib.training.loop import train
from nanochat_lib.training.optim import AdamW, Muon, OptimConfig, build_optimizers
from nanochat_lib.training.step import LoopConfig

NAN = math.nan
TOKENIZER = Tokenizer({bytes([byte]): byte for byte in range(256)})
CONFIG = GPTConfig(sequence_len=48, vocab_size=265, n_layer=1, n_embd=16, n_head=1, n_kv_head=1)


def damaged_gpt(value: float = NAN) -> GPT:
    """One weight of the head is no number."""
    model = GPT(CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    model.wte.weight.data[ord("a"), 3] = value
    return model


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_damaged_weight_says_so_and_not_token_0_for_ever(value, temperature):
    engine = Engine(damaged_gpt(value), TOKENIZER)
    prompt = TOKENIZER.encode("cab", prepend=TOKENIZER.bos_id)
    with pytest.raises(ValueError, match="a logit is NaN or infinite"):
        engine.generate_batch([prompt], max_tokens=4, temperature=temperature)
    with pytest.raises(ValueError, match="a logit is NaN or infinite"):
        list(engine.generate(prompt, max_tokens=4, temperature=temperature))


@pytest.mark.parametrize("temperature", [NAN, -NAN, -1e-9, -math.inf])
def test_a_temperature_that_is_no_number_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature"):
        sample(torch.zeros(1, 3), torch.zeros(1), temperature)


@pytest.mark.parametrize("temperature", [1e-30, 1e-40, 5e-324])
@pytest.mark.parametrize("top_k", [None, 2])
def test_the_smallest_temperatures_take_the_likeliest(temperature, top_k):
    logits = torch.tensor([[1.0, 15.0, -3.0], [-15.0, 0.1, 0.2]])
    for uniform in (0.0, 0.5, 0.999):
        found = sample(logits, torch.full((2,), uniform), temperature, top_k)
        assert found.tolist() == [1, 2]


def test_an_infinite_temperature_makes_all_equally_likely_and_forbidden_tokens_stay_forbidden():
    logits = torch.tensor([[1.0, -math.inf, 3.0]])
    found = {int(sample(logits, torch.tensor([u / 20]))) for u in range(20)}
    assert found == {0, 2}
    spread = [
        int(sample(torch.tensor([[1.0, 9.0]]), torch.tensor([u]), math.inf)) for u in (0.4, 0.6)
    ]
    assert spread == [0, 1]


class Letters(Task):
    """Four questions whose answer is A, for a model that answers A whatever happens."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        self.check_index(index)
        messages = [{"role": "user", "content": "cab?"}, {"role": "assistant", "content": "A"}]
        return {"messages": messages, "letters": ["A", "B"]}

    def evaluate(self, conversation: dict, response: str) -> bool:
        return response == "A"


def test_a_damaged_model_gets_no_score():
    with pytest.raises(ValueError, match="a logit is NaN"):
        evaluate_categorical(Engine(damaged_gpt(), TOKENIZER), Letters())
    ids = torch.tensor([TOKENIZER.encode("a cab")])
    token_bytes = torch.tensor(TOKENIZER.token_bytes())
    with pytest.raises(ValueError, match="a loss is NaN"):
        evaluate_bpb(damaged_gpt(), [(ids[:, :-1], ids[:, 1:])], token_bytes)
    with pytest.raises(ValueError, match="a loss is NaN"):
        bits_per_byte([1.0, NAN], [1, 1])
    assert bits_per_byte([1.0, NAN], [1, 0]) == bits_per_byte([1.0], [1])  # not counted, no harm


@pytest.mark.parametrize(
    "make",
    [
        lambda: BigramModel(torch.ones(2, 2, dtype=torch.long), prior=NAN),
        lambda: BigramModel(torch.ones(2, 2, dtype=torch.long), prior=math.inf),
        lambda: GPTConfig(softcap=NAN),
        lambda: GPTConfig(rope_base=NAN),
        lambda: AdamW([torch.nn.Parameter(torch.ones(2))], lr=NAN),
        lambda: AdamW([torch.nn.Parameter(torch.ones(2))], eps=NAN),
        lambda: AdamW([torch.nn.Parameter(torch.ones(2))], weight_decay=NAN),
        lambda: AdamW([torch.nn.Parameter(torch.ones(2))], betas=(NAN, 0.9)),
        lambda: Muon([torch.nn.Parameter(torch.ones(2, 2))], lr=NAN),
        lambda: Muon([torch.nn.Parameter(torch.ones(2, 2))], momentum=NAN),
        lambda: Muon([torch.nn.Parameter(torch.ones(2, 2))], weight_decay=NAN),
        lambda: build_optimizers(GPT(CONFIG), OptimConfig(matrix_lr=NAN)),
        lambda: LoopConfig(cooldown_fraction=NAN),
        lambda: LoopConfig(warmup_fraction=1.5),
        lambda: LoopConfig(final_lr_fraction=-0.1),
        lambda: LoopConfig(grad_clip=NAN),
        lambda: LoopConfig(save_seconds=NAN),
    ],
)
def test_no_setting_takes_nan(make):
    with pytest.raises(ValueError, match="nan|inf|1.5|-0.1"):
        make()


class Endless:
    """The same batch for ever."""

    def __iter__(self):
        return self

    def __next__(self):
        ids = torch.tensor([list(b"a cab is a cab")])
        return ids[:, :-1], ids[:, 1:]

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


def train_with_damage(folder: Path, damage_after: int, evaluate=None, **options):
    """Train; after some steps one weight becomes NaN, as an update that diverges leaves it."""
    model = GPT(CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    sizes = dict(steps=20, device_batch_size=1, sequence_len=13, total_batch_tokens=13)
    config = LoopConfig(**sizes, **({"save_seconds": 0.0} | options))

    def damage(info: dict) -> None:
        if info["step"] == damage_after:
            model.wte.weight.data[ord("a"), 0] = NAN

    meta = {"config": {}, "tokenizer_hash": ""}
    return train(model, build_optimizers(model), Endless(), config, folder, meta, evaluate, damage)


@pytest.mark.parametrize("save_seconds", [0.0, 1e9])
def test_training_stops_with_the_step_and_the_last_good_checkpoint(tmp_path, save_seconds):
    with pytest.raises(ValueError) as stopped:
        train_with_damage(tmp_path, damage_after=6, save_seconds=save_seconds)
    message = str(stopped.value)
    if save_seconds:  # nothing was saved: the next loss is the first sign
        assert message.startswith("the loss is nan at step 7: lower the learning rates")
        assert message.endswith("not there yet") and latest_checkpoint(tmp_path) is None
    else:  # the weights are looked at before they are saved
        assert re.match("wte.weight holds NaN or infinity after step 6", message)
        assert message.endswith("step_000005") and latest_checkpoint(tmp_path).name == "step_000005"


def test_a_damaged_model_is_not_evaluated_in_training(tmp_path):
    scores = []

    def evaluate(model) -> float:
        scores.append(float(model.wte.weight.sum()))
        return 1.0

    with pytest.raises(ValueError, match="after step 6|at step 7"):
        train_with_damage(tmp_path, 6, evaluate, eval_every=1, save_seconds=1e9)
    assert len(scores) == 7 and all(map(math.isfinite, scores))
    finished = train_with_damage(tmp_path / "well", damage_after=-1)
    assert finished["steps"] == 20 and math.isfinite(finished["final_loss"])
