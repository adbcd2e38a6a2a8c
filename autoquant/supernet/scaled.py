"""The mixed weight of a quantizer with learned scales, a factor per row or sub-group and width."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from autoquant.core.storage import FLOAT16_LARGEST, FLOAT16_SMALLEST
from autoquant.core.subgroup import Partition
from autoquant.quantizers import UniformQuantizer
from autoquant.quantizers.ternary import ternarise, ternary_parameters
from autoquant.supernet.mixed import GridWeight, rows_of
from autoquant.supernet.mixing import mix


class ScaledWeight(GridWeight):
    """One learnable log-scale per row (or sub-group) and bit-width: `log_scale` is [rows or groups, K].

    A ternary width has none: its threshold and scale follow the weights (TernaryBERT).
    """

    scale_gradient: Tensor
    _is_ternary: Tensor
    _ternary_rows: Tensor | None

    def __init__(
        self,
        weight: nn.Parameter,
        log_scale: Tensor,
        partition: Partition,
        widths: tuple[int, ...],
        quantizer: UniformQuantizer,
        per_row: bool,
    ) -> None:
        super().__init__(weight, partition, widths, quantizer, per_row)
        self.log_scale = nn.Parameter(log_scale)
        sharing = [partition.matrix.columns * (1 if per_row else max(size, 1)) for size in partition.sizes]
        gradient = torch.tensor([[quantizer.scale_gradient(count, width) for width in widths] for count in sharing])
        self.register_buffer("scale_gradient", gradient[self.group_of_row] if per_row else gradient, persistent=False)
        self._plain_gradient = bool((gradient == 1.0).all())
        ternary = [quantizer.grid(width).ternary for width in widths]
        self._has_ternary = any(ternary)
        self.register_buffer("_is_ternary", torch.tensor(ternary), persistent=False)
        self.register_buffer("_ternary_rows", None, persistent=False)

    def use_mixture(self, share: Tensor, row_keep: Tensor | None = None) -> None:
        super().use_mixture(share, row_keep)
        self._ternary_rows = None

    def use_choice(self, column: Tensor, keep: Tensor, row_keep: Tensor | None = None) -> None:
        super().use_choice(column, keep, row_keep)
        self._ternary_rows = None
        if not self._has_ternary:  # asked once: on a GPU the answer would be waited for
            return
        ternary = (self._is_ternary[column] & (keep > 0))[self.group_of_row]
        if row_keep is not None:
            ternary = ternary & (row_keep > 0)
        self._ternary_rows = ternary if bool(ternary.any()) else None

    def forward(self, rows: Tensor | None = None) -> Tensor:
        group, share, column = self._used(rows)
        if self._ternary_rows is not None and bool(rows_of(self._ternary_rows, rows).all()):
            return self._ternarised(rows)
        log_scale = self.log_scale if self._plain_gradient else _scale_gradient(self.log_scale, self.scale_gradient)
        log_scale = rows_of(log_scale, rows) if self.per_row else log_scale[group]
        if column is not None:
            log_scale = log_scale.gather(1, column[:, None])
        limit, offset = self._grid(column, len(group))
        mixed = mix(rows_of(self.weight, rows), log_scale.exp(), limit, offset, share)
        if self._ternary_rows is None:
            return mixed
        return torch.where(rows_of(self._ternary_rows, rows)[:, None], self._ternarised(rows), mixed)

    def quantiser_parameters(self) -> list[nn.Parameter]:
        return [self.log_scale]

    def _ternary_parameters(self, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Threshold and scale of the rows if they were ternary, [rows] each."""
        if self.per_row:
            return ternary_parameters(rows_of(self.weight, rows))
        threshold, scale = ternary_parameters(self.weight, self.group_of_row)
        return rows_of(threshold, rows), rows_of(scale, rows)

    def _ternarised(self, rows: Tensor | None) -> Tensor:
        return ternarise(rows_of(self.weight, rows), *self._ternary_parameters(rows))

    def stored_weight(self) -> Tensor:
        """What the packer rounds to its grid, [rows, columns]: the latent weight, where ternary already -scale, 0 or scale."""
        weight = self.weight.detach()
        if self._ternary_rows is None:
            return weight
        return torch.where(self._ternary_rows[:, None], self._ternarised(None).detach(), weight)

    def scales(self) -> Tensor:
        """The learned scales of every width, [rows or groups, K]."""
        return self.log_scale.detach().exp()

    def chosen_scale(self, column: Tensor) -> Tensor:
        """Scales of one width per sub-group as float16 stores them: [rows or groups] float32."""
        at = column[self.group_of_row] if self.per_row else column
        chosen = self.log_scale.detach().gather(1, at[:, None])[:, 0].exp()
        if self._ternary_rows is not None:
            scale = self._ternary_parameters(None)[1]
            ternary = self._is_ternary[at]
            if not self.per_row:  # every row of a sub-group has its scale
                scale = torch.zeros_like(chosen).index_copy_(0, self.group_of_row, scale)
            chosen = torch.where(ternary, scale, chosen)
        return chosen.clamp(FLOAT16_SMALLEST, FLOAT16_LARGEST).half().float()


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.saved_tensors[0], None


def _scale_gradient(value: Tensor, factor: Tensor) -> Tensor:
    """`value` itself, whose gradient is multiplied by `factor`."""
    scaled: Tensor = _ScaledGradient.apply(value, factor)
    return scaled
