"""Which point of a front to take? The best under a size, or the smallest above a metric; exported as JSON and packed model."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from autoquant.core.cost import MIB
from autoquant.core.errors import BudgetError, RunError
from autoquant.core.files import disk_errors
from autoquant.export.manifest import write_manifest
from autoquant.reports.command import data_options, machine_options
from autoquant.reports.results import Configuration, Point, Sweep


def select(sweep: Sweep, max_mib: float | None = None, min_metric: float | None = None) -> Configuration:
    """The best mean metric at `max_mib` or less (of equals the smaller), or else the smallest whose mean reaches `min_metric`.

    With both, the best at the size, which must reach the metric. Raises BudgetError, with what there is, if nothing does.
    """
    if max_mib is None and min_metric is None:
        raise BudgetError("Say what to select by: --max-mib 5 or --min-metric 0.86.")
    metric = sweep.objectives.index("metric")
    fitting = [c for c in _whole(sweep) if max_mib is None or largest_bytes(c) <= max_mib * MIB]
    good = [c for c in fitting if min_metric is None or c.folded.mean[metric] >= min_metric]
    if not good:
        raise BudgetError(_nothing(sweep, fitting, max_mib, min_metric, metric))
    if max_mib is not None:
        return max(good, key=lambda c: (c.folded.mean[metric], -largest_bytes(c)))
    return min(good, key=lambda c: (largest_bytes(c), -c.folded.mean[metric]))


def _whole(sweep: Sweep) -> list[Configuration]:
    """The configurations that lack no seed."""
    return [c for c in sweep.configurations if not c.missing]


def largest_bytes(configuration: Configuration) -> int:
    """Of its seeds' files."""
    return max(p.file_bytes for p in configuration.points)


def chosen_point(configuration: Configuration) -> Point:
    """The point to ship: that of the lowest seed. The best seed's metric would be luck picked on the evaluation data."""
    return min(configuration.points, key=lambda p: p.seed)


def shipped_seed(sweep: Sweep, configuration: Configuration) -> str:
    """What a configuration was chosen by and what its shipped point has itself; empty where one seed is both."""
    point, metric, folded = chosen_point(configuration), sweep.objectives.index("metric"), configuration.folded
    seeds = len(configuration.points)
    if seeds == 1:
        return ""
    spread = f"{folded.mean[metric]:.4f} ({folded.smallest[metric]:.4f} to {folded.largest[metric]:.4f})"
    return f"Chosen by the mean of {seeds} seeds, {spread}; this is seed {point.seed}, with {point.metric:.4f}."


def rebuild_command(sweep: Sweep, folder: Path, allocation: Path) -> str:
    """The command that makes a point's packed model again from its allocation.json; TEACHER where the sweep's is not here."""
    teacher = folder / "shared" / "teacher" / "teacher"
    model = str(teacher) if teacher.is_dir() else "TEACHER"
    data, machine = data_options(sweep.task, sweep.data_source), machine_options(sweep.machine or {})
    return shlex.join(["autoquant", "apply", str(allocation), "--model", model, *data, *machine])


def _nothing(sweep: Sweep, fitting: list[Configuration], max_mib: float | None, min_metric: float | None, metric: int) -> str:
    if not _whole(sweep):
        return "The sweep has no configuration with all its seeds yet."
    if not fitting:
        smallest = min(map(largest_bytes, _whole(sweep))) / MIB
        return f"No point is within {max_mib} MiB; the smallest has {smallest:.3f}: raise --max-mib."
    best = max(c.folded.mean[metric] for c in fitting)
    return f"No point reaches {sweep.metric} {min_metric}; the best has {best:.4f}: lower --min-metric or sweep larger sizes."


def export(folder: Path, point: Point, output: Path) -> bool:
    """Write a point's allocation.json into `output`, and its packed model if the sweep in `folder` has it; whether it had.

    Raises RunError if `output` holds something already.
    """
    with disk_errors(output):
        if output.exists() and any(output.iterdir()):
            raise RunError(f"{output} is not empty: give another --output.")
        model = folder / "trials" / point.cell / "model"
        if (model / "model.safetensors").exists():
            shutil.copytree(model, output, dirs_exist_ok=True)
            return True
        output.mkdir(parents=True, exist_ok=True)
    write_manifest(output / "allocation.json", point.allocation)
    return False
