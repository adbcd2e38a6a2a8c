import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from autoquant.export.onnx.graph import FLOAT, INT8, INT64, Graph
from autoquant.export.onnx.store import look_up_rows, unpack_matrices, values_by_row
from autoquant.export.onnx.weights import Coded
from autoquant.quantizers import QUANTIZERS

MIDRISE = QUANTIZERS["midrise"]
WIDTHS = [0, 1, 2, 3, 4, 8]


def coded(widths: list[int], columns: int, seed: int = 0) -> Coded:
    draw = np.random.default_rng(seed)
    most = [2 * MIDRISE.grid(bits).limit if bits else 0 for bits in widths]
    codes = draw.integers(0, np.array(most, int)[:, None] + 1, (len(widths), columns)).astype(np.uint8)
    steps = np.where(np.array(widths) > 0, draw.uniform(0.01, 1, len(widths)), 0).astype(np.float16).astype(np.float32)
    return Coded(codes, np.array(widths, np.uint8), steps, MIDRISE)


def run(graph: Graph, name: str, kind: int, rank: int, feed: dict[str, np.ndarray]) -> np.ndarray:
    graph.rename(name, "out")
    inputs = [helper.make_tensor_value_info(key, INT64, [None] * value.ndim) for key, value in feed.items()]
    model = graph.finish(inputs, [helper.make_tensor_value_info("out", kind, [None] * rank)], "test", {})
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed)[0]


@settings(deadline=None, max_examples=40)
@given(
    shapes=st.lists(
        st.tuples(st.lists(st.sampled_from(WIDTHS), min_size=1, max_size=9), st.integers(1, 19)), min_size=1, max_size=4
    )
)
def test_matrices_come_out_as_they_went_in(shapes: list[tuple[list[int], int]]) -> None:
    """Of every width and ragged shape, several of them with the same or another number of columns."""
    matrices = [coded(widths, columns, seed) for seed, (widths, columns) in enumerate(shapes)]
    for index, matrix in enumerate(matrices):
        graph = Graph()
        np.testing.assert_array_equal(run(graph, unpack_matrices(graph, matrices)[index], INT8, 2, {}), matrix.integers)


@settings(deadline=None, max_examples=40)
@given(widths=st.lists(st.sampled_from(WIDTHS), min_size=1, max_size=20), columns=st.integers(1, 19))
def test_rows_are_looked_up_exactly(widths: list[int], columns: int) -> None:
    """Of tables whose rows are all pruned, too."""
    table, ids = coded(widths, columns), np.random.default_rng(1).integers(0, len(widths), (3, 4))
    graph = Graph()
    found = run(graph, look_up_rows(graph, table, "ids"), FLOAT, 3, {"ids": ids})
    np.testing.assert_array_equal(found, table.values[ids])


@pytest.mark.parametrize("different", [1, 2, 3, 16, 17, 256, 257])
def test_vectors_of_few_or_many_values(different: int) -> None:
    values = np.random.default_rng(0).permutation(np.arange(300) % different).astype(np.float32) / 3
    graph = Graph()
    np.testing.assert_array_equal(run(graph, values_by_row(graph, values), FLOAT, 1, {}), values)


@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_take_their_true_width(bits: int) -> None:
    """One row more of 9,600 columns costs 1,200 bytes a bit; beside it, a few constants may be new or shared."""
    sizes = []
    for count in (1, 2):
        graph = Graph()
        unpack_matrices(graph, [coded([*WIDTHS, *[bits] * count], 9600)])
        sizes.append(len(graph.finish([], [], "test", {}).SerializeToString()))
    assert abs(sizes[1] - sizes[0] - 1200 * bits) < 100
