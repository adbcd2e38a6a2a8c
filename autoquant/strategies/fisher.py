"""The sensitivity knapsack: no training, additive Fisher scores."""

from __future__ import annotations

from dataclasses import dataclass

from autoquant.core.allocate import allocate
from autoquant.strategies.base import Problem, SearchResult


@dataclass(frozen=True)
class Fisher:
    """Minimise the summed Fisher score within the budget."""

    def search(self, problem: Problem) -> SearchResult:
        values = -problem.sensitivity
        choice = allocate(values, problem.table, problem.budget.bytes)
        return SearchResult(problem.table.to_allocation(choice), values)
