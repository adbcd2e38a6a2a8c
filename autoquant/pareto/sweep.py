"""Which sizes buy which accuracy? An Optuna study whose trials are whole runs under different budgets.

study.db            the study, unless it is kept elsewhere: settings, trials, results
shared/teacher/     the full-precision model of all trials
shared/<key>/       calibration and search of all trials with the same seed and search settings
trials/<cell>/      the run directory of a trial
pareto.json, pareto.parquet, report.html
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from autoquant import pipeline
from autoquant.blueprint import Blueprint
from autoquant.core.cost import MIB, SizeBudget
from autoquant.core.errors import RunError
from autoquant.core.files import disk_errors
from autoquant.core.progress import Progress, SilentProgress
from autoquant.core.settings import Recipe, load_preset
from autoquant.core.space import load_space
from autoquant.export import EXPORTERS
from autoquant.export.manifest import space_content
from autoquant.machine import Machine
from autoquant.pareto.latency import FORMAT
from autoquant.pareto.measure import Measurer
from autoquant.pareto.settings import SweepSettings, make_plan, spread_budgets
from autoquant.pareto.storage import database_errors, default_storage, storage_errors, without_password
from autoquant.pareto.study import adopt_points, create_study
from autoquant.pareto.trials import (
    PATIENCE,
    Counts,
    by_cell,
    check_patience,
    completed,
    count,
    enqueue_missing,
    is_lost,
    owner,
    work,
)
from autoquant.pareto.tuning import variants
from autoquant.reports.page import write_report
from autoquant.reports.results import TAUGHT_NOTE, TUNING_NOTE, Missing, Point, Sweep
from autoquant.shared import drop_copies
from autoquant.tasks.data import TaskData


def sweep(
    model: str | Path | None = None,
    data: TaskData | None = None,
    *,
    budgets: Sequence[float],
    points: int | None = None,
    count: str = "file",
    strategies: Sequence[str] = ("dnas", "uniform"),
    seeds: Sequence[int] = (0,),
    recipe: Recipe | None = None,
    run_dir: str | Path = "runs/pareto",
    reuse_search: bool = True,
    tune: Mapping[str, str] | None = None,
    trials: int = 0,
    sampler: str = "tpe",
    latency: bool = False,
    storage: str | None = None,
    study_name: str | None = None,
    max_length: int = 128,
    trim_positions: bool = False,
    machine: Machine | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    patience: float = PATIENCE,
    cells: str | Path | None = None,
) -> Sweep:
    """Measure the front: every strategy under every budget (MiB) with every seed, or `trials` of the sampler's choice.

    Writes pareto.json, pareto.parquet and report.html into `run_dir`, anew after every trial. `storage`: an SQLAlchemy URL or
    the path of a journal file (None: SQLite in `run_dir`); `study_name` (None: the folder's name). Other processes join with
    `autoquant pareto-worker`. `latency` makes the exported file's milliseconds a text a third objective. `cells`: a folder where
    every finished point is kept as a small file of its own; points that are there already are not measured again.
    Raises an AutoquantError, before any training, for input that cannot work.
    """
    recipe, machine, progress = recipe or load_preset("default"), machine or Machine(), progress or SilentProgress()
    machine.check()
    check_patience(patience)
    if latency:
        EXPORTERS[FORMAT].check()
    path, data = pipeline.resolve_inputs(model, data)
    settings = SweepSettings(
        model=None if model is None else str(model),
        task=data.task.name,
        data=data.hashes(),
        budgets=spread_budgets(budgets, points),
        count=count,
        strategies=tuple(strategies),
        seeds=tuple(seeds),
        recipe=recipe,
        max_length=max_length,
        trim_positions=trim_positions,
        machine=machine.identity(),
        reuse_search=reuse_search,
        space=space_content(load_space(recipe.space)),
        tune=dict(tune or {}),
        trials=trials,
        sampler=sampler,
        objectives=("size", "metric", "latency") if latency else ("size", "metric"),
        data_source=data.source,
    )
    for variant in (*variants(recipe, settings.ranges, deciding_size=True), recipe):
        blueprint = Blueprint.draw(path, data, variant, max_length, trim_positions)
        for size in settings.budgets:
            blueprint.check_searchable(pipeline.resolve_budget(SizeBudget(size, count), blueprint))
    for variant in variants(recipe, settings.ranges, deciding_size=False):
        dataclasses.replace(blueprint, recipe=variant).check_recovery()
    if settings.tune and blueprint.source.is_classifier:
        progress.say(TAUGHT_NOTE)
    folder = Path(run_dir)
    storage, name = storage or default_storage(folder), study_name or folder.absolute().name
    with storage_errors(storage):
        study = create_study(storage, name, settings, resume)
    with database_errors(storage):
        if cells is not None:
            adopt_points(study, settings, Sweep.read_cells(cells))
        enqueue_missing(study, make_plan(settings), retry_failed=resume)
        progress.say(f"Join from elsewhere: autoquant pareto-worker --study {name} --storage {without_password(storage)}")
        return run_worker(study, settings, data, folder, path, progress, patience, cells)


def run_worker(
    study: optuna.Study,
    settings: SweepSettings,
    data: TaskData,
    folder: Path,
    model: str,
    progress: Progress,
    patience: float,
    cells: str | Path | None = None,
) -> Sweep:
    """Run trials until none is left, keeping the folder's results up to date."""
    measurer = Measurer(study, settings, data, folder, model, progress)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)

    def finished(cell: str) -> None:
        drop_copies(folder / "trials" / cell)
        found = write_results(study, settings, folder)
        if cells is not None:
            found.write_cells(cells)

    for cell in completed(study):  # of which a worker that was killed may have left copies
        drop_copies(folder / "trials" / cell)
    plan = make_plan(settings)
    before = count(study, plan)
    if before.running or before.waiting:
        measurer.check()
    counts = work(study, plan, measurer, progress.say, finished, patience)
    found = write_results(study, settings, folder)
    show(found, counts, folder, progress)
    return found


def collect(study: optuna.Study, settings: SweepSettings) -> Sweep | None:
    """The finished points of a study; None before the first."""
    cells, done = by_cell(study.get_trials(deepcopy=False)), list(completed(study).values())
    if not done:
        return None
    full = max((t.user_attrs["full_precision"] for t in done), key=lambda model: model["bytes"])  # else of a smaller student
    given_up = [trials[-1] for trials in cells.values() if owner(trials) is None and not is_lost(trials)]
    points = tuple(Point(**t.user_attrs["point"], allocation=t.user_attrs["allocation"]) for t in done)
    return Sweep(
        task=settings.task,
        metric=full["name"],
        full_precision_bytes=full["bytes"],
        full_precision_metric=full["metric"],
        points=tuple(sorted(points, key=lambda p: p.cell)),
        objectives=settings.objectives,
        command=settings.command(),
        note=TUNING_NOTE if settings.tune else "",
        missing=() if settings.tune else tuple(map(_missing, given_up)),
        data_source=settings.data_source,
        machine=settings.machine,
    )


def _missing(trial: FrozenTrial) -> Missing:
    params, reason = trial.params, trial.user_attrs.get("error", "every worker that tried it died")
    return Missing(params["strategy"], params["seed"], params["budget_bytes"], reason)


def write_results(study: optuna.Study, settings: SweepSettings, folder: Path) -> Sweep:
    """pareto.json, pareto.parquet and report.html of what is finished. Raises RunError if nothing is."""
    found = collect(study, settings)
    if found is None:
        errors = [t.user_attrs["error"] for t in study.get_trials(deepcopy=False) if "error" in t.user_attrs]
        raise RunError(f"No trial of the sweep finished ({errors[-1] if errors else 'none ran'}).")
    found.write(folder)
    write_report(folder)
    return found


def show(found: Sweep, counts: Counts, folder: Path, progress: Progress) -> None:
    """The table of a sweep, at its end."""
    metric, rows = found.objectives.index("metric"), []
    for c in sorted(found.configurations, key=lambda c: (c.budget_bytes, c.strategy)):
        folded, size = c.folded, sum(p.file_bytes for p in c.points) / len(c.points)
        spread = f" ({folded.smallest[metric]:.4f} to {folded.largest[metric]:.4f})" if len(c.points) > 1 else ""
        tuned = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in c.settings.items()
        )
        name, value = f"{c.strategy} {tuned}".strip(), f"{folded.mean[metric]:.4f}{spread}"
        gone = ", ".join(f"seed {m.seed} missing" for m in c.missing)
        rows.append([f"{c.budget_bytes / MIB:.4g}", name, f"{size:,.0f}", value, "*" if c.on_front else gone])
    progress.table(f"{found.task}: * = on the front", ["MiB", "allocation", "file bytes", found.metric, ""], rows)
    volumes = ", ".join(f"{name} {volume:.4f}" for name, volume in found.hypervolumes().items())
    progress.say(f"{counts.line()}. Hypervolume: {volumes or 'not defined here'}. Results: {folder}")
