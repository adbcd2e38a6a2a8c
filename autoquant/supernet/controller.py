"""The controller: anneals the temperature, opens the bits after warm-up, holds the size term."""

from __future__ import annotations

from dataclasses import dataclass

from autoquant.core.schedule import SCHEDULES
from autoquant.supernet.size_terms import SizeTerm


@dataclass
class Controller:
    """State of a search over `steps` steps.

    `warmup` (N1, share of the steps): logits stay closed until then; `anneal_after` (N0, share): the temperature holds
    `start` until then and reaches `end` at the last step. `size` is the term that keeps the search at its budget.
    """

    steps: int
    size: SizeTerm
    schedule: str
    start: float
    end: float
    warmup: float
    anneal_after: float

    def temperature(self, step: int) -> float:
        """Gumbel-softmax temperature at a step."""
        return SCHEDULES[self.schedule](step, self.start, self.end, round(self.anneal_after * self.steps), self.steps)

    def bits_open(self, step: int) -> bool:
        """Whether architecture logits move at this step."""
        return step >= round(self.warmup * self.steps)

    def state_dict(self) -> dict[str, float]:
        return self.size.state_dict()

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.size.load_state_dict(state)
