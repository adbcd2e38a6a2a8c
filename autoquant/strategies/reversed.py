"""The control that contradicts the search: what it found most worth its bytes gets the fewest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoquant.core.allocate import allocate
from autoquant.strategies.base import Problem, SearchResult


def reverse(values: np.ndarray, allowed: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """Turn the ranking of sub-groups around: [N, K] -> [N, K].

    Sub-groups are ranked by what their widest choice is worth over their narrowest, per parameter; the first takes the curve
    (values per parameter) of the last, the second that of the last but one, and so on, among those with the same choices
    (Q-BERT's reversed assignment). Every curve is one the search learned, so widths stay sensible; negating the values
    themselves would only give every sub-group its extremes, which is easy to beat.
    """
    curves = values / parameters[:, None]
    mirrored = curves.copy()
    for choices in np.unique(allowed, axis=0):
        rows = np.flatnonzero((allowed == choices).all(axis=1))
        first, last = np.flatnonzero(choices)[[0, -1]]
        ranked = rows[np.argsort(curves[rows, last] - curves[rows, first], kind="stable")]
        mirrored[ranked] = curves[ranked[::-1]]
    return mirrored * parameters[:, None]


@dataclass(frozen=True)
class Reversed:
    """Takes the search's values, reverses the preferences, and solves the same knapsack."""

    def search(self, problem: Problem) -> SearchResult:
        learned = problem.learned()
        assert learned.values is not None
        values = reverse(learned.values, problem.table.allowed, problem.table.parameters)
        choice = allocate(values, problem.table, problem.budget.bytes)
        return SearchResult(problem.table.to_allocation(choice), values)
