"""A sweep's study: made once, found again, and filled with points that were measured the same way."""

import dataclasses
from pathlib import Path
from typing import Any

import optuna
import pytest

from autoquant.core.errors import RunError
from autoquant.core.settings import SearchSettings
from autoquant.pareto import study as studies
from autoquant.pareto.settings import SweepSettings, make_plan
from autoquant.pareto.storage import open_storage
from autoquant.pareto.trials import claim
from autoquant.reports.results import Sweep
from runs import reference
from sweeps import manifest
from whole_sweeps import finished, settings_of, sqlite

__all__ = ["finished", "reference"]


@pytest.mark.parametrize(
    ("changes", "unlike"),
    [
        ({"count": "encoder"}, ["budget"]),
        ({"reuse_search": False}, ["way to share searches"]),
        ({"max_length": 16}, ["max_length"]),
        ({"space": "layer"}, ["space", "recipe"]),
        ({"search": SearchSettings(steps=3)}, ["recovery", "recipe"]),  # and other calibration texts
        ({}, []),
    ],
)
def test_points_made_otherwise_are_not_adopted(changes: dict[str, Any], unlike: list[str], finished: Path) -> None:
    study = optuna.load_study(study_name=finished.name, storage=open_storage(sqlite(finished)))
    settings, point = SweepSettings.from_json(study.user_attrs["autoquant"]), Sweep.read(finished).points[0]
    parts = {name: value for name, value in changes.items() if name in ("space", "search")}
    whole = {name: value for name, value in changes.items() if name not in parts}
    settings = dataclasses.replace(settings, **whole, recipe=dataclasses.replace(settings.recipe, **parts))
    teacher = study.user_attrs["teacher"]
    assert studies._unlike(point, settings, teacher) == unlike
    assert set(studies._unlike(point, settings, "0" * 64)) == {*unlike, "teacher"}
    older = dataclasses.replace(point, recipe={}, reuse_search=None)  # says less, and is not refused for that
    assert studies._unlike(older, settings, teacher) == [n for n in unlike if n not in ("recipe", "way to share searches")]


def test_a_space_that_offered_more_may_have_found_the_same() -> None:
    rules = {kind: {"bits": [0, 2, 4, 8], "groups": 1} for kind in ("query", "word_embedding")}
    space = {"name": "default", "scale": "row", "structure": {"heads": False, "ffn_blocks": 0}, "rules": rules}
    less = {**space, "rules": {**rules, "query": {"bits": [2, 4, 8], "groups": 1}}}
    found = {**manifest(2, 2, 4, 8), "space": space}
    found["matrices"] = found["matrices"][1:]  # the queries
    assert studies._would_be_found(found, space)
    assert studies._would_be_found(found, less)
    assert not studies._would_be_found({**manifest(0, 2, 4, 8), "space": space}, less)  # it has 0 bits
    assert not studies._would_be_found({**found, "space": less}, space)  # it had no choice of 0 bits
    assert not studies._would_be_found(found, {**space, "scale": "subgroup"})
    finer = {**space, "rules": {**rules, "query": {"bits": [0, 2, 4, 8], "groups": 12}}}
    assert not studies._would_be_found(found, finer)


def test_sizes_and_latencies_should_fall_and_metrics_rise(tmp_path: Path) -> None:
    settings = settings_of(objectives=("size", "metric", "latency"))
    study = studies.create_study(f"sqlite:///{tmp_path / 'study.db'}", "three", settings, resume=False)
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MAXIMIZE", "MINIMIZE"]


def test_a_resumed_sampler_does_not_draw_the_same_again(tmp_path: Path) -> None:
    settings = settings_of(tune={"recovery.learning-rate": "1e-4:1e-2"}, trials=4)
    plan, rates = make_plan(settings), []
    for resume in (False, True, True):
        study = studies.create_study(f"sqlite:///{tmp_path / 'study.db'}", "tuned", settings, resume)
        trial = claim(study, plan)
        assert trial is not None
        rates.append(trial.params["recovery.learning-rate"])
        study.tell(trial, [1.0, 1.0])
    assert len(set(rates)) == 3


def test_a_space_that_was_edited_is_another(tmp_path: Path) -> None:
    """Where the data are is not asked; nor what the space of a study is that does not say so."""
    storage, space = f"sqlite:///{tmp_path / 'study.db'}", {"name": "mine", "rules": {"query": {"bits": [2, 4]}}}
    settings = dataclasses.replace(settings_of(), space=space, data_source={"data_dir": "here"})
    studies.create_study(storage, "one", settings, resume=False)
    studies.create_study(storage, "one", dataclasses.replace(settings, data_source={"data_dir": "./here"}), resume=True)
    edited = dataclasses.replace(settings, space={"name": "mine", "rules": {"query": {"bits": [0, 2, 4]}}})
    with pytest.raises(RunError, match=r"space\.rules\.query\.bits: was \[2, 4\], now \[0, 2, 4\]"):
        studies.create_study(storage, "one", edited, resume=True)
    older = {name: value for name, value in settings.to_json().items() if name != "space"}
    optuna.load_study(study_name="one", storage=open_storage(storage)).set_user_attr("autoquant", older)
    studies.create_study(storage, "one", edited, resume=True)


def test_the_embedded_model_is_each_machine_s_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(studies, "default_backbone", lambda: Path("/first/cache/model"))
    settings = settings_of()
    assert "--model" not in settings.command()
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    studies.create_study(storage, "old", dataclasses.replace(settings, model="/first/cache/model"), resume=False)
    studies.create_study(storage, "old", settings, resume=True)  # as studies once kept it
    studies.create_study(storage, "new", settings, resume=False)
    with pytest.raises(RunError, match="model: was null, now"):
        studies.create_study(storage, "new", dataclasses.replace(settings, model="mine"), resume=True)
