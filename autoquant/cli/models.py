"""Commands that make a model, or say what it would be: plan, finetune, search, apply, refine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from autoquant.cli.options import BudgetOptions, DataOptions, Flat, MachineOptions
from autoquant.core.settings import RECONSTRUCTION, Recipe, RecoverySettings, TeacherSettings, load_preset

if TYPE_CHECKING:
    from autoquant.core.progress import Progress


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
            machine=self.machine.resolve(),
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
            machine=self.machine.resolve(),
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
            machine=self.machine.resolve(),
            resume=self.resume,
            progress=progress,
        )


@dataclass(frozen=True)
class Refine:
    """Reconstruct a frozen allocation module by module (MREM), pack and measure it; by default no labels are learned from.

    Example: autoquant refine runs/demo --run-dir runs/refined

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
            machine=self.machine.resolve(),
            resume=self.resume,
            progress=progress,
        )
