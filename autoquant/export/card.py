"""The model card of a packed folder: README.md in the hub's format, with the numbers of metrics.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from autoquant.core.cost import MIB
from autoquant.core.files import atomic_write_text, file_sha256
from autoquant.tasks import TASKS
from autoquant.tasks.task import GLUE_HUB

CARD_NAME = "README.md"
TUNING_ROWS = "a fifth of the training rows that it was not trained on"
HUB_METRICS = {"pearson": "pearsonr"}  # where the hub's name is not ours

AUTOQUANT = """import autoquant

print(autoquant.load(".").predict(["{text}"]))"""
TRANSFORMERS = """import autoquant  # transformers then knows the format
from transformers import pipeline

print(pipeline("text-classification", model=".")("{text}", truncation=True))"""
ONNXRUNTIME = """import onnxruntime
from transformers import AutoTokenizer

options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.x64quantprecision", "1")  # 8-bit weights overflow on CPUs without VNNI otherwise
inputs = AutoTokenizer.from_pretrained(".")(["{text}"], truncation=True, return_tensors="np")
print(onnxruntime.InferenceSession("{file}", options).run(["logits"], dict(inputs)))"""


def write_card(folder: Path, metrics: Mapping[str, Any], base_model: str | None = None) -> Path:
    """Write `folder`/README.md, or write it anew once `metrics` (the content of metrics.json) names more files as `deployed`.

    Only files that are there with the recorded hash are spoken of.
    `base_model`: the hub id the model was made from; None keeps what the present card says of it.
    """
    path = folder / CARD_NAME
    if base_model is None and path.is_file():
        base_model = ModelCard.load(path).data.base_model
    metrics = {**metrics, "deployed": present_files(folder, metrics["deployed"])}
    config = json.loads((folder / "config.json").read_text("utf-8"))
    atomic_write_text(path, f"---\n{_front_matter(metrics, base_model).to_yaml()}\n---\n\n{_body(config, metrics, base_model)}")
    return path


def present_files(folder: Path, deployed: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `deployed` whose file is in the folder with the recorded hash."""

    def is_there(path: Path, sha256: str) -> bool:
        return path.is_file() and file_sha256(path) == sha256

    return {name: entry for name, entry in deployed.items() if is_there(folder / entry["file"], entry["sha256"])}


def _name(metrics: Mapping[str, Any], base_model: str | None) -> str:
    base = (base_model or "packed").rpartition("/")[2]
    return f"{base}-{metrics['task']}-{metrics['bytes']['file'] / MIB:.1f}MiB"


def _front_matter(metrics: Mapping[str, Any], base_model: str | None) -> ModelCardData:
    names = sorted({name for entry in metrics["deployed"].values() for name in entry.get("metrics", {})})
    return ModelCardData(
        library_name="autoquant",
        base_model=base_model,
        base_model_relation="quantized" if base_model else None,
        pipeline_tag="text-classification",
        tags=["autoquant", "quantized", "mixed-precision"],
        metrics=[HUB_METRICS.get(name, name) for name in names],
        model_name=_name(metrics, base_model),
        eval_results=[
            EvalResult(
                task_type="text-classification",
                **_data_set(metrics["task"], metrics.get("tuning", False)),
                metric_type=HUB_METRICS.get(name, name),
                metric_name=f"{name} of {entry['file']} ({format_})",
                metric_value=value,
            )
            for format_, entry in metrics["deployed"].items()
            for name, value in entry.get("metrics", {}).items()
        ],
    )


def _data_set(task: str, tuning: bool) -> dict[str, Any]:
    """A GLUE task by its name on the hub, data of one's own by ours; of rows kept from the training file it is said."""
    part = f" ({TUNING_ROWS})" if tuning else ""
    if task not in TASKS:
        return {"dataset_type": task, "dataset_name": f"{task}{part}"}
    split = "train" if tuning else TASKS[task].evaluation
    return {"dataset_type": GLUE_HUB, "dataset_name": f"GLUE {task}{part}", "dataset_config": task, "dataset_split": split}


def _body(config: Mapping[str, Any], metrics: Mapping[str, Any], base_model: str | None) -> str:
    settings = config["quantization_config"]
    origin = f"[{base_model}](https://huggingface.co/{base_model})" if base_model else f"A {config['model_type']} model"
    parts = [
        f"# {_name(metrics, base_model)}",
        f"{origin}, fine-tuned for `{metrics['task']}` and packed by autoquant: {_bits(metrics)} Texts are read up to "
        f"{settings['max_length']} tokens.{_activations(settings)}",
        _table(metrics),
        _measured_on(metrics),
        "## Load",
        "In this folder; `allocation.json` says which weights have how many bits.",
        *_snippets(metrics),
        "## Files",
        _hashes(metrics),
    ]
    return "\n\n".join(parts) + "\n"


def _bits(metrics: Mapping[str, Any]) -> str:
    if metrics["strategy"].startswith("uniform-"):
        return f"every weight has the bits that its name says ({metrics['strategy'].removeprefix('uniform-')})."
    size = metrics["bytes"]
    return f"the bits of every group of weights were chosen under a budget of {size['budget']:,} bytes ({size['count']})."


def _activations(settings: Mapping[str, Any]) -> str:
    """What the format's reader cannot see: learned ranges run in floats, whatever the runtime."""
    if settings.get("activations") != "static":
        return ""
    return (
        f" Inputs of linear layers are rounded to {settings['activation_bits']} bits in learned ranges; to ONNX it exports "
        "with `--tail fp32` only."
    )


def _measured_on(metrics: Mapping[str, Any]) -> str:
    if metrics.get("tuning", False):
        return f"Every number is that of the file itself, on {TUNING_ROWS}, by which settings were chosen."
    return "Every number is that of the file itself, on the evaluation rows."


def _table(metrics: Mapping[str, Any]) -> str:
    name, whole = metrics["metric"]["name"], metrics["bytes"]["full_precision"]
    rows = [f"| file | bytes | times smaller | {name} |", "|---|---|---|---|"]
    rows.append(f"| full precision | {whole:,} | 1.0 | {metrics['metric']['full_precision']:.4f} |")
    for format_, entry in metrics["deployed"].items():
        value = f"{entry['metrics'][name]:.4f}" if "metrics" in entry else "not measured"
        rows.append(f"| {entry['file']} ({format_}) | {entry['bytes']:,} | {whole / entry['bytes']:.1f} | {value} |")
    return "\n".join(rows)


def _snippets(metrics: Mapping[str, Any]) -> list[str]:
    text = "a charming and often affecting journey"
    snippets = {"autoquant": AUTOQUANT, "transformers": TRANSFORMERS}
    exported = [entry["file"] for entry in metrics["deployed"].values() if entry["file"].endswith(".onnx")]
    if exported:
        snippets["onnxruntime"] = ONNXRUNTIME.replace("{file}", min(exported))  # model.onnx, the fast one, before model_fp32.onnx
    return [f"With {name}:\n\n```python\n{code.replace('{text}', text)}\n```" for name, code in snippets.items()]


def _hashes(metrics: Mapping[str, Any]) -> str:
    rows = [f"| {entry['file']} | {entry['bytes']:,} | `{entry['sha256']}` |" for entry in metrics["deployed"].values()]
    return "\n".join(["| file | bytes | SHA-256 |", "|---|---|---|", *rows])
