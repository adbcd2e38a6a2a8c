"""Figures hold the numbers they should; how they look is for the report's tests and for eyes."""

import dataclasses

import numpy as np
import pytest

from autoquant.refine import REFINERS
from autoquant.reports import plots
from autoquant.reports.results import Sweep
from sweeps import manifest


def test_front_has_means_spread_and_full_precision(sweep: Sweep) -> None:
    figure = plots.front(sweep)
    dnas, uniform = figure.data
    assert dnas.y == pytest.approx((0.82, 0.89))
    assert dnas.error_y.array == pytest.approx((0.02, 0.01))
    assert dnas.error_y.arrayminus == pytest.approx((0.02, 0.01))
    assert dnas.marker.color == ("#1b5fc1", "#1b5fc1")
    assert uniform.marker.color == ("white",)  # dominated
    assert figure.layout.shapes[0].y0 == 0.9


def test_ticks_are_budgets_or_where_these_are_the_encoder_s_files(sweep: Sweep) -> None:
    assert [tick * 2**20 for tick in plots.front(sweep).layout.xaxis.tickvals] == [100, 200]
    counted = {"budget": {"bytes": 100, "count": "encoder"}}
    points = tuple(
        dataclasses.replace(p, file_bytes=30 * p.file_bytes * 2**10, allocation={**p.allocation, **counted}) for p in sweep.points
    )
    ticks = plots.front(dataclasses.replace(sweep, points=points)).layout.xaxis.tickvals
    assert ticks == pytest.approx((2.9, 5.8, 5.9))  # 98, 198 and 200 times 30 KiB


def test_mean_bits_are_weighted_by_weights() -> None:
    words, first, _ = manifest(0, 2, 4, 8)["matrices"]
    assert plots.mean_bits([words]) == pytest.approx((2 * 8 + 8 * 1) / 10)
    assert plots.mean_bits([first]) == 1
    assert plots.mean_bits([words, first]) == pytest.approx((40 * 2.4 + 16 * 1) / 56)


def test_heatmap_is_layers_by_matrices() -> None:
    inside, outside = plots.heatmap(manifest(0, 2, 4, 8)).data
    assert (inside.z[0][0], inside.z[1][0]) == (1, 6)
    assert list(inside.y) == ["layer 0", "layer 1"]
    assert outside.z[0][0] == pytest.approx(2.4)
    assert "rows 2 to 3: 2 bit" in inside.hovertext[0][0]
    assert "bucket 1 (8 tokens): 1 bit" in outside.hovertext[0][0]


def test_a_matrix_that_is_gone_is_an_empty_cell() -> None:
    gone = manifest(0, 2, 4, 8)
    gone["matrices"][1]["kind"] = "key"
    inside = plots.heatmap(gone).data[0]
    assert np.isnan(inside.z[0][0])
    assert inside.hovertext[0][0] == "gone"


def test_removed_units_are_said() -> None:
    removed = {**manifest(0, 2, 4, 8), "removed": ["1.head.0", "1.head.3", "0.ffn.2"]}
    inside = plots.heatmap(removed).data[0]
    assert inside.text[0][0] == "1.00"
    assert inside.text[1][0] == "6.00<br>-2 heads"
    assert "without 2 heads: 0, 3" in inside.hovertext[1][0]


def test_difference_is_second_minus_first() -> None:
    (heat,) = plots.difference(manifest(0, 2, 4, 8), manifest(4, 4, 8, 8)).data
    assert [row[0] for row in heat.z] == [3, 2]


def test_buckets_are_labelled_by_rank() -> None:
    (bars,) = plots.bucket_bits(manifest(0, 2, 4, 8)).data
    assert list(bars.x) == ["1 to 2", "3 to 10"]
    assert list(bars.y) == [8, 1]


def test_width_shares_add_up() -> None:
    figure = plots.width_shares(manifest(0, 2, 4, 8))
    assert np.sum([trace.x for trace in figure.data], axis=0) == pytest.approx([1, 1])


def test_bits_by_budget(sweep: Sweep) -> None:
    words, query = plots.bits_by_budget(sweep, "dnas").data
    assert words.y == pytest.approx((2.4, 2.4))
    assert query.y == pytest.approx((3.5, 6.0))


def test_breakdown_is_largest_first_and_whole() -> None:
    (bars,) = plots.byte_breakdown(manifest(0, 2, 4, 8)).data
    assert list(bars.text) == ["60 bytes, 60.0%", "40 bytes, 40.0%"]


def test_curves_of_every_stage_and_the_budget() -> None:
    log = [{"stage": "teacher", "step": i, "loss": 1.0} for i in range(3)]
    log += [{"stage": "search-dnas", "step": i, "loss": 1.0, "temperature": 0.5, "expected_bytes": 2**20 * i} for i in range(3)]
    log += [{"stage": "retrain-dnas", "step": i, "loss": float(i)} for i in range(3)]
    figure = plots.training_curves(log, budget_bytes=2**21)
    assert {text.text for text in figure.layout.annotations} == {
        "teacher loss",
        "search: losses",
        "search: expected size in MiB",
        "search: temperature",
        "recovery: loss",
        "budget",
    }
    size = next(trace for trace in figure.data if trace.name == "search-dnas, expected size")
    assert list(size.y) == [0, 1, 2]
    assert figure.layout.shapes[0].y0 == 2
    assert plots.training_curves(log[:3]).layout.annotations[0].text == "teacher loss"


@pytest.mark.parametrize("refiner", REFINERS)
def test_the_loss_of_every_refiner_is_one_of_recovery(refiner: str) -> None:
    figure = plots.training_curves([{"stage": f"{refiner}-dnas", "step": i, "loss": 1.0} for i in range(3)])
    assert [text.text for text in figure.layout.annotations] == ["recovery: loss"]


def test_the_running_mean_starts_at_the_first_value() -> None:
    log = [{"stage": "retrain-dnas", "step": i, "loss": float(i)} for i in range(3)]
    faint, bold = plots.training_curves(log).data
    assert list(faint.y) == [0, 1, 2]
    assert bold.y == pytest.approx((0, 0.06, 0.06 + 0.06 * 1.94))


def test_probability_is_drawn_where_there_is_one() -> None:
    learned = manifest(0, 2, 4, 8)
    learned["matrices"][1]["probability"] = [0.75, 0.0]
    words, query = plots.probability(learned).data
    assert (list(words.y), list(query.y)) == ([], [0.75])


def test_sensitivity_is_per_weight() -> None:
    words = plots.sensitivity(manifest(0, 2, 4, 8)).data[0]
    assert words.y == pytest.approx((1e-6 / 8, 1e-6 / 32))
