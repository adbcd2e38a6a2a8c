"""The evidence may grow by strategies: each choice of them is a study of its own, in one folder, over the same cells."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "experiments" / "pareto.py"


def test_other_strategies_are_another_study_of_the_same_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("experiments_pareto", FILE)
    assert spec is not None
    assert spec.loader is not None
    experiment = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, experiment)
    monkeypatch.syspath_prepend(FILE.parent)
    spec.loader.exec_module(experiment)
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(experiment, "sweep", lambda model, **more: asked.append(more))
    for strategies in (("dnas", "uniform"), ("random",), ("dnas", "uniform", "random")):
        experiment.measure(experiment.Options(strategies=strategies))
    endings = ("", "-random", "-dnas-uniform-random")
    assert [more["study_name"] for more in asked] == [f"pareto-movies{ending}" for ending in endings]
    assert {more["run_dir"] for more in asked} == {Path("runs/pareto-movies")}
    assert {more["cells"] for more in asked} == {FILE.parent / "results" / "pareto"}
    experiment.measure(experiment.Options(fresh=True))
    assert asked[-1]["study_name"] == "pareto-movies-fresh"
