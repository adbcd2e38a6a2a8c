"""Does the searched model run, from a file of its true size, as fast as int8? Searches, exports and times under two budgets.

    python experiments/deployment.py                          # 4 and 6 MiB, default backbone and data; resumable
    python experiments/deployment.py --budgets 4 --bench      # time again what has been measured, on a quiet machine

Every budget is a whole run of the comparison's recipe with uniform bits beside it; then both ONNX tails are written and measured,
and the int8 file is timed against its own teacher with one thread (`autoquant bench`). Kept in `results/deployment/<n>mib.json`:
metrics of every deployed file, bytes, hashes and times. `python experiments/tables.py` makes the tables.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from pinned import PINNED

from autoquant import pipeline
from autoquant.bench import bench_run, show
from autoquant.core.cost import SizeBudget
from autoquant.core.files import atomic_write_text, file_sha256
from autoquant.core.progress import Progress, TerminalProgress
from autoquant.core.run import RunDirectory
from autoquant.core.settings import load_preset
from autoquant.deploy import export_run, finished_run
from autoquant.machine import Machine
from autoquant.tasks.load import load_default

RESULTS = Path(__file__).parent / "results" / "deployment"
KEPT = ("task", "strategy", "metric", "deployed", "all_metrics", "bytes", "units_removed", "seconds", "seed")


@dataclass(frozen=True)
class Options:
    """What to measure."""

    budgets: tuple[float, ...] = (4, 6)
    """MiB."""
    preset: str = PINNED
    runs: Path = Path("runs/deployment")
    threads: int = 2
    """Of search and recovery; times are always taken with one."""
    bench: bool = False
    """Time again; files and metrics stay as they were measured."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    progress = TerminalProgress()
    teacher = train_teacher(options, progress)
    for budget in options.budgets:
        path = RESULTS / f"{budget:g}mib.json"
        run_dir = options.runs / f"{budget:g}mib"
        if not path.is_file():
            atomic_write_text(path, as_json(deploy(options, teacher, budget, run_dir, progress)))
        if options.bench or "bench" not in json.loads(path.read_text("utf-8")):
            time_it(path, run_dir, progress)


def train_teacher(options: Options, progress: Progress) -> Path:
    """One teacher for all budgets."""
    machine = Machine(threads=options.threads)
    recipe, run_dir = load_preset(options.preset), options.runs / "teacher"
    return pipeline.finetune_teacher(recipe=recipe, run_dir=run_dir, machine=machine, resume=True, progress=progress)[0]


def deploy(options: Options, teacher: Path, budget: float, run_dir: Path, progress: Progress) -> dict[str, Any]:
    """Search, recover, pack, export and measure."""
    if not RunDirectory(run_dir).is_finished:
        pipeline.search(
            teacher,
            budget=SizeBudget.mib(budget),
            recipe=load_preset(options.preset),
            run_dir=run_dir,
            machine=Machine(threads=options.threads),
            resume=True,
            progress=progress,
        )
    for tail in ("onnx-fp32", "onnx-int8"):
        export_run(run_dir, tail, load_default(), progress)
    metrics = finished_run(run_dir).result()
    return {"teacher_sha256": file_sha256(teacher / "model.safetensors")} | {key: metrics[key] for key in KEPT}


def time_it(path: Path, run_dir: Path, progress: Progress) -> None:
    cell = json.loads(path.read_text("utf-8"))
    cell["bench"] = bench_run(run_dir, load_default(), threads=1, progress=progress)
    show(cell["bench"], progress)
    atomic_write_text(path, as_json(cell))


def as_json(cell: dict[str, Any]) -> str:
    return json.dumps(cell, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    main()
