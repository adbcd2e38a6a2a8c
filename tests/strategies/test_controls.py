"""The controls are what they say: two widths, chance, the opposite."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import spearmanr

from autoquant.core.allocate import allocate
from autoquant.strategies import STRATEGIES, Problem, SearchResult, stages_of
from autoquant.strategies.reversed import reverse, reverse_removals
from autoquant.strategies.uniform import nearest_columns
from autoquant.supernet.build import unit_parameters

MakeProblem = Callable[..., Problem]


def choice(name: str, problem: Problem) -> np.ndarray:
    return problem.table.to_choice(STRATEGIES[name].search(problem).allocation)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_uniform_uses_two_neighbouring_widths(share: float, make_problem: MakeProblem) -> None:
    problem = make_problem(share)
    table, found = problem.table, choice("uniform", problem)
    everything = table.allowed.all(axis=1)  # others take the nearest they are allowed
    used = set(found[everything].tolist())
    assert len(used) <= 2
    assert max(used) - min(used) <= 1
    assert max(nearest_columns(table, table.widths[max(used)])[~everything], default=0) >= max(found[~everything])


def test_nearest_columns_by_hand(make_problem: MakeProblem) -> None:
    table = make_problem().table
    allowed = table.allowed[:3].copy()
    allowed[0], allowed[1], allowed[2] = [1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1]
    part = dataclasses.replace(table, bytes=table.bytes[:3], allowed=allowed)
    assert table.widths == (0, 1, 2, 3, 4, 8)
    assert nearest_columns(part, 1).tolist() == [2, 5, 1]
    assert nearest_columns(part, 0).tolist() == [0, 5, 0]
    assert nearest_columns(part, 4).tolist() == [2, 5, 4]


@pytest.mark.parametrize("name", ["uniform", "random"])
def test_chance_varies_with_the_seed(name: str, make_problem: MakeProblem) -> None:
    found = [choice(name, make_problem(seed=seed)) for seed in range(4)]
    assert all((found[a] != found[b]).mean() > 0.1 for a in range(4) for b in range(a))


def test_random_does_not_know_the_sensitivities(make_problem: MakeProblem) -> None:
    problem = make_problem()
    worth = problem.sensitivity.choices[:, 1] / problem.table.parameters
    widths = np.mean([np.asarray(problem.table.widths)[choice("random", make_problem(seed=seed))] for seed in range(30)], axis=0)
    free = problem.table.allowed.all(axis=1)
    assert abs(spearmanr(widths[free], worth[free])[0]) < 0.35
    known = np.asarray(problem.table.widths)[choice("fisher", problem)]
    assert spearmanr(known[free], worth[free])[0] > 0.5


def test_fisher_minimises_the_summed_sensitivity(make_problem: MakeProblem) -> None:
    problem = make_problem()
    everyone = np.arange(len(problem.table))
    lost = {name: problem.sensitivity.choices[everyone, choice(name, problem)].sum() for name in ("fisher", "uniform", "random")}
    assert lost["fisher"] < 0.5 * min(lost["uniform"], lost["random"])


def test_measured_minimises_the_summed_losses_that_were_measured(make_problem: MakeProblem) -> None:
    problem = make_problem()
    everyone, measured = np.arange(len(problem.table)), problem.measured(dataclasses.replace(problem, stage="again")).choices
    lost = {name: measured[everyone, choice(name, problem)].sum() for name in ("measured", "fisher", "uniform", "random")}
    assert lost["measured"] < min(lost["fisher"], lost["uniform"], lost["random"])
    assert not np.array_equal(measured, problem.sensitivity.choices)


def test_reversing_by_hand() -> None:
    """Per weight the widest choices are worth 1, 9 and 4: the first two swap their curves, the middle one keeps its own."""
    values = np.array([[0.0, 5.0, 10.0], [20.0, 140.0, 200.0], [0.0, 30.0, 40.0], [7.0, 8.0, -np.inf]])
    allowed = np.array([[True] * 3, [True] * 3, [True] * 3, [True, True, False]])
    reversed_ = reverse(values, allowed, np.array([10, 20, 10, 10]))
    np.testing.assert_allclose(reversed_, [[10.0, 70.0, 100.0], [0.0, 10.0, 20.0], [0.0, 30.0, 40.0], [7.0, 8.0, -np.inf]])


def test_reversing_removals_turns_those_of_a_kind_around(make_structured: MakeProblem) -> None:
    """Per weight the units are worth 1, 2, 3 ...: those of a kind take each other's, the first that of the last."""
    table = make_structured(0.2).table
    units, sizes = table.removable.structure.units, unit_parameters(table)
    worth = np.arange(1.0, len(units) + 1)
    found = reverse_removals(worth * sizes, table) / sizes
    for kind in ("head", "ffn"):
        members = [number for number, unit in enumerate(units) if unit.kind == kind]
        np.testing.assert_allclose(found[members], worth[members[::-1]])


def test_reversing_twice_is_no_change(make_problem: MakeProblem) -> None:
    table = make_problem().table
    values = -np.random.default_rng(0).lognormal(size=len(table))[:, None] * 0.25 ** np.asarray(table.widths, dtype=float)
    twice = reverse(reverse(values, table.allowed, table.parameters), table.allowed, table.parameters)
    np.testing.assert_allclose(twice[table.allowed], values[table.allowed])


def test_reversed_gives_fewest_bits_where_the_search_wants_most(make_problem: MakeProblem) -> None:
    problem = make_problem()
    learned = STRATEGIES["dnas"].search(problem)
    assert learned.values is not None
    finite = np.where(problem.table.allowed, learned.values, np.nan)
    worth = (finite[:, -1] - finite[:, 0]) / problem.table.parameters
    widths = np.asarray(problem.table.widths)
    free = problem.table.allowed.all(axis=1)
    ours = widths[problem.table.to_choice(learned.allocation)]
    theirs = widths[choice("reversed", dataclasses.replace(problem, found=lambda _: learned))]
    assert spearmanr(ours[free], worth[free])[0] > 0.5
    assert spearmanr(theirs[free], worth[free])[0] < -0.3


def test_reversed_solves_the_reversed_values_it_reports(make_problem: MakeProblem) -> None:
    problem = make_problem()
    learned = SearchResult(STRATEGIES["fisher"].search(problem).allocation, -problem.sensitivity.choices)
    result = STRATEGIES["reversed"].search(dataclasses.replace(problem, found=lambda _: learned))
    assert result.values is not None
    found = allocate(result.values, problem.table, problem.budget.bytes)
    assert result.allocation == problem.table.to_allocation(found)


def test_a_strategy_spends_its_time_in_the_stages_of_what_it_begins_with_too() -> None:
    assert stages_of("fisher") == ["search-fisher", "recover-fisher", "pack-fisher"]
    assert stages_of("reversed") == ["search-reversed", "search-dnas", "recover-reversed", "pack-reversed"]
