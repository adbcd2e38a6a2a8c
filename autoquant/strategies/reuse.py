"""What does a finished search say of another budget? Its values are worth the same there; only the knapsack is another."""

from __future__ import annotations

import dataclasses

import numpy as np

from autoquant.core.cost import ChoiceTable
from autoquant.core.derive import derive
from autoquant.strategies.base import SearchResult


def rederive(result: SearchResult, table: ChoiceTable, budget_bytes: int, prior_strength: float) -> SearchResult:
    """The allocation of a search's values under another budget; `table` must have the choices of the search's.

    `prior_strength`: the search's, by which probabilities are worked out again where there are some. Raises BudgetError if the
    budget cannot be met.
    """
    assert result.values is not None
    derived = derive(result.values, table, budget_bytes, result.removal)
    probability = None
    if result.probability is not None:
        logits = (result.values - 8 * prior_strength * table.bytes) / table.parameters[:, None]
        shares = np.where(table.allowed, np.exp(logits - logits.max(axis=1, keepdims=True)), 0.0)
        probability = (shares / shares.sum(axis=1, keepdims=True))[derived.origins, derived.choice]
    return dataclasses.replace(result, allocation=derived.allocation, probability=probability, derived_bytes=None)
