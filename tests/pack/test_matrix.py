from dataclasses import replace

import numpy as np
import pytest
import torch

from autoquant.core.errors import CheckpointError
from autoquant.core.subgroup import Matrix, Partition
from autoquant.pack.matrix import Layout, PackedMatrix
from autoquant.pack.quantise import quantise
from autoquant.quantizers import QUANTIZERS

MIDRISE = QUANTIZERS["midrise"]
WEIGHT = torch.tensor([[1.0, -1.0, 3.0], [0.5, -0.5, 0.5], [9.0, 9.0, 9.0], [-0.5, -0.5, 0.5]])


def three_groups() -> Partition:
    return Partition(Matrix("w", 4, 3, "query"), (0, 1, 2), (2, 1, 1))


def layout(rows: int, columns: int, bits: list[int], buckets: list[int] | None = None) -> Layout:
    head = [*rows.to_bytes(4, "little"), *columns.to_bytes(4, "little"), *bits]
    index = None if buckets is None else torch.tensor(buckets, dtype=torch.uint8)
    return Layout(torch.tensor(head, dtype=torch.uint8), index, "row")


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
    with pytest.raises(CheckpointError, match=r"\[4\] scales, expected \[3\]"):
        quantise(WEIGHT, ones, three_groups(), (2, 0, 1), "subgroup", MIDRISE)
    with pytest.raises(CheckpointError, match="not finite"):
        quantise(WEIGHT / 0, ones, three_groups(), (2, 0, 1), "row", MIDRISE)
    with pytest.raises(CheckpointError, match="uneven"):
        Layout.of(Partition(Matrix("w", 4, 3, "query"), (2,), (1, 3)), (2, 2), "row")


# Codebooks ------------------------------------------------------------------------------------------------------------

GOBO = QUANTIZERS["gobo"]


def two_groups() -> Partition:
    return Partition(Matrix("w", 4, 500, "query"), (0, 1, 2), (2, 2))


def coded() -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of the first sub-group are -1 or 2, of the second 0; one outlier in the first; and the codebooks."""
    weight = torch.zeros(4, 500)
    weight[:2] = torch.tensor([-1.0, 2.0]).repeat(2, 250)
    weight[1, 3] = 77.0
    return weight, torch.tensor([[-1.0, 2.0, 0.0, 0.0], [9.0, 0.0, 5.0, 6.0]])


def test_a_codebook_by_hand() -> None:
    weight, codebooks = coded()
    packed = quantise(weight, codebooks, two_groups(), (1, 2), "subgroup", GOBO)
    # -1 2 -1 2 ... are the bits 0 1 0 1 ... from the lowest on, to whole bytes; the zeros of the second are code 1 of 0 to 3
    assert packed.codes.tolist() == [0b10101010] * 62 + [0b1010] + [0b10101010] * 62 + [0b1010] + [0b01010101] * 250
    assert packed.scales.tolist() == [-1.0, 2.0, 9.0, 0.0, 5.0, 6.0]
    # a thousand weights a sub-group, so an outlier each; the second has none, and the first place of all takes its room
    assert packed.outliers is not None
    assert packed.positions is not None
    assert packed.outliers.tolist() == [-1.0, 77.0]
    assert packed.positions.tolist() == [0, 0, 503 & 255, 503 >> 8]
    assert torch.equal(packed.dequantise(GOBO), weight)
    rows = torch.tensor([1, 3, 1, 0])
    assert torch.equal(packed.dequantise(GOBO, rows), weight[rows])
    packed.check("w", GOBO)


def test_a_pruned_sub_group_has_no_codebook_and_no_outlier() -> None:
    weight, codebooks = coded()
    packed = quantise(weight, codebooks, two_groups(), (0, 2), "subgroup", GOBO)
    assert packed.scales.tolist() == [9.0, 0.0, 5.0, 6.0]
    assert packed.places.tolist() == [1000]
    assert not packed.dequantise(GOBO).any()


def test_vectors_by_hand() -> None:
    codebook = torch.full((1, 1024), 7.0)
    codebook[0, 4:12] = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 0.0, 0.0])
    partition = Partition(Matrix("w", 1, 5, "query"), (2,), (1,))
    packed = quantise(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]), codebook, partition, (2,), "subgroup", QUANTIZERS["pq"])
    assert packed.codes.tolist() == [1, 2]
    assert len(packed.scales) == 1024
    assert set(packed.parts()) == {"codes", "scales", "layout"}
    assert packed.dequantise(QUANTIZERS["pq"]).tolist() == [[1.0, 2.0, 3.0, 4.0, 5.0]]


def test_refuses_codebooks_that_do_not_fit() -> None:
    weight, codebooks = coded()
    three_off = weight.clone()
    three_off[:2, 9] = 0.5
    refused = {
        "3 weights are no centroids, 2 outliers can be stored": (three_off, codebooks),
        "an outlier is not a float16": (weight.masked_fill(weight == 77.0, 0.1), codebooks),
        "a centroid is not a float16": (weight, codebooks + 0.1),
        "expected one a sub-group": (weight, codebooks[:1]),
        "not finite": (weight / 0, codebooks),
    }
    for message, (broken, numbers) in refused.items():
        with pytest.raises(CheckpointError, match=message):
            quantise(broken, numbers, two_groups(), (1, 2), "subgroup", GOBO)
    with pytest.raises(CheckpointError, match="expected one a sub-group"):
        quantise(weight, codebooks, two_groups(), (1, 2), "row", GOBO)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outliers": torch.ones(1).half()}, "1 outliers with 4 bytes"),
        ({"positions": torch.zeros(2, dtype=torch.uint8)}, "2 outliers with 2 bytes"),
        ({"positions": torch.tensor([5, 0, 4, 0], dtype=torch.uint8)}, "in no order"),
        ({"positions": torch.tensor([5, 0, 5, 0], dtype=torch.uint8)}, "in no order"),
        ({"positions": torch.tensor([5, 0, 208, 7], dtype=torch.uint8)}, "where no weight is"),  # 2,000 of 0 to 1,999
        ({"outliers": torch.tensor([1.0, float("inf")]).half()}, "not finite"),
        ({"scales": torch.full((6,), float("nan")).half()}, "not finite"),
        ({"scales": torch.ones(5).half()}, "376 bytes of codes and 5 scales"),
    ],
)
def test_checks_name_what_is_wrong_with_codebooks(changes: dict[str, torch.Tensor], message: str) -> None:
    packed = replace(quantise(*coded(), two_groups(), (1, 2), "subgroup", GOBO), **changes)
    with pytest.raises(CheckpointError, match=f"^w: .*({message})"):
        packed.check("w", GOBO)


def test_no_outlier_lies_in_a_pruned_row() -> None:
    packed = quantise(*coded(), two_groups(), (0, 2), "subgroup", GOBO)
    with pytest.raises(CheckpointError, match="where no weight is"):
        replace(packed, positions=torch.tensor([5, 0], dtype=torch.uint8)).check("w", GOBO)


def test_a_width_that_the_quantizer_lacks() -> None:
    packed = quantise(WEIGHT, torch.ones(4), three_groups(), (2, 0, 1), "row", MIDRISE)
    with pytest.raises(CheckpointError, match="1 bits, which quantizer twn does not have"):
        packed.check("w", QUANTIZERS["twn"])


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
