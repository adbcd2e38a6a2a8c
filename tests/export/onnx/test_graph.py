import numpy as np
import onnx
from onnx import numpy_helper

from autoquant.export.onnx.graph import Graph


def finished(graph: Graph) -> onnx.ModelProto:
    return graph.finish([], [], "test", {"key": "value"})


def test_equal_constants_are_stored_once() -> None:
    graph = Graph()
    one, same = graph.constant(np.arange(3)), graph.constant(np.arange(3))
    other_type, other_shape = graph.constant(np.arange(3.0)), graph.constant(np.arange(3)[None])
    assert one == same
    assert len({one, other_type, other_shape}) == 3
    assert len(finished(graph).graph.initializer) == 3


def test_scalars_stay_scalars() -> None:
    graph = Graph()
    graph.constant(np.array(7))
    assert list(finished(graph).graph.initializer[0].dims) == []


def test_floats_take_two_bytes_where_that_is_exact() -> None:
    for values, stored in (([0.5, -3.0], np.float16), ([0.1, -3.0], np.float32), ([1e6, 1.0], np.float32)):
        graph = Graph()
        graph.floats(np.array(values, np.float32))
        model = finished(graph)
        assert numpy_helper.to_array(model.graph.initializer[0]).dtype == stored
        assert [node.op_type for node in model.graph.node] == (["Cast"] if stored == np.float16 else [])


def test_a_model_says_what_it_is() -> None:
    model = finished(Graph())
    assert {entry.key: entry.value for entry in model.metadata_props} == {"key": "value"}
    assert model.producer_name == "autoquant"
