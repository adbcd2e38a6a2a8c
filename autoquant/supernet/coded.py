"""The mixed weight of a codebook quantizer: a codebook per sub-group and width, both it and the weights straight through."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoquant.core.subgroup import Partition
from autoquant.quantizers import CodebookQuantizer
from autoquant.quantizers.codebook import to_half
from autoquant.supernet.mixed import MixedWeight, rows_of


class CodedWeight(MixedWeight):
    """Codebooks in place of scales.

    Every forward pass gives each weight its nearest centroid anew; its gradient passes straight through, and a centroid gets the
    sum of its weights' gradients. Outliers are those of the weights at the start; they stay plain weights. Codebooks are
    learned in units of their own spread, so that a learning rate means to them what it means to log-scales.
    """

    quantizer: CodebookQuantizer
    spread: Tensor
    is_outlier: Tensor

    def __init__(
        self,
        weight: nn.Parameter,
        codebooks: Tensor,
        partition: Partition,
        widths: tuple[int, ...],
        quantizer: CodebookQuantizer,
    ) -> None:
        """`codebooks` [groups, numbers of all widths], as `quantizer.measure` has them."""
        super().__init__(weight, partition, widths, per_row=False)
        self.quantizer = quantizer
        used = (codebooks != 0).sum(dim=1, keepdim=True).clamp_min(1)  # widths that are not allowed have zeros
        spread = (codebooks.square().sum(dim=1, keepdim=True) / used).sqrt().clamp_min(1e-12)
        self.codebooks = nn.Parameter(codebooks / spread)
        self.register_buffer("spread", spread, persistent=False)
        outliers = quantizer.outliers(weight.detach(), self.group_of_row.to(weight.device))
        self.register_buffer("is_outlier", outliers, persistent=False)

    def forward(self, rows: Tensor | None = None) -> Tensor:
        _, share, column = self._used(rows)
        every = torch.arange(len(self.weight), device=self.weight.device) if rows is None else rows
        weight = rows_of(self.weight, rows)
        codebooks = self.quantizer.split(self.codebooks * self.spread, self.widths)
        if column is not None:
            return self._chosen(weight, every, column, codebooks) * share
        mixed = torch.zeros_like(weight)
        for k in range(len(self.widths)):
            mixed = mixed + share[:, k : k + 1] * self._quantised(weight, every, k, codebooks[k])
        return mixed

    def _chosen(self, weight: Tensor, rows: Tensor, column: Tensor, codebooks: tuple[Tensor, ...]) -> Tensor:
        """Every row at its own width, [rows, columns]; `rows` number them, `column` [rows]."""
        different = column.unique().tolist()
        if len(different) == 1:
            return self._quantised(weight, rows, different[0], codebooks[different[0]])
        chosen = torch.zeros_like(weight)
        for k in different:
            at = (column == k).nonzero()[:, 0]
            chosen = chosen.index_copy(0, at, self._quantised(weight[at], rows[at], k, codebooks[k]))
        return chosen

    def _quantised(self, weight: Tensor, rows: Tensor, k: int, codebook: Tensor) -> Tensor:
        """Those rows' weights at width k, [rows, columns]."""
        bits, group, columns = self.widths[k], self.group_of_row[rows], weight.shape[1]
        codes = self.quantizer.encode(weight.detach(), codebook.detach(), group, bits)
        values = self.quantizer.decode(codes, codebook, group, bits, columns) + (weight - weight.detach())
        return torch.where(self.is_outlier[rows], weight, values) if self.quantizer.storage.outlier_every else values

    def chosen_widths(self) -> set[int]:
        """Bits of the widths that sub-groups have; those that are pruned have none."""
        assert self._column is not None
        assert self._share is not None
        return {self.widths[column] for column in self._column[self._share[:, 0] > 0].tolist()}

    def vector_length(self) -> int | None:
        storage = self.quantizer.storage
        return max(map(storage.block, self.chosen_widths()), default=None) if storage.vectors else None

    @torch.no_grad()
    def measure_again(self) -> None:
        """Put codebooks of the weights as they are now in the place of the learned ones, at the widths that are chosen."""
        if widths := sorted(self.chosen_widths()):
            found = self.quantizer.measure(self.weight, self.widths, self.group_of_row, widths)
            self.codebooks.copy_(found / self.spread)

    def quantiser_parameters(self) -> list[nn.Parameter]:
        return [self.codebooks]

    @torch.no_grad()
    def stored_weight(self) -> Tensor:
        """What the packer stores, [rows, columns]: every number a centroid, or an outlier, of the chosen width in float16."""
        assert self._column is not None
        every, column = torch.arange(len(self.weight), device=self.weight.device), self._column[self.group_of_row]
        codebooks = self.quantizer.split(to_half(self.scales()), self.widths)
        return to_half(self._chosen(self.weight, every, column, codebooks))

    def scales(self) -> Tensor:
        """The learned codebooks of every width, [groups, numbers of all widths]."""
        return (self.codebooks * self.spread).detach()

    def chosen_scale(self, column: Tensor) -> Tensor:
        """Codebooks of one width per sub-group as float16 stores them, [groups, numbers]: the shorter ones end in zeros."""
        codebooks = self.quantizer.split(to_half(self.scales()), self.widths)
        chosen = torch.zeros(len(column), max(c.shape[1] for c in codebooks), device=self.codebooks.device)
        for k, codebook in enumerate(codebooks):
            chosen[column == k, : codebook.shape[1]] = codebook[column == k]
        return chosen

    def packed_values(self, stored: Tensor, scale: Tensor, bits: Tensor) -> Tensor:
        return stored * (bits > 0)[self.group_of_row.cpu(), None]
