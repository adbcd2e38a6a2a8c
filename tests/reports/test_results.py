"""A sweep as values: seeds folded, dominance of the means, and files that give it back."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest

from autoquant.core.errors import CheckpointError
from autoquant.reports.results import Missing, Point, Sweep


def test_configurations_are_folded_and_judged_by_their_means(sweep: Sweep) -> None:
    low, high, uniform = sweep.configurations
    assert [len(c.points) for c in sweep.configurations] == [2, 2, 1]
    assert low.folded.mean == pytest.approx((98, 0.82))
    assert (low.on_front, high.on_front, uniform.on_front) == (True, True, False)


def test_a_configuration_whose_other_seed_failed_is_not_on_the_front(sweep: Sweep) -> None:
    failed = Missing("dnas", 2, 200, "The loss is not finite.")
    odd = dataclasses.replace(sweep, missing=(failed,))
    low, high, uniform = odd.configurations
    assert (low.on_front, high.on_front, uniform.on_front) == (True, False, True)  # nothing beats uniform now
    assert (low.missing, high.missing) == ((), (failed,))
    assert odd.hypervolumes()["dnas"] < sweep.hypervolumes()["dnas"]
    assert odd.to_json()["configurations"][1]["missing_seeds"] == [2]
    everything = dataclasses.replace(sweep, points=sweep.points[2:4], missing=(failed,))
    assert [c.on_front for c in everything.configurations] == [False]


def test_mean_and_spread_are_in_the_file(sweep: Sweep, tmp_path: Path) -> None:
    sweep.write(tmp_path)
    low, _, uniform = json.loads((tmp_path / "pareto.json").read_text("utf-8"), parse_constant=pytest.fail)["configurations"]
    assert low["mean"] == pytest.approx({"size": 98, "metric": 0.82})
    assert low["deviation"] == pytest.approx({"size": 2**0.5, "metric": 0.04 / 2**0.5})
    assert (low["smallest"]["metric"], low["largest"]["metric"], low["seeds"]) == (0.80, 0.84, [0, 1])
    assert uniform["deviation"] == {"size": None, "metric": None}  # one seed says nothing of spread
    assert (low["on_front"], uniform["on_front"]) == (True, False)


def test_tuned_settings_keep_configurations_apart() -> None:
    points = tuple(Point(f"t{i}", "dnas", 0, 100, 99, 0.8 + i / 100, settings={"recovery.steps": i}) for i in range(2))
    sweep = Sweep("sst2", "accuracy", 1000, 0.9, points)
    assert [c.on_front for c in sweep.configurations] == [False, True]


def test_hypervolume_is_a_share_of_the_box(sweep: Sweep) -> None:
    # means (98, 0.82), (198, 0.89): (198 - 98) * 0.82 + (1000 - 198) * 0.89 of 1000 * 0.9
    assert sweep.hypervolumes()["dnas"] == pytest.approx((100 * 0.82 + 802 * 0.89) / 900)
    assert sweep.hypervolumes()["uniform"] == pytest.approx(800 * 0.87 / 900)


def test_latency_is_an_objective_too() -> None:
    points = (
        Point("a", "dnas", 0, 100, 99, 0.8, 5.0),
        Point("b", "dnas", 0, 200, 199, 0.8, 4.0),
        Point("c", "dnas", 0, 300, 299, 0.8),
    )
    sweep = Sweep("sst2", "accuracy", 1000, 0.9, points, ("size", "metric", "latency"))
    assert [c.on_front for c in sweep.configurations] == [True, True, False]  # the last one's was not measured
    assert sweep.hypervolumes() == {}


def test_files_give_it_back(sweep: Sweep, tmp_path: Path) -> None:
    sweep.write(tmp_path)
    assert Sweep.read(tmp_path) == sweep
    assert Sweep.read(tmp_path / "pareto.json") == sweep
    data = json.loads((tmp_path / "pareto.json").read_text("utf-8"))
    assert data["front"] == ["dnas-100-seed0", "dnas-100-seed1", "dnas-200-seed0", "dnas-200-seed1"]
    table = pd.read_parquet(tmp_path / "pareto.parquet")
    assert list(table.cell) == sorted(p.cell for p in sweep.points)
    assert table.on_front.tolist() == [True, True, True, True, False]
    assert json.loads(table.bits[0]) == {"words.weight": "81", "layer.0.query.weight": "02", "layer.1.query.weight": "48"}


def test_removed_units_are_in_the_table(sweep: Sweep) -> None:
    gone = dataclasses.replace(sweep.points[0], allocation={**sweep.points[0].allocation, "removed": ["1.head.0", "0.ffn.2"]})
    table = dataclasses.replace(sweep, points=(gone, sweep.points[1])).frame()
    assert [json.loads(text) for text in table.removed] == [["1.head.0", "0.ffn.2"], []]


def test_cells_give_it_back_point_by_point(sweep: Sweep, tmp_path: Path) -> None:
    assert Sweep.read_cells(tmp_path) is None
    dataclasses.replace(sweep, points=sweep.points[:2]).write_cells(tmp_path)
    sweep.write_cells(tmp_path)
    assert Sweep.read_cells(tmp_path) == sweep
    foreign = dataclasses.replace(sweep, full_precision_metric=0.5, points=(dataclasses.replace(sweep.points[0], cell="x"),))
    foreign.write_cells(tmp_path)
    with pytest.raises(CheckpointError, match="x belongs to another sweep"):
        Sweep.read_cells(tmp_path)


def test_a_seed_that_one_budget_lacks_is_missing_from_cells(sweep: Sweep, tmp_path: Path) -> None:
    dataclasses.replace(sweep, points=sweep.points[:3]).write_cells(tmp_path)
    merged = Sweep.read_cells(tmp_path)
    assert merged is not None
    assert merged.missing == (Missing("dnas", 1, 200, "not measured"),)


OLDER = ("missing", "data_source", "configurations")  # what pareto.json did not have at first


def test_older_cells_are_read(sweep: Sweep, tmp_path: Path) -> None:
    sweep.write_cells(tmp_path)
    for file in tmp_path.glob("*.json"):
        data = json.loads(file.read_text("utf-8"))
        points = [{k: v for k, v in point.items() if k not in ("recipe", "reuse_search")} for point in data["points"]]
        older = {k: v for k, v in data.items() if k not in OLDER} | {"points": points}
        file.write_text(json.dumps(older), "utf-8")
    assert Sweep.read_cells(tmp_path) == sweep


def test_an_empty_sweep_is_a_sweep(tmp_path: Path) -> None:
    empty = Sweep("sst2", "accuracy", 1000, 0.9, ())
    empty.write(tmp_path)
    assert Sweep.read(tmp_path) == empty
    assert empty.configurations == ()


KIND = '"format": "autoquant-pareto", "version": '


@pytest.mark.parametrize("text", ["", "[]", "{}", f"{{{KIND}9}}", f"{{{KIND}1}}"])
def test_what_is_no_sweep_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "pareto.json").write_text(text, "utf-8")
    with pytest.raises(CheckpointError, match=r"is not the pareto.json of a sweep") as error:
        Sweep.read(tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_sweep_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Cannot read"):
        Sweep.read(tmp_path / "none")
