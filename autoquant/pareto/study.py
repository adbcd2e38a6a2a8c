"""The Optuna study of a sweep: made or found again, and filled with points that were measured before."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from autoquant.assets import default_backbone
from autoquant.core.errors import RunError
from autoquant.core.run import differences
from autoquant.core.settings import Recipe
from autoquant.core.space import load_space
from autoquant.export.manifest import space_content
from autoquant.pareto.settings import SweepSettings, make_plan
from autoquant.pareto.storage import open_storage
from autoquant.pareto.trials import by_cell
from autoquant.pareto.tuning import SAMPLERS
from autoquant.reports.results import OBJECTIVES, Point, Sweep

SETTINGS = "autoquant"  # the study's attribute


def create_study(storage: str, name: str, settings: SweepSettings, resume: bool) -> optuna.Study:
    """The study of these settings, made or, with `resume`, found. Raises RunError if another one has the name."""
    opened = open_storage(storage)
    directions = ["maximize" if OBJECTIVES[o].maximise else "minimize" for o in settings.objectives]
    try:
        study = optuna.create_study(storage=opened, study_name=name, directions=directions)
        study.set_user_attr(SETTINGS, settings.to_json())
    except optuna.exceptions.DuplicatedStudyError as error:
        if not resume:
            raise RunError(f"The storage already holds a sweep '{name}': use --resume to go on or another --study.") from error
        study = optuna.load_study(study_name=name, storage=opened)
        if SETTINGS not in study.user_attrs:  # killed in between
            study.set_user_attr(SETTINGS, settings.to_json())
        known = study.user_attrs[SETTINGS]
        if settings.model is None and known["model"] == str(default_backbone()):  # as studies once kept it
            known = {**known, "model": None}
        mine = settings.to_json()
        # where the data are does not matter, what they are is among the rest; older studies do not say what their space is
        unknown = {"data_source", *(["space"] if known.get("space") is None else [])}
        before, after = ({name: value for name, value in s.items() if name not in unknown} for s in (known, mine))
        changed = differences(before, after, {"recipe": dataclasses.asdict(Recipe())})
        if changed:
            raise RunError(f"The sweep '{name}' has other settings ({'; '.join(changed)}): resume with the same ones.") from None
    # a sampler begins its draws anew in every process: of the seed alone, a resumed sweep would repeat those of the first
    drawn = len(study.get_trials(deepcopy=False))
    study.sampler = make_sampler(settings, int(np.random.SeedSequence((settings.seeds[0], drawn)).generate_state(1)[0]))
    return study


def make_sampler(settings: SweepSettings, seed: int | None) -> optuna.samplers.BaseSampler:
    """The sampler of a tuned sweep; workers that join have no seed, or those that come together would draw the same."""
    return SAMPLERS[settings.sampler](seed) if settings.tune else optuna.samplers.RandomSampler(seed)


def adopt_points(study: optuna.Study, settings: SweepSettings, known: Sweep | None) -> None:
    """Take the points of an earlier sweep for done. Raises RunError if any was not made as this sweep makes its own."""
    plan, present = make_plan(settings), by_cell(study.get_trials(deepcopy=False))
    space = {"strategy": settings.strategies, "budget_bytes": settings.budgets, "seed": settings.seeds}
    for point in known.points if known else ():
        if known is None or point.cell not in plan.cells or point.cell in present:
            continue
        teacher = study.user_attrs.get("teacher")
        unlike = _unlike(point, settings, teacher)
        if unlike:
            raise RunError(f"{point.cell} is there, but with another {', another '.join(unlike)}: move the old points elsewhere.")
        full = {"bytes": known.full_precision_bytes, "metric": known.full_precision_metric, "name": known.metric}
        plain = {k: v for k, v in dataclasses.asdict(point).items() if k != "allocation"}
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE,
                params=dict(plan.cells[point.cell]),
                distributions={name: optuna.distributions.CategoricalDistribution(of) for name, of in space.items()},
                values=[point.value(name) for name in settings.objectives],
                user_attrs={"cell": point.cell, "point": plain, "full_precision": full, "allocation": dict(point.allocation)},
            )
        )
        if teacher is None:
            study.set_user_attr("teacher", point.allocation["hashes"]["teacher"])


def _unlike(point: Point, settings: SweepSettings, teacher: str | None) -> list[str]:
    """What the record of a point says of its making that is not this sweep's; what older records do not say is not asked."""
    recipe = dataclasses.replace(settings.recipe, search=dataclasses.replace(settings.recipe.search, strategy=point.strategy))
    plain = json.loads(json.dumps(dataclasses.asdict(recipe)))
    names = ("max_length", "trim_positions", "quantizer", "activation_bits", "activations", "seed", "strategy", "budget")
    recorded = {
        **{name: point.allocation.get(name) for name in (*names, "recovery")},
        "space": _would_be_found(point.allocation, space_content(load_space(recipe.space))),
        "teacher": point.allocation["hashes"].get("teacher") if teacher else None,
        "data": {name: point.allocation["hashes"].get(name) for name in settings.data},
        "recipe": point.recipe,
        "way to share searches": point.reuse_search,
    }
    expected = {
        **{name: getattr(settings, name) for name in ("max_length", "trim_positions")},
        **{name: plain[name] for name in ("quantizer", "activation_bits", "activations")},
        "seed": point.seed,
        "strategy": point.strategy,
        "budget": {"bytes": point.budget_bytes, "count": settings.count},
        "space": True,
        "recovery": {name: plain[name] for name in ("recovery", "distillation")} | {"calibration": plain["search"]},
        "teacher": teacher,
        "data": dict(settings.data),
        "recipe": plain,
        "way to share searches": settings.reuse_search,
    }
    return [name for name, value in recorded.items() if not _agrees(value, expected[name])]


def _would_be_found(manifest: Mapping[str, Any], space: Mapping[str, Any]) -> bool:
    """Whether an allocation comes of this space, or of one cut alike that offers more widths but needed no other."""
    theirs, ours = ({kind: set(rule["bits"]) for kind, rule in s["rules"].items()} for s in (manifest["space"], space))
    if _cuts(manifest["space"]) != _cuts(space) or not all(ours[kind] <= theirs[kind] for kind in ours):
        return False
    return all(ours[matrix["kind"]].issuperset(matrix["bits"]) for matrix in manifest["matrices"])


def _cuts(space: Mapping[str, Any]) -> dict[str, Any]:
    """A space without the widths it offers."""
    return {**space, "rules": {kind: {**rule, "bits": ()} for kind, rule in space["rules"].items()}}


def _agrees(recorded: Any, expected: Any) -> bool:
    """Whether all that is recorded, nested as in `expected`, is as expected."""
    if isinstance(recorded, Mapping) and isinstance(expected, Mapping):
        return all(_agrees(value, expected[name]) for name, value in recorded.items() if name in expected)
    return recorded is None or recorded == expected
