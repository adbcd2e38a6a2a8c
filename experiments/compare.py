"""Which method wins at the same bytes? Every strategy, quantizer and recipe under 15x and 25x, all else the same.

    python experiments/compare.py --data-dir glue                                   # everything, over days; resumable
    python experiments/compare.py --data-dir glue --tasks sst2 --methods qbert --seeds 0
    python experiments/compare.py --data-dir glue --list                            # the cells, and which are there
    python experiments/compare.py --data-dir glue --matched                         # afterwards: ours at the recipes' own bytes
    python experiments/compare.py --data-dir glue --preset default --results experiments/results/default --runs runs/default

SST-2 (5,000 training sentences) and MRPC at 64 tokens, the default backbone, the recipe of heads.toml, which only presets leave.
With `--preset default` uniform bits have the default recipe's space and recovery, and stand beside it alone.
Methods of MANY get three seeds, all others one; one search per task and seed serves both budgets where the method allows. Each
cell is kept as soon as it is done in `results/compare/<cell>.json`, with its predictions; all of them as rows in
`results/compare.csv`. Cells that are there are not measured again. Recipes that fix their own size have nobody beside them at
their bytes: `--matched` gives the files of `uniform` and `dnas` as many, in `results/compare-matched/`. `python
experiments/tables.py` makes the tables of the READMEs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from pinned import PINNED

from autoquant.assets import default_backbone
from autoquant.blueprint import Blueprint
from autoquant.compare.cells import Cell, read_cells, write_csv
from autoquant.compare.methods import resolve_methods
from autoquant.compare.run import compare
from autoquant.compare.table import distinct_sizes
from autoquant.core.cost import SizeBudget
from autoquant.core.errors import RunError
from autoquant.core.progress import TerminalProgress
from autoquant.core.settings import load_preset
from autoquant.machine import Machine
from autoquant.pipeline import Budget
from autoquant.shared import cell_name
from autoquant.tasks.data import TaskData
from autoquant.tasks.load import load_glue

RESULTS = Path(__file__).parent / "results"
CELLS, CSV, MATCHED = RESULTS / "compare", RESULTS / "compare.csv", RESULTS / "compare-matched"
MANY, MANY_SEEDS = ("uniform", "random", "reversed", "fisher", "measured", "qbert", "hawq", "dnas"), (0, 1, 2)
DEFAULT = "default"
TASKS, RATIOS = ("sst2", "mrpc"), (15.0, 25.0)
RECIPES = {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.toml"))}
# the default recipe has a table of its own, and `quick` is it with fewer steps; rows of the papers are based on the others, whose
# 8-bit embeddings alone are larger than both sizes
NOT_MEASURED = (DEFAULT, "quick", "aqbert", "qbert-paper")


@dataclass(frozen=True)
class Options:
    """Which of the cells to measure."""

    data_dir: Path
    tasks: tuple[str, ...] = TASKS
    methods: tuple[str, ...] = ()
    """Only these."""
    seeds: tuple[int, ...] = MANY_SEEDS
    ratios: tuple[float, ...] = RATIOS
    """Those of one run must stay the same."""
    model: str | None = None
    """Another bare encoder than the embedded one."""
    teacher: tuple[str, ...] = ()
    """Fine-tuned teachers as task=folder; without one for a task it is trained in `runs`, or taken from there."""
    train_rows: int = 5000
    max_length: int = 64
    preset: str = PINNED
    runs: Path = Path("runs/compare")
    threads: int = 2
    results: Path = RESULTS
    """Where compare/<cell>.json and compare.csv are kept."""
    precision: Literal["fp32", "bf16"] = "fp32"
    matched: bool = False
    """Measure `uniform` and `dnas` at the bytes of the recipes that fix their own size, once these are there."""
    list: bool = False
    """Only say which cells are there."""


def planned(preset: str = PINNED) -> list[tuple[str, tuple[int, ...]]]:
    """Methods with their seeds: those of MANY first. Under the default recipe: this one, and uniform bits."""
    if preset == DEFAULT:
        return [(name, MANY_SEEDS) for name in (DEFAULT, "uniform")]
    names = [method.name for method in resolve_methods(["all"], load_preset(PINNED))]
    others = [*(name for name in names if name not in (*MANY, *NOT_MEASURED)), *RECIPES]
    return [*((name, MANY_SEEDS) for name in MANY), *((name, MANY_SEEDS[:1]) for name in others)]


def argument(name: str) -> str:
    """A method as `compare` takes it: some are presets of the folder recipes/."""
    return str(RECIPES.get(name, name))


def asked(options: Options, seed: int) -> list[str]:
    """Methods to measure with a seed."""
    return [name for name, seeds in planned(options.preset) if seed in seeds and (not options.methods or name in options.methods)]


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    unplanned = sorted(set(options.methods) - {name for name, _ in planned(options.preset)})
    if unplanned:
        raise SystemExit(f"'{unplanned[0]}' is no method of this comparison; --list names them.")
    for task in options.tasks:
        data = load_glue(task, options.data_dir)
        data = dataclasses.replace(data, train=data.train.subsample(options.train_rows))
        if options.matched:
            measure_matched(options, data)
            continue
        for seed in options.seeds:
            if options.list:
                show(options, data, seed)
            elif asked(options, seed):
                budgets = list(map(ratio_budget, options.ratios))
                measure(options, data, budgets, asked(options, seed), seed, options.runs / data.task.name, CELLS.name)
                write_csv(read_cells(options.results / CELLS.name), options.results / CSV.name)


def measure(
    options: Options, data: TaskData, budgets: Sequence[Budget], methods: Sequence[str], seed: int, runs: Path, results: str
) -> None:
    """Every missing cell of a task and seed; those that failed are said at the end, and tried again next time."""
    teachers, progress = dict(entry.split("=", 1) for entry in options.teacher), TerminalProgress()
    try:
        compare(
            options.model,
            data,
            budgets=budgets,
            methods=list(map(argument, methods)),
            seeds=[seed],
            recipe=load_preset(options.preset),
            run_dir=runs,
            max_length=options.max_length,
            machine=Machine(threads=options.threads, precision=options.precision),
            resume=True,
            progress=progress,
            results=options.results / results,
            teacher=teachers.get(data.task.name),
        )
    except RunError as error:
        progress.say(str(error))


def measure_matched(options: Options, data: TaskData) -> None:
    """Ours at the bytes of every recipe of its own size that there is a cell of; one search serves them all."""
    cells = read_cells(options.results / CELLS.name)
    sizes = own_sizes([cell for cell in cells if cell.task == data.task.name])
    if not sizes:
        raise SystemExit(f"No cells yet of recipes that fix their own size on {data.task.name}: measure these first.")
    key = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:8]
    runs = options.runs / f"{data.task.name}-matched-{key}"
    measure(options, data, [SizeBudget(size) for size in sizes], ("uniform", "dnas"), 0, runs, MATCHED.name)


def own_sizes(cells: Sequence[Cell]) -> list[int]:
    """Bytes of the files of recipes that fix their own size."""
    return distinct_sizes(cell.file_bytes for cell in cells if cell.own_size)


def ratio_budget(ratio: float) -> Budget:
    return lambda file, encoder: SizeBudget.ratio(ratio, file)


def show(options: Options, data: TaskData, seed: int) -> None:
    """Print the cells of a task and seed, and which are there."""
    model = options.model or str(default_backbone())
    for method in resolve_methods([*map(argument, asked(options, seed))], load_preset(options.preset)):
        blueprint = Blueprint.draw(model, data, method.recipe, options.max_length, trim_positions=False)
        own, full = blueprint.own_budget, blueprint.full_bytes()
        for budget in [own] if own else [SizeBudget.ratio(ratio, full) for ratio in options.ratios]:
            cell = f"{data.task.name}-{cell_name(method.name, budget.bytes, seed)}"
            print("there  " if (options.results / CELLS.name / f"{cell}.json").exists() else "missing", cell)


if __name__ == "__main__":
    main()
