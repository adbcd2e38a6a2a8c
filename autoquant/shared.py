"""What do several runs of one model and data share? The teacher, and by seed calibration and searches: made once, then adopted.

teacher/            the full-precision model: a copy of the one that was given, fine-tuned if it had no trained head
seed<n>-<key>/      calibration and searches of all runs with this seed and the same settings up to recovery
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from autoquant import pipeline
from autoquant.blueprint import Blueprint
from autoquant.core.cost import ChoiceTable, SizeBudget, choice_table, mib_text
from autoquant.core.errors import ModelError
from autoquant.core.files import disk_errors, file_sha256
from autoquant.core.progress import Progress
from autoquant.core.run import RunDirectory
from autoquant.core.settings import Recipe, RecoverySettings
from autoquant.core.space import load_space
from autoquant.export.manifest import space_content
from autoquant.machine import Machine
from autoquant.strategies import LEARNS_FROM, REUSABLE, SearchResult
from autoquant.strategies.reuse import rederive
from autoquant.tasks.data import TaskData
from autoquant.workspace import Workspace

NO_RECOVERY = RecoverySettings(steps=400)  # any would do that never changes: folders' names are made with it


@dataclass(frozen=True, eq=False)
class Prepared:
    """Calibration states by name, search results by strategy, and seconds and peak MiB of every stage they took."""

    states: Mapping[str, dict[str, Any]]
    results: Mapping[str, SearchResult]
    table: ChoiceTable
    seconds: Mapping[str, float]
    peaks_mib: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class SharedParts:
    """Prepares in `folder` what runs share. `recipe` and `seed` are the teacher's; `pivot` is the budget of
    shared searches, None where nothing is searched for several."""

    folder: Path
    model: str
    data: TaskData
    recipe: Recipe
    seed: int
    pivot: SizeBudget | None
    max_length: int
    trim_positions: bool
    machine: Machine
    progress: Progress
    reuse_search: bool = True
    given_teacher: str | None = None
    """A fine-tuned `model`, if there is one already."""
    _prepared: dict[str, Prepared] = field(default_factory=dict)

    @cached_property
    def teacher(self) -> str:
        """A fine-tuned classifier in teacher/: the one given, else the model if it has a head, else it is fine-tuned once.

        A copy even of the former, since a hub id or a model in several files has no file whose hash says which one it is. Raises
        ModelError if the one given has no head.
        """
        given = self.given_teacher or self.model
        blueprint = Blueprint.draw(given, self.data, self.recipe, self.max_length, trim_positions=False)
        if self.given_teacher is not None and not blueprint.source.load(self.seed)[1]:
            raise ModelError(f"The teacher {given} has no trained head: run `autoquant finetune` first, or leave it out.")
        with self._alone("teacher"):
            run_dir = self.folder / "teacher"
            folder, _ = pipeline.keep_teacher(blueprint, run_dir, self.seed, self.machine, True, self.progress)
        return str(folder)

    def for_run(self, recipe: Recipe, budget: SizeBudget, seed: int) -> pipeline.Shared:
        """What a run of this recipe, budget and seed takes over: the calibration, and the search where it serves every budget."""
        prepared, key, results = self.prepared(recipe, budget, seed), self._key(recipe, seed), dict[str, SearchResult]()
        for strategy in set(self._served(recipe, budget)) & set(prepared.results):
            result = rederive(prepared.results[strategy], prepared.table, budget.bytes, recipe.search.prior_strength)
            if recipe.recovery.start == "teacher":
                result = dataclasses.replace(result, searched=None)  # as large as the model, and not looked at
            results[strategy] = result

        def adopt(run: Workspace) -> None:
            run.adopt(prepared.states, results)
            run.given_model = self.model

        return pipeline.Shared(f"{'calibration and search' if results else 'calibration'} of shared/{key}", adopt)

    def teacher_only(self) -> pipeline.Shared:
        """For runs that are calibrated by themselves, such as those of recipes that leave nothing to search."""

        def adopt(run: Workspace) -> None:
            run.given_model = self.model

        return pipeline.Shared("the teacher of shared/", adopt)

    def prepared(self, recipe: Recipe, budget: SizeBudget, seed: int) -> Prepared:
        """Calibration, and the searches that can be reused, of all runs with this seed and recipe, recovery apart."""
        key, strategies = self._key(recipe, seed), self._served(recipe, budget)
        known = self._prepared.get(key)
        if known is None or set(strategies) - set(known.results):
            self._prepared[key] = known = self._prepare(_upstream(recipe), key, seed, strategies)
        return known

    def _served(self, recipe: Recipe, budget: SizeBudget) -> tuple[str, ...]:
        """What the recipe needs of a search under the pivot, if that may serve this budget: its strategy's, or what that learns
        from."""
        if not self.reuse_search or self.pivot is None or self.pivot.count != budget.count or recipe.search.derive != "knapsack":
            return ()
        strategy = recipe.search.strategy
        if strategy in REUSABLE:
            return (strategy,)
        return tuple(other for other in LEARNS_FROM.get(strategy, ()) if other in REUSABLE)

    def _prepare(self, recipe: Recipe, key: str, seed: int, strategies: Sequence[str]) -> Prepared:
        results = dict(self._prepared[key].results) if key in self._prepared else {}
        with self._alone(key), self._workspace(recipe, key, seed) as workspace:
            table, run = choice_table(workspace.blueprint.byte_model, self.pivot.count if self.pivot else "file"), workspace.run
            if self.pivot is not None and table.smallest() <= self.pivot.bytes:  # else every run searches by itself
                results |= {strategy: workspace.search(strategy, self.pivot) for strategy in strategies}
            return Prepared(workspace.prepared(), results, table, run.seconds(), run.peaks_mib())

    @contextmanager
    def _workspace(self, recipe: Recipe, key: str, seed: int) -> Iterator[Workspace]:
        blueprint = Blueprint.draw(self.teacher, self.data, recipe, self.max_length, self.trim_positions)
        identity = {
            "teacher": weights_sha256(self.teacher),
            "recipe": dataclasses.asdict(recipe),
            "budget": self.pivot.bytes if self.pivot else None,
            "seed": seed,
            "machine": self.machine.identity(),
        }
        with RunDirectory.open(self.folder / key, identity, resume=True) as run:
            yield Workspace(blueprint, run, self.progress, self.machine, seed)

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """One process of this folder at a time; the others wait, and then find it done."""
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".{name}.lock"):
            yield

    def _key(self, recipe: Recipe, seed: int) -> str:
        decided = {
            "recipe": dataclasses.asdict(_upstream(recipe)),
            "space": space_content(load_space(recipe.space)),
            "data": self.data.hashes(),
            "max_length": self.max_length,
            "trim_positions": self.trim_positions,
            "seed": seed,
        }
        if self.pivot is not None and self.pivot.count != "file":
            decided["count"] = self.pivot.count  # those of whole files keep the names that they had before it was in them
        text = json.dumps(decided, sort_keys=True)
        return f"seed{seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _upstream(recipe: Recipe) -> Recipe:
    """What decides calibration and searches: everything but recovery, and which of the strategies is asked for."""
    search = dataclasses.replace(recipe.search, strategy="dnas")
    return dataclasses.replace(recipe, recovery=NO_RECOVERY, search=search)


def pivot_budget(budgets: Sequence[int]) -> int:
    """The budget whose search serves all: the one nearest to their geometric mean."""
    middle = float(np.log(budgets).mean())
    return min(budgets, key=lambda size: abs(float(np.log(size)) - middle))


def cell_name(method: str, budget_bytes: int, seed: int) -> str:
    """`dnas-6MiB-seed0`."""
    return f"{method}-{mib_text(budget_bytes)}MiB-seed{seed}"


def weights_sha256(model: str) -> str:
    """sha256 of a saved model's weights."""
    return file_sha256(Path(model) / "model.safetensors")


def drop_copies(run_dir: Path) -> None:
    """Drop a finished run's copies of what is shared: teacher and checkpoints are many times its model."""
    for name in ("teacher", "checkpoint"):
        shutil.rmtree(run_dir / name, ignore_errors=True)
