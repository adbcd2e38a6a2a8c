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
    choice, scored = choice.copy(), np.where(table.allowed, values, -np.inf)

    def changes(rows: np.ndarray, growing: bool) -> tuple[np.ndarray, np.ndarray]:
        """What every other width of those sub-groups gains a byte (-inf: none to take), and its bytes more; both [rows, K]."""
        gain = scored[rows] - scored[rows, choice[rows]][:, None]
        extra = table.bytes[rows] - table.bytes[rows, choice[rows]][:, None]
        possible = table.allowed[rows] & (extra > 0 if growing else extra < 0)
        return np.where(possible, gain / np.where(extra == 0, 1, np.abs(extra)), -np.inf), extra

    slack, growing = budget_bytes - table.total(choice), None
    while True:
        if growing is not (slack >= 0):
            growing = slack >= 0
            rate, extra = changes(np.arange(len(table)), growing)
        open_ = np.where(extra <= slack, rate, -np.inf) if growing else rate
        row, column = np.unravel_index(int(open_.argmax()), open_.shape)
        if open_[row, column] == -np.inf:
            return choice
        slack -= int(extra[row, column])
        choice[row] = column
        rate[row], extra[row] = (part[0] for part in changes(np.array([row]), growing))  # the others are as they were
