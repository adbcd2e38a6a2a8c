"""In which order do the stages run? teacher -> strategy -> recovery -> pack -> evaluate; this is also the Python API."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autoquant import method
from autoquant.assets import default_backbone, hub_id
from autoquant.blueprint import Blueprint
from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import SizeBudget
from autoquant.core.errors import BudgetError, CheckpointError, DataError, ModelError
from autoquant.core.files import file_sha256, folder_bytes
from autoquant.core.progress import Progress, SilentProgress
from autoquant.core.run import RunDirectory
from autoquant.core.settings import Recipe, check_seed, from_mapping, load_preset
from autoquant.estimates import estimate_stages
from autoquant.export.card import write_card
from autoquant.export.manifest import (
    buckets_sha256,
    manifest_allocation,
    manifest_space,
    read_manifest,
    space_content,
)
from autoquant.machine import Machine
from autoquant.outcome import differences, show, summarise, write_allocation
from autoquant.reports.page import write_report
from autoquant.strategies import SearchResult, check_strategies
from autoquant.tasks.data import TaskData
from autoquant.tasks.load import Row, Text, from_rows, load_default, with_texts
from autoquant.tasks.metrics import score
from autoquant.training.batches import encode
from autoquant.training.evaluate import predict_logits
from autoquant.workspace import Workspace

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


@dataclass(frozen=True)
class Shared:
    """What a run takes over instead of doing it: `adopt` puts it into the run's workspace, `origin` says where it is from."""

    origin: str
    adopt: Callable[[Workspace], None]


def resolve_budget(budget: Budget | None, blueprint: Blueprint) -> SizeBudget:
    """A budget in bytes; a callable is given the full-precision bytes of the file and of the encoder.

    None leaves it to a recipe that fixes its own size. Raises BudgetError where neither says it, or both say different things.
    """
    own = blueprint.own_budget
    if budget is None:
        if own is None:
            raise BudgetError(
                "Give one of --budget-mib and --budget-ratio, e.g. --budget-mib 6, or a --preset that fixes its own size."
            )
        return own
    if not isinstance(budget, SizeBudget):
        budget = budget(blueprint.full_bytes("file"), blueprint.full_bytes("encoder"))
    if own not in (None, budget):
        fixed, asked = (f"{size.bytes:,} bytes of the {size.count}" for size in (own, budget) if size)
        raise BudgetError(f"The recipe fixes its own size, {fixed}, not {asked}: leave the budget out, or take another --preset.")
    return budget


def search(
    model: str | Path | None = None,
    train: TaskData | Iterable[Row] | None = None,
    evaluation: Iterable[Row] | None = None,
    *,
    more_texts: str | Path | Iterable[Text] | None = None,
    budget: Budget | None = None,
    recipe: Recipe | None = None,
    run_dir: str | Path = "runs/default",
    controls: Sequence[str] = ("uniform",),
    seed: int = 0,
    max_length: int = 128,
    trim_positions: bool = False,
    machine: Machine | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    shared: Shared | None = None,
) -> RunResult:
    """Search, recover, pack and measure; the controls run with the same everything.

    `model`: a directory or hub id (None = the embedded MiniLM). `train`, `evaluation`: rows (text, label) or ((text, text),
    label); or `train` alone, a task from `autoquant.tasks.load` that has both; or neither, for the embedded reviews.
    `more_texts`: further texts, or pairs of texts, without labels, or a file of them, from which recovery learns too.
    `budget`: None for a recipe that fixes its own size. `shared`: what a sweep has prepared for all its trials.
    Raises an AutoquantError, before any training, for input that cannot work.
    """
    recipe, machine, progress = recipe or load_preset("default"), machine or Machine(), progress or SilentProgress()
    check_strategies([recipe.search.strategy, *controls])
    check_run(machine, seed)
    model, data = resolve_inputs(model, as_task(train, evaluation))
    data = data if more_texts is None else with_texts(data, more_texts)
    blueprint = Blueprint.draw(str(model), data, recipe, max_length, trim_positions)
    size = resolve_budget(budget, blueprint)
    blueprint.check_searchable(size)
    settings = {
        "model": str(model),
        "task": data.task.name,
        "data": data.hashes(),
        "budget": dataclasses.asdict(size),
        "recipe": dataclasses.asdict(recipe),
        "space": space_content(blueprint.space),
        "controls": list(controls),
        "seed": seed,
        "max_length": max_length,
        "trim_positions": trim_positions,
        "machine": machine.identity(),
    }
    settings |= {"shared": shared.origin} if shared else {}
    expected = 6 * blueprint.full_bytes()
    with RunDirectory.open(run_dir, settings, resume, expected, {"recipe": dataclasses.asdict(Recipe())}) as run:
        workspace = Workspace(blueprint, run, progress, machine, seed)
        if shared:
            shared.adopt(workspace)
        return _run(workspace, size, recipe.search.strategy, controls)


def as_task(train: TaskData | Iterable[Row] | None, evaluation: Iterable[Row] | None) -> TaskData | None:
    """A task from what a caller gave; None for the embedded reviews. Raises DataError if one of two parts is missing."""
    if train is None or isinstance(train, TaskData):
        if evaluation is not None:
            raise DataError("evaluation rows need training rows beside them: give both, or a task with both parts.")
        return train
    if evaluation is None:
        raise DataError("Training rows need evaluation rows beside them: give both.")
    return from_rows(train, evaluation)


def check_run(machine: Machine, seed: int = 0) -> None:
    machine.check()
    check_seed(seed)


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
    if its buckets differ. An allocation of a tuned sweep is trained and measured on the parts of the training file that it was.
    """
    machine, progress = machine or Machine(), progress or SilentProgress()
    check_run(machine)
    manifest = read_manifest(manifest_path)
    model, data = resolve_inputs(model, data)
    data = data.as_recorded(manifest["hashes"])
    recipe = recorded_recipe(manifest)
    if recovery and recipe.recovery.start == "search":
        progress.say("Note: the recorded recovery went on from the searched weights; this one starts from the model's.")
    # the searched weights are not in an allocation.json, so there is only the model to start from
    start = "pretrained" if recipe.recovery.start == "pretrained" else "teacher"
    changes: dict[str, Any] = {"start": start} if recovery else {"start": "teacher", "steps": 0, "mrem_steps": 0}
    recipe = dataclasses.replace(recipe, recovery=dataclasses.replace(recipe.recovery, **changes))
    trim, space = manifest["trim_positions"], manifest_space(manifest)
    blueprint = Blueprint.draw(str(model), data, recipe, manifest["max_length"], trim, space)
    allocation = manifest_allocation(manifest)
    check_applies(manifest, blueprint, allocation)
    budget = SizeBudget(manifest["budget"]["bytes"], manifest["budget"]["count"])
    settings = {
        "allocation": file_sha256(manifest_path),
        "model": str(model),
        "data": data.hashes(),
        "recovery": recovery,
        "machine": machine.identity(),
    }
    with RunDirectory.open(run_dir, settings, resume, expected_bytes=6 * blueprint.full_bytes()) as run:
        workspace = Workspace(blueprint, run, progress, machine, manifest["seed"])
        ours = {"teacher": workspace.teacher_hash, "unlabelled": None, **data.hashes()}
        other = [name for name in ("teacher", "train", "unlabelled") if manifest["hashes"].get(name) != ours[name]]
        if other:
            progress.say(f"Note: not the same {' and '.join(other)} as the allocation's; the result will differ from its run.")
        return finish(workspace, budget, manifest["strategy"], {manifest["strategy"]: SearchResult(allocation)})


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
    check_run(machine, seed)
    model, data = resolve_inputs(model, data)
    blueprint = Blueprint.draw(str(model), data, recipe, max_length, trim_positions=False)
    if blueprint.source.load(seed)[1]:
        raise ModelError(f"{model} already has a trained head: give it to `autoquant search --model` as it is.")
    return keep_teacher(blueprint, run_dir, seed, machine, resume, progress)


def keep_teacher(
    blueprint: Blueprint, run_dir: str | Path, seed: int, machine: Machine, resume: bool, progress: Progress
) -> tuple[Path, dict[str, Any]]:
    """The same for any model: one that has a trained head is kept as it is, in one file, wherever it came from.

    It has all its layers: a run whose recipe asks for a student makes that from it.
    """
    blueprint = blueprint.without_student()
    recipe = blueprint.recipe
    settings = {
        "model": blueprint.source.path,
        "data": {"train": blueprint.data.train.sha256()},
        "teacher": dataclasses.asdict(recipe.teacher),
        "held_out": recipe.search.held_out,
        "seed": seed,
        "max_length": blueprint.max_length,
        "machine": machine.identity(),
    }
    with RunDirectory.open(run_dir, settings, resume, expected_bytes=4 * blueprint.full_bytes()) as run:
        workspace = Workspace(blueprint, run, progress, machine, seed)
        result = workspace.teacher_result()
        run.write_json("metrics.json", result)
        return run.teacher_dir, result


def evaluate_folder(folder: str | Path, data: TaskData) -> dict[str, float]:
    """The task's metrics of a packed folder on the evaluation rows, in the batches that the run's own evaluation uses."""
    logits, labels = predict_folder(folder, data)
    return score(data.task.metrics, logits, labels)


def predict_folder(folder: str | Path, data: TaskData) -> tuple[np.ndarray, np.ndarray]:
    """Logits [rows, classes] and labels [rows] of the evaluation rows, by the reloaded model of a packed folder."""
    from autoquant.inference import load

    predictor = load(folder)
    encoded = predictor.evaluation(data)
    return predict_logits(predictor.model, encoded), encoded.labels


def recorded_recipe(manifest: Mapping[str, Any]) -> Recipe:
    """The recipe that a manifest records, as far as it matters to a recovery. Raises CheckpointError for a missing part."""
    parts = manifest["recovery"]
    missing = {"recovery", "distillation", "calibration"} - set(parts)
    if missing:
        raise CheckpointError(f"The allocation records no {' and no '.join(sorted(missing))} settings: search again.")
    recorded = {
        "quantizer": manifest["quantizer"],
        "activation_bits": manifest["activation_bits"],
        "activations": manifest["activations"],
        "distillation": parts["distillation"],
        "recovery": parts["recovery"],
        "search": parts["calibration"],
    }
    return from_mapping(Recipe, recorded, "allocation.json")


def check_applies(manifest: Mapping[str, Any], blueprint: Blueprint, allocation: BitAllocation) -> None:
    partitions = blueprint.byte_model.without(allocation.removed).partitions
    allocation.check_fits(partitions)
    recorded = {matrix["name"]: matrix for matrix in manifest["matrices"]}
    for partition in partitions:
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
    only = workspace.blueprint.only_allocation
    if only is not None:  # there is nothing to search, and no control would differ
        return finish(workspace, budget, strategy, {strategy: SearchResult(only)}, searched=False)
    results = {strategy: workspace.search(strategy, budget)}
    for control in controls:
        results[control] = workspace.search(control, budget)
    return finish(workspace, budget, strategy, results)


def finish(
    workspace: Workspace, budget: SizeBudget, strategy: str, results: Mapping[str, SearchResult], searched: bool = True
) -> RunResult:
    """Recover, pack and measure every method; write manifest and metrics, with what a search knows if there was one."""
    run, blueprint = workspace.run, workspace.blueprint
    run.add_hashes(teacher=workspace.teacher_hash)
    _warn_of_overlap(workspace)
    folders = {m: run.model_dir if m == strategy else run.path / "controls" / m for m in results}
    built = {m: method.build(workspace, result, budget, m, folders[m]) for m, result in results.items()}
    # only now, with every file written, is the evaluation data looked at
    data = encode(blueprint.source.tokenizer, blueprint.data.evaluation, blueprint.max_length)
    measured = {m: {**built[m], "metrics": method.measure(workspace, folders[m], m, data)} for m in results}
    full = run.finished("full-precision")
    if full is None:
        full = method.evaluate(workspace, workspace.teacher, data)
        run.finish("full-precision", full)
    differs = differences(workspace, budget, results[strategy].allocation) if searched else {}
    metrics = summarise(workspace, budget, strategy, results, measured, full, differs)
    sensitivity = workspace.calibration.sensitivity.choices if searched else None
    write_allocation(workspace, budget, strategy, results[strategy], metrics, sensitivity)
    write_card(run.model_dir, metrics, hub_id(blueprint.source.path))
    metrics["bytes"]["directory"] = folder_bytes(run.model_dir)
    run.write_json("metrics.json", metrics)
    write_report(run.path)
    show(workspace, metrics, measured)
    return RunResult(run.path, run.model_dir, results[strategy].allocation, metrics)


def _warn_of_overlap(workspace: Workspace) -> None:
    """Say how many evaluation texts stand in what is trained on too: the metric then flatters every row."""
    data = workspace.blueprint.data
    known, total = set(data.evaluation.text_hashes()), len(data.evaluation)
    for texts, where in ((data.train, "the training file"), (data.unlabelled, "--more-texts")):
        shared = known & set(texts.text_hashes()) if texts else set()
        if shared:
            workspace.progress.say(f"Note: {len(shared)} of {total} evaluation texts are in {where} too.")
