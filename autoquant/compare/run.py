"""In which order are cells measured? All of the first seed first, so that a whole table is there early; each is kept at once.

run.json            what all cells have in common
shared/             teacher, calibration and searches
cells/<cell>/       the run directory of a cell
results/<cell>.json the finished cell: its row, its predictions, its bits
compare.csv         one row a cell
compare.md          the table
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from autoquant import pipeline
from autoquant.blueprint import Blueprint
from autoquant.compare.cells import Cell, read_cells, write_csv
from autoquant.compare.methods import BASELINE, Method, resolve_methods
from autoquant.compare.table import COLUMNS, NOTE, report, table, title
from autoquant.core.cost import SizeBudget, mib_text
from autoquant.core.errors import AutoquantError, BudgetError, RunError
from autoquant.core.files import atomic_write_text
from autoquant.core.progress import Progress, SilentProgress, rounded
from autoquant.core.run import RunDirectory
from autoquant.core.settings import Recipe, from_mapping, load_preset
from autoquant.core.space import load_space
from autoquant.core.versions import device_name, versions
from autoquant.export.manifest import manifest_allocation, read_manifest, space_content
from autoquant.machine import Machine
from autoquant.refine import REFINERS
from autoquant.shared import SharedParts, cell_name, drop_copies, pivot_budget, weights_sha256
from autoquant.strategies import stages_of
from autoquant.tasks.data import TaskData
from autoquant.tasks.metrics import answers

TEACHER_SEED = 0
CALIBRATION = "calibrate"


@dataclass(frozen=True)
class Task:
    """A cell to measure."""

    method: Method
    budget: SizeBudget
    seed: int

    own_size: bool = False
    """Whether the recipe, not the comparison, says the budget."""

    @property
    def name(self) -> str:
        return cell_name(self.method.name, self.budget.bytes, self.seed)


@dataclass(frozen=True, eq=False)
class Bench:
    """What every cell is measured on."""

    folder: Path
    model: str
    teacher: str | None
    data: TaskData
    recipe: Recipe
    budgets: tuple[SizeBudget, ...]
    max_length: int
    trim_positions: bool
    machine: Machine
    progress: Progress

    @property
    def pivot(self) -> SizeBudget | None:
        """The budget whose search serves all; None without budgets."""
        if not self.budgets:
            return None
        return SizeBudget(pivot_budget([budget.bytes for budget in self.budgets]), self.budgets[0].count)

    @cached_property
    def parts(self) -> SharedParts:
        """Teacher, calibration and searches, in shared/."""
        return SharedParts(
            folder=self.folder / "shared",
            model=self.model,
            data=self.data,
            recipe=self.recipe,
            seed=TEACHER_SEED,
            pivot=self.pivot,
            max_length=self.max_length,
            trim_positions=self.trim_positions,
            machine=self.machine,
            progress=self.progress,
            given_teacher=self.teacher,
        )

    def settings(self) -> dict[str, object]:
        """What identifies a comparison beside its model; methods and seeds may be added later."""
        return {
            "teacher": self.teacher,
            "task": self.data.task.name,
            "data": self.data.hashes(),
            "budgets": [dataclasses.asdict(budget) for budget in self.budgets],
            "recipe": dataclasses.asdict(self.recipe),
            "max_length": self.max_length,
            "trim_positions": self.trim_positions,
            "machine": self.machine.identity(),
        }

    def measure(self, task: Task) -> Cell:
        """Search (or take over), recover, pack, reload, predict."""
        recipe, run_dir, parts = task.method.recipe, self.folder / "cells" / task.name, self.parts
        result = pipeline.search(
            parts.teacher,
            self.data,
            budget=task.budget,
            recipe=recipe,
            run_dir=run_dir,
            controls=(),
            seed=task.seed,
            max_length=self.max_length,
            trim_positions=self.trim_positions,
            machine=self.machine,
            resume=True,
            progress=self.progress,
            shared=parts.teacher_only() if task.own_size else parts.for_run(recipe, task.budget, task.seed),
        )
        logits, labels = pipeline.predict_folder(result.model_dir, self.data)
        metrics, prepared = result.metrics, None if task.own_size else parts.prepared(recipe, task.budget, task.seed)
        seconds, peaks = metrics["seconds"], metrics["peak_mib"]
        calibrated = [seconds, {} if prepared is None else prepared.seconds]
        if prepared is not None:  # of a stage that this cell did itself its own
            seconds, peaks = {**prepared.seconds, **seconds}, {**prepared.peaks_mib, **peaks}
        stages = stages_of(recipe.search.strategy)
        manifest = read_manifest(result.model_dir / "allocation.json")
        return Cell(
            task=self.data.task.name,
            method=task.method.name,
            budget_bytes=task.budget.bytes,
            file_bytes=metrics["bytes"]["file"],
            metric=metrics["metric"]["value"],
            seed=task.seed,
            seconds=sum(seconds.get(stage, 0.0) for stage in stages),
            peak_mib=max(peaks.get(stage, 0.0) for stage in stages),
            recovery_steps=recovery_steps(RunDirectory(run_dir)),
            teacher_hash=weights_sha256(parts.teacher),
            metric_name=metrics["metric"]["name"],
            predictions=tuple(answers(logits).tolist()),
            labels=tuple(labels.tolist()),
            full_precision=metrics["metric"]["full_precision"],
            full_precision_bytes=metrics["bytes"]["full_precision"],
            recipe=dataclasses.asdict(recipe),
            space=manifest["space"],
            data_sha256={name: manifest["hashes"][name] for name in self.data.hashes()},
            allocation=manifest_allocation(manifest).to_json(),
            versions=versions(),
            device=device_name(self.machine.torch_device()),
            own_size=task.own_size,
            budget_counts=task.budget.count,
            calibration_seconds=sum(source.get(CALIBRATION, 0.0) for source in calibrated),
            precision=self.machine.precision,
            derived_bytes=metrics["bytes"]["derived"],
        )


def recovery_steps(run: RunDirectory) -> int:
    """Steps that the refiners of a finished run logged."""
    prefixes = tuple(f"{refiner}-" for refiner in REFINERS)
    return sum("step" in line and line["stage"].startswith(prefixes) for line in run.read_log())


def compare(
    model: str | Path | None = None,
    data: TaskData | None = None,
    *,
    budgets: Sequence[pipeline.Budget] = (),
    methods: Sequence[str] = (BASELINE, "fisher", "default"),
    seeds: Sequence[int] = (0,),
    recipe: Recipe | None = None,
    run_dir: str | Path = "runs/compare",
    max_length: int = 128,
    trim_positions: bool = False,
    machine: Machine | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    results: str | Path | None = None,
    teacher: str | Path | None = None,
) -> list[Cell]:
    """Measure every method under every budget with every seed; returns all cells of the comparison.

    `methods`: strategies, which take quantizer, space and recovery from `recipe`, presets with their own, or `all`. `results`:
    where finished cells are kept (None: in `run_dir`); those there already are not measured again. `teacher`: a fine-tuned
    `model`, if there is one already. A cell that fails does not stop the others; one that no allocation of the method's space
    fits is left out with a word.
    Recipes that fix their own size are measured at that, once for all budgets, which may then be none.
    Raises an AutoquantError, before any training, for input that cannot work; RunError at the end if cells failed.
    """
    recipe, machine, progress = recipe or load_preset("default"), machine or Machine(), progress or SilentProgress()
    chosen = resolve_methods(methods, recipe)
    if not seeds or len(set(seeds)) < len(seeds):
        raise RunError(f"Seeds {', '.join(map(str, seeds)) or 'are missing'}: give one or more, all different.")
    for seed in seeds:
        pipeline.check_run(machine, seed)
    asked, (model, data) = model, pipeline.resolve_inputs(model, data)
    blueprint = Blueprint.draw(model, data, recipe, max_length, trim_positions)
    sizes = resolve_budgets(budgets, blueprint)
    folder = Path(run_dir)
    given = None if teacher is None else str(teacher)
    bench = Bench(folder, model, given, data, recipe, sizes, max_length, trim_positions, machine, progress)
    fitting = list(_fitting(bench, chosen))
    tasks = [dataclasses.replace(task, seed=seed) for seed in seeds for task in fitting]
    settings = {"model": None if asked is None else str(asked), **bench.settings()}
    expected, defaults = 6 * blueprint.full_bytes(), {"recipe": dataclasses.asdict(Recipe())}
    with RunDirectory.open(folder, settings, resume, expected, defaults):
        kept = Path(results) if results else folder / "results"
        failed = _measure_all(bench, tasks, kept)
        cells = _tabulate(kept, folder)
        if cells:
            atomic_write_text(folder / "compare.md", report(cells))
            show(cells, progress)
    if failed:
        name, error = failed[0]
        raise RunError(f"{len(failed)} of {len(tasks)} cells failed ({name}: {error}): --resume tries them again.")
    return cells


def resolve_budgets(budgets: Sequence[pipeline.Budget], blueprint: Blueprint) -> tuple[SizeBudget, ...]:
    """Budgets in bytes, smallest first. Raises BudgetError if two are alike or one shrinks nothing."""
    sizes = sorted((pipeline.resolve_budget(budget, blueprint) for budget in budgets), key=lambda size: size.bytes)
    texts = [mib_text(size.bytes) for size in sizes]
    if len(set(texts)) < len(texts):
        raise BudgetError(f"A budget is given twice: {', '.join(texts)} MiB.")
    full = blueprint.full_bytes(sizes[0].count) if sizes else 0
    if sizes and sizes[-1].bytes >= full:
        raise BudgetError(f"Budget {texts[-1]} MiB is not below full precision, {mib_text(full)} MiB: nothing to compare.")
    return tuple(sizes)


def _fitting(bench: Bench, methods: Sequence[Method]) -> Iterator[Task]:
    """Methods with the budgets that their space can meet, or with the size that they fix; says which cannot.

    Raises the last BudgetError if none can, or if there are no budgets for a method that needs one.
    """
    refusal, fits = BudgetError("No method."), False
    for method in methods:
        blueprint = Blueprint.draw(bench.model, bench.data, method.recipe, bench.max_length, bench.trim_positions)
        own = blueprint.own_budget
        if own is None and not bench.budgets:
            raise BudgetError(f"{method.name} needs budgets: give --budget-mib 4,6 or --budget-ratio 15,25.")
        for budget in bench.budgets if own is None else [own]:
            try:
                blueprint.check_searchable(budget)
            except BudgetError as error:
                refusal = error
                bench.progress.say(f"Left out: {method.name} at {mib_text(budget.bytes)} MiB. {error}")
            else:
                fits = True
                yield Task(method, budget, 0, own is not None)
    if not fits:
        raise refusal


def _tabulate(kept: Path, folder: Path) -> list[Cell]:
    """All finished cells, written as the CSV too."""
    cells = read_cells(kept)
    write_csv(cells, folder / "compare.csv")
    return cells


def _measure_all(bench: Bench, tasks: Sequence[Task], kept: Path) -> list[tuple[str, str]]:
    """Measure the missing cells, each in the CSV as soon as it is done; returns those that failed and why."""
    missing = [task for task in tasks if not _file(bench, task, kept).exists()]
    for task in tasks:
        if task not in missing:  # a kill after it was written may have left copies
            drop_copies(bench.folder / "cells" / task.name)
    _check_alike(bench, tasks, kept, missing)
    failed: list[tuple[str, str]] = []
    began = time.monotonic()
    for number, task in enumerate(missing):
        done = len(tasks) - len(missing) + number
        left = f", about {rounded((time.monotonic() - began) / number * (len(missing) - number))} left" if number else ""
        bench.progress.say(f"Cells: {done} of {len(tasks)} done{left}. Now {task.name}")
        try:
            cell = bench.measure(task)
        except Exception as error:  # whatever it is, days of other cells must not end with it
            reason = str(error) if isinstance(error, AutoquantError) else f"{type(error).__name__}: {error}"
            failed.append((task.name, " ".join(reason.split())[:300]))
            bench.progress.say(f"{task.name} failed: {failed[-1][1]}")
            continue
        cell.write(_file(bench, task, kept))
        _tabulate(kept, bench.folder)
        drop_copies(bench.folder / "cells" / task.name)
    bench.progress.say(f"Cells: {len(tasks) - len(failed)} of {len(tasks)} done, {len(failed)} failed.")
    return failed


def _file(bench: Bench, task: Task, kept: Path) -> Path:
    return kept / f"{bench.data.task.name}-{task.name}.json"


def _check_alike(bench: Bench, tasks: Sequence[Task], kept: Path, missing: Sequence[Task]) -> None:
    """Raise RunError for a finished cell that `missing` ones could not stand beside, or for one of `tasks` of another recipe."""
    cells = {file: Cell.read(file) for file in sorted(kept.glob("*.json"))}
    recipes = {_file(bench, task, kept): task.method.recipe for task in tasks}
    labels = tuple(bench.data.evaluation.labels.tolist())
    teacher = weights_sha256(bench.parts.teacher) if cells and missing else None  # only then is there one for sure
    for file, cell in cells.items():
        if cell.task != bench.data.task.name:
            continue
        other = {
            "teacher": teacher is not None and cell.teacher_hash != teacher,
            "evaluation rows": cell.labels != labels,
            "precision": cell.precision != bench.machine.precision,
            "recipe": file in recipes and from_mapping(Recipe, cell.recipe, file.name) != recipes[file],
            "space": file in recipes and cell.space not in ({}, space_content(load_space(recipes[file].space))),
            "training text": file in recipes and dict(cell.data_sha256) != bench.data.hashes(),
        }
        different = [name for name, differs in other.items() if differs]
        if different:
            raise RunError(f"{file} was made with another {' and '.join(different)}: move it elsewhere to measure it again.")


def show(cells: Sequence[Cell], progress: Progress) -> None:
    """Every task's table, and how to read it."""
    for task in sorted({cell.task for cell in cells}):
        own = [cell for cell in cells if cell.task == task]
        progress.table(title(own), COLUMNS, table(own))
    progress.say(NOTE)
