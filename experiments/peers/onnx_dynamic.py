"""ONNX Runtime's dynamic quantisation: int8 weights per channel, embeddings as well; what most people use today.

It has no widths to choose and looks at no data. The graph that it starts from is ours, with the runtime's fused operators.
"""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
from common import FACTS, INPUTS, OUTPUT, Stopwatch, arrays, finish, peak_mib
from onnxruntime.quantization import QuantType, quantize_dynamic

BATCH = 16


def main() -> None:
    target = OUTPUT / "model.onnx"
    with Stopwatch() as spent:
        quantize_dynamic(
            INPUTS / "teacher.onnx",
            target,
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
    peak = peak_mib()
    logits = predict(str(target))
    version = onnxruntime.__version__
    finish(
        "onnxruntime", version, quantised(onnx.load(target)), target.stat().st_size, spent.seconds, peak, logits, "int8, dynamic"
    )


def quantised(model: onnx.ModelProto) -> dict[str, int]:
    """Teacher's matrices that are stored as 8-bit integers."""
    small = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type in small}
    held = json.loads((INPUTS / "matrices.json").read_text("utf-8"))
    return {matrix: 8 for name, matrices in held.items() if f"{name}_quantized" in stored for matrix in matrices}


def predict(path: str) -> np.ndarray:
    """Logits [texts, classes] of the evaluation texts."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = FACTS["threads"], 3
    options.add_session_config_entry("session.x64quantprecision", "1")  # 8-bit weights overflow on CPUs without VNNI otherwise
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    texts, names = arrays("evaluation"), [node.name for node in session.get_inputs()]
    starts = range(0, len(texts["labels"]), BATCH)
    return np.concatenate([session.run(None, {n: texts[n][at : at + BATCH] for n in names})[0] for at in starts])


if __name__ == "__main__":
    main()
