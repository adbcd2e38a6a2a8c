"""AQ-BERT's asymmetric min-max quantiser (Zhao et al. 2021, eq. 7-10): a range per sub-group, taken from its weights.

q = (2^b - 1) / (max - min), code = round(q (w - min)), value = code / q + min. Stored are the step 1 / q and the range's
midpoint (min + max) / 2, float16 both; min is the midpoint minus (2^b - 1) / 2 steps. Seen from the midpoint the grid is
symmetric, odd multiples of half a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autoquant.core.storage import FLOAT16_LARGEST, FLOAT16_SMALLEST, Storage
from autoquant.quantizers.base import Grid


class MinMax:
    """Nothing is searched or learned: the range follows the weights at every forward pass. `scale` is [rows, 2]."""

    name = "minmax"
    widths: tuple[int, ...] = (1, 2, 3, 4, 8)
    storage = Storage(scales=2)
    symmetric_int8 = False
    asymmetric = True

    def grid(self, bits: int) -> Grid:
        if bits not in self.widths:
            raise ValueError(f"minmax has grids for {', '.join(map(str, self.widths))} bits, not {bits}")
        return Grid(limit=(2**bits - 1) / 2, offset=0.5)

    @torch.no_grad()
    def measure(self, weight: Tensor, widths: Sequence[int], group: Tensor | None = None) -> Tensor:
        """Step and midpoint for every width, [rows or groups, widths, 2], exact in float16.

        weight [rows, columns]; `group` [rows] numbers the rows that share a range, every number in use; None: no rows do.
        """
        low, high = torch.aminmax(weight, dim=1)
        if group is not None:
            empty = torch.zeros(int(group.max()) + 1, dtype=weight.dtype, device=weight.device)
            low = empty.scatter_reduce(0, group, low, "amin", include_self=False)
            high = empty.scatter_reduce(0, group, high, "amax", include_self=False)
        steps = [((high - low) / (2**bits - 1)).clamp(FLOAT16_SMALLEST, FLOAT16_LARGEST) for bits in widths]
        middle = ((low + high) / 2).clamp(-FLOAT16_LARGEST, FLOAT16_LARGEST)
        return torch.stack([torch.stack([step, middle], dim=1) for step in steps], dim=1).half().float()

    def initial_scale(self, weight: Tensor, bits: int, moment: Tensor | None = None) -> Tensor:
        return self.measure(weight, (bits,))[:, 0]

    def scale_gradient(self, weights: int, bits: int) -> float:
        return 1.0

    def _levels(self, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
        grid = self.grid(bits)
        steps = (weight - scale[:, 1:]) / scale[:, :1]
        return torch.clamp(torch.floor(steps - grid.offset + 0.5) + grid.offset, -grid.limit, grid.limit)

    def fake_quantize(self, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
        return self._levels(weight, scale, bits) * scale[:, :1] + scale[:, 1:]

    def encode(self, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
        return (self._levels(weight, scale, bits) + self.grid(bits).limit).to(torch.uint8)

    def decode(self, codes: Tensor, scale: Tensor, bits: int) -> Tensor:
        return (codes.to(scale.dtype) - self.grid(bits).limit) * scale[:, :1] + scale[:, 1:]
