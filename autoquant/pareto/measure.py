"""How does a trial get its numbers? A whole run: the shared search, recovery, packing, the reloaded file's metric."""

from __future__ import annotations

import dataclasses
import json
from functools import cached_property
from pathlib import Path

import optuna
from optuna.trial import Trial

from autoquant import pipeline
from autoquant.core.cost import SizeBudget
from autoquant.core.errors import CheckpointError, RunError
from autoquant.core.progress import Progress
from autoquant.core.settings import Recipe
from autoquant.core.space import load_space
from autoquant.export import EXPORTERS
from autoquant.export.manifest import space_content
from autoquant.inference import load
from autoquant.machine import Machine
from autoquant.pareto.latency import FORMAT, TEXTS, latency_ms
from autoquant.pareto.settings import SweepSettings
from autoquant.pareto.tuning import apply_settings
from autoquant.reports.results import Point
from autoquant.shared import SharedParts, pivot_budget, weights_sha256
from autoquant.tasks.data import TaskData
from autoquant.training.batches import encode


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
        name, recorded = self.settings.recipe.space, self.settings.space
        if recorded is not None and space_content(load_space(name)) != dict(recorded):
            raise RunError(f"The space '{name}' here is not that of the sweep: bring the file as it was when the sweep began.")
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
