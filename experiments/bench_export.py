"""What do finer sub-groups cost at run time? Allocations of the ablation, packed, exported and timed in turns, in one process.

    python experiments/bench_export.py --data-dir glue --teacher DIR --cells results/ablation/*/sst2-25x-groups-*-seed0.json

Nothing is trained: a file's speed is that of its widths, whatever its weights (the teacher's). What is pruned as a whole leaves
the exported graph, a value head or a neuron; so files of one size differ in how much is left to multiply. One thread; times are
medians of rounds, and `relative` the median over rounds of a time over the first cell's. Measured: results/bench/export.json;
`python experiments/tables.py` makes the table.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ablation
import numpy as np
import tyro
from ablation_rows import ROWS
from transformers import AutoConfig

from autoquant import method
from autoquant.bench import Compute, Workload, random_workloads, seconds_of
from autoquant.core.allocation import BitAllocation
from autoquant.core.files import atomic_write_text
from autoquant.core.settings import Recipe, from_mapping
from autoquant.core.versions import versions
from autoquant.export import EXPORTERS
from autoquant.export.onnx.encoder import ACTIVATIONS
from autoquant.export.onnx.fold import without_pruned
from autoquant.export.onnx.model import Classifier, read_folder

RESULTS = Path(__file__).parent / "results" / "bench" / "export.json"
EXPORTER = EXPORTERS["onnx-int8"]
MATRICES = ("query", "key", "value", "attention_output", "ffn_in", "ffn_out")  # of a layer
REPEATED = 0.05  # seconds of a contender in a round, at least


@dataclass(frozen=True)
class Options:
    """What to time."""

    data_dir: Path
    teacher: Path
    cells: tuple[Path, ...]
    """Files of results/ablation/; the first is what others are relative to."""
    train_rows: int = 5000
    """As the cells have it: words are grouped by how often the training texts have them."""
    rounds: int = 15
    results: Path = RESULTS
    json: bool = False
    """Print the result, too."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    with tempfile.TemporaryDirectory(prefix="autoquant-bench-") as folder:
        files = {cell.stem: export(options, cell, Path(folder)) for cell in options.cells}
        measured = {cell: contents(file) for cell, file in files.items()}
        computes = {cell: EXPORTER.open(file, threads=1) for cell, file in files.items()}
        for workload in random_workloads(AutoConfig.from_pretrained(options.teacher)):
            for cell, found in time_in_turns(computes, workload, options.rounds).items():
                measured[cell][workload.name] = found
    text = json.dumps({"cells": measured, "threads": 1, "versions": versions()}, indent=1) + "\n"
    atomic_write_text(options.results, text)
    if options.json:
        print(text)


def export(options: Options, file: Path, folder: Path) -> Path:
    """A cell's allocation of the teacher's weights, as model.onnx."""
    cell = json.loads(file.read_text("utf-8"))
    recipe, runs = from_mapping(Recipe, cell["recipe"], file.name), folder / "runs"
    where = ablation.Options(options.data_dir, cell["task"], score=cell["scored"], train_rows=options.train_rows, runs=runs)
    data, row = ablation.task_data(where), f"{file.stem}/{cell['row']}"
    with ablation.workspace(where, data, options.teacher, row, recipe, seed=0) as shared:
        allocation = BitAllocation.from_json(cell["allocation"])
        method.pack(shared, shared.frozen_supernet(allocation), allocation, folder / file.stem)
    return EXPORTER.export(folder / file.stem)


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


def time_in_turns(computes: dict[str, Compute], workload: Workload, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds a batch of every contender, and relative to the first one."""
    repeats = {name: max(1, round(REPEATED / seconds_of(compute, workload, 1))) for name, compute in computes.items()}
    times = np.array([[seconds_of(computes[name], workload, repeats[name]) for name in computes] for _ in range(rounds)])
    relative = np.median(times / times[:, :1], axis=0)
    return {
        name: {"milliseconds": 1000 * float(median), "relative": float(ratio)}
        for name, median, ratio in zip(computes, np.median(times, axis=0), relative, strict=True)
    }


def export_table(file: Path = RESULTS) -> str:
    """Allocation x bytes, what its layers have left, and how long they take, relative to the first one."""
    measured = json.loads(file.read_text("utf-8"))["cells"]
    shapes = {key: key.replace("x", " x ") for key in next(iter(measured.values())) if re.fullmatch(r"\d+x\d+", key)}
    heads = ["", "bytes", "heads", "neurons", "products", *shapes.values()]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, cell in measured.items():
        ratio, row = re.fullmatch(r".*-([\d.]+x)-(.*)-seed\d+", name).groups()
        left = [f"{cell['bytes']:,}", f"{sum(cell['heads'])}", f"{sum(cell['neurons']):,}", f"{100 * cell['products']:.0f} %"]
        times = [f"{cell[shape]['milliseconds']:.1f} ms, {cell[shape]['relative']:.2f}" for shape in shapes]
        lines.append(f"| {ratio}, {ROWS[row].about} | {' | '.join([*left, *times])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
