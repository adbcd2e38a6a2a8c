"""Whole sweeps on the tiny model: how they are asked for, and what to wait for."""

import dataclasses
from pathlib import Path
from typing import Any

import optuna
import pytest

from autoquant import cli
from autoquant.core.settings import load_preset
from autoquant.pareto.settings import SweepSettings
from autoquant.pareto.storage import open_storage
from runs import FEWEST, MACHINE, Reference, task

BUDGETS = "0.018,0.024"
CELLS = sorted(f"{strategy}-{size}MiB-seed0" for size in (0.018, 0.024) for strategy in ("dnas", "uniform"))


def arguments(reference: Reference, run_dir: Path, *more: object) -> list[str]:
    files = task(reference.run_dir / "teacher", reference.data)
    fixed = [*MACHINE, *FEWEST, "--recovery.mrem-steps", "0", "--max-length", "32", "--budgets", BUDGETS]
    return ["pareto", *files, *fixed, "--run-dir", str(run_dir), "--patience-seconds", "30", *map(str, more)]


@pytest.fixture
def finished(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep: read it, do not write into it."""
    run_dir = tmp_path_factory.getbasetemp() / "sweep"
    if not (run_dir / "report.html").exists():
        cli.main(arguments(reference, run_dir))
    return run_dir


def settings_of(**more: Any) -> SweepSettings:
    """The settings of a sweep that nobody runs."""
    machine = {"device": "cpu", "threads": 1, "precision": "fp32", "compile": False}
    settings = SweepSettings(
        model=None,
        task="movies",
        data={"train": "a", "evaluation": "b"},
        budgets=(2**20,),
        count="file",
        strategies=("dnas",),
        seeds=(0,),
        recipe=load_preset("default"),
        max_length=32,
        trim_positions=False,
        machine=machine,
        reuse_search=True,
    )
    return dataclasses.replace(settings, **more)


def trials_of(storage: str, name: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=open_storage(storage)).get_trials()


def sqlite(run_dir: Path) -> str:
    return f"sqlite:///{run_dir / 'study.db'}"
