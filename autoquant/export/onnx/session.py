"""How is an exported file opened? As it is anywhere else, but for products that are exact on every CPU."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

# Where a CPU has no VNNI instructions, ONNX Runtime adds two products of an activation and a weight in 16 bits, which 8-bit
# weights overflow without a word; so told, it takes other instructions there, and the same everywhere else.
EXACT_PRODUCTS = ("session.x64quantprecision", "1")


def open_session(path: Path | str, threads: int = 0) -> onnxruntime.InferenceSession:
    """A session on the CPU; 0 threads leave the choice to the runtime, whose warnings are not shown."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    options.add_session_config_entry(*EXACT_PRODUCTS)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
