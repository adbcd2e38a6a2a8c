"""Training with frozen bits and distillation (quantisation-aware, straight-through), on the losses of the recipe."""

from __future__ import annotations

from dataclasses import dataclass

from autoquant.refine.base import RefineProblem
from autoquant.refine.train import everything, learn


@dataclass(frozen=True)
class Retrain:
    """All weights and scales learn, from the terms that the recipe's `distillation` weighs."""

    def refine(self, problem: RefineProblem) -> None:
        learn(problem, problem.distillation, everything(problem))
