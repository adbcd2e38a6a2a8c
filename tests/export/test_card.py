"""The model card: what the hub's own reader finds in it, numbers that are those of metrics.json, and lines that run."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from autoquant.assets import BACKBONE, BACKBONE_HUB_ID, cached_folder, hub_id
from autoquant.core.files import file_sha256
from autoquant.export.card import write_card
from runs import Reference, reference

__all__ = ["reference"]


@pytest.fixture
def folder(reference: Reference, tmp_path: Path) -> Path:
    """A shipped folder that may be written into."""
    return Path(shutil.copytree(reference.model_dir, tmp_path / "model"))


@pytest.fixture
def exported(reference: Reference, folder: Path) -> dict[str, Any]:
    """metrics.json once another file was written and measured."""
    (folder / "model.onnx").write_bytes(b"a graph")
    metrics = reference.metrics
    entry = {"file": "model.onnx", "bytes": 7, "sha256": file_sha256(folder / "model.onnx"), "metrics": {"accuracy": 0.625}}
    metrics["deployed"]["onnx-int8"] = entry
    return metrics


def test_the_hub_reads_it(reference: Reference) -> None:
    data = ModelCard.load(reference.model_dir / "README.md").data
    metrics, known = reference.metrics, data.to_dict()
    assert (known["library_name"], data.pipeline_tag, data.metrics) == ("autoquant", "text-classification", ["accuracy"])
    assert data.base_model is None  # the tiny encoder is a folder of this machine
    (result,) = data.eval_results
    assert result.metric_value == metrics["metric"]["value"]
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == ("nyu-mll/glue", "sst2", "validation")
    assert (result.metric_type, result.metric_name) == ("accuracy", "accuracy of model.safetensors (safetensors)")
    assert data.model_name == f"packed-sst2-{metrics['bytes']['file'] / 2**20:.1f}MiB"


def test_the_numbers_are_those_of_the_run(reference: Reference) -> None:
    text, metrics = (reference.model_dir / "README.md").read_text("utf-8"), reference.metrics
    size, whole = (reference.model_dir / "model.safetensors").stat().st_size, metrics["bytes"]["full_precision"]
    assert f"| model.safetensors (safetensors) | {size:,} | {whole / size:.1f} | {metrics['metric']['value']:.4f} |" in text
    assert f"| full precision | {whole:,} | 1.0 | {metrics['metric']['full_precision']:.4f} |" in text
    assert f"`{file_sha256(reference.model_dir / 'model.safetensors')}`" in text
    assert "32 tokens" in text
    assert "onnx" not in text
    assert str(Path.home()) not in text
    assert str(reference.model) not in text


def snippets(folder: Path) -> dict[str, str]:
    return dict(re.findall(r"With (\w+):\n\n```python\n(.*?)\n```", (folder / "README.md").read_text("utf-8"), re.DOTALL))


@pytest.mark.parametrize("name", ["autoquant", "transformers"])
def test_the_lines_run(name: str, reference: Reference) -> None:
    code = snippets(reference.model_dir)[name]
    out = subprocess.run([sys.executable, "-c", code], cwd=reference.model_dir, capture_output=True, text=True, check=True).stdout
    assert re.search("positive|negative", out)


def test_an_exported_file_joins(folder: Path, exported: dict[str, Any]) -> None:
    text = write_card(folder, exported).read_text("utf-8")
    values = {result.metric_name: result.metric_value for result in ModelCard.load(folder / "README.md").data.eval_results}
    assert values["accuracy of model.onnx (onnx-int8)"] == 0.625
    assert len(values) == 2
    assert f"| model.onnx | 7 | `{file_sha256(folder / 'model.onnx')}` |" in text
    assert 'InferenceSession("model.onnx", options)' in snippets(folder)["onnxruntime"]
    del exported["deployed"]["onnx-int8"]["metrics"]
    assert "| not measured |" in write_card(folder, exported).read_text("utf-8")


def test_a_file_that_was_overwritten_is_not_spoken_of(folder: Path, exported: dict[str, Any]) -> None:
    (folder / "model.onnx").write_bytes(b"another")
    assert "onnx" not in write_card(folder, exported).read_text("utf-8")


def test_a_tuned_trial_names_no_split_it_was_not_measured_on(folder: Path, reference: Reference) -> None:
    card = ModelCard.load(write_card(folder, {**reference.metrics, "tuning": True}))
    (result,) = card.data.eval_results
    assert (result.dataset_split, result.dataset_config) == ("train", "sst2")
    assert "a fifth of the training rows" in result.dataset_name
    assert "on the evaluation rows" not in card.text
    assert "on a fifth of the training rows that it was not trained on, by which settings were chosen" in card.text


def test_the_base_model_is_kept(reference: Reference, folder: Path) -> None:
    write_card(folder, reference.metrics, "somebody/bert")
    text = write_card(folder, reference.metrics).read_text("utf-8")
    data = ModelCard.load(folder / "README.md").data
    assert (data.base_model, data.base_model_relation) == ("somebody/bert", "quantized")
    assert "[somebody/bert](https://huggingface.co/somebody/bert)" in text


def test_data_and_metrics_of_ones_own(folder: Path, reference: Reference) -> None:
    metrics = json.loads(json.dumps(reference.metrics).replace('"accuracy"', '"pearson"')) | {"task": "files"}
    write_card(folder, metrics)
    data = ModelCard.load(folder / "README.md").data
    assert data.metrics == ["pearsonr"]
    assert (data.eval_results[0].dataset_type, data.eval_results[0].metric_type) == ("files", "pearsonr")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("bert-base-uncased", "bert-base-uncased"),
        ("google/bert", "google/bert"),
        ("/a/folder", None),
        ("a/b/c", None),
        ("tests", None),
    ],
)
def test_what_is_a_hub_id(model: str, expected: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub_id(model) == expected
    assert hub_id(str(cached_folder(BACKBONE))) == BACKBONE_HUB_ID
