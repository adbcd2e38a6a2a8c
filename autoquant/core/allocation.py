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
    """The bit-width of every sub-group: matrix name -> bits per sub-group (0 = pruned), and the units removed, by name.

    With units removed the sub-groups are those of the smaller matrices (`ByteModel.without`).
    """

    bits: Mapping[str, tuple[int, ...]]
    removed: tuple[str, ...] = ()

    def row_bits(self, partition: Partition) -> np.ndarray:
        """Bits of every row of one matrix, [rows] int64."""
        return np.asarray(self.bits[partition.matrix.name], dtype=np.int64)[partition.group_of_row]

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

    def to_json(self) -> dict[str, Any]:
        return {"bits": {name: list(bits) for name, bits in self.bits.items()}, "removed": list(self.removed)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BitAllocation:
        bits = {name: tuple(int(b) for b in bits) for name, bits in data["bits"].items()}
        return cls(bits, tuple(data["removed"]))
