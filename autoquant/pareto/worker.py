"""Joining a sweep that another process, here or elsewhere, has begun."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna

from autoquant.core.errors import RunError
from autoquant.core.progress import Progress, SilentProgress
from autoquant.pareto.settings import SweepSettings
from autoquant.pareto.storage import database_errors, open_storage, storage_errors, without_password
from autoquant.pareto.study import SETTINGS, make_sampler
from autoquant.pareto.sweep import run_worker
from autoquant.pareto.trials import PATIENCE, check_patience
from autoquant.pipeline import resolve_inputs
from autoquant.reports.results import Sweep
from autoquant.tasks.data import TaskData


def join(
    study_name: str,
    storage: str,
    load_data: Callable[[Mapping[str, Any] | None], TaskData],
    *,
    run_dir: str | Path = "runs/pareto",
    model: str | None = None,
    progress: Progress | None = None,
    patience: float = PATIENCE,
) -> Sweep:
    """Run trials of a sweep until none is left.

    `load_data` is given the options the sweep loaded its data with, and returns the same data; `run_dir` may be the sweep's own
    folder or another machine's; `model` says where the sweep's model is here. Raises RunError if there is no such study, or
    the data are not the sweep's.
    """
    progress = progress or SilentProgress()
    check_patience(patience)
    with storage_errors(storage):
        opened = open_storage(storage)
        try:
            study = optuna.load_study(study_name=study_name, storage=opened)
        except KeyError as error:
            known = ", ".join(sorted(optuna.get_all_study_names(opened))) or "none"
            raise RunError(f"No sweep '{study_name}' in {without_password(storage)}; there: {known}.") from error
        recorded = study.user_attrs.get(SETTINGS)
    if recorded is None:
        raise RunError(f"'{study_name}' is no sweep of autoquant, or one that is just being made: try again.")
    settings = SweepSettings.from_json(recorded)
    study.sampler = make_sampler(settings, None)
    data = load_data(settings.data_source)
    if data.hashes() != dict(settings.data):
        raise RunError(f"The data here is not that of the sweep '{study_name}': give its --task and --data-dir, or its files.")
    path, _ = resolve_inputs(model or settings.model, data)
    with database_errors(storage):
        return run_worker(study, settings, data, Path(run_dir), path, progress, patience)
