"""How long will it take? Seconds of every stage on two cores, before any of it runs."""

from __future__ import annotations

from collections.abc import Sequence

from autoquant.blueprint import Blueprint
from autoquant.core.settings import SearchSettings
from autoquant.strategies import LEARNS_FROM
from autoquant.training.batches import longest
from autoquant.training.products import operations_a_second


def estimate_stages(blueprint: Blueprint, strategy: str, controls: Sequence[str]) -> list[tuple[str, float]]:
    """Stages of a run as the progress display names them, with seconds on two cores."""
    if blueprint.only_allocation is not None:  # there is nothing to search, and no control would differ
        return estimate_refinement(blueprint, strategy)
    recipe, (forward, step) = blueprint.recipe, _seconds(blueprint)
    stages, more = _estimate_teacher(blueprint), blueprint.data.unlabelled
    texts = len(blueprint.train) + (len(more) if more else 0)
    stages += [("Sensitivity", 25.0), ("Teacher outputs", texts * forward)]
    methods, layers = (strategy, *controls), len({p.matrix.layer for p in blueprint.byte_model.partitions})
    begun = {other for method in methods for other in LEARNS_FROM.get(method, ())}  # once for all that begin with it
    searching = [*methods, *sorted(begun - set(methods))]
    matrices = len(blueprint.byte_model.partitions)
    searches = [_estimate_search(method, recipe.search, step, layers, matrices) for method in searching]
    stages += [stage for stage in searches if stage[1]]
    if "race" in methods:
        few = min(recipe.search.race_steps, recipe.recovery.steps)
        stages += [(f"Recover race-{name}", _training_step(blueprint) * few) for name in LEARNS_FROM["race"]]
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
    return student if blueprint.source.is_classifier else [("Teacher", teacher), *student]


def _training_step(blueprint: Blueprint) -> float:
    """Seconds of a step of the recovery's training."""
    settings, (forward, step) = blueprint.recipe.recovery, _seconds(blueprint)
    return step + settings.batch_size * forward * (settings.exchange > 0)  # the teacher reads what was exchanged


def _estimate_recovery(method: str, blueprint: Blueprint) -> list[tuple[str, float]]:
    """Title and seconds of a method's training and reconstruction."""
    settings, (_, step) = blueprint.recipe.recovery, _seconds(blueprint)
    # a step of reconstruction runs the layers before its module forwards, and its own module both ways
    modules = 0.6 * settings.mrem_modules
    linear = sum(p.matrix.layer is not None for p in blueprint.byte_model.partitions)
    share = {"mrem-s": modules, "mrem-p": modules / 2, "layer-wise": 0.08 * linear}.get(settings.reconstruction, modules)
    training = _training_step(blueprint) * settings.steps
    stages = [(f"Recover {method}", training), ("Reconstruct", share * step * settings.mrem_steps)]
    return [stage for stage in stages if stage[1]]


def _estimate_search(strategy: str, settings: SearchSettings, step: float, layers: int, matrices: int) -> tuple[str, float]:
    """Title and seconds of a strategy's own stage; `step`: seconds of a training step on 32 texts.

    A product with the Hessian of one layer was measured to take 1.3 of these, gradients of 32 texts one by one 3; a matrix is
    tried out at five widths, each half a forward pass.
    """
    products = settings.hessian_slices * layers * settings.power_iterations
    seconds = {
        "dnas": 2.0 * step * settings.steps,
        "bp-nas": 2.0 * step * settings.steps,
        "bsq": 3.0 * step * settings.steps,
        "optuna": settings.trials * settings.trial_samples * 0.4 * step / 32,
        "qbert": 1.3 * step * products * settings.hessian_samples / 32,
        "hawq": 3.0 * step * settings.trace_vectors * settings.batch_size / 32,
        "measured": 0.8 * step * matrices * settings.measured_samples / 32,
    }
    titles = {"qbert": "Hessian", "hawq": "Hessian", "measured": "Measured losses"}
    return titles.get(strategy, "Search"), seconds.get(strategy, 0.0)
