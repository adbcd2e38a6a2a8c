"""Values and bytes per (sub-group, bit-width) -> the best allocation inside a budget: a multiple-choice knapsack.

The linear relaxation is solved exactly by taking hull increments in order of value per byte (Sinha and Zoltners 1979); the
slack is then spent greedily, and pairwise swaps finish. Optimal to a fraction of a percent; `scipy.optimize.milp` proves the gap.
"""

from __future__ import annotations

import numpy as np

from autoquant.core.cost import ChoiceTable
from autoquant.core.errors import BudgetError

FILL = 0.99  # share of the budget an allocation uses wherever the space has that resolution


def allocate(values: np.ndarray, table: ChoiceTable, budget_bytes: int) -> np.ndarray:
    """Column index per sub-group ([N] int64) that maximises the summed `values` [N, K] within `budget_bytes`.

    Values may fall with the width; if the best allocation then leaves more than 1 % of the budget unused, bytes are
    rewarded just enough to fill it. Never over the budget. Raises BudgetError if even the smallest choices do not fit.
    """
    capacity = budget_bytes - table.fixed
    costs = table.bytes.astype(np.float64)
    smallest = np.where(table.allowed, costs, np.inf).min(axis=1).sum()
    if smallest > capacity:
        raise BudgetError(f"Budget {budget_bytes} bytes is below the smallest allocation, {int(smallest) + table.fixed} bytes.")
    scored = np.where(table.allowed, values, -np.inf)
    choice = _solve(scored, costs, capacity)
    target = min(FILL * budget_bytes - table.fixed, np.where(table.allowed, costs, 0).max(axis=1).sum())
    if _used(choice, costs) >= target:
        return choice
    return _fill(scored, costs, capacity, target)


def _fill(values: np.ndarray, costs: np.ndarray, capacity: float, target: float) -> np.ndarray:
    """Bisect the least reward per byte at which the allocation reaches `target` bytes."""
    finite = np.isfinite(values)
    spread = np.ptp(values[finite]) + 1.0
    low, high = 0.0, spread / max(1.0, np.diff(np.unique(costs)).min(initial=1.0))
    best = _solve(np.where(finite, values + high * costs, -np.inf), costs, capacity)
    for _ in range(40):
        middle = (low + high) / 2
        choice = _solve(np.where(finite, values + middle * costs, -np.inf), costs, capacity)
        if _used(choice, costs) >= target:
            best, high = choice, middle
        else:
            low = middle
    return best


def _solve(values: np.ndarray, costs: np.ndarray, capacity: float) -> np.ndarray:
    choice = _relaxed(values, costs, capacity)
    rows = np.arange(len(values))
    for _ in range(8):
        before = values[rows, choice].sum()
        choice = _spend(values, costs, choice, capacity)
        choice = _swap(values, costs, choice, capacity)
        if values[rows, choice].sum() <= before:
            break
    return choice


def _used(choice: np.ndarray, costs: np.ndarray) -> float:
    return float(costs[np.arange(len(costs)), choice].sum())


def _relaxed(values: np.ndarray, costs: np.ndarray, capacity: float) -> np.ndarray:
    """The integral part of the relaxation's optimum: hull increments, best value per byte first, while they fit."""
    start, rows, ratios, delta, to = _hull_increments(values, costs)
    choice = start.copy()
    order = np.argsort(-ratios, kind="stable")
    used = _used(choice, costs) + np.cumsum(delta[order])
    fits = order[: int(np.searchsorted(used, capacity, side="right"))]
    # increments of one sub-group come in falling ratio, so the last one taken is the widest
    choice[rows[fits]] = to[fits]
    return choice


def _hull_increments(values: np.ndarray, costs: np.ndarray) -> tuple[np.ndarray, ...]:
    """Upper convex hull of every sub-group's (bytes, value) points.

    Returns the starting column [N] (cheapest, best among equals) and, per increment: sub-group, value per byte, bytes,
    column it leads to.
    """
    count, widths = values.shape
    start = np.lexsort((-values, np.where(np.isfinite(values), costs, np.inf)), axis=1)[:, 0]
    current, everyone = start.copy(), np.arange(count)
    rows, ratios, delta, to = [], [], [], []
    for _ in range(widths):
        gain = values - values[everyone, current][:, None]
        extra = costs - costs[everyone, current][:, None]
        slope = np.where((extra > 0) & (gain > 0), gain / np.where(extra > 0, extra, 1.0), -np.inf)
        # free gains (no extra bytes) come first, without end
        slope = np.where((extra <= 0) & (gain > 0), np.inf, slope)
        best = np.lexsort((-extra, -slope), axis=1)[:, 0]
        moving = np.flatnonzero(slope[everyone, best] > -np.inf)
        if not len(moving):
            break
        rows.append(moving)
        ratios.append(slope[moving, best[moving]])
        delta.append(extra[moving, best[moving]])
        to.append(best[moving])
        current[moving] = best[moving]
    if not rows:
        none = np.empty(0, dtype=np.int64)
        return start, none, none.astype(float), none.astype(float), none
    return start, np.concatenate(rows), np.concatenate(ratios), np.concatenate(delta), np.concatenate(to)


def _spend(values: np.ndarray, costs: np.ndarray, choice: np.ndarray, capacity: float) -> np.ndarray:
    """Greedy: while any single change gains value and fits the slack, take the one that gains most."""
    choice, everyone = choice.copy(), np.arange(len(values))
    gain = values - values[everyone, choice][:, None]
    extra = costs - costs[everyone, choice][:, None]
    slack = capacity - _used(choice, costs)
    while True:
        open_ = np.where((extra <= slack) & (gain > 1e-12), gain, 0.0)
        row, column = np.unravel_index(int(open_.argmax()), open_.shape)
        if open_[row, column] <= 0:
            return choice
        slack -= extra[row, column]
        choice[row] = column
        gain[row] = values[row] - values[row, column]
        extra[row] = costs[row] - costs[row, column]


def _swap(values: np.ndarray, costs: np.ndarray, choice: np.ndarray, capacity: float, rounds: int = 64) -> np.ndarray:
    """Pairs of changes, one giving up bytes and one spending them, whose sum gains value and fits; best pair first."""
    choice, everyone = choice.copy(), np.arange(len(values))
    for _ in range(rounds):
        gain = values - values[everyone, choice][:, None]
        extra = costs - costs[everyone, choice][:, None]
        slack = capacity - _used(choice, costs)
        give = _candidates(gain, extra, np.isfinite(gain) & (extra < 0))
        take = _candidates(gain, extra, np.isfinite(gain) & (extra > 0) & (gain > 0))
        if not len(give) or not len(take):
            return choice
        total = gain[tuple(give.T)][:, None] + gain[tuple(take.T)][None, :]
        bytes_ = extra[tuple(give.T)][:, None] + extra[tuple(take.T)][None, :]
        allowed = (bytes_ <= slack) & (give[:, :1] != take[:, 0][None, :])
        total = np.where(allowed, total, 0.0)
        first, second = np.unravel_index(int(total.argmax()), total.shape)
        if total[first, second] <= 1e-12:
            return choice
        choice[give[first, 0]] = give[first, 1]
        choice[take[second, 0]] = take[second, 1]
    return choice


def _candidates(gain: np.ndarray, extra: np.ndarray, allowed: np.ndarray, keep: int = 200) -> np.ndarray:
    """The `keep` changes with the best value per byte, [<= keep, 2] (sub-group, column)."""
    ratio = np.where(allowed, gain / np.where(extra == 0, 1.0, np.abs(extra)), -np.inf).ravel()
    count = min(keep, int(allowed.sum()))
    if not count:
        return np.empty((0, 2), dtype=np.int64)
    best = np.argpartition(-ratio, count - 1)[:count]
    return np.stack(np.unravel_index(best, gain.shape), axis=1)
