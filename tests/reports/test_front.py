"""Dominance and hypervolume on examples worked by hand, and what must hold of any points."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autoquant.reports.front import fold, hypervolume, non_dominated

SIZE_AND_METRIC = (False, True)  # MiB down, accuracy up
NAN = math.nan


def test_front_of_five_models() -> None:
    values = np.array([[3, 0.80], [4, 0.86], [6, 0.85], [8, 0.88], [12, 0.88]])
    assert non_dominated(values, SIZE_AND_METRIC).tolist() == [True, True, False, True, False]


def test_ties_stay_and_nan_goes() -> None:
    values = np.array([[3, 0.8], [3, 0.8], [NAN, 0.99], [1, NAN], [4, 0.7]])
    assert non_dominated(values, SIZE_AND_METRIC).tolist() == [True, True, False, False, False]


def test_three_objectives() -> None:
    values = np.array([[3, 0.8, 5], [3, 0.8, 4], [2, 0.7, 9]])  # the third is latency in ms, down
    assert non_dominated(values, (False, True, False)).tolist() == [False, True, True]


def test_one_objective_and_no_points() -> None:
    assert non_dominated(np.array([[2.0], [1.0], [1.0]]), (False,)).tolist() == [False, True, True]
    assert non_dominated(np.empty((0, 2)), SIZE_AND_METRIC).tolist() == []
    assert hypervolume(np.empty((0, 2)), (1, 0), SIZE_AND_METRIC) == 0


def test_hypervolume_of_two_steps() -> None:
    # to the reference (10 MiB, 0): 10-4 wide and 0.5 high, and between 8 and 10 another 0.25
    values = np.array([[4, 0.5], [8, 0.75]])
    assert hypervolume(values, (10, 0), SIZE_AND_METRIC) == pytest.approx(6 * 0.5 + 2 * 0.25)
    more = np.vstack([values, [[9, 0.6], [11, 0.9], [NAN, 1.0], [5, NAN], [4, 0.5]]])  # dominated, outside, unknown, a tie
    assert hypervolume(more, (10, 0), SIZE_AND_METRIC) == pytest.approx(3.5)


def test_hypervolume_of_two_boxes_in_three_dimensions() -> None:
    # boxes 2 x 1 x 1 and 1 x 2 x 1 to the reference (3, 3, 3) share 1 x 1 x 1
    values = np.array([[1.0, 2.0, 2.0], [2.0, 1.0, 2.0]])
    assert hypervolume(values, (3, 3, 3), (False, False, False)) == pytest.approx(2 + 2 - 1)


coordinates = st.integers(0, 4).map(float) | st.just(NAN)


@st.composite
def points(draw: st.DrawFn) -> tuple[np.ndarray, tuple[bool, ...]]:
    objectives = draw(st.integers(1, 4))
    values = draw(arrays(np.float64, (draw(st.integers(0, 6)), objectives), elements=coordinates))
    return values, tuple(draw(st.lists(st.booleans(), min_size=objectives, max_size=objectives)))


def dominates(a: np.ndarray, b: np.ndarray, maximise: tuple[bool, ...]) -> bool:
    """By hand, an objective at a time."""
    gains = [x - y if up else y - x for x, y, up in zip(a, b, maximise, strict=True)]
    return all(gain >= 0 for gain in gains) and any(gain > 0 for gain in gains)


@given(points())
def test_the_front_is_what_pairwise_dominance_says(case: tuple[np.ndarray, tuple[bool, ...]]) -> None:
    values, maximise = case
    expected = [not np.isnan(b).any() and not any(dominates(a, b, maximise) for a in values) for b in values]
    assert non_dominated(values, maximise).tolist() == expected


@given(points())
def test_hypervolume_counts_unit_cells(case: tuple[np.ndarray, tuple[bool, ...]]) -> None:
    """Whole coordinates make the volume a number of unit cells, which can be counted one by one."""
    values, maximise = case
    costs = np.where(maximise, 4 - values, values)  # 0 to 4, down
    reference = [-0.0 if up else 4.0 for up in maximise]
    cells = np.stack(np.meshgrid(*[np.arange(4)] * len(maximise)), axis=-1).reshape(-1, len(maximise))
    covered = sum(any((point <= cell).all() for point in costs) for cell in cells)
    assert hypervolume(values, reference, maximise) == pytest.approx(covered)


@given(points())
def test_the_front_has_the_whole_hypervolume(case: tuple[np.ndarray, tuple[bool, ...]]) -> None:
    values, maximise = case
    reference = [-1.0 if up else 5.0 for up in maximise]
    front = values[non_dominated(values, maximise)]
    assert hypervolume(front, reference, maximise) == pytest.approx(hypervolume(values, reference, maximise))


def test_seeds_are_folded_to_mean_and_spread() -> None:
    keys = ["ours 3", "uniform 3", "ours 3", "ours 4"]
    values = np.array([[3.0, 0.80], [3.0, 0.70], [2.0, 0.84], [4.0, 0.9]])
    ours, uniform, single = fold(keys, values)
    assert (ours.key, ours.rows) == ("ours 3", (0, 2))
    assert ours.mean == pytest.approx((2.5, 0.82))
    assert (ours.smallest, ours.largest) == ((2.0, 0.80), (3.0, 0.84))
    assert ours.deviation == pytest.approx((math.sqrt(0.5), math.sqrt(0.0008)))
    assert uniform.mean == (3.0, 0.70)
    assert all(math.isnan(number) for number in single.deviation)


def test_a_seed_without_a_metric_is_not_left_out() -> None:
    (folded,) = fold(["a", "a"], np.array([[3.0, 0.8], [3.0, NAN]]))
    assert folded.mean[0] == 3.0
    assert math.isnan(folded.mean[1])
    assert math.isnan(folded.largest[1])
