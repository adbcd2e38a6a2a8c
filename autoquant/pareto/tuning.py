"""Which settings may a sweep try besides sizes? Ranges as text, the sampler's suggestions, and the recipe they make."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import Trial

from autoquant.core.errors import SpaceError
from autoquant.core.settings import Recipe, from_mapping

FIXED = {
    "search.strategy": "give --strategies",
    "encoder_bits": "it fixes the size: give --budgets",
    "teacher.": "all trials have one teacher: give --teacher settings for all of them",
}
DECIDE_SIZE = ("space", "quantizer", "activation_bits", "activations", "student")
LOG_FROM = 8.0  # a range that spans this factor is searched on a log scale

SAMPLERS: dict[str, Callable[[int | None], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=16),
}


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, or one of `choices`."""

    low: float | int = 0
    high: float | int = 0
    choices: tuple[Any, ...] = ()

    @property
    def examples(self) -> tuple[Any, ...]:
        """Every choice, or both ends and of whole numbers one between: to check that a recipe takes them."""
        if self.choices:
            return self.choices
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        return (self.low, (int(self.low) + int(self.high)) // 2, self.high) if whole else (self.low, self.high)


def parse_range(name: str, text: str) -> Range:
    """`1:16` (whole numbers if both ends are) or `default,rows`. Raises SpaceError for anything else."""
    try:
        if ":" not in text:
            choices = tuple(_value(part) for part in text.split(",") if part)
            if len(choices) < 2 or len(set(choices)) < len(choices):
                raise ValueError
            return Range(choices=choices)
        low, high = (_value(part) for part in text.split(":"))
        if not isinstance(low, int | float) or not isinstance(high, int | float) or not low < high:
            raise ValueError
        return Range(low, high)
    except ValueError:
        raise SpaceError(f"--tune {name}={text} is no range: give LOW:HIGH, finite, or two or more choices, A,B.") from None


def _value(text: str) -> Any:
    """A number if it is one; ValueError for one that is not finite."""
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if not math.isfinite(number):
            raise ValueError
        return number
    return text


def check_tunable(recipe: Recipe, name: str, range_: Range) -> None:
    """Raise SpaceError for a setting that trials do not have each, or a value that a recipe does not take."""
    for fixed, instead in FIXED.items():
        if name.replace("-", "_").startswith(fixed):
            raise SpaceError(f"--tune {name}: {instead}.")
    for value in range_.examples:
        apply_settings(recipe, {name: value})


def variants(recipe: Recipe, ranges: Mapping[str, Range], deciding_size: bool) -> list[Recipe]:
    """The recipe with one setting at a time changed, of those that decide what a model can weigh, or of those that do not."""
    names = [name for name in ranges if (name.replace("-", "_").partition(".")[0] in DECIDE_SIZE) == deciding_size]
    return [apply_settings(recipe, {name: value}) for name in names for value in ranges[name].examples]


def suggest(trial: Trial, name: str, range_: Range) -> Any:
    """A value of the sampler's choice; wide ranges on a log scale."""
    if range_.choices:
        return trial.suggest_categorical(name, range_.choices)
    log = range_.low > 0 and range_.high / range_.low >= LOG_FROM
    if isinstance(range_.low, int) and isinstance(range_.high, int):
        return trial.suggest_int(name, range_.low, range_.high, log=log)
    return trial.suggest_float(name, range_.low, range_.high, log=log)


def apply_settings(recipe: Recipe, chosen: Mapping[str, Any]) -> Recipe:
    """A recipe with some settings, by dotted name ("search.prior_strength"), replaced. Raises SpaceError for unknown ones."""
    data: dict[str, Any] = dataclasses.asdict(recipe)
    for name, value in chosen.items():
        *path, last = name.replace("-", "_").split(".")
        table = data
        for part in path:
            table = table.get(part, {}) if isinstance(table, dict) else {}
        if not isinstance(table, dict) or last not in table or isinstance(table[last], dict):
            raise SpaceError(
                f"--tune {name}: a recipe has no such setting; known are search.steps, recovery.learning_rate, space ..."
            )
        table[last] = value
    return from_mapping(Recipe, data, "--tune")
