"""Layers whose weight is a mixture of its quantised versions, or, once frozen, one quantised version per sub-group."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoquant.core.subgroup import Partition
from autoquant.quantizers import Quantizer
from autoquant.quantizers.activation import fake_quantize_dynamic
from autoquant.supernet.mixing import mix


class MixedWeight(nn.Module):
    """A latent full-precision weight and one learnable log-scale per row (or sub-group) and bit-width.

    `widths` are the K non-zero bit-widths of the whole table; `log_scale` is [rows or groups, K]. Before a forward pass the
    supernet sets what is used: `use_mixture` (all widths, shares per sub-group) or `use_choice` (one width per sub-group).
    """

    limit: Tensor
    offset: Tensor
    group_of_row: Tensor

    def __init__(
        self,
        weight: nn.Parameter,
        log_scale: Tensor,
        partition: Partition,
        widths: tuple[int, ...],
        quantizer: Quantizer,
        per_row: bool,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.log_scale = nn.Parameter(log_scale)
        self.partition, self.quantizer, self.widths, self.per_row = partition, quantizer, widths, per_row
        grids = [quantizer.grid(width) for width in widths]
        self.register_buffer("limit", torch.tensor([g.limit for g in grids]), persistent=False)
        self.register_buffer("offset", torch.tensor([g.offset for g in grids]), persistent=False)
        self.register_buffer("group_of_row", torch.from_numpy(partition.group_of_row), persistent=False)
        self._share: Tensor | None = None
        self._column: Tensor | None = None

    def use_mixture(self, share: Tensor) -> None:
        """Mix all widths: `share` [groups, K], gates already multiplied in."""
        self._share, self._column = share, None

    def use_choice(self, column: Tensor, keep: Tensor) -> None:
        """One width per sub-group: `column` [groups] int64 index into `widths`, `keep` [groups] 1.0, or 0.0 where pruned."""
        self._share, self._column = keep[:, None], column

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """The quantised weight of all rows, or of the given ones: [rows, columns]."""
        if self._share is None:
            raise RuntimeError("use_mixture or use_choice comes before the first forward pass")
        at = slice(None) if rows is None else rows
        group = self.group_of_row[at]
        log_scale = self.log_scale[at] if self.per_row else self.log_scale[group]
        if self._column is None:
            limit, offset = self.limit.expand(len(group), -1), self.offset.expand(len(group), -1)
        else:
            column = self._column[group][:, None]
            log_scale, limit, offset = log_scale.gather(1, column), self.limit[column], self.offset[column]
        return mix(self.weight[at], log_scale.exp(), limit, offset, self._share[group])

    def chosen_scale(self, column: Tensor) -> Tensor:
        """Scales of one width per sub-group as float16 stores them: [rows or groups] float32."""
        at = column[self.group_of_row] if self.per_row else column
        chosen = self.log_scale.detach().gather(1, at[:, None])[:, 0].exp()
        return chosen.clamp(2.0**-24, 65504.0).half().float()


class MixedPrecisionLinear(nn.Module):
    """`nn.Linear` with a mixed weight; its input is quantised to 8 bits as the runtime does, if `activation_bits` is 8."""

    def __init__(self, source: nn.Linear, weight: MixedWeight, activation_bits: int) -> None:
        super().__init__()
        self.mixed, self.bias, self.activation_bits = weight, source.bias, activation_bits
        self.in_features, self.out_features = source.in_features, source.out_features

    def forward(self, x: Tensor) -> Tensor:
        if self.activation_bits == 8:
            x = fake_quantize_dynamic(x)
        return functional.linear(x, self.mixed(), self.bias)


class MixedPrecisionEmbedding(nn.Module):
    """`nn.Embedding` with a mixed weight; only the rows that occur in the batch are quantised."""

    def __init__(self, source: nn.Embedding, weight: MixedWeight) -> None:
        super().__init__()
        self.mixed = weight
        self.num_embeddings, self.embedding_dim = source.num_embeddings, source.embedding_dim

    def forward(self, ids: Tensor) -> Tensor:
        rows, inverse = torch.unique(ids, return_inverse=True)
        return functional.embedding(inverse, self.mixed(rows))
