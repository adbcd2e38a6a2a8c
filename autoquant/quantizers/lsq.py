"""The weight quantisers of MREM (Bai et al. 2022): ternary at 2 bits (TWN), learned step size (LSQ, Esser et al. 2020) above.

LSQ: integers -Qp..Qp times the step, Qp = 2^(b-1) - 1; the step starts at 2 mean|w| / sqrt(Qp) (LSQ, section 2.1) and its
gradient is scaled by 1 / sqrt(n Qp) for the n weights that share it (section 2.2). The step is learned as its logarithm, which
keeps it positive. Weights up to half a step beyond Qp count as inside the range (`supernet.mixing`), in LSQ's equation 3 none
do. 1 bit, which the paper does not have, is the sign times half the step; the step starts at 2 mean|w|.
"""

from __future__ import annotations

import math

from torch import Tensor

from autoquant.core.storage import FLOAT16_SMALLEST
from autoquant.quantizers.base import Grid
from autoquant.quantizers.symmetric import Symmetric
from autoquant.quantizers.ternary import ternary_parameters


class Lsq(Symmetric):
    """TWN at 2 bits, LSQ above."""

    name = "lsq"

    def grid(self, bits: int) -> Grid:
        self._check(bits)
        if bits == 1:
            return Grid(limit=0.5, offset=0.5)
        return Grid(limit=2.0 ** (bits - 1) - 1, offset=0.0, ternary=bits == 2)

    def initial_scale(self, weight: Tensor, bits: int, moment: Tensor | None = None) -> Tensor:
        if bits == 2:
            scale = ternary_parameters(weight)[1]
        else:
            scale = 2 * weight.abs().mean(dim=1) / math.sqrt(max(1.0, self.grid(bits).limit))
        return scale.clamp_min(FLOAT16_SMALLEST).half().float()

    def scale_gradient(self, weights: int, bits: int) -> float:
        return 1 / math.sqrt(weights * max(1.0, self.grid(bits).limit))
