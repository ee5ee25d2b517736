"""One file: what its JavaScript computes is what our library computes."""

import hashlib
import html.parser
import json
import random
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from chained import TOKENIZER, alphabet_gpt, chained_gpt, counting_gpt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanochat_lib.inference.calculator import calculate
from nanochat_lib.inference.engine import Engine
from nanochat_lib.inference.row import Request
from nanochat_lib.inference.sampling import likeliest
from nanochat_lib.model.attention import causal_mask, naive_attention, offset_keys
from nanochat_lib.model.gpt import GPT, MODERN, GPTConfig
from nanochat_lib.serving.one_file import (
    ExportConfig,
    export_html,
    inside,
    javascript_pattern,
    one_file,
    pack,
    rounded,
)
from nanochat_lib.serving.reply import ReplyText
from nanochat_lib.tokenizer.bpe import GPT2_PATTERN, split_pattern
from nanochat_lib.tokenizer.tokenizer import Tokenizer
from nanochat_lib.training.checkpoint import save_checkpoint

TEXT = "hello world, it's the 42nd day; don't we'll SHE'LL say so? ¿Qué tal? \n\n  été"


def node_program() -> str | None:
    """Find node: the system's, or the one that Playwright brings."""
    try:
        from playwright._impl._driver import compute_driver_executable

        return str(compute_driver_executable()[0])
    except ImportError:
        return shutil.which("node")


class InNode:
    """An exported page whose engine runs in node."""

    def __init__(self, page: str, path: Path) -> None:
        program = node_program()
        if program is None:
            pytest.skip("no node here: install the extra `test`, or node")
        path.write_text(page, encoding="utf-8")
        script = Path(__file__).with_name("in_node.js")
        self.process = subprocess.Popen(
            [program, script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )

    def __call__(self, name: str, ask):
        self.process.stdin.write(json.dumps([name, ask]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(10)


@pytest.fixture
def in_node(tmp_path):
    """Open pages; close them in the end."""
    opened = []

    def open_page(model: GPT, tokenizer: Tokenizer, name: str = "test") -> InNode:
        opened.append(InNode(one_file(inside(model, tokenizer, name)), tmp_path / "page.html"))
        return opened[-1]

    yield open_page
    for page in opened:
        page.close()


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A page with a tokenizer that has learned words."""
    tokenizer = Tokenizer.train([TEXT] * 3, vocab_size=309)
    page = InNode(
        one_file(inside(shaken_gpt(tokenizer), tokenizer, "words")),
        tmp_path_factory.mktemp("w") / "w.html",
    )
    yield tokenizer, page
    page.close()


def shaken_gpt(tokenizer: Tokenizer, **switches) -> GPT:
    """Make a model in which every weight matters."""
    sizes = {"n_layer": 3, "n_embd": 64, "n_head": 4, "n_kv_head": 2, "sequence_len": 96}
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **sizes, **switches)).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return model


# --- the model -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "switches", [{}, *({name: True} for name in MODERN), dict.fromkeys(MODERN, True)]
)
def test_logits_are_those_of_the_rounded_model(in_node, switches):
    tokenizer = Tokenizer.train([TEXT], vocab_size=300)
    model = shaken_gpt(tokenizer, **switches)
    ids = torch.randint(0, 300, (96,), generator=torch.Generator().manual_seed(1))
    theirs = torch.tensor(in_node(model, tokenizer)("logits", ids.tolist()))
    with torch.no_grad():
        ours, unrounded = rounded(model)(ids[None])[0], model(ids[None])[0]
    assert (theirs - ours).abs().max() < 1e-4
    assert (theirs - unrounded).abs().max() > 1e-3, "the file's weights are not rounded"


def test_attention_is_that_of_the_formula(in_node):
    tokenizer = Tokenizer.train([TEXT], vocab_size=300)
    model = shaken_gpt(tokenizer, key_offset=True)
    small, ids = rounded(model), torch.arange(40, 60)
    seen = {}
    block = small.blocks[0]
    block.attn.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    with torch.no_grad():
        small(ids[None])
        q, k, v = block.attn.project(seen["x"], small.cos[:20], small.sin[:20])
        k, v = (part.repeat_interleave(2, dim=2) for part in (offset_keys(k), v))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        _, ours = naive_attention(q, k, v, causal_mask(20))
    page = in_node(model, tokenizer)
    for head in range(4):
        rows = page("attention", {"ids": ids.tolist(), "layer": 0, "head": head})
        for t, row in enumerate(rows):
            assert torch.allclose(
                torch.tensor(row, dtype=torch.float32), ours[0, head, t, : t + 1], atol=1e-5
            )


def greedy_pair(model: GPT, tokenizer: Tokenizer, prompts: list[list[int]], page: InNode) -> tuple:
    """Answer prompts with our engine and the page's."""
    engine = Engine(rounded(model), tokenizer)
    ours = [engine.submit(Request(ids, temperature=0.0, end_loops=True)) for ids in prompts]
    while engine.busy:
        engine.step()
    theirs = page("generate", [{"prompt": prompt} for prompt in prompts])["found"]
    return [row.tokens for row in ours], [found["tokens"] for found in theirs]


def test_greedy_answers_equal_the_engines(in_node):
    tokenizer = Tokenizer.train([TEXT], vocab_size=300)
    model = shaken_gpt(tokenizer, **dict.fromkeys(MODERN, True))
    luck = random.Random(0)
    prompts = [[luck.randrange(300) for _ in range(luck.randrange(1, 60))] for _ in range(200)]
    prompts = sorted(prompts) + [prompts[0] + [1], prompts[0] + [1, 2]]  # beginnings in common
    usual = Engine(model, tokenizer).generate_batch(prompts)
    usual = Counter(token for tokens, _ in usual for token in tokens).most_common(30)
    head = model.lm_head.weight.data
    for name, (token, _) in zip(("python_start", "python_end", "assistant_end"), usual[::10]):
        head[tokenizer.encode_special(f"<|{name}|>")] = (
            1.05 * head[token]
        )  # tools and ends shall occur
    ours, theirs = greedy_pair(model, tokenizer, prompts, in_node(model, tokenizer))
    # Sums in another order may tip a tie: the logits of the two differ by some millionths.
    assert sum(a == b for a, b in zip(ours, theirs)) >= len(prompts) - 1
    called = tokenizer.encode_special("<|output_start|>")
    assert any(called in row for row in ours) and len({len(row) for row in ours}) > 10


def test_the_calculator_answers_in_the_page(in_node):
    page = in_node(counting_gpt(), TOKENIZER)
    body = {"messages": [{"role": "user", "content": "hi"}], "logprobs": True, "top_logprobs": 2}
    answer = page("fetch", {"route": "/v1/chat/completions", "body": body})
    lines = [line[6:] for line in answer["text"].split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    choices = [c for line in lines[:-1] for c in json.loads(line)["choices"]]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "Q."
    steps = [s for choice in choices for s in choice["delta"].get("tool_steps", [])]
    assert steps == [{"call": "3*4", "output": "12"}]
    noted = [e for choice in choices if choice["logprobs"] for e in choice["logprobs"]["content"]]
    assert [e["token"] for e in noted if not e["inside_tool"]] == ["Q", "."]
    assert choices[-1]["finish_reason"] == "stop"


def test_probabilities_are_those_of_the_server(in_node):
    model = alphabet_gpt()
    body = {"messages": [{"role": "user", "content": "hi"}], "logprobs": True, "top_logprobs": 5}
    answer = in_node(model, TOKENIZER)("fetch", {"route": "/v1/chat/completions", "body": body})
    first = json.loads(answer["text"].split("\n\n")[0][6:])["choices"][0]["logprobs"]["content"][0]
    prompt = TOKENIZER.render_for_completion(body)
    with torch.no_grad():
        wanted = likeliest(rounded(model)(torch.tensor([prompt]))[0, -1], ord("a"), 5)
    assert first["id"] == ord("a") and first["logprob"] == pytest.approx(wanted[0][1], abs=1e-5)
    theirs = [entry["logprob"] for entry in first["top_logprobs"]]
    assert theirs == pytest.approx([logprob for _, logprob in wanted[1:]], abs=1e-5)


def test_an_endless_answer_ends(in_node):
    [found] = in_node(chained_gpt(), TOKENIZER)("generate", [{"prompt": [1, 2]}])["found"]
    assert found == {"tokens": [ord("x")] * 24, "reason": "length"}


def test_sampling_follows_the_odds_and_the_seed(in_node):
    model = alphabet_gpt()
    model.lm_head.weight.data *= 0.11  # a 13 times as likely as each other token
    page = in_node(model, TOKENIZER)
    prompt = TOKENIZER.render_for_completion({"messages": [{"role": "user", "content": "hi"}]})
    dials = {"prompt": prompt, "temperature": 1.0, "topK": 3, "maxTokens": 1}
    found = page("generate", [{**dials, "seed": seed} for seed in range(600)])["found"]
    drawn = [row["tokens"][0] for row in found if row["tokens"]]
    with torch.no_grad():
        best = rounded(model)(torch.tensor([prompt]))[0, -1].topk(3)
    odds = best.values.softmax(-1)[0].item()
    assert abs(drawn.count(ord("a")) / 600 - odds) < 4 * (odds * (1 - odds) / 600) ** 0.5
    assert set(drawn) <= set(best.indices.tolist())
    assert found == page("generate", [{**dials, "seed": seed} for seed in range(600)])["found"]


# --- the tokenizer -------------------------------------------------------------------------------

ODD = st.sampled_from(
    list("'sSlLſKk\u212a \t\r\n\x85\ufeff\xa0\u2028\u200b09٣é😀\u0301\ud800.,!") + ["'ll"]
)
TEXTS = st.one_of(st.text(max_size=40), st.lists(ODD, max_size=40).map("".join))
CALM = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@CALM
@given(st.lists(TEXTS, min_size=1, max_size=8))
def test_any_text_becomes_the_same_tokens(words, texts):
    tokenizer, page = words
    assert page("encode", texts) == tokenizer.encode(texts)


@CALM
@given(st.lists(st.integers(0, 308), max_size=30))
def test_any_tokens_become_the_same_text(words, ids):
    tokenizer, page = words
    assert page("decode", [ids]) == [tokenizer.decode(ids)]


@CALM
@given(TEXTS, TEXTS)
def test_a_chat_becomes_the_same_prompt(words, first, second):
    tokenizer, page = words
    roles = ("system", "user", "assistant", "user")
    messages = [{"role": r, "content": t} for r, t in zip(roles, (first, second, first, second))]
    kinds = ("text", "python", "python_output", "text")
    parts = [{"type": kind, "text": text} for kind, text in zip(kinds, (first, "1+1", "2", second))]
    messages[2]["content"] = parts
    assert page("prompt", messages) == tokenizer.render_for_completion({"messages": messages})


@pytest.mark.parametrize("pattern", [split_pattern(1), split_pattern(3), GPT2_PATTERN])
def test_other_patterns(in_node, pattern):
    tokenizer = Tokenizer.train([TEXT] * 3, vocab_size=300, pattern=pattern)
    texts = [TEXT, "1234567 It'S  \n x\u0085y\ufeffz", "ſ'ſ 'k 'K"]
    assert in_node(shaken_gpt(tokenizer), tokenizer)("encode", texts) == tokenizer.encode(texts)


def test_an_unknown_group_is_refused():
    with pytest.raises(ValueError, match=r"\(\?P<x>"):
        javascript_pattern("(?P<x>a)")


def test_a_stream_is_cut_where_ours_is(in_node):
    model = chained_gpt(["<|assistant_start|>", "né😀.", "<|assistant_end|>"])
    body = {"messages": [{"role": "user", "content": "hi"}]}
    answer = in_node(model, TOKENIZER)("fetch", {"route": "/v1/chat/completions", "body": body})
    events = [json.loads(line[6:]) for line in answer["text"].split("\n\n")[:-2]]
    pieces = [c["delta"].get("content", "") for event in events for c in event["choices"]]
    reply = ReplyText(TOKENIZER)
    assert pieces == [*(reply.feed(token) for token in TOKENIZER.encode("né😀.")), reply.finish()]


def test_a_long_prompt_is_refused_by_name(in_node):
    body = {"messages": [{"role": "user", "content": "x" * 200}]}
    page = in_node(alphabet_gpt(), TOKENIZER)
    answer = page("fetch", {"route": "/v1/chat/completions", "body": body})
    assert answer["status"] == 400 and "204 tokens, the context 128" in answer["text"]


# --- the calculator ------------------------------------------------------------------------------

numbers = st.one_of(
    st.integers(0, 10**7).map(str),
    st.integers(0, 10**7).map("{:,}".format),
    st.decimals(0, 10**4, places=4).map("{:f}".format),
    st.sampled_from(["007", "0", "00", "00.50", "5.", ".5", "0.0000005", "1.5.2"]),
)
counts = st.tuples(st.text("ab'\" \n,é😀", max_size=6), st.text("ab", max_size=2)).map(
    lambda pair: f"{pair[0]!r}.count({pair[1]!r})"
)
SUMS = st.recursive(
    st.one_of(numbers, counts),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map("".join),
        st.tuples(st.sampled_from("+-"), inner).map("".join),
        inner.map("({})".format),
        inner.map(" {} ".format),
    ),
    max_leaves=7,
)
PIECES = st.sampled_from(
    ["1", "0", "2,000", ".", "+", "-", "*", "/", "(", ")", " ", "'", '"', "a", ".count("]
)


@CALM
@given(st.lists(st.one_of(SUMS, st.lists(PIECES, max_size=12).map("".join)), max_size=8))
def test_the_calculator_equals_ours(words, texts):
    _, page = words
    assert page("calculate", texts) == [calculate(text) for text in texts]


@pytest.mark.parametrize(
    "text",
    ["", "1/0", "2**3", "7//2", "1e5", "(" * 90 + "1" + ")" * 90, "'a' 'b'.count('ab')", "1 2", "'a'",
     "'''a'''.count('a')", "''.count('')", "'abc'.count('')", "-0.0000001", "1/3", "0.0000005", "\u00a01+1",
     "1+1\n", "1\n+1", "'a\nb'.count('a')", "('a').count(('a'))", "()", "1.count('a')", "9" * 199, "9" * 201,
     "-" * 150 + "1", "'é'.count('é')", "1\x00", "- -1", "'a'.count('a').count('b')", "1.5.5"],
)  # fmt: skip
def test_the_calculator_on_edges(words, text):
    _, page = words
    assert page("calculate", [text]) == [calculate(text)]


# --- the file ------------------------------------------------------------------------------------


def test_the_contents_give_back_the_rounded_weights():
    tokenizer = Tokenizer.train([TEXT], vocab_size=300)
    model = shaken_gpt(tokenizer, **dict.fromkeys(MODERN, True))
    contents, data = pack(model)
    for name, weight in rounded(model).state_dict().items():
        if name in contents["scalars"]:
            assert torch.tensor(contents["scalars"][name]).tolist() == pytest.approx(
                weight.squeeze().tolist()
            )
            continue
        rows, columns, at = contents["tensors"][name]
        whole = torch.frombuffer(bytearray(data[at : at + rows * columns]), dtype=torch.int8)
        steps_at = at + rows * columns + -rows * columns % 4
        steps = torch.frombuffer(
            bytearray(data[steps_at : steps_at + 4 * rows]), dtype=torch.float32
        )
        assert torch.equal(whole.view(rows, columns) * steps[:, None], weight[:rows])


class Elements(html.parser.HTMLParser):
    """Collect the elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_a_name_or_a_token_adds_nothing_to_the_page():
    evil = '</script><img src=x onerror="alert(1)"><!--<script>'
    plain = Elements(one_file(inside(alphabet_gpt(), TOKENIZER, "plain"))).found
    assert Elements(one_file(inside(alphabet_gpt(), TOKENIZER, evil))).found == plain


def test_the_page_allows_itself_nothing_else():
    page = one_file(inside(alphabet_gpt(), TOKENIZER, "plain"))
    [policy] = [a["content"] for tag, a in Elements(page).found if "http-equiv" in a]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and "connect-src" not in rules
    assert "unsafe" not in policy and "http" not in policy and policy.count("sha256-") == 7
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A folder of runs with one run in it."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    TOKENIZER.save(tmp_path / "runs/tiny/tokenizer")
    model = alphabet_gpt()
    meta = {"config": asdict(model.config), "tokenizer_hash": TOKENIZER.hash}
    save_checkpoint(tmp_path / "runs/tiny/sft", 1, model, [], meta)
    return tmp_path


def test_the_command_writes_a_file_and_says_where(base, capsys):
    path = export_html(ExportConfig())
    assert path == Path("tiny.html") and "tiny.html: " in capsys.readouterr().out
    assert export_html(ExportConfig(output=base / "a [b] c.html")) == base / "a [b] c.html"
    assert export_html(ExportConfig()) == path, "its own file may be written again"


def test_a_file_of_somebody_else_is_kept(base):
    (base / "tiny.html").write_text("<html>my page", encoding="utf-8")
    with pytest.raises(ValueError, match=r"tiny\.html is there already"):
        export_html(ExportConfig())
    assert (base / "tiny.html").read_text(encoding="utf-8") == "<html>my page"


def test_a_model_too_large_for_a_page_is_refused(base, monkeypatch):
    monkeypatch.setattr("nanochat_lib.serving.one_file.MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="nanochat serve"):
        export_html(ExportConfig())


def test_the_libraries_are_those_of_their_authors():
    vendor = Path(__file__).parents[2] / "web/vendor"
    told = re.findall(
        r"^\| ([\w.]+\.js) \|.*`(\w{64})` \|$", (vendor / "README.md").read_text("utf-8"), re.M
    )
    assert {name for name, _ in told} == {path.name for path in vendor.glob("*.js")}
    for name, digest in told:
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == digest, name
