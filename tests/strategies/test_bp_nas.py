"""The barrier brings the search inside by itself, and the regulariser makes up its mind."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from autoquant.strategies import STRATEGIES, Problem
from autoquant.strategies.dnas import Dnas

MakeProblem = Callable[..., Problem]
FAST: dict[str, Any] = {"steps": 40, "warmup": 0.0, "architecture_learning_rate": 0.2}


def test_the_barrier_brings_the_search_inside(make_problem: MakeProblem) -> None:
    problem = make_problem(0.2, **FAST)
    result = STRATEGIES["bp-nas"].search(problem)
    sizes = [line["expected_bytes"] for line in problem.context.run.read_log()]
    assert sizes[0] > 1.02 * problem.budget.bytes
    assert sizes[-1] < problem.budget.bytes
    assert result.derived_bytes is not None


def test_the_regulariser_makes_choices_one_hot(make_problem: MakeProblem) -> None:
    certain = []
    for weight in (0.0, 100.0):
        result = STRATEGIES["bp-nas"].search(make_problem(0.4, stage=f"weight{weight}", one_hot_weight=weight, **FAST))
        assert result.values is not None
        table = make_problem().table
        logs = np.where(table.allowed, result.values / table.parameters[:, None], -np.inf)
        certain.append(np.exp(logs).max(axis=1)[table.allowed.all(axis=1)].mean())
    assert certain[1] > certain[0] + 0.05


def test_it_starts_from_nothing(make_problem: MakeProblem) -> None:
    problem = make_problem(0.4, steps=2, warmup=0.0, prior_strength=9.0)
    STRATEGIES["bp-nas"].search(problem)
    first = next(line["expected_bytes"] for line in problem.context.run.read_log())
    supernet = problem.make_supernet()
    assert first == np.float32(supernet.expected_bytes().item())


def test_the_most_probable_choices_are_the_result(make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(Dnas, "search", lambda _, problem: asked.append(problem.search))
    STRATEGIES["bp-nas"].search(make_problem(prior_strength=9.0, derive="knapsack", one_hot_weight=3.0))
    (search,) = asked
    assert (search.size_term, search.prior_strength, search.derive) == ("soft_barrier", 0.0, "argmax")
    assert search.one_hot_weight == 3.0
