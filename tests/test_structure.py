"""Whole runs that remove heads and FFN blocks: really smaller matrices, within the budget, resumable, and applied again."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

import autoquant
from architectures import CONFIGS, save_tiny
from autoquant import cli
from autoquant.core.errors import AutoquantError
from autoquant.export.manifest import read_manifest
from autoquant.pack.checkpoint import read_packed
from runs import MACHINE, metrics_of, rows_of, search, task

TIGHT = ["--space", "structured", "--budget-ratio", "8"]  # so tight that units go


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> dict[str, Any]:
    """A finished run of every architecture, by name: its folder."""
    folders = {}
    for name in sorted(CONFIGS):
        model = save_tiny(name, tmp_path_factory.mktemp(name) / "model")
        folders[name] = tmp_path_factory.mktemp(name) / "run"
        controls = ["fisher", "random", "reversed", "uniform"] if name == "bert" else []
        search(model, tiny_data, folders[name], *TIGHT, "--controls", *controls)
    return folders


every_architecture = pytest.mark.parametrize("name", sorted(CONFIGS))


@every_architecture
def test_units_are_gone_from_the_file(name: str, runs: dict[str, Any]) -> None:
    metrics, removed = metrics_of(runs[name]), metrics_of(runs[name])["units_removed"]
    assert removed
    packed = read_packed(runs[name] / "model" / "model.safetensors")
    for kind, gated, size in (("head", ("value", "v_lin"), 8), ("ffn", ("intermediate", "lin1"), 16)):
        for layer in range(2):
            gone = sum(unit.startswith(f"{layer}.{kind}.") for unit in removed)
            full = {"head": 32, "ffn": 64}[kind]
            (matrix,) = [m for n, m in packed.matrices.items() if f"layer.{layer}." in n and any(g in n for g in gated)]
            assert matrix.rows == full - gone * size
    size = metrics["bytes"]
    assert (runs[name] / "model" / "model.safetensors").stat().st_size == size["file"] == sum(size["breakdown"].values())
    assert 0.97 * size["budget"] <= size["file"] <= size["budget"]
    assert metrics["reload_difference"] <= 1e-5


@every_architecture
def test_it_loads_and_predicts(name: str, runs: dict[str, Any], tiny_data: Path) -> None:
    model = autoquant.load(runs[name] / "model")
    texts = [text for text, _ in rows_of(tiny_data, 5)]
    assert len(model.predict(texts)) == 5
    assert np.isfinite(model.logits(texts)).all()


def test_the_allocation_names_them_and_applies_again(runs: dict[str, Any], tiny_data: Path, tmp_path: Path) -> None:
    run = runs["bert"]
    manifest = read_manifest(run / "model" / "allocation.json")
    assert manifest["removed"] == metrics_of(run)["units_removed"]
    assert manifest["space"]["structure"] == {"heads": True, "ffn_blocks": "heads"}
    command = ["apply", str(run / "model" / "allocation.json"), *task(run / "teacher", tiny_data), *MACHINE]
    cli.main([*command, "--run-dir", str(tmp_path / "applied")])
    ours, again = (folder / "model" / "model.safetensors" for folder in (run, tmp_path / "applied"))
    assert ours.read_bytes() == again.read_bytes()


def test_controls_remove_units_too_but_uniform(runs: dict[str, Any]) -> None:
    packed = {m: read_packed(runs["bert"] / "controls" / m / "model.safetensors") for m in ("fisher", "random", "uniform")}
    weights = {m: sum(p.rows * p.columns for p in file.matrices.values()) for m, file in packed.items()}
    assert weights["fisher"] < weights["uniform"]
    assert weights["random"] < weights["uniform"]


def test_recovery_can_go_on_from_the_search(tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path) -> None:
    metrics = search(tiny_classifier_dir, tiny_data, tmp_path / "run", *TIGHT, "--recovery.start", "search")
    assert metrics["units_removed"]
    assert metrics["reload_difference"] <= 1e-5


@pytest.mark.parametrize("key", ["intermediate_size", "num_attention_heads"])
def test_a_config_of_another_model_is_refused(key: str, runs: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(runs["bert"] / "model", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: 2}))
    with pytest.raises(AutoquantError):
        autoquant.load(tmp_path / "model")


@every_architecture
def test_transformers_loads_it_too(name: str, runs: dict[str, Any], tiny_data: Path) -> None:
    folder, texts = runs[name] / "model", [text for text, _ in rows_of(tiny_data, 5)]
    ours, theirs = autoquant.load(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    batch = ours.tokenizer(texts, padding=True, return_tensors="pt")
    np.testing.assert_allclose(theirs(**batch).logits.detach().numpy(), ours.logits(texts), atol=1e-6)
