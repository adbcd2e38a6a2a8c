"""Symmetric uniform quantisation that fits int8 kernels.

1 to 4 bits: odd integers times half a step (-1, 1; -3, -1, 1, 3; ...), near the optimum for bell-shaped weights and better
than -2..1; 8 bits: -127..127 times the step. Doubling the 1-to-4-bit levels gives integers within int8.
"""

from __future__ import annotations

from torch import Tensor

from autoquant.quantizers.base import Grid
from autoquant.quantizers.clipping import search_scale
from autoquant.quantizers.symmetric import Symmetric


class Midrise(Symmetric):
    """The default quantizer: scales start from a search over clip ratios."""

    name = "midrise"

    def grid(self, bits: int) -> Grid:
        self._check(bits)
        if bits == 8:
            return Grid(limit=127.0, offset=0.0)
        return Grid(limit=(2**bits - 1) / 2, offset=0.5)

    def initial_scale(self, weight: Tensor, bits: int, moment: Tensor | None = None) -> Tensor:
        return search_scale(self, weight, bits, moment)

    def scale_gradient(self, weights: int, bits: int) -> float:
        return 1.0
