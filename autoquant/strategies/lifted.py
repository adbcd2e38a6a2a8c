"""The sensitivity knapsack above uniform bits: nobody falls below the width that fits everywhere.

What a sub-group loses before recovery does not say what stays of it afterwards: of a loss at 0 or 1 bits twice as much stays
as of one at 2 or 3 (`experiments/lasting.py`). Where uniform bits nearly do, the ruin of some does not buy as much for others.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from autoquant.core.derive import derive
from autoquant.strategies.base import Problem, SearchResult
from autoquant.strategies.uniform import nearest_columns, widest_fitting


@dataclass(frozen=True)
class Lifted:
    """Minimise the summed Fisher score within the budget, with at least the widest uniform width that fits; removes nothing."""

    def search(self, problem: Problem) -> SearchResult:
        table, capacity = problem.table, problem.budget.bytes
        least = nearest_columns(table, widest_fitting(table, capacity))
        allowed = table.allowed & (np.arange(len(table.widths)) >= least[:, None])
        values = -problem.sensitivity.choices
        return SearchResult(derive(values, dataclasses.replace(table, allowed=allowed), capacity).allocation, values)
