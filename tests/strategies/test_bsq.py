"""The size comes down to the budget by planes that empty; what the loss does not feel goes first."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from autoquant.strategies import STRATEGIES, Problem, bsq

MakeProblem = Callable[..., Problem]
FAST: dict[str, Any] = {"steps": 60, "requantise_every": 2}


def test_the_size_falls_to_the_budget(make_problem: MakeProblem) -> None:
    problem = make_problem(0.4, **FAST)
    result = STRATEGIES["bsq"].search(problem)
    sizes = [line["size_bytes"] for line in problem.context.run.read_log() if line["stage"] == problem.stage]
    assert sizes[0] == problem.table.largest()
    assert all(a >= b for a, b in pairwise(sizes))
    assert sizes[-1] <= problem.budget.bytes
    assert result.derived_bytes is not None
    assert len(set(problem.table.to_choice(result.allocation))) > 2


def test_nothing_is_dropped_inside_the_budget(make_problem: MakeProblem) -> None:
    problem = make_problem(1.0, **FAST)
    result = STRATEGIES["bsq"].search(problem)
    assert result.derived_bytes == problem.table.largest()


def test_planes_the_loss_does_not_feel_go_first(make_problem: MakeProblem) -> None:
    problem = make_problem(0.4, steps=8)
    training = bsq.Training(problem)
    training.step(0)
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    state = training.optimizer.state[training.model.get_parameter(name)]
    half = len(state["exp_avg_sq"]) // 2
    state["exp_avg_sq"][:half] = 1e-6
    state["exp_avg_sq"][half:] = 1e-3
    shares = training._shares(name)
    rows = torch.tensor(training.planes[name].partition.sizes).cumsum(0) <= half
    assert shares[0, rows].min() > 100 * shares[0, ~rows].max()
    assert (shares[0] > shares[1]).all()


def test_the_lasso_follows_its_line() -> None:
    """From 100 to 20 bytes in 8 steps: 60 is the line at step 4."""
    lasso = bsq.Lasso(first=100.0, budget_bytes=20, arrival=8.0, alpha=1.0)
    assert lasso.pressure == 1.0
    lasso.update(61.0, 4)
    assert lasso.pressure == pytest.approx(bsq.FACTOR)
    lasso.update(59.0, 4)
    assert lasso.pressure == pytest.approx(1.0)
    lasso.update(20.0, 5)
    assert lasso.pressure == 0.0


def test_widths_in_between_weigh_in_proportion(make_problem: MakeProblem) -> None:
    problem = make_problem(0.4)
    training, table = bsq.Training(problem), problem.table
    assert training.size() == table.largest()
    name = "bert.encoder.layer.0.output.dense.weight"
    planes = training.planes[name]
    planes.alive[:3] = False  # five bits, a quarter of the way from four to eight
    rows = table.slices()[name]
    eight, four = (table.bytes[rows, table.widths.index(width)].sum() for width in (8, 4))
    assert training.size() == pytest.approx(table.largest() - 0.75 * (eight - four))
    assert set(training.bits()[rows]) == {5}


def test_the_teacher_stays(make_problem: MakeProblem) -> None:
    problem = make_problem(steps=3)
    teacher = problem.whole().teacher
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    STRATEGIES["bsq"].search(problem)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert np.isfinite([line["loss"] for line in problem.context.run.read_log()]).all()
