"""How good is what is deployed? Export a finished run and measure the very file that was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoquant.core.errors import DataError, RunError
from autoquant.core.progress import Progress, SilentProgress
from autoquant.core.run import RunDirectory, file_sha256
from autoquant.export import EXPORTERS
from autoquant.export.card import write_card
from autoquant.inference import load
from autoquant.pack.model import load_packed, set_activation_bits
from autoquant.tasks.data import TaskData
from autoquant.tasks.metrics import score
from autoquant.training.batches import Encoded, encode
from autoquant.training.evaluate import collect_logits, predict_logits


def export_run(
    run_dir: str | Path, name: str, data: TaskData | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the file of a format into the run's `model/` and record it in `metrics.json` under `deployed`, and in the card.

    `name`: a row of EXPORTERS. `data`: the run's own task, on whose evaluation rows the file is measured; None leaves it
    unmeasured. Returns the entry: file, bytes, sha256 and, if measured, the metrics and by how much the logits differ
    from the simulated model's. Raises RunError for a run that is not finished, DataError for other data.
    """
    exporter, progress = EXPORTERS[name], progress or SilentProgress()
    exporter.check()
    settings = finished_run(run_dir).info()["settings"]
    if data is not None and data.evaluation.sha256() != settings["data"]["evaluation"]:
        raise DataError(f"The evaluation rows are not those of {run_dir}: give the data it was searched with.")
    with RunDirectory.open(run_dir, settings, resume=True) as run:
        path = exporter.export(run.model_dir)
        entry: dict[str, Any] = {"file": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
        progress.say(f"Wrote {path}: {entry['bytes']:,} bytes")
        if data is not None:
            entry |= _measure(run.model_dir, name, data)
        metrics = read_metrics(run)
        metrics["deployed"] = {**metrics.get("deployed", {}), name: entry}
        run.write_json("metrics.json", metrics)
        write_card(run.model_dir, metrics)
    _show(entry, progress)
    return entry


def finished_run(run_dir: str | Path) -> RunDirectory:
    """A run whose model is there to be exported. Raises RunError for anything else."""
    run = RunDirectory(run_dir)
    run.info()
    if not run.is_finished or not run.model_dir.is_dir():
        raise RunError(f"{run_dir} holds no finished search: go on with --resume first.")
    return run


def read_metrics(run: RunDirectory) -> dict[str, Any]:
    """The content of metrics.json."""
    return json.loads((run.path / "metrics.json").read_text("utf-8"))


def evaluate_exported(folder: str | Path, name: str, data: TaskData) -> dict[str, float]:
    """The task's metrics of the exported file in a packed folder. Raises ModelError or DataError if they do not fit."""
    encoded = _encoded(Path(folder), data)
    return score(data.task.metrics, _exported_logits(Path(folder), name, encoded), encoded.labels)


def _encoded(folder: Path, data: TaskData) -> Encoded:
    predictor = load(folder)
    outputs = predictor.model.config.num_labels
    if outputs != max(1, len(data.label_names)):
        raise DataError(f"{folder} has {outputs} outputs, the data has {max(1, len(data.label_names))}: give its own task.")
    return encode(predictor.tokenizer, data.evaluation, predictor.max_length)


def _exported_logits(folder: Path, name: str, encoded: Encoded) -> np.ndarray:
    exporter = EXPORTERS[name]
    run = exporter.open(folder / exporter.file_name, torch.get_num_threads())
    return collect_logits(lambda batch: run({key: tensor.numpy() for key, tensor in batch.items()}), encoded)


def _measure(folder: Path, name: str, data: TaskData) -> dict[str, Any]:
    """Metrics of the file, and its logits against those of the packed model with activations simulated as at run time."""
    encoded = _encoded(folder, data)
    found = _exported_logits(folder, name, encoded)
    model = load_packed(folder)
    set_activation_bits(model, EXPORTERS[name].activation_bits)
    simulated = predict_logits(model, encoded)
    difference = np.abs(found - simulated)
    return {
        "metrics": score(data.task.metrics, found, encoded.labels),
        "simulated_metrics": score(data.task.metrics, simulated, encoded.labels),
        "logit_difference": {"mean": float(difference.mean()), "max": float(difference.max())},
    }


def _show(entry: dict[str, Any], progress: Progress) -> None:
    if "metrics" not in entry:
        progress.say("Not measured: give --train-file and --eval-file as the search had them.")
        return
    for metric, value in entry["metrics"].items():
        progress.say(f"{metric} of the file {value:.4f}, simulated {entry['simulated_metrics'][metric]:.4f}")
    difference = entry["logit_difference"]
    progress.say(f"Logits differ from the simulation by {difference['mean']:.1e} on average, {difference['max']:.1e} at most")
