"""In which order do the stages run? teacher -> strategy -> recovery -> pack -> evaluate; this is also the Python API."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from autoquant.assets import default_backbone
from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import MIB, SizeBudget
from autoquant.core.errors import CheckpointError, DataError, ModelError, RunError
from autoquant.core.progress import Progress, SilentProgress
from autoquant.core.run import RunDirectory, file_sha256, versions
from autoquant.core.settings import Recipe, from_mapping, load_preset
from autoquant.export.manifest import (
    buckets_sha256,
    build_manifest,
    manifest_allocation,
    manifest_space,
    read_manifest,
    write_manifest,
)
from autoquant.pack.checkpoint import write_packed
from autoquant.pack.modules import load_packed
from autoquant.refine import REFINERS
from autoquant.strategies import SearchResult
from autoquant.supernet.build import Supernet
from autoquant.tasks.data import TaskData
from autoquant.tasks.load import Row, from_rows, load_default
from autoquant.tasks.metrics import score
from autoquant.training.batches import Encoded, encode
from autoquant.training.evaluate import predict_logits
from autoquant.workspace import Blueprint, Machine, Workspace, check_strategies, estimate_stages, save_pretrained

RELOAD_TOLERANCE = 1e-5
PACKED = "model.safetensors"
Budget = SizeBudget | Callable[[int, int], SizeBudget]


@dataclass(frozen=True)
class RunResult:
    """What a search leaves: the run directory, the allocation, the shipped folder, and metrics.json's content."""

    run_dir: Path
    model_dir: Path
    allocation: BitAllocation
    metrics: dict[str, Any] = field(repr=False)

    def load(self) -> Any:
        """The packed model, ready for `predict(texts)`."""
        from autoquant.inference import load

        return load(self.model_dir)


def resolve_budget(budget: Budget, blueprint: Blueprint) -> SizeBudget:
    """A budget in bytes; a callable is given the full-precision bytes of the file and of the encoder."""
    return budget if isinstance(budget, SizeBudget) else budget(blueprint.full_bytes("file"), blueprint.full_bytes("encoder"))


def recover(workspace: Workspace, result: SearchResult, budget: SizeBudget, method: str) -> Supernet:
    """Training with frozen bits, then module-wise reconstruction: the same for every method. Returns the frozen supernet."""
    settings = workspace.blueprint.recipe.recovery
    supernet = workspace.make_supernet(budget).to(workspace.context.device)
    if settings.start == "search" and result.weights is not None:
        supernet.model.load_state_dict(result.weights)
    supernet.freeze(result.allocation)
    for refiner, steps in (("retrain", settings.steps), ("mrem-s", settings.mrem_steps)):
        if steps:
            REFINERS[refiner].refine(
                supernet,
                workspace.teacher,
                workspace.train_all,
                workspace.outputs,
                settings,
                workspace.blueprint.recipe.distillation,
                workspace.context,
                f"{refiner}-{method}",
            )
    return supernet


def pack(workspace: Workspace, supernet: Supernet, allocation: BitAllocation, folder: Path) -> Path:
    """Write config, tokenizer and the packed weights into `folder`; returns the packed file."""
    blueprint = workspace.blueprint
    save_pretrained(folder, _config_to_ship(workspace), blueprint.source.tokenizer)
    state, scales = supernet.packed_state()
    settings = blueprint.packed_settings()
    return write_packed(folder / PACKED, state, scales, allocation, blueprint.byte_model, blueprint.quantizer, settings)


def _config_to_ship(workspace: Workspace) -> Any:
    teacher: Any = workspace.teacher
    config = type(teacher.config).from_dict(teacher.config.to_dict())
    config.architectures = [type(teacher).__name__]
    config.quantization_config = {"quant_method": "autoquant", **workspace.blueprint.packed_settings()}
    return config


def evaluate(workspace: Workspace, model: nn.Module, data: Encoded) -> tuple[dict[str, float], np.ndarray]:
    """The task's metrics and the logits of a model on encoded data."""
    logits = predict_logits(model, data, device=workspace.context.device)
    return score(workspace.blueprint.data.task.metrics, logits, data.labels), logits


def simulated_logits(workspace: Workspace, supernet: Supernet, data: Encoded) -> np.ndarray:
    """Logits of the simulated model, to hold the reloaded file against."""
    plain, _ = dataclasses.replace(workspace.blueprint.source, path=str(workspace.run.teacher_dir)).load(workspace.seed)
    model = supernet.materialize(plain).to(workspace.context.device)
    return predict_logits(model, data, device=workspace.context.device)


def run_method(
    workspace: Workspace, result: SearchResult, budget: SizeBudget, method: str, folder: Path, evaluation: Callable[[], Encoded]
) -> dict[str, Any]:
    """Recover, pack into `folder`, reload the file and measure it. Finished methods are read, not done again."""
    done = workspace.run.finished(f"method-{method}")
    if done is not None:
        return done
    with workspace.timed(f"recover-{method}"):
        supernet = recover(workspace, result, budget, method)
    with workspace.timed(f"pack-{method}"):
        path = pack(workspace, supernet, result.allocation, folder)
    exact = workspace.blueprint.byte_model.exact_bytes(result.allocation)
    if path.stat().st_size != exact:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes, {exact} were predicted: please report this.")
    with workspace.timed(f"evaluate-{method}"):
        data = evaluation()
        metrics, logits = evaluate(workspace, load_packed(folder).to(workspace.context.device), data)
        difference = float(np.abs(logits - simulated_logits(workspace, supernet, data)).max())
    if difference > RELOAD_TOLERANCE:
        raise CheckpointError(f"The reloaded {path} differs from the simulated model by {difference:.2e}: please report this.")
    counted = workspace.blueprint.byte_model.exact_bytes(result.allocation, budget.count)
    done = {"metrics": metrics, "file_bytes": exact, "counted_bytes": counted, "reload_difference": difference}
    workspace.run.finish(f"method-{method}", done)
    for refiner in REFINERS:
        workspace.run.discard_state(f"{refiner}-{method}")
    return done


def search(
    model: str | Path | None = None,
    train: TaskData | Iterable[Row] | None = None,
    evaluation: Iterable[Row] | None = None,
    *,
    budget: Budget,
    recipe: Recipe | None = None,
    run_dir: str | Path = "runs/default",
    controls: Sequence[str] = ("uniform",),
    seed: int = 0,
    max_length: int = 128,
    trim_positions: bool = False,
    machine: Machine | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Search, recover, pack and measure; the controls run with the same everything.

    `model`: a directory or hub id (None = the embedded MiniLM). `train`, `evaluation`: rows (text, label) or ((text, text),
    label); or `train` alone, a task from `autoquant.tasks.load` that has both; or neither, for the embedded reviews.
    Raises an AutoquantError, before any training, for input that cannot work.
    """
    recipe, machine, progress = recipe or load_preset("default"), machine or Machine(), progress or SilentProgress()
    check_strategies([recipe.search.strategy, *controls])
    _check_run(machine, seed)
    model, data = resolve_inputs(model, as_task(train, evaluation))
    blueprint = Blueprint.draw(str(model), data, recipe, max_length, trim_positions)
    size = resolve_budget(budget, blueprint)
    blueprint.table(size)
    settings = {
        "model": str(model),
        "task": data.task.name,
        "data": {"train": data.train.sha256(), "evaluation": data.evaluation.sha256()},
        "budget": dataclasses.asdict(size),
        "recipe": dataclasses.asdict(recipe),
        "controls": list(controls),
        "seed": seed,
        "max_length": max_length,
        "trim_positions": trim_positions,
        "machine": machine.identity(),
    }
    expected = 6 * blueprint.full_bytes()
    with RunDirectory.open(run_dir, settings, resume, expected_bytes=expected) as run:
        return _run(Workspace(blueprint, run, progress, machine, seed), size, recipe.search.strategy, controls)


def as_task(train: TaskData | Iterable[Row] | None, evaluation: Iterable[Row] | None) -> TaskData | None:
    """A task from what a caller gave; None for the embedded reviews. Raises DataError if one of two parts is missing."""
    if train is None or isinstance(train, TaskData):
        if evaluation is not None:
            raise DataError("evaluation rows need training rows beside them: give both, or a task with both parts.")
        return train
    if evaluation is None:
        raise DataError("Training rows need evaluation rows beside them: give both.")
    return from_rows(train, evaluation)


def _check_run(machine: Machine, seed: int = 0) -> None:
    machine.check()
    if seed < 0:
        raise RunError(f"--seed {seed} is negative: give 0 or more.")


def resolve_inputs(model: str | Path | None, data: TaskData | None) -> tuple[str, TaskData]:
    """Fill in the embedded backbone and data."""
    return str(model or default_backbone()), data or load_default()


def apply(
    manifest_path: str | Path,
    model: str | Path | None = None,
    data: TaskData | None = None,
    *,
    recovery: bool = True,
    run_dir: str | Path = "runs/applied",
    machine: Machine | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Quantise a model with the allocation of an `allocation.json` and re-run its recorded recovery (or none).

    `data` must be the training text the allocation was made with, since token-frequency buckets come from it: CheckpointError
    if its buckets differ.
    """
    machine, progress = machine or Machine(), progress or SilentProgress()
    _check_run(machine)
    manifest = read_manifest(manifest_path)
    model, data = resolve_inputs(model, data)
    recipe = _recorded_recipe(manifest)
    if recovery and recipe.recovery.start == "search":
        progress.say("Note: the recorded recovery went on from the searched weights; this one starts from the model's.")
    # the searched weights are not in an allocation.json, so there is only the model to start from
    changes: dict[str, Any] = {"start": "teacher"} if recovery else {"start": "teacher", "steps": 0, "mrem_steps": 0}
    recipe = dataclasses.replace(recipe, recovery=dataclasses.replace(recipe.recovery, **changes))
    trim, space = manifest["trim_positions"], manifest_space(manifest)
    blueprint = Blueprint.draw(str(model), data, recipe, manifest["max_length"], trim, space)
    allocation = manifest_allocation(manifest)
    _check_applies(manifest, blueprint, allocation)
    budget = SizeBudget(manifest["budget"]["bytes"], manifest["budget"]["count"])
    settings = {
        "allocation": file_sha256(manifest_path),
        "model": str(model),
        "data": {"train": data.train.sha256(), "evaluation": data.evaluation.sha256()},
        "recovery": recovery,
        "machine": machine.identity(),
    }
    with RunDirectory.open(run_dir, settings, resume, expected_bytes=6 * blueprint.full_bytes()) as run:
        workspace = Workspace(blueprint, run, progress, machine, manifest["seed"])
        return _finish(workspace, budget, manifest["strategy"], {manifest["strategy"]: SearchResult(allocation)})


def finetune_teacher(
    model: str | Path | None = None,
    data: TaskData | None = None,
    *,
    recipe: Recipe | None = None,
    run_dir: str | Path = "runs/teacher",
    seed: int = 0,
    max_length: int = 128,
    machine: Machine | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Fine-tune a bare encoder on the training file; returns the teacher's folder and {"validation", "steps", "best_step"}."""
    recipe, machine, progress = recipe or load_preset("default"), machine or Machine(), progress or SilentProgress()
    _check_run(machine, seed)
    model, data = resolve_inputs(model, data)
    blueprint = Blueprint.draw(str(model), data, recipe, max_length, trim_positions=False)
    if blueprint.source.load(seed)[1]:
        raise ModelError(f"{model} already has a trained head: give it to `autoquant search --model` as it is.")
    settings = {
        "model": str(model),
        "data": {"train": data.train.sha256()},
        "teacher": dataclasses.asdict(recipe.teacher),
        "held_out": recipe.search.held_out,
        "seed": seed,
        "max_length": max_length,
        "machine": machine.identity(),
    }
    with RunDirectory.open(run_dir, settings, resume, expected_bytes=4 * blueprint.full_bytes()) as run:
        workspace = Workspace(blueprint, run, progress, machine, seed)
        result = workspace.teacher_result()
        run.write_json("metrics.json", result)
        return run.teacher_dir, result


def evaluate_folder(folder: str | Path, data: TaskData) -> dict[str, float]:
    """The task's metrics of a packed folder on the evaluation rows, in the batches that the run's own evaluation uses."""
    from autoquant.inference import load

    predictor = load(folder)
    outputs = predictor.model.config.num_labels
    if outputs != max(1, len(data.label_names)):
        raise DataError(f"{folder} has {outputs} outputs, the data has {max(1, len(data.label_names))}: give its own task.")
    encoded = encode(predictor.tokenizer, data.evaluation, predictor.max_length)
    return score(data.task.metrics, predict_logits(predictor.model, encoded), encoded.labels)


def _recorded_recipe(manifest: Mapping[str, Any]) -> Recipe:
    """The recipe that a manifest records, as far as it matters to a recovery. Raises CheckpointError for a missing part."""
    parts = manifest["recovery"]
    missing = {"recovery", "distillation", "calibration"} - set(parts)
    if missing:
        raise CheckpointError(f"The allocation records no {' and no '.join(sorted(missing))} settings: search again.")
    recorded = {
        "quantizer": manifest["quantizer"],
        "activation_bits": manifest["activation_bits"],
        "distillation": parts["distillation"],
        "recovery": parts["recovery"],
        "search": parts["calibration"],
    }
    return from_mapping(Recipe, recorded, "allocation.json")


def _check_applies(manifest: Mapping[str, Any], blueprint: Blueprint, allocation: BitAllocation) -> None:
    allocation.check_fits(blueprint.byte_model.partitions)
    recorded = {matrix["name"]: matrix for matrix in manifest["matrices"]}
    for partition in blueprint.byte_model.partitions:
        matrix = recorded[partition.matrix.name]
        shape = [partition.matrix.rows, partition.matrix.columns]
        if matrix["shape"] != shape:
            here, there = f"{partition.matrix.name} is {shape} here", f"{matrix['shape']} in the allocation"
            raise CheckpointError(f"{here} and {there}: give the model it was made for.")
        if matrix["buckets_sha256"] != buckets_sha256(partition):
            raise CheckpointError(
                "The training text gives other token-frequency buckets than the allocation's: give the data it was made with."
            )


def _run(workspace: Workspace, budget: SizeBudget, strategy: str, controls: Sequence[str]) -> RunResult:
    workspace.progress.plan(estimate_stages(workspace.blueprint, strategy, controls))
    results = {strategy: workspace.search(strategy, budget)}
    for control in controls:
        results[control] = workspace.search(control, budget)
    return _finish(workspace, budget, strategy, results)


def _finish(workspace: Workspace, budget: SizeBudget, strategy: str, results: Mapping[str, SearchResult]) -> RunResult:
    """Recover, pack and measure every method; write manifest and metrics. The evaluation data is read here, once."""
    run, blueprint = workspace.run, workspace.blueprint
    run.add_hashes(teacher=workspace.teacher_hash)
    _warn_of_overlap(workspace)
    encoded: list[Encoded] = []

    def evaluation() -> Encoded:
        if not encoded:
            encoded.append(encode(blueprint.source.tokenizer, blueprint.data.evaluation, blueprint.max_length))
        return encoded[0]

    measured: dict[str, dict[str, Any]] = {}
    for method, result in results.items():
        folder = run.model_dir if method == strategy else run.path / "controls" / method
        measured[method] = run_method(workspace, result, budget, method, folder, evaluation)
    full = run.finished("full-precision")
    if full is None:
        full, _ = evaluate(workspace, workspace.teacher, evaluation())
        run.finish("full-precision", full)
    metrics = _summary(workspace, budget, strategy, results, measured, full)
    _write_manifest(workspace, budget, strategy, results[strategy], metrics)
    metrics["bytes"]["directory"] = sum(f.stat().st_size for f in run.model_dir.rglob("*") if f.is_file())
    run.write_json("metrics.json", metrics)
    _show(workspace, metrics, measured)
    return RunResult(run.path, run.model_dir, results[strategy].allocation, metrics)


def _warn_of_overlap(workspace: Workspace) -> None:
    """Say how many evaluation texts stand in the training file too: the metric then flatters every row."""
    data = workspace.blueprint.data
    shared = set(data.train.text_hashes()) & set(data.evaluation.text_hashes())
    if shared:
        total = len(data.evaluation)
        workspace.progress.say(f"Note: {len(shared)} of {total} evaluation texts are in the training file too.")


def _summary(
    workspace: Workspace,
    budget: SizeBudget,
    strategy: str,
    results: Mapping[str, SearchResult],
    measured: Mapping[str, Mapping[str, Any]],
    full: Mapping[str, float],
) -> dict[str, Any]:
    task, blueprint, ours = workspace.blueprint.data.task, workspace.blueprint, measured[strategy]
    fisher = workspace.search("fisher", budget).allocation
    allocation = results[strategy].allocation
    differs = {"fisher": allocation.share_different(fisher)}
    if "uniform" in results:
        differs["uniform"] = allocation.share_different(results["uniform"].allocation)
    encoder = [p for p in blueprint.byte_model.partitions if p.matrix.layer is not None]
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
        "all_metrics": {"full_precision": full, **{name: m["metrics"] for name, m in measured.items()}},
        "bytes": {
            "budget": budget.bytes,
            "count": budget.count,
            "counted": ours["counted_bytes"],
            "file": ours["file_bytes"],
            "full_precision": blueprint.full_bytes(budget.count),
            "breakdown": blueprint.byte_model.breakdown(allocation),
            "controls": {name: m["file_bytes"] for name, m in measured.items() if name != strategy},
        },
        "encoder_bits_per_weight": allocation.mean_bits(encoder),
        "share_of_subgroups_different_from": differs,
        "reload_difference": max(m["reload_difference"] for m in measured.values()),
        "seconds": workspace.run.seconds(),
        "seed": workspace.seed,
    }


def _write_manifest(
    workspace: Workspace, budget: SizeBudget, strategy: str, result: SearchResult, metrics: Mapping[str, Any]
) -> None:
    blueprint, recipe = workspace.blueprint, workspace.blueprint.recipe
    choice = blueprint.table(budget).to_choice(result.allocation)
    manifest = build_manifest(
        space=blueprint.space,
        partitions=blueprint.byte_model.partitions,
        allocation=result.allocation,
        probability=result.probability,
        sensitivity=workspace.calibration.sensitivity[np.arange(len(choice)), choice],
        quantizer=recipe.quantizer,
        activation_bits=recipe.activation_bits,
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
            "file": file_sha256(workspace.run.model_dir / PACKED),
        },
        versions=versions(),
        seed=workspace.seed,
    )
    write_manifest(workspace.run.model_dir / "allocation.json", manifest)


def _show(workspace: Workspace, metrics: Mapping[str, Any], measured: Mapping[str, Mapping[str, Any]]) -> None:
    name, size, seconds = metrics["metric"]["name"], metrics["bytes"], metrics["seconds"]
    whole = workspace.blueprint.full_bytes()
    full = f"{metrics['metric']['full_precision']:.4f}"
    rows = [["full precision", f"{whole:,}", "1.0x", full, f"{seconds.get('teacher', 0):.0f}"]]
    for method, values in sorted(measured.items(), key=lambda item: item[0] == metrics["strategy"]):
        spent = sum(seconds.get(f"{part}-{method}", 0.0) for part in ("search", "recover", "pack"))
        label = f"ours ({method})" if method == metrics["strategy"] else method
        ratio = f"{whole / values['file_bytes']:.1f}x"
        rows.append([label, f"{values['file_bytes']:,}", ratio, f"{values['metrics'][name]:.4f}", f"{spent:.0f}"])
    title = f"{metrics['task']}: budget {size['budget']:,} bytes ({size['budget'] / MIB:.2f} MiB, {size['count']})"
    workspace.progress.table(title, ["model", "file bytes", "ratio", name, "seconds"], rows)
    shares = ", ".join(f"{share:.0%} from {other}" for other, share in metrics["share_of_subgroups_different_from"].items())
    workspace.progress.say(f"Sub-groups whose bits differ: {shares}. Shipped: {workspace.run.model_dir}")
