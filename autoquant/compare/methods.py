"""What is a method? A strategy under the common recipe, or a preset with everything of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoquant.core.errors import SpaceError
from autoquant.core.settings import Recipe, available_presets, load_preset
from autoquant.strategies import STRATEGIES

ALL, BASELINE = "all", "uniform"


@dataclass(frozen=True)
class Method:
    """A name of the table, and the recipe behind it."""

    name: str
    recipe: Recipe


def resolve_methods(names: Sequence[str], common: Recipe) -> tuple[Method, ...]:
    """Methods by name, in order. A strategy takes its quantizer, space and recovery from `common`; a preset (a name, or the path
    of a TOML file, which is then named after its stem) brings its own. `all`: every preset and strategy, but no recipe twice.

    Raises SpaceError for unknown names, and for two methods of one name.
    """
    given = [part for name in names for part in name.split(",") if part]
    if not given:
        raise SpaceError("A comparison needs a method: give --methods uniform fisher default, or all.")
    methods = [method for name in given for method in (_everything(common) if name == ALL else [_method(name, common)])]
    for name in {method.name for method in methods}:
        same = [method for method in methods if method.name == name]
        if any(method != same[0] for method in same) or (len(same) > 1 and ALL not in given):
            raise SpaceError(f"The method {name} is given twice.")
    return tuple(dict.fromkeys(methods))


def _everything(common: Recipe) -> Iterable[Method]:
    """Presets first: `default` is what is shipped, not the strategy by which it searches."""
    by_recipe: dict[Recipe, Method] = {}
    for name in (*available_presets(), *STRATEGIES):
        method = _method(name, common)
        by_recipe.setdefault(method.recipe, method)
    return by_recipe.values()


def _method(name: str, common: Recipe) -> Method:
    if name in STRATEGIES:
        return Method(name, dataclasses.replace(common, search=dataclasses.replace(common.search, strategy=name)))
    if name.replace("/", "-") in available_presets() or name.endswith(".toml"):
        return Method(Path(name).stem if name.endswith(".toml") else name.replace("/", "-"), load_preset(name))
    known = f"strategies {', '.join(STRATEGIES)}; presets {', '.join(available_presets())}; {ALL}"
    raise SpaceError(f"Unknown method '{name}'; known are {known}; or give the path of a preset's TOML file.")
