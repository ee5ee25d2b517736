"""The conversation loader ends, loses nothing, resumes; a fine-tune learns and survives a stop."""

from collections import Counter
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lib.common import Ranks
from nanochat_lib.data.documents import write_shards
from nanochat_lib.data.tinyworld import World
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.tasks.base import Task
from nanochat_lib.tasks.practice import chat_mixture
from nanochat_lib.tasks.unknown import SFT_SHARES
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.checkpoint import load_model, save_checkpoint
from nanochat_lib.training.finetune import (
    IGNORE,
    ConversationLoader,
    FinetuneConfig,
    finetune,
    shift_targets,
)
from nanochat_lib.training.loader import best_fit

TEXTS = ["What comes after a? It is b. ", "Hello there, how are you? ", "one two three four "] * 9
TOKENIZER = Tokenizer.train(TEXTS, vocab_size=300)


class Listed(Task):
    """Conversations of (question, answer) pairs; answer None leaves the user waiting."""

    def __init__(self, pairs: list):
        super().__init__()
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict:
        question, answer = self.pairs[self.check_index(index)]
        messages = [{"role": "user", "content": question}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        return {"messages": messages}


ALPHABET = Listed(
    [(f"What comes after {a}?", f"It is {b}.") for a, b in zip("abcdefgh", "bcdefghi")]
)
pairs = st.lists(
    st.tuples(st.text("abc d", max_size=60), st.one_of(st.none(), st.text("xyz ", max_size=60))),
    min_size=1,
    max_size=12,
)


def learned(task: Task, indices=None) -> Counter:
    """Count the tokens that a task's conversations ask to learn."""
    counts = Counter()
    for index in range(len(task)) if indices is None else indices:
        ids, mask = TOKENIZER.render_conversation(task[index])
        counts.update(token for token, learn in zip(ids, mask) if learn)
    return counts


def in_batches(batches) -> Counter:
    return Counter(t for _, targets in batches for t in targets.flatten().tolist() if t != IGNORE)


def test_targets_are_the_next_token_where_its_own_mask_is_one():
    assert shift_targets([5, 6, 7], [0, 0, 1]) == [-1, 7]
    assert shift_targets([5, 6, 7, 8], [0, 1, 1, 0]) == [6, 7, -1]
    assert shift_targets([5], [1]) == []


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=8), st.integers(0, 20))
def test_best_fit_is_the_longest_that_fits_and_the_oldest_of_equals(lengths, room):
    best = best_fit(lengths, room)
    fitting = [length for length in lengths if length <= room]
    assert best == (lengths.index(max(fitting)) if fitting else None)


@settings(max_examples=30, deadline=None)
@given(pairs, st.integers(1, 80), st.integers(1, 6))
def test_any_task_at_any_length_gives_good_rows_or_a_clear_error(items, sequence_len, buffer_size):
    task = Listed(items)
    loader = ConversationLoader(task, TOKENIZER, 2, sequence_len, buffer_size=buffer_size)
    heads = (TOKENIZER.render_conversation(c)[1][1 : sequence_len + 1] for c in task)
    if not any(sum(head) for head in heads):
        with pytest.raises(ValueError, match="raise sequence_len"):
            next(loader)
        return
    for _ in range(4):
        inputs, targets = next(loader)
        assert inputs.shape == targets.shape == (2, sequence_len)
        assert inputs.dtype == targets.dtype == torch.int64
        assert (inputs[:, 0] == TOKENIZER.bos_id).all(), "a row starts inside a conversation"
        assert (targets != IGNORE).any(dim=1).all(), "a row without a target"


@settings(max_examples=20, deadline=None)
@given(pairs, st.integers(1, 6))
def test_one_pass_holds_every_learned_token_exactly_once(items, buffer_size):
    task = Listed([(q, "x" if a is None else a) for q, a in items])
    loader = ConversationLoader(task, TOKENIZER, 1, 300, loop=False, buffer_size=buffer_size)
    assert in_batches(loader) == learned(task)
    assert loader.skipped == 0


def test_each_target_is_the_token_that_follows_in_its_conversation():
    loader = ConversationLoader(ALPHABET, TOKENIZER, 2, 70)
    inputs, targets = next(loader)
    for row, wanted in zip(inputs.tolist(), targets.tolist()):
        for t in range(69):
            assert wanted[t] in (IGNORE, row[t + 1])
    assistant = TOKENIZER.encode_special("<|assistant_start|>")
    end = TOKENIZER.encode_special("<|assistant_end|>")
    starts = inputs == assistant
    assert starts.any() and (targets[starts] != IGNORE).all(), "the first word is not learned"
    assert int((targets == end).sum()) == int(starts.sum()), "an end token is not learned"
    users = inputs == TOKENIZER.encode_special("<|user_start|>")
    assert (targets[users] == IGNORE).all(), "the user's words are learned"


def test_nothing_to_learn_is_an_error_and_ends():
    with pytest.raises(ValueError, match="is empty"):
        ConversationLoader(Listed([]), TOKENIZER, 1, 16)
    silent = Listed([("hello", None), ("you", None)])
    with pytest.raises(ValueError, match="none of 2"):
        next(ConversationLoader(silent, TOKENIZER, 1, 16))
    mixed = ConversationLoader(Listed([("hello", None), ("a", "b")]), TOKENIZER, 1, 64)
    next(mixed)
    assert mixed.skipped > 0


def test_one_pass_with_loop_off_skips_the_silent_and_ends():
    loader = ConversationLoader(Listed([("a", "b"), ("c", None)] * 3), TOKENIZER, 1, 64, loop=False)
    assert len(list(loader)) >= 1 and loader.skipped == 3
    silent = ConversationLoader(Listed([("c", None)]), TOKENIZER, 1, 64, loop=False)
    with pytest.raises(ValueError, match="none of 1"):
        next(silent)


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"sequence_len": 0}, {"buffer_size": 0}])
def test_sizes_below_one_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ConversationLoader(ALPHABET, TOKENIZER, **({"batch_size": 1, "sequence_len": 8} | bad))


def test_text_needs_shards():
    with pytest.raises(ValueError, match="text_shards"):
        ConversationLoader(ALPHABET, TOKENIZER, 1, 8, text_fraction=0.5)


@pytest.mark.parametrize("fraction", [0.0, 0.15, 0.5])
def test_text_rows_come_in_their_share_and_resume(tmp_path, fraction):
    shards = write_shards(["one two three four"] * 50, tmp_path, documents_per_shard=50)

    def make() -> ConversationLoader:
        return ConversationLoader(
            ALPHABET, TOKENIZER, 4, 32, text_shards=shards, text_fraction=fraction
        )

    loader = make()
    user = TOKENIZER.encode_special("<|user_start|>")
    rows = torch.cat([next(loader)[0] for _ in range(20)])
    assert int((rows != user).all(dim=1).sum()) == int(80 * fraction)
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    for _ in range(10):
        for one, two in zip(next(loader), next(resumed)):
            assert torch.equal(one, two)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 12), st.integers(1, 9), st.integers(1, 3))
def test_a_resumed_loader_goes_on_with_the_same_batches(steps, buffer_size, batch_size):
    def make() -> ConversationLoader:
        return ConversationLoader(ALPHABET, TOKENIZER, batch_size, 50, buffer_size=buffer_size)

    loader, resumed = make(), make()
    for _ in range(steps):
        next(loader)
    resumed.load_state_dict(loader.state_dict())
    for _ in range(8):
        for one, two in zip(next(loader), next(resumed)):
            assert torch.equal(one, two)


def test_ranks_share_the_conversations_without_overlap():
    task = Listed([(f"q{i}", f"{i}") for i in range(7)])
    total = Counter()
    for rank in range(2):
        loader = ConversationLoader(
            task, TOKENIZER, 1, 80, Ranks(rank, rank, 2), loop=False, buffer_size=2
        )
        found = in_batches(loader)
        assert found == learned(task, range(rank, 7, 2))
        total += found
    assert total == learned(task)


CONFIG = FinetuneConfig(
    steps=12,
    device_batch_size=2,
    sequence_len=32,
    total_batch_tokens=128,
    save_seconds=0.0,
    dtype="float32",
    compile="off",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint of an untrained model."""
    folder = tmp_path_factory.mktemp("base")
    config = GPTConfig(
        sequence_len=32,
        vocab_size=TOKENIZER.vocab_size,
        n_layer=1,
        n_head=2,
        n_kv_head=2,
        n_embd=32,
    )
    model = GPT(config)
    model.init_weights(torch.Generator().manual_seed(0))
    meta = {"config": asdict(config), "tokenizer_hash": TOKENIZER.hash}
    save_checkpoint(folder, 0, model, [], meta)
    return folder


def test_a_fine_tune_learns_and_says_what_it_did(base, tmp_path):
    config = replace(CONFIG, steps=30, save_seconds=30.0)
    result = finetune(config, ALPHABET, TOKENIZER, base, tmp_path, progress=None)
    assert result["steps"] == 30 and result["skipped"] == 0
    model, meta = load_model(tmp_path, TOKENIZER)
    assert meta["stage"] == "sft" and meta["tokenizer_hash"] == TOKENIZER.hash
    untrained, _ = load_model(base, TOKENIZER)
    inputs, targets = next(ConversationLoader(ALPHABET, TOKENIZER, 4, 32))
    with torch.no_grad():
        assert model(inputs, targets) < 0.7 * untrained(inputs, targets)


def test_a_stopped_fine_tune_ends_like_an_undisturbed_one(base, tmp_path):
    class Stop(Exception):
        pass

    def stop_at_five(info: dict) -> None:
        if info["step"] == 5:
            raise Stop

    finetune(CONFIG, ALPHABET, TOKENIZER, base, tmp_path / "whole", progress=None)
    with pytest.raises(Stop):
        finetune(CONFIG, ALPHABET, TOKENIZER, base, tmp_path / "halves", progress=stop_at_five)
    finetune(CONFIG, ALPHABET, TOKENIZER, base, tmp_path / "halves", progress=None)
    whole, _ = load_model(tmp_path / "whole", TOKENIZER)
    halves, _ = load_model(tmp_path / "halves", TOKENIZER)
    for one, two in zip(whole.parameters(), halves.parameters()):
        assert torch.equal(one, two)


def test_lr_scale_multiplies_every_rate():
    half = replace(CONFIG, lr_scale=0.5).scaled_optim
    for name in ("matrix_lr", "embedding_lr", "head_lr", "scalar_lr"):
        assert getattr(half, name) == 0.5 * getattr(CONFIG.optim, name)
    assert half.betas == CONFIG.optim.betas


def test_rows_longer_than_the_context_are_refused(base, tmp_path):
    config = replace(CONFIG, sequence_len=64)
    with pytest.raises(ValueError, match="64 is longer than the model's context, 32"):
        finetune(config, ALPHABET, TOKENIZER, base, tmp_path, progress=None)


def test_losses_stay_finite_at_every_row_length(base):
    model, _ = load_model(base, TOKENIZER)
    task = Listed([("hello " * 40, "b"), ("a", "b " * 60), ("", "x"), ("c", None)])
    for sequence_len in range(2, 33):
        loader = ConversationLoader(task, TOKENIZER, 2, sequence_len)
        try:
            inputs, targets = next(loader)
        except ValueError:
            assert sequence_len < 5
            continue
        assert torch.isfinite(model(inputs, targets))
    nothing = torch.full((2, 8), IGNORE)
    loss = model(torch.zeros(2, 8, dtype=torch.int64), nothing)
    loss.backward()
    assert loss.item() == 0.0


def learned_by_hand(row: list[int]) -> list[bool]:
    """Read a packed row token by token and decide what the assistant says itself."""
    special = {
        name: TOKENIZER.encode_special(f"<|{name}|>")
        for name in ("bos", "assistant_start", "assistant_end", "output_start", "output_end")
    }
    speaking, reading, learned = False, False, []
    for token in row:
        if token == special["bos"]:
            speaking = reading = False
        if token == special["output_start"]:
            reading = True
        learned.append(speaking and not reading)
        if token == special["assistant_start"]:
            speaking = True
        if token == special["assistant_end"]:
            speaking = False
        if token == special["output_end"]:
            reading = False
    return learned


@pytest.mark.parametrize("sequence_len", [64, 256, 1024, 2048])
def test_masks_are_those_read_by_hand_and_losses_finite_at_every_context(sequence_len):
    task = chat_mixture(World(0), 400, shares=SFT_SHARES)
    loader = ConversationLoader(task, TOKENIZER, 2, sequence_len)
    config = GPTConfig(
        sequence_len=sequence_len, vocab_size=300, n_layer=1, n_head=1, n_kv_head=1, n_embd=32
    )
    model = GPT(config)
    model.init_weights(torch.Generator().manual_seed(0))
    for _ in range(3):
        inputs, targets = next(loader)
        for row, wanted in zip(inputs.tolist(), targets.tolist()):
            learned = learned_by_hand(row)
            by_hand = [t if yes else IGNORE for t, yes in zip(row[1:], learned[1:])]
            assert wanted[:-1] == by_hand
            assert any(target != IGNORE for target in wanted)
        loss = model(inputs, targets)
        loss.backward()
        assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())


def test_what_opens_a_row_is_drawn_fairly():
    """Packing has favourites: a long conversation finds room early and would never come first."""
    short, long = ("go", "on " * 4), ("Go", "on " * 20)
    task = Listed([short, long, long] * 100)
    inputs, _ = next(ConversationLoader(task, TOKENIZER, 300, 200))
    opener = TOKENIZER.encode("Go")[0]
    share = (inputs[:, 2] == opener).double().mean()
    assert 0.5 < share < 0.85, f"{share:.0%} of the rows begin with a long one, expected 67%"


@pytest.mark.parametrize("chain", [0.0, 0.5, 1.0])
def test_chained_conversations_are_turns_of_one_chat(chain):
    task = chat_mixture(World(0), 300)
    loader = ConversationLoader(task, TOKENIZER, 1, 400, loop=False, chain=chain)
    bos, joints, borders, learned = TOKENIZER.bos_id, 0, 0, 0
    start, end = (TOKENIZER.encode_special(f"<|{x}|>") for x in ("user_start", "assistant_end"))
    for inputs, targets in loader:
        ids = inputs[0].tolist()
        assert ids[0] == bos and inputs.shape == (1, 400)
        joints += sum(a == end and b == start for a, b in zip(ids, ids[1:]))
        borders += sum(
            a == end and b == bos and c == start for a, b, c in zip(ids, ids[1:], ids[2:])
        )
        learned += int((targets != IGNORE).sum())
    inside = sum(len(c["messages"]) // 2 - 1 for c in task)  # turns that a task wrote itself
    chained = joints - inside
    if chain in (0.0, 1.0):
        assert (chained if chain == 0 else borders) == 0
    else:
        assert abs(chained - borders) < 0.4 * (chained + borders)
    masks = [TOKENIZER.render_conversation(c)[1] for c in task]
    assert learned == sum(map(sum, masks)), "chaining lost something to learn"


def test_a_chained_row_is_what_the_tokenizer_makes_of_its_turns():
    first, second = (chat_mixture(World(0), 40)[i]["messages"][:2] for i in (3, 7))
    loader = ConversationLoader(Two([first, second]), TOKENIZER, 1, 256, loop=False, chain=1.0)
    ids = next(loader)[0][0].tolist()
    both = [first + second, second + first]
    renderings = [TOKENIZER.render_conversation({"messages": chat})[0] for chat in both]
    assert any(ids[: len(r)] == r for r in renderings)
    with pytest.raises(ValueError, match="chain=1.5"):
        ConversationLoader(Two([first]), TOKENIZER, 1, 256, chain=1.5)


class Two(Task):
    """Some given conversations."""

    def __init__(self, chats: list):
        super().__init__("train")
        self.chats = chats

    def __len__(self) -> int:
        return len(self.chats)

    def __getitem__(self, index: int) -> dict:
        return {"messages": self.chats[self.check_index(index)]}
