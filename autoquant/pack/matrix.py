"""One matrix as bytes: codes row by row at each row's own width, scales or codebooks, and the layout: which row is which."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from autoquant.core.cost import LAYOUT_HEAD_BYTES, bucket_bits
from autoquant.core.errors import CheckpointError
from autoquant.core.space import SUPPORTED_WIDTHS
from autoquant.core.storage import PLAIN, Storage, position_bytes
from autoquant.core.subgroup import Partition, even_sizes
from autoquant.pack.bits import pack_rows, unpack_rows
from autoquant.quantizers import CodebookQuantizer, Quantizer, UniformQuantizer

# No model of this family comes near these; a file that claims more is refused before anything is allocated. Pruned rows take
# no bytes of a file, so its size alone is no bound.
MOST_ROWS = 2**22
MOST_WEIGHTS = 2**30


@dataclass(frozen=True, eq=False)
class Layout:
    """Which row has how many bits, and where its codes and scale are.

    `head` [8 + G] uint8: rows and columns as little-endian uint32, then the bits of each of the G sub-groups; `buckets`
    [k] uint8: the packed sub-group of every row, or None for even runs of consecutive rows; `scale`: `row` or `subgroup`;
    `storage`: that of the quantizer.
    """

    head: Tensor
    buckets: Tensor | None
    scale: str
    storage: Storage = PLAIN

    @classmethod
    def of(cls, partition: Partition, bits: tuple[int, ...], scale: str, storage: Storage = PLAIN) -> Layout:
        """The layout of a matrix. Raises CheckpointError for uneven runs of rows, which it has no way to say."""
        matrix, buckets = partition.matrix, None
        if partition.buckets is not None:
            buckets = pack_rows(torch.from_numpy(partition.buckets)[None], bucket_bits(partition.groups))[0]
        elif partition.sizes != even_sizes(matrix.rows, partition.groups):
            raise CheckpointError(f"{matrix.name}: runs of {partition.sizes} rows are uneven, which a packed file cannot say.")
        size = np.array([matrix.rows, matrix.columns], "<u4").tobytes()
        return cls(torch.tensor([*size, *bits], dtype=torch.uint8), buckets, scale, storage)

    @property
    def rows(self) -> int:
        return self._size[0]

    @property
    def columns(self) -> int:
        return self._size[1]

    @property
    def bits(self) -> tuple[int, ...]:
        """Bit-width of every sub-group."""
        return tuple(self.head[LAYOUT_HEAD_BYTES:].tolist())

    @property
    def widths(self) -> list[int]:
        """The bit-widths above 0 in use, ascending."""
        return sorted(set(self.bits) - {0})

    @cached_property
    def group_of_row(self) -> Tensor:
        """The sub-group of every row, [rows] int64."""
        groups = len(self.head) - LAYOUT_HEAD_BYTES
        if self.buckets is not None:
            return unpack_rows(self.buckets[None], self.rows, bucket_bits(groups))[0].long()
        sizes = torch.tensor(even_sizes(self.rows, groups), device=self.head.device)
        return torch.repeat_interleave(sizes)

    @cached_property
    def row_bits(self) -> Tensor:
        """Bits of every row, [rows] uint8."""
        return self.head[LAYOUT_HEAD_BYTES:][self.group_of_row]

    @cached_property
    def row_starts(self) -> Tensor:
        """First byte of every row's codes, [rows] int64."""
        return torch.cumsum(self.row_bytes, 0) - self.row_bytes

    @cached_property
    def row_bytes(self) -> Tensor:
        """Bytes of every row's codes, [rows] int64."""
        sizes = [self.storage.row_bytes(self.columns, width) for width in range(max(SUPPORTED_WIDTHS) + 1)]
        return torch.tensor(sizes, device=self.head.device)[self.row_bits.long()]

    @property
    def code_bytes(self) -> int:
        """Bytes of all codes."""
        return int(self.row_bytes.sum())

    @cached_property
    def has_scale(self) -> Tensor:
        """Which rows ([rows] bool) or, with a scale per sub-group, sub-groups ([G] bool) store a scale: those not pruned."""
        if self.scale == "row":
            return self.row_bits > 0
        bits = self.head[LAYOUT_HEAD_BYTES:]
        return (bits > 0) & (torch.bincount(self.group_of_row, minlength=len(bits)) > 0)

    @cached_property
    def numbers(self) -> Tensor:
        """How many numbers every row or, with a scale per sub-group, every sub-group stores, [rows or G] int64."""
        bits = self.row_bits if self.scale == "row" else self.head[LAYOUT_HEAD_BYTES:]
        sizes = [self.storage.numbers(width) for width in range(max(SUPPORTED_WIDTHS) + 1)]
        return torch.tensor(sizes, device=bits.device)[bits.long()] * self.has_scale

    def row_scales(self, stored: Tensor) -> Tensor:
        """Stored scales [m] -> that of every row, [rows] (asymmetric: [2 m] -> [rows, 2]) float32; 0 where the row is pruned."""
        shape = () if self.storage.scales == 1 else (self.storage.scales,)
        scales = torch.zeros(len(self.has_scale), *shape, dtype=torch.float32, device=stored.device)
        scales[self.has_scale] = stored.float().view(-1, *shape)
        return scales if self.scale == "row" else scales[self.group_of_row]

    def codebooks(self, stored: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Stored codebooks [m] -> those of a width, [k, numbers] float32, and which of them is every row's, [rows] int64.

        What the second says of rows of other widths means nothing.
        """
        bits = self.row_bits if self.scale == "row" else self.head[LAYOUT_HEAD_BYTES:]
        chosen = (bits == width) & self.has_scale
        numbers = stored[torch.repeat_interleave(chosen, self.numbers)].float()
        place = torch.cumsum(chosen, 0) - 1
        row_place = place if self.scale == "row" else place[self.group_of_row]
        return numbers.view(-1, self.storage.numbers(width)), row_place

    @cached_property
    def outliers(self) -> int:
        """How many weights are stored as they are."""
        counts = torch.bincount(self.group_of_row, minlength=len(self.bits)).tolist()
        pairs = zip(counts, self.bits, strict=True)
        return sum(self.storage.outliers(count * self.columns) for count, bits in pairs if bits)

    def rows_of(self, width: int) -> Tensor:
        """Which rows have a width, [rows] bool."""
        return self.row_bits == width

    def bytes_of(self, width: int) -> Tensor:
        """Which bytes of the codes belong to rows of a width, [n] bool."""
        return torch.repeat_interleave(self.row_bits, self.row_bytes) == width

    @cached_property
    def _size(self) -> tuple[int, int]:
        rows, columns = np.array(self.head[:LAYOUT_HEAD_BYTES].tolist(), np.uint8).view("<u4").tolist()
        return rows, columns

    def check(self, name: str) -> None:
        """Raise CheckpointError for a layout that describes no matrix; allocates nothing of the size it claims until then."""
        check_sizes({name: self})
        groups = len(self.head) - LAYOUT_HEAD_BYTES
        odd = sorted(set(self.bits) - set(SUPPORTED_WIDTHS))
        if groups > self.rows or odd:
            what = f"{odd[0]} bits" if odd else f"{groups} sub-groups for {self.rows} rows"
            raise CheckpointError(f"{name}: its layout has {what}: the file is corrupt.")
        if self.buckets is None:
            return
        if len(self.buckets) != (self.rows * bucket_bits(groups) + 7) // 8:
            raise CheckpointError(f"{name}: {len(self.buckets)} bytes do not index {self.rows} rows: the file is corrupt.")
        if int(self.group_of_row.max()) >= groups:
            raise CheckpointError(f"{name}: a row is in bucket {int(self.group_of_row.max())} of {groups}: the file is corrupt.")


def check_sizes(layouts: Mapping[str, Layout]) -> None:
    """Raise CheckpointError for sizes that matrices, or all of them together, do not have; allocates nothing of these sizes."""
    rows = weights = 0
    for name, layout in layouts.items():
        if len(layout.head) <= LAYOUT_HEAD_BYTES:
            raise CheckpointError(f"{name}: a layout of {len(layout.head)} bytes holds no sub-group: the file is corrupt.")
        if not (0 < layout.rows <= MOST_ROWS and layout.columns > 0 and layout.rows * layout.columns <= MOST_WEIGHTS):
            raise CheckpointError(f"{name}: {layout.rows} x {layout.columns} is no size of a matrix: the file is corrupt.")
        rows, weights = rows + layout.rows, weights + layout.rows * layout.columns
    if rows > MOST_ROWS or weights > MOST_WEIGHTS:
        raise CheckpointError(f"it claims {rows} rows with {weights} weights: no packed model is that large.")


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A matrix as it is stored: `codes` [n] uint8 and `scales` [m] float16, row after row, pruned rows absent.

    The scales of an asymmetric quantizer are [2 m], each followed by its midpoint; a codebook quantizer has its codebooks in
    their place. `outliers` [o] float16 and `positions` [o p] uint8 (see core/cost.py): None for quantizers without outliers.
    """

    codes: Tensor
    scales: Tensor
    layout: Layout
    outliers: Tensor | None = None
    positions: Tensor | None = None

    @property
    def rows(self) -> int:
        return self.layout.rows

    @property
    def columns(self) -> int:
        return self.layout.columns

    @property
    def bits(self) -> tuple[int, ...]:
        """Bit-width of every sub-group."""
        return self.layout.bits

    def parts(self) -> dict[str, Tensor]:
        """What the file stores, by the end of its name."""
        parts = {"codes": self.codes, "scales": self.scales, "layout": self.layout.head}
        others = {"buckets": self.layout.buckets, "outliers": self.outliers, "positions": self.positions}
        return parts | {part: tensor for part, tensor in others.items() if tensor is not None}

    @cached_property
    def places(self) -> Tensor:
        """Row x columns + column of every outlier, ascending, [o] int64."""
        size = position_bytes(self.rows * self.columns)
        if self.positions is None or size == 0:
            return torch.zeros(0, dtype=torch.int64, device=self.codes.device)
        digits = self.positions.long().view(-1, size)
        return (digits << (8 * torch.arange(size, device=digits.device))).sum(1)

    def dequantise(self, quantizer: Quantizer, rows: Tensor | None = None) -> Tensor:
        """The weights of `rows` ([n] int64, None = all), [n, columns] float32; pruned rows are zeros."""
        layout, device = self.layout, self.codes.device
        rows = torch.arange(self.rows, device=device) if rows is None else rows
        bits, starts = layout.row_bits[rows], layout.row_starts[rows]
        decode = self._codebook_decoder(quantizer) if isinstance(quantizer, CodebookQuantizer) else self._decoder(quantizer)
        weight = torch.zeros(len(rows), self.columns, dtype=torch.float32, device=device)
        for width in layout.widths:
            at = (bits == width).nonzero()[:, 0]
            codes = self.codes[starts[at, None] + torch.arange(layout.storage.row_bytes(self.columns, width), device=device)]
            codes = unpack_rows(codes, layout.storage.codes(self.columns, width), layout.storage.code_bits(width))
            weight[at] = decode(codes, rows[at], width)
        if self.outliers is not None:
            self._put_outliers(weight, rows)
        return weight

    def _decoder(self, quantizer: UniformQuantizer) -> Callable[[Tensor, Tensor, int], Tensor]:
        """Codes of rows, the rows' numbers [n] and their width -> values."""
        scales = self.layout.row_scales(self.scales)
        return lambda codes, rows, width: quantizer.decode(codes, scales[rows], width)

    def _codebook_decoder(self, quantizer: CodebookQuantizer) -> Callable[[Tensor, Tensor, int], Tensor]:
        """The same for a codebook quantizer."""

        def decode(codes: Tensor, rows: Tensor, width: int) -> Tensor:
            codebooks, place = self.layout.codebooks(self.scales, width)
            return quantizer.decode(codes, codebooks, place[rows], width, self.columns)

        return decode

    def _put_outliers(self, weight: Tensor, rows: Tensor) -> None:
        """Put the outliers of `rows` [n] into their weights [n, columns]."""
        assert self.outliers is not None
        first, last = (torch.searchsorted(self.places, (rows + end) * self.columns) for end in (0, 1))
        counts = last - first
        at = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), counts)
        which = torch.arange(len(at), device=rows.device) + (first - (torch.cumsum(counts, 0) - counts))[at]
        weight[at, self.places[which] % self.columns] = self.outliers[which].float()

    def check(self, name: str, quantizer: Quantizer) -> None:
        """Raise CheckpointError unless codes and scales have the lengths and values that the layout implies."""
        self.layout.check(name)
        unknown = sorted(set(self.layout.widths) - set(quantizer.widths))
        if unknown:
            raise CheckpointError(f"{name}: {unknown[0]} bits, which quantizer {quantizer.name} does not have: corrupt.")
        found = len(self.codes), len(self.scales)
        implied = self.layout.code_bytes, int(self.layout.numbers.sum())
        if found != implied:
            raise CheckpointError(
                f"{name}: {found[0]} bytes of codes and {found[1]} scales, but its layout implies {implied[0]} and "
                f"{implied[1]}: the file is corrupt."
            )
        if isinstance(quantizer, CodebookQuantizer):
            self._check_codebooks(name)
        elif not sound(self.scales.view(-1, quantizer.storage.scales)):
            raise CheckpointError(f"{name}: a scale is not a positive number: the file is corrupt.")

    def _check_codebooks(self, name: str) -> None:
        """Raise CheckpointError unless all numbers are finite and the outliers as many, and where, the layout has them."""
        outliers = self.scales[:0] if self.outliers is None else self.outliers
        positions = self.codes[:0] if self.positions is None else self.positions
        if not (bool(self.scales.isfinite().all()) and bool(outliers.isfinite().all())):
            raise CheckpointError(f"{name}: a centroid or an outlier is not finite: the file is corrupt.")
        size = position_bytes(self.rows * self.columns)
        if (len(outliers), len(positions)) != (self.layout.outliers, self.layout.outliers * size):
            raise CheckpointError(
                f"{name}: {len(outliers)} outliers with {len(positions)} bytes of positions, but its layout implies "
                f"{self.layout.outliers}: the file is corrupt."
            )
        if not len(outliers):
            return
        ascending = bool((self.places.diff() > 0).all()) and int(self.places[-1]) < self.rows * self.columns
        if not ascending or not bool(self.layout.row_bits[self.places // self.columns].all()):
            raise CheckpointError(f"{name}: its outliers are in no order, or where no weight is: the file is corrupt.")


def sound(scales: Tensor) -> bool:
    """Whether all scales ([m, 1 or 2], the first column) are positive, and everything is finite."""
    return bool((scales[:, 0] > 0).all()) and bool(scales.isfinite().all())
