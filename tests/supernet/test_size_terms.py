"""What every size term promises, then each paper's numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from autoquant.core.settings import SearchSettings
from autoquant.supernet.size_terms import SIZE_TERMS, AugmentedLagrangian, PiecewiseLog, SizeTerm, SoftBarrier

BUDGET = 1000.0
every_term = pytest.mark.parametrize("name", SIZE_TERMS)


def make(name: str, **settings: float) -> SizeTerm:
    return SIZE_TERMS[name](SearchSettings(size_term=name, **settings), BUDGET)  # type: ignore[arg-type]


def spread() -> Tensor:
    return torch.tensor([[0.5, 0.5], [0.25, 0.75]])


def slope(term: SizeTerm, size: float) -> float:
    expected = torch.tensor(size, requires_grad=True)
    loss = term.loss(expected, size, spread())
    assert loss.shape == ()
    assert bool(loss.isfinite())
    (gradient,) = torch.autograd.grad(loss, expected)
    return gradient.item()


def test_every_setting_has_its_term() -> None:
    for name in SIZE_TERMS:
        assert SearchSettings(size_term=name).size_term == name  # type: ignore[arg-type]


def test_each_term_has_a_weight_of_its_own() -> None:
    """Half of the budget: the barrier's slope is weight / room, and does not look at AQ-BERT's lambda."""
    assert slope(make("soft_barrier", barrier_weight=2.0, size_weight=7.0), 500.0) == pytest.approx(2.0 / 0.5 / BUDGET)
    assert slope(make("piecewise_log", barrier_weight=7.0, size_weight=2.0), 1500.0) == pytest.approx(2.0 / 1500.0)


def test_each_term_has_its_settings_in_their_places() -> None:
    lagrangian = make("augmented_lagrangian", penalty=3.0, penalty_rate=0.5)
    assert slope(lagrangian, 1200.0) == pytest.approx(3.0 * 0.2 / BUDGET)
    lagrangian.update(1200.0)
    assert lagrangian.state_dict() == {"multiplier": pytest.approx(0.5 * 0.2)}
    assert slope(make("piecewise_log", size_tolerance=0.3), 1250.0) == 0.0
    assert slope(make("soft_barrier", size_tolerance=0.3, barrier_weight=2.0), 900.0) == pytest.approx(2.0 / 0.3 / BUDGET)


@every_term
@pytest.mark.parametrize("size", [1050.0, 1500.0, 8000.0])
def test_above_the_budget_bytes_cost_something(name: str, size: float) -> None:
    assert slope(make(name), size) > 0


@every_term
def test_well_inside_the_budget_they_cost_next_to_nothing(name: str) -> None:
    assert slope(make(name), 500.0) < 0.3 * slope(make(name), 1500.0)


@every_term
def test_the_state_is_saved_and_restored(name: str) -> None:
    ours, other = make(name), make(name)
    for size in (1700.0, 1200.0, 400.0):
        ours.update(size)
    other.load_state_dict(ours.state_dict())
    assert other.state_dict() == ours.state_dict()
    assert other.loss(torch.tensor(1300.0), 1300.0, spread()) == ours.loss(torch.tensor(1300.0), 1300.0, spread())


@every_term
def test_the_state_can_be_logged(name: str) -> None:
    assert all(isinstance(value, float) for value in make(name).state_dict().values())


# Augmented Lagrangian ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "value", "gradient"), [(1200.0, 0.8, 0.005), (1000.0, 0.0, 0.003), (800.0, -0.4, 0.001)])
def test_the_lagrangian_and_its_gradient(size: float, value: float, gradient: float) -> None:
    """3 x + 10 / 2 x^2 with x = size / 1000 - 1; its slope is (3 + 10 x) / 1000."""
    term = AugmentedLagrangian(BUDGET, penalty=10.0, penalty_rate=0.5, multiplier=3.0)
    assert term.loss(torch.tensor(size), size, spread()).item() == pytest.approx(value, abs=1e-6)
    assert slope(term, size) == pytest.approx(gradient)


def test_the_multiplier_rises_above_the_budget_and_falls_below_it() -> None:
    term = AugmentedLagrangian(BUDGET, penalty=10.0, penalty_rate=0.5)
    term.update(1200.0)
    assert term.state_dict() == {"multiplier": pytest.approx(0.1)}
    term.update(500.0)
    assert term.multiplier == pytest.approx(-0.15)


# AQ-BERT's piecewise logarithm ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assigned", "value", "gradient"),
    [
        (1101.0, 3 * math.log(1.25), 3 / 1250),  # eq. 4: above (1 + eps) V
        (1099.0, 0.0, 0.0),  # eq. 5: within the tolerance
        (901.0, 0.0, 0.0),
        (899.0, -3 * math.log(1.25), -3 / 1250),  # eq. 6: below (1 - eps) V
    ],
)
def test_what_is_assigned_decides_the_sign_and_what_is_expected_the_size(assigned: float, value: float, gradient: float) -> None:
    term, expected = PiecewiseLog(BUDGET, weight=3.0, tolerance=0.1), torch.tensor(1250.0, requires_grad=True)
    loss = term.loss(expected, assigned, spread())
    assert loss.item() == pytest.approx(value, abs=1e-6)
    (found,) = torch.autograd.grad(loss, expected)
    assert found.item() == pytest.approx(gradient)


# BP-NAS's soft barrier --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "value", "gradient"),
    [
        (0.0, 0.0, 2 / 1000),  # -2 log 1; its slope is 2 / (1000 x) with x = 1 - size / 1000
        (500.0, 2 * math.log(2), 2 / 500),
        (900.0, 2 * math.log(10), 2 / 100),
        (1000.0, 2 * (1 + math.log(10)), 2 / 100),  # the tangent at x = 0.1
        (1900.0, 2 * (10 + math.log(10)), 2 / 100),
    ],
)
def test_the_barrier_goes_on_as_its_tangent(size: float, value: float, gradient: float) -> None:
    term = SoftBarrier(BUDGET, weight=2.0, tolerance=0.1, one_hot=0.0)
    assert term.loss(torch.tensor(size), size, spread()).item() == pytest.approx(value, rel=1e-5, abs=1e-5)
    assert slope(term, size) == pytest.approx(gradient, rel=1e-4)


def test_the_regulariser_is_zero_only_where_one_choice_has_it_all() -> None:
    term = SoftBarrier(BUDGET, weight=0.0, tolerance=0.1, one_hot=4.0)
    sizes = torch.tensor(1500.0), 1500.0
    # (0.5 * 0.5 + 0.75 * 0.25) / 2 = 0.21875
    assert term.loss(*sizes, spread()).item() == pytest.approx(4 * 0.21875)
    assert term.loss(*sizes, torch.eye(2)).item() == 0.0


def test_the_regulariser_drives_probabilities_apart() -> None:
    logits = torch.tensor([[0.3, 0.0, -0.1], [0.0, 0.5, 0.4]], requires_grad=True)
    term, optimizer = SoftBarrier(BUDGET, weight=0.0, tolerance=0.1, one_hot=1.0), torch.optim.Adam([logits], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        term.loss(torch.tensor(0.0), 0.0, torch.softmax(logits, dim=1)).backward()
        optimizer.step()
    assert torch.softmax(logits, dim=1).amax(dim=1).min().item() > 0.99
