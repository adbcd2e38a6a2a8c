"""The sensitivity knapsack: no training, additive Fisher scores."""

from __future__ import annotations

from dataclasses import dataclass

from autoquant.core.derive import derive
from autoquant.strategies.base import Problem, SearchResult


@dataclass(frozen=True)
class Fisher:
    """Minimise the summed Fisher score within the budget."""

    def search(self, problem: Problem) -> SearchResult:
        values, removal = -problem.sensitivity.choices, -problem.sensitivity.removals
        derived = derive(values, problem.table, problem.budget.bytes, removal)
        return SearchResult(derived.allocation, values, removal)
