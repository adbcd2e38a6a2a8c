"""The control that contradicts the search: what it found most worth its bytes gets the fewest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoquant.core.cost import ChoiceTable
from autoquant.core.derive import derive
from autoquant.strategies.base import Problem, SearchResult
from autoquant.supernet.build import unit_parameters


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


def reverse_removals(removal: np.ndarray, table: ChoiceTable) -> np.ndarray:
    """The same for units, [U] -> [U]: among those of a kind the dearest to remove (per parameter) becomes the cheapest."""
    assert table.removable is not None
    parameters, units = unit_parameters(table), table.removable.structure.units
    per_weight, mirrored = removal / parameters, removal.copy()
    for kind in sorted({unit.kind for unit in units}):
        members = np.array([number for number, unit in enumerate(units) if unit.kind == kind])
        ranked = members[np.argsort(per_weight[members], kind="stable")]
        mirrored[ranked] = per_weight[ranked[::-1]] * parameters[ranked]
    return mirrored


@dataclass(frozen=True)
class Reversed:
    """Takes the search's values, reverses the preferences, and solves the same knapsack."""

    def search(self, problem: Problem) -> SearchResult:
        learned = problem.found("dnas")
        assert learned.values is not None
        values = reverse(learned.values, problem.table.allowed, problem.table.parameters)
        removal = None if learned.removal is None else reverse_removals(learned.removal, problem.table)
        return SearchResult(derive(values, problem.table, problem.budget.bytes, removal).allocation, values, removal)
