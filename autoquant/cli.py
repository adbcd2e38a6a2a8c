"""What can a person ask for? plan, search, pareto, apply ...: typed dataclasses, one a command."""

from __future__ import annotations

import functools
import json
import math
import operator
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tyro

from autoquant.core.errors import AutoquantError, BudgetError, DataError
from autoquant.core.settings import RECONSTRUCTION, Recipe, RecoverySettings, TeacherSettings, available_presets, load_preset

if TYPE_CHECKING:
    from autoquant.core.progress import Progress
    from autoquant.machine import Machine
    from autoquant.pipeline import Budget
    from autoquant.tasks.data import TaskData

Glue = Literal["sst2", "cola", "mrpc", "rte", "stsb", "qnli", "qqp", "mnli", "wnli"]
EXIT_BAD_INPUT, EXIT_INTERRUPTED = 2, 130


@dataclass(frozen=True)
class DataOptions:
    """Text and labels: a GLUE task, two files of yours, or nothing for the embedded movie reviews."""

    task: Glue | None = None
    """GLUE task, from --data-dir (or AUTOQUANT_GLUE), else through the hub."""
    data_dir: Path | None = None
    """Folder with GLUE tasks as TSV/CSV/JSON/Parquet files, e.g. glue/SST-2/{train,dev}.tsv."""
    train_file: Path | None = None
    """Training rows of your own task (TSV, CSV, JSON or Parquet)."""
    eval_file: Path | None = None
    """Evaluation rows; read once, at the end."""
    text_column: tuple[str, ...] = ("text",)
    """One text column, or two for pairs."""
    label_column: str = "label"
    """Its labels: any different values are classes; numbers that are not all whole make it a regression."""
    train_rows: int | None = None
    """Use only this many training rows: those with the smallest sha256 of the text."""

    def load(self) -> TaskData:
        """Read the data. Raises DataError in one line for anything malformed."""
        import dataclasses

        from autoquant.tasks.load import SMALLEST_TRAIN, load_default, load_files, load_glue

        if self.train_rows is not None and self.train_rows < SMALLEST_TRAIN:
            raise DataError(f"--train-rows {self.train_rows} is too few: training takes at least {SMALLEST_TRAIN}.")
        if (self.train_file is None) != (self.eval_file is None):
            raise DataError("Give both --train-file and --eval-file.")
        if self.train_file and self.task:
            raise DataError("Give either --task or --train-file, not both.")
        if self.data_dir and not self.task:
            raise DataError(f"--data-dir {self.data_dir} needs --task beside it: say which GLUE task to read there.")
        if self.train_file and self.eval_file:
            data = load_files(self.train_file, self.eval_file, self.text_column, self.label_column)
        elif self.task:
            data = load_glue(self.task, self.data_dir)
        else:
            data = load_default()
        source = {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(self).items()}
        train = data.train if self.train_rows is None else data.train.subsample(self.train_rows)
        return dataclasses.replace(data, train=train, source=json.loads(json.dumps(source)))


@dataclass(frozen=True)
class BudgetOptions:
    """How large the result may be: one of --budget-mib and --budget-ratio, or none for a preset that fixes its own size."""

    budget_mib: float | None = None
    """Budget in MiB (1,048,576 bytes) of the whole model.safetensors."""
    budget_ratio: float | None = None
    """Budget as full-precision size divided by this."""
    count: Literal["file", "encoder"] = "file"
    """What counts: the whole file, or only codes and scales of the encoder, as papers do."""

    def resolve(self) -> Budget | None:
        from autoquant.core.cost import SizeBudget

        if self.budget_mib is None and self.budget_ratio is None:
            return None
        if self.budget_mib is not None and self.budget_ratio is not None:
            raise BudgetError("Give one of --budget-mib and --budget-ratio, e.g. --budget-mib 6.")
        if not math.isfinite(self.budget_mib or self.budget_ratio or 0):
            raise BudgetError("--budget-mib and --budget-ratio take finite numbers, e.g. --budget-mib 6.")
        if self.budget_mib is not None:
            return SizeBudget.mib(self.budget_mib, self.count)
        ratio, count = float(self.budget_ratio or 0), self.count
        return lambda file, encoder: SizeBudget.ratio(ratio, file if count == "file" else encoder, count)


@dataclass(frozen=True)
class MachineOptions:
    """Where it computes."""

    device: str = "auto"
    """auto, cpu, cuda, mps ..."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 autocast is faster on CPUs with bfloat16 instructions and on recent GPUs, slower on others."""
    compile: bool = True
    """Compile the mixing pass (needs a C++ compiler; falls back by itself)."""
    checkpoint_seconds: float = 60.0
    """How much work a kill may cost at most."""


Flat = tyro.conf.arg(name="")


@dataclass(frozen=True)
class Plan:
    """Show sizes without training: full precision, reachable range, byte table per matrix, a time estimate.

    Example: autoquant plan --budget-mib 6
    """

    model: str | None = None
    """Model directory or hub id; without it the embedded MiniLM."""
    data: Annotated[DataOptions, Flat] = field(default_factory=DataOptions)
    budget: Annotated[BudgetOptions, Flat] = field(default_factory=BudgetOptions)
    preset: str = "default"
    """Recipe: a name in autoquant/presets or a TOML file."""
    space: str | None = None
    """Search space instead of the preset's: a name or a TOML file."""
    max_length: int = 128
    """Longer texts are cut at this many tokens."""
    trim_positions: bool = False
    """Drop position embeddings past --max-length."""

    def run(self, progress: Progress) -> None:
        import dataclasses

        from autoquant.blueprint import Blueprint
        from autoquant.pipeline import resolve_inputs
        from autoquant.plan import show_plan

        budget = self.budget.resolve()
        model, data = resolve_inputs(self.model, self.data.load())
        recipe = load_preset(self.preset)
        recipe = dataclasses.replace(recipe, space=self.space) if self.space else recipe
        blueprint = Blueprint.draw(model, data, recipe, self.max_length, self.trim_positions)
        show_plan(blueprint, budget, self.budget.count, progress)


@dataclass(frozen=True)
class Finetune:
    """Fine-tune a bare encoder into a full-precision teacher, to its validation plateau.

    Example: autoquant finetune --task sst2 --data-dir glue --output teachers/sst2
    """

    output: Path
    """Run directory; the model is in its teacher/ folder, ready for `search --model`."""
    model: str | None = None
    """Bare encoder: a directory or hub id; without it the embedded MiniLM."""
    data: Annotated[DataOptions, Flat] = field(default_factory=DataOptions)
    machine: Annotated[MachineOptions, Flat] = field(default_factory=MachineOptions)
    preset: str = "default"
    """Recipe whose teacher settings apply: a name in autoquant/presets or a TOML file."""
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    seed: int = 0
    """Decides every random choice; the same seed and inputs give the same bytes on one machine."""
    max_length: int = 128
    """Longer texts are cut at this many tokens."""
    resume: bool = False
    """Go on with an interrupted run."""

    def run(self, progress: Progress) -> None:
        import dataclasses

        from autoquant.pipeline import finetune_teacher

        folder, result = finetune_teacher(
            self.model,
            self.data.load(),
            recipe=dataclasses.replace(load_preset(self.preset), teacher=self.teacher),
            run_dir=self.output,
            seed=self.seed,
            max_length=self.max_length,
            machine=_machine(self.machine),
            resume=self.resume,
            progress=progress,
        )
        progress.say(f"Teacher in {folder}: validation {result['validation']:.4f} at step {result['best_step']}")


@dataclass(frozen=True)
class Search:
    """Find the bits, recover, pack and measure a model under a size budget; uniform bits get the same for comparison.

    Example: autoquant search --budget-mib 6

    A GLUE task: autoquant search --model bert-base-uncased --task sst2 --budget-ratio 15 --run-dir runs/sst2

    A row of a paper's table, which needs no budget: autoquant search --preset ternarybert-2-2-8 --task sst2

    Your files: autoquant search --train-file a.csv --eval-file b.csv --text-column review --label-column stars --budget-mib 6
    """

    model: str | None = None
    """Fine-tuned classifier or bare encoder: a directory or hub id; without it the embedded MiniLM."""
    data: Annotated[DataOptions, Flat] = field(default_factory=DataOptions)
    budget: Annotated[BudgetOptions, Flat] = field(default_factory=BudgetOptions)
    machine: Annotated[MachineOptions, Flat] = field(default_factory=MachineOptions)
    preset: str = "default"
    """Recipe: a name in autoquant/presets or a TOML file; single settings below override it."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    run_dir: Path = Path("runs/default")
    """Where everything goes; the result is in its model/ folder."""
    controls: tuple[str, ...] = ("uniform",)
    """Allocations to compare with, recovered the same way: any of --search.strategy's."""
    seed: int = 0
    """Decides every random choice; the same seed and inputs give the same bytes on one machine."""
    max_length: int = 128
    """Longer texts are cut at this many tokens."""
    trim_positions: bool = False
    """Drop position embeddings past --max-length."""
    resume: bool = False
    """Go on with an interrupted run."""

    def run(self, progress: Progress) -> None:
        from autoquant.pipeline import search

        budget = self.budget.resolve()
        search(
            self.model,
            self.data.load(),
            budget=budget,
            recipe=self.recipe,
            run_dir=self.run_dir,
            controls=self.controls,
            seed=self.seed,
            max_length=self.max_length,
            trim_positions=self.trim_positions,
            machine=_machine(self.machine),
            resume=self.resume,
            progress=progress,
        )


@dataclass(frozen=True)
class Apply:
    """Quantise a model with the allocation of an allocation.json, with its recorded recovery.

    Example: autoquant apply runs/demo/model/allocation.json --model runs/demo/teacher --run-dir runs/again
    """

    allocation: Annotated[Path, tyro.conf.Positional]
    """An allocation.json; its budget, seed, recovery and maximum length apply."""
    model: str | None = None
    """Fine-tuned classifier, such as the teacher/ of the run it came from; without it the embedded MiniLM."""
    data: Annotated[DataOptions, Flat] = field(default_factory=DataOptions)
    machine: Annotated[MachineOptions, Flat] = field(default_factory=MachineOptions)
    recovery: bool = True
    """--no-recovery only quantises."""
    run_dir: Path = Path("runs/applied")
    """Where everything goes; the result is in its model/ folder."""
    resume: bool = False
    """Go on with an interrupted run."""

    def run(self, progress: Progress) -> None:
        from autoquant.pipeline import apply

        apply(
            self.allocation,
            self.model,
            self.data.load(),
            recovery=self.recovery,
            run_dir=self.run_dir,
            machine=_machine(self.machine),
            resume=self.resume,
            progress=progress,
        )


@dataclass(frozen=True)
class Refine:
    """Reconstruct a frozen allocation module by module (MREM), pack and measure it; by default no labels are learned from.

    A searched one: autoquant refine runs/demo --run-dir runs/refined

    A uniform one: autoquant refine runs/demo/teacher --bits 2-2-8 --recovery.reconstruction mrem-p

    One from elsewhere: autoquant refine runs/demo/teacher --allocation runs/other/model/allocation.json
    """

    source: Annotated[str, tyro.conf.Positional]
    """A run directory, or, with --bits or --allocation, a fine-tuned classifier: a directory or hub id."""
    bits: str | None = None
    """A uniform allocation instead: weights-embedding-activations, such as 4-4-8, 2-2-8, 4-8-8 or 2-8-8."""
    allocation: Path | None = None
    """Another run's allocation instead: the allocation.json in its model/ folder, or in a selected point of a sweep."""
    data: Annotated[DataOptions, Flat] = field(default_factory=DataOptions)
    machine: Annotated[MachineOptions, Flat] = field(default_factory=MachineOptions)
    recovery: RecoverySettings = RECONSTRUCTION
    """How it is reconstructed: which variant, how many steps on how many texts."""
    activation_bits: Literal[4, 8, 32] | None = None
    """Instead of what the run has."""
    activations: Literal["dynamic", "static"] | None = None
    """Instead of what the run has: every tensor's own range, or a learned one a layer."""
    run_dir: Path = Path("runs/refined")
    """Where everything goes; the result is in its model/ folder."""
    seed: int = 0
    """With --bits; a run's own otherwise."""
    max_length: int = 128
    """With --bits; a run's own otherwise."""
    resume: bool = False
    """Go on with an interrupted run."""

    def run(self, progress: Progress) -> None:
        from autoquant.refinement import refine

        refine(
            self.source,
            self.data.load(),
            bits=self.bits,
            allocation=self.allocation,
            recovery=self.recovery,
            activation_bits=self.activation_bits,
            activations=self.activations,
            run_dir=self.run_dir,
            seed=self.seed,
            max_length=self.max_length,
            machine=_machine(self.machine),
            resume=self.resume,
            progress=progress,
        )


@dataclass(frozen=True)
class Evaluate:
    """Measure a packed folder on the evaluation rows of a task, as JSON.

    Example: autoquant evaluate runs/demo/model
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """A packed folder, such as the model/ of a run."""
    data: Annotated[DataOptions, Flat] = field(default_factory=DataOptions)
    format: Literal["safetensors", "onnx"] = "safetensors"
    """Which of its files: the packed one, or the one that export wrote."""
    tail: Literal["int8", "fp32"] = "int8"
    """Of the ONNX file: model.onnx has int8, model_fp32.onnx fp32."""
    tuning: bool = False
    """Measure on the fifth of the training file that the trials of a tuned sweep are judged by."""

    def run(self, progress: Progress) -> None:
        data = self.data.load().for_tuning() if self.tuning else self.data.load()
        if self.format == "onnx":
            from autoquant.deploy import evaluate_exported

            metrics = evaluate_exported(self.folder, f"{self.format}-{self.tail}", data)
        else:
            from autoquant.pipeline import evaluate_folder

            metrics = evaluate_folder(self.folder, data)
        progress.say(json.dumps(metrics, sort_keys=True))


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
    """What the budgets count: the whole file, or only codes and scales of the encoder, as papers do."""
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
            budgets=_numbers(self.budgets, "--budgets", "3,4,6,8,12"),
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
            machine=_machine(self.machine),
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
            return (self.data if self.data != DataOptions() or recorded is None else _data_options(recorded)).load()

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
    """What counts: the whole file, or only codes and scales of the encoder, as papers do."""
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

        mib = [BudgetOptions(budget_mib=size, count=self.count) for size in _numbers(self.budget_mib, "--budget-mib", "4,6")]
        ratios = _numbers(self.budget_ratio, "--budget-ratio", "15,25")
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
            machine=_machine(self.machine),
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
        from autoquant.pareto.results import Sweep
        from autoquant.pareto.select import chosen_point, export, rebuild_command, select, shipped_seed

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


@dataclass(frozen=True)
class Report:
    """Write report.html of a finished run or a sweep again; both write it themselves when they end.

    Example: autoquant report runs/demo
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """A run directory or a sweep's."""

    def run(self, progress: Progress) -> None:
        from autoquant.pareto.report import write_report

        progress.say(f"Wrote {write_report(self.folder)}")


@dataclass(frozen=True)
class Export:
    """Write model/model.onnx (--tail fp32: model_fp32.onnx), one file of the packed size for ONNX Runtime, and measure it.

    Example: autoquant export runs/demo --format onnx
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    """A finished run."""
    format: Literal["onnx"] = "onnx"
    """What to write."""
    tail: Literal["int8", "fp32"] = "int8"
    """int8: activations of 8 bits at run time, fastest; fp32: exact."""
    data: Annotated[DataOptions, Flat] = field(default_factory=DataOptions)

    def run(self, progress: Progress) -> None:
        from autoquant.deploy import export_run

        export_run(self.run_dir, f"{self.format}-{self.tail}", _data_of_run(self.run_dir, self.data), progress)


@dataclass(frozen=True)
class Bench:
    """Time the exported file against torch, ONNX Runtime fp32 and ONNX Runtime dynamic int8 of the run's own teacher.

    Example: autoquant bench runs/demo --threads 1
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    """A finished run that was exported."""
    threads: int = 1
    """CPU threads of every contender."""
    rounds: int = 15
    """How often each is timed, in turns; medians are shown."""
    json: bool = False
    """Print JSON instead of a table."""
    data: Annotated[DataOptions, Flat] = field(default_factory=DataOptions)

    def run(self, progress: Progress) -> None:
        from autoquant.bench import bench_run, show
        from autoquant.core.progress import SilentProgress

        quiet = SilentProgress() if self.json else progress
        data = _data_of_run(self.run_dir, self.data)
        result = bench_run(self.run_dir, data, threads=self.threads, rounds=self.rounds, progress=quiet)
        if self.json:
            print(json.dumps(result, indent=2, sort_keys=True))
        else:
            show(result, progress)


Command = (
    Plan | Finetune | Search | Apply | Refine | Evaluate | Pareto | ParetoWorker | Compare | Select | Report | Export | Bench
)


def _data_of_run(run_dir: Path, options: DataOptions) -> TaskData | None:
    """The data of a finished run: as given, or the task that it names; None for files that are not given again."""
    import dataclasses

    from autoquant.deploy import finished_run, read_metrics

    task = read_metrics(finished_run(run_dir))["task"]
    if options.task is None and options.train_file is None:
        if task == "files":
            return None
        options = dataclasses.replace(options, task=task if task in get_args(Glue) else None)
    return options.load()


def _numbers(texts: Sequence[str], option: str, example: str) -> list[float]:
    """`3,4 6` -> 3.0, 4.0, 6.0."""
    try:
        return [float(part) for text in texts for part in text.split(",") if part]
    except ValueError as error:
        raise BudgetError(f"{option} {' '.join(texts)} are not numbers: give e.g. {option} {example}.") from error


def _named(text: str) -> tuple[str, str]:
    """`name=range` -> (name, range)."""
    name, _, range_ = text.partition("=")
    return name, range_


def _data_options(recorded: Mapping[str, Any]) -> DataOptions:
    """Data options as a study keeps them."""
    paths = {name: Path(recorded[name]) for name in ("data_dir", "train_file", "eval_file") if recorded[name]}
    return DataOptions(**{**recorded, **paths, "text_column": tuple(recorded["text_column"])})


def _machine(options: MachineOptions) -> Machine:
    import dataclasses

    from autoquant.machine import Machine

    return Machine(**dataclasses.asdict(options))


def _preset_in(arguments: Sequence[str]) -> str:
    """The value of --preset, needed before the other options so that its settings become their defaults."""
    for index, argument in enumerate(arguments):
        if argument == "--preset" and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith("--preset="):
            return argument.partition("=")[2]
    return "default"


def parse(arguments: Sequence[str]) -> Command:
    """Arguments -> a command; raises SystemExit for wrong usage and SpaceError for an unknown preset."""
    recipe = load_preset(_preset_in(arguments))
    finetune = Finetune(output=tyro.MISSING, teacher=recipe.teacher)
    commands = {
        "plan": Annotated[Plan, tyro.conf.subcommand("plan")],
        "finetune": Annotated[Finetune, tyro.conf.subcommand("finetune", default=finetune)],
        "search": Annotated[Search, tyro.conf.subcommand("search", default=Search(recipe=recipe))],
        "apply": Annotated[Apply, tyro.conf.subcommand("apply")],
        "refine": Annotated[Refine, tyro.conf.subcommand("refine")],
        "evaluate": Annotated[Evaluate, tyro.conf.subcommand("evaluate")],
        "pareto": Annotated[Pareto, tyro.conf.subcommand("pareto", default=Pareto(budgets=tyro.MISSING, recipe=recipe))],
        "pareto-worker": Annotated[ParetoWorker, tyro.conf.subcommand("pareto-worker")],
        "compare": Annotated[Compare, tyro.conf.subcommand("compare", default=Compare(recipe=recipe))],
        "select": Annotated[Select, tyro.conf.subcommand("select")],
        "report": Annotated[Report, tyro.conf.subcommand("report")],
        "export": Annotated[Export, tyro.conf.subcommand("export")],
        "bench": Annotated[Bench, tyro.conf.subcommand("bench")],
    }
    union = functools.reduce(operator.or_, commands.values())
    description = f"Mixed-precision search for BERT-family models under a size budget. Presets: {', '.join(available_presets())}."
    command: Command = tyro.cli(union, args=list(arguments), prog="autoquant", description=description)
    return command


def main(arguments: Sequence[str] | None = None) -> None:
    """The `autoquant` command: exit code 0, 2 for input that cannot work (one line on stderr), 130 after Ctrl-C."""
    try:
        command = parse(sys.argv[1:] if arguments is None else arguments)
        from autoquant.core.progress import TerminalProgress

        command.run(TerminalProgress())
    except AutoquantError as error:
        print(f"autoquant: {error}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None
    except KeyboardInterrupt:
        print("autoquant: interrupted; the run goes on with --resume.", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None


if __name__ == "__main__":
    main()
