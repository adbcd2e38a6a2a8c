"""PreQuant (Gong et al. 2023): quantise first, then fine-tune only the few outlier weights; everything else stays.

An outlier is one of the 0.5 % of a matrix's weights that lie furthest from its mean. They stay on the grid: what is packed has
their codes, too. Their gradient passes straight through even where the grid ends, beyond which many of them lie.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from autoquant.refine.base import RefineProblem
from autoquant.refine.train import learn
from autoquant.refine.weights import replaced_weights

SHARE = 0.005  # of a matrix's weights


def outliers(weight: Tensor, share: float = SHARE) -> Tensor:
    """Which weights are furthest from the mean, as 0 and 1: [rows, columns], at least one of them."""
    distance = (weight.detach() - weight.detach().mean()).abs().flatten()
    chosen = torch.zeros_like(distance)
    chosen[distance.topk(math.ceil(share * len(distance))).indices] = 1.0
    return chosen.view_as(weight)


@dataclass(frozen=True)
class PreQuant:
    """The outliers learn, from the terms that the recipe's `distillation` weighs; scales, biases and norms do not."""

    def refine(self, problem: RefineProblem) -> None:
        weights = {name: mixed.weight for name, mixed in problem.supernet.mixed_weights()}
        chosen = {name: outliers(weight) for name, weight in weights.items()}

        def tuned(name: str, quantised: Tensor, latent: Tensor, rows: Tensor | None) -> Tensor:
            mask = chosen[name] if rows is None else chosen[name][rows]
            return quantised.detach() + mask * (latent - latent.detach())  # the quantised values, to the last bit

        # without weight decay, which would move all of them
        group = {"params": list(weights.values()), "lr": problem.settings.learning_rate, "weight_decay": 0.0}
        with replaced_weights(problem.supernet, tuned):
            learn(problem, problem.distillation, [group])
