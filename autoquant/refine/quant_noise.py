"""Quant-Noise (Fan, Stock et al. 2020): in every forward pass only a random share of the weight blocks is quantised.

The other blocks are as they are, so their gradient is exact; the quantised ones get the straight-through one. What is packed
is quantised as a whole. A block is 8 neighbouring weights of a row, the sub-vector of the paper's product quantisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autoquant.refine.base import RefineProblem
from autoquant.refine.train import everything, terms_loss, train
from autoquant.refine.weights import replaced_weights

BLOCK = 8  # weights


def quantised_in_part(quantised: Tensor, latent: Tensor, share: float) -> Tensor:
    """`quantised` in a random `share` of the blocks, `latent` in the others; all [rows, columns]."""
    rows, columns = latent.shape
    drawn = torch.rand(rows, -(-columns // BLOCK), device=latent.device) < share
    return torch.where(drawn.repeat_interleave(BLOCK, dim=1)[:, :columns], quantised, latent)


@dataclass(frozen=True)
class QuantNoise:
    """All weights and scales learn, from the terms that the recipe's `distillation` weighs, under noise."""

    def refine(self, problem: RefineProblem) -> None:
        def noisy(_: str, quantised: Tensor, latent: Tensor, __: Tensor | None) -> Tensor:
            return quantised_in_part(quantised, latent, problem.settings.noise)

        with replaced_weights(problem.supernet, noisy):
            train(problem, terms_loss(problem, problem.distillation), everything(problem))
