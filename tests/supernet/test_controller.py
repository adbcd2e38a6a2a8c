"""The controller's numbers on paper."""

import dataclasses

import pytest

from autoquant.supernet.controller import Controller
from autoquant.supernet.size_terms import AugmentedLagrangian


def controller(**changes: float) -> Controller:
    numbers = {"start": 1.0, "end": 0.01, "warmup": 0.25, "anneal_after": 0.2}
    return Controller(100, AugmentedLagrangian(1000.0, 10.0, 0.5), "exponential", **{**numbers, **changes})


# from 1 at step 20 to 0.01 at step 100: a tenth every 40 steps
@pytest.mark.parametrize(("step", "temperature"), [(0, 1.0), (20, 1.0), (40, 0.1**0.5), (60, 0.1), (100, 0.01)])
def test_temperature(step: int, temperature: float) -> None:
    assert controller().temperature(step) == pytest.approx(temperature)


def test_temperature_follows_the_named_schedule() -> None:
    linear = dataclasses.replace(controller(end=0.2), schedule="linear")
    assert linear.temperature(60) == pytest.approx(0.6)


def test_bits_stay_closed_until_warmup_ends() -> None:
    assert [step for step in range(100) if controller().bits_open(step)] == list(range(25, 100))
    assert controller(warmup=0.0).bits_open(0)


def test_state_round_trip() -> None:
    ours, other = controller(), controller()
    ours.size.update(1700.0)
    assert other != ours
    other.load_state_dict(ours.state_dict())
    assert other == ours
