"""The command in a report makes the same run."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest

from autoquant import cli
from autoquant.cli.options import BudgetOptions, DataOptions
from autoquant.core.cost import SizeBudget
from autoquant.core.settings import Recipe, available_presets, load_preset
from autoquant.reports.command import data_options, mib_number, recipe_options, run_command
from runs import Reference, reference

__all__ = ["reference"]


def test_the_command_of_a_run_parses_to_its_settings(reference: Reference) -> None:
    settings = json.loads((reference.run_dir / "run.json").read_text("utf-8"))["settings"]
    command = cli.parse(shlex.split(run_command(settings, "sst2"))[1:])
    assert isinstance(command, cli.Search)
    assert json.loads(json.dumps(dataclasses.asdict(command.recipe))) == settings["recipe"]
    assert list(command.controls) == settings["controls"]
    assert (command.seed, command.max_length) == (settings["seed"], settings["max_length"])
    assert (command.model, command.data.task) == (settings["model"], "sst2")
    assert command.budget.resolve() == BudgetOptions(budget_mib=settings["budget"]["bytes"] / 2**20).resolve()
    assert command.machine.threads == 1
    assert command.machine.compile is False


@pytest.mark.parametrize("size", [3 * 2**20, 18874, 6291456, 6291455])
def test_a_size_in_mib_gives_its_bytes_back(size: int) -> None:
    assert SizeBudget.mib(float(mib_number(size))).bytes == size
    assert mib_number(3 * 2**20) == "3"


def test_a_default_recipe_needs_no_options() -> None:
    assert recipe_options(dataclasses.asdict(load_preset("default"))) == []


@pytest.mark.parametrize("preset", available_presets())
def test_any_preset_can_be_spelled_out(preset: str) -> None:
    recipe: Recipe = load_preset(preset)
    command = cli.parse(["search", *recipe_options(dataclasses.asdict(recipe))])
    assert isinstance(command, cli.Search)
    assert command.recipe == recipe


def test_a_recipe_that_fixes_its_size_needs_no_budget(reference: Reference) -> None:
    settings = json.loads((reference.run_dir / "run.json").read_text("utf-8"))["settings"]
    fixed = {"recipe": dataclasses.asdict(load_preset("aqbert-2.5")), "budget": {"bytes": 12345, "count": "codes"}}
    command = cli.parse(shlex.split(run_command({**settings, **fixed}, "sst2"))[1:])
    assert isinstance(command, cli.Search)
    assert (command.budget.resolve(), command.recipe) == (None, load_preset("aqbert-2.5"))


def test_a_seed_the_positions_and_what_a_budget_counts_are_spelled_out() -> None:
    machine = {"device": "cpu", "threads": 0, "precision": "bf16", "compile": True}
    more = {"seed": 3, "max_length": 128, "trim_positions": True, "machine": machine, "controls": ["fisher"]}
    recipe = dataclasses.asdict(load_preset("default"))
    settings = {"model": "teacher", "budget": {"bytes": 2**20, "count": "encoder"}, "recipe": recipe, **more}
    command = cli.parse(shlex.split(run_command(settings, "movies"))[1:])
    assert isinstance(command, cli.Search)
    assert (command.seed, command.max_length, command.trim_positions) == (3, 128, True)
    assert command.budget.resolve() == SizeBudget(2**20, "encoder")
    assert (command.machine.device, command.machine.precision) == ("cpu", "bf16")


def test_data_of_ones_own_has_places_to_fill_in() -> None:
    assert data_options("movies") == []
    assert data_options("cola") == ["--task", "cola"]
    assert data_options("mine") == ["--train-file", "TRAIN", "--eval-file", "EVAL"]


def test_an_applied_allocation() -> None:
    machine = {"device": "cpu", "threads": 0, "precision": "fp32", "compile": True}
    settings = {"model": "teacher", "recovery": False, "machine": machine}
    again = "autoquant apply runs/a/model/allocation.json --model teacher --device cpu --no-recovery"
    assert run_command(settings, "movies", run_dir="runs/a") == again
    assert "--model teacher --task cola --device cpu" in run_command(settings, "cola")


def test_a_run_records_where_its_data_is(reference: Reference) -> None:
    """A run and a trial that took over a search: the command in either's report loads the same data."""
    info = json.loads((reference.run_dir / "run.json").read_text("utf-8"))
    for settings in (info["settings"], {**info["settings"], "shared": "calibration of shared/seed0"}):
        command = cli.parse(shlex.split(run_command(settings, "sst2", info["data_source"]))[1:])
        assert isinstance(command, cli.Search | cli.Apply)
        assert command.data == DataOptions(task="sst2", data_dir=reference.data)
    report = (reference.run_dir / "report.html").read_text("utf-8")
    assert f"--data-dir {reference.data} --task sst2" in report


def test_the_command_loads_the_same_files_columns_and_rows(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("one,two,stars\n" + "".join(f"w{i},v{i},{i % 2}\n" for i in range(40)), "utf-8")
    asked = DataOptions(
        train_file=tmp_path / "a.csv",
        eval_file=tmp_path / "b.csv",
        text_column=("one", "two"),
        label_column="stars",
        train_rows=30,
        more_texts=tmp_path / "a.csv",
    )
    source = asked.load().source
    assert source is not None
    command = cli.parse(["evaluate", "folder", *data_options("files", source)])
    assert isinstance(command, cli.Evaluate)
    assert command.data == asked
    assert DataOptions.recorded(source) == asked


@pytest.mark.parametrize("options", [["--bits", "2-2-8", "--seed", "3"], ["--activation-bits", "4", "--activations", "static"]])
def test_a_refined_allocation(options: list[str]) -> None:
    more = ["--recovery.mrem-steps", "50", "--recovery.reconstruction", "mrem-p", "--max-length", "64", "--task", "sst2"]
    asked = cli.parse(["refine", "runs/a", *options, *more])
    assert isinstance(asked, cli.Refine)
    refine = {"source": asked.source, "bits": asked.bits}
    refine |= {"activation_bits": asked.activation_bits, "activations": asked.activations}
    machine = {"device": "cpu", "threads": 0, "precision": "fp32", "compile": True}
    settings = {"refine": refine, "recovery": dataclasses.asdict(asked.recovery), "seed": asked.seed, "task": "sst2"}
    settings |= {"max_length": asked.max_length, "machine": machine}
    made = cli.parse(shlex.split(run_command(settings, "sst2"))[1:])
    assert isinstance(made, cli.Refine)
    kept = {"max_length": asked.max_length} if asked.bits is None else {}  # a run's own
    assert dataclasses.replace(made, **kept, machine=asked.machine) == asked
