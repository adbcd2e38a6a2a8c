import numpy as np
import pytest
import torch

from autoquant.core.subgroup import Matrix, Partition, even_sizes
from autoquant.export.onnx.weights import Coded, Dense, Levels, stacked
from autoquant.pack.quantise import quantise
from autoquant.quantizers import QUANTIZERS

MIDRISE = QUANTIZERS["midrise"]


@pytest.mark.parametrize(
    ("bits", "codes", "integers"),
    [(1, [0, 1], [-1, 1]), (2, [0, 1, 2, 3], [-3, -1, 1, 3]), (4, [0, 8, 15], [-15, 1, 15]), (8, [0, 127, 254], [-127, 0, 127])],
)
def test_half_integers_are_doubled(bits: int, codes: list[int], integers: list[int]) -> None:
    assert Levels.of(MIDRISE, bits)(np.array(codes, np.uint8)).tolist() == integers


@pytest.mark.parametrize("scale", ["row", "subgroup"])
def test_values_are_those_of_the_packed_matrix(scale: str) -> None:
    partition = Partition(Matrix("w", 11, 5, "query", 0), (0, 1, 2, 3, 4, 8), even_sizes(11, 6))
    scales = torch.linspace(0.1, 0.3, 11 if scale == "row" else 6).half().float()
    packed = quantise(torch.randn(11, 5), scales, partition, (0, 1, 2, 3, 4, 8), scale, MIDRISE)
    coded = Coded.of(packed, MIDRISE)
    np.testing.assert_array_equal(coded.values, packed.dequantise(MIDRISE).numpy())
    assert coded.pruned.tolist() == [True, True] + [False] * 9
    rows, columns = np.array([9, 0, 4]), np.array([4, 1])
    np.testing.assert_array_equal(coded.rows_at(rows).columns_at(columns).values, coded.values[rows][:, columns])
    both = stacked([coded.rows_at(rows), coded])
    np.testing.assert_array_equal(both.values, np.concatenate([coded.values[rows], coded.values]))


def test_dense_matrices_do_the_same() -> None:
    dense = Dense(np.array([[1, 2], [0, 0], [3, 4]], np.float32))
    assert dense.pruned.tolist() == [False, True, False]
    assert dense.rows_at(np.array([2, 0])).columns_at(np.array([1])).values.tolist() == [[4], [2]]
    assert stacked([dense, dense]).shape == (6, 2)
