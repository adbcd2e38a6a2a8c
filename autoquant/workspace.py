"""What every method shares within a run: data, teacher, the table of choices, scales and sensitivities.

Prepared once, on disk where it took time; strategies, recoveries and controls then start from the very same values.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoquant.backbones.remove import remove_units
from autoquant.backbones.shorten import keep_layers
from autoquant.blueprint import Blueprint
from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import ChoiceTable, SizeBudget, choice_table
from autoquant.core.errors import TrainingError
from autoquant.core.files import disk_errors, file_sha256
from autoquant.core.memory import watched_memory
from autoquant.core.progress import Progress
from autoquant.core.run import RunDirectory
from autoquant.core.structure import pick_units
from autoquant.machine import Machine
from autoquant.refine import REFINERS, RefineProblem
from autoquant.strategies import STRATEGIES, Problem, SearchResult, Start, check_strategies
from autoquant.strategies.probe import measured_scores
from autoquant.strategies.sensitivity import Sensitivity, fisher_scores
from autoquant.supernet.build import Supernet
from autoquant.supernet.calibration import initial_scales, input_moments, input_ranges, kept_scales
from autoquant.training.batches import Encoded, encode, longest
from autoquant.training.distillation import TeacherOutputs, mean_divergence
from autoquant.training.loop import Context
from autoquant.training.products import fast_products
from autoquant.training.student import distil
from autoquant.training.teacher import finetune


@dataclass(frozen=True, eq=False)
class Calibration:
    """Initial scales per matrix [rows or groups, non-zero widths] and sensitivities, the same for every method."""

    scales: dict[str, Tensor]
    sensitivity: Sensitivity


@dataclass(frozen=True, eq=False)
class StartingPoint:
    """Initial scales per matrix [rows or groups, non-zero widths], and mean and minimum of inputs that get a static range."""

    scales: dict[str, Tensor]
    ranges: dict[str, tuple[float, float]]


def save_pretrained(folder: Path, *parts: Any) -> None:
    """Write a model, config or tokenizer as transformers does. Raises RunError when the disk is full or not writable."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for part in parts:
            try:
                part.save_pretrained(folder)
            except Exception as error:  # safetensors and tokenizers have kinds of their own, with the number in the text
                number = re.search(r"os error (\d+)", str(error))
                if number is None:
                    raise
                raise OSError(int(number[1]), str(error)) from error
        for weights in folder.glob("*.safetensors"):  # which that library leaves to their owner alone
            with suppress(OSError):
                shutil.copymode(folder / "config.json", weights)


class Workspace:
    """A blueprint made real in a run directory: teacher, calibration, and the steps every method takes."""

    def __init__(self, blueprint: Blueprint, run: RunDirectory, progress: Progress, machine: Machine, seed: int) -> None:
        self.blueprint, self.run, self.progress, self.seed = blueprint, run, progress, seed
        self.context = Context(run, progress, machine.torch_device(), seed, machine.precision, machine.checkpoint_seconds)
        self.given_model = blueprint.source.path  # another where the teacher was made elsewhere, for several runs
        machine.configure()
        if machine.emulates_bfloat16():
            progress.say("Note: this CPU has no bfloat16 instructions, so --precision bf16 is many times slower: leave it out.")
        changed = run.other_versions()
        if changed:
            progress.say(f"Note: {run.path} began with other versions ({'; '.join(changed)}); what is done is not done again.")
        data = blueprint.data
        if data.source is not None:
            run.record(data_source=data.source)
        parts = data.train.split(blueprint.recipe.search.held_out)
        self.train, self.held_out = (encode(blueprint.source.tokenizer, part, blueprint.max_length) for part in parts)
        self.train_all = self.train.joined(self.held_out)
        more = data.unlabelled
        self.unlabelled = None if more is None else encode(blueprint.source.tokenizer, more, blueprint.max_length)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall-clock seconds of a block to the run's stage, interruptions included, and record its peak memory.

        Matrix products in it are the fast ones.
        A stage within it, such as the search that `reversed` turns around, has its seconds to itself.
        """
        with self.run.timed(stage), watched_memory() as peak, fast_products(self.context.device, longest(self.recovery_texts)):
            try:
                yield
            finally:
                peak.look()
                self.run.add_peak(stage, peak.mib)

    # Shared by all methods ----------------------------------------------------------------------------------------

    @cached_property
    def teacher(self) -> nn.Module:
        """The full-precision model: as given if it has a trained head, else fine-tuned here; kept in `teacher/`."""
        self.teacher_result()
        source = dataclasses.replace(self.blueprint.source, path=str(self.run.teacher_dir))
        model, _ = source.load(self.seed)
        return model.to(self.context.device).eval()

    def teacher_result(self) -> dict[str, Any]:
        """How the teacher came about (`fine_tuned`, and if so its validation metric and steps); makes it if need be."""
        if self.run.finished("teacher") is None:
            with self.timed("teacher"):
                self._make_teacher(self.run.teacher_dir)
        return self.run.finished("teacher") or {}

    def _make_teacher(self, folder: Path) -> None:
        model: Any
        source = self.blueprint.source
        model, has_head = source.with_every(1).load(self.seed)
        if has_head and source.head_classes:
            theirs, ours = ", ".join(source.head_classes), ", ".join(source.config.id2label.values())
            self.progress.say(f"Note: {source.path} knows the classes {theirs}; they are taken for {ours}, in this order.")
        result: dict[str, Any] = {"fine_tuned": not has_head}
        if not has_head:
            recipe, task = self.blueprint.recipe, self.blueprint.data.task
            model.to(self.context.device)
            result |= finetune(model, self.train, self.held_out, task, recipe.teacher, self.context)
        if self.blueprint.recipe.student.keep_every > 1:
            model = self._make_student(model.to(self.context.device).eval())
        save_pretrained(folder, model, source.tokenizer)
        self.run.finish("teacher", result)
        for stage in ("teacher", "student"):
            self.run.discard_state(stage)

    def _make_student(self, teacher: Any) -> nn.Module:
        """The shallow copy that takes the teacher's place from here on."""
        source, settings, layers = self.blueprint.source, self.blueprint.recipe.student, teacher.config.num_hidden_layers
        outputs = TeacherOutputs(teacher, self.train_all, self.context)
        student = keep_layers(copy.deepcopy(teacher), source.backbone, source.kept_layers)
        distil(student, outputs, source.kept_layers, layers, settings, self.context)
        self.run.record(student={"layers": list(source.kept_layers), "of": layers})
        return student

    @cached_property
    def teacher_hash(self) -> str:
        """sha256 of the teacher's weights."""
        _ = self.teacher
        return file_sha256(self.run.teacher_dir / "model.safetensors")

    @cached_property
    def calibration(self) -> Calibration:
        """Starting point and sensitivities on a few hundred training texts."""
        saved = self.run.load_state("calibration")
        if saved is None:
            scales = self.starting_point.scales  # its time is counted there
            with self.timed("calibrate"):
                blueprint, table = self.blueprint, choice_table(self.blueprint.byte_model)
                data, counts = self.calibration_texts, blueprint.token_counts
                backbone, quantizer = blueprint.source.backbone, blueprint.quantizer
                search, bar = blueprint.recipe.search, self.progress
                how = search.sensitivity == "coherent", search.sensitivity_temperature
                scores = fisher_scores(self.teacher, backbone, table, quantizer, scales, data, counts, self.seed, bar, *how)
            saved = {"choices": torch.from_numpy(scores.choices), "removals": torch.from_numpy(scores.removals)}
            self.run.save_state("calibration", saved)
        return Calibration(self.starting_point.scales, Sensitivity(saved["choices"].numpy(), saved["removals"].numpy()))

    @cached_property
    def calibration_texts(self) -> Encoded:
        """Of the training part: what scales start from, and what sensitivities are measured on."""
        order = np.random.default_rng((self.seed, 3)).permutation(len(self.train))
        return self.train.select(order[: self.blueprint.recipe.search.calibration_samples])

    @cached_property
    def starting_point(self) -> StartingPoint:
        """Where the quantisers start, from the same few hundred texts; no labels are read."""
        saved = self.run.load_state("starting-point")
        if saved is None:
            _ = self.teacher  # its time is its own stage's
            with self.timed("calibrate"):
                saved = self._start_quantisers()
            self.run.save_state("starting-point", saved)
        return StartingPoint(saved["scales"], saved["ranges"])

    def _start_quantisers(self) -> dict[str, Any]:
        blueprint, device, data = self.blueprint, self.context.device, self.calibration_texts
        table = choice_table(blueprint.byte_model)
        self.progress.say("Searching scales for every width")
        moments = input_moments(self.teacher, list(table.slices()), data, device)
        scales = initial_scales(self.teacher, table, blueprint.quantizer, moments, blueprint.space.scale == "row")
        return {"scales": scales, "ranges": input_ranges(self.teacher, blueprint.ranged, data, device)}

    def prepared(self) -> dict[str, dict[str, Any]]:
        """The states that `calibration` consists of, for another run of the same inputs to adopt; computed if need be."""
        _ = self.calibration
        return {name: self.run.load_state(name) or {} for name in ("starting-point", "calibration")}

    def adopt(self, states: Mapping[str, dict[str, Any]], results: Mapping[str, SearchResult]) -> None:
        """Start from what another run of the same inputs prepared, and from search results by strategy.

        What this run has already stays.
        """
        for name, state in {**states, **{_result_name(s): result.to_state() for s, result in results.items()}}.items():
            if self.run.load_state(name) is None:
                self.run.save_state(name, state)

    @cached_property
    def outputs(self) -> TeacherOutputs:
        """The teacher's outputs on the whole training file: what the search sees first, then what it holds out."""
        return TeacherOutputs(self.teacher, self.train_all, self.context)

    @cached_property
    def recovery_outputs(self) -> TeacherOutputs:
        """Those on all texts that recovery learns from: the training file, and then the texts without labels."""
        if self.unlabelled is None:
            return self.outputs
        return self.outputs.joined(TeacherOutputs(self.teacher, self.unlabelled, self.context))

    @property
    def recovery_texts(self) -> Encoded:
        """The texts that recovery learns from."""
        return self.train_all if self.unlabelled is None else self.train_all.joined(self.unlabelled)

    def make_supernet(self, budget: SizeBudget) -> Supernet:
        """A fresh supernet from the teacher's weights and the calibrated scales, every choice open."""
        return self._supernet(self.teacher, self.blueprint.table(budget), self.starting_point.scales)

    def frozen_supernet(self, allocation: BitAllocation, start: Start | None = None) -> Supernet:
        """A supernet with this allocation, the units it removes gone, from the teacher's weights or from a search's."""
        full, model = self.blueprint.byte_model, copy.deepcopy(self.teacher)
        if start is not None:
            model.load_state_dict(start.weights)
        removed = pick_units(full.units, allocation.removed)
        remove_units(model, self.blueprint.source.backbone, removed)
        smaller, scales = full.without(allocation.removed), (start or self.starting_point).scales
        pairs = zip(full.partitions, smaller.partitions, strict=True)
        kept = {p.matrix.name: kept_scales(scales[p.matrix.name], p, pruned, removed) for p, pruned in pairs}
        supernet = self._supernet(model, choice_table(smaller), kept)
        supernet.freeze(allocation)
        return supernet

    def to_recover(self, result: SearchResult) -> Supernet:
        """The frozen supernet of a result, with the weights and scales that its recovery starts from."""
        where = self.blueprint.recipe.recovery.start
        start = self.pretrained() if where == "pretrained" else result.searched if where == "search" else None
        return self.frozen_supernet(result.allocation, start)

    def pretrained(self) -> Start:
        """The model as it was given, with a new head if it was a bare encoder."""
        model, has_head = dataclasses.replace(self.blueprint.source, path=self.given_model).load(self.seed)
        if has_head:
            self.progress.say(f'Note: {self.given_model} is fine-tuned already: recovery\'s start "pretrained" is that.')
        return Start(model.state_dict(), self.starting_point.scales)

    def _supernet(self, model: nn.Module, table: ChoiceTable, scales: dict[str, Tensor]) -> Supernet:
        blueprint = self.blueprint
        supernet = Supernet(
            model,
            blueprint.source.backbone,
            table,
            blueprint.quantizer,
            scales,
            blueprint.recipe.activation_bits,
            blueprint.space.scale == "row",
            blueprint.recipe.search.zero == "gate",
            self.starting_point.ranges,
        )
        return supernet.to(self.context.device)

    # One method's steps -------------------------------------------------------------------------------------------

    def problem(self, budget: SizeBudget, stage: str) -> Problem:
        """What a strategy may look at."""
        recipe, table = self.blueprint.recipe, self.blueprint.table(budget)
        return Problem(
            table=table,
            budget=budget,
            sensitivity=self._lasting(self.calibration.sensitivity, table),
            make_supernet=lambda: self.make_supernet(budget),
            train=lambda: self.outputs.part(0, len(self.train)),
            held_out=lambda: self.outputs.part(len(self.train), len(self.train_all)),
            whole=lambda: self.outputs,
            search=recipe.search,
            distillation=recipe.distillation,
            context=self.context,
            stage=stage,
            found=lambda strategy: self.search(strategy, budget),
            measured=self._measured,
            recovered=self._recovered,
        )

    def _measured(self, problem: Problem) -> Sensitivity:
        """The sensitivities as they come out when every matrix is tried at every width."""
        blueprint, known, texts = self.blueprint, self.calibration, self.calibration_texts
        few = texts.select(np.arange(min(len(texts), blueprint.recipe.search.measured_samples)))
        teacher, backbone, quantizer = self.teacher, blueprint.source.backbone, blueprint.quantizer
        how = problem.table, quantizer, known.scales, few, problem.context, problem.stage
        return self._lasting(measured_scores(known.sensitivity, teacher, backbone, *how), problem.table)

    def _recovered(self, problem: Problem, result: SearchResult, stage: str) -> float:
        steps = min(problem.search.race_steps, self.blueprint.recipe.recovery.steps)
        return self.loss_after(steps, result, problem.context, stage)

    def loss_after(self, steps: int, result: SearchResult, context: Context, stage: str) -> float:
        """How far predictions on the held-out part are from the teacher's, nats a text, after so many steps of the recipe's
        recovery on the training part; read if the stage was done before. Raises TrainingError if it diverges."""
        done = context.run.load_state(f"{stage}-loss")
        if done is None:
            recipe, supernet, seen = self.blueprint.recipe, self.to_recover(result), len(self.train)
            settings = dataclasses.replace(recipe.recovery, steps=steps)
            if steps:
                how = lambda: self.outputs.part(0, seen), settings, recipe.distillation, context, stage
                REFINERS[settings.training].refine(RefineProblem(supernet, self.teacher, self.train, *how))
            done = {"loss": mean_divergence(supernet, self.outputs.part(seen, len(self.train_all)))}
            context.run.save_state(f"{stage}-loss", done)
            context.run.discard_state(stage)
        if not math.isfinite(done["loss"]):  # after the last step, which no loss has seen
            raise TrainingError(f"{stage}: its predictions are no numbers any more. Lower --recovery.learning-rate.")
        return float(done["loss"])

    def _lasting(self, sensitivity: Sensitivity, table: ChoiceTable) -> Sensitivity:
        search = self.blueprint.recipe.search
        return sensitivity.after_recovery(table.widths, search.lasting_0, search.lasting_1)

    def search(self, strategy: str, budget: SizeBudget) -> SearchResult:
        """Run a strategy under the run's budget, or read the result of its finished stage."""
        check_strategies([strategy])
        stage = f"search-{strategy}"
        name = _result_name(strategy)
        saved = self.run.load_state(name)
        if saved is None:
            problem = self.problem(budget, stage)
            with self.timed(stage):
                result = STRATEGIES[strategy].search(problem)
            self.run.save_state(name, result.to_state())
            self.run.discard_state(stage)
            self.run.discard_states(strategy)  # what a strategy keeps on its way is named after it
            saved = self.run.load_state(name)
        assert saved is not None
        return SearchResult.from_state(saved)

    def data_hashes(self) -> dict[str, str]:
        """sha256 of training and evaluation data."""
        data = self.blueprint.data
        return data.hashes()


def _result_name(strategy: str) -> str:
    return f"search-{strategy}-result"
