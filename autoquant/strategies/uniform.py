"""The control everybody has: two neighbouring widths that fill the budget, the upper one for sub-groups drawn by the seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoquant.core.cost import ChoiceTable
from autoquant.core.errors import BudgetError
from autoquant.strategies.base import Problem, SearchResult


def nearest_columns(table: ChoiceTable, width: int | np.ndarray) -> np.ndarray:
    """Column [N] of `width` (one for all, or [N]); where it is not allowed, of the next wider one that is, or of the widest."""
    wanted = table.allowed & (np.asarray(table.widths) >= np.reshape(width, (-1, 1)))
    widest = table.allowed.shape[1] - 1 - table.allowed[:, ::-1].argmax(axis=1)
    return np.where(wanted.any(axis=1), wanted.argmax(axis=1), widest)


def widest_fitting(table: ChoiceTable, capacity: int) -> int:
    """The widest width that everything may have at once within `capacity` bytes. Raises BudgetError if there is none."""
    fitting = [width for width in table.widths if table.total(nearest_columns(table, width)) <= capacity]
    if not fitting:
        raise BudgetError(f"No uniform width fits {capacity} bytes: raise the budget.")
    return fitting[-1]


@dataclass(frozen=True)
class Uniform:
    """Uniform bits: random only in which sub-groups get the upper of the two widths."""

    def search(self, problem: Problem) -> SearchResult:
        table, capacity = problem.table, problem.budget.bytes
        lower = widest_fitting(table, capacity)
        choice = nearest_columns(table, lower)
        if lower == table.widths[-1]:
            return SearchResult(table.to_allocation(choice))
        upper = nearest_columns(table, table.widths[table.widths.index(lower) + 1])
        rows = np.arange(len(table))
        extra = table.bytes[rows, upper] - table.bytes[rows, choice]
        slack = capacity - table.total(choice)
        for row in np.random.default_rng((problem.context.seed, 1)).permutation(len(table)):
            if extra[row] <= slack:
                choice[row] = upper[row]
                slack -= extra[row]
        return SearchResult(table.to_allocation(choice))
