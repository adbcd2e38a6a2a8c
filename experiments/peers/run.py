"""What do other tools make of the same teacher? Each in a virtual environment of its own, on the same texts; resumable.

    python experiments/peers/run.py --data-dir glue --teacher runs/compare/sst2/shared/teacher/teacher
    python experiments/peers/run.py --data-dir glue --teacher DIR --tools onnxruntime nncf
    python experiments/peers/run.py --data-dir glue --teacher DIR --tools modelopt --python modelopt=/my/env/bin/python
    python experiments/peers/run.py --data-dir glue --teacher DIR --ours   # afterwards: ours at the bytes of their linear layers

nvidia-modelopt (auto_quantize), NNCF (compress_weights), ONNX Runtime (dynamic int8) and Sony's model-compression-toolkit get 512
training texts to calibrate on, with labels. Their widths are recounted with our packer, since most of them simulate and none
packs every width; the size of the file that each one writes stands beside. What a tool leaves in float counts as float16, as our
packer would store it. Each writes `results/peers/<task>-<tool>-<setting>.json`, a cell of the comparison; those there stay.
`python experiments/tables.py` makes the tables: linear layers only, and the whole model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent))

from recount import recount
from transformers import AutoModelForSequenceClassification

from autoquant.blueprint import Blueprint
from autoquant.compare.cells import Cell
from autoquant.compare.run import compare
from autoquant.compare.table import distinct_sizes
from autoquant.core.cost import SizeBudget
from autoquant.core.files import file_sha256
from autoquant.core.progress import TerminalProgress
from autoquant.core.settings import load_preset
from autoquant.core.versions import versions
from autoquant.export.onnx.baseline import write_float
from autoquant.machine import Machine
from autoquant.tasks.data import TaskData
from autoquant.tasks.load import load_glue
from autoquant.tasks.metrics import METRICS, answers
from autoquant.training.batches import encode
from autoquant.training.evaluate import predict_logits

HERE = Path(__file__).parent
RESULTS, PINNED = HERE.parent / "results" / "peers", str(HERE.parent / "heads.toml")
COMMON = ("torch==2.13.0", "transformers==5.23.0", "numpy")
OURS = ("dnas", *(str(HERE / f"{name}.toml") for name in ("no-training", "no-training-float", "no-training-fisher")))


@dataclass(frozen=True)
class Tool:
    """A script of this folder, what its environment needs, and the settings to measure."""

    script: str
    packages: tuple[str, ...]
    settings: tuple[str, ...]


TOOLS = {
    "modelopt": Tool("modelopt_auto.py", (*COMMON, "nvidia-modelopt==0.47.0", "requests"), ("4.0", "3.0")),
    "nncf": Tool("nncf_compress.py", (*COMMON, "nncf==3.4.0"), ("1.0", "0.6")),
    "onnxruntime": Tool("onnx_dynamic.py", ("onnxruntime==1.31.1", "onnx==1.23.2", "numpy"), ("int8",)),
    "mct": Tool("mct_mixed.py", (*COMMON, "model-compression-toolkit==2.6.1", "torchvision"), ("0.6", "0.45", "0.6-int8")),
}


@dataclass(frozen=True)
class Options:
    """Which tools, on what."""

    data_dir: Path
    teacher: Path
    """The fine-tuned model that the comparison's cells share."""
    task: str = "sst2"
    tools: tuple[str, ...] = tuple(TOOLS)
    python: tuple[str, ...] = ()
    """Interpreters to use instead of making environments, as tool=path."""
    ours: bool = False
    """Measure ours at the bytes of their linear layers instead, embeddings at 8 bits: searched, and without any training."""
    train_rows: int = 5000
    max_length: int = 64
    calibration: int = 512
    """Training texts that a tool may look at."""
    threads: int = 2
    runs: Path = Path("runs/peers")
    results: Path = RESULTS


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    unknown = sorted(set(options.tools) - set(TOOLS))
    if unknown:
        raise SystemExit(f"No tool '{unknown[0]}'; known are {', '.join(TOOLS)}.")
    data = load_glue(options.task, options.data_dir)
    data = dataclasses.replace(data, train=data.train.subsample(options.train_rows))
    if options.ours:
        measure_ours(options, data)
        return
    missing = [(tool, setting, file) for tool, setting, file in cell_files(options) if not file.exists()]
    blueprint = Blueprint.draw(str(options.teacher), data, load_preset(PINNED), options.max_length, trim_positions=False)
    inputs = prepare(options, blueprint) if missing else options.runs
    failed = []
    for tool, setting, file in missing:
        print(f"Cell {file.stem}", flush=True)
        try:
            made = run(options, tool, setting, inputs)
        except subprocess.CalledProcessError as error:  # its own output says why
            failed.append(f"{tool}-{setting} (exit code {error.returncode})")
            continue
        as_cell(options, blueprint, inputs, f"{tool}-{setting}", made).write(file)
    if failed:
        raise SystemExit(f"Failed, and tried again next time: {', '.join(failed)}.")


def cell_files(options: Options) -> Iterator[tuple[str, str, Path]]:
    for tool in options.tools:
        for setting in TOOLS[tool].settings:
            yield tool, setting, options.results / f"{options.task}-{tool}-{setting}.json"


def prepare(options: Options, blueprint: Blueprint) -> Path:
    """What every tool reads: teacher, teacher.onnx, and calibration and evaluation texts as arrays [texts, longest]."""
    folder = options.runs / f"{options.task}-inputs"
    folder.mkdir(parents=True, exist_ok=True)
    model = AutoModelForSequenceClassification.from_pretrained(options.teacher, dtype=torch.float32).eval()
    write_float(model, folder / "teacher.onnx")
    matrices = {name: value.numpy() for name, value in model.state_dict().items() if value.ndim == 2}
    (folder / "matrices.json").write_text(json.dumps(in_graph(folder / "teacher.onnx", matrices)), "utf-8")
    evaluation = encode(blueprint.source.tokenizer, blueprint.data.evaluation, options.max_length)
    for name, texts in (("calibration", blueprint.train.select(np.arange(options.calibration))), ("evaluation", evaluation)):
        batch = texts.collate(np.arange(len(texts)))
        np.savez(folder / f"{name}.npz", **{key: value.numpy() for key, value in batch.items()})
    logits = predict_logits(model, evaluation)
    metric = blueprint.data.task.metric
    facts = {"full_precision": METRICS[metric](answers(logits), evaluation.labels), "threads": options.threads}
    (folder / "inputs.json").write_text(json.dumps({**facts, "teacher": str(options.teacher.absolute())}), "utf-8")
    return folder


def in_graph(path: Path, matrices: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
    """Name of an initialiser of an ONNX file -> the matrices of the teacher that it holds, transposed or not, merged or not."""
    found: dict[str, list[str]] = {}
    for tensor in onnx.load(path).graph.initializer:
        if len(tensor.dims) == 2:
            array = onnx.numpy_helper.to_array(tensor)
            found[tensor.name] = [name for name, matrix in matrices.items() if _holds(array, matrix) or _holds(array.T, matrix)]
    return found


def _holds(array: np.ndarray, matrix: np.ndarray) -> bool:
    """Whether the rows of a matrix stand one after the other in an array."""
    if array.shape[1] != matrix.shape[1]:
        return False
    starts = np.flatnonzero((array == matrix[0]).all(axis=1))
    return any(np.array_equal(array[start : start + len(matrix)], matrix) for start in starts)


def run(options: Options, tool: str, setting: str, inputs: Path) -> dict[str, Any]:
    """Run a tool's script in its environment; returns what it wrote."""
    output = options.runs / f"{options.task}-{tool}-{setting}"
    output.mkdir(parents=True, exist_ok=True)
    command = [interpreter(options, tool), str(HERE / TOOLS[tool].script), str(inputs), str(output), setting]
    subprocess.run(command, check=True)
    result: dict[str, Any] = json.loads((output / "result.json").read_text("utf-8"))
    return {**result, "logits": np.load(output / "logits.npy")}


def interpreter(options: Options, tool: str) -> str:
    """The Python of a tool's environment, made if it is not there."""
    given = dict(entry.split("=", 1) for entry in options.python)
    if tool in given:
        return given[tool]
    environment = options.runs / "environments" / tool
    python = environment / "bin" / "python"
    if not (environment / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *TOOLS[tool].packages], check=True)
        (environment / "complete").touch()
    return str(python.absolute())


def as_cell(options: Options, blueprint: Blueprint, inputs: Path, method: str, made: Mapping[str, Any]) -> Cell:
    """A tool's result as a cell, its bytes those of our packer at the tool's widths."""
    task, labels = blueprint.data.task, np.load(inputs / "evaluation.npz")["labels"]
    found = answers(made["logits"])
    size = recount(blueprint, made["bits"], made["group_size"])
    facts = {name: made[name] for name in ("tool", "version", "setting", "own_file_bytes", "activations")}
    return Cell(
        task=task.name,
        method=method,
        budget_bytes=size.file,
        file_bytes=size.file,
        metric=METRICS[task.metric](found, labels),
        seed=0,
        seconds=made["seconds"],
        peak_mib=made["peak_mib"],
        recovery_steps=0,
        teacher_hash=file_sha256(options.teacher / "model.safetensors"),
        metric_name=task.metric,
        predictions=tuple(found.tolist()),
        labels=tuple(labels.tolist()),
        full_precision=json.loads((inputs / "inputs.json").read_text("utf-8"))["full_precision"],
        full_precision_bytes=blueprint.full_bytes(),
        recipe={**facts, "linear_bytes": size.linear, "linear_bits": size.linear_bits},
        data_sha256=blueprint.data.hashes(),
        allocation=made["bits"],
        versions=versions(),
    )


def measure_ours(options: Options, data: TaskData) -> None:
    """Ours with as many bytes of codes and scales in the encoder as each tool has; embeddings, which do not count, at 8 bits.

    One calibration and one search serve all these sizes; of tools that are alike to four digits the smaller one counts.
    """
    cells = [Cell.read(file) for _, _, file in cell_files(options) if file.exists()]
    sizes = distinct_sizes(cell.recipe["linear_bytes"] for cell in cells)
    if not sizes:
        raise SystemExit(f"No cells of other tools on {data.task.name} yet: run without --ours first.")
    key = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:8]
    compare(
        options.teacher,
        data,
        budgets=[SizeBudget(size, "encoder") for size in sizes],
        methods=OURS,
        recipe=load_preset(PINNED),
        run_dir=options.runs / f"{options.task}-ours-{key}",
        max_length=options.max_length,
        machine=Machine(threads=options.threads),
        resume=True,
        progress=TerminalProgress(),
        results=options.results / "ours",
    )


if __name__ == "__main__":
    main()
