"""Which units go, and what the rest gets: against trying every set of units."""

from itertools import combinations

import numpy as np
import pytest

from autoquant.core.allocate import allocate
from autoquant.core.cost import ByteModel, ChoiceTable, choice_table
from autoquant.core.derive import at_price, derive, fix_units, price, priced, remove_by_name, unit_contents, weigh
from autoquant.core.errors import BudgetError
from autoquant.core.structure import find_units
from autoquant.core.subgroup import Matrix, Partition, even_sizes

SIZES = {"query": 32, "key": 32, "value": 32, "attention_output": 32}


def make_table(units: bool = True) -> ChoiceTable:
    """One attention block of four heads."""
    matrices = [Matrix(f"0.{k}.weight", size, 32, k, 0) for k, size in SIZES.items()]
    partitions = tuple(Partition(m, (0, 1, 2, 4), even_sizes(m.rows, 4)) for m in matrices)
    rest = {f"0.{k}.bias": (size,) for k, size in SIZES.items()}
    return choice_table(ByteModel(partitions, rest, "row", "{}", find_units(matrices, 4 if units else 0, 0)))


TABLE = make_table()


def draw_values(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Losses that fall fourfold a bit; removing a head costs about what its rows cost at 0 bits."""
    draw = np.random.default_rng(seed)
    importance = draw.lognormal(0.0, 1.0, len(TABLE))
    values = -importance[:, None] * 0.25 ** np.asarray(TABLE.widths, dtype=float)
    assert TABLE.removable is not None
    return values, -(TABLE.removable.structure.rows.T @ importance) * draw.uniform(0.2, 1.0, 4)


def middle(share: float) -> int:
    return int(TABLE.smallest() + share * (TABLE.largest() - TABLE.smallest()))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_the_best_set_of_units_is_found_or_nearly(seed: int, share: float) -> None:
    values, removal = draw_values(seed)
    budget = middle(share)
    derived = derive(values, TABLE, budget, removal)
    assert derived.table.total(derived.choice) <= budget

    def reached(out: tuple[int, ...]) -> float:
        gone = np.isin(np.arange(4), out)
        smaller, moved, _, _ = fix_units(values, TABLE, gone)
        choice = allocate(moved, smaller, budget)
        return float(moved[np.arange(len(choice)), choice].sum() + removal[gone].sum())

    best = max(reached(out) for count in range(4) for out in combinations(range(4), count))
    ours = reached(tuple(int(name.split(".")[-1]) for name in derived.allocation.removed))
    nothing = reached(())
    assert ours >= nothing
    assert best - ours <= 0.25 * (best - nothing) + 1e-9


def test_nothing_is_removed_unless_told_what_removal_is_worth() -> None:
    values, removal = draw_values(0)
    plain = TABLE.to_allocation(allocate(values, TABLE, middle(0.2)))
    assert derive(values, TABLE, middle(0.2)).allocation == plain
    assert derive(values, make_table(units=False), middle(0.2), removal).allocation == plain
    assert derive(values, TABLE, middle(0.2), removal - 1e6).allocation == plain


def test_nothing_is_removed_for_nothing() -> None:
    nothing = np.zeros((len(TABLE), len(TABLE.widths)))
    assert derive(nothing, TABLE, middle(0.5), np.zeros(4)).allocation.removed == ()


def test_what_costs_nothing_to_remove_goes_but_for_one() -> None:
    values, removal = draw_values(1)
    derived = derive(values, TABLE, middle(0.2), np.zeros_like(removal))
    assert len(derived.allocation.removed) == 3
    assert {len(bits) for bits in derived.allocation.bits.values()} == {1, 4}


def test_removals_of_other_prices_than_the_budgets_are_tried() -> None:
    values, removal = draw_values(6)
    _, gone = at_price(values, TABLE, price(values, TABLE, middle(0.1), removal), removal)
    assert gone.tolist() == [False, True, True, True]
    assert derive(values, TABLE, middle(0.1), removal).allocation.removed == ("0.head.2", "0.head.3")


def test_a_budget_that_only_removals_meet_is_refused() -> None:
    values, removal = draw_values(0)
    with pytest.raises(BudgetError, match="below the smallest allocation"):
        derive(values, TABLE, TABLE.smallest() - 1, np.zeros_like(removal))


def test_what_a_unit_holds_is_worth_by_hand() -> None:
    """At a price of 1 a sub-group of 2 bits, worth 100, weighs 8 rows of 8 bytes of codes and 2 of scale: 20 are left.

    A head has one of Q, K and V each and a quarter of the output's four, whose 16 bytes of scales stay; of its own it has 24
    biases of 2 bytes and 3 bytes of layout: 3 * 20 + 4 * (20 + 16) / 4 - 51 = 45.
    """
    values = np.where(np.asarray(TABLE.widths) == 2, 100.0, 0.0) * np.ones((len(TABLE), 1))
    np.testing.assert_allclose(unit_contents(priced(values, TABLE, 1.0), TABLE, 1.0), 45.0)


def test_the_price_weighs_the_budget_with_units_out() -> None:
    values, removal = draw_values(2)
    budget = middle(0.3)
    rate = price(values, TABLE, budget, removal)
    assert weigh(TABLE, *at_price(values, TABLE, rate, removal)) <= budget
    assert weigh(TABLE, *at_price(values, TABLE, rate * 0.999, removal)) > budget


def test_values_move_with_their_rows_and_columns() -> None:
    """A head's rows are a quarter of Q, K and V; its columns take a quarter of the value of every output row."""
    values = np.arange(len(TABLE), dtype=float)[:, None] * np.ones((1, len(TABLE.widths)))
    gone = np.array([False, True, False, False])
    smaller, moved, origins, names = fix_units(values, TABLE, gone)
    assert names == ("0.head.1",)
    assert origins.tolist() == [0, 2, 3, 4, 6, 7, 8, 10, 11, 12, 13, 14, 15]
    np.testing.assert_allclose(moved[:, 0], [0, 2, 3, 4, 6, 7, 8, 10, 11, *(0.75 * np.arange(12, 16))])
    again, by_name = remove_by_name(values, TABLE, names)
    np.testing.assert_array_equal(by_name, moved)
    assert [p.matrix for p in again.partitions] == [p.matrix for p in smaller.partitions]
