"""Every setting of a run, as typed dataclasses: the CLI, the presets and run.json are made from these."""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from autoquant.core.errors import RunError, SpaceError

PRESET_FOLDER = Path(__file__).parents[1] / "presets"
LARGEST_SEED = 2**32 - 1


def check_seed(seed: int) -> None:
    """Raise RunError for a seed that not all generators take (Optuna's samplers have 32 bits)."""
    if not 0 <= seed <= LARGEST_SEED:
        raise RunError(f"--seed {seed} must lie between 0 and {LARGEST_SEED}.")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise SpaceError(message)


def _check_finite(settings: Any) -> None:
    for name, value in vars(settings).items():
        _check(not isinstance(value, float) or math.isfinite(value), f"{name} {value} is not a finite number.")


@dataclass(frozen=True)
class TeacherSettings:
    """How a bare encoder is fine-tuned into the full-precision teacher."""

    epochs: int = 5
    """Most passes over the training part; stops earlier on a validation plateau."""
    patience: int = 4
    """Evaluations (two an epoch) without a better validation metric before it stops."""
    learning_rate: float = 8e-5
    batch_size: int = 32

    def __post_init__(self) -> None:
        _check_finite(self)
        least = min(self.epochs, self.patience, self.batch_size)
        _check(least > 0, "Teacher epochs, patience and batch size must be at least 1.")
        _check(self.learning_rate > 0, f"Teacher learning rate {self.learning_rate} must be above 0.")


@dataclass(frozen=True)
class StudentSettings:
    """A shallower copy of the full-precision model, distilled from it, which then takes its place (DistilBERT)."""

    keep_every: int = 1
    """Keep one encoder layer in so many; 1 keeps all, without a student."""
    steps: int = 400
    """Distillation steps, on the teacher's logits and hidden states."""
    learning_rate: float = 8e-5
    batch_size: int = 32

    def __post_init__(self) -> None:
        _check_finite(self)
        least = min(self.keep_every, self.steps, self.batch_size)
        _check(least > 0, "Student keep-every, steps and batch size must be at least 1.")
        _check(self.learning_rate > 0, f"Student learning rate {self.learning_rate} must be above 0.")


@dataclass(frozen=True)
class DistillationSettings:
    """Weights of the loss terms that search and recovery share."""

    logits: float = 1.0
    """Soft cross-entropy to the teacher's class probabilities (squared error for regression)."""
    hidden: float = 1.0
    """Mean squared error to the teacher's hidden states, summed over embeddings and layers."""
    cross_entropy: float = 0.0
    """Cross-entropy to the labels (squared error for regression)."""

    def __post_init__(self) -> None:
        _check_finite(self)
        weights = (self.logits, self.hidden, self.cross_entropy)
        _check(min(weights) >= 0 and max(weights) > 0, f"Loss weights {weights} must not be negative, and one must be above 0.")


@dataclass(frozen=True)
class SearchSettings:
    """How the bits are found."""

    strategy: str = "dnas"
    """dnas, uniform, random, reversed, fisher, lifted, measured, qbert, hawq, bp-nas, bsq, optuna or race."""
    steps: int = 300
    """Search steps, each one weight step and, once the bits are open, one architecture step."""
    batch_size: int = 32
    held_out: float = 0.2
    """Share of the training file that only the architecture sees."""
    weight_learning_rate: float = 1e-4
    scale_learning_rate: float = 2e-3
    """Of the quantisation scales; 0 keeps those of the clip search."""
    architecture_learning_rate: float = 0.03
    architecture_optimizer: Literal["adam", "sgd"] = "adam"
    architecture_hidden: float = 0.0
    """Weight of the hidden-state term in what the architecture minimises; the weights keep `distillation.hidden`."""
    sampling: Literal["soft", "hard"] = "soft"
    """What architecture steps mix: the relaxed sample, or its one-hot with straight-through gradient."""
    weight_sampling: Literal["soft", "hard"] = "hard"
    """What weight steps run under: one sampled width per sub-group, or the slower relaxed mixture of all (AQ-BERT)."""
    schedule: Literal["exponential", "linear", "cosine"] = "exponential"
    temperature_start: float = 1.0
    temperature_end: float = 0.2
    warmup: float = 0.1
    """Share of the steps before the bits open (N1)."""
    anneal_after: float = 0.1
    """Share of the steps before the temperature falls (N0)."""
    prior_strength: float = 4.0
    """Nats per bit-per-weight by which the sensitivity prior starts the logits; 0 starts from nothing."""
    trust: float = 1.0
    """Share (0 to 1) of what the logits learned beyond the prior that the knapsack follows; without a prior all of it."""
    size_term: Literal["augmented_lagrangian", "piecewise_log", "soft_barrier"] = "augmented_lagrangian"
    """How size enters what the architecture minimises (`supernet.size_terms`)."""
    penalty: float = 4.0
    """Weight of the squared relative excess over the budget in the augmented Lagrangian."""
    penalty_rate: float = 0.2
    """Step of its multiplier."""
    size_weight: float = 1.0
    """Weight of the piecewise log (AQ-BERT's lambda)."""
    barrier_weight: float = 0.01
    """Weight of BP-NAS's barrier: small against the loss, or it pushes far inside the budget."""
    size_tolerance: float = 0.02
    """Share of the budget that the piecewise log tolerates either way, or at which the barrier becomes a straight line."""
    one_hot_weight: float = 1.0
    """Weight of BP-NAS's one-hot regulariser, beside its barrier."""
    zero: Literal["gate", "softmax"] = "gate"
    """Who decides 0 bits: a pruning gate per sub-group, or one more choice in the softmax over widths (AQ-BERT)."""
    bilevel: bool = True
    """Architecture steps on the held-out part; false: weights and architecture on the same batches of the whole file."""
    unrolled: float = 0.0
    """Weight step xi of the one-step unrolled architecture gradient (AQ-BERT eq. 13-14); 0 is first order."""
    derive: Literal["knapsack", "argmax"] = "knapsack"
    """How logits become bits: the knapsack over all preferences, or the most probable ones repaired greedily to fit."""
    calibration_samples: int = 512
    """Training texts from which clip ratios and sensitivities are computed."""
    sensitivity: Literal["diagonal", "coherent"] = "diagonal"
    """Fisher scores of every token and row by itself, or of a sub-group's whole change (`strategies.sensitivity`)."""
    sensitivity_temperature: float = 1.0
    """At which the teacher's predictions are softened for them: above 1, texts of which it is certain count more."""
    lasting_0: float = 1.0
    """How much more of a loss by pruning stays after recovery than of one at 2 bits or more: sensitivities of 0 bits count so
    many times."""
    lasting_1: float = 1.0
    """The same of 1 bit."""
    measured_samples: int = 256
    """measured: calibration texts on which every matrix is tried at every width."""
    hessian_slices: int = 10
    """qbert: slices of the training part on which eigenvalues are measured."""
    hessian_samples: int = 32
    """qbert: most texts of a slice; it never has more than its share of the training part (the paper's tenth)."""
    power_iterations: int = 10
    """qbert: most steps of an eigenvalue's power iteration."""
    trace_vectors: int = 64
    """hawq: batches, each text with a random vector of its own, from which traces are estimated."""
    requantise_every: int = 10
    """bsq: steps after which planes are rounded to exact bits and empty ones dropped."""
    trials: int = 100
    """optuna: allocations to try."""
    trial_samples: int = 512
    """optuna: most held-out texts on which one is scored."""
    sampler: Literal["tpe", "nsga2"] = "tpe"
    """optuna: who proposes them."""
    race_steps: int = 100
    """race: steps of recovery after which candidates are compared; never more than the recovery's own."""

    def __post_init__(self) -> None:
        _check_finite(self)
        least = min(self.steps, self.batch_size, self.calibration_samples)
        _check(least > 0, "Search steps, batch size and calibration samples must be at least 1.")
        least = min(self.hessian_slices, self.hessian_samples, self.power_iterations, self.trace_vectors, self.measured_samples)
        _check(least > 0, "Hessian slices, samples, power iterations, trace vectors and measured samples must be at least 1.")
        least = min(self.requantise_every, self.trials, self.trial_samples)
        _check(least > 0, "Re-quantisation steps, trials and trial samples must be at least 1.")
        _check(self.race_steps >= 0, f"Race steps {self.race_steps} must not be negative.")
        _check(0 < self.held_out < 0.9, f"held-out {self.held_out} must lie between 0 and 0.9.")
        rates = (self.weight_learning_rate, self.architecture_learning_rate)
        _check(min(rates) > 0, f"Search learning rates {rates} must be above 0.")
        _check(self.scale_learning_rate >= 0, f"Scale learning rate {self.scale_learning_rate} must not be negative.")
        _check(0 <= self.warmup <= 1 and 0 <= self.anneal_after <= 1, "warmup and anneal-after are shares of the steps, 0 to 1.")
        weights = (self.penalty, self.penalty_rate, self.size_weight, self.barrier_weight, self.one_hot_weight)
        _check(min(weights) >= 0, "penalty, penalty rate and the weights of size terms must not be negative.")
        _check(self.prior_strength >= 0, f"prior strength {self.prior_strength} must not be negative.")
        _check(self.sensitivity_temperature > 0, f"sensitivity temperature {self.sensitivity_temperature} must be above 0.")
        _check(min(self.lasting_0, self.lasting_1) > 0, f"lasting {self.lasting_0} and {self.lasting_1} must be above 0.")
        _check(0 <= self.trust <= 1, f"trust {self.trust} must lie between 0 and 1.")
        _check(0 < self.size_tolerance < 1, f"size tolerance {self.size_tolerance} must lie between 0 and 1.")
        _check(self.unrolled >= 0, f"unrolled {self.unrolled} must not be negative.")
        _check(self.temperature_start >= self.temperature_end > 0, "Temperatures must be positive and must not rise.")


@dataclass(frozen=True)
class RecoverySettings:
    """How a frozen allocation gets its accuracy back; the same for every method."""

    training: Literal["retrain", "annealed", "ternarybert", "quant-noise", "prequant", "finetune"] = "retrain"
    """Which training comes first: on the recipe's losses with all blocks quantised, on those giving way to labels, with
    TernaryBERT's losses, with a random share of blocks quantised, of outlier weights alone, or on labels alone."""
    steps: int = 1200
    """Its steps, with frozen bits on the whole training file."""
    start: Literal["teacher", "search", "pretrained"] = "teacher"
    """Restart from the teacher's weights, continue from the searched ones, or start over from the model that was given."""
    batch_size: int = 32
    learning_rate: float = 2e-4
    scale_learning_rate: float = 2e-3
    """Of the quantisation scales; 0 keeps those it starts from."""
    noise: float = 0.1
    """quant-noise: share of the blocks that a step quantises."""
    exchange: float = 0.0
    """Share of the tokens that a step of the training exchanges for near ones, for the teacher to read anew (labels stay)."""
    mrem_steps: int = 50
    """Reconstruction steps per module (MREM), or per linear layer (layer-wise), after the training."""
    reconstruction: Literal["mrem-s", "mrem-p", "layer-wise"] = "mrem-s"
    """Modules one after the other, all at once in a process each, or single layers one after the other."""
    mrem_modules: int = 4
    """Most modules; there are never more than layers."""
    mrem_samples: int = 4096
    """Most training texts to reconstruct on, without their labels."""
    mrem_learning_rate: float = 2e-5
    mrem_scale_learning_rate: float = 2e-5
    """Of scales of weights, and steps and offsets of activations."""
    teacher_forcing: Literal["linear", "off", "constant"] = "linear"
    """mrem-s and mrem-p: the teacher's share of a module's input: from 1 to 0 over half of the steps, 0, or a half."""
    activation_drop: float = 0.0
    """mrem-s and mrem-p, QDrop: probability that an element of a layer's input is not quantised while reconstructing."""
    parallel_fill: int = 32
    """mrem-p: batches from the module before that must have arrived before a module begins (t0)."""
    parallel_queue: int = 64
    """mrem-p: batches a module keeps to choose from."""

    def __post_init__(self) -> None:
        _check_finite(self)
        _check(min(self.steps, self.mrem_steps) >= 0, "Recovery steps must not be negative.")
        least = min(self.batch_size, self.mrem_modules, self.mrem_samples, self.parallel_fill)
        _check(least > 0, "Recovery batch size, modules, samples and parallel fill must be at least 1.")
        _check(0 < self.noise <= 1, f"noise {self.noise} must be above 0 and at most 1.")
        _check(0 <= self.exchange <= 1, f"exchange {self.exchange} must lie between 0 and 1.")
        _check(0 <= self.activation_drop < 1, f"activation drop {self.activation_drop} must be at least 0 and below 1.")
        queue, fill = self.parallel_queue, self.parallel_fill
        _check(queue >= fill, f"A parallel queue of {queue} batches never holds the {fill} that it must: raise it.")
        rates = (self.learning_rate, self.mrem_learning_rate, self.mrem_scale_learning_rate)
        _check(min(rates) > 0, f"Recovery learning rates {rates} must be above 0.")
        _check(self.scale_learning_rate >= 0, f"Scale learning rate {self.scale_learning_rate} must not be negative.")


# higher rates than after distillation, where weights are near their best: at 2-2-8 they leave half of the error or less
RECONSTRUCTION = RecoverySettings(steps=0, mrem_steps=2000, mrem_learning_rate=5e-4, mrem_scale_learning_rate=1e-2)
"""What `autoquant refine` does: no distillation, and the paper's steps a module."""


@dataclass(frozen=True)
class Recipe:
    """What a preset file fixes: everything of the method, nothing of the model and data."""

    space: str = "default"
    """Search space: a name in search_spaces/ or a path to a TOML file."""
    quantizer: str = "midrise"
    """How a float becomes a code: midrise, lsq, minmax, twn, gobo or pq."""
    activation_bits: Literal[4, 8, 32] = 8
    """8: activations are quantised per tensor while training and in the result, as the fast runtime does; 32: not."""
    activations: Literal["dynamic", "static"] = "dynamic"
    """dynamic: every tensor's own range, as the fast runtime has it; static: a learned range a layer, at 8 or 4 bits (LSQ+)."""
    encoder_bits: float = 0.0
    """The size, if the recipe fixes it: at most so many bits of codes per encoder weight, the papers' count; 0 leaves it open."""
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    distillation: DistillationSettings = field(default_factory=DistillationSettings)
    search: SearchSettings = field(default_factory=SearchSettings)
    recovery: RecoverySettings = field(default_factory=RecoverySettings)

    def __post_init__(self) -> None:
        _check_finite(self)
        terms = (self.distillation.logits, self.distillation.cross_entropy, self.search.architecture_hidden)
        _check(max(terms) > 0, "The architecture has no loss: set distillation.logits or search.architecture_hidden above 0.")
        _check(0 <= self.encoder_bits < 32, f"encoder_bits {self.encoder_bits} are not between 0 (open) and 32 (as they are).")
        _check(self.activation_bits in (4, 8, 32), f"activation_bits {self.activation_bits} is not 4, 8 or 32.")
        fits = self.activation_bits != 4 or self.activations == "static"
        _check(fits, "activation_bits 4 needs a learned range: add --activations static.")

    @property
    def static_activations(self) -> bool:
        return self.activations == "static" and self.activation_bits < 32


def available_presets() -> list[str]:
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.toml"))


def load_preset(name_or_path: str) -> Recipe:
    """Read a preset by name (`autoquant/presets/<name>.toml`, or as a paper spells it: qbert-2/4-8-8) or path.

    A preset may name another as its `base` and say only what differs. Raises SpaceError with the key at fault.
    """
    path, data = _read_preset(name_or_path, ())
    return from_mapping(Recipe, data, path.name)


def _read_preset(name_or_path: str, above: tuple[Path, ...]) -> tuple[Path, dict[str, Any]]:
    """Its file, and its settings with those of its bases; `above` are the presets that it is the base of."""
    path = PRESET_FOLDER / f"{name_or_path.replace('/', '-')}.toml"
    path = path if path.is_file() else Path(name_or_path)
    if not path.is_file():
        raise SpaceError(f"No preset '{name_or_path}': give a path to a TOML file or one of {', '.join(available_presets())}.")
    if path.resolve() in above:
        raise SpaceError(f"{path.name}: its base is itself: name another preset.")
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpaceError(f"{path} is not TOML: {error}.") from error
    if "base" not in data:
        return path, data
    named = str(data.pop("base"))
    beside = path.parent / named
    _, base = _read_preset(str(beside) if beside.is_file() else named, (*above, path.resolve()))
    tables = {name: {**_table(base, name, path), **table} for name, table in data.items() if isinstance(table, dict)}
    return path, {**base, **data, **tables}


def _table(base: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    found = base.get(name, {})
    if not isinstance(found, Mapping):
        raise SpaceError(f"{path}: {name} must be a table, in its base too.")
    return found


def from_mapping(cls: type[Any], data: Mapping[str, Any], where: str) -> Any:
    """Build a settings dataclass from nested plain data; unknown keys and wrong types are refused by name."""
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise SpaceError(f"{where}: unknown setting '{unknown[0]}'; known are {', '.join(hints)}.")
    values: dict[str, Any] = {}
    for key, value in data.items():
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise SpaceError(f"{where}: {key} must be a table.")
            values[key] = from_mapping(typing.cast(type[Any], hint), value, f"{where} [{key}]")
        else:
            values[key] = _coerce(value, hint, f"{where}: {key}")
    return cls(**values)


def _coerce(value: Any, hint: Any, where: str) -> Any:
    if typing.get_origin(hint) is Literal:
        if (type(value), value) not in [(type(known), known) for known in typing.get_args(hint)]:
            raise SpaceError(f"{where} = {value!r} is not one of {', '.join(map(repr, typing.get_args(hint)))}.")
        return value
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) in (tuple, list):
        return tuple(value) if isinstance(value, list) else value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise SpaceError(f"{where} = {value!r} is not of type {hint.__name__}.")
    return value
