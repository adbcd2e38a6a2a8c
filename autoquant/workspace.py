"""What every method shares within a run: data, teacher, the table of choices, scales and sensitivities.

Prepared once, on disk where it took time; strategies, recoveries and controls then start from the very same values.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoquant.backbones.load import ModelSource, open_model
from autoquant.backbones.remove import remove_units
from autoquant.backbones.shorten import keep_layers
from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import ByteModel, ChoiceTable, SizeBudget, TensorEntry, check_budget, choice_table, header_json
from autoquant.core.errors import RunError, SpaceError
from autoquant.core.memory import watched_memory
from autoquant.core.progress import Progress
from autoquant.core.run import RunDirectory, disk_errors, file_sha256
from autoquant.core.settings import Recipe, SearchSettings, StudentSettings
from autoquant.core.space import SearchSpace, load_space
from autoquant.core.structure import pick_units
from autoquant.core.subgroup import Partition
from autoquant.pack.checkpoint import metadata_text
from autoquant.quantizers import QUANTIZERS, CodebookQuantizer, Quantizer
from autoquant.strategies import STRATEGIES, Problem, SearchResult, Start
from autoquant.strategies.sensitivity import Sensitivity, fisher_scores
from autoquant.supernet.build import RANGE_NAME, Supernet
from autoquant.supernet.calibration import initial_scales, input_moments, input_ranges, kept_scales
from autoquant.tasks.data import TaskData
from autoquant.training.batches import Encoded, encode, longest
from autoquant.training.distillation import TeacherOutputs
from autoquant.training.loop import Context
from autoquant.training.products import fast_products, operations_a_second
from autoquant.training.student import distil
from autoquant.training.teacher import finetune

RESULT_ARRAYS = ("values", "removal", "probability")  # of a SearchResult


@dataclass(frozen=True)
class Machine:
    """Where and how a run computes."""

    device: str = "auto"
    threads: int = 0
    precision: str = "fp32"
    compile: bool = True
    checkpoint_seconds: float = 60.0

    def torch_device(self) -> torch.device:
        """The device asked for, `auto` being accelerate's choice. Raises RunError if torch cannot compute on it."""
        from accelerate import Accelerator

        try:
            device = Accelerator().device if self.device == "auto" else torch.device(self.device)
            torch.ones(1, device=device).item()
        except (RuntimeError, AssertionError, ImportError) as error:  # torch raises any of these
            reason = str(error).strip().partition("\n")[0][:120]
            raise RunError(f"Cannot compute on --device {self.device} ({reason}): give auto or cpu.") from error
        return device

    def check(self) -> None:
        """Raise RunError for what no machine can do."""
        if self.threads < 0 or self.checkpoint_seconds < 0:
            raise RunError("--threads and --checkpoint-seconds must not be negative.")
        self.torch_device()

    def identity(self) -> dict[str, Any]:
        """What of it decides a run's numbers, and so must be the same when it is resumed."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "checkpoint_seconds"}


@dataclass(frozen=True, eq=False)
class Blueprint:
    """Model, data and space, known before anything is trained: enough to weigh every choice."""

    source: ModelSource
    data: TaskData
    recipe: Recipe
    space: SearchSpace
    max_length: int
    trim_positions: bool
    train: Encoded

    @classmethod
    def draw(
        cls,
        model: str,
        data: TaskData,
        recipe: Recipe,
        max_length: int,
        trim_positions: bool,
        space: SearchSpace | None = None,
    ) -> Blueprint:
        """Open model and space and tokenise the training file. Raises before any training if something does not fit."""
        if recipe.quantizer not in QUANTIZERS:
            raise SpaceError(f"Unknown quantizer '{recipe.quantizer}'; known are {', '.join(QUANTIZERS)}.")
        space = space or load_space(recipe.space)
        source = open_model(model, data.label_names or None, max_length, trim_positions)
        source = source.with_every(recipe.student.keep_every)
        train = encode(source.tokenizer, data.train, max_length)
        blueprint = cls(source, data, recipe, space, max_length, trim_positions, train)
        blueprint.check_quantizer()
        return blueprint

    def check_quantizer(self) -> None:
        """Raise SpaceError where the space offers what the quantizer does not have."""
        name, known, space = self.quantizer.name, self.quantizer.widths, self.space.name
        for partition in self.partitions:
            odd = sorted(set(partition.widths) - {0, *known})
            if odd:
                raise SpaceError(
                    f"Quantizer {name} has {', '.join(map(str, known))} bits; space '{space}' offers {odd[0]} in "
                    f"{partition.matrix.kind}: give a --space without it."
                )
        if not isinstance(self.quantizer, CodebookQuantizer):
            return
        if any(p.scale_or(self.space.scale) == "row" for p in self.partitions):
            raise SpaceError(
                f"Quantizer {name} has a codebook per sub-group; space '{space}' has a scale per row: try --space codebook."
            )
        if self.space.heads or self.space.ffn_blocks:
            raise SpaceError(
                f"Quantizer {name} cannot remove heads or FFN blocks, as space '{space}' would: try --space codebook."
            )

    def without_student(self) -> Blueprint:
        """The same of the model with all its layers."""
        recipe = dataclasses.replace(self.recipe, student=StudentSettings())
        return dataclasses.replace(self, recipe=recipe, source=self.source.with_every(1))

    @property
    def quantizer(self) -> Quantizer:
        return QUANTIZERS[self.recipe.quantizer]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.source.shapes()

    @cached_property
    def token_counts(self) -> np.ndarray:
        """Occurrences of every token in the training text, [vocabulary]."""
        name = f"{self.source.backbone.embedding_modules['word_embedding']}.weight"
        return self.train.token_counts(self.shapes[name][0])

    def packed_settings(self) -> dict[str, object]:
        """What the packed file says about itself."""
        settings: dict[str, object] = {
            "quantizer": self.recipe.quantizer,
            "scale": self.space.scale,
            "activation_bits": self.recipe.activation_bits,
            "max_length": self.max_length,
        }
        per_row = [p.matrix.name for p in self.partitions if p.scale_or(self.space.scale) == "row"]
        if self.space.scale != "row" and per_row:
            settings["row_scales"] = per_row
        if self.recipe.static_activations:
            settings["activations"] = "static"
        return settings

    @cached_property
    def partitions(self) -> tuple[Partition, ...]:
        config = self.source.config
        matrices = self.source.backbone.matrices(config, dict(self.shapes))
        return self.space.partition(matrices, config.num_attention_heads, self.token_counts)

    @property
    def ranged(self) -> list[str]:
        """Matrices of the layers whose input gets a learned static range."""
        kinds = self.source.backbone.dynamic_activations if self.recipe.static_activations else ()
        return [p.matrix.name for p in self.partitions if p.matrix.kind in kinds]

    @cached_property
    def byte_model(self) -> ByteModel:
        quantised = {p.matrix.name for p in self.partitions}
        rest = {name: shape for name, shape in self.shapes.items() if name not in quantised}
        rest |= {f"{name.removesuffix('.weight')}.{RANGE_NAME}": (2,) for name in self.ranged}
        units = self.space.units([p.matrix for p in self.partitions], self.source.config.num_attention_heads)
        metadata = metadata_text(self.packed_settings())
        return ByteModel(self.partitions, rest, self.space.scale, metadata, units, self.quantizer.storage)

    def full_bytes(self, count: str = "file") -> int:
        """Float32 size of what counts: the whole safetensors file, or the encoder's matrices."""
        if count != "file":
            return sum(4 * p.matrix.parameters for p in self.byte_model.partitions if p.matrix.layer is not None)
        entries = [TensorEntry(name, "F32", shape) for name, shape in sorted(self.shapes.items())]
        return sum(entry.bytes for entry in entries) + len(header_json(entries, ""))

    @cached_property
    def only_allocation(self) -> BitAllocation | None:
        """The allocation of a space that leaves no choice; None where there is one."""
        if self.byte_model.units or any(len(p.widths) > 1 for p in self.partitions):
            return None
        return BitAllocation({p.matrix.name: p.widths * p.groups for p in self.partitions})

    @cached_property
    def own_budget(self) -> SizeBudget | None:
        """The size that the recipe itself fixes, by its mean bits or by a space without a choice; None: it has to be given."""
        if self.recipe.encoder_bits:
            return SizeBudget(int(self.full_bytes("codes") * self.recipe.encoder_bits / 32), "codes")
        only = self.only_allocation
        return None if only is None else SizeBudget(self.byte_model.exact_bytes(only))

    def table(self, budget: SizeBudget) -> ChoiceTable:
        """The table of choices under what `budget` counts. Raises BudgetError if the budget cannot be met."""
        table = choice_table(self.byte_model, budget.count)
        check_budget(budget, table, self.full_bytes(budget.count), self.byte_model)
        return table


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


def check_strategies(names: Sequence[str]) -> None:
    """Raise SpaceError for a name that is no strategy."""
    for name in names:
        if name not in STRATEGIES:
            raise SpaceError(f"Unknown strategy '{name}'; known are {', '.join(STRATEGIES)}.")


def estimate_stages(blueprint: Blueprint, strategy: str, controls: Sequence[str]) -> list[tuple[str, float]]:
    """Stages of a run as the progress display names them, with seconds on two cores."""
    if blueprint.only_allocation is not None:  # there is nothing to search, and no control would differ
        return estimate_refinement(blueprint, strategy)
    recipe, (forward, step) = blueprint.recipe, _seconds(blueprint)
    stages = _estimate_teacher(blueprint)
    stages += [("Sensitivity", 25.0), ("Teacher outputs", len(blueprint.train) * forward)]
    methods, layers = (strategy, *controls), len({p.matrix.layer for p in blueprint.byte_model.partitions})
    searches = [_estimate_search(method, recipe.search, step, layers) for method in methods]
    stages += [stage for stage in searches if stage[1]]
    return stages + [stage for method in methods for stage in _estimate_recovery(method, blueprint)]


def estimate_refinement(blueprint: Blueprint, method: str) -> list[tuple[str, float]]:
    """The same of a run whose bits are known."""
    return _estimate_teacher(blueprint) + _estimate_recovery(method, blueprint)


def _seconds(blueprint: Blueprint) -> tuple[float, float]:
    """Seconds of a text's forward pass, and of a training step on 32 texts."""
    tokens = sum(len(ids) for ids in blueprint.train.ids) / len(blueprint.train) * 1.15  # padding
    encoder = sum(p.matrix.parameters for p in blueprint.byte_model.partitions if p.matrix.layer is not None)
    forward = 2 * encoder * tokens / operations_a_second(longest(blueprint.train))
    return forward, 32 * 3 * forward + 0.06


def _estimate_teacher(blueprint: Blueprint) -> list[tuple[str, float]]:
    recipe, (forward, step) = blueprint.recipe, _seconds(blueprint)
    teacher = recipe.teacher.epochs * len(blueprint.train) * (1 - recipe.search.held_out) * 3.6 * forward
    student = [("Student", step * recipe.student.steps)] if recipe.student.keep_every > 1 else []
    return [("Teacher", teacher), *student]


def _estimate_recovery(method: str, blueprint: Blueprint) -> list[tuple[str, float]]:
    """Title and seconds of a method's training and reconstruction."""
    settings, (_, step) = blueprint.recipe.recovery, _seconds(blueprint)
    # a step of reconstruction runs the layers before its module forwards, and its own module both ways
    modules = 0.6 * settings.mrem_modules
    linear = sum(p.matrix.layer is not None for p in blueprint.byte_model.partitions)
    share = {"mrem-s": modules, "mrem-p": modules / 2, "layer-wise": 0.08 * linear}[settings.reconstruction]
    stages = [(f"Recover {method}", step * settings.steps), ("Reconstruct", share * step * settings.mrem_steps)]
    return [stage for stage in stages if stage[1]]


def _estimate_search(strategy: str, settings: SearchSettings, step: float, layers: int) -> tuple[str, float]:
    """Title and seconds of a strategy's own stage; `step`: seconds of a training step on 32 texts.

    A product with the Hessian of one layer was measured to take 1.3 of these, with that of all matrices 3.5.
    """
    products = settings.hessian_slices * layers * settings.power_iterations
    seconds = {
        "dnas": 2.0 * step * settings.steps,
        "bp-nas": 2.0 * step * settings.steps,
        "bsq": 3.0 * step * settings.steps,
        "optuna": settings.trials * settings.trial_samples * 0.4 * step / 32,
        "qbert": 1.3 * step * products * settings.hessian_samples / 32,
        "hawq": 3.5 * step * settings.trace_vectors * settings.batch_size / 32,
    }
    return "Hessian" if strategy in ("qbert", "hawq") else "Search", seconds.get(strategy, 0.0)


class Workspace:
    """A blueprint made real in a run directory: teacher, calibration, and the steps every method takes."""

    def __init__(self, blueprint: Blueprint, run: RunDirectory, progress: Progress, machine: Machine, seed: int) -> None:
        self.blueprint, self.run, self.progress, self.seed = blueprint, run, progress, seed
        self.context = Context(run, progress, machine.torch_device(), seed, machine.precision, machine.checkpoint_seconds)
        self.given_model = blueprint.source.path  # another where the teacher was made elsewhere, for several runs
        self._inner_seconds = 0.0  # of the stages within the one being timed
        _configure(machine)
        data = blueprint.data
        if data.source is not None:
            run.record(data_source=data.source)
        parts = data.train.split(blueprint.recipe.search.held_out)
        self.train, self.held_out = (encode(blueprint.source.tokenizer, part, blueprint.max_length) for part in parts)
        self.train_all = self.train.joined(self.held_out)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall-clock seconds of a block to the run's stage, interruptions included, and record its peak memory.

        Matrix products in it are the fast ones.
        A stage within it, such as the search that `reversed` turns around, has its seconds to itself.
        """
        start, outer = time.monotonic(), self._inner_seconds
        self._inner_seconds = 0.0
        with watched_memory() as peak, fast_products(self.context.device, longest(self.train_all)):
            try:
                yield
            finally:
                spent = time.monotonic() - start
                self.run.add_seconds(stage, spent - self._inner_seconds)
                self._inner_seconds = outer + spent
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
        model, has_head = self.blueprint.source.with_every(1).load(self.seed)
        result: dict[str, Any] = {"fine_tuned": not has_head}
        if not has_head:
            recipe, task = self.blueprint.recipe, self.blueprint.data.task
            model.to(self.context.device)
            result |= finetune(model, self.train, self.held_out, task, recipe.teacher, self.context)
        if self.blueprint.recipe.student.keep_every > 1:
            model = self._make_student(model.to(self.context.device).eval())
        save_pretrained(folder, model, self.blueprint.source.tokenizer)
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
                data, counts = self._calibration_texts, blueprint.token_counts
                backbone, quantizer = blueprint.source.backbone, blueprint.quantizer
                search, bar = blueprint.recipe.search, self.progress
                how = search.sensitivity == "coherent", search.sensitivity_temperature
                scores = fisher_scores(self.teacher, backbone, table, quantizer, scales, data, counts, self.seed, bar, *how)
            saved = {"choices": torch.from_numpy(scores.choices), "removals": torch.from_numpy(scores.removals)}
            self.run.save_state("calibration", saved)
        return Calibration(self.starting_point.scales, Sensitivity(saved["choices"].numpy(), saved["removals"].numpy()))

    @cached_property
    def _calibration_texts(self) -> Encoded:
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
        blueprint, device, data = self.blueprint, self.context.device, self._calibration_texts
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
        for name, state in {**states, **{_result_name(s): _result_state(result) for s, result in results.items()}}.items():
            if self.run.load_state(name) is None:
                self.run.save_state(name, state)

    @cached_property
    def outputs(self) -> TeacherOutputs:
        """The teacher's outputs on the whole training file: what the search sees first, then what it holds out."""
        return TeacherOutputs(self.teacher, self.train_all, self.context)

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

    def pretrained(self) -> Start:
        """The model as it was given, with a new head if it was a bare encoder."""
        model, _ = dataclasses.replace(self.blueprint.source, path=self.given_model).load(self.seed)
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
        recipe = self.blueprint.recipe
        return Problem(
            self.blueprint.table(budget),
            budget,
            self.calibration.sensitivity,
            lambda: self.make_supernet(budget),
            lambda: self.outputs.part(0, len(self.train)),
            lambda: self.outputs.part(len(self.train), len(self.train_all)),
            lambda: self.outputs,
            recipe.search,
            recipe.distillation,
            self.context,
            stage,
            lambda: self.search("dnas", budget),
        )

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
            self.run.save_state(name, _result_state(result))
            self.run.discard_state(stage)
            saved = self.run.load_state(name)
        assert saved is not None
        return _result_from(saved)

    def data_hashes(self) -> dict[str, str]:
        """sha256 of training and evaluation data."""
        data = self.blueprint.data
        return {"train": data.train.sha256(), "evaluation": data.evaluation.sha256()}


def _result_name(strategy: str) -> str:
    return f"search-{strategy}-result"


def _result_state(result: SearchResult) -> dict[str, Any]:
    arrays = {name: getattr(result, name) for name in RESULT_ARRAYS}
    tensors = {name: None if array is None else torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
    searched = None if result.searched is None else vars(result.searched)
    plain = {"searched": searched, "derived_bytes": result.derived_bytes}
    return {"allocation": json.dumps(result.allocation.to_json()), **plain, **tensors}


def _result_from(saved: dict[str, Any]) -> SearchResult:
    arrays = {name: None if saved[name] is None else saved[name].numpy() for name in RESULT_ARRAYS}
    searched = None if saved["searched"] is None else Start(**saved["searched"])
    allocation = BitAllocation.from_json(json.loads(saved["allocation"]))
    return SearchResult(allocation, searched=searched, derived_bytes=saved["derived_bytes"], **arrays)


def _configure(machine: Machine) -> None:
    from autoquant.supernet.mixing import KERNELS

    KERNELS.compile = machine.compile
    if machine.threads:
        torch.set_num_threads(machine.threads)
