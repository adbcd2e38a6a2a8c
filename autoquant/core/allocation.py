"""What was chosen? A `BitAllocation` is what a search produces and everything after it consumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoquant.core.errors import CheckpointError
from autoquant.core.subgroup import Partition


@dataclass(frozen=True)
class BitAllocation:
    """The bit-width of every sub-group: matrix name -> bits per sub-group (0 = pruned)."""

    bits: Mapping[str, tuple[int, ...]]

    def row_bits(self, partition: Partition) -> np.ndarray:
        """Bits of every row of one matrix, [rows] int64."""
        return np.asarray(self.bits[partition.matrix.name], dtype=np.int64)[partition.group_of_row]

    def mean_bits(self, partitions: Sequence[Partition]) -> float:
        """Code bits per weight over the given matrices (scales not counted)."""
        bits = sum(float(self.row_bits(p).sum()) * p.matrix.columns for p in partitions)
        return bits / sum(p.matrix.parameters for p in partitions)

    def share_different(self, other: BitAllocation) -> float:
        """Share of sub-groups (0 to 1) whose bit-width differs from `other`'s."""
        pairs = [(a, b) for name in self.bits for a, b in zip(self.bits[name], other.bits[name], strict=True)]
        return sum(a != b for a, b in pairs) / len(pairs)

    def check_fits(self, partitions: Sequence[Partition]) -> None:
        """Raise CheckpointError unless this allocation has one allowed bit-width for every sub-group."""
        names = {p.matrix.name for p in partitions}
        if set(self.bits) != names:
            odd = sorted(set(self.bits) ^ names)
            raise CheckpointError(f"The allocation does not fit this model: {len(odd)} matrices differ, first {odd[0]}.")
        for partition in partitions:
            bits = self.bits[partition.matrix.name]
            if len(bits) != partition.groups:
                raise CheckpointError(
                    f"The allocation has {len(bits)} sub-groups for {partition.matrix.name}, the space cuts it into "
                    f"{partition.groups}: use the search space it was made with."
                )
            odd_bits = sorted(set(bits) - set(partition.widths))
            if odd_bits:
                raise CheckpointError(
                    f"The allocation gives {partition.matrix.name} {odd_bits[0]} bits, the space allows "
                    f"{', '.join(map(str, partition.widths))}: use the search space it was made with."
                )

    def to_json(self) -> dict[str, list[int]]:
        return {name: list(bits) for name, bits in self.bits.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BitAllocation:
        return cls({name: tuple(int(b) for b in bits) for name, bits in data.items()})
