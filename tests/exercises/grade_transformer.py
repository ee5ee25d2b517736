"""Grade the exercises of the chapter on the transformer."""

import pytest
import torch
import torch.nn.functional as F

from nanochat_lib.model.attention import rms_norm
from nanochat_lib.model.gpt import GPT, GPTConfig
from nanochat_lib.model.losses import token_losses


def _cost(depth: int, vocab_size: int, sequence_len: int) -> int:
    config = GPTConfig.from_depth(depth, vocab_size=vocab_size, sequence_len=sequence_len)
    table = config.padded_vocab_size * config.n_embd
    matrices = 12 * depth * config.n_embd**2
    looking = 12 * depth * config.n_embd * sequence_len
    return 20 * (2 * table + matrices) * (6 * (table + matrices) + looking)


def grade_depth_for_budget(module) -> None:
    for depth, vocab_size, sequence_len in ((1, 1_024, 256), (9, 1_000, 128), (20, 65_536, 2_048)):
        exact = _cost(depth, vocab_size, sequence_len)
        arguments = (vocab_size, sequence_len)
        assert module.depth_for_budget(1.001 * exact, *arguments) == depth, f"a bit over {depth}"
        if depth > 1:
            got = module.depth_for_budget(0.999 * exact, *arguments)
            assert got == depth - 1, f"a bit short of depth {depth}: got {got}"
    with pytest.raises(ValueError):
        module.depth_for_budget(0.999 * _cost(1, 1_024, 256), 1_024, 256)


def grade_chunked_loss(module) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 7, 8, generator=generator).requires_grad_()
    head = (5 * torch.randn(64, 8, generator=generator)).requires_grad_()
    targets = torch.randint(0, 50, (3, 7), generator=generator)
    targets[0, 2:], targets[2, :3] = -1, -1
    whole = token_losses(15 * torch.tanh(F.linear(x, head)[..., :50] / 15), targets)
    expected = torch.autograd.grad(whole, (x, head))
    for chunk in (1, 4, 21, 100):
        loss = module.chunked_loss(x, head, targets, 50, 15.0, chunk)
        assert torch.isclose(loss, whole), f"chunk={chunk}: {loss.item()}, not {whole.item()}"
        for got, right in zip(torch.autograd.grad(loss, (x, head)), expected):
            assert torch.allclose(got, right, atol=1e-5), f"chunk={chunk}: gradients differ"
    nothing = module.chunked_loss(x, head, torch.full_like(targets, -1), 50, 15.0, 4)
    assert nothing.item() == 0.0, f"no targets: got {nothing.item()}"
    _grade_memory(module, x.detach(), head.detach(), targets)


def _grade_memory(module, x, head, targets) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dtype.is_floating_point:
                self.elements = max(self.elements, out.numel())
            return out

    with Largest() as watch:
        module.chunked_loss(x, head, targets, 50, 15.0, 2)
    limit = max(2 * 64, x.numel(), head.numel())
    assert watch.elements <= limit, f"a tensor of {watch.elements} numbers, allowed are {limit}"


def _by_hand(model: GPT, idx: torch.Tensor, part: str) -> torch.Tensor:
    """Compute a GPT's logits with one part taken out, from its parts."""
    x = rms_norm(model.wte(idx))
    cos, sin = model.cos[: idx.size(1)], model.sin[: idx.size(1)]
    if part == "rotation":
        cos, sin = torch.ones_like(cos), torch.zeros_like(sin)
    read = (lambda y: y) if part == "norm" else rms_norm
    for block in model.blocks:
        if part != "attention":
            x = x + block.attn(read(x), cos, sin)
        if part != "mlp":
            x = x + block.mlp(read(x))
    logits = model.lm_head(rms_norm(x))[..., : model.config.vocab_size]
    return 15 * torch.tanh(logits / 15)


def _shaken(config: GPTConfig) -> GPT:
    """Build a GPT whose every weight matters."""
    model, generator = GPT(config), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return model


def grade_remove_part(module) -> None:
    """The same logits as a model put together by hand without the part; then an ablation's sign."""
    config = GPTConfig(32, 2, 2, sequence_len=16, vocab_size=20, n_layer=2)
    idx = torch.randint(20, (3, 11), generator=torch.Generator().manual_seed(0))
    for part in ("attention", "mlp", "rotation", "norm"):
        plain, model = _shaken(config), _shaken(config)
        module.remove_part(model, part)
        with torch.no_grad():
            want, whole, got = _by_hand(plain, idx, part), plain(idx), model(idx)
        assert not torch.allclose(got, whole, atol=1e-4), f"{part}: the model is as it was"
        assert torch.allclose(got, want, atol=1e-4), (
            f"without {part} the logits differ by {(got - want).abs().max():.3f} from those of a model "
            "put together without it: did something else change?"
        )
    for part, low, high in (("attention", 2.0, 2.2), ("mlp", 0.0, 1.9)):
        loss = _trained(module, part)
        assert low < loss < high, f"without {part} 150 steps reach {loss:.2f} nats a letter"
    with pytest.raises(ValueError):
        module.remove_part(GPT(config), "head")


def _trained(module, part: str) -> float:
    """Train on letters that are sums of the two before them; without attention nothing can be known."""
    model = GPT(GPTConfig(64, 2, 2, sequence_len=16, vocab_size=8, n_layer=1))
    module.remove_part(model, part)
    optimizer, generator = torch.optim.Adam(model.parameters(), lr=6e-3), torch.Generator()
    generator.manual_seed(1)
    for _ in range(150):
        rows = torch.randint(8, (16, 17), generator=generator)
        for t in range(2, 17):
            rows[:, t] = (rows[:, t - 1] + rows[:, t - 2]) % 8
        loss = model(rows[:, :-1], rows[:, 1:].clone().index_fill_(1, torch.tensor([0]), -1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


MUTANTS = {
    "depth_for_budget": [
        """def depth_for_budget(flops, vocab_size, sequence_len):
    '''Counts the embedding as if it were multiplied.'''
    depth = 0
    while True:
        config = GPTConfig.from_depth(depth + 1, vocab_size=vocab_size, sequence_len=sequence_len)
        with torch.device("meta"):
            weights = GPT(config).num_params()
        looking = 12 * config.n_layer * config.n_embd * sequence_len
        if 20 * weights * (6 * weights + looking) > flops:
            break
        depth += 1
    if depth == 0:
        raise ValueError("too few")
    return depth
""",
        """def depth_for_budget(flops, vocab_size, sequence_len):
    '''The first depth that is too expensive.'''
    depth = 1
    while True:
        config = GPTConfig.from_depth(depth, vocab_size=vocab_size, sequence_len=sequence_len)
        with torch.device("meta"):
            model = GPT(config)
        if 20 * model.num_params() * model.estimate_flops() > flops:
            if depth == 1:
                raise ValueError("too few")
            return depth
        depth += 1
""",
        """def depth_for_budget(flops, vocab_size, sequence_len):
    '''Never fails: returns 0 or 1 for no money.'''
    for depth in range(1, 60):
        config = GPTConfig.from_depth(depth, vocab_size=vocab_size, sequence_len=sequence_len)
        with torch.device("meta"):
            model = GPT(config)
        if 20 * model.num_params() * model.estimate_flops() > flops:
            return max(depth - 1, 1)
""",
    ],
    "chunked_loss": [
        """def chunked_loss(x, head, targets, vocab_size, softcap, chunk):
    '''The mean of the chunks' means.'''
    means = []
    for rows, answers in zip(x.flatten(0, 1).split(chunk), targets.flatten().split(chunk)):
        logits = softcap * torch.tanh(F.linear(rows, head[:vocab_size]) / softcap)
        means.append(token_losses(logits[None], answers[None]))
    return torch.stack(means).mean()
""",
        """def chunked_loss(x, head, targets, vocab_size, softcap, chunk):
    '''The padding can be predicted.'''
    total = x.new_zeros(())
    for rows, answers in zip(x.flatten(0, 1).split(chunk), targets.flatten().split(chunk)):
        logits = softcap * torch.tanh(F.linear(rows, head) / softcap)
        total = total + F.cross_entropy(logits, answers, ignore_index=-1, reduction="sum")
    return total / (targets != -1).sum().clamp(min=1)
""",
        """def chunked_loss(x, head, targets, vocab_size, softcap, chunk):
    '''NaN where nothing counts.'''
    total = x.new_zeros(())
    for rows, answers in zip(x.flatten(0, 1).split(chunk), targets.flatten().split(chunk)):
        logits = softcap * torch.tanh(F.linear(rows, head[:vocab_size]) / softcap)
        total = total + F.cross_entropy(logits, answers, ignore_index=-1, reduction="sum")
    return total / (targets != -1).sum()
""",
        """def chunked_loss(x, head, targets, vocab_size, softcap, chunk):
    '''Right, but holds all logits.'''
    logits = F.linear(x, head[:vocab_size])
    return token_losses(softcap * torch.tanh(logits / softcap), targets)
""",
    ],
    "remove_part": [
        '''def remove_part(model, part):
    """Take the part out of the first block only."""
    if part not in ("attention", "mlp", "rotation", "norm"):
        raise ValueError(part)
    if part == "rotation":
        model.cos.fill_(1.0)
        model.sin.zero_()
    elif part != "norm":
        half = model.blocks[0].attn if part == "attention" else model.blocks[0].mlp
        half.forward = lambda x, *rest: torch.zeros_like(x)
''',
        '''def remove_part(model, part):
    """Pass the stream on where nothing should be added: each block then doubles it."""
    if part not in ("attention", "mlp", "rotation", "norm"):
        raise ValueError(part)
    for block in model.blocks:
        half = block.attn if part == "attention" else block.mlp
        half.forward = lambda x, *rest: x
''',
        '''def remove_part(model, part):
    """Set both tables to zero: queries and keys vanish, and attention becomes a plain mean."""
    def nothing(x, *rest):
        return torch.zeros_like(x)

    if part == "rotation":
        model.cos.zero_()
        model.sin.zero_()
        return
    for block in model.blocks:
        if part == "attention":
            block.attn.forward = nothing
        elif part == "mlp":
            block.mlp.forward = nothing
        elif part != "norm":
            raise ValueError(part)
''',
    ],
}
