"""How good is what is deployed? Export a finished run and measure the very file that was written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoquant.core.errors import DataError, RunError
from autoquant.core.files import file_sha256, folder_bytes
from autoquant.core.progress import Progress, SilentProgress
from autoquant.core.run import RunDirectory
from autoquant.export import EXPORTERS
from autoquant.export.card import write_card
from autoquant.export.manifest import read_manifest
from autoquant.inference import load
from autoquant.pack.model import load_packed, set_activation_bits
from autoquant.tasks.data import TaskData
from autoquant.tasks.metrics import score
from autoquant.training.batches import Encoded
from autoquant.training.evaluate import collect_logits, predict_logits

EXACT = 1e-4  # largest difference of a logit that a file with float activations may have
TOLERATED = 0.003  # of the metric, that 8-bit activations may cost without a warning


def export_run(run_dir: str | Path, name: str, data: TaskData | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Write the file of a format into the run's `model/` and record it in `metrics.json` under `deployed`, and in the card.

    `name`: a row of EXPORTERS. `data`: the run's own task, on whose evaluation rows the file is measured; None leaves it
    unmeasured. Returns the entry: file, bytes, sha256 and, if measured, the metrics and by how much the logits differ
    from the simulated model's. Raises RunError for a run that is not finished, DataError for other data.
    """
    exporter, progress = EXPORTERS[name], progress or SilentProgress()
    exporter.check()
    settings = finished_run(run_dir).info()["settings"]
    data = check_data(run_dir, settings, data)
    with RunDirectory.open(run_dir, settings, resume=True) as run:
        path = exporter.export(run.model_dir)
        entry: dict[str, Any] = {"file": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
        progress.say(f"Wrote {path}: {entry['bytes']:,} bytes")
        if data is not None:
            entry |= _measure(run.model_dir, name, data)
        metrics = run.result()
        metrics["deployed"] = {**metrics.get("deployed", {}), name: entry}
        write_card(run.model_dir, metrics)
        metrics["bytes"]["directory"] = folder_bytes(run.model_dir)
        run.write_json("metrics.json", metrics)
    manifest = read_manifest(run.model_dir / "allocation.json")
    learned = manifest["activations"] == "static" and manifest["activation_bits"] < 32
    exact = EXPORTERS[name].activation_bits == 32 and not learned  # ranges round to codes: there a float's last bit decides
    _show(entry, exact, data, progress)
    return entry


def check_data(run_dir: str | Path, settings: Mapping[str, Any], data: TaskData | None) -> TaskData | None:
    """The data that a run with these settings had: as given, or its part for tuning. Raises DataError for any other."""
    if data is None:
        return None
    data = data.as_recorded(settings["data"])
    if data.evaluation.sha256() != settings["data"]["evaluation"]:
        raise DataError(f"The evaluation rows are not those of {run_dir}: give the data it was searched with.")
    return data


def finished_run(run_dir: str | Path) -> RunDirectory:
    """A run whose model is there to be exported. Raises RunError for anything else."""
    run = RunDirectory(run_dir)
    run.info()
    if not run.is_finished or not run.model_dir.is_dir():
        raise RunError(f"{run_dir} holds no finished search: go on with --resume first.")
    return run


def evaluate_exported(folder: str | Path, name: str, data: TaskData) -> dict[str, float]:
    """The task's metrics of the exported file in a packed folder. Raises ModelError or DataError if they do not fit."""
    encoded = load(folder).evaluation(data)
    return score(data.task.metrics, _exported_logits(Path(folder), name, encoded), encoded.labels)


def _exported_logits(folder: Path, name: str, encoded: Encoded) -> np.ndarray:
    exporter = EXPORTERS[name]
    run = exporter.open(folder / exporter.file_name, torch.get_num_threads())
    return collect_logits(lambda batch: run({key: tensor.numpy() for key, tensor in batch.items()}), encoded)


def _measure(folder: Path, name: str, data: TaskData) -> dict[str, Any]:
    """Metrics of the file, and its logits against those of the packed model with activations simulated as at run time.

    `float_activation_metrics` are those of the packed model with activations left as they are (learned ranges are part of
    it): what 8 bits must stay close to.
    """
    encoded = load(folder).evaluation(data)
    found, model = _exported_logits(folder, name, encoded), load_packed(folder)
    logits = {}
    for bits in {32, EXPORTERS[name].activation_bits}:
        set_activation_bits(model, bits)
        logits[bits] = predict_logits(model, encoded)
    simulated = logits[EXPORTERS[name].activation_bits]
    difference = np.abs(found - simulated)
    return {
        "metrics": score(data.task.metrics, found, encoded.labels),
        "simulated_metrics": score(data.task.metrics, simulated, encoded.labels),
        "float_activation_metrics": score(data.task.metrics, logits[32], encoded.labels),
        "logit_difference": {"mean": float(difference.mean()), "max": float(difference.max())},
    }


def _show(entry: dict[str, Any], exact: bool, data: TaskData | None, progress: Progress) -> None:
    if data is None:
        progress.say("Not measured: give the data as the search had them, by --data-dir, or by --train-file and --eval-file.")
        return
    for metric, value in entry["metrics"].items():
        progress.say(f"{metric} of the file {value:.4f}, simulated {entry['simulated_metrics'][metric]:.4f}")
    difference = entry["logit_difference"]
    progress.say(f"Logits differ from the simulation by {difference['mean']:.1e} on average, {difference['max']:.1e} at most")
    if exact and difference["max"] > EXACT:
        progress.say(f"Warning: this file should be exact and is not (more than {EXACT:.0e}); please report it.")
    lost = entry["float_activation_metrics"][data.task.metric] - entry["metrics"][data.task.metric]
    if lost > TOLERATED:
        progress.say(f"Warning: 8-bit activations cost {100 * lost:.2f} points here; --tail fp32 keeps them, at a lower speed.")
