"""Layers whose weight is a mixture of its quantised versions, or, once frozen, one quantised version per sub-group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoquant.core.storage import FLOAT16_LARGEST, FLOAT16_SMALLEST
from autoquant.core.subgroup import Partition
from autoquant.quantizers import UniformQuantizer
from autoquant.quantizers.activation import StaticRange, fake_quantize_dynamic
from autoquant.quantizers.ternary import ternarise, ternary_parameters
from autoquant.supernet.coded import CodedWeight
from autoquant.supernet.mixing import mix
from autoquant.supernet.ranged import RangedWeight


class MixedWeight(nn.Module):
    """A latent full-precision weight and one learnable log-scale per row (or sub-group) and bit-width.

    `widths` are the K non-zero bit-widths of the whole table; `log_scale` is [rows or groups, K]. Before a forward pass the
    supernet sets what is used: `use_mixture` (all widths, shares per sub-group) or `use_choice` (one width per sub-group).
    """

    limit: Tensor
    offset: Tensor
    scale_gradient: Tensor
    group_of_row: Tensor
    _is_ternary: Tensor
    _ternary_rows: Tensor | None
    _share: Tensor | None
    _column: Tensor | None
    _row_keep: Tensor | None

    def __init__(
        self,
        weight: nn.Parameter,
        log_scale: Tensor,
        partition: Partition,
        widths: tuple[int, ...],
        quantizer: UniformQuantizer,
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
        sharing = [partition.matrix.columns * (1 if per_row else max(size, 1)) for size in partition.sizes]
        factors = [[quantizer.scale_gradient(count, width) for width in widths] for count in sharing]
        gradient = torch.tensor(factors)
        self.register_buffer("scale_gradient", gradient[self.group_of_row] if per_row else gradient, persistent=False)
        self._plain_gradient = bool((gradient == 1.0).all())
        self._has_ternary = any(g.ternary for g in grids)
        self.register_buffer("_is_ternary", torch.tensor([g.ternary for g in grids]), persistent=False)
        self.register_buffer("_ternary_rows", None, persistent=False)
        self.register_buffer("_share", None, persistent=False)
        self.register_buffer("_column", None, persistent=False)
        self.register_buffer("_row_keep", None, persistent=False)

    def use_mixture(self, share: Tensor, row_keep: Tensor | None = None) -> None:
        """Mix all widths: `share` [groups, K], gates already multiplied in; `row_keep` [rows] those of whole units."""
        self._share, self._column, self._ternary_rows, self._row_keep = share, None, None, row_keep

    def use_choice(self, column: Tensor, keep: Tensor, row_keep: Tensor | None = None) -> None:
        """One width per sub-group: `column` [groups] int64 index into `widths`, `keep` [groups] 1.0, or 0.0 where pruned."""
        self._share, self._column, self._row_keep = keep[:, None], column, row_keep
        if not self._has_ternary:  # asked once: on a GPU the answer would be waited for
            self._ternary_rows = None
            return
        ternary = (self._is_ternary[column] & (keep > 0))[self.group_of_row]
        if row_keep is not None:
            ternary = ternary & (row_keep > 0)
        self._ternary_rows = ternary if bool(ternary.any()) else None

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """The quantised weight of all rows, or of the given ones: [rows, columns]."""
        if self._share is None:
            raise RuntimeError("use_mixture or use_choice comes before the first forward pass")
        weight, group = _rows(self.weight, rows), _rows(self.group_of_row, rows)
        if self._ternary_rows is not None and bool(_rows(self._ternary_rows, rows).all()):
            return self._ternarised(rows)
        log_scale = self.log_scale if self._plain_gradient else _scale_gradient(self.log_scale, self.scale_gradient)
        log_scale = _rows(log_scale, rows) if self.per_row else log_scale[group]
        if self._column is None:
            limit, offset = self.limit.expand(len(group), -1), self.offset.expand(len(group), -1)
        else:
            column = self._column[group][:, None]
            log_scale, limit, offset = log_scale.gather(1, column), self.limit[column], self.offset[column]
        share = self._share[group]
        if self._row_keep is not None:
            share = share * _rows(self._row_keep, rows)[:, None]
        mixed = mix(weight, log_scale.exp(), limit, offset, share)
        if self._ternary_rows is None:
            return mixed
        return torch.where(_rows(self._ternary_rows, rows)[:, None], self._ternarised(rows), mixed)

    def quantiser_parameters(self) -> list[nn.Parameter]:
        """What is learned beside the weight."""
        return [self.log_scale]

    def _ternary_parameters(self, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Threshold and scale of the rows if they were ternary, [rows] each."""
        if self.per_row:
            return ternary_parameters(_rows(self.weight, rows))
        threshold, scale = ternary_parameters(self.weight, self.group_of_row)
        return _rows(threshold, rows), _rows(scale, rows)

    def _ternarised(self, rows: Tensor | None) -> Tensor:
        return ternarise(_rows(self.weight, rows), *self._ternary_parameters(rows))

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


def _rows(tensor: Tensor, rows: Tensor | None) -> Tensor:
    """Those rows. All of them are the tensor itself: a slice of everything would copy its gradient into zeros first."""
    if rows is None:
        return tensor
    # an embedding's backward adds rows faster than an index's
    return functional.embedding(rows, tensor) if tensor.dim() == 2 else tensor[rows]


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


AnyMixedWeight = MixedWeight | RangedWeight | CodedWeight


class MixedPrecisionLinear(nn.Module):
    """`nn.Linear` with a mixed weight.

    Its input is quantised to the learned range `static`, if there is one; else to 8 bits as the runtime does, if
    `activation_bits` is 8. `drop` is QDrop's probability (Wei et al. 2022) that an element of it stays as it is.
    """

    def __init__(
        self, source: nn.Linear, weight: AnyMixedWeight, activation_bits: int, static: StaticRange | None = None
    ) -> None:
        super().__init__()
        self.mixed, self.bias, self.activation_bits, self.static = weight, source.bias, activation_bits, static
        self.in_features, self.out_features = source.in_features, source.out_features
        self.drop = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self._quantised(x), self.mixed(), self.bias)

    def _quantised(self, x: Tensor) -> Tensor:
        if self.activation_bits == 32:
            return x
        quantised = fake_quantize_dynamic(x) if self.static is None else self.static(x)
        return torch.where(torch.rand_like(x) < self.drop, x, quantised) if self.drop else quantised


class MixedPrecisionEmbedding(nn.Module):
    """`nn.Embedding` with a mixed weight; only the rows that occur in the batch are quantised."""

    def __init__(self, source: nn.Embedding, weight: AnyMixedWeight) -> None:
        super().__init__()
        self.mixed = weight
        self.num_embeddings, self.embedding_dim = source.num_embeddings, source.embedding_dim

    def forward(self, ids: Tensor) -> Tensor:
        rows, inverse = torch.unique(ids, return_inverse=True)
        return functional.embedding(inverse, self.mixed(rows))
