"""The GPT against its derived counts, its own cached form, and transformers' NanoChatForCausalLM."""

import copy
import dataclasses
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lib.model.attention import offset_keys, rms_norm
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.model.losses import token_losses
from nanochat_lib.model.smear import Smear
from nanochat_lib.training.precision import prepare

SMALL = GPTConfig(sequence_len=32, vocab_size=100, n_layer=3, n_head=4, n_kv_head=4, n_embd=64)
SWITCHES = [
    {},
    {"smear": True},
    {"smear": True, "key_offset": True},
    {"smear": True, "key_offset": True, "value_embeds": True, "x0_lambdas": True},
]


class ListCache:
    """The cache protocol in its plainest form: one row at a time, keys and values in lists."""

    def __init__(self, config: GPTConfig, n_rows: int):
        n_layer, self.offset = config.n_layer, config.key_offset
        self.lengths = torch.zeros(n_rows, dtype=torch.int64)
        self.pending: torch.Tensor | None = None
        self.layers: list[list] = [[None, None] for _ in range(n_layer)]
        self.previous_embedding = None

    def set_lengths(self, lengths: torch.Tensor) -> None:
        self.pending = lengths

    def positions(self, n_new: int) -> torch.Tensor:
        return self.lengths[:, None] + torch.arange(n_new)

    def update(self, layer_idx, k, v):
        positions = self.positions(k.size(1))
        longest = int(positions.max()) + 1
        out = []
        for slot, new in enumerate((k, v)):
            old = self.layers[layer_idx][slot]
            full = torch.zeros(new.size(0), longest, *new.shape[2:])
            if old is not None:
                keep = min(longest, old.size(1))
                full[:, :keep] = old[:, :keep]
            for row in range(new.size(0)):
                full[row, positions[row]] = new[row]
            self.layers[layer_idx][slot] = full
            out.append(full)
        keys, values = out
        return (offset_keys(keys) if self.offset else keys), values

    def attention_mask(self, n_new: int) -> torch.Tensor:
        positions = self.positions(n_new)
        longest = int(positions.max()) + 1
        return (torch.arange(longest) <= positions[:, :, None])[:, None]

    def advance(self, n_new: int, embeddings) -> None:
        self.lengths = self.lengths + n_new if self.pending is None else self.pending
        if embeddings is not None:
            last = (
                self.pending if self.pending is not None else torch.full_like(self.lengths, n_new)
            ) - 1
            self.previous_embedding = embeddings[torch.arange(len(last)), last][:, None]
        self.pending = None


def trained_looking(config: GPTConfig, seed: int = 0) -> GPT:
    """Return a model no weight of which is zero: at init every block is the identity and hides bugs."""
    model = GPT(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * weight.size(-1) ** -0.5)
    return model


def random_ids(*shape: int, seed: int = 1, vocab_size: int = 100) -> torch.Tensor:
    return torch.randint(0, vocab_size, shape, generator=torch.Generator().manual_seed(seed))


# --- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "depth, n_params, flops", [(20, 560_988_160, 3.491758e9), (32, 1_879_048_192, 1.207960e10)]
)
def test_classic_sizes_are_the_published_ones(depth, n_params, flops):
    config = GPTConfig.from_depth(depth, vocab_size=65_536, sequence_len=2_048)
    with torch.device("meta"):
        model = GPT(config)
    V, C, L, T = 65_536, 64 * depth, depth, 2_048
    assert model.num_params() == 2 * V * C + 12 * L * C**2 == n_params
    assert model.num_scaling_params() == n_params - V * C
    assert model.estimate_flops() == 6 * (n_params - V * C) + 12 * L * C * T
    assert model.estimate_flops() == pytest.approx(flops, rel=1e-6)


def test_twenty_tokens_a_parameter_take_the_published_steps():
    steps = {}
    for depth in (20, 32):
        with torch.device("meta"):
            model = GPT(GPTConfig.from_depth(depth, vocab_size=65_536, sequence_len=2_048))
        steps[depth] = 20 * model.num_params() // 524_288
    assert steps == {20: 21_400, 32: 71_680}


@pytest.mark.parametrize(
    "depth, n_embd, head_dim",
    [(1, 64, 32), (2, 128, 32), (4, 256, 64), (9, 640, 128), (20, 1280, 128)],
)
def test_depth_derives_width_and_heads(depth, n_embd, head_dim):
    config = GPTConfig.from_depth(depth)
    assert (config.n_layer, config.n_embd, config.head_dim) == (depth, n_embd, head_dim)
    assert config.n_head == config.n_kv_head == n_embd // head_dim


def test_modern_is_classic_plus_25_smear_weights_two_value_embeddings_and_four_lambdas():
    classic = GPTConfig.from_depth(4)
    modern = GPTConfig.from_depth(4, recipe="modern")
    off = dict.fromkeys(SWITCHES[-1], False)
    assert dataclasses.replace(modern, **off) == classic
    a_layer = classic.padded_vocab_size * classic.n_embd + 32 * classic.n_head  # table and gate
    assert GPT(modern).num_params() - GPT(classic).num_params() == 25 + 4 + 2 * a_layer
    assert [block.value_embed is not None for block in GPT(modern).blocks] == [False, True] * 2


def test_a_value_embedding_adds_the_rows_of_the_tokens_to_their_values():
    config = dataclasses.replace(SMALL, value_embeds=True)
    model = trained_looking(config)
    idx, block = random_ids(2, 9), model.blocks[-1]
    x = torch.randn(2, 9, config.n_embd, generator=torch.Generator().manual_seed(3))
    cos, sin = model.cos[:9], model.sin[:9]
    rows = block.value_embed(idx, rms_norm(x))
    for b, t in ((0, 0), (1, 8)):
        gate = 2 / (1 + (-block.value_embed.gate.weight @ rms_norm(x)[b, t, :32]).exp())
        row = block.value_embed.table.weight[idx[b, t]].view(config.n_kv_head, -1)
        torch.testing.assert_close(rows[b, t], gate[:, None] * row)
    attn = block.attn
    plain = attn(rms_norm(x), cos, sin)
    more = attn(rms_norm(x), cos, sin, more_values=rows)
    alone = copy.deepcopy(attn)
    alone.c_v.weight.data.zero_()  # attention is linear in the values, whoever brings them
    torch.testing.assert_close(more, plain + alone(rms_norm(x), cos, sin, more_values=rows))


@pytest.mark.parametrize("recipe", ["classic", "modern"])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_texts_that_share_a_row_do_not_read_each_other(recipe, dtype):
    config = GPTConfig.from_depth(3, vocab_size=50, sequence_len=48, recipe=recipe)
    model = GPT(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():  # as after training: no gate and no head is closed
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.05)
    if dtype is not None:
        prepare(model, [], dtype)
    model.first_token = 0
    lengths = [[9, 1, 20, 18], [30, 18], [48]]  # the last row opens without the first token
    rows = torch.randint(1, 50, (3, 48), generator=generator)
    for row, parts in zip(rows[:2], lengths):
        row[[sum(parts[:i]) for i in range(len(parts))]] = 0
    packed = model(rows)
    tolerance = 0.15 if dtype == torch.bfloat16 else 1e-4
    for row, together, parts in zip(rows, packed, lengths):
        for start, length in zip([sum(parts[:i]) for i in range(len(parts))], parts):
            alone = model(row[None, start : start + length])[0]
            assert (together[start : start + length] - alone).abs().max() < tolerance
    model.first_token = None
    assert (model(rows)[:2] - packed[:2]).abs().max() > 2 * tolerance, "the borders do nothing"
    assert torch.equal(model(rows)[2], packed[2]) or dtype == torch.bfloat16


def test_flop_estimate_agrees_with_torch_counter():
    from torch.utils.flop_counter import FlopCounterMode

    model = GPT(SMALL)
    idx = random_ids(2, SMALL.sequence_len)
    with FlopCounterMode(display=False) as counter:
        model(idx, idx).backward()
    counted = counter.get_total_flops() / idx.numel()
    padded = model.estimate_flops()
    # torch counts one recomputed product inside the attention kernel's backward pass
    extra = 2 * SMALL.n_layer * SMALL.n_embd * SMALL.sequence_len
    assert counted == pytest.approx(padded, rel=1e-9) or counted == pytest.approx(
        padded + extra, rel=1e-9
    )


# --- agreement with transformers -----------------------------------------------------------------


def to_transformers(model: GPT):
    transformers = pytest.importorskip("transformers")
    config = model.config
    hf = transformers.NanoChatForCausalLM(
        transformers.NanoChatConfig(
            vocab_size=config.padded_vocab_size,
            hidden_size=config.n_embd,
            intermediate_size=4 * config.n_embd,
            num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head,
            num_key_value_heads=config.n_kv_head,
            max_position_embeddings=config.sequence_len,
            rms_norm_eps=1.1920929e-07,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
            final_logit_softcapping=config.softcap,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=None,
        )
    ).eval()
    names = {
        "attn.c_q": "self_attn.q_proj",
        "attn.c_k": "self_attn.k_proj",
        "attn.c_v": "self_attn.v_proj",
    }
    names |= {"attn.c_proj": "self_attn.o_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    names |= {"wte": "model.embed_tokens", "blocks": "model.layers"}
    state = {}
    for name, weight in model.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[name] = weight
    hf.load_state_dict(state, strict=True)
    return hf


@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
def test_logits_equal_transformers(n_kv_head):
    config = dataclasses.replace(SMALL, n_kv_head=n_kv_head)
    model = trained_looking(config)
    idx = random_ids(3, 32)
    with torch.no_grad():
        ours = model(idx)
        theirs = to_transformers(model)(input_ids=idx).logits[..., : config.vocab_size]
    assert torch.equal(ours, theirs), f"largest difference {(ours - theirs).abs().max()}"


# --- the cached form equals the whole form -------------------------------------------------------


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("n_kv_head", [4, 1])
@pytest.mark.parametrize("chunks", [(20,), (5, 15), (1,) * 20, (7, 1, 1, 11)])
def test_cached_forward_equals_full_forward(switches, n_kv_head, chunks):
    config = dataclasses.replace(SMALL, n_kv_head=n_kv_head, **switches)
    model = trained_looking(config)
    idx = random_ids(2, 20)
    cache = ListCache(config, 2)
    with torch.no_grad():
        whole = model(idx)
        parts = torch.cat([model(part, kv_cache=cache) for part in idx.split(chunks, dim=1)], dim=1)
    assert cache.lengths.tolist() == [20, 20]
    torch.testing.assert_close(parts, whole, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("switches", SWITCHES)
def test_rows_of_different_length_share_a_cache(switches):
    config = dataclasses.replace(SMALL, **switches)
    model = trained_looking(config)
    rows = [random_ids(9, seed=1), random_ids(4, seed=2)]
    padded = torch.zeros(2, 7, dtype=torch.int64)
    padded[0, :6], padded[1, :1] = rows[0][:6], rows[1][:1]  # column 7 is padding for both
    cache = ListCache(config, 2)
    cache.set_lengths(torch.tensor([6, 1]))
    with torch.no_grad():
        prefill = model(padded, kv_cache=cache)
        steps = [prefill[[0, 1], [5, 0]]]
        for step in range(3):
            column = torch.stack([rows[0][6 + step], rows[1][1 + step]])[:, None]
            steps.append(model(column, kv_cache=cache)[:, 0])
        for row, start in enumerate((5, 0)):
            alone = model(rows[row][None])[0, start : start + 4]
            together = torch.stack([logits[row] for logits in steps])
            torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-5)


# --- loss ----------------------------------------------------------------------------------------


def test_untrained_loss_is_log_vocab_size_without_the_padding():
    model = GPT(SMALL)
    idx = random_ids(4, 32)
    assert model(idx).shape == (4, 32, 100) and model.lm_head.weight.size(0) == 128
    assert model(idx, random_ids(4, 32, seed=2)).item() == pytest.approx(math.log(100), abs=2e-3)


def test_loss_equals_torch_cross_entropy():
    model = trained_looking(SMALL)
    idx, targets = random_ids(2, 16), random_ids(2, 16, seed=2)
    targets[0, :5] = -1
    logits = model(idx)
    assert logits.dtype == torch.float32 and logits.abs().max() < SMALL.softcap
    oracle = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=-1
    )
    torch.testing.assert_close(model(idx, targets), oracle)
    torch.testing.assert_close(model(idx, targets, loss_reduction="sum"), oracle * 27)
    single = model(idx, targets, loss_reduction="none")
    assert single.shape == (2, 16) and (single[0, :5] == 0).all() and (single[0, 5:] > 0).all()
    torch.testing.assert_close(single.sum(), oracle * 27)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_batch_without_targets_costs_nothing_and_moves_nothing(reduction):
    model = trained_looking(dataclasses.replace(SMALL, smear=True))
    idx = random_ids(2, 8)
    loss = model(idx, torch.full_like(idx, -1), loss_reduction=reduction)
    loss.backward()
    assert loss.item() == 0.0
    for name, weight in model.named_parameters():
        assert weight.grad is not None and (weight.grad == 0).all(), name


def test_bfloat16_weights_give_float32_logits():
    model = trained_looking(SMALL)
    idx = random_ids(2, 16)
    exact = model(idx)
    rounded = copy.deepcopy(model).to(torch.bfloat16)(idx)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().mean() < 0.05 * exact.abs().mean()


# --- structure -----------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(T=st.integers(1, 32), position=st.integers(0, 31), modern=st.booleans())
def test_a_token_never_changes_what_came_before(T, position, modern):
    position = position % T
    model = trained_looking(dataclasses.replace(SMALL, **dict.fromkeys(SWITCHES[-1], modern)))
    idx = random_ids(1, T)
    changed = idx.clone()
    changed[0, position] = (changed[0, position] + 1) % 100
    with torch.no_grad():
        before, after = model(idx), model(changed)
    assert torch.equal(before[:, :position], after[:, :position])
    assert not torch.equal(before[:, position], after[:, position])


def test_initial_weights_depend_on_the_generator_only():
    torch.manual_seed(1)
    a = GPT(SMALL)
    torch.manual_seed(2)
    b = GPT(SMALL)
    with torch.device("meta"):
        c = GPT(SMALL)
    c.to_empty(device="cpu")
    c.cos.fill_(9)  # what to_empty leaves is undefined
    c.init_weights(torch.Generator().manual_seed(0))
    for model in (b, c):
        assert all(
            torch.equal(x, y) for x, y in zip(a.parameters(), model.parameters(), strict=True)
        )
        assert torch.equal(a.cos, model.cos) and torch.equal(a.sin, model.sin)
    b.init_weights(torch.Generator().manual_seed(1))
    assert not torch.equal(a.wte.weight, b.wte.weight)


def test_initial_scales():
    model = GPT(GPTConfig(n_embd=256, vocab_size=2048, **SWITCHES[-1]))
    bound = (3 / 256) ** 0.5
    for name, weight in model.state_dict().items():
        if name.endswith(("c_proj.weight", "gate.weight")) or name.startswith(("smear", "x0")):
            assert (weight == 0).all(), name
        elif name.startswith("blocks"):
            assert weight.abs().max() <= bound and weight.std().item() == pytest.approx(
                1 / 16, rel=0.02
            ), name
    assert model.wte.weight.std().item() == pytest.approx(1.0, rel=0.02)
    assert model.lm_head.weight.std().item() == pytest.approx(0.001, rel=0.02)


def test_rope_tables_are_not_saved():
    assert set(GPT(SMALL).state_dict()) == {name for name, _ in GPT(SMALL).named_parameters()}


def test_smear_starts_as_identity_then_reads_one_token_back():
    smear = Smear(64)
    with torch.no_grad():
        smear.gate.weight.zero_()
    x = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(smear(x), x)
    with torch.no_grad():
        smear.scale.fill_(0.5)
    expected = x.clone()
    expected[:, 1:] += 0.25 * x[:, :-1]  # sigmoid(0) = 0.5
    torch.testing.assert_close(smear(x), expected)
    before = torch.ones(1, 1, 64)
    torch.testing.assert_close(smear(x, before)[:, :1], x[:, :1] + 0.25)
    torch.testing.assert_close(smear(x, before)[:, 1:], expected[:, 1:])


def test_the_training_path_is_one_graph():
    # in a fresh process: the shape checks of the tests are Python that no compiler can read
    program = """if True:
        import torch
        from nanochat_lib.model.gpt import GPT, GPTConfig
        model = GPT(GPTConfig(n_layer=1, n_embd=32, n_kv_head=2, sequence_len=8, vocab_size=50, smear=True, value_embeds=True, x0_lambdas=True))
        idx = torch.arange(8)[None]
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert torch.equal(compiled(idx, idx), model(idx, idx))
    """
    subprocess.run([sys.executable, "-c", program], check=True)


# --- mistakes of the caller ----------------------------------------------------------------------


def test_any_length_up_to_the_limit_and_none_beyond():
    model = GPT(SMALL)
    for T in (1, 2, 31, 32):
        assert model(random_ids(1, T)).shape == (1, T, 100)
    with pytest.raises(ValueError, match="33 tokens do not fit sequence_len=32"):
        model(random_ids(1, 33))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n_embd": 100, "n_head": 3}, "n_embd=100"),
        ({"n_embd": 12, "n_head": 4}, "n_embd=12"),
        ({"n_head": 4, "n_kv_head": 3}, "n_kv_head=3"),
        ({"n_head": 4, "n_kv_head": 0}, "n_kv_head=0"),
        ({"n_layer": 0}, "n_layer=0"),
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"softcap": 0.0}, "softcap=0.0"),
    ],
)
def test_impossible_sizes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**arguments)


def test_unknown_depth_recipe_and_reduction_are_named():
    with pytest.raises(ValueError, match="depth=0"):
        GPTConfig.from_depth(0)
    # the run-time type checker of the tests refuses an unknown recipe before our own check does
    with pytest.raises(Exception, match="postmodern"):
        GPTConfig.from_depth(2, recipe="postmodern")
    logits, targets = torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="'median'"):
        token_losses(logits, targets, "median")


@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
def test_offset_keys_start_as_copies_of_the_queries_that_use_them(n_kv_head):
    config = GPTConfig(n_embd=64, n_head=4, n_kv_head=n_kv_head, key_offset=True)
    for block in GPT(config).blocks:
        queries = block.attn.c_q.weight.view(n_kv_head, 4 // n_kv_head, 16, 64)
        assert torch.equal(block.attn.c_k.weight.view(n_kv_head, 16, 64), queries[:, 0])
        assert block.attn.c_k.weight.data_ptr() != block.attn.c_q.weight.data_ptr()
