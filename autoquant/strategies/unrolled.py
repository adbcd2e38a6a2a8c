"""The second-order architecture gradient: of the held-out loss after one weight step (AQ-BERT eq. 13-14, as in DARTS)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PERTURBATION = 0.01  # length of the finite difference in weight space, DARTS's choice


def unrolled_gradient(
    train_loss: Callable[[], Tensor],
    held_out_loss: Callable[[], Tensor],
    weights: Sequence[Tensor],
    architecture: Sequence[Tensor],
    rate: float,
) -> tuple[Tensor, list[Tensor]]:
    """d/dO L_val(w - xi dL_train(w, O)/dw, O), and that L_val (a scalar); xi is `rate`.

    By the chain rule dL_val/dO at the new weights minus xi d2L_train/dO dw times v, v = dL_val/dw' there (eq. 14); the product
    is a central difference of dL_train/dO along v. The losses are functions of the tensors as they stand, with the same noise
    at every call: they are called once and three times. `weights` are left as they were, bit by bit.
    """
    with torch.no_grad():
        start = [w.clone() for w in weights]
    step = _gradient(train_loss(), weights)
    _move(weights, start, step, -rate)
    loss = held_out_loss()
    grads = _gradient(loss, [*architecture, *weights])
    direct, direction = grads[: len(architecture)], grads[len(architecture) :]
    length = torch.stack([v.norm() for v in direction]).norm().clamp_min(torch.finfo(direction[0].dtype).tiny)
    epsilon = PERTURBATION / length
    sides = []
    for sign in (1.0, -1.0):
        _move(weights, start, direction, sign * epsilon)
        sides.append(_gradient(train_loss(), architecture))
    _move(weights, start, direction, 0.0)
    product = [(above - below) / (2 * epsilon) for above, below in zip(*sides, strict=True)]
    return loss.detach(), [d - rate * p for d, p in zip(direct, product, strict=True)]


def _gradient(loss: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Zeros of what the loss leaves out, as one of hidden states alone does with the classifier."""
    return torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)


@torch.no_grad()
def _move(weights: Sequence[Tensor], start: Sequence[Tensor], direction: Sequence[Tensor], rate: float | Tensor) -> None:
    """weights = start + rate direction, in place."""
    for weight, origin, v in zip(weights, start, direction, strict=True):
        weight.copy_(origin + rate * v)
