"""The knapsack over measured losses: what each matrix at each width costs is tried out. No training."""

from __future__ import annotations

from dataclasses import dataclass

from autoquant.strategies.base import Problem, SearchResult
from autoquant.strategies.fisher import cheapest


@dataclass(frozen=True)
class Measured:
    """Minimise the summed loss within the budget: measured by matrix, spread over its sub-groups by their Fisher scores."""

    def search(self, problem: Problem) -> SearchResult:
        return cheapest(problem, problem.measured(problem))
