"""Most probable choices -> an allocation inside the budget, greedily: AQ-BERT's derivation, and the knapsack's foil."""

from __future__ import annotations

import numpy as np

from autoquant.core.cost import ChoiceTable
from autoquant.core.errors import BudgetError


def repair(values: np.ndarray, table: ChoiceTable, choice: np.ndarray, budget_bytes: int) -> np.ndarray:
    """The nearest affordable choice: column index per sub-group [N], from `choice` [N], never over `budget_bytes`.

    While it is too large, the change that loses the least of `values` [N, K] per byte saved; then, while anything fits, the
    change that gains the most (or loses the least) per byte spent. Raises BudgetError if the smallest choices do not fit.
    """
    if table.smallest() > budget_bytes:
        raise BudgetError(f"Budget {budget_bytes} bytes is below the smallest allocation, {table.smallest()} bytes.")
    choice, everyone = choice.copy(), np.arange(len(table))
    scored = np.where(table.allowed, values, -np.inf)
    slack = budget_bytes - table.total(choice)
    while True:
        gain = scored - scored[everyone, choice][:, None]
        extra = table.bytes - table.bytes[everyone, choice][:, None]
        possible = extra < 0 if slack < 0 else (extra > 0) & (extra <= slack)
        rate = np.where(possible & table.allowed, gain / np.where(extra == 0, 1, np.abs(extra)), -np.inf)
        row, column = np.unravel_index(int(rate.argmax()), rate.shape)
        if rate[row, column] == -np.inf:
            return choice
        slack -= int(extra[row, column])
        choice[row] = column
