"""The controller: anneals the temperature, opens the bits after warm-up, holds the size multiplier."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from autoquant.core.schedule import SCHEDULES


@dataclass
class Controller:
    """State of a search over `steps` steps under a budget.

    `warmup` (N1, share of the steps): logits stay closed until then; `anneal_after` (N0, share): the temperature holds
    `start` until then and reaches `end` at the last step. The size term is an augmented Lagrangian of the relative excess
    x = bytes / budget - 1: multiplier * x + penalty / 2 * x^2, with multiplier += penalty_rate * x after every step.
    """

    steps: int
    budget_bytes: float
    schedule: str = "exponential"
    start: float = 1.0
    end: float = 0.1
    warmup: float = 0.1
    anneal_after: float = 0.1
    penalty: float = 10.0
    penalty_rate: float = 1.0
    multiplier: float = 0.0

    def temperature(self, step: int) -> float:
        """Gumbel-softmax temperature at a step."""
        return SCHEDULES[self.schedule](step, self.start, self.end, round(self.anneal_after * self.steps), self.steps)

    def bits_open(self, step: int) -> bool:
        """Whether architecture logits move at this step."""
        return step >= round(self.warmup * self.steps)

    def size_term(self, expected_bytes: Tensor) -> Tensor:
        """The size loss of expected bytes, a scalar."""
        excess = expected_bytes / self.budget_bytes - 1.0
        return self.multiplier * excess + 0.5 * self.penalty * excess.square()

    def update_multiplier(self, expected_bytes: float) -> None:
        """Dual ascent; the multiplier may become negative, so that the budget is filled and not only kept."""
        self.multiplier += self.penalty_rate * (expected_bytes / self.budget_bytes - 1.0)

    def state_dict(self) -> dict[str, float]:
        return {"multiplier": self.multiplier}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.multiplier = state["multiplier"]
