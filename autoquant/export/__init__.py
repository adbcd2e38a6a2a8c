"""What leaves a run besides the packed file? One file or folder a format; the table drives the contract tests."""

from autoquant.export.base import Exporter
from autoquant.export.onnx.exporter import OnnxExporter

EXPORTERS: dict[str, Exporter] = {
    "onnx-int8": OnnxExporter("int8", "model.onnx"),
    "onnx-fp32": OnnxExporter("fp32", "model_fp32.onnx"),
}

__all__ = ["EXPORTERS", "Exporter"]
