"""Presets are checked key by key, and what is wrong is named."""

import dataclasses
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from autoquant.core import settings
from autoquant.core.errors import SpaceError
from autoquant.core.settings import (
    DistillationSettings,
    Recipe,
    RecoverySettings,
    SearchSettings,
    TeacherSettings,
    available_presets,
    from_mapping,
    load_preset,
)
from autoquant.core.space import load_space
from autoquant.quantizers import QUANTIZERS
from autoquant.refine import REFINERS
from autoquant.strategies import STRATEGIES


@pytest.mark.parametrize("name", available_presets())
def test_every_preset_loads_and_names_what_exists(name: str) -> None:
    recipe = load_preset(name)
    assert recipe.quantizer in QUANTIZERS
    assert recipe.search.strategy in STRATEGIES
    load_space(recipe.space)


def test_every_refiner_can_be_asked_for() -> None:
    hints = get_type_hints(RecoverySettings)
    training, reconstruction = get_args(hints["training"]), get_args(hints["reconstruction"])
    assert sorted(training + reconstruction) == sorted(REFINERS)


def test_there_is_a_default_preset() -> None:
    assert "default" in available_presets()


def preset(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, "utf-8")
    return str(path)


def test_a_preset_sets_what_it_names_and_leaves_the_rest(tmp_path: Path) -> None:
    text = 'activation_bits = 32\n[search]\nsteps = 7\nwarmup = 1\nsampling = "hard"\n[recovery]\nsteps = 0\n'
    recipe = load_preset(preset(tmp_path, text))
    search = dataclasses.replace(SearchSettings(), steps=7, warmup=1.0, sampling="hard")
    assert recipe == Recipe(activation_bits=32, search=search, recovery=RecoverySettings(steps=0))
    assert isinstance(recipe.search.warmup, float)


def test_an_empty_preset_is_the_default_recipe(tmp_path: Path) -> None:
    assert load_preset(preset(tmp_path, "")) == Recipe()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stpes = 3", r"mine\.toml: unknown setting 'stpes'; known are space, quantizer"),
        ("[search]\nstpes = 3", r"mine\.toml \[search\]: unknown setting 'stpes'; known are strategy, steps"),
        ("[search]\nsteps = 3.5", r"mine\.toml \[search\]: steps = 3\.5 is not of type int"),
        ('[search]\nsteps = "3"', r"steps = '3' is not of type int"),
        ("[search]\nsteps = true", "steps = True is not of type int"),
        ("[search]\nwarmup = true", "warmup = True is not of type float"),
        ("[search]\nstrategy = 3", "strategy = 3 is not of type str"),
        ('[search]\nsampling = "firm"', "sampling = 'firm' is not one of 'soft', 'hard'"),
        ("activation_bits = 5", "activation_bits = 5 is not one of 4, 8, 32"),
        ("activation_bits = 4", "activation_bits 4 needs a learned range: add --activations static"),
        ("search = 3", "search must be a table"),
        ("[search", r"mine\.toml is not TOML"),
        ("[search]\nheld_out = 0.0", r"held-out 0\.0 must lie between 0 and 0\.9"),
        ("[search]\nsteps = 0", "Search steps, batch size and calibration samples must be at least 1"),
        ("[search]\ncalibration_samples = 0", "calibration samples must be at least 1"),
        ("[search]\ntemperature_end = 2.0", "Temperatures must be positive and must not rise"),
        ("[teacher]\nepochs = 0", "Teacher epochs, patience and batch size must be at least 1"),
        ("[teacher]\nbatch_size = 0", "Teacher epochs, patience and batch size must be at least 1"),
        ("[recovery]\nbatch_size = 0", "Recovery batch size, modules, samples and parallel fill must be at least 1"),
        ("[recovery]\nsteps = -1", "Recovery steps must not be negative"),
        ("[distillation]\nlogits = 0\nhidden = 0", "one must be above 0"),
        ("[distillation]\nhidden = -1", "must not be negative"),
        ("[student]\nkeep_every = 0", "Student keep-every, steps and batch size must be at least 1"),
        ("encoder_bits = -1", r"encoder_bits -1\.0 are not between 0"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=message) as caught:
        load_preset(preset(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_preset_says_what_differs_from_its_base(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('base = "quick"\nspace = "rows"\n[search]\nsteps = 7\nbatch_size = 8\n', "utf-8")
    recipe = load_preset(preset(tmp_path, f'base = "{tmp_path / "base.toml"}"\n[search]\nsteps = 9\n'))
    assert (recipe.space, recipe.search.steps, recipe.search.batch_size) == ("rows", 9, 8)
    assert recipe.teacher == load_preset("quick").teacher
    assert recipe.recovery == load_preset("quick").recovery


def test_a_base_lies_beside_the_preset(tmp_path: Path) -> None:
    (tmp_path / "family.toml").write_text('space = "rows"', "utf-8")
    assert load_preset(preset(tmp_path, 'base = "family.toml"\n[search]\nsteps = 9\n')).space == "rows"


def test_a_table_that_its_base_has_as_a_number(tmp_path: Path) -> None:
    (tmp_path / "family.toml").write_text("search = 3", "utf-8")
    with pytest.raises(SpaceError, match=r"mine\.toml: search must be a table, in its base too"):
        load_preset(preset(tmp_path, 'base = "family.toml"\n[search]\nsteps = 9\n'))


def test_a_preset_cannot_be_its_own_base(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"mine\.toml: its base is itself"):
        load_preset(preset(tmp_path, f'base = "{tmp_path / "mine.toml"}"'))
    with pytest.raises(SpaceError, match=r"mine\.toml: its base is itself"):
        load_preset(preset(tmp_path, f'base = "../{tmp_path.name}/mine.toml"'))


def test_a_preset_may_be_asked_for_as_a_paper_spells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "PRESET_FOLDER", tmp_path)
    (tmp_path / "qbert-2-4-8-8.toml").write_text('space = "rows"', "utf-8")
    assert load_preset("qbert-2/4-8-8").space == "rows"


def test_a_preset_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(SpaceError, match=r"No preset 'nothing': give a path to a TOML file or one of .*default"):
        load_preset("nothing")


def test_bytes_that_are_no_text_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpaceError, match="is not TOML"):
        load_preset(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize("values", [Recipe(), TeacherSettings(epochs=3), DistillationSettings(0.5, 0.0), RecoverySettings()])
def test_settings_survive_the_manifest(values: Any) -> None:
    assert from_mapping(type(values), dataclasses.asdict(values), "allocation.json") == values


def test_an_architecture_without_a_loss_is_refused() -> None:
    with pytest.raises(SpaceError, match="architecture has no loss"):
        Recipe(distillation=DistillationSettings(logits=0.0, hidden=1.0))


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (TeacherSettings, {"learning_rate": -1e-5}, "must be above 0"),
        (RecoverySettings, {"learning_rate": 0.0}, "must be above 0"),
        (SearchSettings, {"architecture_learning_rate": -0.1}, "must be above 0"),
        (SearchSettings, {"warmup": 3.0}, "shares of the steps"),
        (SearchSettings, {"penalty": -1.0}, "must not be negative"),
        (SearchSettings, {"one_hot_weight": -1.0}, "must not be negative"),
        (SearchSettings, {"size_tolerance": 0.0}, "size tolerance 0.0 must lie between 0 and 1"),
        (SearchSettings, {"unrolled": -0.1}, "unrolled -0.1 must not be negative"),
        (SearchSettings, {"scale_learning_rate": -0.1}, "Scale learning rate -0.1 must not be negative"),
        (SearchSettings, {"architecture_learning_rate": float("nan")}, "architecture_learning_rate nan is not a finite number"),
        (RecoverySettings, {"learning_rate": float("inf")}, "learning_rate inf is not a finite number"),
        (DistillationSettings, {"hidden": float("nan")}, "hidden nan is not a finite number"),
        (RecoverySettings, {"scale_learning_rate": -0.1}, "Scale learning rate -0.1 must not be negative"),
    ],
)
def test_numbers_out_of_range_are_refused(cls: type, values: dict[str, float], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        cls(**values)


def test_eight_point_zero_is_no_bit_width() -> None:
    with pytest.raises(SpaceError, match=r"activation_bits = 8\.0 is not one of"):
        from_mapping(Recipe, {"activation_bits": 8.0}, "mine.toml")
