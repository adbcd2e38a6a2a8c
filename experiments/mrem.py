"""How well does reconstruction refine a frozen allocation? One cell per setting, each in a process of its own, resumable.

    python experiments/mrem.py --data-dir glue                          # every cell: methods, forcing, modules, samples, steps
    python experiments/mrem.py --data-dir glue --parts methods --tasks sst2 --seeds 0
    python experiments/mrem.py --data-dir glue --list                   # their names, and which are there

All cells of a task share the teacher, the training text and, where the allocation is a searched one, one search at 15x, which
is kept in `results/mrem/allocations/`. Each writes `results/mrem/<cell>.json`; cells that are there are skipped. `python
experiments/tables.py` makes the table and `results/mrem/curve.png`. Each has a process of its own, whose peak memory it records;
mrem-p's is that of all its workers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from filelock import FileLock
from pinned import PINNED

from autoquant import method, pipeline
from autoquant.assets import default_backbone
from autoquant.blueprint import Blueprint
from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import SizeBudget
from autoquant.core.files import atomic_write_text, file_sha256
from autoquant.core.progress import TerminalProgress
from autoquant.core.run import RunDirectory
from autoquant.core.settings import RECONSTRUCTION, RecoverySettings, load_preset
from autoquant.core.versions import device_name, versions
from autoquant.machine import Machine
from autoquant.refinement import UniformBits
from autoquant.strategies import SearchResult
from autoquant.tasks.data import TaskData
from autoquant.tasks.load import load_glue
from autoquant.training.batches import encode
from autoquant.workspace import Workspace

RESULTS = Path(__file__).parent / "results" / "mrem"
BITS, RATIO = "2-2-8", 15
TASKS, ALLOCATIONS, SEEDS = ("sst2", "mrpc"), (BITS, "searched"), (0, 1, 2)
METHODS = ("none", "layer-wise", "mrem-s", "mrem-p", "retrain")
PARTS = ("methods", "forcing", "modules", "samples", "curve")
MREM_STEPS, RETRAIN_STEPS = 500, 400  # a module; of the whole network, as heads.toml has it


@dataclass(frozen=True)
class Cell:
    """One measurement: `steps` a module (a layer for layer-wise), in all for retrain."""

    part: str
    task: str
    allocation: str
    method: str
    steps: int
    seed: int = 0
    modules: int = 4
    samples: int = 4096
    forcing: str = "linear"

    @property
    def name(self) -> str:
        settings = f"{self.method}-{self.steps}steps-{self.modules}modules-{self.samples}samples-{self.forcing}"
        return f"{self.task}-{self.allocation}-{settings}-seed{self.seed}"

    def file(self, results: Path) -> Path:
        return results / f"{self.name}.json"

    def recovery(self) -> RecoverySettings:
        if self.method in ("none", "retrain"):
            return RecoverySettings(steps=self.steps, mrem_steps=0)
        return dataclasses.replace(
            RECONSTRUCTION,
            mrem_steps=self.steps,
            reconstruction=self.method,  # type: ignore[arg-type]
            mrem_modules=self.modules,
            mrem_samples=self.samples,
            teacher_forcing=self.forcing,  # type: ignore[arg-type]
        )


def all_cells() -> list[Cell]:
    """The evidence, cheapest questions first."""
    own = {"none": 0, "retrain": RETRAIN_STEPS}
    cells = [
        Cell("methods", task, allocation, method, own.get(method, MREM_STEPS), seed)
        for seed in SEEDS
        for task in TASKS
        for allocation in ALLOCATIONS
        for method in METHODS
    ]
    sst2 = ("sst2", BITS)
    cells += [Cell("forcing", *sst2, "mrem-s", steps, forcing=f) for steps in (250, 2000) for f in ("linear", "off")]
    cells += [Cell("modules", *sst2, "mrem-s", MREM_STEPS, modules=modules) for modules in (1, 2, 3, 6)]
    cells += [Cell("samples", *sst2, "mrem-s", MREM_STEPS, samples=samples) for samples in (256, 512, 1024, 2048, 4096)]
    cells += [Cell("curve", *sst2, "mrem-s", steps) for steps in (60, 125, 250, 500, 1000, 2000)]
    cells += [Cell("curve", *sst2, "retrain", steps) for steps in (50, 100, 200, 400, 800, 1600)]
    return cells


@dataclass(frozen=True)
class Options:
    """Which cells to measure."""

    data_dir: Path
    parts: tuple[str, ...] = PARTS
    tasks: tuple[str, ...] = TASKS
    allocations: tuple[str, ...] = ALLOCATIONS
    methods: tuple[str, ...] = METHODS
    seeds: tuple[int, ...] = SEEDS
    train_rows: int = 5000
    max_length: int = 64
    threads: int = 1
    runs: Path = Path("runs/mrem")
    results: Path = RESULTS
    teacher: tuple[str, ...] = ()
    """Fine-tuned teachers as task=folder; without one for a task it is trained in `runs`, or taken from there."""
    list: bool = False
    """Only say which cells are there."""
    cell: Annotated[str | None, tyro.conf.arg(help="Measure this one, in this process.")] = None


def chosen(options: Options) -> list[Cell]:
    """The cells asked for; a setting that two parts share is measured once."""
    wanted = {
        cell.name: cell
        for cell in all_cells()
        if cell.part in options.parts
        and cell.task in options.tasks
        and cell.allocation in options.allocations
        and cell.method in options.methods
        and cell.seed in options.seeds
    }
    return list(wanted.values())


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.cell:
        measure(options, next(cell for cell in all_cells() if cell.name == options.cell))
        return
    for cell in chosen(options):
        if options.list:
            print("there  " if cell.file(options.results).exists() else "missing", cell.name)
        elif not cell.file(options.results).exists():
            print(f"Cell {cell.name}", flush=True)
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--cell", cell.name], check=True)


def load(options: Options, task: str) -> TaskData:
    data = load_glue(task, options.data_dir)
    return dataclasses.replace(data, train=data.train.subsample(options.train_rows))


def teacher_of(options: Options, task: str, data: TaskData) -> Path:
    """One teacher for all cells of a task, trained to its plateau."""
    given = dict(entry.split("=", 1) for entry in options.teacher)
    if task in given:
        return Path(given[task])
    folder, _ = pipeline.finetune_teacher(
        default_backbone(),
        data,
        run_dir=options.runs / f"{task}-teacher",
        max_length=options.max_length,
        machine=Machine(threads=options.threads),
        resume=True,
        progress=TerminalProgress(),
    )
    return folder


@contextmanager
def workspace(options: Options, name: str, blueprint: Blueprint, seed: int) -> Iterator[Workspace]:
    """The start that all cells of one task, allocation and seed share."""
    settings = {
        "recipe": dataclasses.asdict(dataclasses.replace(blueprint.recipe, recovery=RecoverySettings(steps=RETRAIN_STEPS))),
        "data": [blueprint.data.train.sha256(), blueprint.data.evaluation.sha256()],
        "teacher": file_sha256(Path(blueprint.source.path) / "model.safetensors"),
        "max_length": options.max_length,
        "threads": options.threads,
        "seed": seed,
    }
    with RunDirectory.open(options.runs / name, settings, resume=True) as run:
        yield Workspace(blueprint, run, TerminalProgress(), Machine(threads=options.threads), seed)


def searched(options: Options, task: str, data: TaskData, teacher: Path) -> BitAllocation:
    """The allocation of one search by the comparison's recipe, kept beside the cells: all of them refine the very same."""
    file = options.results / "allocations" / f"{task}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    made_from = {"teacher": file_sha256(teacher / "model.safetensors"), "train": data.train.sha256()}
    with FileLock(file.parent / f".{task}.lock"):
        if not file.exists():
            blueprint = Blueprint.draw(str(teacher), data, load_preset(PINNED), options.max_length, False)
            with workspace(options, f"{task}-search", blueprint, 0) as shared:
                found = shared.search("dnas", SizeBudget.ratio(RATIO, blueprint.full_bytes())).allocation
            atomic_write_text(file, json.dumps({**made_from, "allocation": found.to_json()}, sort_keys=True) + "\n")
    kept = json.loads(file.read_text())
    if any(kept[name] != digest for name, digest in made_from.items()):
        raise SystemExit(f"{file} was searched with another teacher or other texts: move it and its cells elsewhere.")
    return BitAllocation.from_json(kept["allocation"])


def measure(options: Options, cell: Cell) -> None:
    """Refine, pack, measure the reloaded file, and write the cell."""
    data = load(options, cell.task)
    teacher = teacher_of(options, cell.task, data)
    if cell.allocation == "searched":
        allocation = searched(options, cell.task, data, teacher)
        recipe = dataclasses.replace(load_preset(PINNED), recovery=cell.recovery())
        blueprint = Blueprint.draw(str(teacher), data, recipe, options.max_length, False)
    else:
        bits = UniformBits.parse(cell.allocation)
        blueprint = Blueprint.draw(str(teacher), data, bits.recipe(cell.recovery()), options.max_length, False)
        allocation = BitAllocation({p.matrix.name: p.widths * p.groups for p in blueprint.byte_model.partitions})
    budget = SizeBudget(blueprint.byte_model.exact_bytes(allocation))
    with workspace(options, f"{cell.task}-{cell.allocation}-seed{cell.seed}", blueprint, cell.seed) as shared:
        _ = shared.starting_point  # shared by all methods, so in nobody's time or memory
        built = method.build(shared, SearchResult(allocation), budget, cell.name, shared.run.path / "cells" / cell.name)
        encoded = encode(blueprint.source.tokenizer, data.evaluation, options.max_length)
        metrics = method.measure(shared, shared.run.path / "cells" / cell.name, cell.name, encoded)
        full = method.evaluate(shared, shared.teacher, encoded)
        result: dict[str, Any] = {
            **dataclasses.asdict(cell),
            "metric": data.task.metric,
            "metrics": metrics,
            "full_precision": full,
            "file_bytes": built["file_bytes"],
            "full_precision_bytes": blueprint.full_bytes(),
            "seconds": shared.run.seconds()[f"recover-{cell.name}"],
            "peak_mib": shared.run.peaks_mib()[f"recover-{cell.name}"],
            "threads": options.threads,
            "allocation_sha256": hashlib.sha256(json.dumps(allocation.to_json(), sort_keys=True).encode()).hexdigest(),
            "recipe": dataclasses.asdict(blueprint.recipe),
            "teacher_sha256": shared.teacher_hash,
            "data_sha256": shared.data_hashes(),
            "versions": versions(),
            "device": device_name(shared.context.device),
        }
    atomic_write_text(cell.file(options.results), json.dumps(result, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
