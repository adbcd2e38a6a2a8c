"""Values of choices and of removals -> the best allocation inside a budget: first the units to remove, then the knapsack.

With columns gone bytes no longer add up over sub-groups, so the removed units are fixed first: every price per byte says which
units are worth less than they weigh; a few prices around the budget's own give the cut-offs, and each is solved exactly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from autoquant.core.allocate import allocate
from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import ChoiceTable

CUT_OFFS = (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0)  # times the price at which the relaxed problem weighs the budget


@dataclass(frozen=True, eq=False)
class Derived:
    """An allocation, the table it chose from (that of the smaller model), its choice [N'] and the sub-groups' origins [N']."""

    allocation: BitAllocation
    table: ChoiceTable
    choice: np.ndarray
    origins: np.ndarray


def derive(values: np.ndarray, table: ChoiceTable, budget_bytes: int, removal: np.ndarray | None = None) -> Derived:
    """The allocation that maximises summed `values` [N, K] plus, for each unit removed, its `removal` [U], within the budget.

    Without `removal`, or where the table has no units, nothing is removed. Raises BudgetError when nothing fits without a
    removal, whatever one would bring.
    """
    best, most = None, -np.inf
    for gone in _cut_offs(values, table, budget_bytes, removal):
        smaller, moved, origins, removed = fix_units(values, table, gone)
        if best is not None and smaller.smallest() > budget_bytes:
            continue
        choice = allocate(moved, smaller, budget_bytes)
        total = moved[np.arange(len(choice)), choice].sum()
        if removal is not None and len(gone):
            total += removal[gone].sum()
        if total > most:
            best, most = Derived(smaller.to_allocation(choice, removed), smaller, choice, origins), total
    assert best is not None  # nothing removed is always among the cut-offs
    return best


def fix_units(
    values: np.ndarray, table: ChoiceTable, gone: np.ndarray
) -> tuple[ChoiceTable, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Remove units ([U] bool): the smaller table, `values` over it [N', K], its sub-groups' origins [N'], the units' names."""
    if table.removable is None or not gone.any():
        return table, values, np.arange(len(table)), ()
    removed = tuple(unit for unit, out in zip(table.removable.structure.units, gone, strict=True) if out)
    smaller = table.removable.table_without(removed)
    origins = table.origins(smaller, removed)
    return smaller, table.regroup(values, smaller, removed), origins, tuple(unit.name for unit in removed)


def remove_by_name(values: np.ndarray, table: ChoiceTable, names: Iterable[str]) -> tuple[ChoiceTable, np.ndarray]:
    """The table without the named units, and `values` [N, K] over it."""
    wanted = set(names)
    units = table.removable.structure.units if table.removable else ()
    smaller, moved, _, _ = fix_units(values, table, np.array([unit.name in wanted for unit in units], dtype=bool))
    return smaller, moved


def _cut_offs(values: np.ndarray, table: ChoiceTable, budget_bytes: int, removal: np.ndarray | None) -> list[np.ndarray]:
    """Sets of units to try, each [U] bool, the empty one first."""
    if removal is None or table.removable is None:
        return [np.zeros(0, dtype=bool)]
    rate = price(values, table, budget_bytes, removal)
    tried = [at_price(values, table, rate * factor, removal)[1] for factor in CUT_OFFS]
    return list(np.unique([np.zeros(len(removal), dtype=bool), *tried], axis=0))


def at_price(
    values: np.ndarray, table: ChoiceTable, rate: float, removal: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The best choice per sub-group [N] and the units to remove ([U] bool) when a byte costs `rate`."""
    net = priced(values, table, rate)
    choice = net.argmax(axis=1)
    if removal is None or table.removable is None:
        return choice, np.zeros(0, dtype=bool)
    gain = removal - unit_contents(net, table, rate)
    return choice, table.removable.structure.spare_one(gain > 0, gain)


def priced(values: np.ndarray, table: ChoiceTable, rate: float) -> np.ndarray:
    """Values less what their bytes cost at `rate`, [N, K]; -inf where a choice is not allowed."""
    return np.where(table.allowed, values - rate * table.bytes, -np.inf)


def unit_contents(net: np.ndarray, table: ChoiceTable, rate: float) -> np.ndarray:
    """What keeping each unit is worth at a price, [U]: its share of its sub-groups' best `net` (`priced`), less its own bytes.

    Removed columns leave the scales of their rows, so these are added back.
    """
    assert table.removable is not None
    choice, everyone = net.argmax(axis=1), np.arange(len(table))
    content, scales = net[everyone, choice], table.removable.scale_bytes[everyone, choice]
    structure = table.removable.structure
    return structure.rows.T @ content + structure.columns.T @ (content + rate * scales) - rate * table.removable.unit_bytes


def weigh(table: ChoiceTable, choice: np.ndarray, removed: np.ndarray) -> float:
    """Bytes that count, of a choice per sub-group [N] with units removed ([U] bool).

    The smaller header's length apart, and up to a byte a row where columns left do not fill whole bytes.
    """
    if table.removable is None or not len(removed):
        return table.total(choice)
    rows, columns = table.removable.structure.kept(1.0 - removed)
    everyone = np.arange(len(table))
    size, scales = table.bytes[everyone, choice], table.removable.scale_bytes[everyone, choice]
    return float((((size - scales) * columns + scales) * rows).sum() + table.fixed - table.removable.unit_bytes @ removed)


def price(values: np.ndarray, table: ChoiceTable, budget_bytes: int, removal: np.ndarray | None = None) -> float:
    """The value per byte at which the best allocation weighs `budget_bytes` (the Lagrangian's multiplier)."""
    low, high = 1e-30, 1e6
    for _ in range(200):
        middle = float(np.sqrt(low * high))
        choice, removed = at_price(values, table, middle, removal)
        low, high = (middle, high) if weigh(table, choice, removed) > budget_bytes else (low, middle)
    return high
