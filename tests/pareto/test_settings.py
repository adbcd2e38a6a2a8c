"""What a sweep asks for."""

from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from autoquant.pareto.settings import spread_budgets
from autoquant.pareto.storage import default_storage


def test_points_are_even_on_a_log_scale() -> None:
    assert spread_budgets([4, 1], 3) == (2**20, 2**21, 2**22)
    assert spread_budgets([4, 1], None) == (2**20, 2**22)


@pytest.mark.parametrize("name", ["plain", "two words", "what?now", "run%20one", "#é@"])
def test_the_study_lies_in_the_sweeps_folder_whatever_that_is_called(tmp_path: Path, name: str) -> None:
    assert make_url(default_storage(tmp_path / name)).database == str(tmp_path / name / "study.db")
