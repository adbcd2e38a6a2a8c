"""From what is most probable to what fits, the cheapest change first."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoquant.core.cost import ChoiceTable
from autoquant.core.errors import BudgetError
from autoquant.core.repair import repair


def table(bytes_: np.ndarray, allowed: np.ndarray | None = None, fixed: int = 0) -> ChoiceTable:
    count, widths = bytes_.shape
    allowed = np.ones(bytes_.shape, dtype=bool) if allowed is None else allowed
    return ChoiceTable((), tuple(range(widths)), bytes_, allowed, np.ones(count, dtype=np.int64), fixed)


BY_HAND = np.array([[0, 10, 20], [0, 10, 20], [0, 10, 20]])
VALUES = np.array([[0.0, 5.0, 6.0], [0.0, 4.0, 9.0], [0.0, 1.0, 1.5]])


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (65, [2, 2, 2]),  # 5 bytes of overhead: everything fits
        (64, [2, 2, 1]),  # the third loses 0.05 a byte
        (54, [1, 2, 1]),  # then the first and the third's last ten lose 0.1 a byte: the first of them
        (25, [1, 1, 0]),  # ... the third is gone at 0.1, the second loses 0.5 for ten and 0.45 for twenty
    ],
)
def test_by_hand(budget: int, expected: list[int]) -> None:
    found = repair(VALUES, table(BY_HAND, fixed=5), np.array([2, 2, 2]), budget)
    if budget == 25:
        assert table(BY_HAND, fixed=5).total(found) == 25
    else:
        assert found.tolist() == expected


def test_what_is_left_is_spent_on_the_best_gain_per_byte() -> None:
    assert repair(VALUES, table(BY_HAND), np.array([0, 0, 0]), 20).tolist() == [1, 1, 0]
    assert repair(VALUES, table(BY_HAND), np.array([0, 0, 0]), 25).tolist() == [1, 1, 0]


def test_a_choice_that_fits_exactly_stays() -> None:
    assert repair(VALUES, table(BY_HAND), np.array([0, 2, 1]), 30).tolist() == [0, 2, 1]


def test_the_input_is_left_alone_and_too_small_a_budget_is_refused() -> None:
    choice = np.array([2, 2, 2])
    repair(VALUES, table(BY_HAND), choice, 10)
    assert choice.tolist() == [2, 2, 2]
    with pytest.raises(BudgetError, match="Budget 4 bytes is below the smallest allocation, 5 bytes"):
        repair(VALUES, table(BY_HAND, fixed=5), choice, 4)


@given(seed=st.integers(0, 2**31), share=st.floats(0, 1.2), count=st.integers(1, 30))
def test_within_the_budget_allowed_and_nothing_more_fits(seed: int, share: float, count: int) -> None:
    draw = np.random.default_rng(seed)
    allowed = draw.random((count, 4)) < 0.7
    allowed[np.arange(count), draw.integers(0, 4, count)] = True
    ours = table(np.sort(draw.integers(0, 100, (count, 4)), axis=1), allowed, fixed=7)
    budget = int(ours.smallest() + share * (ours.largest() - ours.smallest()))
    values = draw.normal(size=(count, 4))
    start = np.where(allowed, values, -np.inf).argmax(axis=1)
    choice = repair(values, ours, start, budget)
    assert allowed[np.arange(count), choice].all()
    assert ours.total(choice) <= budget
    extra = ours.bytes - ours.bytes[np.arange(count), choice][:, None]
    assert not (allowed & (extra > 0) & (extra <= budget - ours.total(choice))).any()
    if ours.total(start) == budget:
        np.testing.assert_array_equal(choice, start)
