"""The right point is picked, by the mean over seeds, and exported whole."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest

from autoquant import cli
from autoquant.cli.options import DataOptions, MachineOptions
from autoquant.core.errors import BudgetError, RunError
from autoquant.machine import Machine
from autoquant.pareto.select import chosen_point, export, rebuild_command, select
from autoquant.reports.results import Missing, Sweep

TINY = 2**-20  # the sweep's bytes, as MiB


@pytest.mark.parametrize(
    ("max_bytes", "min_metric", "cell"),
    [
        (150, None, "dnas-100-seed0"),
        (99, None, "dnas-100-seed0"),
        (1000, None, "dnas-200-seed0"),
        (None, 0.81, "dnas-100-seed0"),
        (None, 0.83, "dnas-200-seed0"),  # a seed of the smaller reaches it, the mean does not
        (200, 0.88, "dnas-200-seed0"),
    ],
)
def test_select(sweep: Sweep, max_bytes: int | None, min_metric: float | None, cell: str) -> None:
    chosen = select(sweep, None if max_bytes is None else max_bytes * TINY, min_metric)
    assert chosen_point(chosen).cell == cell


@pytest.mark.parametrize(
    ("max_bytes", "min_metric", "message"),
    [
        (98, None, "No point is within"),  # one seed's file is larger
        (None, 0.99, "No point reaches accuracy 0.99; the best has 0.8900"),
        (150, 0.85, "No point reaches accuracy 0.85; the best has 0.8200"),
        (None, None, "Say what to select by"),
    ],
)
def test_nothing_fits(sweep: Sweep, max_bytes: int | None, min_metric: float | None, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        select(sweep, None if max_bytes is None else max_bytes * TINY, min_metric)


def test_a_configuration_that_lacks_a_seed_is_not_chosen(sweep: Sweep) -> None:
    odd = dataclasses.replace(sweep, missing=(Missing("dnas", 2, 200, "failed"),))
    assert chosen_point(select(odd, 1000 * TINY)).cell == "uniform-200-seed0"


def test_a_point_without_its_model_is_made_by_a_command(sweep: Sweep, tmp_path: Path) -> None:
    source = {"task": "sst2", "data_dir": "my glue", "text_column": ["text"], "label_column": "label", "train_rows": 300}
    sweep, file = dataclasses.replace(sweep, data_source=source), tmp_path / "out" / "allocation.json"
    for model in ("TEACHER", str(tmp_path / "shared" / "teacher" / "teacher")):
        command = cli.parse(shlex.split(rebuild_command(sweep, tmp_path, file))[1:])
        assert isinstance(command, cli.Apply)
        assert (command.allocation, command.model) == (file, model)
        assert command.data == DataOptions(task="sst2", data_dir=Path("my glue"), train_rows=300)
        assert command.machine == MachineOptions()
        (tmp_path / "shared" / "teacher" / "teacher").mkdir(parents=True, exist_ok=True)


def test_a_point_is_made_again_as_its_sweep_computed(sweep: Sweep, tmp_path: Path) -> None:
    machine = Machine(device="cpu", threads=1, precision="bf16", compile=False)
    command = rebuild_command(dataclasses.replace(sweep, machine=machine.identity()), tmp_path, tmp_path / "allocation.json")
    found = cli.parse(shlex.split(command)[1:])
    assert isinstance(found, cli.Apply)
    assert found.machine.resolve() == machine


def test_export_copies_the_model(sweep: Sweep, tmp_path: Path) -> None:
    model = tmp_path / "trials" / "dnas-100-seed0" / "model"
    model.mkdir(parents=True)
    for name in ("model.safetensors", "allocation.json", "config.json"):
        (model / name).write_text(name, "utf-8")
    assert export(tmp_path, sweep.points[0], tmp_path / "out") is True
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["allocation.json", "config.json", "model.safetensors"]
    with pytest.raises(RunError, match="is not empty"):
        export(tmp_path, sweep.points[0], tmp_path / "out")


def test_select_is_a_command(sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what it chose by, the mean, and what the seed that it ships has itself."""
    sweep.write(tmp_path)
    cli.main(["select", str(tmp_path), "--min-metric", "0.885"])
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith("dnas-200-seed0: accuracy 0.8800, 198 bytes")
    assert "the mean of 2 seeds, 0.8900 (0.8800 to 0.9000); this is seed 0, with 0.8800" in out
    with pytest.raises(SystemExit, match="2"):
        cli.main(["select", str(tmp_path), "--min-metric", "0.95"])
    assert json.loads((tmp_path / "pareto.json").read_text("utf-8"))["format"] == "autoquant-pareto"
