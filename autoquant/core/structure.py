"""What can be removed as a whole? A *unit*: an attention head or a block of FFN neurons.

A unit is the rows [start, stop) of its row matrices and the same columns of the matrix that reads their output. With its value
(or first FFN) weights at zero it still adds a constant, its bias sent through the next matrix; removal folds that constant into
the next bias, so nothing else of it remains. One unit of each kind stays in every layer: a layer keeps its shape of a layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoquant.core.errors import CheckpointError
from autoquant.core.subgroup import Matrix, Partition, even_sizes

ROW_KINDS = {"head": ("query", "key", "value"), "ffn": ("ffn_in",)}
COLUMN_KIND = {"head": "attention_output", "ffn": "ffn_out"}
GATED_KIND = {"head": "value", "ffn": "ffn_in"}
"""The row matrix whose zeros make a unit's output constant."""


@dataclass(frozen=True, order=True)
class Unit:
    """A head or FFN block of one encoder layer."""

    layer: int
    kind: str
    index: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Such as `3.head.7`: layer, kind, index in the unpruned layer."""
        return f"{self.layer}.{self.kind}.{self.index}"

    def has_rows_in(self, matrix: Matrix) -> bool:
        return matrix.layer == self.layer and matrix.kind in ROW_KINDS[self.kind]

    def has_columns_in(self, matrix: Matrix) -> bool:
        return matrix.layer == self.layer and matrix.kind == COLUMN_KIND[self.kind]

    def is_gated_by(self, matrix: Matrix) -> bool:
        return matrix.layer == self.layer and matrix.kind == GATED_KIND[self.kind]


def find_units(matrices: Sequence[Matrix], heads: int, ffn_blocks: int) -> tuple[Unit, ...]:
    """The units of every layer: `heads` attention heads and `ffn_blocks` blocks of FFN neurons (0 = none of that kind)."""
    units = []
    for matrix in matrices:
        for kind, count in (("head", heads), ("ffn", ffn_blocks)):
            if count and matrix.kind == GATED_KIND[kind] and matrix.layer is not None:
                ends = np.cumsum(even_sizes(matrix.rows, count))
                starts = [0, *ends[:-1]]
                pairs = enumerate(zip(starts, ends, strict=True))
                units += [Unit(matrix.layer, kind, i, int(start), int(stop)) for i, (start, stop) in pairs]
    return tuple(sorted(units))


def pick_units(units: Sequence[Unit], names: Iterable[str]) -> tuple[Unit, ...]:
    """Units by name. Raises CheckpointError for one that is unknown, or when a layer would lose all of a kind."""
    known, wanted = {unit.name: unit for unit in units}, list(names)
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise CheckpointError(f"The model has no removable unit {unknown[0]}: use the search space of the allocation.")
    picked = tuple(sorted({known[name] for name in wanted}))
    for layer, kind in {(unit.layer, unit.kind) for unit in picked}:
        alike = [unit for unit in units if (unit.layer, unit.kind) == (layer, kind)]
        if all(unit in picked for unit in alike):
            raise CheckpointError(f"Layer {layer} would lose all of its {len(alike)} units '{kind}': one has to stay.")
    return picked


def kept_rows(matrix: Matrix, removed: Iterable[Unit]) -> np.ndarray:
    """Which rows stay, [rows] bool."""
    kept = np.ones(matrix.rows, dtype=bool)
    for unit in removed:
        if unit.has_rows_in(matrix):
            kept[unit.start : unit.stop] = False
    return kept


def kept_columns(matrix: Matrix, removed: Iterable[Unit]) -> np.ndarray:
    """Which columns stay, [columns] bool."""
    kept = np.ones(matrix.columns, dtype=bool)
    for unit in removed:
        if unit.has_columns_in(matrix):
            kept[unit.start : unit.stop] = False
    return kept


def prune_partition(partition: Partition, removed: Sequence[Unit]) -> Partition:
    """The partition of the smaller matrix: its rows in as many even runs as its share of the sub-groups."""
    matrix = partition.matrix
    rows, columns = int(kept_rows(matrix, removed).sum()), int(kept_columns(matrix, removed).sum())
    if (rows, columns) == (matrix.rows, matrix.columns):
        return partition
    smaller = Matrix(matrix.name, rows, columns, matrix.kind, matrix.layer)
    if partition.buckets is not None:  # only embeddings have buckets, and units have neither rows nor columns there
        raise ValueError(f"{matrix.name} has buckets and cannot lose rows")
    groups = max(1, round(partition.groups * rows / matrix.rows))
    return dataclasses.replace(partition, matrix=smaller, sizes=even_sizes(rows, groups))


def prune_shapes(
    shapes: Mapping[str, tuple[int, ...]], matrices: Sequence[Matrix], removed: Sequence[Unit]
) -> dict[str, tuple[int, ...]]:
    """State-dict shapes with the units' rows, columns and biases gone."""
    result = dict(shapes)
    for matrix in matrices:
        rows, columns = int(kept_rows(matrix, removed).sum()), int(kept_columns(matrix, removed).sum())
        bias = matrix.name.removesuffix("weight") + "bias"
        if matrix.name in result:
            result[matrix.name] = (rows, columns)
        if bias in result:
            result[bias] = (rows,)
    return result


@dataclass(frozen=True, eq=False)
class Structure:
    """How units and sub-groups overlap: `rows` and `columns` [N, U] are shares (0 to 1) of a sub-group that go with a unit."""

    units: tuple[Unit, ...]
    rows: np.ndarray
    columns: np.ndarray

    @classmethod
    def of(cls, partitions: Sequence[Partition], units: Sequence[Unit]) -> Structure:
        rows, columns = [], []
        for partition in partitions:
            group, sizes = partition.group_of_row, np.asarray(partition.sizes, dtype=float)
            shared_rows = np.zeros((partition.groups, len(units)))
            shared_columns = np.zeros((partition.groups, len(units)))
            for u, unit in enumerate(units):
                if unit.has_rows_in(partition.matrix):
                    shared_rows[:, u] = np.bincount(group[unit.start : unit.stop], minlength=partition.groups) / sizes
                if unit.has_columns_in(partition.matrix):
                    shared_columns[:, u] = (unit.stop - unit.start) / partition.matrix.columns
            rows.append(shared_rows)
            columns.append(shared_columns)
        return cls(tuple(units), np.concatenate(rows), np.concatenate(columns))

    def kept(self, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shares of every sub-group's rows and columns that stay when units stay with `keep` [U] (0 to 1): two of [N]."""
        return 1 - self.rows @ (1 - keep), 1 - self.columns @ (1 - keep)

    def spare_one(self, removed: np.ndarray, gain: np.ndarray) -> np.ndarray:
        """`removed` [U] bool, except that where a layer would lose all of a kind the unit with the least `gain` [U] stays."""
        removed = removed.copy()
        groups: dict[tuple[int, str], list[int]] = {}
        for index, unit in enumerate(self.units):
            groups.setdefault((unit.layer, unit.kind), []).append(index)
        for members in groups.values():
            if removed[members].all():
                removed[members[int(np.argmin(gain[members]))]] = False
        return removed
