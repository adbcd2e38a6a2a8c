"""Commands that measure many runs, and pick among them: pareto, pareto-worker, compare, select."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from autoquant.cli.options import BudgetOptions, DataOptions, Flat, MachineOptions, numbers
from autoquant.core.settings import Recipe

if TYPE_CHECKING:
    from autoquant.core.progress import Progress
    from autoquant.tasks.data import TaskData


@dataclass(frozen=True)
class Pareto:
    """Measure the front: whole runs under several budgets and seeds, kept in a study that other processes can join.

    Example: autoquant pareto --budgets 3,4,6,8,12 --seeds 0 1 --run-dir runs/front

    Between two sizes: autoquant pareto --budgets 3,12 --points 8

    Settings too: autoquant pareto --budgets 4,8 --strategies dnas --trials 40 --tune space=default,rows recovery.steps=200:800
    """

    budgets: tuple[str, ...]
    """Sizes in MiB: 3,4,6,8,12."""
    model: str | None = None
    """Fine-tuned classifier or bare encoder: a directory or hub id; without it the embedded MiniLM."""
    data: Annotated[DataOptions, Flat] = field(default_factory=DataOptions)
    machine: Annotated[MachineOptions, Flat] = field(default_factory=MachineOptions)
    preset: str = "default"
    """Recipe: a name in autoquant/presets or a TOML file; single settings below override it."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    run_dir: Path = Path("runs/pareto")
    """Where everything goes."""
    points: int | None = None
    """So many budgets between the two of --budgets, evenly on a log scale."""
    count: Literal["file", "encoder"] = "file"
    """What the budgets count: the whole file, or only codes and scales of the encoder."""
    strategies: tuple[str, ...] = ("dnas", "uniform")
    """What to measure under every budget: any of --search.strategy's."""
    seeds: tuple[int, ...] = (0,)
    """Each budget is measured with every seed."""
    reuse_search: bool = True
    """One search a seed serves all budgets; --no-reuse-search runs a fresh one for each."""
    tune: tuple[str, ...] = ()
    """Recipe settings to search besides, as NAME=LOW:HIGH or NAME=A,B; judged on a fifth of the training file."""
    trials: int = 0
    """How many trials --tune may take."""
    sampler: Literal["tpe", "nsga2"] = "tpe"
    """Who proposes the trials of --tune."""
    latency: bool = False
    """Also judge by the milliseconds that a text takes in the exported ONNX file on this machine."""
    storage: str | None = None
    """Where the study is: an SQLAlchemy URL (postgresql://...) or the path of a journal file; a SQLite file if not given."""
    study: str | None = None
    """Its name there; that of the run directory if not given."""
    max_length: int = 128
    """Longer texts are cut at this many tokens."""
    trim_positions: bool = False
    """Drop position embeddings past --max-length."""
    resume: bool = False
    """Go on with an interrupted sweep, and try failed trials again."""
    patience_seconds: float = 90.0
    """A trial whose worker has not been heard of for so long, 30 at least, is run again."""

    def run(self, progress: Progress) -> None:
        from autoquant.pareto.sweep import sweep

        sweep(
            self.model,
            self.data.load(),
            budgets=numbers(self.budgets, "--budgets", "3,4,6,8,12"),
            points=self.points,
            count=self.count,
            strategies=self.strategies,
            seeds=self.seeds,
            recipe=self.recipe,
            run_dir=self.run_dir,
            reuse_search=self.reuse_search,
            tune=dict(_named(text) for text in self.tune),
            trials=self.trials,
            sampler=self.sampler,
            latency=self.latency,
            storage=self.storage,
            study_name=self.study,
            max_length=self.max_length,
            trim_positions=self.trim_positions,
            machine=self.machine.resolve(),
            resume=self.resume,
            progress=progress,
            patience=self.patience_seconds,
        )


@dataclass(frozen=True)
class ParetoWorker:
    """Join a sweep that `autoquant pareto` has begun, from this machine or another, and run trials until none is left.

    Example: autoquant pareto-worker --study front --storage postgresql://me@host/studies --run-dir runs/front
    """

    study: str
    """The sweep's name."""
    storage: str
    """Where its study is: an SQLAlchemy URL or the path of a journal file."""
    run_dir: Path = Path("runs/pareto")
    """The sweep's folder, or one of this machine's own."""
    model: str | None = None
    """Where the sweep's model is here, if elsewhere."""
    data: Annotated[DataOptions, Flat] = field(default_factory=DataOptions)
    patience_seconds: float = 90.0
    """A trial whose worker has not been heard of for so long, 30 at least, is run again."""

    def run(self, progress: Progress) -> None:
        from autoquant.pareto.worker import join

        def load(recorded: Mapping[str, Any] | None) -> TaskData:
            return (self.data if self.data != DataOptions() or recorded is None else DataOptions.recorded(recorded)).load()

        join(
            self.study,
            self.storage,
            load,
            run_dir=self.run_dir,
            model=self.model,
            progress=progress,
            patience=self.patience_seconds,
        )


@dataclass(frozen=True)
class Compare:
    """Measure methods under the same bytes, with the same teacher, data and evaluation; each against uniform bits.

    Example: autoquant compare --model bert-base-uncased --task sst2 --budget-mib 4,6 --methods all --seeds 3

    A few: autoquant compare --budget-ratio 15,25 --methods uniform fisher default my-recipe.toml --run-dir runs/few
    """

    model: str | None = None
    """Fine-tuned classifier or bare encoder: a directory or hub id; without it the embedded MiniLM."""
    data: Annotated[DataOptions, Flat] = field(default_factory=DataOptions)
    budget_mib: tuple[str, ...] = ()
    """Budgets in MiB of the whole model.safetensors: 4,6."""
    budget_ratio: tuple[str, ...] = ()
    """Budgets as full-precision size divided by these: 15,25."""
    count: Literal["file", "encoder"] = "file"
    """What counts: the whole file, or only codes and scales of the encoder."""
    methods: tuple[str, ...] = ("uniform", "fisher", "default")
    """Strategies (with the recipe below), presets or their TOML files (with their own), or all."""
    seeds: int = 1
    """How many: 3 measures seeds 0, 1 and 2."""
    teacher: str | None = None
    """--model fine-tuned, if you have it: recipes that start over from the pretrained model still start from --model."""
    machine: Annotated[MachineOptions, Flat] = field(default_factory=MachineOptions)
    preset: str = "default"
    """The strategies' recipe: a name in autoquant/presets or a TOML file; single settings below override it."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    run_dir: Path = Path("runs/compare")
    """Where everything goes: compare.csv, compare.md, and every cell."""
    max_length: int = 128
    """Longer texts are cut at this many tokens."""
    trim_positions: bool = False
    """Drop position embeddings past --max-length."""
    resume: bool = False
    """Go on with an interrupted comparison, or add methods and seeds to a finished one."""

    def run(self, progress: Progress) -> None:
        from autoquant.compare.run import compare

        mib = [BudgetOptions(budget_mib=size, count=self.count) for size in numbers(self.budget_mib, "--budget-mib", "4,6")]
        ratios = numbers(self.budget_ratio, "--budget-ratio", "15,25")
        budgets = [*mib, *(BudgetOptions(budget_ratio=ratio, count=self.count) for ratio in ratios)]
        compare(
            self.model,
            self.data.load(),
            budgets=[budget for budget in (options.resolve() for options in budgets) if budget is not None],
            methods=self.methods,
            seeds=range(self.seeds),
            recipe=self.recipe,
            run_dir=self.run_dir,
            max_length=self.max_length,
            trim_positions=self.trim_positions,
            machine=self.machine.resolve(),
            resume=self.resume,
            progress=progress,
            teacher=self.teacher,
        )


@dataclass(frozen=True)
class Select:
    """Pick a point of a sweep, and export it as allocation.json and packed model.

    Example: autoquant select runs/front --max-mib 5 --output runs/chosen
    """

    sweep: Annotated[Path, tyro.conf.Positional]
    """A sweep's folder, or its pareto.json."""
    max_mib: float | None = None
    """The best mean metric at this size or less."""
    min_metric: float | None = None
    """The smallest whose mean metric is this or more."""
    output: Path | None = None
    """An empty folder for the point; without it, it is only named."""

    def run(self, progress: Progress) -> None:
        from autoquant.pareto.select import chosen_point, export, rebuild_command, select, shipped_seed
        from autoquant.reports.results import Sweep

        sweep = Sweep.read(self.sweep)
        configuration = select(sweep, self.max_mib, self.min_metric)
        point = chosen_point(configuration)
        size = f"{point.file_bytes:,} bytes ({point.file_bytes / 2**20:.2f} MiB)"
        progress.say(f"{point.cell}: {sweep.metric} {point.metric:.4f}, {size}. {shipped_seed(sweep, configuration)}".strip())
        if self.output is None:
            return
        folder = self.sweep if self.sweep.is_dir() else self.sweep.parent
        if export(folder, point, self.output):
            progress.say(f"Packed model and allocation.json in {self.output}")
        else:
            again = rebuild_command(sweep, folder, self.output / "allocation.json")
            progress.say(f"Its packed model is not here. Make it again: {again}")


def _named(text: str) -> tuple[str, str]:
    """`name=range` -> (name, range)."""
    name, _, range_ = text.partition("=")
    return name, range_
