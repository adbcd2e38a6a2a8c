"""How is a matrix cut?

A *sub-group* is a run of consecutive output rows of one weight matrix (AQ-BERT's unit), or, for the word embedding, the
rows of one token-frequency bucket. Every sub-group has its own bit-width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Matrix:
    """A weight matrix of the model that can be quantised: `name` is its state-dict name, `layer` None outside the encoder."""

    name: str
    rows: int
    columns: int
    kind: str
    layer: int | None = None

    @property
    def parameters(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True, eq=False)
class Partition:
    """A matrix cut into sub-groups.

    `sizes` holds the row count of each sub-group; `buckets` ([rows], uint8) gives each row's sub-group when they are
    token-frequency buckets and is None when they are runs of consecutive rows; `widths` are the bit-widths allowed;
    `scale` (`row` or `subgroup`) is the scale granularity where it differs from the space's.
    """

    matrix: Matrix
    widths: tuple[int, ...]
    sizes: tuple[int, ...]
    buckets: np.ndarray | None = None
    scale: str | None = None

    @property
    def groups(self) -> int:
        return len(self.sizes)

    def scale_or(self, default: str) -> str:
        """The scale granularity of this matrix in a space of granularity `default`."""
        return self.scale or default

    @cached_property
    def group_of_row(self) -> np.ndarray:
        """The sub-group index of every row, [rows] int64."""
        if self.buckets is not None:
            return self.buckets.astype(np.int64)
        return np.repeat(np.arange(self.groups), self.sizes)


def even_sizes(rows: int, groups: int) -> tuple[int, ...]:
    """Row counts of `groups` runs that differ by at most one row; at most one group a row.

    >>> even_sizes(10, 4)
    (3, 3, 2, 2)
    """
    groups = max(1, min(groups, rows))
    small, extra = divmod(rows, groups)
    return tuple(small + (index < extra) for index in range(groups))


def bucket_sizes(rows: int, buckets: int, first: int = 64) -> tuple[int, ...]:
    """Row counts of token-frequency buckets, growing geometrically from `first` rows: frequent tokens get fine buckets."""
    if rows <= first or buckets <= 1:
        return even_sizes(rows, buckets)
    edges = np.unique(np.round(np.geomspace(first, rows, buckets)).astype(np.int64))
    return tuple(int(size) for size in np.diff(edges, prepend=0))


def frequency_buckets(counts: np.ndarray, buckets: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Cut a vocabulary by how often each token occurs in the training text.

    `counts` [rows] are occurrences. Most frequent first; ties go to the smaller id, since vocabularies of this family list
    common tokens early. Returns the bucket of every row ([rows] uint8) and the row count of every bucket.
    """
    sizes = bucket_sizes(len(counts), buckets)
    order = np.lexsort((np.arange(len(counts)), -counts))
    bucket_of_row = np.empty(len(counts), dtype=np.uint8)
    bucket_of_row[order] = np.repeat(np.arange(len(sizes), dtype=np.uint8), sizes)
    return bucket_of_row, sizes
