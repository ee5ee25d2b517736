"""The engine: greedy equals full recompute, samples differ, tools force tokens, contexts end."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from nanochat_lib.inference.engine import MAX_CALL, Engine, Row
from nanochat_lib.inference.sampling import sample
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.tokenizer.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["a b c"], vocab_size=265)
SPECIAL = TOKENIZER.encode_special
STOP, BOS = SPECIAL("<|assistant_end|>"), TOKENIZER.bos_id
CONFIG = GPTConfig(sequence_len=48, vocab_size=265, n_layer=2, n_embd=32, n_head=2, n_kv_head=2)


def shaken_gpt(smear: bool) -> GPT:
    model = GPT(GPTConfig(**{**CONFIG.__dict__, "smear": smear}))
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn(weight.shape, generator=generator)
    return model


class ScriptedGPT(GPT):
    """Follow a table: after token a comes table[a], or `rest`; remember how many rows were fed."""

    def __init__(self, table: dict[int, int], rest: int = ord("x")) -> None:
        super().__init__(CONFIG)
        self.next_token = torch.full((265,), rest)
        for token, following in table.items():
            self.next_token[token] = following
        self.rows_fed: list[int] = []

    def forward(self, idx, targets=None, kv_cache=None, loss_reduction="mean"):
        self.rows_fed.append(idx.shape[0])
        assert int(kv_cache.positions(idx.shape[1]).max()) < self.config.sequence_len
        kv_cache.advance(idx.shape[1])
        return 10.0 * torch.nn.functional.one_hot(self.next_token[idx], 265).float()


def chain(text: str, *special: str) -> dict[int, int]:
    """Make a table that leads through the given tokens; ids may not repeat."""
    ids = [SPECIAL(part) if part in special else ord(part) for part in text.split()]
    return dict(zip(ids, ids[1:]))


@torch.inference_mode()
def slow_greedy(model: GPT, tokens: list[int], n_new: int) -> list[int]:
    answer: list[int] = []
    while len(answer) < n_new:
        token = int(model(torch.tensor([tokens + answer]))[0, -1].argmax())
        if token in (STOP, BOS):
            break
        answer.append(token)
    return answer


def random_prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("smear", [False, True])
def test_greedy_equals_full_recompute(smear):
    model = shaken_gpt(smear)
    engine, prompts = Engine(model, TOKENIZER), random_prompts(1, 9, 4, 30, 2, 47)
    together = engine.generate_batch(prompts, max_tokens=10)
    for prompt, (tokens, mask) in zip(prompts, together):
        assert tokens == slow_greedy(model, prompt, min(10, 48 - len(prompt)))
        assert mask == [1] * len(tokens)
        assert engine.generate_batch([prompt], max_tokens=10) == [(tokens, mask)]


def test_generate_streams_what_generate_batch_returns():
    engine, [prompt] = Engine(shaken_gpt(True), TOKENIZER), random_prompts(5)
    columns = list(engine.generate(prompt, num_samples=3, max_tokens=12, seed=7))
    batch = engine.generate_batch([prompt], 12, temperature=1.0, seed=7, num_samples=3)
    for row, (tokens, mask) in enumerate(batch):
        assert [column[row] for column, _ in columns][: len(tokens)] == tokens
        assert [flags[row] for _, flags in columns][: len(tokens)] == mask


def test_samples_of_one_prompt_are_drawn_one_by_one_from_the_first_token_on():
    engine, [prompt] = Engine(shaken_gpt(False), TOKENIZER), random_prompts(5)
    first, _ = next(engine.generate(prompt, num_samples=200, seed=3))
    probabilities = engine.model(torch.tensor([prompt]))[0, -1].softmax(-1).detach()
    assert len(set(first)) > 5, f"only {set(first)}: one token for all samples?"
    mean = torch.tensor([probabilities[token] for token in first]).mean()
    assert abs(mean - (probabilities**2).sum()) < 0.05


def test_seed_repeats_and_seeds_differ():
    engine, prompts = Engine(shaken_gpt(False), TOKENIZER), random_prompts(5, 8)
    draw = lambda seed: engine.generate_batch(prompts, 15, temperature=1.0, seed=seed)  # noqa: E731
    state = torch.get_rng_state()
    assert draw(1) == draw(1) != draw(2)
    assert torch.equal(torch.get_rng_state(), state), "the engine used the global generator"


def test_a_row_does_not_depend_on_when_its_neighbours_end():
    engine, prompts = Engine(shaken_gpt(False), TOKENIZER), random_prompts(3, 3, 3, 3)
    alone = engine.generate_batch(prompts, 20, temperature=1.0, seed=5)
    # Longer prompts leave three rows room for one token, so they are dropped after one step.
    crowded = [prompts[0], *random_prompts(47, 47, 47)]
    assert engine.generate_batch(crowded, 20, temperature=1.0, seed=5)[0] == alone[0]


def test_tool_call_forces_the_result():
    names = ("<|python_start|>", "<|python_end|>", "<|output_end|>", "<|assistant_end|>")
    call = chain("q <|python_start|> 3 * 4 <|python_end|> ! !", *names)
    model = ScriptedGPT(call | chain("<|output_end|> . <|assistant_end|>", *names))
    engine = Engine(model, TOKENIZER)
    [(tokens, mask)] = engine.generate_batch([[ord("q")]], max_tokens=30)
    text = "<|python_start|>3*4<|python_end|><|output_start|>12<|output_end|>."
    assert TOKENIZER.decode(tokens) == text
    assert mask == [1, 1, 1, 1, 1, 0, 0, 0, 0, 1]
    columns = list(engine.generate([ord("q")], max_tokens=30, temperature=0.0))
    assert [column[0] for column, _ in columns] == [*tokens, STOP]
    assert [flags[0] for _, flags in columns] == [*mask, 1]


@pytest.mark.parametrize("expression", ["3 * *", "a", ""])
def test_a_call_that_cannot_be_worked_out_gets_an_error(expression):
    row = Row(TOKENIZER, budget=50)
    call = [SPECIAL("<|python_start|>"), *expression.encode(), SPECIAL("<|python_end|>")]
    for token in [*call, *[ord("A")] * 8]:
        row.accept(token, frozenset({STOP}))
    written = f"<|python_start|>{expression}<|python_end|><|output_start|>error<|output_end|>A"
    assert TOKENIZER.decode(row.tokens) == written
    assert row.mask == [1] * len(call) + [0] * 7 + [1]


def test_a_call_without_an_end_is_ended():
    row = Row(TOKENIZER, budget=MAX_CALL + 20)
    for token in [SPECIAL("<|python_start|>"), *[ord("1")] * (MAX_CALL + 19)]:
        row.accept(token, frozenset({STOP}))
    text = (
        f"<|python_start|>{'1' * (MAX_CALL + 1)}<|python_end|><|output_start|>error<|output_end|>"
    )
    assert TOKENIZER.decode(row.tokens) == text + "1" * 10
    assert row.mask == [1] * (MAX_CALL + 2) + [0] * 8 + [1] * 10


def test_the_longest_call_is_worked_out():
    row = Row(TOKENIZER, budget=MAX_CALL + 10)
    expression = "1+" * (MAX_CALL // 2 - 1) + "11"
    call = [SPECIAL("<|python_start|>"), *expression.encode(), SPECIAL("<|python_end|>")]
    for token in [*call, *[ord("x")] * 4]:
        row.accept(token, frozenset({STOP}))
    assert len(expression) == MAX_CALL
    output = f"<|output_start|>{eval(expression)}<|output_end|>"
    assert TOKENIZER.decode(row.tokens).endswith(output)


def test_an_end_without_a_start_and_a_second_start_are_harmless():
    row = Row(TOKENIZER, budget=50)
    start, end = SPECIAL("<|python_start|>"), SPECIAL("<|python_end|>")
    for token in [end, start, ord("9"), start, ord("1"), ord("+"), ord("1"), end, 0, 0, 0]:
        row.accept(token, frozenset({STOP}))
    assert TOKENIZER.decode(row.tokens[-3:]) == "<|output_start|>2<|output_end|>"


def test_budget_cuts_a_forced_result():
    row = Row(TOKENIZER, budget=6)
    for token in [SPECIAL("<|python_start|>"), *b"1+1", SPECIAL("<|python_end|>"), 0, 0, 0]:
        last = row.accept(token, frozenset({STOP}))
    assert row.finished and len(row.tokens) == 6 and row.mask == [1] * 5 + [0]
    assert last == (SPECIAL("<|output_start|>"), 0)


@pytest.mark.parametrize("stop", [STOP, BOS])
def test_stop_tokens_end_a_row_and_are_not_returned(stop):
    engine = Engine(ScriptedGPT({ord("a"): ord("b"), ord("b"): stop}), TOKENIZER)
    assert engine.generate_batch([[ord("a")], [ord("b")], [ord("c")]], max_tokens=4) == [
        ([ord("b")], [1]),
        ([], []),
        ([ord("x")] * 4, [1] * 4),
    ]


def test_columns_stay_complete_after_a_row_has_ended():
    engine = Engine(shaken_gpt(False), TOKENIZER)
    engine.stop_tokens = frozenset(range(130))  # about half of all tokens end a row
    columns = list(engine.generate([5], num_samples=8, max_tokens=20))
    assert all(len(column) == len(flags) == 8 for column, flags in columns)
    for row in range(8):
        tokens = [column[row] for column, _ in columns]
        end = next(i for i, token in enumerate(tokens) if token < 130)
        assert set(tokens[end:]) == {tokens[end]}
        assert [flags[row] for _, flags in columns] == [1] * (end + 1) + [0] * (
            len(tokens) - end - 1
        )


def test_ended_rows_leave_the_batch():
    model = ScriptedGPT({ord("a"): STOP})
    Engine(model, TOKENIZER).generate_batch([[ord("a")]] * 7 + [[ord("c")]], max_tokens=5)
    assert model.rows_fed == [8, 1, 1, 1, 1]


def test_nothing_runs_past_the_context():
    # The scripted model asserts its positions; ended rows ride along until they are dropped.
    lengths = (1, 47, 20, 46, 30)
    answers = Engine(ScriptedGPT({}), TOKENIZER).generate_batch([[99] * n for n in lengths])
    assert [len(tokens) for tokens, _ in answers] == [48 - n for n in lengths]
    engine = Engine(shaken_gpt(True), TOKENIZER)
    answers = engine.generate_batch([[99] * n for n in lengths], max_tokens=30, temperature=1.0)
    assert all(len(tokens) <= min(30, 48 - n) for n, (tokens, _) in zip(lengths, answers))


def test_bad_requests_say_what_is_wrong():
    engine = Engine(shaken_gpt(False), TOKENIZER)
    with pytest.raises(ValueError, match="prompt 1 has 48 tokens, the context has 48"):
        engine.generate_batch([[1], [1] * 48])
    with pytest.raises(ValueError, match="prompt 0 has 0 tokens"):
        engine.generate([])  # at the call, not at the first step
    with pytest.raises(ValueError, match="max_tokens 0"):
        engine.generate([1], max_tokens=0)
    with pytest.raises(ValueError, match="num_samples 0"):
        engine.generate([1], num_samples=0)
    with pytest.raises(ValueError, match="temperature -1"):
        engine.generate_batch([[1]], max_tokens=1, temperature=-1.0)
    with pytest.raises(ValueError, match="top_k 0"):
        engine.generate_batch([[1]], max_tokens=1, temperature=1.0, top_k=0)
    assert engine.generate_batch([]) == []


def test_streaming_does_not_switch_off_the_callers_gradients():
    for _ in Engine(shaken_gpt(False), TOKENIZER).generate([1], max_tokens=2):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_sample_draws_the_right_odds():
    logits = torch.tensor([2.0, -1.0, 0.5, 1.0, -3.0])
    uniforms = torch.rand(5_000, generator=torch.Generator().manual_seed(0))
    for temperature, top_k in ((1.0, None), (0.7, None), (2.0, 3), (1.0, 99)):
        kept = logits.clone()
        if top_k == 3:
            kept[[1, 4]] = float("-inf")
        expected = torch.softmax(kept / temperature, -1)
        drawn = sample(logits.expand(5_000, 5), uniforms, temperature, top_k)
        counts = torch.bincount(drawn, minlength=5)
        assert counts[expected == 0].sum() == 0
        used = expected > 0
        f_exp = (expected[used] / expected[used].sum()).double() * 5_000
        assert chisquare(counts[used].double(), f_exp / f_exp.sum() * 5_000).pvalue > 1e-3


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 1.0, 30.0, float("-inf")]), min_size=1, max_size=6),
    st.sampled_from([0.0, 2**-24, 0.5, 1 - 2**-24]),
    st.sampled_from([1e-3, 1.0, 50.0]),
)
def test_sample_never_takes_an_impossible_token(logits, uniform, temperature):
    logits = [0.5, *logits]
    token = int(sample(torch.tensor([logits]), torch.tensor([uniform]), temperature))
    assert torch.softmax(torch.tensor(logits) / temperature, -1)[token] > 0


def test_sample_temperature_zero_and_one_candidate_take_the_largest():
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    uniforms = torch.rand(20, generator=torch.Generator().manual_seed(1))
    assert torch.equal(sample(logits, uniforms, temperature=0.0), logits.argmax(-1))
    assert torch.equal(sample(logits, uniforms, top_k=1), logits.argmax(-1))
    assert torch.equal(sample(logits, uniforms, temperature=1e-4), logits.argmax(-1))
