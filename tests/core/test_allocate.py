import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from autoquant.core.allocate import allocate
from autoquant.core.cost import ChoiceTable
from autoquant.core.errors import BudgetError
from autoquant.core.subgroup import Matrix, Partition

WIDTHS = np.array([0, 1, 2, 3, 4, 8])


def table(costs: list[list[int]] | np.ndarray, allowed: np.ndarray | None = None, fixed: int = 0) -> ChoiceTable:
    costs = np.asarray(costs)
    partition = Partition(Matrix("w", len(costs), 1, "query", 0), tuple(range(costs.shape[1])), (1,) * len(costs))
    allowed = np.ones(costs.shape, dtype=bool) if allowed is None else allowed
    return ChoiceTable((partition,), partition.widths, costs, allowed, np.ones(len(costs), dtype=np.int64), fixed)


def instance(seed: int, count: int, concave: bool) -> tuple[np.ndarray, ChoiceTable]:
    """Sub-groups of ragged sizes: values rise with the width, concave (as sensitivities do) or in any steps."""
    draw = np.random.default_rng(seed)
    rows = draw.integers(1, 130, count)
    costs = rows[:, None] * ((draw.integers(16, 800, count)[:, None] * WIDTHS + 7) // 8 + 2 * (WIDTHS > 0))
    weight = draw.lognormal(0, 1.5, count)[:, None]
    steps = draw.random((count, len(WIDTHS)))
    values = -weight * 4.0**-WIDTHS if concave else weight * np.cumsum(steps, axis=1)
    return values, table(costs)


def total(values: np.ndarray, choice: np.ndarray) -> float:
    return float(values[np.arange(len(values)), choice].sum())


def proven(values: np.ndarray, costs: np.ndarray, budget: int) -> float:
    """The best value of any choice of at most `budget` bytes, by branch and bound."""
    count, widths = values.shape
    one_each = np.kron(np.eye(count), np.ones(widths))
    constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(costs.reshape(1, -1), 0, budget)]
    result = milp(-values.ravel(), integrality=np.ones(values.size), bounds=Bounds(0, 1), constraints=constraints)
    assert result.success
    return float(-result.fun)


def test_hand_computed() -> None:
    values = np.array([[0.0, 6.0, 7.0], [0.0, 5.0, 9.0], [0.0, 1.0, 2.0]])
    costs = [[0, 2, 4], [0, 2, 4], [0, 2, 4]]
    # 6 bytes: 6 + 9 beats every other three steps of 2 bytes
    assert allocate(values, table(costs), 6).tolist() == [1, 2, 0]
    assert allocate(values, table(costs, fixed=100), 106).tolist() == [1, 2, 0]
    assert allocate(values, table(costs), 12).tolist() == [2, 2, 2]


def test_a_swap_finds_what_greed_misses() -> None:
    # the best value per byte first takes 10 for 6 bytes, after which 13 for 10 no longer fits
    values = np.array([[0.0, 10.0], [0.0, 13.0]])
    assert allocate(values, table([[0, 6], [0, 10]]), 10).tolist() == [0, 1]


def test_what_is_left_over_goes_to_what_fits_it() -> None:
    # the first takes 5 of the 6 bytes; the second, next best by the byte, no longer fits, and the third does
    values = np.array([[0.0, 10.0], [0.0, 6.0], [0.0, 1.0]])
    assert allocate(values, table([[0, 5], [0, 5], [0, 1]]), 6).tolist() == [1, 0, 1]


def test_forbidden_choices_are_never_made() -> None:
    values = np.array([[9.0, 0.0, 5.0], [0.0, 1.0, 9.0]])
    allowed = np.array([[False, True, True], [True, True, False]])
    assert allocate(values, table([[0, 2, 4], [0, 2, 4]], allowed), 6).tolist() == [2, 1]
    assert allocate(values, table([[0, 2, 4], [0, 2, 4]], allowed), 2).tolist() == [1, 0]
    with pytest.raises(BudgetError, match="Budget 1 bytes is below the smallest allocation, 2 bytes"):
        allocate(values, table([[0, 2, 4], [0, 2, 4]], allowed), 1)


def test_falling_values_still_fill_the_budget() -> None:
    values, costs = instance(0, 300, concave=True)
    budget = int(0.4 * costs.largest())
    choice = allocate(-values, costs, budget)
    assert 0.99 * budget <= costs.total(choice) <= budget


def test_fixed_bytes_count_as_used() -> None:
    # 90 bytes and the 900 of the rest fill 99 % of the budget, so none are bought at a loss
    assert allocate(np.array([[0.0, 10.0, 9.0]]), table([[0, 90, 100]], fixed=900), 1000).tolist() == [1]


def test_bytes_are_rewarded_just_enough_to_fill_the_budget() -> None:
    # a hundred bytes that cost 1, 2, ... 100 of value: 99 are enough, and the dearest is spared
    values = np.stack([np.zeros(100), -np.arange(1.0, 101.0)], axis=1)
    assert allocate(values, table([[0, 1]] * 100), 100).tolist() == [1] * 99 + [0]


@pytest.mark.parametrize(("counts", "gap"), [((60, 120), 1e-2), ((200, 300), 1e-3)])
@settings(deadline=None, max_examples=12)
@given(data=st.data())
def test_close_to_the_proven_optimum(counts: tuple[int, int], gap: float, data: st.DataObject) -> None:
    count, concave = data.draw(st.integers(*counts)), data.draw(st.booleans())
    values, costs = instance(data.draw(st.integers(0, 2**31)), count, concave)
    budget = int(costs.smallest() + data.draw(st.floats(0.15, 0.9)) * (costs.largest() - costs.smallest()))
    choice = allocate(values, costs, budget)
    assert costs.total(choice) <= budget
    span = total(values, np.full(count, len(WIDTHS) - 1)) - total(values, np.zeros(count, dtype=int))
    assert total(values, choice) >= proven(values, costs.bytes, budget) - gap * span


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(100, 600),
    share=st.floats(0.05, 0.95),
    kind=st.sampled_from(["concave", "steps", "random", "zero"]),
)
def test_never_over_and_at_least_99_percent_used(seed: int, count: int, share: float, kind: str) -> None:
    values, costs = instance(seed, count, concave=kind == "concave")
    if kind == "random":
        values = np.random.default_rng(seed).normal(size=values.shape)
    if kind == "zero":
        values = np.zeros_like(values)
    budget = int(costs.smallest() + share * (costs.largest() - costs.smallest()))
    choice = allocate(values, costs, budget)
    assert costs.total(choice) <= budget
    assert costs.total(choice) >= min(0.99 * budget, costs.largest())


def test_same_values_same_choice() -> None:
    values, costs = instance(4, 200, concave=False)
    budget = costs.largest() // 3
    first = allocate(values, costs, budget)
    assert allocate(values.copy(), costs, budget).tolist() == first.tolist()
