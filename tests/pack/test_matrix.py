import numpy as np
import pytest
import torch

from autoquant.core.errors import CheckpointError
from autoquant.core.subgroup import Matrix, Partition
from autoquant.pack.matrix import Layout, PackedMatrix, quantise
from autoquant.quantizers import QUANTIZERS

MIDRISE = QUANTIZERS["midrise"]
WEIGHT = torch.tensor([[1.0, -1.0, 3.0], [0.5, -0.5, 0.5], [9.0, 9.0, 9.0], [-0.5, -0.5, 0.5]])


def three_groups() -> Partition:
    return Partition(Matrix("w", 4, 3, "query"), (0, 1, 2), (2, 1, 1))


def test_hand_computed_rows() -> None:
    packed = quantise(WEIGHT, torch.tensor([2.0, 1.0, 7.0, 1.0]), three_groups(), (2, 0, 1), "row", MIDRISE)
    # row 0 at 2 bits, scale 2: 1 -> 2, -1 -> 1, 3 -> 3; row 1, scale 1: 2 1 2; row 2 pruned; row 3 at 1 bit: 0 0 1
    assert packed.codes.tolist() == [0b11_01_10, 0b10_01_10, 0b100]
    assert packed.scales.tolist() == [2.0, 1.0, 1.0]
    assert packed.layout.head.tolist() == [4, 0, 0, 0, 3, 0, 0, 0, 2, 0, 1]
    assert (packed.rows, packed.columns, packed.bits) == (4, 3, (2, 0, 1))
    assert packed.dequantise(MIDRISE).tolist() == [[1, -1, 3], [0.5, -0.5, 0.5], [0, 0, 0], [-0.5, -0.5, 0.5]]


def test_one_scale_per_subgroup() -> None:
    packed = quantise(WEIGHT, torch.tensor([1.0, 7.0, 1.0]), three_groups(), (2, 0, 1), "subgroup", MIDRISE)
    assert packed.scales.tolist() == [1.0, 1.0]
    assert packed.dequantise(MIDRISE)[0].tolist() == [1.5, -0.5, 1.5]  # ties go up


def test_buckets_interleave_widths() -> None:
    buckets = np.array([1, 0, 1, 2], dtype=np.uint8)
    partition = Partition(Matrix("w", 4, 3, "word_embedding"), (1, 2), (1, 2, 1), buckets)
    packed = quantise(WEIGHT, torch.ones(4), partition, (1, 2, 1), "row", MIDRISE)
    assert packed.layout.buckets is not None
    assert packed.layout.buckets.tolist() == [0b10_01_00_01]
    assert packed.layout.row_bits.tolist() == [2, 1, 2, 1]
    expected = [MIDRISE.fake_quantize(WEIGHT[i : i + 1], torch.ones(1), b)[0].tolist() for i, b in enumerate([2, 1, 2, 1])]
    assert packed.dequantise(MIDRISE).tolist() == expected


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 1e9, 0.1])
def test_refuses_a_scale_that_the_file_cannot_hold(scale: float) -> None:
    with pytest.raises(CheckpointError, match="float16"):
        quantise(WEIGHT, torch.tensor([scale, 1.0, 1.0, 1.0]), three_groups(), (2, 0, 1), "row", MIDRISE)


def test_the_scale_of_a_pruned_row_does_not_matter() -> None:
    quantise(WEIGHT, torch.tensor([1.0, 1.0, float("nan"), 1.0]), three_groups(), (2, 0, 1), "row", MIDRISE)


def test_refuses_what_does_not_fit() -> None:
    ones = torch.ones(4)
    with pytest.raises(CheckpointError, match=r"shape \[3, 3\]"):
        quantise(WEIGHT[:3], ones, three_groups(), (2, 0, 1), "row", MIDRISE)
    with pytest.raises(CheckpointError, match=r"\[4\] scales"):
        quantise(WEIGHT, ones, three_groups(), (2, 0, 1), "subgroup", MIDRISE)
    with pytest.raises(CheckpointError, match="not finite"):
        quantise(WEIGHT / 0, ones, three_groups(), (2, 0, 1), "row", MIDRISE)
    with pytest.raises(CheckpointError, match="uneven"):
        Layout.of(Partition(Matrix("w", 4, 3, "query"), (2,), (1, 3)), (2, 2), "row")


def layout(rows: int, columns: int, bits: list[int], buckets: list[int] | None = None) -> Layout:
    head = [*rows.to_bytes(4, "little"), *columns.to_bytes(4, "little"), *bits]
    index = None if buckets is None else torch.tensor(buckets, dtype=torch.uint8)
    return Layout(torch.tensor(head, dtype=torch.uint8), index, "row")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (layout(2, 2, []), "no sub-group"),
        (layout(0, 2, [2]), "no size"),
        (layout(2, 0, [2]), "no size"),
        (layout(2**32 - 1, 1, [0]), "no size"),
        (layout(2**20, 2**20, [0]), "no size"),
        (layout(2, 2, [5]), "5 bits"),
        (layout(2, 2, [2, 2, 2]), "3 sub-groups for 2 rows"),
        (layout(4, 2, [2, 2, 2], [0, 0]), "do not index"),
        (layout(4, 2, [2, 2, 2], [0b11]), "bucket 3 of 3"),
        (layout(2, 2, [2]), "2 bytes of codes and 1 scales"),
    ],
)
def test_checks_name_the_damage(broken: Layout, message: str) -> None:
    packed = PackedMatrix(torch.zeros(2, dtype=torch.uint8), torch.ones(1).half(), broken)
    with pytest.raises(CheckpointError, match=f"^w: .*{message}"):
        packed.check("w", MIDRISE)
