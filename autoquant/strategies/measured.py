"""The knapsack over measured losses: what each matrix at each width costs is tried out. No training."""

from __future__ import annotations

from dataclasses import dataclass

from autoquant.core.derive import derive
from autoquant.strategies.base import Problem, SearchResult


@dataclass(frozen=True)
class Measured:
    """Minimise the summed loss within the budget: measured by matrix, spread over its sub-groups by their Fisher scores."""

    def search(self, problem: Problem) -> SearchResult:
        measured = problem.measured(problem)
        values, removal = -measured.choices, -measured.removals
        derived = derive(values, problem.table, problem.budget.bytes, removal)
        return SearchResult(derived.allocation, values, removal)
