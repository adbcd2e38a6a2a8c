"""What does a run say at its end? metrics.json, allocation.json, and a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import MIB, SizeBudget, choice_table
from autoquant.core.derive import remove_by_name
from autoquant.core.files import file_sha256
from autoquant.core.run import RunDirectory
from autoquant.core.versions import versions
from autoquant.export.card import present_files
from autoquant.export.manifest import build_manifest, write_manifest
from autoquant.pack.model import FILE_NAME
from autoquant.strategies import SearchResult, stages_of
from autoquant.workspace import Workspace


def summarise(
    workspace: Workspace,
    budget: SizeBudget,
    strategy: str,
    results: Mapping[str, SearchResult],
    measured: Mapping[str, Mapping[str, Any]],
    full: Mapping[str, float],
    differs: Mapping[str, float],
) -> dict[str, Any]:
    """The content of metrics.json; `differs`: share of sub-groups whose bits differ from those of other allocations."""
    blueprint, ours = workspace.blueprint, measured[strategy]
    task_data, task = blueprint.data, blueprint.data.task
    allocation, weights = results[strategy].allocation, blueprint.byte_model
    uniform = measured["uniform"]["metrics"][task.metric] if "uniform" in measured else None
    return {
        "task": task.name,
        "strategy": strategy,
        "metric": {
            "name": task.metric,
            "value": ours["metrics"][task.metric],
            "full_precision": full[task.metric],
            "uniform": uniform,
        },
        "deployed": _deployed(workspace.run, ours["metrics"]),
        "all_metrics": {"full_precision": full, **{name: m["metrics"] for name, m in measured.items()}},
        "bytes": {
            "budget": budget.bytes,
            "count": budget.count,
            "counted": ours["counted_bytes"],
            "derived": results[strategy].derived_bytes,
            "file": ours["file_bytes"],
            "full_precision": blueprint.full_bytes(),
            "full_precision_counted": blueprint.full_bytes(budget.count),
            "breakdown": weights.breakdown(allocation),
            "controls": {name: m["file_bytes"] for name, m in measured.items() if name != strategy},
        },
        "encoder_bits_per_weight": weights.encoder_bits(allocation),
        "units_removed": list(allocation.removed),
        "share_of_subgroups_different_from": dict(differs),
        "reload_difference": max(m["reload_difference"] for m in measured.values()),
        "seconds": workspace.run.seconds(),
        "peak_mib": workspace.run.peaks_mib(),
        "seed": workspace.seed,
        "tuning": task_data.tuning,
    }


def _deployed(run: RunDirectory, metrics: Mapping[str, float]) -> dict[str, Any]:
    """The file that was reloaded and measured; exports join it, and stay as long as they were made from this very file."""
    path = run.model_dir / FILE_NAME
    packed = {"file": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path), "metrics": metrics}
    before = run.result().get("deployed", {}) if run.is_finished else {}
    same = before.get("safetensors", {}).get("sha256") == packed["sha256"]
    return {**(present_files(run.model_dir, before) if same else {}), "safetensors": packed}


def differences(workspace: Workspace, budget: SizeBudget, allocation: BitAllocation) -> dict[str, float]:
    """What a search found beyond its prior and beyond chance."""
    others = {name: workspace.search(name, budget).allocation for name in ("fisher", "uniform")}
    return {name: workspace.blueprint.byte_model.share_different(allocation, other) for name, other in others.items()}


def write_allocation(
    workspace: Workspace,
    budget: SizeBudget,
    strategy: str,
    result: SearchResult,
    metrics: Mapping[str, Any],
    sensitivity: np.ndarray | None,
) -> None:
    """allocation.json; `sensitivity` [N, K] of every choice of the whole table, None where nobody measured it."""
    blueprint, recipe = workspace.blueprint, workspace.blueprint.recipe
    table = choice_table(blueprint.byte_model, budget.count)
    none = np.full(table.bytes.shape, np.nan)
    smaller, scores = remove_by_name(none if sensitivity is None else sensitivity, table, result.allocation.removed)
    choice = smaller.to_choice(result.allocation)
    manifest = build_manifest(
        space=blueprint.space,
        partitions=smaller.partitions,
        allocation=result.allocation,
        probability=result.probability,
        sensitivity=None if sensitivity is None else scores[np.arange(len(choice)), choice],
        quantizer=recipe.quantizer,
        activation_bits=recipe.activation_bits,
        activations=recipe.activations,
        max_length=blueprint.max_length,
        trim_positions=blueprint.trim_positions,
        budget=budget,
        reached={"file": metrics["bytes"]["file"], "counted": metrics["bytes"]["counted"]},
        breakdown=metrics["bytes"]["breakdown"],
        metrics=metrics["metric"],
        strategy=strategy,
        recovery={
            "recovery": dataclasses.asdict(recipe.recovery),
            "distillation": dataclasses.asdict(recipe.distillation),
            # these decide the initial scales and the order of the rows
            "calibration": {name: getattr(recipe.search, name) for name in ("held_out", "calibration_samples")},
        },
        hashes={
            **workspace.data_hashes(),
            "teacher": workspace.teacher_hash,
            "file": file_sha256(workspace.run.model_dir / FILE_NAME),
        },
        versions=versions(),
        seed=workspace.seed,
    )
    write_manifest(workspace.run.model_dir / "allocation.json", manifest)


def show(workspace: Workspace, metrics: Mapping[str, Any], measured: Mapping[str, Mapping[str, Any]]) -> None:
    name, size, seconds = metrics["metric"]["name"], metrics["bytes"], metrics["seconds"]
    whole = workspace.blueprint.full_bytes()
    full = f"{metrics['metric']['full_precision']:.4f}"
    rows = [["full precision", f"{whole:,}", "1.0x", full, f"{seconds.get('teacher', 0):.0f}"]]
    for method, values in sorted(measured.items(), key=lambda item: item[0] == metrics["strategy"]):
        spent = sum(seconds.get(stage, 0.0) for stage in stages_of(method))
        label = f"ours ({method})" if method == metrics["strategy"] else method
        ratio = f"{whole / values['file_bytes']:.1f}x"
        rows.append([label, f"{values['file_bytes']:,}", ratio, f"{values['metrics'][name]:.4f}", f"{spent:.0f}"])
    title = f"{metrics['task']}: budget {size['budget']:,} bytes ({size['budget'] / MIB:.2f} MiB, {size['count']})"
    workspace.progress.table(title, ["model", "file bytes", "ratio", name, "seconds"], rows)
    shares = ", ".join(f"{share:.0%} from {other}" for other, share in metrics["share_of_subgroups_different_from"].items())
    differing = f"Sub-groups whose bits differ: {shares}. " if shares else ""
    workspace.progress.say(f"{differing}Shipped: {workspace.run.model_dir}")
