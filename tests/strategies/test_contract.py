"""What every strategy promises: an allocation of this space, inside the budget and close to it, the same for the same seed."""

import dataclasses
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from autoquant.core.cost import SizeBudget, choice_table
from autoquant.core.errors import BudgetError, SpaceError
from autoquant.core.progress import SilentProgress
from autoquant.strategies import REUSABLE, STRATEGIES, Problem, SearchResult, check_strategies
from autoquant.strategies.reuse import rederive
from autoquant.workspace import Workspace

MakeProblem = Callable[..., Problem]
every_strategy = pytest.mark.parametrize("name", STRATEGIES)
SHARES = (0.05, 0.3, 0.7)


def search(name: str, problem: Problem) -> SearchResult:
    """Some ask for what others found: a search of the same problem under its own stage."""
    stage = dataclasses.replace(problem, stage=f"{problem.stage}-found")
    return STRATEGIES[name].search(dataclasses.replace(problem, found=lambda other: STRATEGIES[other].search(stage)))


@every_strategy
@pytest.mark.parametrize("share", SHARES)
def test_an_allocation_inside_the_budget_and_close_to_it(name: str, share: float, make_problem: MakeProblem) -> None:
    problem = make_problem(share)
    allocation = search(name, problem).allocation
    allocation.check_fits(problem.table.partitions)
    for partition in problem.table.partitions:
        assert set(allocation.bits[partition.matrix.name]) <= set(partition.widths), partition.matrix.name
    size = problem.table.total(problem.table.to_choice(allocation))
    assert 0.99 * problem.budget.bytes <= size <= problem.budget.bytes


@every_strategy
def test_more_bytes_than_the_space_can_use(name: str, make_problem: MakeProblem) -> None:
    problem = make_problem(1.3)
    allocation = search(name, problem).allocation
    assert problem.table.total(problem.table.to_choice(allocation)) == problem.table.largest()


@every_strategy
def test_exactly_the_smallest_allocation(name: str, make_problem: MakeProblem) -> None:
    problem = make_problem(0.0)
    allocation = search(name, problem).allocation
    assert problem.table.total(problem.table.to_choice(allocation)) == problem.table.smallest()


@every_strategy
def test_a_byte_too_few_is_refused(name: str, make_problem: MakeProblem) -> None:
    problem = make_problem(0.0)
    budget = dataclasses.replace(problem.budget, bytes=problem.budget.bytes - 1)
    with pytest.raises(BudgetError, match=f"{budget.bytes} bytes"):
        search(name, dataclasses.replace(problem, budget=budget))


@pytest.mark.parametrize("name", ["uniform", "measured", "qbert", "hawq", "bsq", "optuna"])
def test_what_does_not_count_is_as_wide_as_can_be(name: str, workspace: Workspace, make_problem: MakeProblem) -> None:
    """Under an encoder budget, which leaves embeddings, pooler and classifier out."""
    table = choice_table(workspace.blueprint.byte_model, "encoder")
    budget = SizeBudget(table.largest() // 2, "encoder")
    problem = dataclasses.replace(make_problem(), table=table, budget=budget)
    allocation = search(name, problem).allocation
    free = table.bytes.max(axis=1) == 0
    widest = table.allowed.shape[1] - 1 - table.allowed[:, ::-1].argmax(axis=1)
    assert (table.to_choice(allocation)[free] == widest[free]).all()


@every_strategy
def test_budgets_differ(name: str, make_problem: MakeProblem) -> None:
    small, large = (search(name, make_problem(share, stage=f"at{share}")).allocation for share in (0.3, 0.5))
    assert small != large


@every_strategy
def test_the_same_seed_gives_the_same_allocation(name: str, make_problem: MakeProblem) -> None:
    first, second = (search(name, make_problem(seed=3)) for _ in range(2))
    assert first.allocation == second.allocation
    if first.values is not None:
        assert second.values is not None
        np.testing.assert_array_equal(first.values, second.values)


@every_strategy
def test_values_are_of_every_choice(name: str, make_problem: MakeProblem) -> None:
    problem = make_problem()
    values = search(name, problem).values
    if values is not None:
        assert values.shape == problem.table.bytes.shape
        assert np.isfinite(values[problem.table.allowed]).all()


@pytest.mark.parametrize("name", sorted(REUSABLE))
def test_a_reusable_search_serves_every_budget(name: str, make_problem: MakeProblem) -> None:
    problem, strength = make_problem(0.4), make_problem().search.prior_strength
    result = search(name, problem)
    again = rederive(result, problem.table, problem.budget.bytes, strength)
    assert again.allocation == result.allocation
    if result.probability is not None:
        np.testing.assert_allclose(again.probability, result.probability, atol=2e-5)
    for share in (0.2, 0.7):
        budget = make_problem(share).budget
        other = rederive(result, problem.table, budget.bytes, strength).allocation
        assert 0.99 * budget.bytes <= problem.table.total(problem.table.to_choice(other)) <= budget.bytes


@pytest.mark.parametrize("control", ["uniform", "random", "reversed"])
def test_controls_choose_otherwise(control: str, make_problem: MakeProblem) -> None:
    problem = make_problem()
    learned, other = (problem.table.to_choice(search(name, make_problem()).allocation) for name in ("dnas", control))
    assert (learned != other).mean() > 0.3


class InterruptingProgress(SilentProgress):
    """Presses Ctrl-C at the second step of what a strategy does."""

    steps = 0

    @contextmanager
    def stage(self, title: str, total: int, start: int = 0) -> Iterator[Any]:  # type: ignore[override]
        yield self if title in ("Search", "Hessian", "Measured losses") else SilentProgress()

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.steps += steps
        if self.steps == 2:
            signal.raise_signal(signal.SIGINT)


@every_strategy
def test_an_interrupted_strategy_is_the_same_strategy(name: str, make_problem: MakeProblem) -> None:
    problem = make_problem(trials=5, sampler="nsga2")
    whole, run = search(name, problem), problem.context.run
    log = run.read_log()
    for stage in (problem.stage, f"{problem.stage}-found"):
        run.discard_state(stage)
    run.discard_states(name)  # as the workspace does
    if log:
        context = dataclasses.replace(problem.context, progress=InterruptingProgress())
        with pytest.raises(KeyboardInterrupt):
            search(name, dataclasses.replace(problem, context=context))
        searching = [line for line in run.read_log() if not line["stage"].startswith("race-")]  # which is of the first time
        assert len(searching) == 2
    resumed = search(name, problem)
    assert resumed.allocation == whole.allocation
    assert run.read_log() == log


def test_strategies_are_checked_by_name() -> None:
    check_strategies(list(STRATEGIES))
    with pytest.raises(SpaceError, match="Unknown strategy 'best'; known are dnas"):
        check_strategies(["uniform", "best"])
