"""What symmetric uniform quantizers share, given their grid: nearest values, codes, and codes back to values."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from autoquant.core.storage import PLAIN
from autoquant.quantizers.base import Grid


class Symmetric(ABC):
    """Nearest value of the grid; scales are stored as float16."""

    name: str
    widths: tuple[int, ...] = (1, 2, 3, 4, 8)
    storage = PLAIN
    symmetric_int8 = True
    asymmetric = False

    @abstractmethod
    def grid(self, bits: int) -> Grid:
        """The values of a width."""

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

    def _check(self, bits: int) -> None:
        if bits not in self.widths:
            raise ValueError(f"{self.name} has grids for {', '.join(map(str, self.widths))} bits, not {bits}")
