"""Grade the exercises of the chapter on attention."""

import pytest
import torch

from nanochat_lib.model.attention import causal_mask, naive_attention


def grade_document_mask(module) -> None:
    generator = torch.Generator().manual_seed(0)
    for bos_id in (0, 2):
        idx = torch.randint(0, 4, (3, 12), generator=generator)
        mask = module.document_mask(idx, bos_id)
        assert mask.shape == (3, 12, 12) and mask.dtype == torch.bool
        for b, t, s in ((b, t, s) for b in range(3) for t in range(12) for s in range(12)):
            may_read = s <= t and bos_id not in idx[b, s + 1 : t + 1].tolist()
            assert mask[b, t, s].item() == may_read, (
                f"row {idx[b].tolist()}, bos {bos_id}: may {t} read {s}? got {mask[b, t, s].item()}"
            )


def grade_streaming_attention(module) -> None:
    q, k, v = torch.randn(3, 2, 3, 17, 8, generator=torch.Generator().manual_seed(0))
    for scale in (1.0, 30.0):  # at 30, scores reach several thousand: exp overflows beyond 88
        expected, _ = naive_attention(scale * q, scale * k, v, causal_mask(17))
        for block in (1, 4, 17, 40):
            out = module.streaming_attention(scale * q, scale * k, v, block)
            assert out.isfinite().all(), f"block={block}: overflow, or an empty row of scores?"
            assert torch.allclose(out, expected, atol=1e-4), f"block={block}, scale={scale}"
    # rising scores: every block brings a new maximum
    q, k = torch.ones(1, 1, 17, 4), torch.arange(17.0)[:, None].expand(1, 1, 17, 4)
    v = torch.randn(1, 1, 17, 4, generator=torch.Generator().manual_seed(1))
    expected, _ = naive_attention(q, k, v, causal_mask(17))
    assert torch.allclose(module.streaming_attention(q, k, v, 3), expected, atol=1e-5)
    _grade_memory(module)


def _grade_memory(module) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.elements = max(self.elements, out.numel())
            return out

    q = torch.zeros(1, 1, 256, 4)
    with Largest() as watch:
        module.streaming_attention(q, q, q, 8)
    if watch.elements > 256 * 8:
        pytest.fail(f"a tensor of {watch.elements} numbers: (T, block) is {256 * 8}")


def grade_train_copier(module) -> None:
    """The trained readers themselves: causal, position-blind without rotations, right with them."""
    generator = torch.Generator().manual_seed(3)
    idx = torch.randint(16, (300, 24), generator=generator)
    for distance in (1, 4):
        with_turns = module.train_copier(distance, True, 300)
        without = module.train_copier(distance, False, 300)
        for read, name in ((with_turns, "rotated"), (without, "not rotated")):
            logits = read(idx)
            assert tuple(logits.shape) == (300, 24, 16), f"logits of shape {tuple(logits.shape)}"
            changed = idx.clone()
            changed[:, 20:] = (changed[:, 20:] + 1) % 16
            moved = (read(changed)[:, :20] - logits[:, :20]).abs().max()
            assert moved < 1e-4, f"{name}: places before 20 saw that places from 20 on changed"
        mixed = torch.cat((idx[:, torch.randperm(23, generator=generator)], idx[:, 23:]), dim=1)
        gap = (without(mixed)[:, 23] - without(idx)[:, 23]).abs().max()
        assert gap < 1e-3, (
            "without rotations the last place must not notice that the earlier tokens changed places: "
            f"its logits moved by {gap:.2f}"
        )
        right = {}
        for read, name in ((with_turns, True), (without, False)):
            said = read(idx).argmax(-1)[:, distance:]
            right[name] = float((said == idx[:, : 24 - distance]).float().mean())
        assert right[True] > 0.6, (
            f"rotated, distance {distance}: only {right[True]:.0%} right after 300 steps; is the target "
            "the token at t - distance?"
        )
        assert right[False] < 0.5, (
            f"not rotated, yet {right[False]:.0%} right: how does it know places?"
        )
        assert right[False] > 1 / 16, "not rotated, it should still know which tokens it has seen"


TRAIN = """

def _train(distance, rotated, back, steps, mask):
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 32), (32, 32), (32, 32), (32, 32), (32, 16)]
    weights = [(torch.randn(s, generator=generator) / 32**0.5).requires_grad_() for s in shapes]
    tables = rope_tables(24, 32)

    def read(idx):
        x = weights[0][idx]
        q, k = (rms_norm((x @ weights[i]).unsqueeze(2)) for i in (1, 2))
        if rotated:
            q, k = apply_rope(q, *tables), apply_rope(k, *tables)
        v = (x @ weights[3]).unsqueeze(1)
        return naive_attention(q.transpose(1, 2), k.transpose(1, 2), v, mask)[0].squeeze(1) @ weights[4]

    optimizer = torch.optim.Adam(weights, lr=0.01)
    for _ in range(steps):
        idx = torch.randint(16, (32, 24), generator=generator)
        targets = idx.roll(back, dims=1)[:, distance : 24 - distance]
        loss = F.cross_entropy(read(idx)[:, distance : 24 - distance].flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.no_grad()(read)
"""

MUTANTS = {
    "document_mask": [
        """def document_mask(idx, bos_id):
    '''Bos joins the document before it.'''
    starts = (idx == bos_id).long()
    document = starts.cumsum(dim=1) - starts
    return (document[:, :, None] == document[:, None, :]) & causal_mask(idx.size(1))
""",
        """def document_mask(idx, bos_id):
    '''Not causal.'''
    document = (idx == bos_id).cumsum(dim=1)
    return document[:, :, None] == document[:, None, :]
""",
        """def document_mask(idx, bos_id):
    '''The first row's documents for the whole batch.'''
    document = (idx[:1] == bos_id).cumsum(dim=1).expand(idx.shape)
    return (document[:, :, None] == document[:, None, :]) & causal_mask(idx.size(1))
""",
    ],
    "streaming_attention": [
        """def streaming_attention(q, k, v, block):
    '''Forgets to rescale what was summed before.'''
    T, D = q.shape[-2:]
    position = torch.arange(T)
    largest = q.new_full((*q.shape[:-1], 1), float("-inf"))
    total, out = torch.zeros_like(largest), torch.zeros_like(q)
    for start in range(0, T, block):
        columns = slice(start, start + block)
        scores = q @ k[..., columns, :].transpose(-2, -1) / D**0.5
        scores = scores.masked_fill(position[:, None] < position[columns], float("-inf"))
        largest = torch.maximum(largest, scores.amax(dim=-1, keepdim=True))
        weights = (scores - largest).exp()
        total = total + weights.sum(dim=-1, keepdim=True)
        out = out + weights @ v[..., columns, :]
    return out / total
""",
        """def streaming_attention(q, k, v, block):
    '''No maximum: overflows.'''
    T, D = q.shape[-2:]
    position = torch.arange(T)
    total, out = 0.0, 0.0
    for start in range(0, T, block):
        columns = slice(start, start + block)
        scores = q @ k[..., columns, :].transpose(-2, -1) / D**0.5
        weights = scores.masked_fill(position[:, None] < position[columns], float("-inf")).exp()
        total = total + weights.sum(dim=-1, keepdim=True)
        out = out + weights @ v[..., columns, :]
    return out / total
""",
        """def streaming_attention(q, k, v, block):
    '''Right, but holds the whole table.'''
    return naive_attention(q, k, v, causal_mask(q.size(-2)))[0]
""",
    ],
    "train_copier": [
        '''def train_copier(distance, rotated, steps):
    """Ignore the switch: both readers are rotated."""
    return _train(distance, True, distance, steps, causal_mask(24))
'''
        + TRAIN,
        '''def train_copier(distance, rotated, steps):
    """Aim at the token `distance` places ahead: at place t - distance stands what t must say."""
    return _train(distance, rotated, -distance, steps, causal_mask(24))
'''
        + TRAIN,
        '''def train_copier(distance, rotated, steps):
    """Leave out the causal mask."""
    return _train(distance, rotated, distance, steps, torch.ones(24, 24, dtype=torch.bool))
'''
        + TRAIN,
    ],
}
