"""Quant-Noise (Fan, Stock et al. 2020): in every forward pass only a random share of the weight blocks is quantised.

The other blocks are as they are, so their gradient is exact; the quantised ones get the straight-through one. What is packed
is quantised as a whole: codebooks are made anew of the trained weights (the paper's iPQ; its tuning of centroids layer by layer
is not here). A block is what one code stands for, or else 8 neighbouring weights of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autoquant.refine.base import RefineProblem
from autoquant.refine.train import everything, learn
from autoquant.refine.weights import replaced_weights

BLOCK = 8  # weights


def quantised_in_part(quantised: Tensor, latent: Tensor, share: float, block: int = BLOCK) -> Tensor:
    """`quantised` in a random `share` of the blocks, `latent` in the others; all [rows, columns]."""
    rows, columns = latent.shape
    drawn = torch.rand(rows, -(-columns // block), device=latent.device) < share
    return torch.where(drawn.repeat_interleave(block, dim=1)[:, :columns], quantised, latent)


@dataclass(frozen=True)
class QuantNoise:
    """All weights and scales learn, from the terms that the recipe's `distillation` weighs, under noise."""

    def refine(self, problem: RefineProblem) -> None:
        matrices = dict(problem.supernet.mixed_weights())
        blocks = {name: mixed.vector_length() or BLOCK for name, mixed in matrices.items()}

        def noisy(name: str, quantised: Tensor, latent: Tensor, _: Tensor | None) -> Tensor:
            return quantised_in_part(quantised, latent, problem.settings.noise, blocks[name])

        with replaced_weights(problem.supernet, noisy):
            learn(problem, problem.distillation, everything(problem))
        for mixed in matrices.values():
            mixed.measure_again()
