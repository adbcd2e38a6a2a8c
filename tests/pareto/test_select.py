"""The right point is picked, by the mean over seeds, and exported whole."""

import json
from pathlib import Path

import pytest

from autoquant import cli
from autoquant.core.errors import BudgetError, RunError
from autoquant.pareto.results import Sweep
from autoquant.pareto.select import chosen_point, export, select

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
    sweep.write(tmp_path)
    cli.main(["select", str(tmp_path), "--min-metric", "0.85"])
    assert capsys.readouterr().out.startswith("dnas-200-seed0: accuracy 0.8800, 198 bytes")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["select", str(tmp_path), "--min-metric", "0.95"])
    assert json.loads((tmp_path / "pareto.json").read_text("utf-8"))["format"] == "autoquant-pareto"
