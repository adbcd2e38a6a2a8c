"""The mixed weight of a quantizer whose ranges follow the weights (min-max): nothing is learned but the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoquant.quantizers import MinMax
from autoquant.supernet.mixed import GridWeight, rows_of
from autoquant.supernet.mixing import mix


class RangedWeight(GridWeight):
    """No log-scales: every forward pass measures the range of every row or sub-group anew.

    Seen from the midpoint of its range the grid is symmetric, so the fused passes mix w - midpoint, and the midpoint is added
    back in the share that is kept.
    """

    quantizer: MinMax

    def forward(self, rows: Tensor | None = None) -> Tensor:
        group, share, column = self._used(rows)
        measured = rows_of(self.scales(), rows) if self.per_row else self.scales()[group]
        middle, step = measured[:, :1, 1], measured[..., 0]
        if column is not None:
            step = step.gather(1, column[:, None])
        limit, offset = self._grid(column, len(group))
        weight = rows_of(self.weight, rows)
        return mix(weight - middle, step, limit, offset, share) + middle * share.sum(dim=1, keepdim=True)

    def quantiser_parameters(self) -> list[nn.Parameter]:
        return []

    def stored_weight(self) -> Tensor:
        """The latent weight, [rows, columns]."""
        return self.weight.detach()

    def chosen_scale(self, column: Tensor) -> Tensor:
        """Step and midpoint of one width per sub-group, exact in float16: [rows or groups, 2]."""
        at = column[self.group_of_row] if self.per_row else column
        return self.scales()[torch.arange(len(at), device=at.device), at]

    def scales(self) -> Tensor:
        """Step and midpoint of every width, [rows or groups, K, 2]."""
        return self.quantizer.measure(self.weight.detach(), self.widths, None if self.per_row else self.group_of_row)
