"""The engine: greedy equals full recompute, samples differ, tools force tokens, contexts end."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from nanochat_lib.inference.engine import Engine
from nanochat_lib.inference.kept import KeptTexts, shared_length
from nanochat_lib.inference.row import MAX_CALL, Request, Row, in_a_loop
from nanochat_lib.inference.sampling import kept_tokens, sample, sampled_logprobs
from nanochat_lib.model.gpt import GPT, MODERN, GPTConfig
from nanochat_lib.tokenizer.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["a b c"], vocab_size=265)
SPECIAL = TOKENIZER.encode_special
STOP, BOS = SPECIAL("<|assistant_end|>"), TOKENIZER.bos_id
CONFIG = GPTConfig(sequence_len=48, vocab_size=265, n_layer=2, n_embd=32, n_head=2, n_kv_head=2)


def shaken_gpt(modern: bool) -> GPT:
    model = GPT(GPTConfig(**{**CONFIG.__dict__, **dict.fromkeys(MODERN, modern)}))
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

    def hidden(self, idx, kv_cache=None):
        self.rows_fed.append(idx.shape[0])
        assert int(kv_cache.positions(idx.shape[1]).max()) < self.config.sequence_len
        kv_cache.advance(idx.shape[1])
        return 10.0 * torch.nn.functional.one_hot(self.next_token[idx], 265).float()

    def logits(self, x):
        return x


def new_row(budget: int, **settings) -> Row:
    return Row(TOKENIZER, Request([1], **settings), budget)


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


@pytest.mark.parametrize("modern", [False, True])
def test_greedy_equals_full_recompute(modern):
    model = shaken_gpt(modern)
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
    row = new_row(50)
    call = [SPECIAL("<|python_start|>"), *expression.encode(), SPECIAL("<|python_end|>")]
    for token in [*call, *[ord("A")] * 8]:
        row.accept(token, frozenset({STOP}))
    written = f"<|python_start|>{expression}<|python_end|><|output_start|>error<|output_end|>A"
    assert TOKENIZER.decode(row.tokens) == written
    assert row.mask == [1] * len(call) + [0] * 7 + [1]


def test_a_call_without_an_end_is_ended():
    row = new_row(MAX_CALL + 20)
    for token in [SPECIAL("<|python_start|>"), *[ord("1")] * (MAX_CALL + 19)]:
        row.accept(token, frozenset({STOP}))
    text = (
        f"<|python_start|>{'1' * (MAX_CALL + 1)}<|python_end|><|output_start|>error<|output_end|>"
    )
    assert TOKENIZER.decode(row.tokens) == text + "1" * 10
    assert row.mask == [1] * (MAX_CALL + 2) + [0] * 8 + [1] * 10


def test_the_longest_call_is_worked_out():
    row = new_row(MAX_CALL + 10)
    expression = "1+" * (MAX_CALL // 2 - 1) + "11"
    call = [SPECIAL("<|python_start|>"), *expression.encode(), SPECIAL("<|python_end|>")]
    for token in [*call, *[ord("x")] * 4]:
        row.accept(token, frozenset({STOP}))
    assert len(expression) == MAX_CALL
    output = f"<|output_start|>{eval(expression)}<|output_end|>"
    assert TOKENIZER.decode(row.tokens).endswith(output)


def test_an_end_without_a_start_and_a_second_start_are_harmless():
    row = new_row(50)
    start, end = SPECIAL("<|python_start|>"), SPECIAL("<|python_end|>")
    for token in [end, start, ord("9"), start, ord("1"), ord("+"), ord("1"), end, 0, 0, 0]:
        row.accept(token, frozenset({STOP}))
    assert TOKENIZER.decode(row.tokens[-3:]) == "<|output_start|>2<|output_end|>"


def test_budget_cuts_a_forced_result():
    row = new_row(6)
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
    with pytest.raises(ValueError, match="prompt 1: the prompt has 48 tokens, the context has 48"):
        engine.generate_batch([[1], [1] * 48])
    with pytest.raises(ValueError, match="prompt 0: the prompt has 0 tokens"):
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


# --- requests that come and go -------------------------------------------------------------------


def answer_alone(model: GPT, request: Request) -> Row:
    engine = Engine(model, TOKENIZER)
    row = engine.submit(request)
    while engine.busy:
        engine.step()
    return row


@pytest.mark.parametrize("modern", [False, True])
@settings(max_examples=8, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([1, 2, 5]), st.sampled_from([3, 64]))
def test_an_answer_is_the_same_in_any_company(modern, dice, max_rows, chunk):
    model, beginning = shaken_gpt(modern), [dice.randrange(256) for _ in range(20)]
    requests = []
    for seed in range(7):
        prompt = [dice.randrange(256) for _ in range(dice.randint(1, 12))]
        prompt = beginning[: dice.choice([0, 17, 20])] + prompt
        top_k, top_p = dice.choice([(None, 1.0), (5, 1.0), (None, 0.8)])
        requests.append(Request(prompt, dice.randint(1, 15), top_k=top_k, top_p=top_p, seed=seed))
    engine = Engine(model, TOKENIZER, max_rows=max_rows, chunk=chunk, keep_bytes=10**6)
    rows, left = [], set()
    for request in requests:
        rows.append(engine.submit(request))
        for _ in range(dice.randint(0, 4)):
            engine.step()
        if dice.random() < 0.2:
            left.add(dice.randrange(len(rows)))
            for i in left:
                engine.cancel(rows[i])
    while engine.busy:
        engine.step()
    for i, (request, row) in enumerate(zip(requests, rows)):
        alone = answer_alone(model, request)
        assert row.finished
        if i in left:
            assert row.tokens == alone.tokens[: len(row.tokens)]
        else:
            assert (row.tokens, row.reason) == (alone.tokens, alone.reason)
            assert row.logprobs == pytest.approx(alone.logprobs, abs=1e-3)


def test_no_row_waits_for_another_to_end():
    model = ScriptedGPT({ord("a"): STOP})
    engine = Engine(model, TOKENIZER, max_rows=2)
    long, short, late = (
        engine.submit(Request([ord(c)], max_tokens=n, temperature=0.0))
        for c, n in (("c", 9), ("a", 9), ("c", 4))
    )
    steps = {}
    for step in range(12):
        engine.step()
        for name, row in (("long", long), ("short", short), ("late", late)):
            if row.finished:
                steps.setdefault(name, step)
    assert steps == {"short": 0, "late": 4, "long": 8}
    assert not engine.busy and engine.step() == []


def test_a_long_prompt_does_not_hold_up_answers():
    model = ScriptedGPT({})
    engine = Engine(model, TOKENIZER, chunk=5)
    first = engine.submit(Request([ord("c")], max_tokens=30))
    engine.step()
    second = engine.submit(Request([99] * 40, max_tokens=3))
    for n in range(2, 9):
        engine.step()
        assert len(first.tokens) == n and len(second.tokens) == 0
    engine.step()
    assert len(second.tokens) == 1, "40 tokens, 5 a step: the eighth step gives the first token"


def test_padding_does_not_pass_the_end_of_the_context():
    model, beginning = shaken_gpt(True), random_prompts(30)[0]
    engine = Engine(model, TOKENIZER, keep_bytes=10**6)
    engine.submit(Request(beginning, max_tokens=2, temperature=0.0))
    while engine.busy:
        engine.step()
    # Together: 30 tokens are known of one prompt, the other's 40 must all be read.
    requests = [Request([*beginning, 1, 2], 5), Request(random_prompts(9, 40)[1], 5)]
    rows = [engine.submit(request) for request in requests]
    while engine.busy:
        engine.step()
    assert rows[0].n_shared == 30
    assert [row.tokens for row in rows] == [answer_alone(model, r).tokens for r in requests]


def test_beginnings_are_read_once_also_when_their_reader_has_left():
    model, prompt = shaken_gpt(True), random_prompts(30)[0]
    engine = Engine(model, TOKENIZER, keep_bytes=10**6)
    first = engine.submit(Request(prompt, max_tokens=5, temperature=0.0))
    second = engine.submit(Request(prompt + [7], max_tokens=5, temperature=0.0))
    while engine.busy:
        engine.step()
    engine.step()
    assert (first.n_shared, second.n_shared) == (0, 30)
    third = engine.submit(Request(prompt + first.tokens + [9, 9], max_tokens=5, temperature=0.0))
    while engine.busy:
        engine.step()
    assert third.n_shared == 34, "the last token of an answer is never read"
    assert third.tokens == answer_alone(model, third.request).tokens
    assert Engine(model, TOKENIZER).kept.room == 0, "nothing is kept unless asked for"


def test_kept_texts_stay_within_their_room_and_forget_the_oldest():
    kept, text = KeptTexts(room=400), lambda n: [n] * 20
    for n in (1, 2):
        kept.add(text(n), torch.zeros(40))
    assert kept.find(text(1) + [5])[1] == 20
    kept.add(text(3), torch.zeros(40))
    assert kept.find(text(2) + [5]) == (None, 0) and kept.find(text(1) + [5])[1] == 20
    kept.add(text(1) + [6, 7], torch.zeros(50))
    assert kept.taken == 360 and len(kept.texts) == 2, "a longer text takes its beginning's place"
    kept.add(text(4), torch.zeros(101))
    assert kept.taken == 360, "what is larger than all the room is not kept"
    assert shared_length([5, 6, 7], [5, 6, 7, 8]) == 3 and shared_length([5, 6, 7], [5, 6]) == 1


def test_cancelled_requests_give_their_place_away():
    engine = Engine(ScriptedGPT({}), TOKENIZER, max_rows=1)
    first, second, third = (engine.submit(Request([ord("c")], max_tokens=9)) for _ in range(3))
    engine.step()
    engine.cancel(first)
    engine.cancel(second)
    engine.step()
    assert len(first.tokens) == 1 and second.tokens == [] and len(third.tokens) == 1
    assert first.reason == second.reason == "cancelled" and engine.rows == [third]


def test_a_stream_that_nobody_reads_on_leaves_no_row_behind():
    engine = Engine(ScriptedGPT({}), TOKENIZER)
    stream = engine.generate([99], num_samples=3)
    next(stream)
    stream.close()
    assert not engine.busy


def test_bias_penalties_and_alternatives():
    model = ScriptedGPT({}, rest=ord("x"))
    biased = answer_alone(model, Request([99], 3, temperature=0.0, bias={ord("z"): 20.0}))
    assert biased.tokens == [ord("z")] * 3
    never = answer_alone(model, Request([99], 3, temperature=0.0, bias={ord("x"): -100.0}))
    assert ord("x") not in never.tokens
    counted = answer_alone(model, Request([99], 4, temperature=0.0, frequency_penalty=4.0))
    assert counted.tokens[:3] == [ord("x")] * 3 and counted.tokens[3] != ord("x")
    present = answer_alone(model, Request([99], 2, temperature=0.0, presence_penalty=11.0))
    assert present.tokens[0] == ord("x") != present.tokens[1]
    noted = answer_alone(model, Request([99], 2, temperature=0.0, alternatives=2))
    odds = torch.nn.functional.one_hot(torch.tensor(ord("x")), 265).float().mul(10).log_softmax(-1)
    for (token, logprob), best, second in noted.alternatives:
        assert token == best[0] == ord("x") != second[0]
        assert logprob == best[1] == pytest.approx(odds[ord("x")].item(), abs=1e-5)
    assert len(noted.alternatives) == 2 and biased.alternatives == []


def test_loops_end_when_asked():
    row = answer_alone(ScriptedGPT({}), Request([99], temperature=0.0, end_loops=True))
    assert row.reason == "loop" and len(row.tokens) == 24
    assert answer_alone(ScriptedGPT({}), Request([99], temperature=0.0)).reason == "length"
    for period in (1, 3, 16):
        piece = list(range(period))
        assert in_a_loop([99, *piece * 24]), period
    assert not in_a_loop(list(range(17)) * 24) and not in_a_loop([])


def test_top_p_and_min_p_keep_what_they_say():
    odds = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    for top_p, expected in ((0.4, [1]), (0.6, [1, 3]), (0.8, [1, 2, 3]), (1.0, [0, 1, 2, 3])):
        assert kept_tokens(odds, top_p=top_p)[0].nonzero()[:, 0].tolist() == expected, top_p
    for min_p, expected in ((0.0, [0, 1, 2, 3]), (0.25, [1, 2, 3]), (0.4, [1, 3]), (1.0, [1])):
        assert kept_tokens(odds, min_p=min_p)[0].nonzero()[:, 0].tolist() == expected, min_p
    assert kept_tokens(odds, top_k=3, top_p=0.7)[0].tolist() == [False, True, False, True]


def test_top_p_and_min_p_agree_with_transformers():
    transformers = pytest.importorskip("transformers")
    logits = 3 * torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
    for p in (0.05, 0.5, 0.9):
        theirs = transformers.TopPLogitsWarper(p)(None, logits.clone())
        assert torch.equal(kept_tokens(logits, top_p=p), theirs.isfinite())
        theirs = transformers.MinPLogitsWarper(p)(None, logits.clone())
        assert torch.equal(kept_tokens(logits, min_p=p), theirs.isfinite())


def test_sampled_logprobs_with_all_dials():
    logits = 2 * torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    dials = (0.7, 12, 0.8, 0.05)
    kept = kept_tokens(logits / 0.7, *dials[1:])
    odds = (logits / 0.7).masked_fill(~kept, -torch.inf).log_softmax(-1)
    drawn = sample(logits, torch.rand(40, generator=torch.Generator().manual_seed(1)), *dials)
    expected = odds.gather(1, drawn[:, None])[:, 0]
    torch.testing.assert_close(sampled_logprobs(logits, drawn, *dials), expected)
    outside = (~kept).float().argmax(-1)
    assert sampled_logprobs(logits, outside, *dials).isfinite().all()
    for wrong in ({"top_p": 0.0}, {"top_p": 1.5}, {"min_p": -0.1}, {"min_p": float("nan")}):
        with pytest.raises(ValueError, match="top_p"):
            Request([1], **wrong)
