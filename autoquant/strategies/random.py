"""The control that chooses by chance: every sub-group draws an importance, then the same knapsack."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoquant.core.derive import derive
from autoquant.strategies.base import Problem, SearchResult

SPREAD = 1.5  # standard deviation of the log-importance, about that of measured sensitivities


@dataclass(frozen=True)
class Random:
    """Random importance per weight times the error of a bell-shaped weight, which falls fourfold a bit.

    Harder to beat than independent random values per choice: no sub-group gets a width that is silly for its importance.
    """

    def search(self, problem: Problem) -> SearchResult:
        table = problem.table
        importance = np.random.default_rng((problem.context.seed, 2)).lognormal(0.0, SPREAD, len(table))
        error = 0.25 ** np.asarray(table.widths, dtype=np.float64)
        values = -(importance * table.parameters)[:, None] * error
        removal = None
        if table.removable is not None:  # what its rows lose at 0 bits
            removal = -table.removable.structure.rows.T @ (importance * table.parameters)
        return SearchResult(derive(values, table, problem.budget.bytes, removal).allocation, values, removal)
