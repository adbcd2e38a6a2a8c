"""The command in a report makes the same run."""

import dataclasses
import json
import shlex

import pytest

from autoquant import cli
from autoquant.core.cost import SizeBudget
from autoquant.core.settings import Recipe, load_preset
from autoquant.pareto.command import apply_command, data_options, mib_number, recipe_options, run_command
from runs import Reference, reference

__all__ = ["reference"]


def test_the_command_of_a_run_parses_to_its_settings(reference: Reference) -> None:
    settings = json.loads((reference.run_dir / "run.json").read_text("utf-8"))["settings"]
    command = cli.parse(shlex.split(run_command(settings))[1:])
    assert isinstance(command, cli.Search)
    assert json.loads(json.dumps(dataclasses.asdict(command.recipe))) == settings["recipe"]
    assert list(command.controls) == settings["controls"]
    assert (command.seed, command.max_length) == (settings["seed"], settings["max_length"])
    assert (command.model, command.data.task) == (settings["model"], "sst2")
    assert command.budget.resolve() == cli.BudgetOptions(budget_mib=settings["budget"]["bytes"] / 2**20).resolve()
    assert command.machine.threads == 1
    assert command.machine.compile is False


@pytest.mark.parametrize("size", [3 * 2**20, 18874, 6291456, 6291455])
def test_a_size_in_mib_gives_its_bytes_back(size: int) -> None:
    assert SizeBudget.mib(float(mib_number(size))).bytes == size
    assert mib_number(3 * 2**20) == "3"


def test_a_default_recipe_needs_no_options() -> None:
    assert recipe_options(dataclasses.asdict(load_preset("default"))) == []


@pytest.mark.parametrize("preset", ["quick", "default"])
def test_any_preset_can_be_spelled_out(preset: str) -> None:
    recipe: Recipe = load_preset(preset)
    command = cli.parse(["search", *recipe_options(dataclasses.asdict(recipe))])
    assert isinstance(command, cli.Search)
    assert command.recipe == recipe


def test_data_of_ones_own_has_places_to_fill_in() -> None:
    assert data_options("movies") == []
    assert data_options("cola") == ["--task", "cola"]
    assert data_options("mine") == ["--train-file", "TRAIN", "--eval-file", "EVAL"]


def test_an_applied_allocation() -> None:
    machine = {"device": "cpu", "threads": 0, "precision": "fp32", "compile": True}
    settings = {"model": "teacher", "recovery": False, "machine": machine}
    assert apply_command(settings) == "autoquant apply model/allocation.json --model teacher --device cpu --no-recovery"


@pytest.mark.parametrize("options", [["--bits", "2-2-8", "--seed", "3"], ["--activation-bits", "4", "--activations", "static"]])
def test_a_refined_allocation(options: list[str]) -> None:
    more = ["--recovery.mrem-steps", "50", "--recovery.reconstruction", "mrem-p", "--max-length", "64", "--task", "sst2"]
    asked = cli.parse(["refine", "runs/a", *options, *more])
    assert isinstance(asked, cli.Refine)
    refine = {"source": asked.source, "bits": asked.bits}
    refine |= {"activation_bits": asked.activation_bits, "activations": asked.activations}
    machine = {"device": "cpu", "threads": 0, "precision": "fp32", "compile": True}
    settings = {"refine": refine, "recovery": dataclasses.asdict(asked.recovery), "seed": asked.seed, "task": "sst2"}
    made = cli.parse(shlex.split(run_command({**settings, "max_length": asked.max_length, "machine": machine}))[1:])
    assert isinstance(made, cli.Refine)
    kept = {"max_length": asked.max_length} if asked.bits is None else {}  # a run's own
    assert dataclasses.replace(made, **kept, machine=asked.machine) == asked
