"""Which method wins at the same bytes? Every strategy, quantizer and recipe under 15x and 25x, all else the same.

    python experiments/compare.py --data-dir glue                                   # everything, over days; resumable
    python experiments/compare.py --data-dir glue --tasks sst2 --methods qbert --seeds 0
    python experiments/compare.py --data-dir glue --list                            # the cells, and which are there

SST-2 (5,000 training sentences) and MRPC at 64 tokens, the default backbone. Methods of MANY get three seeds, all others one;
one search per task and seed serves both budgets where the method allows. Each cell is kept as soon as it is done in
`results/compare/<cell>.json`, with its predictions; all of them as rows in `results/compare.csv`. Cells that are there are not
measured again. `python experiments/tables.py` makes the README's table.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import tyro

from autoquant.assets import default_backbone
from autoquant.compare.cells import read_cells, write_csv
from autoquant.compare.methods import resolve_methods
from autoquant.compare.run import compare
from autoquant.core.cost import SizeBudget
from autoquant.core.errors import RunError
from autoquant.core.progress import TerminalProgress
from autoquant.core.settings import load_preset
from autoquant.pipeline import Budget
from autoquant.shared import cell_name
from autoquant.tasks.data import TaskData
from autoquant.tasks.load import load_glue
from autoquant.workspace import Blueprint, Machine

RESULTS = Path(__file__).parent / "results"
CELLS, CSV = RESULTS / "compare", RESULTS / "compare.csv"
MANY, MANY_SEEDS = ("uniform", "random", "reversed", "fisher", "qbert", "default"), (0, 1, 2)
TASKS, RATIOS = ("sst2", "mrpc"), (15.0, 25.0)
QUANTIZERS = {path.stem: path for path in sorted((Path(__file__).parent / "quantizers").glob("*.toml"))}
NOT_MEASURED = ("quick",)  # `default` with fewer steps


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
    preset: str = "default"
    runs: Path = Path("runs/compare")
    threads: int = 2
    results: Path = RESULTS
    """Where compare/<cell>.json and compare.csv are kept."""
    list: bool = False
    """Only say which cells are there."""


def planned() -> list[tuple[str, tuple[int, ...]]]:
    """Methods with their seeds: those of MANY first."""
    names = [method.name for method in resolve_methods(["all"], load_preset("default"))]
    others = [*(name for name in names if name not in (*MANY, *NOT_MEASURED)), *QUANTIZERS]
    return [*((name, MANY_SEEDS) for name in MANY), *((name, MANY_SEEDS[:1]) for name in others)]


def argument(name: str) -> str:
    """A method as `compare` takes it: quantizers are presets of this folder."""
    return str(QUANTIZERS.get(name, name))


def asked(options: Options, seed: int) -> list[str]:
    """Methods to measure with a seed."""
    return [name for name, seeds in planned() if seed in seeds and (not options.methods or name in options.methods)]


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    resolve_methods([*map(argument, options.methods or ("all",))], load_preset(options.preset))
    for task in options.tasks:
        data = load_glue(task, options.data_dir)
        data = dataclasses.replace(data, train=data.train.subsample(options.train_rows))
        for seed in options.seeds:
            if options.list:
                show(options, data, seed)
            elif asked(options, seed):
                measure(options, data, seed)


def measure(options: Options, data: TaskData, seed: int) -> None:
    """Every missing cell of a task and seed; those that failed are said at the end, and tried again next time."""
    cells, progress = options.results / CELLS.name, TerminalProgress()
    teachers = dict(entry.split("=", 1) for entry in options.teacher)
    try:
        compare(
            options.model,
            data,
            budgets=list(map(ratio_budget, options.ratios)),
            methods=list(map(argument, asked(options, seed))),
            seeds=[seed],
            recipe=load_preset(options.preset),
            run_dir=options.runs / data.task.name,
            max_length=options.max_length,
            machine=Machine(threads=options.threads),
            resume=True,
            progress=progress,
            results=cells,
            teacher=teachers.get(data.task.name),
        )
    except RunError as error:
        progress.say(str(error))
    write_csv(read_cells(cells), options.results / CSV.name)


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
