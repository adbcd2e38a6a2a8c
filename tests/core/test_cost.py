import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import (
    CHECKSUM_CHARACTERS,
    ByteModel,
    SizeBudget,
    TensorEntry,
    bucket_bits,
    check_budget,
    choice_table,
    header_json,
)
from autoquant.core.errors import BudgetError
from autoquant.core.space import SUPPORTED_WIDTHS
from autoquant.core.storage import PLAIN, Storage, code_bytes
from autoquant.core.subgroup import Matrix, Partition, even_sizes, frequency_buckets

BUCKETS = np.array([1, 0, 2, 1, 0], dtype=np.uint8)
WORDS = Partition(Matrix("words", 5, 10, "word_embedding"), (1, 8), (2, 2, 1), BUCKETS)
QUERY = Partition(Matrix("query", 7, 10, "query", 0), (0, 2, 3), (4, 3))
STORAGES = [PLAIN, Storage(scales=2), Storage(codebook=True, outlier_every=1000), Storage(codebook=True, vectors=True)]
REST = {"bias": (7,), "norm": (2, 3)}
ALLOCATION = BitAllocation({"words": (8, 1, 1), "query": (3, 0)})


def model(scale: str = "row") -> ByteModel:
    return ByteModel((WORDS, QUERY), REST, scale, '{"sha256":""}')


@pytest.mark.parametrize(
    ("rows", "columns", "bits", "expected"),
    [(2, 384, 3, 288), (1, 9, 1, 2), (3, 10, 3, 12), (5, 7, 8, 35), (4, 10, 0, 0)],
)
def test_code_bytes(rows: int, columns: int, bits: int, expected: int) -> None:
    assert code_bytes(rows, columns, bits) == expected


def test_bucket_bits() -> None:
    assert [bucket_bits(groups) for groups in (1, 2, 3, 4, 5, 16, 17, 255)] == [0, 1, 2, 2, 3, 4, 5, 8]


def test_budgets() -> None:
    assert SizeBudget.mib(1.5).bytes == 1_572_864
    assert SizeBudget.ratio(15, 1000).bytes == 66
    assert SizeBudget.ratio(15, 1000, "encoder").count == "encoder"
    for wrong in (
        lambda: SizeBudget(0),
        lambda: SizeBudget.mib(-1),
        lambda: SizeBudget.ratio(1, 10),
        lambda: SizeBudget(1, "gpu"),
    ):
        with pytest.raises(BudgetError):
            wrong()


def test_header_offsets_and_metadata() -> None:
    entries = [TensorEntry("a", "F16", (2, 3)), TensorEntry("b", "U8", (5,))]
    assert json.loads(header_json(entries, '{"x":1}')) == {
        "__metadata__": {"format": "pt", "autoquant": '{"x":1}'},
        "a": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]},
        "b": {"dtype": "U8", "shape": [5], "data_offsets": [12, 17]},
    }


def test_choices_and_layouts_by_hand() -> None:
    rows, groups = model("row"), model("subgroup")
    # 4 and 3 rows of 10 columns: 3 bytes a row at 2 bits, 4 at 3 bits; a 2-byte scale per row, or per sub-group
    assert rows.choice_bytes(QUERY, 0).tolist() == [0, 0]
    assert rows.choice_bytes(QUERY, 2).tolist() == [4 * (3 + 2), 3 * (3 + 2)]
    assert groups.choice_bytes(QUERY, 3).tolist() == [4 * 4 + 2, 3 * 4 + 2]
    # 8 bytes of shape and a byte a sub-group; the words add 5 rows x 2 bits of bucket index = 2 bytes
    assert rows.layout_bytes(QUERY) == 8 + 2
    assert rows.layout_bytes(WORDS) == 8 + 3 + 2


def test_codebooks_and_outliers_by_hand() -> None:
    numbers = replace(model("subgroup"), storage=Storage(codebook=True, outlier_every=10))
    # 4 and 3 rows of 10 columns at 2 bits: 3 bytes a row, 4 centroids, 4 and 3 outliers of 2 bytes with a byte of position
    assert numbers.choice_bytes(QUERY, 2).tolist() == [4 * 3 + 4 * 2 + 4 * 3, 3 * 3 + 4 * 2 + 3 * 3]
    assert numbers.choice_bytes(QUERY, 0).tolist() == [0, 0]
    counted = {entry.name: entry.bytes for entry in numbers.entries(ALLOCATION)}
    assert (counted["query_outliers"], counted["query_positions"], counted["query_scales"]) == (4 * 2, 4, 8 * 2)
    vectors = replace(model("subgroup"), storage=Storage(codebook=True, vectors=True))
    # three blocks of four a row, the last not full, a byte each, and 256 centroids of four numbers
    assert vectors.choice_bytes(QUERY, 2).tolist() == [4 * 3 + 2048, 3 * 3 + 2048]
    # narrower is larger here, and the header has room for the largest
    assert vectors.choice_bytes(QUERY, 3).tolist() == [4 * 4 + 256, 3 * 4 + 256]


def test_breakdown_by_hand() -> None:
    parts = model().breakdown(ALLOCATION)
    # words: 2 rows x 10 bytes + 3 rows x 2 bytes, 5 scales; query: 4 rows x 4 bytes, 4 scales
    assert parts == {
        "word_embedding": 2 * 10 + 3 * 2 + 5 * 2,
        "query": 4 * 4 + 4 * 2,
        "layout": 13 + 10,
        "rest": 2 * (7 + 6),
        "header": model().header_bytes,
    }
    assert model().exact_bytes(ALLOCATION) == sum(parts.values())
    assert model().breakdown(ALLOCATION, "encoder") == {"query": 24}
    assert model().breakdown(ALLOCATION, "codes") == {"query": 4 * 4}
    assert model("subgroup").breakdown(ALLOCATION)["word_embedding"] == 26 + 3 * 2


def test_entries_are_contiguous_and_aligned() -> None:
    entries = model().entries(ALLOCATION)
    kinds = [entry.dtype for entry in entries]
    assert kinds == ["F16"] * 4 + ["U8"] * 5
    assert [entry.name for entry in entries if entry.dtype == "F16"] == ["bias", "norm", "query_scales", "words_scales"]
    counted = {entry.name: entry.bytes for entry in entries}
    assert counted["words_codes"] == 26
    assert counted["words_buckets"] == 2
    assert counted["query_scales"] == 8
    assert sum(counted.values()) + model().header_bytes == model().exact_bytes(ALLOCATION)


@st.composite
def byte_models(draw: st.DrawFn) -> ByteModel:
    partitions = []
    for index in range(draw(st.integers(1, 4))):
        rows, groups = draw(st.integers(1, 3000)), draw(st.integers(1, 20))
        matrix = Matrix(f"m{index}", rows, draw(st.integers(1, 800)), "query", draw(st.sampled_from([None, 0])))
        if draw(st.booleans()):
            buckets, sizes = frequency_buckets(np.arange(rows), groups)
            partitions.append(Partition(matrix, SUPPORTED_WIDTHS, sizes, buckets))
        else:
            partitions.append(Partition(matrix, SUPPORTED_WIDTHS, even_sizes(rows, groups)))
    scale, storage = draw(st.sampled_from(["row", "subgroup"])), draw(st.sampled_from(STORAGES))
    return ByteModel(tuple(partitions), REST, scale, '{"sha256":""}', storage=storage)


@given(model=byte_models(), seed=st.integers(0, 2**31))
def test_table_entries_and_breakdown_agree_for_every_allocation(model: ByteModel, seed: int) -> None:
    table = choice_table(model)
    choice = np.random.default_rng(seed).integers(0, len(table.widths), len(table))
    allocation = table.to_allocation(choice)
    assert table.to_choice(allocation).tolist() == choice.tolist()
    assert table.total(choice) == model.exact_bytes(allocation)
    data = sum(entry.bytes for entry in model.entries(allocation))
    assert model.header_bytes + data == model.exact_bytes(allocation)
    assert table.smallest() <= model.exact_bytes(allocation) <= table.largest()
    header = header_json(model.entries(allocation), model.metadata)
    assert 8 + len(header) + CHECKSUM_CHARACTERS <= model.header_bytes
    encoder = choice_table(model, "encoder")
    assert encoder.total(choice) == model.exact_bytes(allocation, "encoder")


@given(model=byte_models())
def test_wider_never_weighs_less_but_for_codebooks_of_vectors(model: ByteModel) -> None:
    assume(not model.storage.vectors)
    assert (np.diff(choice_table(model).bytes, axis=1) >= 0).all()


def test_table_by_hand() -> None:
    table = choice_table(model())
    assert table.widths == (0, 1, 2, 3, 8)
    assert table.slices() == {"words": slice(0, 3), "query": slice(3, 5)}
    assert table.allowed.tolist() == [[False, True, False, False, True]] * 3 + [[True, False, True, True, False]] * 2
    assert table.parameters.tolist() == [20, 20, 10, 40, 30]
    # words at 1 bit: 5 rows x (2 + 2) bytes; query pruned
    assert table.smallest() == table.fixed + 20
    # words at 8 bits: 5 rows x (10 + 2); query at 3 bits: 7 rows x (4 + 2)
    assert table.largest() == table.fixed + 60 + 42
    assert table.fixed == model().fixed_bytes == model().header_bytes + 23 + 26
    encoder = choice_table(model(), "encoder")
    assert encoder.fixed == 0
    assert encoder.largest() == 42
    # words do not count: they are as wide as can be
    assert encoder.allowed.tolist() == [[False, False, False, False, True]] * 3 + [[True, False, True, True, False]] * 2
    codes = choice_table(model(), "codes")  # the same without a scale of 2 bytes a row
    assert codes.fixed == 0
    assert codes.largest() == 42 - 7 * 2


def test_budgets_out_of_reach_say_what_fills_them() -> None:
    table = choice_table(model())
    with pytest.raises(BudgetError, match=r"below the smallest allocation.*header.*raise the budget") as caught:
        check_budget(SizeBudget(table.smallest() - 1), table, 10_000, model())
    assert "\n" not in str(caught.value)
    with pytest.raises(BudgetError, match="not below full precision"):
        check_budget(SizeBudget(10_000), table, 10_000, model())
    check_budget(SizeBudget(table.smallest()), table, 10_000, model())
