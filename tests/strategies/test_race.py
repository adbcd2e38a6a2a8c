"""Who comes closest to the teacher after a while of recovery wins; what is measured is not measured again."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from autoquant import workspace as workspace_module
from autoquant.core.errors import TrainingError
from autoquant.refine import REFINERS
from autoquant.strategies import STRATEGIES, Problem, SearchResult
from autoquant.strategies.race import CANDIDATES
from autoquant.training.distillation import mean_divergence
from autoquant.workspace import Workspace

MakeProblem = Callable[..., Problem]


def found(problem: Problem) -> dict[str, SearchResult]:
    """Four allocations that differ, whoever found them."""
    contexts = [dataclasses.replace(problem.context, seed=seed) for seed in range(len(CANDIDATES))]
    drawn = [STRATEGIES["random"].search(dataclasses.replace(problem, context=context)) for context in contexts]
    return dict(zip(CANDIDATES, drawn, strict=True))


@pytest.mark.parametrize("winner", CANDIDATES)
def test_the_closest_to_the_teacher_wins(winner: str, make_problem: MakeProblem) -> None:
    problem = make_problem()
    results, asked = found(problem), []

    def recovered(_: Problem, result: SearchResult, stage: str) -> float:
        name = stage.removeprefix("race-")
        asked.append(name)
        assert result is results[name]
        return 0.25 if name == winner else 0.5

    race = dataclasses.replace(problem, found=results.__getitem__, recovered=recovered)
    assert STRATEGIES["race"].search(race) is results[winner]
    assert asked == list(CANDIDATES)
    assert problem.context.run.info()["race"] == {name: 0.25 if name == winner else 0.5 for name in CANDIDATES}


def test_a_candidate_that_diverges_is_out(make_problem: MakeProblem) -> None:
    problem = make_problem()
    results, losses = found(problem), {"race-dnas": 0.5, "race-fisher": 0.25, "race-lifted": 0.75}

    def recovered(_: Problem, __: SearchResult, stage: str) -> float:
        if stage not in losses:
            raise TrainingError("the loss is nan")
        return losses[stage]

    race = dataclasses.replace(problem, found=results.__getitem__, recovered=recovered)
    assert STRATEGIES["race"].search(race) is results["fisher"]
    losses.clear()
    with pytest.raises(TrainingError, match="the loss is nan"):
        STRATEGIES["race"].search(race)


def test_the_same_bits_run_once(make_problem: MakeProblem) -> None:
    problem, asked = make_problem(), []
    results = found(problem)
    results["lifted"] = results["fisher"]

    def recovered(_: Problem, __: SearchResult, stage: str) -> float:
        asked.append(stage)
        return 1.0

    STRATEGIES["race"].search(dataclasses.replace(problem, found=results.__getitem__, recovered=recovered))
    assert asked == ["race-dnas", "race-fisher", "race-uniform"]


def test_recovery_for_a_while(workspace: Workspace, make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured on the held-out part, after training on the other; a second time it is read."""
    problem = make_problem(0.1, race_steps=60)
    result = STRATEGIES["uniform"].search(problem)
    before = mean_divergence(workspace.frozen_supernet(result.allocation), problem.held_out())
    untrained = dataclasses.replace(problem, search=dataclasses.replace(problem.search, race_steps=0))
    assert problem.recovered(untrained, result, "none") == before
    after = problem.recovered(problem, result, "race-uniform")
    assert 0 < after < before
    assert len(problem.context.run.read_log()) == 60
    monkeypatch.setattr(Workspace, "frozen_supernet", None)
    assert problem.recovered(problem, result, "race-uniform") == after


def test_a_candidate_whose_last_step_broke_it_is_out(make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    """No loss sees the weights after the last step, and a comparison with nan is never true."""
    problem = make_problem(race_steps=0)
    monkeypatch.setattr(workspace_module, "mean_divergence", lambda *_: float("nan"))
    for _ in range(2):  # measured, then read
        with pytest.raises(TrainingError, match="race-uniform: its predictions are no numbers any more"):
            problem.recovered(problem, STRATEGIES["uniform"].search(problem), "race-uniform")


def test_no_row_of_the_held_out_part_is_learnt_from(make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, seen = make_problem(race_steps=3), []

    class Watching:
        def refine(self, problem: Any) -> None:
            seen.append({tuple(ids) for ids in problem.data.ids})

    monkeypatch.setitem(REFINERS, "retrain", Watching())
    problem.recovered(problem, STRATEGIES["uniform"].search(problem), "race-uniform")
    train, held_out = ({tuple(ids) for ids in part().data.ids} for part in (problem.train, problem.held_out))
    assert seen == [train]
    assert not train & held_out


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_lifted_is_never_below_what_everything_may_have(share: float, make_problem: MakeProblem) -> None:
    problem = make_problem(share)
    table, everyone = problem.table, np.arange(len(problem.table))
    choices = {name: table.to_choice(STRATEGIES[name].search(problem).allocation) for name in ("lifted", "uniform", "fisher")}
    free = table.allowed.all(axis=1)
    assert choices["lifted"][free].min() >= choices["uniform"][free].min()
    lost = {name: problem.sensitivity.choices[everyone, choice].sum() for name, choice in choices.items()}
    assert lost["fisher"] <= lost["lifted"] < lost["uniform"]
