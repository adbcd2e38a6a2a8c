"""What a sweep asks for."""

from autoquant.pareto.settings import spread_budgets


def test_points_are_even_on_a_log_scale() -> None:
    assert spread_budgets([4, 1], 3) == (2**20, 2**21, 2**22)
    assert spread_budgets([4, 1], None) == (2**20, 2**22)
