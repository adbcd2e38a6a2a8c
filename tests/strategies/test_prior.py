"""Before a step was made, a search has the sensitivity knapsack's solution at every budget; what it learns is added to that."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from autoquant.core.allocate import allocate
from autoquant.core.cost import ChoiceTable
from autoquant.core.derive import derive, price
from autoquant.strategies import STRATEGIES, Problem
from autoquant.strategies.prior import Prior, learned_values, prior_values, sensitivity_prior, start_from, trusting
from autoquant.strategies.sensitivity import Sensitivity

MakeProblem = Callable[..., Problem]
SHARES = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
STRENGTH = 4.0


def bell_shaped(table: ChoiceTable, seed: int) -> np.ndarray:
    """Sensitivities as they are measured: an importance per weight, falling fourfold a bit."""
    draw = np.random.default_rng(seed)
    importance = draw.lognormal(0.0, 1.5, len(table)) * 1e-6
    noise = draw.lognormal(0.0, 0.1, table.bytes.shape)
    return importance[:, None] * table.parameters[:, None] * 0.25 ** np.asarray(table.widths, dtype=float) * noise


def prior(sensitivity: np.ndarray, table: ChoiceTable, budget_bytes: int, strength: float) -> Prior:
    return sensitivity_prior(Sensitivity(sensitivity, np.zeros(0)), table, budget_bytes, strength)


def weighed(sensitivity: np.ndarray, table: ChoiceTable, rate: float) -> int:
    cost = np.where(table.allowed, sensitivity + rate * table.bytes, np.inf)
    return table.total(cost.argmin(axis=1))


@pytest.mark.parametrize("share", SHARES)
def test_the_price_is_the_least_that_meets_the_budget(share: float, make_problem: MakeProblem) -> None:
    problem = make_problem(share)
    for sensitivity in (problem.sensitivity.choices, bell_shaped(problem.table, 1)):
        rate = price(-sensitivity, problem.table, problem.budget.bytes)
        assert weighed(sensitivity, problem.table, rate) <= problem.budget.bytes
        free = weighed(sensitivity, problem.table, 1e-30)  # what is never used is worth no bytes
        assert weighed(sensitivity, problem.table, rate * (1 - 1e-6)) > problem.budget.bytes or free <= problem.budget.bytes


def test_a_price_by_hand() -> None:
    """From 2 to 4 bits the first sub-group saves 30 for 10 bytes, the second 10: one of them fits at a price of 1 to 3."""
    allowed, parameters = np.ones((2, 2), dtype=bool), np.array([40, 40])
    table = ChoiceTable((), (2, 4), np.array([[10, 20], [10, 20]]), allowed, parameters, fixed=5)
    sensitivity = np.array([[40.0, 10.0], [40.0, 30.0]])
    assert price(-sensitivity, table, 35) == pytest.approx(1.0)
    assert price(-sensitivity, table, 25) == pytest.approx(3.0)
    assert price(-sensitivity, table, 45) < 1e-20


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("seed", range(3))
def test_the_prior_is_the_sensitivity_knapsack(share: float, seed: int, make_problem: MakeProblem) -> None:
    problem = make_problem(share)
    table, budget = problem.table, problem.budget.bytes
    # the seed 0 stands for the measured ones; above some budget these are worth no more bytes, and any choice is as good
    sensitivity = bell_shaped(table, seed) if seed or share > 0.6 else problem.sensitivity.choices
    supernet = problem.make_supernet()
    start_from(supernet, prior(sensitivity, table, budget, STRENGTH))
    ours = allocate(supernet.values(nats_per_byte=8 * STRENGTH), table, budget)
    np.testing.assert_array_equal(ours, allocate(-sensitivity, table, budget))


@pytest.mark.parametrize("searched", [0.2, 0.5])
@pytest.mark.parametrize("share", [0.08, 0.2, 0.5])
def test_a_search_that_learned_nothing_gives_the_sensitivity_knapsack_of_any_budget(
    searched: float, share: float, make_problem: MakeProblem
) -> None:
    """Choices beyond the range of the logits included: a smaller budget must not take them for harmless."""
    problem = make_problem(searched)
    table, smaller = problem.table, make_problem(share).budget.bytes
    sensitivity = bell_shaped(table, 1)
    sensitivity[::5] *= 1e3  # far beyond the range
    start = prior(sensitivity, table, problem.budget.bytes, STRENGTH)
    assert (start.beyond < 0).any()
    supernet = problem.make_supernet()
    start_from(supernet, start)
    values, _ = learned_values(supernet, STRENGTH, start)
    np.testing.assert_array_equal(allocate(values, table, smaller), allocate(-sensitivity, table, smaller))


def test_values_before_a_step_are_the_prior_s(make_problem: MakeProblem, make_structured: MakeProblem) -> None:
    for problem in (make_problem(0.2), make_structured(0.2)):
        start = sensitivity_prior(problem.sensitivity, problem.table, problem.budget.bytes, STRENGTH)
        supernet = problem.make_supernet()
        start_from(supernet, start)
        values, removal = learned_values(supernet, STRENGTH, start)
        expected, expected_removal = prior_values(start, problem.table, STRENGTH)
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-2)
        if removal is not None:
            np.testing.assert_allclose(removal, expected_removal, rtol=1e-4, atol=1e-2)


def test_trust_by_hand() -> None:
    """A quarter of the way from the prior's value to the learned one; what is not allowed stays so."""
    before = np.array([[1.0, 4.0, -np.inf]]), np.array([2.0])
    values, removal = trusting(np.array([[5.0, 0.0, -np.inf]]), np.array([4.0]), before, 0.25)
    np.testing.assert_array_equal(values, [[2.0, 3.0, -np.inf]])
    assert removal is not None
    np.testing.assert_array_equal(removal, [2.5])
    assert trusting(np.array([[5.0, 0.0, -np.inf]]), None, before, 0.25)[1] is None


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_the_prior_is_a_distribution_that_the_logits_take_over(share: float, make_problem: MakeProblem) -> None:
    problem = make_problem(share)
    start = sensitivity_prior(problem.sensitivity, problem.table, problem.budget.bytes, STRENGTH)
    logs = start.choices
    np.testing.assert_allclose(np.exp(logs).sum(axis=1), 1.0)
    assert np.array_equal(np.isfinite(logs), problem.table.allowed)
    supernet = problem.make_supernet()
    start_from(supernet, start)
    with torch.no_grad():
        np.testing.assert_allclose(supernet.probabilities().numpy(), np.exp(logs), atol=1e-5)


def test_bits_on_what_does_not_matter_are_worth_nothing(make_problem: MakeProblem) -> None:
    """However unlikely a choice, its value before its price is no better than that of fewer bits (`reversed` relies on it)."""
    problem = make_problem(0.2)
    sensitivity = bell_shaped(problem.table, 1)
    idle = np.flatnonzero(problem.table.allowed[:, 0])[::2]
    sensitivity[idle] *= 1e-6
    supernet = problem.make_supernet()
    start_from(supernet, prior(sensitivity, problem.table, problem.budget.bytes, STRENGTH))
    values = supernet.values(nats_per_byte=8 * STRENGTH)[idle] / problem.table.parameters[idle, None]
    assert (values - values[:, :1] < 0.02).all()
    assert np.isfinite(values).all()


def test_a_prior_by_hand() -> None:
    """Strength 2, price 1, ten weights each: a choice of 10 bytes that costs 15 is 8 (15 + 10) / 10 = 20 bits per weight."""
    allowed, parameters = np.ones((2, 2), dtype=bool), np.array([10, 10])
    table = ChoiceTable((), (2, 4), np.array([[10, 20], [10, 20]]), allowed, parameters, fixed=0)
    sensitivity = np.array([[15.0, 4.5], [15.0, 5.0]])
    assert price(-sensitivity, table, 35) == pytest.approx(1.0)
    logs = prior(sensitivity, table, 35, strength=2.0).choices
    bits = np.array([[20.0, 19.6], [20.0, 20.0]])
    np.testing.assert_allclose(logs[:, 0] - logs[:, 1], -2.0 * (bits[:, 0] - bits[:, 1]), atol=1e-9)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
def test_the_prior_with_units_is_the_sensitivity_derivation(share: float, make_structured: MakeProblem) -> None:
    """Before it has learned anything the search derives what `fisher` does, units and bits."""
    problem = make_structured(share)
    supernet = problem.make_supernet()
    start = sensitivity_prior(problem.sensitivity, problem.table, problem.budget.bytes, STRENGTH)
    start_from(supernet, start)
    values, removal = learned_values(supernet, STRENGTH, start)
    ours = derive(values, problem.table, problem.budget.bytes, removal).allocation
    assert ours == STRATEGIES["fisher"].search(problem).allocation
