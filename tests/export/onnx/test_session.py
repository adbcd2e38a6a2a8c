"""Products of the largest weights and activations, on whatever CPU this is."""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from autoquant.export.onnx.graph import MICROSOFT
from autoquant.export.onnx.session import open_session


def test_products_of_8_bits_do_not_overflow(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(100, 128, (384, 64)).astype(np.int8)
    x = rng.integers(200, 256, (8, 384)).astype(np.float32)
    x[0, :2] = 0, 255  # a range of one a step: rounding changes nothing
    value = onnx.TensorProto.FLOAT
    product = helper.make_node("DynamicQuantizeMatMul", ["x", "weights", "scale"], ["y"], domain=MICROSOFT)
    constants = [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.float32([1]), "scale")]
    inputs, outputs = (helper.make_tensor_value_info(n, value, ["rows", k]) for n, k in (("x", 384), ("y", 64)))
    graph = helper.make_graph([product], "product", [inputs], [outputs], constants)
    sets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=8), tmp_path / "product.onnx")
    session = open_session(tmp_path / "product.onnx", threads=1)
    found = session.run(None, {"x": x})[0]
    np.testing.assert_allclose(found, x @ weights.astype(np.float32), rtol=1e-5)
    assert session.get_session_options().intra_op_num_threads == 1
