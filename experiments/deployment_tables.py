"""The table of experiments/deployment.py's cells; `python experiments/tables.py` puts it into a README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "deployment"
WORKLOADS = {"1x32": "1 x 32", "1x128": "1 x 128", "16x128": "16 x 128", "task": "the task's texts"}
BASELINES = {"torch_fp32": "full precision, torch", "ort_fp32": "full precision, ONNX Runtime", "ort_int8": "dynamic int8"}


def deployment_table() -> str:
    """Contender x bytes, accuracy, speed at every workload, load time and memory; baselines as timed beside the last budget."""
    cells = [json.loads(path.read_text("utf-8")) for path in RESULTS.glob("*.json")]
    cells = sorted((cell for cell in cells if "bench" in cell), key=lambda cell: cell["bytes"]["budget"])
    if not cells:
        return "No cells yet: run `python experiments/deployment.py`."
    if len({cell["teacher_sha256"] for cell in cells}) > 1:
        raise SystemExit("The deployment cells differ in their teacher: a table must not mix them.")
    heads = ["model", "bytes", "accuracy", *WORKLOADS.values(), "load s", "peak MiB"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, title in BASELINES.items():
        lines.append(_row(title, name, cells[-1]["bench"], _baseline_metric(name, cells[-1])))
    for cell in cells:
        title = f"**ours, {cell['bytes']['budget'] / 2**20:g} MiB**"
        lines.append(_row(title, "autoquant", cell["bench"], cell["deployed"]["onnx-int8"]["metrics"]["accuracy"]))
    return "\n".join([*lines, "", *(_truth(cell) for cell in cells)])


def _row(title: str, name: str, bench: dict[str, Any], accuracy: float) -> str:
    timed = [bench["workloads"][workload] for workload in WORKLOADS]
    speeds = [f"{times['milliseconds'][name]:.2f} ms, {times['speed'][name]:.2f}x" for times in timed]
    footprint = [f"{bench['load_seconds'][name]:.2f}", f"{bench['peak_mib'][name]:.0f}"]
    size = f"{bench['bytes'][name]:,}"
    return f"| {' | '.join([title, size, f'{100 * accuracy:.2f}', *speeds, *footprint])} |"


def _baseline_metric(name: str, cell: dict[str, Any]) -> float:
    return cell["bench"]["metrics"]["ort_int8"]["accuracy"] if name == "ort_int8" else cell["metric"]["full_precision"]


def _truth(cell: dict[str, Any]) -> str:
    """One budget's files: accuracy of each, and how far the exported logits are from what was simulated."""
    files, int8, uniform = cell["deployed"], cell["bench"]["bytes"]["ort_int8"], 100 * cell["metric"]["uniform"]
    values = ", ".join(f"{100 * files[name]['metrics']['accuracy']:.2f} {label}" for name, label in LABELS.items())
    exact = files["onnx-int8"]["float_activation_metrics"]["accuracy"]
    fp32, fast = (files[name]["logit_difference"] for name in ("onnx-fp32", "onnx-int8"))
    smaller, larger = int8 / files["onnx-int8"]["bytes"], files["onnx-int8"]["bytes"] - files["safetensors"]["bytes"]
    same = ", ".join(f"{cell['bench']['workloads'][name]['speed_in_same_graph']['autoquant']:.2f}x" for name in WORKLOADS)
    return (
        f"- {cell['bytes']['budget'] / 2**20:g} MiB: accuracy {values}, {100 * exact:.2f} packed file with float activations, "
        f"{uniform:.2f} uniform bits. "
        f"Logits differ from the simulation by at most {fp32['max']:.0e} (fp32 tail) and {fast['max']:.2f} (int8 tail, "
        f"{fast['mean']:.3f} on average). `model.onnx` is {smaller:.1f} times smaller than dynamic int8, {larger:+,} bytes "
        f"beside `model.safetensors`. Speed relative to dynamic int8 in our own graph: {same}."
    )


LABELS = {
    "safetensors": "packed file with 8-bit activations",
    "onnx-fp32": "ONNX with the fp32 tail",
    "onnx-int8": "ONNX with the int8 tail",
}
