"""How fast is the deployed file, beside what a person would deploy today? All in one process, one after the other, in turns."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoquant.backbones import BACKBONES
from autoquant.backbones.load import load_tokenizer, quiet_transformers
from autoquant.core.errors import ModelError, RunError
from autoquant.core.progress import Progress, SilentProgress
from autoquant.core.versions import versions
from autoquant.deploy import check_data, finished_run
from autoquant.export import EXPORTERS
from autoquant.tasks.data import TaskData
from autoquant.tasks.metrics import score
from autoquant.training.batches import Encoded, encode
from autoquant.training.evaluate import collect_logits

Batch = Mapping[str, np.ndarray]
Compute = Callable[[Batch], np.ndarray]

SHAPES = ((1, 32), (1, 128), (16, 128))  # texts x tokens
OURS, DYNAMIC, SAME_GRAPH = "autoquant", "ort_int8", "ort_int8_same_graph"
TITLES = {
    "torch_fp32": "torch fp32",
    "ort_fp32": "ONNX Runtime fp32",
    DYNAMIC: "ONNX Runtime dynamic int8",
    SAME_GRAPH: "the same, in our graph",
    OURS: "autoquant model.onnx",
}
TASK_TEXTS = 64  # evaluation texts, one at a time and not padded, that stand for the task's own lengths
LOADS, LOADED_TOKENS = 3, 32  # each runs one text
SHORTEST = 0.02  # seconds; quicker batches are repeated, so that the clock does not matter


@dataclass(frozen=True)
class Workload:
    """Batches that are timed together."""

    name: str
    batches: tuple[Batch, ...]

    @property
    def texts(self) -> int:
        return sum(len(batch["input_ids"]) for batch in self.batches)


def bench_run(
    run_dir: str | Path,
    data: TaskData | None = None,
    *,
    threads: int = 1,
    rounds: int = 15,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time a run's exported file against its teacher in torch, in ONNX Runtime and as ONNX Runtime's dynamic int8.

    The last two are built here from the teacher's weights with all of the runtime's fused operators (MultiHeadAttention, Gelu,
    SkipLayerNormalization; query, key and value merged), once more in the very graph that we export. With `data`, the run's own
    task, its lengths are a workload too, and the metrics of dynamic int8 and of our file are given.

    Returns {"threads", "bytes", "load_seconds", "peak_mib", "model_mib", "workloads": {name: {"milliseconds", "texts_per_second",
    "speed"}}, "metrics", "versions"}, by contender; `speed` is relative to dynamic int8, the median over rounds of paired ratios.
    Raises RunError for a run that is not finished or not exported, DataError for other data, ModelError for a missing package
    or a file that does not load.
    """
    exporter, progress = EXPORTERS["onnx-int8"], progress or SilentProgress()
    exporter.check()
    if threads < 1 or rounds < 1:
        raise RunError(f"--threads {threads} and --rounds {rounds} must be at least 1.")
    run = finished_run(run_dir)
    data = check_data(run_dir, run.info()["settings"], data)
    if not (run.model_dir / exporter.file_name).is_file():
        raise RunError(f"{run.model_dir} has no {exporter.file_name}: run autoquant export {run_dir} first.")
    quiet_transformers()
    with tempfile.TemporaryDirectory(prefix="autoquant-bench-") as temporary, _torch_threads(threads):
        progress.say("Building the teacher's ONNX models")
        teacher = _load_teacher(run.teacher_dir)
        paths = _build(teacher, run.teacher_dir, run.model_dir / exporter.file_name, Path(temporary))
        computes = {name: _torch(teacher) if path.is_dir() else exporter.open(path, threads) for name, path in paths.items()}
        encoded = None if data is None else _encode(run.model_dir, teacher, data)
        result: dict[str, Any] = {"threads": threads, "bytes": {name: _bytes(path) for name, path in paths.items()}}
        result |= _footprints(paths, threads, min(LOADED_TOKENS, _positions(teacher.config)))
        result["workloads"] = {}
        for workload in _workloads(teacher, shapes, encoded):
            progress.say(f"Timing {workload.name}")
            result["workloads"][workload.name] = _time(computes, workload, rounds)
        if data is not None and encoded is not None:
            progress.say("Measuring metrics")
            logits = {name: _logits(computes[name], encoded) for name in (DYNAMIC, OURS)}
            result["metrics"] = {name: score(data.task.metrics, values, encoded.labels) for name, values in logits.items()}
    import onnxruntime

    return {**result, "versions": {**versions(), "onnxruntime": onnxruntime.__version__}}


@contextlib.contextmanager
def _torch_threads(threads: int) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _load_teacher(folder: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    if not folder.is_dir():
        raise ModelError(f"{folder} is missing: the teacher is what the file is compared with.")
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def _build(teacher: Any, teacher_dir: Path, ours: Path, folder: Path) -> dict[str, Path]:
    """The files (a folder for torch) of every contender."""
    from autoquant.export.onnx.baseline import write_dynamic_int8, write_float

    plain = write_float(teacher, folder / "float.onnx")
    same = write_float(teacher, folder / "same.onnx", plain=False)
    return {
        "torch_fp32": teacher_dir,
        "ort_fp32": plain,
        DYNAMIC: write_dynamic_int8(plain, folder / "int8.onnx"),
        SAME_GRAPH: write_dynamic_int8(same, folder / "same_int8.onnx"),
        OURS: ours,
    }


def _bytes(path: Path) -> int:
    return (path / "model.safetensors" if path.is_dir() else path).stat().st_size


def _torch(model: Any) -> Compute:
    inputs = BACKBONES[model.config.model_type].inputs

    @torch.no_grad()
    def compute(batch: Batch) -> np.ndarray:
        return model(**{name: torch.from_numpy(batch[name]) for name in inputs}).logits.numpy()

    return compute


def _encode(folder: Path, teacher: Any, data: TaskData) -> Encoded:
    settings = json.loads((folder / "config.json").read_text("utf-8"))["quantization_config"]
    return encode(load_tokenizer(str(folder), BACKBONES[teacher.config.model_type]), data.evaluation, settings["max_length"])


def _positions(config: Any) -> int:
    """Tokens that a text may have."""
    return int(config.max_position_embeddings - BACKBONES[config.model_type].first_position(config))


def _workloads(teacher: Any, shapes: Sequence[tuple[int, int]], encoded: Encoded | None) -> list[Workload]:
    """Random tokens, and the task's own lengths."""
    found = random_workloads(teacher.config, shapes)
    if encoded is not None:
        chosen = np.linspace(0, len(encoded) - 1, min(TASK_TEXTS, len(encoded))).astype(int)
        batches = [{name: tensor.numpy() for name, tensor in encoded.collate([index]).items()} for index in chosen]
        found.append(Workload("task", tuple(batches)))
    return found


def random_workloads(config: Any, shapes: Sequence[tuple[int, int]] = SHAPES) -> list[Workload]:
    """The shapes (texts, tokens) that a model of this config has positions for, filled with random tokens: no padding."""
    draw = np.random.default_rng(0)
    found = []
    for texts, tokens in shapes:
        if tokens <= _positions(config):
            ids = draw.integers(config.vocab_size // 10, config.vocab_size, (texts, tokens))
            batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            found.append(Workload(f"{texts}x{tokens}", (batch,)))
    return found


def _time(computes: Mapping[str, Compute], workload: Workload, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of every contender."""
    times = times_in_turns(computes, workload, rounds)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    speed = {name: float(np.median(times[DYNAMIC] / values)) for name, values in times.items()}
    same = float(np.median(times[SAME_GRAPH] / times[OURS]))
    table = {
        "milliseconds": {name: 1000 * median / len(workload.batches) for name, median in medians.items()},
        "texts_per_second": {name: workload.texts / median for name, median in medians.items()},
        "speed": speed,
    }
    return {**table, "speed_in_same_graph": {OURS: same}}


def times_in_turns(computes: Mapping[str, Compute], workload: Workload, rounds: int) -> dict[str, np.ndarray]:
    """Seconds a pass, [rounds], of every contender: all of them in every round, in an order that turns."""
    repeats = {name: max(1, int(SHORTEST / max(_seconds(compute, workload, 1), 1e-9))) for name, compute in computes.items()}
    names = list(computes)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds[name].append(_seconds(computes[name], workload, repeats[name]))
    return {name: np.array(values) for name, values in seconds.items()}


def _seconds(compute: Compute, workload: Workload, repeats: int) -> float:
    """Seconds of one pass over the workload, the mean of `repeats`."""
    start = time.perf_counter()
    for _ in range(repeats):
        for batch in workload.batches:
            compute(batch)
    return (time.perf_counter() - start) / repeats


def _footprints(paths: Mapping[str, Path], threads: int, tokens: int) -> dict[str, dict[str, float]]:
    """Load time and memory, each load in a process of its own; medians."""
    found: dict[str, dict[str, float]] = {"load_seconds": {}, "peak_mib": {}, "model_mib": {}}
    for name, path in paths.items():
        command = [sys.executable, "-m", "autoquant.footprint", str(path), str(threads), str(tokens)]
        printed = [_output(command, path) for _ in range(LOADS)]
        for key, values in found.items():
            values[name] = float(np.median([json.loads(text.splitlines()[-1])[key] for text in printed]))
    return found


def _output(command: Sequence[str], path: Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ModelError(f"{path} does not load in a process of its own: {(done.stderr.splitlines() or ['no reason given'])[-1]}")
    return done.stdout


def _logits(compute: Compute, encoded: Encoded) -> np.ndarray:
    return collect_logits(lambda batch: compute({name: tensor.numpy() for name, tensor in batch.items()}), encoded)


def show(result: Mapping[str, Any], progress: Progress) -> None:
    """The result as a table: milliseconds (speed relative to dynamic int8) a workload."""
    workloads, metrics = result["workloads"], result.get("metrics", {})
    metric_names = list(next(iter(metrics.values()), {}))
    columns = ["", *workloads, "load s", "peak MiB", "bytes", *metric_names]
    rows = []
    for name, title in TITLES.items():
        cells = [f"{w['milliseconds'][name]:.2f} ms {w['speed'][name]:.2f}x" for w in workloads.values()]
        memory = [f"{result['load_seconds'][name]:.2f}", f"{result['peak_mib'][name]:.0f}", f"{result['bytes'][name]:,}"]
        scores = [f"{metrics[name][metric]:.4f}" if name in metrics else "" for metric in metric_names]
        rows.append([title, *cells, *memory, *scores])
    threads = result["threads"]
    title = f"{threads} thread{'s' if threads > 1 else ''}; a batch, and speed relative to {TITLES[DYNAMIC]}"
    progress.table(title, columns, rows)
    same = ", ".join(f"{name} {w['speed_in_same_graph'][OURS]:.2f}x" for name, w in workloads.items())
    progress.say(f"Ours relative to dynamic int8 in our graph: {same}")
