"""Packed folder -> one .onnx file, and a session that runs it. Needs the packages onnx and onnxruntime."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from autoquant.core.errors import ModelError
from autoquant.core.files import atomic_write_bytes
from autoquant.export.base import Runner

PACKAGES = ("onnx", "onnxruntime")


@dataclass(frozen=True)
class OnnxExporter:
    """`tail` int8: 8-bit activations and integer products, as fast as the runtime can; fp32: exact."""

    tail: str
    file_name: str

    @property
    def activation_bits(self) -> int:
        return 8 if self.tail == "int8" else 32

    def check(self) -> None:
        missing = [name for name in PACKAGES if find_spec(name) is None]
        if missing:
            raise ModelError(f"The ONNX export needs {' and '.join(missing)}: python -m pip install {' '.join(missing)}")

    def export(self, folder: Path) -> Path:
        self.check()
        from autoquant.export.onnx.encoder import draw
        from autoquant.export.onnx.model import read_folder

        model, metadata = read_folder(folder)
        graph = draw(model, self.tail, {"autoquant": json.dumps({**metadata, "tail": self.tail}, sort_keys=True)})
        atomic_write_bytes(folder / self.file_name, graph.SerializeToString(deterministic=True))
        return folder / self.file_name

    def open(self, path: Path, threads: int = 0) -> Runner:
        self.check()
        from autoquant.export.onnx.session import open_session

        try:
            session = open_session(path, threads)
        except Exception as error:  # its kinds are as many as its reasons
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"ONNX Runtime cannot load {path} ({reason}): export it again.") from error
        names = [node.name for node in session.get_inputs()]

        def run(batch: Mapping[str, np.ndarray]) -> np.ndarray:
            return session.run(["logits"], {name: batch[name] for name in names})[0]

        return run
