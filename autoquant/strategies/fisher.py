"""The sensitivity knapsack: no training, additive Fisher scores."""

from __future__ import annotations

from dataclasses import dataclass

from autoquant.core.derive import derive
from autoquant.strategies.base import Problem, SearchResult
from autoquant.strategies.sensitivity import Sensitivity


@dataclass(frozen=True)
class Fisher:
    """Minimise the summed Fisher score within the budget."""

    def search(self, problem: Problem) -> SearchResult:
        return cheapest(problem, problem.sensitivity)


def cheapest(problem: Problem, sensitivity: Sensitivity) -> SearchResult:
    """The allocation within the budget that costs least, as choices and removals are priced."""
    values, removal = -sensitivity.choices, -sensitivity.removals
    return SearchResult(derive(values, problem.table, problem.budget.bytes, removal).allocation, values, removal)
