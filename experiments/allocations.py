"""Does the search beat other allocations of the same true bytes? One cell per (ratio, method, seed), resumable.

    python experiments/allocations.py --data-dir glue                 # SST-2, 5,000 training sentences, 15x and 25x, 3 seeds
    python experiments/allocations.py --data-dir glue --seeds 0 --ratios 15 --methods uniform dnas

All cells share teacher, data, clip search, recovery, packer and evaluation; only the allocation differs. Each writes
`results/allocations/<cell>.json`; cells that are there are skipped. `python experiments/tables.py` makes the table.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from autoquant import method, pipeline
from autoquant.assets import default_backbone
from autoquant.blueprint import Blueprint
from autoquant.core.cost import SizeBudget
from autoquant.core.progress import TerminalProgress
from autoquant.core.run import RunDirectory, atomic_write_text, file_sha256, versions
from autoquant.core.settings import load_preset
from autoquant.machine import Machine
from autoquant.tasks.data import TaskData
from autoquant.tasks.load import load_glue
from autoquant.training.batches import Encoded, encode
from autoquant.workspace import Workspace

RESULTS = Path(__file__).parent / "results" / "allocations"


@dataclass(frozen=True)
class Options:
    """Cells to measure: every combination of ratios, methods and seeds."""

    data_dir: Path
    task: str = "sst2"
    train_rows: int = 5000
    ratios: tuple[float, ...] = (15, 25)
    methods: tuple[str, ...] = ("dnas", "uniform", "fisher", "random", "reversed")
    seeds: tuple[int, ...] = (0, 1, 2)
    preset: str = "default"
    max_length: int = 64
    runs: Path = Path("runs/allocations")
    threads: int = 2
    teacher: Path | None = None
    """A fine-tuned teacher; without it one is trained in `runs`/<task>-teacher, or taken from there."""


def cell_name(options: Options, ratio: float, method: str, seed: int) -> str:
    return f"{options.task}-{ratio:g}x-{method}-seed{seed}"


def cell_file(name: str) -> Path:
    return RESULTS / f"{name}.json"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    data = load_glue(options.task, options.data_dir)
    data = dataclasses.replace(data, train=data.train.subsample(options.train_rows))
    teacher = options.teacher or train_teacher(options, data)
    for seed, ratio in itertools.product(options.seeds, options.ratios):
        todo = [m for m in options.methods if not cell_file(cell_name(options, ratio, m, seed)).exists()]
        if todo:
            with workspace(options, data, teacher, ratio, seed) as shared:
                measure(options, shared, ratio, todo, seed)


def train_teacher(options: Options, data: TaskData) -> Path:
    """One teacher for all cells, trained to its plateau on the default seed."""
    folder, _ = pipeline.finetune_teacher(
        default_backbone(),
        data,
        recipe=load_preset(options.preset),
        run_dir=options.runs / f"{options.task}-teacher",
        max_length=options.max_length,
        machine=Machine(threads=options.threads),
        resume=True,
        progress=TerminalProgress(),
    )
    return folder


@contextmanager
def workspace(options: Options, data: TaskData, teacher: Path, ratio: float, seed: int) -> Iterator[Workspace]:
    """The shared start of all cells of one ratio and seed; several processes can work on different ones."""
    recipe = load_preset(options.preset)
    blueprint = Blueprint.draw(str(teacher), data, recipe, options.max_length, trim_positions=False)
    settings = {
        "recipe": dataclasses.asdict(recipe),
        "data": [data.train.sha256(), data.evaluation.sha256()],
        "teacher": file_sha256(teacher / "model.safetensors"),
        "max_length": options.max_length,
        "threads": options.threads,
        "seed": seed,
    }
    with RunDirectory.open(options.runs / f"{options.task}-{ratio:g}x-seed{seed}", settings, resume=True) as run:
        yield Workspace(blueprint, run, TerminalProgress(), Machine(threads=options.threads), seed)


def measure(options: Options, shared: Workspace, ratio: float, methods: list[str], seed: int) -> None:
    """Measure the cells of one ratio and seed, one file each."""
    blueprint = shared.blueprint
    data: Encoded = encode(blueprint.source.tokenizer, blueprint.data.evaluation, blueprint.max_length)
    full = method.evaluate(shared, shared.teacher, data)
    budget = SizeBudget.ratio(ratio, blueprint.full_bytes())
    fisher = shared.search("fisher", budget).allocation
    for strategy in methods:
        result = shared.search(strategy, budget)
        name = cell_name(options, ratio, strategy, seed)
        shared.progress.say(f"Cell {name}")
        folder = shared.run.path / "cells" / name
        built = method.build(shared, result, budget, strategy, folder)
        metrics = method.measure(shared, folder, strategy, data)
        seconds = shared.run.seconds()
        cell: dict[str, Any] = {
            "task": options.task,
            "method": strategy,
            "ratio": ratio,
            "seed": seed,
            "budget_bytes": budget.bytes,
            "file_bytes": built["file_bytes"],
            "full_precision_bytes": blueprint.full_bytes(),
            "metric": blueprint.data.task.metric,
            "metrics": metrics,
            "full_precision": full,
            "reload_difference": built["reload_difference"],
            "share_different_from_fisher": blueprint.byte_model.share_different(result.allocation, fisher),
            "seconds": {"search": seconds.get(f"search-{strategy}", 0.0), "recover": seconds[f"recover-{strategy}"]},
            "recipe": dataclasses.asdict(blueprint.recipe),
            "teacher_sha256": shared.teacher_hash,
            "data_sha256": shared.data_hashes(),
            "allocation": result.allocation.to_json(),
            "versions": versions(),
        }
        atomic_write_text(cell_file(name), json.dumps(cell, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
