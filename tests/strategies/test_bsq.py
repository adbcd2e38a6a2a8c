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
    assert sizes[-1] > 0.9 * problem.budget.bytes
    assert all(a >= b for a, b in pairwise(sizes))
    assert sizes[-1] <= problem.budget.bytes
    assert result.derived_bytes is not None
    assert len(set(problem.table.to_choice(result.allocation))) > 2
    assert result.values is not None
    gained = (result.values[:, -1] - result.values[:, 0])[problem.table.allowed.all(axis=1)]  # what the repair goes by
    assert (gained >= 0).all()
    assert gained.any()


def test_nothing_is_dropped_inside_the_budget(make_problem: MakeProblem) -> None:
    problem = make_problem(1.0, **FAST)
    result = STRATEGIES["bsq"].search(problem)
    assert result.derived_bytes == problem.table.largest()


def test_planes_the_loss_does_not_feel_go_first(make_problem: MakeProblem) -> None:
    problem = make_problem(0.4, steps=8)
    training = bsq.Training(problem)
    training._step_weights(0)
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    state = training.optimizer.state[training.model.get_parameter(name)]
    half = len(state["exp_avg_sq"]) // 2
    state["exp_avg_sq"][:half] = 1e-6
    state["exp_avg_sq"][half:] = 1e-3
    shares = training._shares(name)
    rows = torch.tensor(training.planes[name].partition.sizes).cumsum(0) <= half
    assert shares[0, rows].min() > 100 * shares[0, ~rows].max()
    assert (shares[0] > shares[1]).all()


@pytest.mark.parametrize("every", [2, 5])
def test_the_size_stays_near_its_line(every: int, make_problem: MakeProblem) -> None:
    problem = make_problem(0.4, steps=60, requantise_every=every)
    STRATEGIES["bsq"].search(problem)
    first, budget = problem.table.largest(), problem.budget.bytes
    for line in problem.context.run.read_log():
        if line["stage"] == problem.stage and line["step"] % every == every - 1:
            wanted = first + (budget - first) * min(1.0, (line["step"] + 1) / (bsq.ARRIVAL * 60))
            assert line["size_bytes"] == pytest.approx(wanted, abs=0.2 * (first - budget))


def test_widths_in_between_weigh_in_proportion(make_problem: MakeProblem) -> None:
    problem = make_problem(0.4)
    training, table = bsq.Training(problem), problem.table
    assert training.size(training.bits()) == training.start == table.largest()
    name = "bert.encoder.layer.0.output.dense.weight"
    planes = training.planes[name]
    planes.alive[:3] = False  # five bits, a quarter of the way from four to eight
    rows = table.slices()[name]
    eight, four = (table.bytes[rows, table.widths.index(width)].sum() for width in (8, 4))
    assert training.size(training.bits()) == pytest.approx(table.largest() - 0.75 * (eight - four))
    assert set(training.bits()[rows]) == {5}


def test_the_teacher_stays(make_problem: MakeProblem) -> None:
    problem = make_problem(steps=3)
    teacher = problem.whole().teacher
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    STRATEGIES["bsq"].search(problem)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert np.isfinite([line["loss"] for line in problem.context.run.read_log()]).all()
