"""Which scale? A grid search around the Gaussian optimum that minimises the output error dW H dW^T, row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from autoquant.core.storage import FLOAT16_SMALLEST
from autoquant.quantizers.base import UniformQuantizer

# Step of the best uniform quantiser of a unit Gaussian (Max 1960), in standard deviations.
GAUSSIAN_STEP = {1: 1.596, 2: 0.996, 3: 0.586, 4: 0.335}
EIGHT_BIT_POINTS = 4  # the choice hardly matters there


def candidates(weight: Tensor, bits: int, points: int) -> Tensor:
    """Scales to try, [points, rows]: around the Gaussian optimum, or up to the largest weight at 8 bits."""
    if bits == 8:
        largest = weight.abs().amax(dim=1) / 127.0
        return torch.linspace(0.7, 1.0, EIGHT_BIT_POINTS, device=weight.device)[:, None] * largest
    rms = weight.square().mean(dim=1).sqrt()
    ratios = torch.logspace(-0.25, 0.25, points, device=weight.device)  # 0.56 to 1.78
    return ratios[:, None] * (rms * GAUSSIAN_STEP[bits])


def search_scale(quantizer: UniformQuantizer, weight: Tensor, bits: int, moment: Tensor | None = None, points: int = 9) -> Tensor:
    """The best scale of every row, [rows] float32, representable as float16.

    weight [rows, columns]; `moment` [columns, columns] is the mean of x x^T over the layer's inputs, so that the error
    minimised is that of the layer's output; None minimises the weights' own squared error (an embedding's output).
    """
    best_error = torch.full((len(weight),), torch.inf, device=weight.device)
    best = torch.ones(len(weight), device=weight.device)
    for scale in candidates(weight, bits, points):
        scale = scale.clamp_min(FLOAT16_SMALLEST).half().float()
        delta = quantizer.fake_quantize(weight, scale, bits) - weight
        error = delta.square().sum(dim=1) if moment is None else ((delta @ moment) * delta).sum(dim=1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best = torch.where(better, scale, best)
    return best
