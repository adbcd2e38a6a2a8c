"""What a machine must have before it claims a trial."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autoquant import pipeline
from autoquant.core.cost import SizeBudget
from autoquant.core.errors import RunError
from autoquant.core.progress import SilentProgress
from autoquant.core.space import load_space
from autoquant.export.manifest import space_content
from autoquant.pareto import measure as module
from autoquant.pareto.measure import Measurer
from autoquant.tasks.data import TaskData, TextData
from autoquant.tasks.task import MOVIES
from whole_sweeps import settings_of


def measurer(folder: Path, **more: Any) -> Measurer:
    return Measurer(None, settings_of(**more), None, folder, "nowhere", SilentProgress())  # type: ignore[arg-type]


def test_a_space_that_is_another_here_is_refused_before_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Measurer, "teacher", "")
    measurer(tmp_path).check()  # an older study, which does not say
    measurer(tmp_path, space=space_content(load_space("default"))).check()
    with pytest.raises(RunError, match="The space 'default' here is not that of the sweep"):
        measurer(tmp_path, space=space_content(load_space("rows"))).check()


def test_a_trial_is_run_as_its_parameters_and_the_sweep_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def search(*_: Any, **options: Any) -> None:
        asked.update(options)
        raise InterruptedError

    monkeypatch.setattr(pipeline, "search", search)
    monkeypatch.setattr(Measurer, "teacher", "")
    monkeypatch.setattr(Measurer, "shared", lambda _, *of: of)
    ours = measurer(tmp_path, seeds=(0, 3), count="encoder", trim_positions=True, strategies=("dnas", "fisher"))
    params = {"strategy": "fisher", "budget_bytes": 2**20, "seed": 3}
    trial: Any = SimpleNamespace(user_attrs={"cell": "one"}, params=params)
    with pytest.raises(InterruptedError):
        ours(trial)
    recipe, budget = ours.settings.recipe, SizeBudget(2**20, "encoder")
    recipe = dataclasses.replace(recipe, search=dataclasses.replace(recipe.search, strategy="fisher"))
    assert asked["shared"] == (recipe, budget, 3)
    assert (asked["recipe"], asked["budget"], asked["seed"], asked["controls"]) == (recipe, budget, 3, ())
    assert (asked["max_length"], asked["trim_positions"], asked["machine"]) == (32, True, ours.machine)
    assert asked["run_dir"] == tmp_path / "trials" / "one"
    assert (ours.parts.pivot, ours.parts.seed, ours.parts.trim_positions) == (budget, 0, True)


def test_latency_is_that_of_training_texts_in_the_sweeps_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = tuple(f"text {number}" for number in range(module.TEXTS + 8))
    train, evaluation = (TextData(some, None, np.zeros(len(some), dtype=np.int64)) for some in (texts, ("another", "one")))
    monkeypatch.setattr(module, "load", lambda _: SimpleNamespace(tokenizer="its tokenizer", max_length=32))
    monkeypatch.setattr(module, "encode", lambda tokenizer, some, most: (tokenizer, some.first, most))
    monkeypatch.setattr(module, "latency_ms", lambda *asked: asked)
    data, settings = TaskData(MOVIES, train, evaluation, ("no", "yes")), settings_of()
    ours = Measurer(None, settings, data, tmp_path, "nowhere", SilentProgress())  # type: ignore[arg-type]
    read = ("its tokenizer", texts[: module.TEXTS], 32)
    assert ours.latency(tmp_path) == (tmp_path, read, settings.machine["threads"])
