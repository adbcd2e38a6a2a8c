"""Which sizes buy which accuracy? An Optuna study whose trials are whole runs under different budgets.

study.db            the study, unless it is kept elsewhere: settings, trials, results
shared/teacher/     the full-precision model of all trials
shared/<key>/       calibration and search of all trials with the same seed and search settings
trials/<cell>/      the run directory of a trial
pareto.json, pareto.parquet, report.html
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from autoquant import pipeline
from autoquant.assets import default_backbone
from autoquant.blueprint import Blueprint
from autoquant.core.cost import MIB, SizeBudget
from autoquant.core.errors import BudgetError, CheckpointError, RunError, SpaceError
from autoquant.core.progress import Progress, SilentProgress
from autoquant.core.run import differences
from autoquant.core.settings import Recipe, from_mapping, load_preset
from autoquant.core.space import load_space
from autoquant.export import EXPORTERS
from autoquant.export.manifest import space_content
from autoquant.inference import load
from autoquant.machine import Machine
from autoquant.pareto.command import common_options, data_options, mib_number
from autoquant.pareto.latency import FORMAT, TEXTS, latency_ms
from autoquant.pareto.report import write_report
from autoquant.pareto.results import OBJECTIVES, TUNING_NOTE, Missing, Point, Sweep
from autoquant.pareto.storage import database_errors, default_storage, open_storage, storage_errors, without_password
from autoquant.pareto.trials import PATIENCE, Counts, Plan, by_cell, check_patience, count, enqueue_missing, is_lost, owner, work
from autoquant.pareto.tuning import SAMPLERS, Range, apply_settings, check_tunable, parse_range, size_variants, suggest
from autoquant.shared import SharedParts, cell_name, drop_copies, mib_text, pivot_budget, weights_sha256
from autoquant.strategies import check_strategies
from autoquant.tasks.data import TaskData
from autoquant.training.batches import encode

SETTINGS = "autoquant"  # the study's attribute


@dataclass(frozen=True)
class SweepSettings:
    """What identifies a sweep; every worker must have the same, so it is kept in the study."""

    model: str | None
    """None for the embedded one, which every machine has in a place of its own."""
    task: str
    data: Mapping[str, str]
    """sha256 of train and evaluation."""
    budgets: tuple[int, ...]
    """Bytes, smallest first."""
    count: str
    strategies: tuple[str, ...]
    seeds: tuple[int, ...]
    recipe: Recipe
    max_length: int
    trim_positions: bool
    machine: Mapping[str, Any]
    reuse_search: bool
    objectives: tuple[str, ...] = ("size", "metric")
    tune: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Recipe setting -> range, as `tuning.parse_range` reads it; empty for a plain sweep over sizes."""
    trials: int = 0
    sampler: str = "tpe"
    data_source: Mapping[str, Any] | None = None
    """Options that load the data, for workers elsewhere; None if it did not come from the command line."""

    def __post_init__(self) -> None:
        check_strategies(self.strategies)
        if not self.budgets or not self.strategies or not self.seeds:
            raise BudgetError("A sweep needs at least one budget, one strategy and one seed.")
        if min(self.seeds) < 0:
            raise RunError(f"Seed {min(self.seeds)} is negative: give 0 or more.")
        for values, name in ((tuple(map(mib_text, self.budgets)), "budget"), (self.strategies, "strategy"), (self.seeds, "seed")):
            if len(set(values)) < len(values):
                raise BudgetError(f"A {name} is given twice: {', '.join(map(str, values))}.")
        if self.recipe.encoder_bits:
            raise BudgetError(f"The recipe fixes its own size, {self.recipe.encoder_bits:g} bits: take another --preset.")
        if self.reuse_search and self.recipe.search.derive != "knapsack":
            raise SpaceError("search.derive argmax has no values to reuse under other budgets: give --no-reuse-search.")
        if bool(self.tune) != bool(self.trials):
            raise SpaceError("--tune and --trials belong together: which settings, and how many trials.")
        if self.tune and (len(self.strategies) > 1 or len(self.seeds) > 1):
            raise SpaceError("--tune takes one strategy and one seed: sweep sizes with the settings it finds for more.")
        if self.sampler not in SAMPLERS:
            raise SpaceError(f"Unknown sampler '{self.sampler}'; known are {', '.join(SAMPLERS)}.")
        for name, range_ in self.ranges.items():
            check_tunable(self.recipe, name, range_)

    @cached_property
    def ranges(self) -> dict[str, Range]:
        return {name: parse_range(name, text) for name, text in self.tune.items()}

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SweepSettings:
        lists = {name: tuple(data[name]) for name in ("budgets", "strategies", "seeds", "objectives")}
        return cls(**{**data, **lists, "recipe": from_mapping(Recipe, data["recipe"], "the study")})

    def data_options(self) -> list[str]:
        return data_options(self.task, self.data_source)

    def command(self) -> str:
        """The `autoquant pareto` command that makes this sweep."""
        parts = ["autoquant", "pareto", *(["--model", self.model] if self.model else []), *self.data_options()]
        parts += ["--budgets", ",".join(map(mib_number, self.budgets))]
        parts += ["--count", self.count] if self.count != "file" else []
        parts += ["--strategies", *self.strategies, "--seeds", *map(str, self.seeds)]
        parts += [] if self.reuse_search else ["--no-reuse-search"]
        parts += ["--latency"] if "latency" in self.objectives else []
        if self.tune:
            ranges = [f"{name}={text}" for name, text in self.tune.items()]
            parts += ["--tune", *ranges, "--trials", str(self.trials), "--sampler", self.sampler]
        settings = {"max_length": self.max_length, "trim_positions": self.trim_positions, "machine": self.machine}
        return shlex.join([*parts, *common_options({**settings, "recipe": dataclasses.asdict(self.recipe)})])


def spread_budgets(budgets: Sequence[float], points: int | None) -> tuple[int, ...]:
    """Budgets in bytes from MiB, smallest first; with `points`, that many between the smallest and the largest, evenly in log.

    Raises BudgetError for what is no size, or for points that are not between two sizes.
    """
    if not budgets or min(budgets) <= 0 or not np.isfinite(budgets).all():
        raise BudgetError("Give --budgets as sizes in MiB, e.g. --budgets 3,4,6,8,12.")
    if points is not None:
        if points < 2 or len(budgets) != 2:
            raise BudgetError("--points takes 2 or more, between two sizes: e.g. --budgets 3,12 --points 8.")
        budgets = np.geomspace(min(budgets), max(budgets), points).tolist()
    return tuple(sorted(int(size * MIB) for size in budgets))


def make_plan(settings: SweepSettings) -> Plan:
    """The grid of strategies, budgets and seeds, seeds last so that a first front is there early; or the sampler's trials."""
    if settings.tune:
        return Plan({}, lambda trial: suggest_all(trial, settings), settings.trials)
    cells = {
        cell_name(strategy, size, seed): {"strategy": strategy, "budget_bytes": size, "seed": seed}
        for seed in settings.seeds
        for size in settings.budgets
        for strategy in settings.strategies
    }
    return Plan(cells, lambda trial: suggest_all(trial, settings))


def suggest_all(trial: Trial, settings: SweepSettings) -> None:
    """Give a trial all its parameters."""
    trial.suggest_categorical("strategy", settings.strategies)
    trial.suggest_categorical("budget_bytes", settings.budgets)
    trial.suggest_categorical("seed", settings.seeds)
    for name, range_ in settings.ranges.items():
        suggest(trial, name, range_)


class Measurer:
    """Runs trials in a sweep's folder: prepares what they share once, then recovers, packs and measures each."""

    def __init__(
        self, study: optuna.Study, settings: SweepSettings, data: TaskData, folder: Path, model: str, progress: Progress
    ) -> None:
        self.study, self.settings, self.folder, self.model, self.progress = study, settings, folder, model, progress
        self.machine = Machine(**settings.machine)
        self.data = data.for_tuning() if settings.tune else data

    def check(self) -> None:
        """Raise, before a trial is claimed, for what this machine lacks: the device, the exporter, the sweep's teacher."""
        self.machine.check()
        if "latency" in self.settings.objectives:
            EXPORTERS[FORMAT].check()
        _ = self.teacher

    def __call__(self, trial: Trial) -> list[float]:
        """Measure a trial's cell; its result goes into the study, so that no other file is needed to draw the front."""
        cell, params = trial.user_attrs["cell"], trial.params
        chosen = {name: params[name] for name in self.settings.ranges}
        recipe = apply_settings(self.settings.recipe, chosen)
        recipe = dataclasses.replace(recipe, search=dataclasses.replace(recipe.search, strategy=params["strategy"]))
        budget = SizeBudget(params["budget_bytes"], self.settings.count)
        run_dir = self.folder / "trials" / cell
        result = pipeline.search(
            self.teacher,
            self.data,
            budget=budget,
            recipe=recipe,
            run_dir=run_dir,
            controls=(),
            seed=params["seed"],
            max_length=self.settings.max_length,
            trim_positions=self.settings.trim_positions,
            machine=self.machine,
            resume=True,
            progress=self.progress,
            shared=self.shared(recipe, budget, params["seed"]),
        )
        metrics = result.metrics
        latency = self.latency(result.model_dir) if "latency" in self.settings.objectives else None
        point = Point(
            cell=cell,
            strategy=params["strategy"],
            seed=params["seed"],
            budget_bytes=budget.bytes,
            file_bytes=metrics["bytes"]["file"],
            metric=metrics["metric"]["value"],
            latency_ms=latency,
            settings=chosen,
            seconds=sum(metrics["seconds"].values()),
            recipe=json.loads(json.dumps(dataclasses.asdict(recipe))),
            reuse_search=self.settings.reuse_search,
        )
        full = {"bytes": metrics["bytes"]["full_precision"], "metric": metrics["metric"]["full_precision"]}
        trial.set_user_attr("allocation", json.loads((result.model_dir / "allocation.json").read_text("utf-8")))
        trial.set_user_attr("full_precision", {**full, "name": metrics["metric"]["name"]})
        trial.set_user_attr("point", {k: v for k, v in dataclasses.asdict(point).items() if k != "allocation"})
        return [point.value(name) for name in self.settings.objectives]

    def shared(self, recipe: Recipe, budget: SizeBudget, seed: int) -> pipeline.Shared:
        """What the trial takes over. Raises RunError for damage in shared/, which every trial here would meet."""
        try:
            return self.parts.for_run(recipe, budget, seed)
        except CheckpointError as error:
            raise RunError(str(error)) from error

    def latency(self, model_dir: Path) -> float:
        """Milliseconds a training text takes in the exported file."""
        texts = self.data.train.select(range(min(TEXTS, len(self.data.train))))
        predictor = load(model_dir)
        return latency_ms(model_dir, encode(predictor.tokenizer, texts, predictor.max_length), self.machine.threads)

    @cached_property
    def parts(self) -> SharedParts:
        """What trials share, in shared/."""
        settings = self.settings
        return SharedParts(
            folder=self.folder / "shared",
            model=self.model,
            data=self.data,
            recipe=settings.recipe,
            seed=settings.seeds[0],
            pivot=SizeBudget(pivot_budget(settings.budgets), settings.count),
            max_length=settings.max_length,
            trim_positions=settings.trim_positions,
            machine=self.machine,
            progress=self.progress,
            reuse_search=settings.reuse_search,
        )

    @cached_property
    def teacher(self) -> str:
        """The full-precision model. Raises RunError if the study's other trials have another: their numbers would not compare."""
        path = self.parts.teacher
        mine = weights_sha256(path)
        known = self.study.user_attrs.get("teacher")
        if known is None:
            self.study.set_user_attr("teacher", mine)
        elif known != mine:
            raise RunError(
                f"The sweep's teacher has sha256 {known[:12]}, the one here {mine[:12]}: copy the sweep's shared/ folder, or "
                "give its teacher as --model."
            )
        return path


# The study --------------------------------------------------------------------------------------------------------


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
        data={"train": data.train.sha256(), "evaluation": data.evaluation.sha256()},
        budgets=spread_budgets(budgets, points),
        count=count,
        strategies=tuple(strategies),
        seeds=tuple(seeds),
        recipe=recipe,
        max_length=max_length,
        trim_positions=trim_positions,
        machine=machine.identity(),
        reuse_search=reuse_search,
        tune=dict(tune or {}),
        trials=trials,
        sampler=sampler,
        objectives=("size", "metric", "latency") if latency else ("size", "metric"),
        data_source=data.source,
    )
    for variant in (recipe, *size_variants(recipe, settings.ranges)):
        blueprint = Blueprint.draw(path, data, variant, max_length, trim_positions)
        for size in settings.budgets:
            blueprint.table(pipeline.resolve_budget(SizeBudget(size, count), blueprint))
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


def create_study(storage: str, name: str, settings: SweepSettings, resume: bool) -> optuna.Study:
    """The study of these settings, made or, with `resume`, found. Raises RunError if another one has the name."""
    opened = open_storage(storage)
    directions = ["maximize" if OBJECTIVES[o].maximise else "minimize" for o in settings.objectives]
    try:
        study = optuna.create_study(storage=opened, study_name=name, directions=directions)
        study.set_user_attr(SETTINGS, settings.to_json())
    except optuna.exceptions.DuplicatedStudyError as error:
        if not resume:
            raise RunError(f"The storage already holds a sweep '{name}': use --resume to go on or another --study.") from error
        study = optuna.load_study(study_name=name, storage=opened)
        if SETTINGS not in study.user_attrs:  # killed in between
            study.set_user_attr(SETTINGS, settings.to_json())
        known = study.user_attrs[SETTINGS]
        if settings.model is None and known["model"] == str(default_backbone()):  # as studies once kept it
            known = {**known, "model": None}
        changed = differences(known, settings.to_json(), {"recipe": dataclasses.asdict(Recipe())})
        if changed:
            raise RunError(f"The sweep '{name}' has other settings ({'; '.join(changed)}): resume with the same ones.") from None
    # a sampler begins its draws anew in every process: of the seed alone, a resumed sweep would repeat those of the first
    drawn = len(study.get_trials(deepcopy=False))
    study.sampler = make_sampler(settings, int(np.random.SeedSequence((settings.seeds[0], drawn)).generate_state(1)[0]))
    return study


def make_sampler(settings: SweepSettings, seed: int | None) -> optuna.samplers.BaseSampler:
    """The sampler of a tuned sweep; workers that join have no seed, or those that come together would draw the same."""
    return SAMPLERS[settings.sampler](seed) if settings.tune else optuna.samplers.RandomSampler(seed)


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
    folder.mkdir(parents=True, exist_ok=True)

    def finished(cell: str) -> None:
        drop_copies(folder / "trials" / cell)
        found = write_results(study, settings, folder)
        if cells is not None:
            found.write_cells(cells)

    plan = make_plan(settings)
    before = count(study, plan)
    if before.running or before.waiting:
        measurer.check()
    counts = work(study, plan, measurer, progress.say, finished, patience)
    found = write_results(study, settings, folder)
    show(found, counts, folder, progress)
    return found


def adopt_points(study: optuna.Study, settings: SweepSettings, known: Sweep | None) -> None:
    """Take the points of an earlier sweep for done. Raises RunError if any was not made as this sweep makes its own."""
    plan, present = make_plan(settings), by_cell(study.get_trials(deepcopy=False))
    space = {"strategy": settings.strategies, "budget_bytes": settings.budgets, "seed": settings.seeds}
    for point in known.points if known else ():
        if known is None or point.cell not in plan.cells or point.cell in present:
            continue
        teacher = study.user_attrs.get("teacher")
        unlike = _unlike(point, settings, teacher)
        if unlike:
            raise RunError(f"{point.cell} is there, but with another {', another '.join(unlike)}: move the old points elsewhere.")
        full = {"bytes": known.full_precision_bytes, "metric": known.full_precision_metric, "name": known.metric}
        plain = {k: v for k, v in dataclasses.asdict(point).items() if k != "allocation"}
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE,
                params=dict(plan.cells[point.cell]),
                distributions={name: optuna.distributions.CategoricalDistribution(of) for name, of in space.items()},
                values=[point.value(name) for name in settings.objectives],
                user_attrs={"cell": point.cell, "point": plain, "full_precision": full, "allocation": dict(point.allocation)},
            )
        )
        if teacher is None:
            study.set_user_attr("teacher", point.allocation["hashes"]["teacher"])


def _unlike(point: Point, settings: SweepSettings, teacher: str | None) -> list[str]:
    """What the record of a point says of its making that is not this sweep's; what older records do not say is not asked."""
    recipe = dataclasses.replace(settings.recipe, search=dataclasses.replace(settings.recipe.search, strategy=point.strategy))
    plain = json.loads(json.dumps(dataclasses.asdict(recipe)))
    names = ("max_length", "trim_positions", "quantizer", "activation_bits", "activations", "seed", "strategy", "budget")
    recorded = {
        **{name: point.allocation.get(name) for name in (*names, "recovery")},
        "space": _would_be_found(point.allocation, space_content(load_space(recipe.space))),
        "teacher": point.allocation["hashes"].get("teacher") if teacher else None,
        "data": {name: point.allocation["hashes"].get(name) for name in settings.data},
        "recipe": point.recipe,
        "way to share searches": point.reuse_search,
    }
    expected = {
        **{name: getattr(settings, name) for name in ("max_length", "trim_positions")},
        **{name: plain[name] for name in ("quantizer", "activation_bits", "activations")},
        "seed": point.seed,
        "strategy": point.strategy,
        "budget": {"bytes": point.budget_bytes, "count": settings.count},
        "space": True,
        "recovery": {name: plain[name] for name in ("recovery", "distillation")} | {"calibration": plain["search"]},
        "teacher": teacher,
        "data": dict(settings.data),
        "recipe": plain,
        "way to share searches": settings.reuse_search,
    }
    return [name for name, value in recorded.items() if not _agrees(value, expected[name])]


def _would_be_found(manifest: Mapping[str, Any], space: Mapping[str, Any]) -> bool:
    """Whether an allocation comes of this space, or of one cut alike that offers more widths but needed no other."""
    theirs, ours = ({kind: set(rule["bits"]) for kind, rule in s["rules"].items()} for s in (manifest["space"], space))
    if _cuts(manifest["space"]) != _cuts(space) or not all(ours[kind] <= theirs[kind] for kind in ours):
        return False
    return all(group["bits"] in ours[matrix["kind"]] for matrix in manifest["matrices"] for group in matrix["subgroups"])


def _cuts(space: Mapping[str, Any]) -> dict[str, Any]:
    """A space without the widths it offers."""
    return {**space, "rules": {kind: {**rule, "bits": ()} for kind, rule in space["rules"].items()}}


def _agrees(recorded: Any, expected: Any) -> bool:
    """Whether all that is recorded, nested as in `expected`, is as expected."""
    if isinstance(recorded, Mapping) and isinstance(expected, Mapping):
        return all(_agrees(value, expected[name]) for name, value in recorded.items() if name in expected)
    return recorded is None or recorded == expected


def collect(study: optuna.Study, settings: SweepSettings) -> Sweep | None:
    """The finished points of a study; None before the first."""
    cells = by_cell(study.get_trials(deepcopy=False))
    done = [trial for trial in map(owner, cells.values()) if trial is not None and trial.state == TrialState.COMPLETE]
    if not done:
        return None
    full = done[0].user_attrs["full_precision"]
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
