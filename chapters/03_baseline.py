# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Baseline: the score that counting gets
#
# A training run prints a loss of 2.1. Is that good? Nobody can say: it depends on how the text was
# cut, on which text was measured, and on what a simpler method would have got. Before we build a
# clever model we build the yardstick and a stupid one.
#
# The yardstick is *bits per byte*: how many bits a model needs to say which text it is, for each
# byte of that text.
#
# ```python
# bits_per_byte(nats_per_token=[3.4], token_bytes=[5])   # 0.98
# ```
#
# The stupid model counts which token follows which. Its score is the one that the transformer has
# to beat, and at the end of the chapter you will see how high that bar is. You need logarithms and
# averages, and the text and tokenizer of the last two chapters. On a laptop the chapter takes about
# 15 seconds.

# %%
#| default_exp evaluation.bpb
# Bits per byte: one number for every model and tokenizer, and the score that counting gets.

# %%
#| export
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

# %% [markdown]
# ## Surprise, by hand
#
# A model gave the token that came next a probability of 1/2, and the one after that 1/8. How
# surprised was it? We want surprises to *add* when probabilities *multiply* (both tokens together
# had 1/16), and the function that does so is the logarithm.

# %%
surprise_bits = [-math.log2(p) for p in (1 / 2, 1 / 8)]
assert surprise_bits == [1.0, 3.0]
assert sum(surprise_bits) == -math.log2(1 / 2 * 1 / 8)

# %% [markdown]
# One bit is the surprise of a coin. And it is more than a metaphor: an arithmetic coder turns a
# model's probabilities into a file, and spends exactly these bits, up to two for the whole file. A
# model that predicts well *is* a compressor, which is why we may compare it with one later.
#
# Training code uses the natural logarithm, whose unit is the *nat*. One nat is $1/\ln 2 = 1.4427$
# bits.

# %%
assert math.isclose(-math.log(1 / 8) / math.log(2), 3.0)

# %% [markdown]
# ## Entropy: the best you can do
#
# Let four symbols come with probabilities 1/2, 1/4, 1/8, 1/8, each time independent of the past. A
# model that knows these numbers is surprised by 1, 2, 3 or 3 bits. On average:

# %%
p = [1 / 2, 1 / 4, 1 / 8, 1 / 8]
entropy = sum(-q * math.log2(q) for q in p)
assert entropy == 1.75

# %% [markdown]
# The average surprise of a model that knows the truth is the *entropy* of the source. A model that
# believes something else, here that all four are equally likely, pays 2 bits each time. Its average
# is called *cross-entropy*, and it is never below the entropy.


# %%
def cross_entropy_bits(truth: list[float], belief: list[float]) -> float:
    """Average the surprise of a belief over what truly comes."""
    return sum(-t * math.log2(b) for t, b in zip(truth, belief))


assert cross_entropy_bits(p, [1 / 4] * 4) == 2.0
assert cross_entropy_bits(p, p) == entropy

# %% [markdown]
# The 0.25 bits in between are the price of the wrong belief. Does *every* wrong belief cost? Let us
# try ten thousand random ones.

# %%
generator = torch.Generator().manual_seed(1)
beliefs = torch.rand(10_000, 4, generator=generator)
beliefs = beliefs / beliefs.sum(dim=1, keepdim=True)
costs = -(torch.tensor(p) * beliefs.log2()).sum(dim=1)
print(
    f"cheapest {costs.min():.4f} bits with belief",
    [round(b, 2) for b in beliefs[costs.argmin()].tolist()],
)
assert costs.min() >= entropy

# %% [markdown]
# None is below 1.75, and the cheapest is nearly the truth. That is all of training: lower the
# cross-entropy, and the belief has nowhere to go but towards the truth. From counts, the entropy of
# their shares:


# %%
#| export
def entropy_bits(counts: Int[Tensor, " V"]) -> float:
    """Compute the entropy of the shares that counts stand for: an ideal code's average length.

    Raises:
        ValueError: all counts are zero, or there are none.

    Source: Shannon 1948, "A Mathematical Theory of Communication", section 6.
    """
    if counts.sum() == 0:
        raise ValueError("no counts: entropy needs at least one observation")
    p = counts[counts > 0].double() / counts.sum()
    return float(-(p * p.log2()).sum())


# %%
assert entropy_bits(torch.tensor([4, 2, 1, 1])) == 1.75
assert entropy_bits(torch.tensor([7, 0, 0])) == 0.0  # no surprise, and no 0 * log(0)

# %%
random_counts = torch.randint(0, 50, (1_000,), generator=generator)
from_torch = torch.distributions.Categorical(probs=random_counts.double()).entropy() / math.log(2)
assert math.isclose(entropy_bits(random_counts), from_torch.item(), rel_tol=1e-6)

# %% [markdown]
# ## What an untrained model pays
#
# Before training, a model knows nothing and should say so: the same probability for each of V
# tokens. Its loss is ln V, and it is the first number to look at in any run. Higher means that the
# model starts out confidently wrong; lower, that it already sees the answer, which is a bug more
# often than a gift.

# %%
# NBVAL_CHECK_OUTPUT
for vocab_size in (256, 1_024, 65_536):
    logits = torch.zeros(1, vocab_size)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([7])).item()
    assert math.isclose(loss, math.log(vocab_size), rel_tol=1e-6)
    print(f"V = {vocab_size:6}: {loss:.3f} nats, {loss / math.log(2):.1f} bits a token")

# %% [markdown]
# Look at the last column, and at the trouble. The third model seems twice as bad as the first one,
# though neither knows anything. Its tokens are longer, so it makes fewer guesses for the same text.
# We have to divide by something that does not depend on the tokenizer.
#
# ## Bits per byte
#
# Take the bytes of the text, as UTF-8. The surprises of 1 and 3 bits came for `the` and ` cat`, 3
# bytes and 4. So the model paid 4 bits for 7 bytes. A second model that reads single bytes and pays
# the same 4 bits in seven small steps lands on the same 4/7: how the text was cut no longer
# matters.
#
# Special tokens such as `<|bos|>` cover no byte. Predicting them well says nothing about text, so
# their loss is left out.


# %%
#| export
def bits_per_byte(nats_per_token: Sequence[float], token_bytes: Sequence[int]) -> float:
    """Convert token losses to bits per byte of the text they cover.

    Example: losses of 1 and 3 bits over 3 and 4 bytes -> 4/7.

    Args:
        nats_per_token: loss of each token, in nats.
        token_bytes: length of each token, in bytes of UTF-8; 0 for special tokens, which no text
            contains.

    Returns:
        Bits per byte, over the tokens whose length is not 0.

    Raises:
        ValueError: the lists differ in length, a loss is NaN, or no token covers any byte.

    Source: Gao et al. 2020 (arXiv:2101.00027), section 3.1.
    """
    if len(nats_per_token) != len(token_bytes):
        raise ValueError(f"{len(nats_per_token)} losses for {len(token_bytes)} tokens")
    n_bytes = sum(token_bytes)
    if n_bytes == 0:
        raise ValueError("no token covers any byte: is every token special?")
    nats = math.fsum(loss for loss, n in zip(nats_per_token, token_bytes) if n > 0)
    if math.isnan(nats):
        raise ValueError("a loss is NaN: the model's weights are damaged")
    return nats / math.log(2) / n_bytes


# %%
by_hand = bits_per_byte([math.log(2), math.log(8)], [3, 4])
assert math.isclose(by_hand, 4 / 7), f"got {by_hand:.3f}: did the nats become bits?"
assert bits_per_byte([9.9, math.log(2)], [0, 1]) == 1.0

# %%
# NBVAL_CHECK_OUTPUT
print(f"{bits_per_byte([3.4], [5]):.2f}")

# %% [markdown]
# ## Counting pairs
#
# Now the stupid model. Read six tokens, 0 1 0 1 1 0, and count the pairs: 01 twice, 10 twice, 11
# once. As a table, with a row for the token before and a column for the one after:

# %%
ids = torch.tensor([0, 1, 0, 1, 1, 0])
by_hand = torch.tensor([[0, 2], [2, 1]])

# %% [markdown]
# A loop in Python is slow over a million pairs. We number the pairs instead, (before, after) as
# before * V + after, and let one `bincount` count them all.


# %%
#| export
def bigram_counts(ids: Int[Tensor, " T"], vocab_size: int) -> Int[Tensor, "V V"]:
    """Count how often each token follows each other token.

    Example: [0, 1, 0, 1] -> row 0 is [0, 2] and row 1 is [1, 0].

    Args:
        ids: token ids in reading order, shape (T,), integers below vocab_size.
        vocab_size: number of rows and columns; the table takes 8 * vocab_size**2 bytes.

    Returns:
        Counts, int64, shape (V, V): row = the token before, column = the token after.

    Raises:
        ValueError: an id lies outside the vocabulary.
    """
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise ValueError(f"ids from {ids.min()} to {ids.max()} in a vocabulary of {vocab_size}")
    pairs = ids[:-1].long() * vocab_size + ids[1:].long()
    return torch.bincount(pairs, minlength=vocab_size**2).view(vocab_size, vocab_size)


# %%
assert bigram_counts(ids, 2).equal(by_hand), f"got {bigram_counts(ids, 2).tolist()}: rows before?"

# %% [markdown]
# Real text: the corpus of the last chapters, with copies dropped, since a copy in the held-out part
# would be remembered and not predicted. Every tenth document is held out. For now a token is a
# byte, and number 256 stands at the start of each document.

# %%
from itertools import islice

from nanochat_lib.data.documents import drop_duplicates, python_docs

documents = list(drop_duplicates(islice(python_docs(), 4_000)))
train_documents = [text for i, text in enumerate(documents) if i % 10 != 9]
held_out_documents = documents[9::10]


def byte_ids(texts: list[str]) -> Tensor:
    """Turn documents into one row of bytes, each document behind a 256."""
    return torch.tensor([i for text in texts for i in (256, *text.encode("utf-8"))])


# %%
train_ids, held_out_ids = byte_ids(train_documents), byte_ids(held_out_documents)
byte_lengths = torch.tensor([1] * 256 + [0])
counts = bigram_counts(train_ids, 257)
print(f"{len(train_ids):,} tokens to count, {len(held_out_ids):,} held out")
assert counts.sum() == len(train_ids) - 1

# %%
from collections import Counter

slowly = Counter(zip(train_ids[:100_000].tolist(), train_ids[1:100_001].tolist()))
quickly = bigram_counts(train_ids[:100_001], 257)
assert all(quickly[pair] == n for pair, n in slowly.items()) and quickly.sum() == 100_000

# %%
# alt: a table of 27 by 27 letters; dark cells mark which letter follows which, such as u after q.
import matplotlib.pyplot as plt

letters = " abcdefghijklmnopqrstuvwxyz"
table = counts[[[ord(a)] for a in letters], [ord(b) for b in letters]]
shares = table / table.sum(dim=1, keepdim=True)
figure, axes = plt.subplots(figsize=(6.5, 3.6))
picture = axes.imshow(shares.numpy(), cmap="Blues", aspect="auto", vmax=0.5)
axes.set_xticks(range(27), ["␣", *letters[1:]], fontsize=7)
axes.set_yticks(range(27), ["␣", *letters[1:]], fontsize=5)
axes.set(xlabel="next letter", ylabel="letter before")
figure.colorbar(picture, label="share of the row")
figure.tight_layout()
plt.show()

# %% [markdown]
# *Each row is what the model believes after one letter. Notice the row of q, which knows its
# successor, the dark column of the blank (words end in d, e, s, y), and the vowels standing out as
# columns.*
#
# How much does one letter of context help? The entropy of the bytes alone, and the entropy given
# the byte before. By the chain rule the second is the entropy of the pairs minus the entropy of the
# first members.


# %%
#| export
def bigram_entropy_bits(counts: Int[Tensor, "V V"]) -> float:
    """Compute the entropy of the next token given the one before: the rows' weighted mean.

    Raises:
        ValueError: all counts are zero.
    """
    # H(next | before) = H(before, next) - H(before)
    return entropy_bits(counts.flatten()) - entropy_bits(counts.sum(dim=1))


# %%
# NBVAL_CHECK_OUTPUT
# 0 is followed by 1 always; 1 by 0 twice in three: (2/5) * 0 + (3/5) * H(2/3, 1/3)
row_entropy = -(2 / 3) * math.log2(2 / 3) - (1 / 3) * math.log2(1 / 3)
assert math.isclose(bigram_entropy_bits(by_hand), 3 / 5 * row_entropy)
print(f"{bigram_entropy_bits(by_hand):.3f}")

# %%
unigram_bits = entropy_bits(counts.sum(dim=0))
bigram_bits = bigram_entropy_bits(counts)
print(f"bits a byte on the training text: {unigram_bits:.2f} alone, {bigram_bits:.2f} given one")
assert bigram_bits < unigram_bits - 0.5 < 8

# %% [markdown]
# Shannon had people guess the next letter of English in 1951, with a hundred letters of context:
# between 0.6 and 1.3 bits a letter. That is the distance in front of us.
#
# ## What goes wrong: scoring on what was counted
#
# Those figures are too good. We looked at a text, wrote down its statistics, and praised ourselves
# for how well they fit that text. Take the honest route: turn the counts into probabilities, and
# pay for text that was not counted.

# %%
probabilities = counts / counts.sum(dim=1, keepdim=True)
held_out_surprise = -probabilities[held_out_ids[:-1], held_out_ids[1:]].log2()
print(f"{held_out_surprise.mean():.2f} bits, because of {held_out_surprise.isinf().sum()} pairs")
assert held_out_surprise.isinf().any()

# %% [markdown]
# Infinity. A few pairs never occurred in training, so the model said "impossible", and one
# impossible event ruins the average of all the others. Nothing we have not seen is impossible; it
# is rare. How rare? Laplace's answer is to start each count at 1.


# %%
def add_one_bits(counts: Tensor, ids: Tensor) -> float:
    """Score ids by bigram shares with one count added to every pair."""
    smoothed = (counts + 1) / (counts + 1).sum(dim=1, keepdim=True)
    return float(-smoothed[ids[:-1], ids[1:]].log2().mean())


print(f"bytes, add one: {add_one_bits(counts, held_out_ids):.3f} bits a token")

# %% [markdown]
# For 257 tokens that is fine. But it adds V imaginary counts to each row, however little the row
# has seen: with V = 1,024, a token that was seen ten times would give 99% of its belief to
# successors nobody has seen. There is a better idea: when you know little about what follows *this*
# token, believe what follows tokens *in general*.
#
# So mix. The row's n observations stand against a fixed number of imaginary ones (the `prior`) that
# are spread like the whole text. A token seen 10,000 times listens to its own row; a token seen
# once, to everybody.
#
# The class is called like every later model in the course, `model(idx, targets, loss_reduction)`,
# so that whatever measures one can measure the other.


# %%
#| export
class BigramModel:
    """Predict the next token from the last one by counting; called like every later model.

    A pair's probability mixes its share among the successors of the last token with the next
    token's share in the whole text (one count added to each, so that nothing is impossible). The
    more often the last token was seen, the more its own successors weigh: n against `prior`.

    Args:
        counts: pairs in the training text, shape (V, V), from bigram_counts.
        prior: how many imaginary observations the shares of the whole text are worth, above 0.

    Raises:
        ValueError: the prior is not above 0.

    Source: MacKay & Peto 1995, "A hierarchical Dirichlet language model", eq. 2 for the mixture.
    """

    def __init__(self, counts: Int[Tensor, "V V"], prior: float = 10.0):
        if not 0 < prior < math.inf:
            raise ValueError(f"a prior of {prior} leaves unseen pairs impossible: take one above 0")
        overall = counts.sum(dim=0).double() + 1
        overall = overall / overall.sum()
        seen = counts.sum(dim=1, keepdim=True)
        self.log_probs = ((counts + prior * overall) / (seen + prior)).log().float()  # (V, V)

    def __call__(
        self,
        idx: Int[Tensor, "B T"],
        targets: Int[Tensor, "B T"] | None = None,
        loss_reduction: str = "mean",
    ) -> Float[Tensor, "..."]:
        """Return log probabilities (B, T, V); with targets the loss in nats, (B, T) for "none"."""
        if targets is None:
            return self.log_probs[idx]
        losses = -self.log_probs[idx, targets.clamp(min=0)]  # (B, T)
        losses = losses.masked_fill(targets < 0, 0.0)
        if loss_reduction == "none":
            return losses
        return losses.sum() / (targets >= 0).sum().clamp(min=1)


# %%
# NBVAL_CHECK_OUTPUT
toy = BigramModel(by_hand, prior=2.0)
print(toy(torch.tensor([[0, 1]])).exp())
assert torch.allclose(toy.log_probs.exp().sum(dim=1), torch.ones(2))

# %% [markdown]
# Check the upper left on paper. The whole text has 2 zeros and 3 ones among its successors; with
# one added to each, 3/7 and 4/7. Row 0 saw 0 zeros in 2, so
# $(0 + 2 \cdot 3/7)/(2 + 2) = 0.2143$.
#
# Its loss must agree with torch's, including the targets of -1 that do not count:

# %%
idx, targets = torch.tensor([[0, 1, 1]]), torch.tensor([[1, -1, 0]])
from_torch = torch.nn.functional.cross_entropy(
    toy(idx).transpose(1, 2), targets, ignore_index=-1, reduction="none"
)
assert torch.allclose(toy(idx, targets, loss_reduction="none"), from_torch)
assert torch.allclose(toy(idx, targets), from_torch.sum() / 2)

# %% [markdown]
# ## One function to measure them all
#
# What remains is to add up nats and bytes over batches of text. Three traps, all in one place. Add
# up sums, not averages: a batch of special tokens must not weigh as much as one of text. *Select*
# the losses that count instead of multiplying by a mask, since an infinite loss times 0 is no
# number. And add in float64, because a float32 sum of a million losses loses digits.


# %%
#| export
@torch.no_grad()
def nats_and_bytes(
    model: Callable[..., Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    token_bytes: Int[Tensor, " V"],
) -> tuple[float, int]:
    """Add up the loss of a model over some text, and the bytes of that text.

    Several processes that each evaluate a part add both sums before they divide.

    Args:
        model: called as model(idx, targets, loss_reduction="none"), returns nats of shape (B, T).
        batches: pairs (idx, targets), int64, shape (B, T) each; a target of -1 does not count.
        token_bytes: bytes of each token, shape (V,); tokens of 0 bytes (special ones) do not count.

    Returns:
        The sum of the losses in nats, and the number of bytes.

    Raises:
        ValueError: the model returns losses of another shape than the targets, or NaN.
    """
    nats, n_bytes = 0.0, 0
    for idx, targets in batches:
        losses = model(idx, targets, loss_reduction="none")
        if losses.shape != targets.shape:
            raise ValueError(f"losses {tuple(losses.shape)} for targets {tuple(targets.shape)}")
        lengths = token_bytes.to(targets.device)[targets.clamp(min=0)]
        lengths = lengths.masked_fill(targets < 0, 0)
        # Select, never multiply by zero: an ignored loss may be infinite, and 0 * inf is not a
        # number.
        nats += float(losses[lengths > 0].cpu().double().sum())
        n_bytes += int(lengths.sum())
    if math.isnan(nats):
        raise ValueError(
            "a loss is NaN: the model's weights are damaged; load an earlier checkpoint"
        )
    return nats, n_bytes


# %%
#| export
def evaluate_bpb(
    model: Callable[..., Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    token_bytes: Int[Tensor, " V"],
) -> float:
    """Measure how well a model predicts text, in bits per byte, whatever its tokenizer.

    Args:
        model: called as model(idx, targets, loss_reduction="none"), returns nats of shape (B, T).
        batches: pairs (idx, targets), int64, shape (B, T) each; a target of -1 does not count.
        token_bytes: bytes of each token, shape (V,); tokens of 0 bytes (special ones) do not count.

    Returns:
        Bits per byte, over all targets that cover text.

    Raises:
        ValueError: no target covers any byte, or the model returns NaN or losses of a wrong shape.
    """
    nats, n_bytes = nats_and_bytes(model, batches, token_bytes)
    if n_bytes == 0:
        raise ValueError(
            "no target covers any byte: are the batches empty, or all targets -1 or special?"
        )
    return nats / math.log(2) / n_bytes


# %%
def batches_of(ids: Tensor, length: int = 512, rows: int = 64) -> Iterable[tuple[Tensor, Tensor]]:
    """Cut one long row into batches of inputs and, one step later, targets; pad the end with -1."""
    block = length * rows
    n_blocks = math.ceil((len(ids) - 1) / block)
    idx, targets = torch.zeros(2, n_blocks * block, dtype=torch.int64)
    idx[: len(ids) - 1], targets[: len(ids) - 1] = ids[:-1], ids[1:]
    targets[len(ids) - 1 :] = -1
    yield from zip(idx.view(n_blocks, rows, length), targets.view(n_blocks, rows, length))


# %%
byte_model = BigramModel(counts)
byte_bpb = evaluate_bpb(byte_model, batches_of(held_out_ids), byte_lengths)
print(f"byte bigrams: {byte_bpb:.4f} bits per byte, held out")

# %% [markdown]
# An independent way to the same number: no tensors, no batches, bytes counted from the files' own
# text.


# %%
def bpb_slowly(model: BigramModel, ids: list[int], texts: list[str]) -> float:
    """Add up the surprises of all bytes in a loop, and divide by the length of the text."""
    table = model.log_probs.tolist()
    bits = sum(-table[a][b] / math.log(2) for a, b in zip(ids, ids[1:]) if b != 256)
    return bits / sum(len(text.encode("utf-8")) for text in texts)


slowly = bpb_slowly(byte_model, held_out_ids.tolist(), held_out_documents)
assert math.isclose(byte_bpb, slowly, rel_tol=1e-5), (
    f"got {byte_bpb}, not {slowly}: who counts 256?"
)

# %% [markdown]
# ## Longer tokens
#
# Pairs of bytes see two letters. Pairs of *tokens* see two words, if the words are frequent. So
# with the tokenizer of the last chapter the same stupid model should do better. We count with
# vocabularies of three sizes, on the same documents.

# %%
from nanochat_lib.tokenizer.tokenizer import Tokenizer


def token_ids(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Turn documents into one row of token ids, each document behind a <|bos|>."""
    rows = tokenizer.encode(texts, prepend=tokenizer.bos_id)
    return torch.tensor([i for row in rows for i in row])


# %%
def score(model: BigramModel, ids: Tensor, token_bytes: Tensor) -> tuple[float, float]:
    """Return bits per byte and nats per token."""
    nats, n_bytes = nats_and_bytes(model, batches_of(ids), token_bytes)
    return nats / math.log(2) / n_bytes, nats / int((token_bytes[ids] > 0).sum())


results = {257: [score(byte_model, ids, byte_lengths) for ids in (train_ids, held_out_ids)]}
for vocab_size in (512, 1_024, 2_048):
    tokenizer = Tokenizer.train(train_documents[:1_000], vocab_size)
    train, held_out = (token_ids(tokenizer, d) for d in (train_documents, held_out_documents))
    lengths = torch.tensor(tokenizer.token_bytes())
    model = BigramModel(bigram_counts(train, vocab_size))
    results[vocab_size] = [score(model, ids, lengths) for ids in (train, held_out)]

# %%
for vocab_size, ((on_train, _), (on_held_out, nats)) in results.items():
    print(
        f"V = {vocab_size:5}: bits per byte {on_train:.3f} on the training text, "
        f"{on_held_out:.3f} held out ({nats:.2f} nats a token)"
    )
assert results[1_024][1][0] < results[257][1][0] - 0.3

# %%
# alt: two falling curves over vocabulary size; the held-out one stays above and flattens.
figure, axes = plt.subplots(figsize=(6.5, 3))
sizes = list(results)
curves = {
    "training text": ("#33558b", -0.3, [scores[0][0] for scores in results.values()]),
    "held out": ("#c4651d", 0.15, [scores[1][0] for scores in results.values()]),
}
for name, (color, shift, values) in curves.items():
    axes.semilogx(sizes, values, "o-", color=color, base=2)
    axes.text(sizes[-1], values[-1] + shift, name, color=color, ha="right")
axes.set(xlabel="vocabulary size (tokens)", ylabel="bits per byte", ylim=(1.2, 4.1))
axes.grid(alpha=0.3)
figure.tight_layout()
plt.show()

# %% [markdown]
# *Longer tokens help, and help less and less: the training curve goes on falling while the held-out
# one flattens. The gap is what counting remembers and cannot use: most pairs of long tokens are
# seen once or never.*
#
# Now look at the nats a token in the last column. They *rise* from line to line, as a longer token
# is harder to guess: the loss says that each model is worse than the one before, and bits per byte
# says the truth.
#
# ## What about a real compressor?
#
# Since a model is a compressor, general compressors are fair rivals. They learn while they read, so
# we let them read the training text first and charge for the held-out bytes only.

# %%
import lzma
import zlib

train_text, held_out_text = ("\n".join(d).encode() for d in (train_documents, held_out_documents))
compressed = {}
for name, compress in (("zlib", zlib.compress), ("lzma", lzma.compress)):
    extra = len(compress(train_text + held_out_text)) - len(compress(train_text))
    compressed[name] = 8 * extra / len(held_out_text)

# %%
best_bigram = results[2_048][1][0]
print(f"token bigrams {best_bigram:.3f},", {n: round(b, 3) for n, b in compressed.items()})
assert compressed["lzma"] < best_bigram < compressed["zlib"]

# %% [markdown]
# There is the bar. Counting pairs of tokens beats zlib, whose window of 32 KB forgets the training
# text. It loses to lzma, which remembers all of it and finds long repetitions, of which
# documentation is full. A transformer that deserves its cost has to pass both.
#
# What does text at this price look like? Sample from the table:

# %%
generator = torch.Generator().manual_seed(3)
token, written = tokenizer.bos_id, []
for _ in range(60):
    p = model.log_probs[token].exp()
    p[tokenizer.vocab_size - 9 :] = 0  # no special tokens
    token = int(torch.multinomial(p, 1, generator=generator))
    written.append(token)
print(tokenizer.decode(written))

# %% [markdown]
# Each pair is plausible; the whole is nonsense. To do better a model has to look further back than
# one token.
#
# ## Cost
#
# Then why not count triples, or runs of ten? Work out the table: $V^n$ cells of 8 bytes for runs of
# n.

# %%
# NBVAL_CHECK_OUTPUT
for vocab_size, n in ((257, 2), (1_024, 2), (65_536, 2), (1_024, 3), (1_024, 10)):
    print(f"V = {vocab_size:6}, runs of {n:2}: {8 * vocab_size**n / 1e9:.3g} GB")

# %% [markdown]
# Nobody would store the zeros, of course. The real limit is the other one: how much of the table
# does the text fill?

# %%
pairs = bigram_counts(train, 2_048)
seen_once = int((pairs == 1).sum())
filled = (pairs > 0).float().mean()
print(f"{len(train):,} tokens touch {filled:.1%} of the pairs, {seen_once:,} of them only once")
assert filled < 0.1

# %% [markdown]
# A context of ten tokens is new nearly every time, and counting has nothing to say about what is
# new. The transformer will: it treats contexts that resemble each other alike.
#
# ## What goes wrong: counting bytes through `str`
#
# `token_bytes` deserves a look. It is tempting to decode each token to a string and measure that.
# But one emoji takes four bytes, and BPE may cut it in half:

# %%
half_emoji = "\N{WAVING HAND SIGN}".encode("utf-8")[:2]
through_str = len(half_emoji.decode("utf-8", errors="replace").encode("utf-8"))
assert (len(half_emoji), through_str) == (2, 3)

# %% [markdown]
# Two bytes became three, for the half that is no valid text turned into the replacement character.
# More bytes in the denominator, a better score: a well-known code base shipped this for months,
# with 193 of its 32,768 tokens counted wrong and its published figures 0.05% too good. How many are
# wrong in ours?

# %%
raw = tokenizer.token_bytes()
through_str = [len(tokenizer.decode([i]).encode("utf-8")) for i in range(tokenizer.vocab_size - 9)]
wrong = [i for i, n in enumerate(through_str) if n != raw[i]]
print(f"{len(wrong)} of {tokenizer.vocab_size} tokens would be measured wrong")
assert len(wrong) >= 128  # at least the single bytes from 0x80 up

# %% [markdown]
# And the sum must come out right: over any text, the lengths of its tokens add up to its bytes.

# %%
text = held_out_documents[0] + " \N{WAVING HAND SIGN} und Grüße"
assert sum(raw[i] for i in tokenizer.encode(text)) == len(text.encode("utf-8"))

# %% [markdown]
# ## Recap
#
# The loss is the average surprise; it starts at $\ln V$, ends at the entropy of text at best, and
# only bits per byte on held-out text makes it comparable. Counting pairs of tokens, with a prior
# for what was never seen, sets the score to beat and takes a second to train. It cannot look
# further back, because tables of longer contexts stay empty. `nanochat_lib.evaluation.bpb` now
# holds `bits_per_byte`, `evaluate_bpb`, `nats_and_bytes`, `entropy_bits`, `bigram_counts`,
# `bigram_entropy_bits` and `BigramModel`.
#
# The exercises ask for the error bar of a score, for a better guess about pairs that were never seen,
# and for a dial to be set without looking at the test. Next: a way to look back at every earlier token without a table, attention.
