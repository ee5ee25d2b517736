"""A folder for other engines: transformers is the judge of every file in it."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lib.inference.engine import Engine
from nanochat_lib.model.gpt import GPT, MODERN, GPTConfig
from nanochat_lib.serving.hugging_face import ExportHFConfig, export_hf, parents, write_hf
from nanochat_lib.tokenizer.bpe import split_pattern
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.checkpoint import save_checkpoint

transformers = pytest.importorskip("transformers")

TEXT = "hello world, it's the 42nd day; don't we'll SHE'LL say so? ¿Qué tal? \n\n  été 😀 mmmm aaaa"


def shaken_gpt(tokenizer: Tokenizer, **more) -> GPT:
    """Make a model in which every weight matters."""
    sizes = {"n_layer": 3, "n_embd": 64, "n_head": 4, "n_kv_head": 2, "sequence_len": 96}
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **{**sizes, **more})).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.fixture(scope="module", params=[1, 2, 3])
def pair(request, tmp_path_factory):
    """A tokenizer of ours, and what transformers makes of its folder."""
    pattern = split_pattern(request.param)
    tokenizer = Tokenizer.train([TEXT] * 4, vocab_size=310, pattern=pattern)
    folder = tmp_path_factory.mktemp("hf") / "model"
    write_hf(shaken_gpt(tokenizer), tokenizer, folder)
    return tokenizer, transformers.AutoTokenizer.from_pretrained(folder)


ODD = st.sampled_from([*"'sSlLſKk \t\r\n\x85\ufeff\xa0\u2028\u200b09٣é😀\u0301.,!", "'ll", "hello"])
TEXTS = st.one_of(st.text(max_size=40), st.lists(ODD, max_size=40).map("".join))


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_any_text_becomes_the_same_tokens_and_comes_back(pair, text):
    ours, theirs = pair
    text = (
        text.encode("utf-8", "replace").decode().replace("<|", "<")
    )  # names would be special there
    ids = theirs.encode(text, add_special_tokens=False)
    assert ids == ours.encode(text)
    assert theirs.decode(ids, clean_up_tokenization_spaces=False) == text


def test_every_token_has_its_id(pair):
    ours, theirs = pair
    assert len(theirs) == ours.vocab_size
    assert {
        name: theirs.convert_tokens_to_ids(name) for name in ours.special_ids
    } == ours.special_ids
    assert (theirs.bos_token_id, theirs.eos_token) == (ours.bos_id, "<|assistant_end|>")


PLAIN = st.text(st.characters(exclude_characters="<|", exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=60, deadline=None)
@given(PLAIN, PLAIN, PLAIN, st.booleans())
def test_a_chat_becomes_the_same_prompt(pair, first, second, third, system):
    ours, theirs = pair
    messages = [{"role": "user", "content": first}, {"role": "assistant", "content": second}]
    messages += [{"role": "user", "content": third}]
    if system:
        messages = [{"role": "system", "content": second}, *messages]
    wanted = ours.render_for_completion({"messages": messages})
    assert theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == wanted


@settings(max_examples=40, deadline=None)
@given(st.text("abé ", min_size=1, max_size=30))
def test_a_token_is_the_sum_of_its_parents(text):
    ranks = Tokenizer.train([text] * 3, vocab_size=290).ranks
    for token, rank in ranks.items():
        if len(token) > 1:
            left, right = parents(token, ranks)
            assert left + right == token and max(ranks[left], ranks[right]) < rank


def test_a_token_without_parents_is_refused():
    ranks = {bytes([i]): i for i in range(256)} | {b"abcd": 256}
    with pytest.raises(ValueError, match="token 256"):
        parents(b"abcd", ranks)


@pytest.mark.parametrize("n_kv_head", [4, 1])
def test_logits_are_equal_to_the_bit_and_greedy_answers_too(tmp_path, n_kv_head):
    tokenizer = Tokenizer.train([TEXT], vocab_size=300)  # is padded in our model, and not in theirs
    model = shaken_gpt(tokenizer, n_kv_head=n_kv_head)
    write_hf(model, tokenizer, tmp_path / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    ids = torch.randint(0, 300, (2, 60), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model(ids), theirs(ids).logits)
        prompt = ids[:1, :20]
        found = theirs.generate(prompt, do_sample=False, max_new_tokens=40)[0, 20:].tolist()
    [(wanted, _)] = Engine(model, tokenizer).generate_batch([prompt[0].tolist()], 40)
    stops = {tokenizer.encode_special("<|assistant_end|>"), tokenizer.bos_id}
    assert [token for token in found if token not in stops] == wanted


@pytest.mark.parametrize("name", MODERN)
def test_another_recipe_is_refused_by_name(tmp_path, name):
    tokenizer = Tokenizer.train([TEXT], vocab_size=300)
    with pytest.raises(ValueError, match=name):
        write_hf(shaken_gpt(tokenizer, **{name: True}), tokenizer, tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_new_folder_and_no_other(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer.train([TEXT], vocab_size=300)
    tokenizer.save(tmp_path / "runs/tiny [1]/tokenizer")
    model = shaken_gpt(tokenizer)
    meta = {"config": asdict(model.config), "tokenizer_hash": tokenizer.hash}
    save_checkpoint(tmp_path / "runs/tiny [1]/sft", 1, model, [], meta)
    folder = export_hf(ExportHFConfig())
    assert folder == Path("tiny [1]-hf") and "vllm serve" in capsys.readouterr().out
    assert json.loads((folder / "config.json").read_text("utf-8"))["model_type"] == "nanochat"
    before = (folder / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(ValueError, match="is there already"):
        export_hf(ExportHFConfig())
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "tiny [1]-hf"]
