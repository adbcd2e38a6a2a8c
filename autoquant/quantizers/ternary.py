"""Ternary weights (TWN; Li, Zhang and Liu 2016, eq. 5-6): -a, 0 or a, with threshold and a taken from the weights.

threshold = 0.7 mean|w|, a = mean of the |w| above it, over the weights that share a scale: a row, or a sub-group of rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autoquant.core.storage import FLOAT16_SMALLEST

THRESHOLD = 0.7


@torch.no_grad()
def ternary_parameters(weight: Tensor, group: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Threshold and scale of every row, [rows] each; rows with the same number in `group` [rows] share theirs, None: no row does.

    Weights that are all equal to zero get the smallest scale that float16 holds.
    """
    size = weight.abs()
    count = torch.full((len(weight),), float(weight.shape[1]), device=weight.device)
    threshold = THRESHOLD * _shared(size.sum(1), group) / _shared(count, group)
    above = size > threshold[:, None]
    kept = _shared(above.sum(1).to(size.dtype), group)
    scale = _shared((size * above).sum(1), group) / kept.clamp_min(1.0)
    return threshold, scale.clamp_min(FLOAT16_SMALLEST)


def _shared(rows: Tensor, group: Tensor | None) -> Tensor:
    """The sum over the rows of a row's group, [rows]."""
    if group is None:
        return rows
    return torch.zeros(int(group.max()) + 1, dtype=rows.dtype, device=rows.device).index_add_(0, group, rows)[group]


def ternarise(weight: Tensor, threshold: Tensor, scale: Tensor) -> Tensor:
    """-scale, 0 or scale: [rows, columns]; the gradient passes straight through to the weight."""
    values: Tensor = _Ternarise.apply(weight, threshold, scale)
    return values


class _Ternarise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, threshold: Tensor, scale: Tensor) -> Tensor:
        return torch.where(weight.abs() > threshold[:, None], weight.sign() * scale[:, None], 0.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None
