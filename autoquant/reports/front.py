"""Which points are worth having? Dominance, hypervolume, and seeds folded to mean and spread, for any number of objectives.

Values are arrays [points, objectives]; `maximise` [objectives] says of each objective whether more is better.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np


def non_dominated(values: np.ndarray, maximise: Sequence[bool]) -> np.ndarray:
    """The front as a mask [points]: True where no other point dominates, that is, is as good everywhere and better somewhere.

    Equal points are all on the front or all off it. A point with a NaN (a metric that was not measured) is never on it, and
    takes nobody else off it.
    """
    costs = _costs(values, maximise)
    known = ~np.isnan(costs).any(axis=1)
    better = (costs[:, None] <= costs[None]).all(axis=2) & (costs[:, None] < costs[None]).any(axis=2)
    return known & ~better.any(axis=0)


def hypervolume(values: np.ndarray, reference: Sequence[float], maximise: Sequence[bool]) -> float:
    """The volume between the front and a reference point that is worse than it (Zitzler and Thiele 1999), exact.

    Points that are not better than `reference` [objectives] in every objective add nothing, nor do those with a NaN. Cost grows
    with points ** (objectives - 1): meant for the tens of points of a sweep.
    """
    costs, limit = _costs(values, maximise), _costs(np.asarray([reference], dtype=np.float64), maximise)[0]
    inside = costs[(costs < limit).all(axis=1)]  # a NaN is not inside
    return _volume(inside, limit)


def _volume(costs: np.ndarray, limit: np.ndarray) -> float:
    """Slices along the last objective: between two neighbouring values the rest of the space has one volume."""
    if not len(costs):
        return 0.0
    if costs.shape[1] == 1:
        return float(limit[0] - costs.min())
    ordered = costs[np.argsort(costs[:, -1], kind="stable")]
    heights = np.diff(ordered[:, -1], append=limit[-1])
    return sum(
        float(height) * _volume(ordered[: index + 1, :-1], limit[:-1]) for index, height in enumerate(heights) if height > 0
    )


def _costs(values: np.ndarray, maximise: Sequence[bool]) -> np.ndarray:
    """Values whose smaller is better, [points, objectives]."""
    array = np.asarray(values, dtype=np.float64).reshape(-1, len(maximise))
    return np.where(np.asarray(maximise, dtype=bool), -array, array)


@dataclass(frozen=True)
class Folded:
    """One configuration over its seeds: `rows` are the indices of its points, the others [objectives]."""

    key: Hashable
    rows: tuple[int, ...]
    mean: tuple[float, ...]
    smallest: tuple[float, ...]
    largest: tuple[float, ...]
    deviation: tuple[float, ...]
    """Sample standard deviation (n - 1); NaN for a single seed, since one run says nothing of spread."""


def fold(keys: Sequence[Hashable], values: np.ndarray) -> list[Folded]:
    """Points [points, objectives] that share a key become one, in order of first appearance.

    A NaN in any seed makes that objective's mean and spread NaN: a seed that was not measured is not left out in silence.
    """
    array = np.asarray(values, dtype=np.float64)
    groups: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    return [_folded(key, rows, array[rows]) for key, rows in groups.items()]


def _folded(key: Hashable, rows: list[int], values: np.ndarray) -> Folded:
    spread = values.std(axis=0, ddof=1) if len(rows) > 1 else np.full(values.shape[1], np.nan)
    parts = (values.mean(axis=0), values.min(axis=0), values.max(axis=0), spread)
    mean, smallest, largest, deviation = (tuple(float(number) for number in part) for part in parts)
    return Folded(key, tuple(rows), mean, smallest, largest, deviation)
