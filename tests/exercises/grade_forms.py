"""Grade the exercises of the chapter on forms."""

import torch

from nanochat_lib.inference.forms import Forms
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.tokenizer.tokenizer import Tokenizer


def grade_choices_mask(module) -> None:
    """By hand, then against the library on every beginning of every choice."""
    mask = module.choices_mask
    allowed, ends = mask([b"no", b"nobody"], b"no", [b"body", b"b", b"x", b"no", b""])
    assert list(allowed) == [True, True, False, False, False], f"after no: {allowed}"
    assert ends is True, "no is a choice, and the answer may end there"
    allowed, ends = mask(["é".encode()], b"", ["é".encode()[:1], "é".encode(), b"e"])
    assert list(allowed) == [True, True, False] and ends is False, "half a character is a beginning"
    allowed, ends = mask([b"a"], b"b", [b"a", b"b"])
    assert list(allowed) == [False, False] and ends is False, "nothing follows what fits no choice"
    tokenizer = Tokenizer.train(["yes no nobody not here"] * 4, vocab_size=285)
    choices, forms = ["no", "nobody", "ye", "né"], Forms(tokenizer)
    tokens = [tokenizer.decode_bytes([i]) for i in range(tokenizer.bos_id)]
    end = tokenizer.encode_special("<|assistant_end|>")
    for said in ("", "n", "no", "nob"):
        guide = forms.choice(choices).start()
        for token in said.encode():
            guide.accept(token)
        wanted = guide.allowed()
        allowed, ends = mask([c.encode() for c in choices], said.encode(), tokens)
        missing = [t for t, ours, theirs in zip(tokens, allowed, wanted) if theirs and not ours]
        assert not missing, f"after {said!r} {missing} may follow"
        assert bool(ends) == bool(wanted[end]), f"after {said!r}: may the answer end?"


class _Table(GPT):
    """Give the odds of a table: row i after token i."""

    def __init__(self, table: torch.Tensor):
        super().__init__(GPTConfig(16, 1, 1, sequence_len=64, vocab_size=265, n_layer=1))
        self.table, self.read = table, []

    def forward(self, idx, targets=None, kv_cache=None, loss_reduction="mean"):
        self.read += idx[0].tolist()
        if kv_cache is not None:
            kv_cache.positions(idx.shape[1])
            kv_cache.advance(idx.shape[1], None)
        return self.table[idx].log()


def grade_shares_left(module) -> None:
    """On a table of odds, worked out by hand: the share at each step, and where the answer ends."""
    tokenizer = Tokenizer.train(["ab"], vocab_size=265)
    end = tokenizer.encode_special("<|assistant_end|>")
    table = torch.full((265, 265), 0.001)
    table[1, 97], table[1, 98], table[1, 120] = 0.25, 0.05, 0.5  # after the prompt: a, b, x
    table[97, 99], table[97, 120] = 0.125, 0.6  # after a: c, x
    table[99, end], table[99, 120] = 0.5, 0.3  # after c: the end, x
    table = table / table.sum(1, keepdim=True)
    model, forms = _Table(table), Forms(tokenizer)
    form = forms.regex("(a|b)c")
    got = module.shares_left(model, [5, 1], form, end)
    wanted = [(table[1, 97] + table[1, 98]).item(), table[97, 99].item(), table[99, end].item()]
    assert len(got) == 3, f"{len(got)} steps: two letters, and the token that ends the answer"
    assert all(abs(a - b) < 1e-4 for a, b in zip(got, wanted)), f"got {got}, expected {wanted}"
    long = module.shares_left(_Table(table), [5, 1], forms.regex("[abc]{30}"), end, most=7)
    assert len(long) == 7, f"most=7, got {len(long)} steps"
    again = module.shares_left(_Table(table), [5, 1], form, end)
    assert again == got, "a form is used again: each answer needs a guide of its own"


MUTANTS = {
    "choices_mask": [
        """
def choices_mask(choices, said, tokens):
    '''Never lets a choice go on that is whole already.'''
    ends = said in choices
    return [not ends and len(t) > 0 and any(c.startswith(said + t) for c in choices) for t in tokens], ends
""",
        """
def choices_mask(choices, said, tokens):
    '''Looks only whether a token begins the rest of the first choice that fits.'''
    fits = [c for c in choices if c.startswith(said)][:1]
    return [len(t) > 0 and any(c.startswith(said + t) for c in fits) for t in tokens], said in choices
""",
        """
def choices_mask(choices, said, tokens):
    '''Lets empty tokens pass.'''
    return [any(c.startswith(said + t) for c in choices) for t in tokens], said in choices
""",
    ],
    "shares_left": [
        """
@torch.inference_mode()
def shares_left(model, prompt, form, end, most=40):
    '''Notes the odds of the token that was taken.'''
    guide, shares, ids = form.start(), [], list(prompt)
    for _ in range(most):
        odds = model(torch.tensor([ids]))[0, -1].softmax(-1)
        allowed = guide.allowed()
        token = int(odds.masked_fill(~allowed, -1.0).argmax())
        shares.append(odds[token].item())
        if token == end:
            break
        guide.accept(token)
        ids.append(token)
    return shares
""",
        """
@torch.inference_mode()
def shares_left(model, prompt, form, end, most=40):
    '''Takes the likeliest token of all, allowed or not.'''
    guide, shares, ids = form.start(), [], list(prompt)
    for _ in range(most):
        odds = model(torch.tensor([ids]))[0, -1].softmax(-1)
        shares.append(odds[guide.allowed()].sum().item())
        token = int(odds.argmax())
        if token == end:
            break
        guide.accept(token)
        ids.append(token)
    return shares
""",
        """
@torch.inference_mode()
def shares_left(model, prompt, form, end, most=40):
    '''Leaves out the step that ends the answer.'''
    guide, shares, ids = form.start(), [], list(prompt)
    for _ in range(most):
        odds = model(torch.tensor([ids]))[0, -1].softmax(-1)
        allowed = guide.allowed()
        token = int(odds.masked_fill(~allowed, -1.0).argmax())
        if token == end:
            break
        shares.append(odds[allowed].sum().item())
        guide.accept(token)
        ids.append(token)
    return shares
""",
    ],
}
