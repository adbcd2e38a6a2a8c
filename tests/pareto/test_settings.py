"""What a sweep asks for."""

import shlex
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from autoquant import cli
from autoquant.pareto.settings import SweepSettings, make_plan, spread_budgets
from autoquant.pareto.storage import default_storage
from whole_sweeps import settings_of


def parsed(settings: SweepSettings) -> cli.Pareto:
    command = cli.parse(shlex.split(settings.command())[1:])
    assert isinstance(command, cli.Pareto)
    return command


def test_points_are_even_on_a_log_scale() -> None:
    assert spread_budgets([4, 1], 3) == (2**20, 2**21, 2**22)
    assert spread_budgets([4, 1], None) == (2**20, 2**22)


def test_a_front_of_the_first_seed_is_there_before_the_second_begins() -> None:
    plan = make_plan(settings_of(budgets=(2**20, 2**21), strategies=("dnas", "uniform"), seeds=(1, 0)))
    sizes = [(strategy, size) for size in (1, 2) for strategy in ("dnas", "uniform")]
    assert list(plan.cells) == [f"{strategy}-{size}MiB-seed{seed}" for seed in (1, 0) for strategy, size in sizes]
    assert plan.cells["uniform-2MiB-seed0"] == {"strategy": "uniform", "budget_bytes": 2**21, "seed": 0}


def test_the_command_of_a_sweep_asks_for_the_same() -> None:
    more = {"count": "encoder", "reuse_search": False, "trim_positions": True, "seeds": (0, 2)}
    command = parsed(settings_of(**more, objectives=("size", "metric", "latency")))
    assert {name: getattr(command, name) for name in more} == more
    assert command.latency
    command = parsed(settings_of(tune={"recovery.learning-rate": "1e-4:1e-2"}, trials=4, sampler="nsga2"))
    assert (command.tune, command.trials, command.sampler) == (("recovery.learning-rate=1e-4:1e-2",), 4, "nsga2")


@pytest.mark.parametrize("name", ["plain", "two words", "what?now", "run%20one", "#é@"])
def test_the_study_lies_in_the_sweeps_folder_whatever_that_is_called(tmp_path: Path, name: str) -> None:
    assert make_url(default_storage(tmp_path / name)).database == str(tmp_path / name / "study.db")
