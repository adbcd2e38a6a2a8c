"""What do another tool's widths weigh in our file? Rows of codes, a float16 scale for each of them (or for each of the groups
that a tool divides rows into), and the rest in float16."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from autoquant.blueprint import Blueprint
from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import ByteModel
from autoquant.core.errors import SpaceError
from autoquant.core.space import KINDS, Rule, SearchSpace
from autoquant.core.storage import SCALE_BYTES
from autoquant.core.subgroup import Partition

WIDTHS, FLOAT_BITS = (1, 2, 3, 4, 8), 16


@dataclass(frozen=True)
class Size:
    """Bytes of the whole file and of the encoder's linear layers, and mean bits of the latter's codes."""

    file: int
    linear: int
    linear_bits: float


def recount(blueprint: Blueprint, bits: Mapping[str, int], group_size: Mapping[str, int] | None = None) -> Size:
    """`bits`: matrix name -> bits of its codes; matrices that are not in it stay float. `group_size`: matrix name -> weights of a
    row that share a scale, for those whose rows have several.

    Raises SpaceError for a name that is no matrix of the model, or a width that our packer does not have.
    """
    space = SearchSpace("recount", {kind: Rule(WIDTHS, 1) for kind in KINDS}, "row")
    whole = dataclasses.replace(blueprint, space=space)
    partitions = {p.matrix.name: p for p in whole.partitions}
    for name, width in bits.items():
        if name not in partitions or width not in WIDTHS:
            raise SpaceError(f"{name} at {width} bits cannot be packed: known widths are {', '.join(map(str, WIDTHS))}.")
    packed = tuple(p for name, p in partitions.items() if name in bits)
    rest = {name: shape for name, shape in blueprint.shapes.items() if name not in bits}
    model = ByteModel(packed, rest, "row", whole.byte_model.metadata)
    allocation = BitAllocation({name: (bits[name],) * partitions[name].groups for name in bits})
    groups = {name: -(-partitions[name].matrix.columns // size) for name, size in (group_size or {}).items()}
    more = {name: SCALE_BYTES * partitions[name].matrix.rows * (count - 1) for name, count in groups.items()}
    linear = [p for p in partitions.values() if p.matrix.layer is not None]
    left = sum(p.matrix.parameters * FLOAT_BITS // 8 for p in linear if p.matrix.name not in bits)
    weights = sum(p.matrix.parameters for p in linear)
    return Size(
        file=model.exact_bytes(allocation) + sum(more.values()),
        linear=model.exact_bytes(allocation, "encoder") + left + sum(more.get(p.matrix.name, 0) for p in linear),
        linear_bits=sum(_bits(p, bits) * p.matrix.parameters for p in linear) / weights,
    )


def _bits(partition: Partition, bits: Mapping[str, int]) -> int:
    return bits.get(partition.matrix.name, FLOAT_BITS)
