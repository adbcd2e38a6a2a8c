"""What a deployed model is held against: the full-precision teacher in ONNX Runtime, as floats and as its dynamic int8."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

from autoquant.backbones import BACKBONES
from autoquant.export.onnx.encoder import draw
from autoquant.export.onnx.model import read_classifier
from autoquant.export.onnx.weights import Dense


def write_float(model: nn.Module, path: Path, plain: bool = True) -> Path:
    """A transformers classifier as ONNX with float32 weights; `plain` as `draw` has it, False is the graph that we export."""
    config: Any = model.config
    state = {name: tensor.detach().float().cpu().numpy() for name, tensor in model.state_dict().items()}
    matrices = {name: Dense(array) for name, array in state.items() if array.ndim == 2}
    rest = {name: array for name, array in state.items() if array.ndim == 1}
    classifier = read_classifier(BACKBONES[config.model_type], config, matrices, rest)
    onnx.save(draw(classifier, "fp32", {}, plain), path)
    return path


def write_dynamic_int8(source: Path, path: Path) -> Path:
    """ONNX Runtime's dynamic quantisation of a float model: int8 weights per channel, embeddings as well."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises to preprocess models whose operators have no known shapes
    try:
        quantize_dynamic(
            source,
            path,
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
    finally:
        logger.setLevel(level)
    return path
