"""What mixed weights have in common: a latent matrix, and which of its widths every sub-group uses."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoquant.core.subgroup import Partition
from autoquant.quantizers import Quantizer, UniformQuantizer


class MixedWeight(nn.Module, ABC):
    """A latent full-precision weight, whose forward pass gives it quantised: of all rows, or of given ones.

    `widths` are the K non-zero bit-widths of the whole table; `per_row` says whether every row has a scale of its own, or every
    sub-group. Before a forward pass the supernet sets what is used: `use_mixture` (all widths, shares per sub-group) or
    `use_choice` (one width per sub-group).
    """

    quantizer: Quantizer
    group_of_row: Tensor
    _share: Tensor | None
    _column: Tensor | None
    _row_keep: Tensor | None

    def __init__(self, weight: nn.Parameter, partition: Partition, widths: tuple[int, ...], per_row: bool) -> None:
        super().__init__()
        self.weight = weight
        self.partition, self.widths, self.per_row = partition, widths, per_row
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

    def _used(self, rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of all rows or the given ones: sub-group [rows]; shares of the widths, [rows, K], or of the chosen one, [rows, 1];
        that one's column [rows], None in a mixture."""
        if self._share is None:
            raise RuntimeError("use_mixture or use_choice comes before the first forward pass")
        group = rows_of(self.group_of_row, rows)
        share = self._share[group]
        if self._row_keep is not None:
            share = share * rows_of(self._row_keep, rows)[:, None]
        return group, share, None if self._column is None else self._column[group]

    @abstractmethod
    def forward(self, rows: Tensor | None = None) -> Tensor:
        """The quantised weight of all rows, or of the given ones: [rows, columns]."""

    @abstractmethod
    def quantiser_parameters(self) -> list[nn.Parameter]:
        """What is learned beside the weight."""

    @abstractmethod
    def stored_weight(self) -> Tensor:
        """What the packer rounds to its grid, [rows, columns]."""

    @abstractmethod
    def scales(self) -> Tensor:
        """Numbers of every width that codes are multiplied with or looked up in, [rows or groups, K or more]."""

    @abstractmethod
    def chosen_scale(self, column: Tensor) -> Tensor:
        """Those of one width per sub-group (`column` [groups]), as float16 stores them: [rows or groups] or with more axes."""

    @abstractmethod
    def packed_values(self, stored: Tensor, scale: Tensor, bits: Tensor) -> Tensor:
        """What a packed file would hold of `stored_weight` and `chosen_scale` under `bits` [groups], zeros where they are 0:
        [rows, columns]; everything on the CPU.
        """

    def vector_length(self) -> int | None:
        """Weights that a code stands for at the widths that are chosen; None where codes are of single weights."""
        return None

    def measure_again(self) -> None:
        """Put what follows from the weights as they are now in the place of what was learned, where a quantizer has such."""


class GridWeight(MixedWeight):
    """Of a quantizer whose codes are whole steps from an offset."""

    quantizer: UniformQuantizer
    limit: Tensor
    offset: Tensor

    def __init__(
        self,
        weight: nn.Parameter,
        partition: Partition,
        widths: tuple[int, ...],
        quantizer: UniformQuantizer,
        per_row: bool,
    ) -> None:
        super().__init__(weight, partition, widths, per_row)
        self.quantizer = quantizer
        grids = [quantizer.grid(width) for width in widths]
        self.register_buffer("limit", torch.tensor([g.limit for g in grids]), persistent=False)
        self.register_buffer("offset", torch.tensor([g.offset for g in grids]), persistent=False)

    def _grid(self, column: Tensor | None, rows: int) -> tuple[Tensor, Tensor]:
        """Limit and offset of every row: [rows, K] in a mixture, [rows, 1] of the chosen `column` [rows]."""
        if column is None:
            return self.limit.expand(rows, -1), self.offset.expand(rows, -1)
        return self.limit[column[:, None]], self.offset[column[:, None]]

    def packed_values(self, stored: Tensor, scale: Tensor, bits: Tensor) -> Tensor:
        group = self.group_of_row.cpu()
        row_scale = scale if self.per_row else scale[group]
        row_bits, values = bits[group], torch.zeros_like(stored)
        for width in sorted({int(b) for b in bits} - {0}):
            at = row_bits == width
            values[at] = self.quantizer.fake_quantize(stored[at], row_scale[at], width)
        return values


def rows_of(tensor: Tensor, rows: Tensor | None) -> Tensor:
    """Those rows. All of them are the tensor itself: a slice of everything would copy its gradient into zeros first."""
    if rows is None:
        return tensor
    # an embedding's backward adds rows faster than an index's
    return functional.embedding(rows, tensor) if tensor.dim() == 2 else tensor[rows]
