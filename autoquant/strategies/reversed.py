"""The control that contradicts the search: what it found most worth its bytes gets the fewest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoquant.core.allocate import allocate
from autoquant.strategies.base import Problem, SearchResult


def reverse(values: np.ndarray, allowed: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """Negate, on a log scale, what every sub-group's bytes are worth: [N, K] -> [N, K].

    A sub-group's worth is the span of its values per parameter; scaling its values by (geometric mean / worth)^2 mirrors
    worths around their mean and keeps each curve's shape, so widths stay sensible (Q-BERT's reversed assignment). Negating the
    values themselves would only give every sub-group its extremes, which is easy to beat.
    """
    finite = np.where(allowed, values, np.nan)
    worth = (np.nanmax(finite, axis=1) - np.nanmin(finite, axis=1)) / parameters
    moving = worth > 0
    mean = np.exp(np.log(worth[moving]).mean())
    factor = np.ones(len(values))
    factor[moving] = (mean / worth[moving]) ** 2
    return values * factor[:, None]


@dataclass(frozen=True)
class Reversed:
    """Takes the search's values, reverses the preferences, and solves the same knapsack."""

    def search(self, problem: Problem) -> SearchResult:
        learned = problem.learned()
        assert learned.values is not None
        values = reverse(learned.values, problem.table.allowed, problem.table.parameters)
        choice = allocate(values, problem.table, problem.budget.bytes)
        return SearchResult(problem.table.to_allocation(choice), values)
