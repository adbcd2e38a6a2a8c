"""A matrix -> its packed form: which codes, numbers and outliers are stored."""

from __future__ import annotations

import torch
from torch import Tensor

from autoquant.core.errors import CheckpointError
from autoquant.core.storage import position_bytes
from autoquant.core.subgroup import Partition
from autoquant.pack.bits import pack_rows
from autoquant.pack.matrix import Layout, PackedMatrix, sound
from autoquant.quantizers import CodebookQuantizer, Quantizer, UniformQuantizer


def quantise(
    weight: Tensor, scales: Tensor, partition: Partition, bits: tuple[int, ...], scale: str, quantizer: Quantizer
) -> PackedMatrix:
    """Encode a matrix, [rows, columns], with the `bits` of its sub-groups.

    `scales` [rows] or, where `scale` is `subgroup`, [groups]: positive and exact in float16, ignored where pruned; for an
    asymmetric quantizer [rows, 2] or [groups, 2], scale and midpoint. For a codebook quantizer codebooks, [groups, numbers of the
    width or more], exact in float16; then nothing is rounded here: every weight is a centroid or, where there are outliers, exact
    in float16, and no more are than the layout has.
    Raises CheckpointError when a shape or a number does not fit.
    """
    name = partition.matrix.name
    layout = Layout.of(partition, bits, scale, quantizer.storage)
    weight, scales = weight.detach().float().cpu(), scales.detach().float().cpu()
    if [*weight.shape] != [layout.rows, layout.columns]:
        raise CheckpointError(f"{name}: shape {[*weight.shape]}, expected {[layout.rows, layout.columns]}.")
    if not bool(weight.isfinite().all()):
        raise CheckpointError(f"{name}: a weight is not finite.")
    if isinstance(quantizer, CodebookQuantizer):
        return _with_codebooks(name, weight, scales, layout, quantizer)
    return _with_scales(name, weight, scales, layout, quantizer)


def _with_scales(name: str, weight: Tensor, scales: Tensor, layout: Layout, quantizer: UniformQuantizer) -> PackedMatrix:
    wanted = [*layout.has_scale.shape, *((2,) if quantizer.asymmetric else ())]
    if [*scales.shape] != wanted:
        raise CheckpointError(f"{name}: {[*scales.shape]} scales, expected {wanted}.")
    stored = scales[layout.has_scale].half()
    if not sound(stored.view(-1, quantizer.storage.scales)) or not torch.equal(stored.float(), scales[layout.has_scale]):
        raise CheckpointError(f"{name}: a scale is not a positive float16: round scales to float16 before the last training.")
    codes = torch.empty(layout.code_bytes, dtype=torch.uint8)
    stored = stored.flatten()
    row_scales = layout.row_scales(stored)
    for width in layout.widths:
        rows = layout.rows_of(width)
        codes[layout.bytes_of(width)] = pack_rows(quantizer.encode(weight[rows], row_scales[rows], width), width).flatten()
    return PackedMatrix(codes, stored, layout)


def _with_codebooks(name: str, weight: Tensor, codebooks: Tensor, layout: Layout, quantizer: CodebookQuantizer) -> PackedMatrix:
    most = max((layout.storage.numbers(width) for width in layout.widths), default=0)
    if layout.scale == "row" or codebooks.dim() != 2 or len(codebooks) != len(layout.bits) or codebooks.shape[1] < most:
        raise CheckpointError(f"{name}: codebooks {[*codebooks.shape]}, expected one a sub-group, {[len(layout.bits), most]}.")
    if not torch.equal(codebooks.half().float(), codebooks):  # NaN is not equal either
        raise CheckpointError(f"{name}: a centroid is not a float16: round codebooks to float16 before packing.")
    codes = torch.empty(layout.code_bytes, dtype=torch.uint8)
    stored = torch.empty(int(layout.numbers.sum()), dtype=torch.float16)
    values = torch.zeros_like(weight)
    for width in layout.widths:
        rows, numbers = layout.rows_of(width), codebooks[:, : layout.storage.numbers(width)]
        group = layout.group_of_row[rows]
        # in float64, where a centroid is nearest to itself however near another one is
        found = quantizer.encode(weight[rows].double(), numbers.double(), group, width)
        codes[layout.bytes_of(width)] = pack_rows(found, layout.storage.code_bits(width)).flatten()
        values[rows] = quantizer.decode(found, numbers, group, width, layout.columns)
        chosen = (torch.tensor(layout.bits) == width) & layout.has_scale
        stored[torch.repeat_interleave(chosen, layout.numbers)] = numbers[chosen].flatten().half()
    places = _outlier_places(name, weight, values, layout)
    if not layout.storage.outlier_every:
        return PackedMatrix(codes, stored, layout)
    outliers = weight.flatten()[places].half()
    if not torch.equal(outliers.float(), weight.flatten()[places]):
        raise CheckpointError(f"{name}: an outlier is not a float16: round outliers to float16 before packing.")
    digits = places[:, None] >> (8 * torch.arange(position_bytes(weight.numel())))
    return PackedMatrix(codes, stored, layout, outliers, (digits & 255).to(torch.uint8).flatten())


def _outlier_places(name: str, weight: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """Ascending places of the weights that are not the `values` of their codes, and of others up to the number that is stored."""
    live = (layout.row_bits > 0).repeat_interleave(layout.columns)
    off = (weight != values).flatten() & live
    count = int(off.sum())
    if count > layout.outliers:
        raise CheckpointError(f"{name}: {count} weights are no centroids, {layout.outliers} outliers can be stored.")
    spare = (live & ~off).nonzero()[: layout.outliers - count]
    return torch.cat([off.nonzero(), spare]).flatten().sort().values
