"""Grade the exercises of the optimizer chapter."""

import math

import torch


def grade_rms_matched_scale(module) -> None:
    """Matrices with singular values of 1, of every orientation."""
    for rows, columns in ((8, 8), (40, 10), (10, 40), (1, 7)):
        generator = torch.Generator().manual_seed(rows)
        u, _, vt = torch.linalg.svd(torch.randn(rows, columns, generator=generator), False)
        for target in (1.0, 0.2):
            scaled = (u @ vt) * module.rms_matched_scale(rows, columns, target)
            rms = float(scaled.square().mean().sqrt())
            assert math.isclose(rms, target, rel_tol=1e-4), (
                f"shape ({rows}, {columns}): root-mean-square {rms:.4f}, wanted {target}"
            )


def lion_reference(p, grads, lr, betas, decay):
    """Lion number by number, in plain Python."""
    p, m = list(p), [0.0] * len(p)
    for grad in grads:
        for i, g in enumerate(grad):
            mixed = betas[0] * m[i] + (1 - betas[0]) * g
            p[i] -= lr * ((mixed > 0) - (mixed < 0) + decay * p[i])
            m[i] = betas[1] * m[i] + (1 - betas[1]) * g
    return p, m


def grade_lion_step(module) -> None:
    """Several steps with changing signs and decay, in place."""
    # the first number's second gradient is too weak to turn the old momentum, not the new one
    grads = [
        [2.0, -1.0, 0.0, 2.0],
        [-0.9, 4.0, 0.0, 2.0],
        [-0.1, -30.0, 0.0, -9.0],
        [9.0, 1.0, 0.0, 1.0],
    ]
    for betas, decay in (((0.9, 0.99), 0.0), ((0.5, 0.5), 0.0), ((0.6, 0.8), 0.5)):
        start = [1.0, -2.0, 3.0, 0.5]
        p, momentum = torch.tensor(start), torch.zeros(4)
        for grad in grads:
            given = torch.tensor(grad)
            result = module.lion_step(p, given, momentum, 0.1, betas, decay)
            assert result is None, "update in place and return nothing"
            assert given.tolist() == torch.tensor(grad).tolist(), "the gradient must stay as it was"
        want_p, want_m = lion_reference(start, grads, 0.1, betas, decay)
        assert torch.allclose(p, torch.tensor(want_p), atol=1e-5), f"{p.tolist()}, not {want_p}"
        assert torch.allclose(momentum, torch.tensor(want_m), atol=1e-5), (
            "momentum: beta2, after use?"
        )


MUTANTS = {
    "rms_matched_scale": [
        """def rms_matched_scale(rows, columns, target):
    return target * math.sqrt(min(rows, columns))""",
        """def rms_matched_scale(rows, columns, target):
    return target * math.sqrt(rows)""",
        """def rms_matched_scale(rows, columns, target):
    return target * math.sqrt(rows * columns)""",
    ],
    "lion_step": [
        """def lion_step(p, grad, momentum, lr, betas=(0.9, 0.99), weight_decay=0.0):
    momentum.mul_(betas[1]).add_(grad, alpha=1 - betas[1])
    direction = (betas[0] * momentum + (1 - betas[0]) * grad).sign()
    p.sub_(lr * (direction + weight_decay * p))""",
        """def lion_step(p, grad, momentum, lr, betas=(0.9, 0.99), weight_decay=0.0):
    direction = (betas[0] * momentum + (1 - betas[0]) * grad + weight_decay * p).sign()
    p.sub_(lr * direction)
    momentum.mul_(betas[1]).add_(grad, alpha=1 - betas[1])""",
        """def lion_step(p, grad, momentum, lr, betas=(0.9, 0.99), weight_decay=0.0):
    momentum.mul_(betas[0]).add_(grad, alpha=1 - betas[0])
    p.sub_(lr * (momentum.sign() + weight_decay * p))""",
    ],
}
