"""What does it weigh? The one home of byte arithmetic: predicted bytes are written bytes.

A packed `model.safetensors` holds, for every matrix W of the search space,

    W_codes     U8 [n]      codes at their true width, each row padded to a whole byte, pruned rows absent
    W_scales    F16 [m]     one scale (or scale and midpoint, or codebook) per row or per sub-group, pruned ones absent
    W_layout    U8 [8 + G]  rows and columns (little-endian uint32 each), then the bits of each of the G sub-groups
    W_buckets   U8 [k]      word embedding only: the bucket of each row, packed at ceil(log2 G) bits
    W_outliers  F16 [o]     weights that stay as they are, for quantizers that have such,
    W_positions U8 [o p]    and where: row x columns + column, ascending, little-endian in p = `position_bytes` bytes each

and every other tensor ("rest": biases, layer norms) as F16 under its own name. The JSON header is padded with spaces to a
length that does not depend on the allocation, so that bytes are additive over sub-groups.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autoquant.core.allocation import BitAllocation
from autoquant.core.errors import BudgetError
from autoquant.core.storage import PLAIN, SCALE_BYTES, Storage, position_bytes
from autoquant.core.structure import Structure, Unit, kept_rows, pick_units, prune_partition, prune_shapes
from autoquant.core.subgroup import Partition

MIB = 2**20
COUNTS = ("file", "encoder", "codes")
LAYOUT_HEAD_BYTES = 8  # rows and columns as uint32
CHECKSUM_CHARACTERS = 64  # sha256 in hexadecimal
HALF_PARTS = ("scales", "outliers")  # of a matrix in the file; the others are bytes


@dataclass(frozen=True)
class SizeBudget:
    """A size in bytes and what counts.

    `file`: the whole model.safetensors; `encoder`: codes and scales of the encoder; `codes`: the encoder's codes alone, as the
    papers have it when they give mean bits per weight.
    """

    bytes: int
    count: str = "file"

    def __post_init__(self) -> None:
        if self.count not in COUNTS:
            raise BudgetError(f"Budget counts {', '.join(COUNTS)}, not '{self.count}'.")
        if self.bytes <= 0:
            raise BudgetError(f"A budget of {self.bytes} bytes is not a size: give a positive --budget-mib or --budget-ratio.")

    @classmethod
    def mib(cls, mib: float, count: str = "file") -> SizeBudget:
        """A budget of `mib` MiB (1,048,576 bytes each)."""
        return cls(int(mib * MIB), count)

    @classmethod
    def ratio(cls, ratio: float, full_bytes: int, count: str = "file") -> SizeBudget:
        """A budget `ratio` times smaller than `full_bytes`, the full-precision size of what counts."""
        if not ratio > 1:
            raise BudgetError(f"--budget-ratio {ratio} does not shrink anything: give a number above 1, say 15.")
        return cls(int(full_bytes / ratio), count)


def mib_text(size: int) -> str:
    """Bytes as people read them, in MiB.

    >>> mib_text(6291456)
    '6'
    """
    return f"{size / MIB:.4g}"


def bucket_bits(groups: int) -> int:
    """Bits that index one of `groups` buckets (0 when there is only one)."""
    return (groups - 1).bit_length()


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a safetensors file: name, dtype as the format spells it (U8, F16), and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * {"U8": 1, "F16": 2, "F32": 4}[self.dtype]


def header_json(entries: Sequence[TensorEntry], metadata: str) -> bytes:
    """The safetensors JSON header of `entries` in their order; `metadata` is the text under the key "autoquant"."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", "autoquant": metadata}}
    offset = 0
    for entry in entries:
        end = offset + entry.bytes
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [offset, end]}
        offset = end
    return json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()


@dataclass(frozen=True, eq=False)
class ByteModel:
    """Bytes of every choice and of everything that is not a choice.

    `partitions`: the matrices of the search space; `rest`: name -> shape of every other tensor of the file;
    `scale`: `row` or `subgroup`; `metadata`: the header's text (its length counts, its checksum has a fixed length);
    `units`: what can be removed as a whole; `storage`: what the quantizer stores.
    """

    partitions: tuple[Partition, ...]
    rest: Mapping[str, tuple[int, ...]]
    scale: str
    metadata: str
    units: tuple[Unit, ...] = ()
    storage: Storage = PLAIN

    def without(self, names: Iterable[str]) -> ByteModel:
        """The smaller model without the units of these names. Raises CheckpointError for what cannot be removed."""
        removed = pick_units(self.units, names)
        if not removed:
            return dataclasses.replace(self, units=())
        partitions = tuple(prune_partition(p, removed) for p in self.partitions)
        rest = prune_shapes(self.rest, [p.matrix for p in self.partitions], removed)
        return dataclasses.replace(self, partitions=partitions, rest=rest, units=())

    def row_bits(self, allocation: BitAllocation) -> dict[str, np.ndarray]:
        """Bits of every row of the unpruned matrices, [rows] int64 by matrix name; 0 for pruned and for removed rows."""
        removed, smaller = pick_units(self.units, allocation.removed), self.without(allocation.removed)
        result = {}
        for partition, pruned in zip(self.partitions, smaller.partitions, strict=True):
            bits = np.zeros(partition.matrix.rows, dtype=np.int64)
            bits[kept_rows(partition.matrix, removed)] = allocation.row_bits(pruned)
            result[partition.matrix.name] = bits
        return result

    def share_different(self, one: BitAllocation, other: BitAllocation) -> float:
        """Share of the unpruned model's sub-groups (0 to 1) that have rows of different bits in two allocations."""
        ours, theirs = self.row_bits(one), self.row_bits(other)
        different = 0
        for partition in self.partitions:
            name = partition.matrix.name
            different += len(np.unique(partition.group_of_row[ours[name] != theirs[name]]))
        return different / sum(p.groups for p in self.partitions)

    def encoder_bits(self, allocation: BitAllocation) -> float:
        """Code bits per weight of the unpruned encoder's matrices (scales not counted)."""
        encoder = [p for p in self.without(allocation.removed).partitions if p.matrix.layer is not None]
        weights = sum(p.matrix.parameters for p in self.partitions if p.matrix.layer is not None)
        return sum(float(allocation.row_bits(p).sum()) * p.matrix.columns for p in encoder) / weights

    def scales_in(self, partition: Partition, rows: int, bits: int) -> int:
        """How many scales (or codebooks) a sub-group of `rows` rows stores at a width."""
        return 0 if bits == 0 or rows == 0 else rows if partition.scale_or(self.scale) == "row" else 1

    def overhead_bytes(self, partition: Partition, rows: int, bits: int) -> int:
        """Bytes that a sub-group of `rows` rows stores beside its codes at a width: scales or codebook, and outliers."""
        if bits == 0:
            return 0
        numbers = self.scales_in(partition, rows, bits) * self.storage.numbers(bits)
        outliers = self.storage.outliers(rows * partition.matrix.columns)
        return SCALE_BYTES * numbers + (SCALE_BYTES + position_bytes(partition.matrix.parameters)) * outliers

    def choice_bytes(self, partition: Partition, bits: int, count: str = "file") -> np.ndarray:
        """Bytes that count, of every sub-group of one matrix at one width, [groups] int64: codes and what is beside them."""
        if count != "file" and partition.matrix.layer is None:
            return np.zeros(partition.groups, dtype=np.int64)
        row = self.storage.row_bytes(partition.matrix.columns, bits)
        return row * np.asarray(partition.sizes, dtype=np.int64) + self.beside_bytes(partition, bits, count)

    def beside_bytes(self, partition: Partition, bits: int, count: str = "file") -> np.ndarray:
        """The part of `choice_bytes` that is not codes, [groups] int64."""
        counts = count == "file" or (count == "encoder" and partition.matrix.layer is not None)
        return np.array([self.overhead_bytes(partition, n, bits) * counts for n in partition.sizes], dtype=np.int64)

    def layout_bytes(self, partition: Partition) -> int:
        """Bytes of a matrix's layout and bucket index, whatever its bits."""
        index = 0
        if partition.buckets is not None:
            index = (partition.matrix.rows * bucket_bits(partition.groups) + 7) // 8
        return LAYOUT_HEAD_BYTES + partition.groups + index

    def entries(self, allocation: BitAllocation) -> list[TensorEntry]:
        """Every tensor of the packed file, F16 first so that offsets stay aligned, then by name."""
        return self._entries({p.matrix.name: self._part_sizes(p, allocation.bits[p.matrix.name]) for p in self.partitions})

    def _part_sizes(self, partition: Partition, bits: Sequence[int]) -> dict[str, int]:
        """Elements of every tensor that a matrix becomes, by the end of its name; `bits` of its sub-groups."""
        matrix, storage = partition.matrix, self.storage
        pairs = list(zip(partition.sizes, bits, strict=True))
        sizes = {
            "codes": sum(n * storage.row_bytes(matrix.columns, b) for n, b in pairs),
            "scales": sum(self.scales_in(partition, n, b) * storage.numbers(b) for n, b in pairs),
            "layout": LAYOUT_HEAD_BYTES + partition.groups,
        }
        if partition.buckets is not None:
            sizes["buckets"] = self.layout_bytes(partition) - sizes["layout"]
        if storage.outlier_every:
            sizes["outliers"] = sum(storage.outliers(n * matrix.columns) for n, b in pairs if b)
            sizes["positions"] = sizes["outliers"] * position_bytes(matrix.parameters)
        return sizes

    def _entries(self, sizes: Mapping[str, Mapping[str, int]]) -> list[TensorEntry]:
        """The tensors whose parts have these sizes, by matrix name."""
        half = [TensorEntry(name, "F16", tuple(shape)) for name, shape in self.rest.items()]
        byte: list[TensorEntry] = []
        for name, parts in sizes.items():
            for part, size in parts.items():
                if part in HALF_PARTS:
                    half.append(TensorEntry(f"{name}_{part}", "F16", (size,)))
                else:
                    byte.append(TensorEntry(f"{name}_{part}", "U8", (size,)))
        return sorted(half, key=lambda e: e.name) + sorted(byte, key=lambda e: e.name)

    @cached_property
    def header_bytes(self) -> int:
        """Length of the padded header with its 8-byte length field, the same for all: every tensor as large as it can be."""
        largest = {}
        for partition in self.partitions:
            sizes = [self._part_sizes(partition, (width,) * partition.groups) for width in partition.widths]
            largest[partition.matrix.name] = {part: max(size[part] for size in sizes) for part in sizes[0]}
        length = len(header_json(self._entries(largest), self.metadata)) + CHECKSUM_CHARACTERS
        return 8 + (length + 7) // 8 * 8

    @cached_property
    def fixed_bytes(self) -> int:
        """Everything in the file that is not a choice: header, layouts, bucket index, rest in float16."""
        rest = sum(2 * math.prod(shape) for shape in self.rest.values())
        return self.header_bytes + rest + sum(self.layout_bytes(p) for p in self.partitions)

    def exact_bytes(self, allocation: BitAllocation, count: str = "file") -> int:
        """Bytes of an allocation: the size of the file that is written, or codes and scales of the encoder."""
        return sum(self.breakdown(allocation, count).values())

    def breakdown(self, allocation: BitAllocation, count: str = "file") -> dict[str, int]:
        """Bytes by what they hold: `<kind>` codes and scales, `layout`, `rest`, `header`."""
        if allocation.removed:
            return self.without(allocation.removed).breakdown(BitAllocation(allocation.bits), count)
        parts: dict[str, int] = {}
        for partition in self.partitions:
            if count != "file" and partition.matrix.layer is None:
                continue
            bits = allocation.bits[partition.matrix.name]
            by_width = {b: self.choice_bytes(partition, b, count) for b in set(bits)}
            size = sum(int(by_width[b][i]) for i, b in enumerate(bits))
            parts[partition.matrix.kind] = parts.get(partition.matrix.kind, 0) + size
        if count == "file":
            parts["layout"] = sum(self.layout_bytes(p) for p in self.partitions)
            parts["rest"] = sum(2 * math.prod(shape) for shape in self.rest.values())
            parts["header"] = self.header_bytes
        return parts


@dataclass(frozen=True, eq=False)
class ChoiceTable:
    """Every sub-group of every matrix as one flat table, the knapsack's and the supernet's view of the space.

    `widths` [K] bit-widths, ascending; `bytes` [N, K] int64 what counts against the budget; `allowed` [N, K] bool;
    `parameters` [N] weights in the sub-group; `fixed` bytes that count whatever is chosen; `removable` what can go as a whole.
    """

    partitions: tuple[Partition, ...]
    widths: tuple[int, ...]
    bytes: np.ndarray
    allowed: np.ndarray
    parameters: np.ndarray
    fixed: int
    removable: Removable | None = None

    def __len__(self) -> int:
        return len(self.bytes)

    def slices(self) -> dict[str, slice]:
        """Matrix name -> its rows of the table."""
        ends = np.cumsum([p.groups for p in self.partitions])
        return {p.matrix.name: slice(int(e) - p.groups, int(e)) for p, e in zip(self.partitions, ends, strict=True)}

    def to_allocation(self, choice: np.ndarray, removed: tuple[str, ...] = ()) -> BitAllocation:
        """Column index per sub-group ([N]) -> allocation; `removed` names the units this table is without."""
        bits = np.asarray(self.widths)[choice]
        return BitAllocation({name: tuple(int(b) for b in bits[rows]) for name, rows in self.slices().items()}, removed)

    def to_choice(self, allocation: BitAllocation) -> np.ndarray:
        """Allocation -> column index per sub-group, [N] int64."""
        column = {width: index for index, width in enumerate(self.widths)}
        return np.array([column[b] for p in self.partitions for b in allocation.bits[p.matrix.name]], dtype=np.int64)

    def smallest(self) -> int:
        return int(np.where(self.allowed, self.bytes, np.iinfo(np.int64).max).min(axis=1).sum()) + self.fixed

    def largest(self) -> int:
        return int(np.where(self.allowed, self.bytes, -1).max(axis=1).sum()) + self.fixed

    def total(self, choice: np.ndarray) -> int:
        """Bytes that count, of a choice per sub-group ([N])."""
        return int(self.bytes[np.arange(len(self)), choice].sum()) + self.fixed

    def origins(self, smaller: ChoiceTable, removed: Sequence[Unit]) -> np.ndarray:
        """For every sub-group of a table without `removed`, [N'], the sub-group here that its first row comes from."""
        found = []
        for piece, partition, pruned in zip(self.slices().values(), self.partitions, smaller.partitions, strict=True):
            group = partition.group_of_row[kept_rows(partition.matrix, removed)]
            first = np.unique(pruned.group_of_row, return_index=True)[1]
            found.append(piece.start + group[first])
        return np.concatenate(found)

    def regroup(self, values: np.ndarray, smaller: ChoiceTable, removed: Sequence[Unit]) -> np.ndarray:
        """Sums over sub-groups, [N, K] here, as sums over those of a table without `removed`, [N', K].

        Spread evenly over a sub-group's rows and columns, and added up again over those that stay.
        """
        result = []
        for piece, partition, pruned in zip(self.slices().values(), self.partitions, smaller.partitions, strict=True):
            kept = kept_rows(partition.matrix, removed)
            share = pruned.matrix.columns / partition.matrix.columns
            per_row = values[piece] * share / np.asarray(partition.sizes, dtype=float)[:, None]
            total = np.zeros((pruned.groups, values.shape[1]))
            np.add.at(total, pruned.group_of_row, per_row[partition.group_of_row[kept]])
            result.append(total)
        return np.concatenate(result)


@dataclass(frozen=True, eq=False)
class Removable:
    """What a table's units weigh.

    `structure`: where they overlap with the sub-groups; `scale_bytes` [N, K]: the part of a choice's bytes that stays when
    columns go; `unit_bytes` [U]: what a unit takes along beside its sub-groups' choices (biases, layout bytes).
    """

    model: ByteModel
    count: str
    structure: Structure
    scale_bytes: np.ndarray
    unit_bytes: np.ndarray

    def table_without(self, removed: Sequence[Unit]) -> ChoiceTable:
        """The table of the smaller model."""
        return choice_table(self.model.without(unit.name for unit in removed), self.count)


def choice_table(model: ByteModel, count: str = "file") -> ChoiceTable:
    """The flat table of a model's choices. What does not count against the budget weighs nothing in it, and is as wide as can be:
    no method has a reason to make it narrower."""
    widths = tuple(sorted({width for p in model.partitions for width in p.widths}))
    sizes, allowed, parameters = [], [], []
    for partition in model.partitions:
        columns = [model.choice_bytes(partition, w, count) for w in widths]
        sizes.append(np.stack(columns, axis=1))
        offered = partition.widths if count == "file" or partition.matrix.layer is not None else partition.widths[-1:]
        allowed.append(np.tile([w in offered for w in widths], (partition.groups, 1)))
        parameters.append(np.asarray(partition.sizes, dtype=np.int64) * partition.matrix.columns)
    fixed = model.fixed_bytes if count == "file" else 0
    table = ChoiceTable(
        model.partitions, widths, np.concatenate(sizes), np.concatenate(allowed), np.concatenate(parameters), fixed
    )
    return dataclasses.replace(table, removable=_removable(model, widths, count)) if model.units else table


def _removable(model: ByteModel, widths: tuple[int, ...], count: str) -> Removable:
    structure = Structure.of(model.partitions, model.units)
    scales = [np.stack([model.beside_bytes(p, width, count) for width in widths], axis=1) for p in model.partitions]
    unit_bytes = np.zeros(len(model.units))
    if count == "file":
        for u, unit in enumerate(model.units):
            rows_in = [p.matrix.name.removesuffix("weight") + "bias" for p in model.partitions if unit.has_rows_in(p.matrix)]
            unit_bytes[u] = 2 * (unit.stop - unit.start) * sum(name in model.rest for name in rows_in)
        unit_bytes += structure.rows.sum(axis=0)  # a byte of layout for every sub-group
    return Removable(model, count, structure, np.concatenate(scales), unit_bytes)


def check_budget(budget: SizeBudget, table: ChoiceTable, full_bytes: int, model: ByteModel) -> None:
    """Raise BudgetError, with the numbers and the remedy, for a budget no allocation can meet or that asks for nothing."""
    if budget.bytes < table.smallest():
        choice = np.where(table.allowed, table.bytes, np.iinfo(np.int64).max).argmin(axis=1)
        parts = model.breakdown(table.to_allocation(choice), budget.count)
        filling = ", ".join(f"{k} {v / MIB:.2f}" for k, v in sorted(parts.items(), key=lambda kv: -kv[1])[:4])
        whole = " with every head and FFN block in place" if model.units else ""
        raise BudgetError(
            f"Budget {budget.bytes / MIB:.2f} MiB is below the smallest allocation{whole}, {table.smallest() / MIB:.2f} MiB "
            f"({filling}): raise the budget, or allow fewer bits in the search space (--space), or --trim-positions."
        )
    if budget.bytes >= full_bytes:
        raise BudgetError(
            f"Budget {budget.bytes / MIB:.2f} MiB is not below full precision, {full_bytes / MIB:.2f} MiB: nothing to search."
        )
