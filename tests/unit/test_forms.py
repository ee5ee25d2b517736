"""Forms: nothing outside comes, everything inside can, and nobody else notices."""

import json

import pytest
import regex
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_lib.inference.engine import Engine
from nanochat_lib.inference.forms import Forms
from nanochat_lib.inference.row import Request
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.tokenizer.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(
    ['hello 12 {"a": [1, 2]} héllo yes no maybe 2025-01-31'] * 4, vocab_size=300
)
FORMS = Forms(TOKENIZER)
END = TOKENIZER.encode_special("<|assistant_end|>")


def gpt(seed: int = 0) -> GPT:
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_kv_head": 2, "sequence_len": 256}
    model = GPT(GPTConfig(vocab_size=TOKENIZER.vocab_size, **sizes)).eval()
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return model


MODEL = gpt()


def draw(form, seeds=range(6), **dials) -> list:
    """Answer one prompt in a form, all seeds at once."""
    engine = Engine(MODEL, TOKENIZER)
    rows = [engine.submit(Request([1, 2], form=form, seed=seed, **dials)) for seed in seeds]
    while engine.busy:
        engine.step()
    return rows


def follow(form, text: str) -> bool:
    """Say whether a form lets a text pass, token by token, and end."""
    guide = form.start()
    for token in TOKENIZER.encode(text):
        if not guide.allowed()[token]:
            return False
        guide.accept(token)
    return bool(guide.allowed()[END])


@pytest.mark.parametrize(
    "dials", [{}, {"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.1}, {"min_p": 0.5}]
)
@pytest.mark.parametrize(
    "pattern", ["yes|no", "[a-z]{1,4} [0-9]{2}", "(é|😀){1,3}x", r"\$[0-9]{1,3}\.[0-9]{2}"]
)
def test_every_answer_matches_the_pattern(pattern, dials):
    for row in draw(FORMS.regex(pattern), **dials):
        text = TOKENIZER.decode(row.tokens)
        assert row.reason == "stop" and regex.fullmatch(pattern, text), text


def test_a_form_wins_over_every_other_dial():
    bias = dict.fromkeys(TOKENIZER.encode("no"), -100.0) | {TOKENIZER.encode("hello")[0]: 100.0}
    rows = draw(FORMS.regex("no"), bias=bias, presence_penalty=2.0, alternatives=3)
    assert {TOKENIZER.decode(row.tokens) for row in rows} == {"no"}


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
        "inner": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
                  "required": ["n"], "additionalProperties": False},
    },
    "required": ["name", "tags", "inner"],
    "additionalProperties": False,
}  # fmt: skip


def test_json_fits_its_schema():
    for row in draw(FORMS.json_schema(SCHEMA)):
        found = json.loads(TOKENIZER.decode(row.tokens))
        assert row.reason == "stop" and set(found) == {"name", "tags", "inner"}
        assert (
            len(found["name"]) <= 8 and len(found["tags"]) <= 2 and 0 <= found["inner"]["n"] <= 99
        )


@settings(max_examples=60, deadline=None)
@given(st.from_regex(r"[a-z]{2,5}( [0-9]{1,3})?(é|😀)?", fullmatch=True), st.text(max_size=6))
def test_what_fits_passes_and_what_does_not_is_stopped(fitting, other):
    pattern = r"[a-z]{2,5}( [0-9]{1,3})?(é|😀)?"
    form = FORMS.regex(pattern)
    assert follow(form, fitting)
    assert follow(form, other) == bool(regex.fullmatch(pattern, other))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.text(min_size=1, max_size=8).filter(lambda t: "\0" not in t), min_size=1, max_size=5
    )
)
def test_choices_are_texts_and_no_patterns(texts):
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    form = FORMS.choice(texts)
    assert all(follow(form, text) for text in texts)
    assert not follow(form, "§§")


def test_neighbours_do_not_notice():
    alone = draw(None, seeds=[1])[0].tokens
    engine = Engine(MODEL, TOKENIZER)
    rows = [engine.submit(Request([1, 2], seed=1))]
    rows += [
        engine.submit(Request([1, 2], form=FORMS.regex("[0-9]{40}"), seed=i)) for i in range(3)
    ]
    while engine.busy:
        engine.step()
    assert rows[0].tokens == alone
    assert all(regex.fullmatch("[0-9]{40}", TOKENIZER.decode(row.tokens)) for row in rows[1:])


def test_a_form_that_is_cut_says_so():
    [row] = draw(FORMS.json_schema({"type": "string", "minLength": 50}), seeds=[0], max_tokens=5)
    assert row.reason == "length" and TOKENIZER.decode(row.tokens).startswith('"')


def test_inside_a_form_no_tool_is_called():
    for row in draw(FORMS.regex("[a-z ]{10,20}")):
        assert all(token < TOKENIZER.bos_id for token in row.tokens)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: FORMS.regex("("), "the pattern"),
        (lambda: FORMS.regex("(?=a)b"), "look-around"),
        (lambda: FORMS.json_schema({"type": 3}), "the schema"),
        (lambda: FORMS.json_schema({"type": "object", "properties": {"a": {"$ref": "http://x"}}}), "http://x"),
        (lambda: FORMS.json_schema({"type": "string", "pattern": "(?<=a)b"}), "look-behind"),
        (lambda: FORMS.choice([]), "at least one"),
        (lambda: FORMS.choice(["a", ""]), "empty"),
    ],
)  # fmt: skip
def test_what_is_no_form_is_named(make, name):
    with pytest.raises(ValueError, match=name):
        make()
