"""Trials start from the Fisher knapsack, are worth what they lose on held-out texts, and the best one wins."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from autoquant.core.allocate import allocate
from autoquant.core.repair import repair
from autoquant.strategies import STRATEGIES, Problem, optuna

MakeProblem = Callable[..., Problem]


def test_the_table_of_matrices_adds_up(make_problem: MakeProblem) -> None:
    table = make_problem().table
    matrices = optuna.per_matrix(table)
    assert len(matrices) == len(table.partitions)
    assert matrices.parameters.tolist() == [p.matrix.parameters for p in table.partitions]
    assert (matrices.smallest(), matrices.largest()) == (table.smallest(), table.largest())
    for row, rows in enumerate(table.slices().values()):
        np.testing.assert_array_equal(matrices.bytes[row], table.bytes[rows].sum(axis=0))
        np.testing.assert_array_equal(matrices.allowed[row], table.allowed[rows][0])


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_the_first_trial_is_fisher_and_the_best_one_wins(sampler: str, make_problem: MakeProblem) -> None:
    problem = make_problem(trials=24, sampler=sampler)
    result = STRATEGIES["optuna"].search(problem)
    losses = [line["loss"] for line in problem.context.run.read_log() if line["stage"] == problem.stage]
    assert len(losses) == 24
    assert len(set(losses)) > 6
    assert [line["best"] for line in problem.context.run.read_log()][-1] == min(losses)
    table, worth = problem.table, -problem.sensitivity.choices
    starts = [rows.start for rows in table.slices().values()]
    warm = allocate(np.add.reduceat(worth, starts), optuna.per_matrix(table), problem.budget.bytes)
    choice = repair(worth, table, np.repeat(warm, [p.groups for p in table.partitions]), problem.budget.bytes)
    supernet, outputs = problem.make_supernet().eval(), optuna._held_out(problem)
    for allocation, loss in ((table.to_allocation(choice), losses[0]), (result.allocation, min(losses))):
        supernet.freeze(allocation)
        assert optuna._loss(supernet, outputs, problem) == pytest.approx(loss, abs=1e-6)


def test_samplers_differ(make_problem: MakeProblem) -> None:
    runs = []
    for sampler in ("tpe", "nsga2"):
        problem = make_problem(stage=sampler, trials=6, sampler=sampler)
        STRATEGIES["optuna"].search(problem)
        runs.append([line["loss"] for line in problem.context.run.read_log() if line["stage"] == sampler])
    assert runs[0][0] == runs[1][0]
    assert runs[0] != runs[1]


def test_only_held_out_texts_are_looked_at(make_problem: MakeProblem) -> None:
    problem = make_problem(trial_samples=16)
    known = {ids.tobytes() for ids in problem.train().data.ids}
    seen = optuna._held_out(problem).data
    assert len(seen) == 16
    assert known.isdisjoint(ids.tobytes() for ids in seen.ids)


def test_trials_are_judged_as_the_architecture_is(make_problem: MakeProblem) -> None:
    """By `architecture_hidden`, whatever hidden states count in what the weights learn from."""
    problem = make_problem()
    supernet, outputs = problem.make_supernet().eval(), optuna._held_out(problem)
    supernet.freeze(STRATEGIES["uniform"].search(problem).allocation)
    terms = [dataclasses.replace(problem.distillation, hidden=weight) for weight in (0.0, 5.0)]
    judged = [optuna._loss(supernet, outputs, dataclasses.replace(problem, distillation=some)) for some in terms]
    assert judged[0] == judged[1]
    assert optuna._loss(supernet, outputs, make_problem(architecture_hidden=1.0)) > judged[0]


def test_the_seed_draws_the_texts_that_trials_are_judged_on(make_problem: MakeProblem) -> None:
    drawn = [optuna._held_out(make_problem(trial_samples=16, seed=seed)).data.ids for seed in (0, 0, 1)]
    first, again, other = ({ids.tobytes() for ids in texts} for texts in drawn)
    assert first == again != other
