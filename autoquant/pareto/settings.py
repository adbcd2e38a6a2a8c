"""What identifies a sweep: kept in its study, the same for every worker; and the cells that it asks for."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from optuna.trial import Trial

from autoquant.core.cost import MIB, mib_text
from autoquant.core.errors import BudgetError, SpaceError
from autoquant.core.settings import Recipe, check_seed, from_mapping
from autoquant.pareto.trials import TrialPlan
from autoquant.pareto.tuning import SAMPLERS, Range, check_tunable, parse_range, suggest
from autoquant.reports.command import common_options, data_options, mib_number
from autoquant.shared import cell_name
from autoquant.strategies import check_strategies


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
    space: Mapping[str, Any] | None = None
    """What the recipe's space is, since a file by its name may change; None in older studies."""
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
        for seed in self.seeds:
            check_seed(seed)
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


def make_plan(settings: SweepSettings) -> TrialPlan:
    """The grid of strategies, budgets and seeds, seeds last so that a first front is there early; or the sampler's trials."""
    if settings.tune:
        return TrialPlan({}, lambda trial: suggest_all(trial, settings), settings.trials)
    cells = {
        cell_name(strategy, size, seed): {"strategy": strategy, "budget_bytes": size, "seed": seed}
        for seed in settings.seeds
        for size in settings.budgets
        for strategy in settings.strategies
    }
    return TrialPlan(cells, lambda trial: suggest_all(trial, settings))


def suggest_all(trial: Trial, settings: SweepSettings) -> None:
    """Give a trial all its parameters."""
    trial.suggest_categorical("strategy", settings.strategies)
    trial.suggest_categorical("budget_bytes", settings.budgets)
    trial.suggest_categorical("seed", settings.seeds)
    for name, range_ in settings.ranges.items():
        suggest(trial, name, range_)
