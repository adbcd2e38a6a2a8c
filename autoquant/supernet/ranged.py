"""The mixed weight of a quantizer whose ranges follow the weights (min-max): nothing is learned but the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoquant.core.subgroup import Partition
from autoquant.quantizers import MinMax
from autoquant.supernet.mixing import mix


class RangedWeight(nn.Module):
    """`layers.MixedWeight` without log-scales: every forward pass measures the range of every row or sub-group anew.

    Seen from the midpoint of its range the grid is symmetric, so the fused passes mix w - midpoint, and the midpoint is added
    back in the share that is kept.
    """

    limit: Tensor
    offset: Tensor
    group_of_row: Tensor
    _share: Tensor | None
    _column: Tensor | None
    _row_keep: Tensor | None

    def __init__(
        self, weight: nn.Parameter, partition: Partition, widths: tuple[int, ...], quantizer: MinMax, per_row: bool
    ) -> None:
        super().__init__()
        self.weight = weight
        self.partition, self.quantizer, self.widths, self.per_row = partition, quantizer, widths, per_row
        grids = [quantizer.grid(width) for width in widths]
        self.register_buffer("limit", torch.tensor([g.limit for g in grids]), persistent=False)
        self.register_buffer("offset", torch.tensor([g.offset for g in grids]), persistent=False)
        self.register_buffer("group_of_row", torch.from_numpy(partition.group_of_row), persistent=False)
        self.register_buffer("_share", None, persistent=False)
        self.register_buffer("_column", None, persistent=False)
        self.register_buffer("_row_keep", None, persistent=False)

    def use_mixture(self, share: Tensor, row_keep: Tensor | None = None) -> None:
        """Mix all widths: `share` [groups, K], gates already multiplied in; `row_keep` [rows] those of whole units."""
        self._share, self._column, self._row_keep = share, None, row_keep

    def use_choice(self, column: Tensor, keep: Tensor, row_keep: Tensor | None = None) -> None:
        """One width per sub-group: `column` [groups] int64 index into `widths`, `keep` [groups] 1.0, or 0.0 where pruned."""
        self._share, self._column, self._row_keep = keep[:, None], column, row_keep

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """The quantised weight of all rows, or of the given ones: [rows, columns]."""
        if self._share is None:
            raise RuntimeError("use_mixture or use_choice comes before the first forward pass")
        weight = self.weight if rows is None else nn.functional.embedding(rows, self.weight)
        every = torch.arange(len(self.weight), device=weight.device) if rows is None else rows
        group, measured = self.group_of_row[every], self.scales()
        measured = measured[every if self.per_row else group]
        limit, offset = self.limit.expand(len(group), -1), self.offset.expand(len(group), -1)
        middle, step, share = measured[:, :1, 1], measured[..., 0], self._share[group]
        if self._row_keep is not None:
            share = share * self._row_keep[every, None]
        if self._column is not None:
            column = self._column[group][:, None]
            step, limit, offset = step.gather(1, column), self.limit[column], self.offset[column]
        return mix(weight - middle, step, limit, offset, share) + middle * share.sum(dim=1, keepdim=True)

    def quantiser_parameters(self) -> list[nn.Parameter]:
        """What is learned beside the weight: nothing."""
        return []

    def stored_weight(self) -> Tensor:
        """What the packer rounds to its grid: the latent weight, [rows, columns]."""
        return self.weight.detach()

    def chosen_scale(self, column: Tensor) -> Tensor:
        """Step and midpoint of one width per sub-group, exact in float16: [rows or groups, 2]."""
        at = column[self.group_of_row] if self.per_row else column
        return self.scales()[torch.arange(len(at), device=at.device), at]

    def scales(self) -> Tensor:
        """Step and midpoint of every width, [rows or groups, K, 2]."""
        return self.quantizer.measure(self.weight.detach(), self.widths, None if self.per_row else self.group_of_row)
