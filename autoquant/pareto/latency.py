"""How fast is the file that is deployed? One text after the other through the exported ONNX file."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from autoquant.core.files import disk_errors
from autoquant.export import EXPORTERS
from autoquant.export.base import Runner
from autoquant.training.batches import Encoded

FORMAT = "onnx-int8"
TEXTS, ROUNDS, WARM_UP = 32, 5, 8


def latency_ms(folder: Path, texts: Encoded, threads: int = 0) -> float:
    """Export a packed folder and time it: the median over texts of their best of a few rounds, in milliseconds a text.

    `texts`: encoded texts, of which the first are used, one at a time as a service gets them. The best of a text's rounds leaves
    out what else the machine was doing. Raises ModelError if the export's packages are missing.
    """
    exporter = EXPORTERS[FORMAT]
    exporter.check()
    batches = [_inputs(texts, row) for row in range(min(TEXTS, len(texts)))]
    with tempfile.TemporaryDirectory(prefix="autoquant-latency-") as temporary:
        copy = Path(temporary) / "model"  # a file that nobody recorded has no place in the folder itself
        with disk_errors(copy):
            shutil.copytree(folder, copy)
        return _milliseconds(exporter.open(exporter.export(copy), threads), batches)


def _milliseconds(run: Runner, batches: Sequence[Mapping[str, np.ndarray]]) -> float:
    for batch in batches[:WARM_UP]:
        run(batch)
    seconds = np.full((len(batches), ROUNDS), np.inf)
    for turn in range(ROUNDS):
        for row, batch in enumerate(batches):
            began = time.perf_counter()
            run(batch)
            seconds[row, turn] = time.perf_counter() - began
    return 1000 * float(np.median(seconds.min(axis=1)))


def _inputs(texts: Encoded, row: int) -> dict[str, np.ndarray]:
    batch = texts.collate([row])
    batch.pop("labels")
    return {name: tensor.numpy() for name, tensor in batch.items()}
