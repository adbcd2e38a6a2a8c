"""The controller's numbers on paper."""

import pytest
import torch

from autoquant.supernet.controller import Controller


def controller(**changes: float) -> Controller:
    numbers = {"start": 1.0, "end": 0.01, "warmup": 0.25, "anneal_after": 0.2, "penalty": 10.0, "penalty_rate": 0.5}
    return Controller(100, 1000.0, "exponential", **{**numbers, **changes})


# from 1 at step 20 to 0.01 at step 100: a tenth every 40 steps
@pytest.mark.parametrize(("step", "temperature"), [(0, 1.0), (20, 1.0), (40, 0.1**0.5), (60, 0.1), (100, 0.01)])
def test_temperature(step: int, temperature: float) -> None:
    assert controller().temperature(step) == pytest.approx(temperature)


def test_temperature_follows_the_named_schedule() -> None:
    linear = Controller(100, 1000.0, "linear", start=1.0, end=0.2, anneal_after=0.2)
    assert linear.temperature(60) == pytest.approx(0.6)


def test_bits_stay_closed_until_warmup_ends() -> None:
    assert [step for step in range(100) if controller().bits_open(step)] == list(range(25, 100))
    assert controller(warmup=0.0).bits_open(0)


@pytest.mark.parametrize(("size", "term", "slope"), [(1200.0, 0.8, 0.005), (1000.0, 0.0, 0.003), (800.0, -0.4, 0.001)])
def test_size_term_and_its_gradient(size: float, term: float, slope: float) -> None:
    """3 x + 10 / 2 x^2 with x = size / 1000 - 1; its slope is (3 + 10 x) / 1000."""
    expected = torch.tensor(size, requires_grad=True)
    loss = controller(multiplier=3.0).size_term(expected)
    assert loss.item() == pytest.approx(term, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, expected)
    assert gradient.item() == pytest.approx(slope)


def test_the_multiplier_rises_above_the_budget_and_falls_below_it() -> None:
    ours = controller()
    ours.update_multiplier(1200.0)
    assert ours.multiplier == pytest.approx(0.1)
    ours.update_multiplier(500.0)
    assert ours.multiplier == pytest.approx(-0.15)


def test_state_round_trip() -> None:
    ours, other = controller(), controller()
    ours.update_multiplier(1700.0)
    other.load_state_dict(ours.state_dict())
    assert other == ours
