"""A name becomes a recipe: a strategy's under the common one, or a preset's own."""

import dataclasses
from pathlib import Path

import pytest

from autoquant.compare.methods import Method, resolve_methods
from autoquant.core.errors import SpaceError
from autoquant.core.settings import Recipe, RecoverySettings, available_presets, load_preset
from autoquant.strategies import STRATEGIES

COMMON = Recipe(recovery=RecoverySettings(steps=7))


def test_a_strategy_has_the_common_recovery_and_a_preset_its_own() -> None:
    fisher, preset = resolve_methods(["fisher", "aqbert"], COMMON)
    assert fisher == Method("fisher", dataclasses.replace(COMMON, search=dataclasses.replace(COMMON.search, strategy="fisher")))
    assert preset == Method("aqbert", load_preset("aqbert"))


def test_commas_and_spaces() -> None:
    assert [m.name for m in resolve_methods(["uniform,random", "fisher"], COMMON)] == ["uniform", "random", "fisher"]


def test_a_file_is_named_after_its_stem(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('quantizer = "minmax"\n', "utf-8")
    (mine,) = resolve_methods([str(file)], COMMON)
    assert mine == Method("mine", Recipe(quantizer="minmax"))


def test_all_is_everything_but_no_recipe_twice() -> None:
    names = [m.name for m in resolve_methods(["all"], load_preset("default"))]
    assert set(names) <= {*STRATEGIES, *available_presets()}
    assert "default" in names
    assert "dnas" not in names  # which is what `default` runs
    assert {"uniform", "random", "reversed", "fisher"} <= set(names)
    everything = resolve_methods(["all"], COMMON)
    assert len({m.recipe for m in everything}) == len(everything)
    assert "dnas" in [m.name for m in everything]


def test_more_beside_all() -> None:
    names = [m.name for m in resolve_methods(["all", "uniform", "dnas"], load_preset("default"))]
    assert names.count("uniform") == 1
    assert "dnas" in names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "give --methods"),
        (["best"], r"Unknown method 'best'; known are strategies dnas, .*presets aqbert, .*; all; or"),
        (["fisher", "fisher"], "fisher is given twice"),
        (["nowhere/mine.toml"], "No preset 'nowhere/mine.toml'"),
    ],
)
def test_what_is_no_method(names: list[str], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        resolve_methods(names, COMMON)


def test_no_preset_is_named_like_a_strategy() -> None:
    """Or its name would stand for two methods."""
    assert not set(available_presets()) & set(STRATEGIES)
