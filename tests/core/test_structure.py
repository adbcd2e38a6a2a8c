"""Units: which rows and columns go, what stays, and what the smaller model weighs."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import ByteModel, choice_table
from autoquant.core.derive import weigh
from autoquant.core.errors import CheckpointError
from autoquant.core.structure import Structure, Unit, find_units, kept_columns, kept_rows, pick_units, prune_partition
from autoquant.core.subgroup import Matrix, Partition, even_sizes

HEADS, BLOCKS, WIDE, NARROW = 4, 3, 24, 32
LAYER = {
    "query": (NARROW, NARROW),
    "key": (NARROW, NARROW),
    "value": (NARROW, NARROW),
    "attention_output": (NARROW, NARROW),
    "ffn_in": (WIDE, NARROW),
    "ffn_out": (NARROW, WIDE),
}


def make_model(groups: int = HEADS, scale: str = "row", layers: int = 2) -> ByteModel:
    """Two layers of 4 heads of 8 rows and 3 blocks of 8 neurons, with biases."""
    matrices = [Matrix(f"{i}.{k}.weight", *size, k, i) for i in range(layers) for k, size in LAYER.items()]
    partitions = tuple(Partition(m, (0, 1, 2, 4, 8), even_sizes(m.rows, groups)) for m in matrices)
    rest = {f"{i}.{k}.bias": (size[0],) for i in range(layers) for k, size in LAYER.items()}
    return ByteModel(partitions, rest, scale, "{}", find_units(matrices, HEADS, BLOCKS))


MODEL = make_model()
NAMES = [unit.name for unit in MODEL.units]


def draw_allocation(model: ByteModel, seed: int, removed: Sequence[str]) -> BitAllocation:
    draw = np.random.default_rng(seed)
    parts = model.without(removed).partitions
    return BitAllocation(
        {p.matrix.name: tuple(int(b) for b in draw.choice(p.widths, p.groups)) for p in parts}, tuple(sorted(removed))
    )


def test_units_by_hand() -> None:
    assert len(MODEL.units) == 2 * (HEADS + BLOCKS)
    assert Unit(0, "head", 1, 8, 16) in MODEL.units
    assert Unit(1, "ffn", 2, 16, 24) in MODEL.units
    assert Unit(1, "ffn", 2, 16, 24).name == "1.ffn.2"


def test_rows_and_columns_of_a_unit_by_hand() -> None:
    head, block = Unit(0, "head", 1, 8, 16), Unit(0, "ffn", 0, 0, 8)
    by_kind = {p.matrix.kind: p.matrix for p in MODEL.partitions if p.matrix.layer == 0}
    gone = [head, block]
    for kind in ("query", "key", "value"):
        assert np.flatnonzero(~kept_rows(by_kind[kind], gone)).tolist() == list(range(8, 16))
        assert kept_columns(by_kind[kind], gone).all()
    assert np.flatnonzero(~kept_columns(by_kind["attention_output"], gone)).tolist() == list(range(8, 16))
    assert kept_rows(by_kind["attention_output"], gone).all()
    assert np.flatnonzero(~kept_rows(by_kind["ffn_in"], gone)).tolist() == list(range(8))
    assert np.flatnonzero(~kept_columns(by_kind["ffn_out"], gone)).tolist() == list(range(8))
    other = next(p.matrix for p in MODEL.partitions if p.matrix.layer == 1)
    assert kept_rows(other, gone).all()


def test_a_partition_loses_the_sub_groups_of_its_units() -> None:
    query = Partition(Matrix("q", 16, 10, "query", 0), (0, 2), (4, 4, 4, 4))
    smaller = prune_partition(query, [Unit(0, "head", 1, 4, 8)])
    assert (smaller.matrix.rows, smaller.matrix.columns, smaller.sizes) == (12, 10, (4, 4, 4))
    assert prune_partition(query, [Unit(1, "head", 1, 4, 8)]) is query


@pytest.mark.parametrize("groups", [5, 6])  # three quarters of them are 3.75 and 4.5
def test_sub_groups_that_straddle_heads_are_cut_again_evenly(groups: int) -> None:
    query = Partition(Matrix("q", 16, 10, "query", 0), (0, 2), even_sizes(16, groups))
    assert prune_partition(query, [Unit(0, "head", 0, 0, 4)]).sizes == even_sizes(12, 4)


def test_bytes_of_the_smaller_model_by_hand() -> None:
    """One head less: 24 rows of codes and scales, 24 bias values, 3 layout bytes, and 8 columns of 32 rows of codes."""
    bits = {p.matrix.name: (2,) * p.groups for p in MODEL.partitions}
    whole = MODEL.exact_bytes(BitAllocation(bits))
    smaller = MODEL.without(["0.head.1"])
    less = {p.matrix.name: (2,) * p.groups for p in smaller.partitions}
    gone = MODEL.exact_bytes(BitAllocation(less, ("0.head.1",)))
    header = MODEL.header_bytes - smaller.header_bytes
    rows = 3 * 8 * (32 * 2 // 8 + 2)
    assert whole - gone == rows + 24 * 2 + 3 + 32 * (8 * 2 // 8) + header
    assert 0 <= header < 64


@given(st.sets(st.sampled_from(NAMES)), st.integers(0, 99), st.sampled_from(["row", "subgroup"]))
def test_weighing_agrees_with_the_file_but_for_its_header(removed: set[str], seed: int, scale: str) -> None:
    """Three sub-groups to a matrix of the FFN and four elsewhere: units are whole sub-groups."""
    model = make_model(scale=scale)
    groups = {p.matrix.name: 3 if "ffn" in p.matrix.kind else 4 for p in model.partitions}
    parts = (Partition(p.matrix, p.widths, even_sizes(p.matrix.rows, groups[p.matrix.name])) for p in model.partitions)
    model = dataclasses.replace(model, partitions=tuple(parts))
    spared = _spare(removed)
    units = [unit for unit in model.units if unit.name in spared]
    table = choice_table(model)
    assert table.removable is not None
    smaller = table.removable.table_without(units)
    allocation = draw_allocation(model, seed, sorted(spared))
    choice = np.zeros(len(table), dtype=np.int64)  # what removed sub-groups hold does not matter
    choice[table.origins(smaller, units)] = smaller.to_choice(allocation)
    header = model.header_bytes - model.without(spared).header_bytes
    gone = np.array([unit.name in spared for unit in model.units])
    assert weigh(table, choice, gone) - header == pytest.approx(model.exact_bytes(allocation))


def _spare(removed: set[str]) -> set[str]:
    """Leave one of a kind in every layer."""
    spared = set(removed)
    for layer in range(2):
        for kind, count in (("head", HEADS), ("ffn", BLOCKS)):
            if all(f"{layer}.{kind}.{i}" in spared for i in range(count)):
                spared.discard(f"{layer}.{kind}.0")
    return spared


def test_shares_add_up() -> None:
    structure = Structure.of(make_model(6).partitions, MODEL.units)
    rows, columns = structure.kept(np.zeros(len(MODEL.units)))
    kinds = [p.matrix.kind for p in make_model(6).partitions for _ in range(p.groups)]
    for kind, left, across in zip(kinds, rows, columns, strict=True):
        assert left == pytest.approx(0.0 if kind in ("query", "key", "value", "ffn_in") else 1.0)
        assert across == pytest.approx(0.0 if kind in ("attention_output", "ffn_out") else 1.0)


def test_one_unit_of_a_kind_is_spared() -> None:
    structure = Structure.of(MODEL.partitions, MODEL.units)
    gain = np.arange(len(MODEL.units), dtype=float)
    removed = structure.spare_one(np.ones(len(MODEL.units), dtype=bool), gain)
    stays = [unit.name for unit, out in zip(MODEL.units, removed, strict=True) if not out]
    assert stays == ["0.ffn.0", "0.head.0", "1.ffn.0", "1.head.0"]
    some = np.array([unit.index > 0 for unit in MODEL.units])
    assert (structure.spare_one(some, gain) == some).all()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["7.head.0"], "no removable unit 7.head.0"),
        ([f"0.head.{i}" for i in range(HEADS)], "Layer 0 would lose all of its 4 units 'head'"),
    ],
)
def test_what_cannot_be_removed_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        pick_units(MODEL.units, names)


def test_row_bits_and_differences_are_those_of_the_whole_matrices() -> None:
    removed = draw_allocation(MODEL, 0, ["0.head.1"])
    bits = MODEL.row_bits(removed)
    assert all(len(bits[p.matrix.name]) == p.matrix.rows for p in MODEL.partitions)
    assert bits["0.query.weight"][8:16].tolist() == [0] * 8
    zeros = BitAllocation({name: tuple(int(b) for b in bits[name][:: len(bits[name]) // HEADS]) for name in bits})
    assert MODEL.share_different(removed, zeros) == 0
    other = dict(zeros.bits)
    other["0.query.weight"] = tuple(8 if b != 8 else 4 for b in other["0.query.weight"])
    assert MODEL.share_different(removed, BitAllocation(other)) == pytest.approx(HEADS / (12 * HEADS))


def test_bits_a_weight_count_what_is_gone_as_nothing() -> None:
    all_two = BitAllocation({p.matrix.name: (2,) * p.groups for p in MODEL.partitions})
    assert MODEL.encoder_bits(all_two) == pytest.approx(2.0)
    smaller = MODEL.without(["0.head.1"])
    gone = BitAllocation({p.matrix.name: (2,) * p.groups for p in smaller.partitions}, ("0.head.1",))
    weights = sum(p.matrix.parameters for p in MODEL.partitions)
    assert MODEL.encoder_bits(gone) == pytest.approx(2.0 * (1 - 4 * 8 * NARROW / weights))


def test_bits_a_weight_are_those_of_the_encoder() -> None:
    words = Partition(Matrix("words.weight", 50, NARROW, "word_embedding"), (8,), (50,))
    model = dataclasses.replace(MODEL, partitions=(words, *MODEL.partitions))
    bits = {p.matrix.name: (2,) * p.groups for p in MODEL.partitions} | {"words.weight": (8,)}
    assert model.encoder_bits(BitAllocation(bits)) == pytest.approx(2.0)
