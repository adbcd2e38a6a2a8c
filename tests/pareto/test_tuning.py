"""What a sampler may draw from a range."""

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from autoquant.pareto.tuning import parse_range, suggest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1:16", IntDistribution(1, 16, log=True)),
        ("4:8", IntDistribution(4, 8)),
        ("0:400", IntDistribution(0, 400)),  # there is no logarithm of 0
        ("1e-4:1e-2", FloatDistribution(1e-4, 1e-2, log=True)),
        ("1:2.5", FloatDistribution(1, 2.5)),
        ("default,rows", CategoricalDistribution(("default", "rows"))),
    ],
)
def test_wide_ranges_are_drawn_on_a_log_scale(text: str, expected: BaseDistribution) -> None:
    trial = optuna.create_study().ask()
    value = suggest(trial, "x", parse_range("x", text))
    assert trial.distributions == {"x": expected}
    assert trial.params == {"x": value}
