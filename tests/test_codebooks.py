"""Whole runs with quantizers other than the default: nothing trained, knapsack or search, packed, reloaded, applied again."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from autoquant import cli
from autoquant.core.errors import ModelError
from autoquant.export import EXPORTERS
from autoquant.pack.checkpoint import read_packed
from runs import MACHINE, search, task

NOTHING = ["--recovery.steps", "0", "--recovery.mrem-steps", "0"]


def packed_bytes(run_dir: Path) -> bytes:
    return (run_dir / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("quantizer", "space", "strategy", "ratio"),
    [("gobo", "codebook", "fisher", 6), ("pq", "codebook", "uniform", 1.4), ("twn", "ternary", "measured", 8)],
)
def test_post_training(
    quantizer: str, space: str, strategy: str, ratio: float, tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path
) -> None:
    more = ("--quantizer", quantizer, "--space", space, "--search.strategy", strategy, "--budget-ratio", ratio, *NOTHING)
    metrics = search(tiny_classifier_dir, tiny_data, tmp_path / "run", *more)
    allocation = json.loads((tmp_path / "run" / "model" / "allocation.json").read_text("utf-8"))
    assert metrics["bytes"]["file"] == len(packed_bytes(tmp_path / "run")) <= allocation["budget"]["bytes"]
    assert metrics["reload_difference"] <= 1e-5
    assert read_packed(tmp_path / "run" / "model" / "model.safetensors").settings["quantizer"] == quantizer
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    reloaded.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").read_bytes() == packed_bytes(tmp_path / "run")
    arguments = ["apply", str(tmp_path / "run" / "model" / "allocation.json"), *task(tiny_classifier_dir, tiny_data), *MACHINE]
    cli.main([*arguments, "--run-dir", str(tmp_path / "again")])
    assert packed_bytes(tmp_path / "again") == packed_bytes(tmp_path / "run")
    if quantizer != "twn":
        for exporter in EXPORTERS.values():
            with pytest.raises(ModelError, match=f"quantizer '{quantizer}' are not symmetric integers within int8"):
                exporter.export(tmp_path / "run" / "model")


@pytest.mark.parametrize(("quantizer", "ratio"), [("gobo", 6), ("pq", 1.4)])
def test_search_recovery_and_reconstruction(
    quantizer: str, ratio: float, tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path
) -> None:
    more = ("--quantizer", quantizer, "--space", "codebook", "--budget-ratio", ratio, "--recovery.mrem-steps", 2)
    metrics = search(tiny_classifier_dir, tiny_data, tmp_path, *more, "--recovery.mrem-modules", 2)
    assert metrics["bytes"]["file"] == len(packed_bytes(tmp_path))
    assert metrics["reload_difference"] <= 1e-5
