"""The interval on examples worked by hand, and what must hold of any answers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autoquant.compare.bootstrap import Difference, paired_difference


def rows(*answers: list[int]) -> np.ndarray:
    return np.array(answers)


def test_two_examples_of_which_one_differs() -> None:
    """Draws of both, of each once, of each twice: differences 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4."""
    found = paired_difference("accuracy", rows([1, 1]), rows([1, 0]), np.array([1, 1]))
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)


def test_what_is_hard_for_both_cancels_out() -> None:
    ours, labels = rows([1, 0, 1, 0, 1, 0]), np.ones(6, dtype=int)
    assert paired_difference("accuracy", ours, ours.copy(), labels) == Difference(0.0, 0.0, 0.0)


def test_better_on_every_example_is_clear() -> None:
    found = paired_difference("accuracy", rows([1] * 5, [1] * 5), rows([0] * 5, [0] * 5), np.ones(5, dtype=int))
    assert found == Difference(1.0, 1.0, 1.0)


def test_seeds_are_means_and_widen_the_interval() -> None:
    labels = np.ones(400, dtype=int)
    good, bad = np.ones(400, dtype=int), np.zeros(400, dtype=int)
    found = paired_difference("accuracy", rows(good, bad), rows(bad, good), labels)
    assert found == Difference(0.0, -1.0, 1.0)  # the same seed twice, half of the time
    one = paired_difference("accuracy", rows(good), rows(bad), labels)
    assert one == Difference(1.0, 1.0, 1.0)


def test_the_interval_of_many_examples_is_the_normal_one() -> None:
    """Of 1,000 examples ours has 100 more right and theirs 50: differences of mean 0.05 and variance 0.15 - 0.05^2."""
    ours, theirs = np.zeros(1000, dtype=int), np.zeros(1000, dtype=int)
    ours[:100], theirs[100:150] = 1, 1
    found = paired_difference("accuracy", rows(ours), rows(theirs), np.ones(1000, dtype=int))
    half = 1.96 * np.sqrt((0.15 - 0.05**2) / 1000)
    assert found.mean == pytest.approx(0.05)
    assert (found.low, found.high) == pytest.approx((0.05 - half, 0.05 + half), abs=0.002)


@pytest.mark.parametrize("metric", ["f1", "matthews_correlation", "pearson", "spearmanr"])
def test_any_metric(metric: str) -> None:
    labels = np.arange(40) % 2
    perfect, wrong = labels.copy(), np.where(np.arange(40) < 10, 1 - labels, labels)
    found = paired_difference(metric, rows(perfect), rows(wrong), labels, resamples=50)
    assert 0 < found.low <= found.mean <= found.high < 1


answers = arrays(np.int64, (2, 6), elements=st.integers(0, 1))


@settings(max_examples=30)
@given(answers, answers, arrays(np.int64, 6, elements=st.integers(0, 1)))
def test_swapping_the_methods_turns_the_interval_around(ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray) -> None:
    one = paired_difference("accuracy", ours, theirs, labels, resamples=40)
    other = paired_difference("accuracy", theirs, ours, labels, resamples=40)
    assert (one.mean, one.low, one.high) == pytest.approx((-other.mean, -other.high, -other.low))
    assert one.low <= one.high
    assert one == paired_difference("accuracy", ours, theirs, labels, resamples=40)
