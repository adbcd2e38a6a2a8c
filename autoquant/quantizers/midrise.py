"""Symmetric uniform quantisation that fits int8 kernels.

1 to 4 bits: odd integers times half a step (-1, 1; -3, -1, 1, 3; ...), near the optimum for bell-shaped weights and better
than -2..1; 8 bits: -127..127 times the step. Doubling the 1-to-4-bit levels gives integers within int8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autoquant.core.cost import SCALE_BYTES
from autoquant.quantizers.base import Grid


class Midrise:
    """The default quantizer; scales are stored as float16."""

    name = "midrise"
    symmetric_int8 = True

    def grid(self, bits: int) -> Grid:
        if bits == 8:
            return Grid(limit=127.0, offset=0.0)
        if bits not in (1, 2, 3, 4):
            raise ValueError(f"midrise has grids for 1, 2, 3, 4 and 8 bits, not {bits}")
        return Grid(limit=(2**bits - 1) / 2, offset=0.5)

    def _levels(self, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
        grid = self.grid(bits)
        steps = weight / scale[:, None]
        return torch.clamp(torch.floor(steps - grid.offset + 0.5) + grid.offset, -grid.limit, grid.limit)

    def fake_quantize(self, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
        return self._levels(weight, scale, bits) * scale[:, None]

    def encode(self, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
        return (self._levels(weight, scale, bits) + self.grid(bits).limit).to(torch.uint8)

    def decode(self, codes: Tensor, scale: Tensor, bits: int) -> Tensor:
        return (codes.to(scale.dtype) - self.grid(bits).limit) * scale[:, None]

    def overhead_bytes(self, rows: int) -> int:
        return SCALE_BYTES * rows
