"""How does size enter the loss? One class a paper, one protocol; the table drives the contract tests.

Every term sees the expected bytes E[C] of the supernet, the bytes C of the choices that it last sampled, and all probabilities.
Sizes are relative to the budget V, so that a term's weight means the same for every model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from autoquant.core.settings import SearchSettings


class SizeTerm(Protocol):
    """A scalar added to what the architecture minimises; what it keeps between steps is saved and restored."""

    def loss(self, expected_bytes: Tensor, assigned_bytes: float, probabilities: Tensor) -> Tensor:
        """The term, a scalar: `expected_bytes` E[C] (scalar, differentiable), `assigned_bytes` C, `probabilities` [N, K]."""
        ...

    def update(self, expected_bytes: float) -> None:
        """Called after every architecture step."""
        ...

    def state_dict(self) -> dict[str, float]:
        """State between steps; logged with every step."""
        ...

    def load_state_dict(self, state: dict[str, float]) -> None: ...


@dataclass
class AugmentedLagrangian:
    """multiplier x + penalty / 2 x^2 of the relative excess x = E[C] / V - 1; multiplier += penalty_rate x after every step.

    The multiplier may become negative, so that the budget is filled and not only kept.
    """

    budget_bytes: float
    penalty: float
    penalty_rate: float
    multiplier: float = 0.0

    def loss(self, expected_bytes: Tensor, assigned_bytes: float, probabilities: Tensor) -> Tensor:
        excess = expected_bytes / self.budget_bytes - 1.0
        return self.multiplier * excess + 0.5 * self.penalty * excess.square()

    def update(self, expected_bytes: float) -> None:
        self.multiplier += self.penalty_rate * (expected_bytes / self.budget_bytes - 1.0)

    def state_dict(self) -> dict[str, float]:
        return {"multiplier": self.multiplier}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.multiplier = state["multiplier"]


class Stateless:
    """A term that keeps nothing between steps."""

    def update(self, expected_bytes: float) -> None:
        pass

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        pass


@dataclass(frozen=True)
class PiecewiseLog(Stateless):
    """AQ-BERT (eq. 4-6): +log E[C] if C > (1 + eps) V, -log E[C] if C < (1 - eps) V, 0 between; times `weight` (lambda).

    The logarithm is of E[C] / V: another constant, the same gradient.
    """

    budget_bytes: float
    weight: float
    tolerance: float

    def loss(self, expected_bytes: Tensor, assigned_bytes: float, probabilities: Tensor) -> Tensor:
        excess = assigned_bytes / self.budget_bytes - 1.0
        sign = 0.0 if abs(excess) <= self.tolerance else math.copysign(1.0, excess)
        return sign * self.weight * (expected_bytes / self.budget_bytes).log()


@dataclass(frozen=True)
class SoftBarrier(Stateless):
    """BP-NAS (Yu et al. 2020): a barrier that grows towards the budget and is steep beyond it, and a one-hot regulariser.

    Barrier, with x = 1 - E[C] / V: -weight log x while x > eps, and that curve's tangent at eps beyond it, so that a search may
    start outside. Regulariser, "Prob-1": `one_hot` times the mean over sub-groups of prod_k (1 - p_k), which is 0 only where
    one choice has all the probability. The barrier's logarithm is our reading of its published description.
    """

    budget_bytes: float
    weight: float
    tolerance: float
    one_hot: float

    def loss(self, expected_bytes: Tensor, assigned_bytes: float, probabilities: Tensor) -> Tensor:
        room, edge = 1.0 - expected_bytes / self.budget_bytes, self.tolerance
        inside, tangent = -room.clamp_min(edge).log(), (edge - room) / edge - math.log(edge)
        barrier = torch.where(room > edge, inside, tangent)
        return self.weight * barrier + self.one_hot * (1.0 - probabilities).prod(dim=1).mean()


SIZE_TERMS: dict[str, Callable[[SearchSettings, float], SizeTerm]] = {
    "augmented_lagrangian": lambda s, budget: AugmentedLagrangian(budget, s.penalty, s.penalty_rate),
    "piecewise_log": lambda s, budget: PiecewiseLog(budget, s.size_weight, s.size_tolerance),
    "soft_barrier": lambda s, budget: SoftBarrier(budget, s.barrier_weight, s.size_tolerance, s.one_hot_weight),
}
