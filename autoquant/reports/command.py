"""Which command makes it again? From the recorded settings, so it is right however the run was started."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoquant.core.cost import MIB
from autoquant.core.settings import RECONSTRUCTION, load_preset
from autoquant.tasks.task import MOVIES, TASKS

USUAL_SOURCE = {"text_column": ["text"], "label_column": "label"}


def run_command(
    settings: Mapping[str, Any],
    task: str,
    source: Mapping[str, Any] | None = None,
    allocation: str | None = None,
    run_dir: str | Path = ".",
) -> str:
    """The command of a run from its run.json: its settings, `data_source`, the options that loaded its data, and `allocation`,
    the file that a refinement was given.

    A sweep's trial, whose search was shared, is applied again, from the allocation that `run_dir` has.
    """
    data = data_options(task, source)
    if "refine" in settings:
        return refine_command(settings, data, allocation)
    searched = "recipe" in settings and "shared" not in settings
    return search_command(settings, data) if searched else apply_command(settings, data, Path(run_dir))


def refine_command(settings: Mapping[str, Any], data: Sequence[str], allocation: str | None = None) -> str:
    """`autoquant refine ...`."""
    parts = ["autoquant", "refine", settings["refine"]["source"], *data]
    parts += [] if allocation is None else ["--allocation", allocation]
    for name in ("bits", "activation_bits", "activations"):
        value = settings["refine"].get(name)
        parts += [] if value is None else _option(name, value)
    if settings["refine"].get("bits"):
        parts += ["--seed", str(settings["seed"])] if settings["seed"] else []
        parts += ["--max-length", str(settings["max_length"])] if settings["max_length"] != 128 else []
    usual = dataclasses.asdict(RECONSTRUCTION)
    changed = [(f"recovery.{name}", value) for name, value in settings["recovery"].items() if usual.get(name) != value]
    options = [part for name, value in changed for part in _option(name, value)]
    return shlex.join([*parts, *machine_options(settings["machine"]), *options])


def apply_command(settings: Mapping[str, Any], data: Sequence[str], run_dir: Path) -> str:
    """`autoquant apply ...`; the allocation's own file stands in the run's model/."""
    parts = ["autoquant", "apply", str(run_dir / "model" / "allocation.json"), "--model", settings["model"], *data]
    return shlex.join(
        [*parts, *machine_options(settings["machine"]), *([] if settings.get("recovery", True) else ["--no-recovery"])]
    )


def search_command(settings: Mapping[str, Any], data: Sequence[str]) -> str:
    """`autoquant search ...` from the settings in run.json; only what differs from the defaults is spelled out."""
    budget = settings["budget"]
    parts = ["autoquant", "search", "--model", settings["model"], *data]
    if not settings["recipe"].get("encoder_bits"):  # that says the size, and counts what no --count does
        parts += ["--budget-mib", mib_number(budget["bytes"])]
        parts += ["--count", budget["count"]] if budget["count"] != "file" else []
    parts += ["--controls", *settings["controls"]]
    return shlex.join([*parts, *common_options(settings)])


def mib_number(size: int) -> str:
    """Bytes as a number of MiB that gives the same bytes back: as short as it can be."""
    return next(text for text in (f"{size / MIB:g}", repr(size / MIB)) if int(float(text) * MIB) == size)


def data_options(task: str, source: Mapping[str, Any] | None = None) -> list[str]:
    """Where the data is: the recorded options; without them what the task's name says, and files have no place then."""
    if source is not None:
        given = {name: value for name, value in source.items() if value is not None and value != USUAL_SOURCE.get(name)}
        return [part for name, value in given.items() for part in _option(name, value)]
    if task == MOVIES.name:
        return []
    return ["--task", task] if task in TASKS else ["--train-file", "TRAIN", "--eval-file", "EVAL"]


def common_options(settings: Mapping[str, Any]) -> list[str]:
    """Seed, lengths, machine and recipe, where they are not the defaults."""
    parts = ["--seed", str(settings["seed"])] if settings.get("seed") else []
    parts += ["--max-length", str(settings["max_length"])] if settings["max_length"] != 128 else []
    parts += ["--trim-positions"] if settings["trim_positions"] else []
    return [*parts, *machine_options(settings["machine"]), *recipe_options(settings["recipe"])]


def machine_options(machine: Mapping[str, Any]) -> list[str]:
    """Where it computed, as options; what is not recorded is as usual."""
    options = ("device", "auto"), ("threads", 0), ("precision", "fp32"), ("compile", True)
    return [part for name, usual in options if machine.get(name, usual) != usual for part in _option(name, machine[name])]


def recipe_options(recipe: Mapping[str, Any]) -> list[str]:
    """A recipe as options over the default preset."""
    usual = dict(_flat(dataclasses.asdict(load_preset("default"))))
    changed = [(name, value) for name, value in _flat(recipe) if usual.get(name, value) != value]
    return [part for name, value in changed for part in _option(name, value)]


def _option(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        head, _, last = flag.rpartition(".")
        return [f"--{flag}" if value else f"--{head + '.' if head else ''}no-{last}"]
    return [f"--{flag}", *(map(str, value) if isinstance(value, list | tuple) else [str(value)])]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
