"""Ternary weight networks (TWN; Li, Zhang and Liu 2016) at 2 bits, for TernaryBERT's weights (Zhang et al. 2020).

8 bits, for what is not to be ternary, are integers -127..127 times max|w| / 127; the step is learned from there.
"""

from __future__ import annotations

from torch import Tensor

from autoquant.core.storage import FLOAT16_SMALLEST
from autoquant.quantizers.base import Grid
from autoquant.quantizers.symmetric import Symmetric
from autoquant.quantizers.ternary import ternary_parameters


class Twn(Symmetric):
    """-a, 0 or a, with threshold and a taken from the weights."""

    name = "twn"
    widths: tuple[int, ...] = (2, 8)

    def grid(self, bits: int) -> Grid:
        self._check(bits)
        return Grid(limit=2.0 ** (bits - 1) - 1, offset=0.0, ternary=bits == 2)

    def initial_scale(self, weight: Tensor, bits: int, moment: Tensor | None = None) -> Tensor:
        scale = ternary_parameters(weight)[1] if bits == 2 else weight.abs().amax(dim=1) / self.grid(bits).limit
        return scale.clamp_min(FLOAT16_SMALLEST).half().float()

    def scale_gradient(self, weights: int, bits: int) -> float:
        return 1.0
