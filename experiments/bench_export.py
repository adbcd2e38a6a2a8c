"""What do finer sub-groups cost at run time? Allocations of the ablation, packed, exported and timed in turns, in one process.

    python experiments/bench_export.py --data-dir glue --teacher DIR
    python experiments/bench_export.py --data-dir glue --teacher DIR --rows dnas structure --ratio 15

Nothing is trained: a file's speed is that of its widths, whatever its weights (the teacher's). What is pruned as a whole leaves
the exported graph, a value head or a neuron; so files of one size differ in how much is left to multiply. One thread; times are
medians of rounds, and `relative` the median over rounds of a time over the first row's. Measured: results/bench/export.json;
`python experiments/tables.py` makes the table.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ablation
import numpy as np
import tyro
from ablation_rows import ROWS
from transformers import AutoConfig

from autoquant import method
from autoquant.bench import random_workloads, times_in_turns
from autoquant.core.allocation import BitAllocation
from autoquant.core.files import atomic_write_text, file_sha256
from autoquant.core.settings import Recipe, from_mapping
from autoquant.core.versions import versions
from autoquant.export import EXPORTERS
from autoquant.export.onnx.encoder import ACTIVATIONS
from autoquant.export.onnx.fold import without_pruned
from autoquant.export.onnx.model import Classifier, read_folder

RESULTS = Path(__file__).parent / "results" / "bench" / "export.json"
EXPORTER = EXPORTERS["onnx-int8"]
MATRICES = ("query", "key", "value", "attention_output", "ffn_in", "ffn_out")  # of a layer


@dataclass(frozen=True)
class Options:
    """What to time."""

    data_dir: Path
    teacher: Path
    """That of the cells, which lie in results/ablation/<start of its hash>/."""
    rows: tuple[str, ...] = ("dnas", "groups-128", "groups-rows", "groups-neurons")
    """The first is what others are relative to."""
    task: str = "sst2"
    ratio: float = 25
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    train_rows: int = 5000
    """As the cells have it: words are grouped by how often the training texts have them."""
    rounds: int = 15
    cells: Path = ablation.RESULTS
    results: Path = RESULTS


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    with tempfile.TemporaryDirectory(prefix="autoquant-bench-") as folder:
        files = {row: export(options, row, Path(folder)) for row in options.rows}
        measured = {row: contents(file) for row, file in files.items()}
        computes = {row: EXPORTER.open(file, threads=1) for row, file in files.items()}
        for workload in random_workloads(AutoConfig.from_pretrained(options.teacher)):
            times = times_in_turns(computes, workload, options.rounds)
            for row, seconds in times.items():
                relative = float(np.median(seconds / times[options.rows[0]]))
                measured[row][workload.name] = {"milliseconds": 1000 * float(np.median(seconds)), "relative": relative}
    about = {"task": options.task, "ratio": options.ratio, "seed": options.seed, "threads": 1, "versions": versions()}
    atomic_write_text(options.results, json.dumps({**about, "rows": measured}, indent=1) + "\n")
    print(export_table(options.results))


def export(options: Options, row: str, folder: Path) -> Path:
    """The allocation of a row's cell with the teacher's weights, as model.onnx. Raises SystemExit if there is no such cell."""
    cells = options.cells / file_sha256(options.teacher / "model.safetensors")[:8]
    alike = {name: getattr(options, name) for name in ("data_dir", "task", "precision", "train_rows")}
    where = ablation.Options(**alike, runs=folder / "runs", results=cells)
    file = ablation.cell_file(where, row, options.ratio, options.seed)
    if not file.is_file():
        raise SystemExit(f"No cell {file}: measure it first, with ablation.py.")
    cell = json.loads(file.read_text("utf-8"))
    recipe = from_mapping(Recipe, cell["recipe"], file.name)
    with ablation.workspace(where, ablation.task_data(where), options.teacher, row, recipe, seed=0) as shared:
        allocation = BitAllocation.from_json(cell["allocation"])
        method.pack(shared, shared.frozen_supernet(allocation), allocation, folder / row)
    return EXPORTER.export(folder / row)


def contents(file: Path) -> dict[str, Any]:
    """Bytes of the file; heads and neurons that its layers have, and the share of their multiplications."""
    model, _ = read_folder(file.parent)
    left = without_pruned(model, ACTIVATIONS[model.activation].value)
    return {
        "bytes": file.stat().st_size,
        "heads": [len(layer.value.bias) // model.head_size for layer in left.layers],
        "neurons": [len(layer.ffn_in.bias) for layer in left.layers],
        "products": weights(left) / weights(model),
    }


def weights(model: Classifier) -> int:
    """Numbers in the matrices of the layers."""
    shapes = (getattr(layer, part).weights.shape for layer in model.layers for part in MATRICES)
    return sum(rows * columns for rows, columns in shapes)


def export_table(file: Path = RESULTS) -> str:
    """Allocation x bytes, what its layers have left, and how long they take, relative to the first one."""
    content = json.loads(file.read_text("utf-8"))
    measured = content["rows"]
    shapes = {key: key.replace("x", " x ") for key in next(iter(measured.values())) if re.fullmatch(r"\d+x\d+", key)}
    heads = ["", "bytes", "heads", "neurons", "products", *shapes.values()]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row, cell in measured.items():
        left = [f"{cell['bytes']:,}", f"{sum(cell['heads'])}", f"{sum(cell['neurons']):,}", f"{100 * cell['products']:.0f} %"]
        times = [f"{cell[shape]['milliseconds']:.1f} ms, {cell[shape]['relative']:.2f}" for shape in shapes]
        lines.append(f"| {content['task']} {content['ratio']:g}x, {ROWS[row].about} | {' | '.join([*left, *times])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
