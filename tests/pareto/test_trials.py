"""Nothing is lost and nothing is run twice: claims, heartbeats and retries, on a database and on a journal file."""

import math
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import Trial, TrialState

from autoquant.core.errors import LockedError, ModelError, RunError, TrainingError
from autoquant.pareto import trials
from autoquant.pareto.storage import open_storage
from autoquant.pareto.trials import (
    MOST_KILLS,
    TrialPlan,
    Watch,
    beating,
    by_cell,
    check_patience,
    claim,
    count,
    enqueue_missing,
    fail_dead,
    owner,
    work,
)

NAMES = ("a", "b", "c", "d")


def suggest(trial: Trial) -> None:
    trial.suggest_categorical("name", NAMES)


GRID = TrialPlan({name: {"name": name} for name in NAMES}, suggest)
SAMPLED = TrialPlan({}, suggest, sampled=5)


@pytest.fixture(params=["sqlite", "journal"])
def open_study(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], optuna.Study]:
    """Opens the same study anew, as another process would."""
    storage = f"sqlite:///{tmp_path / 'study.db'}" if request.param == "sqlite" else str(tmp_path / "study.journal")

    def open_() -> optuna.Study:
        return optuna.create_study(
            storage=open_storage(storage), study_name="s", directions=["minimize", "maximize"], load_if_exists=True
        )

    return open_


def silent(text: str) -> None:
    pass


def states(study: optuna.Study) -> dict[str, list[str]]:
    return {cell: [t.state.name for t in trials] for cell, trials in by_cell(study.get_trials()).items()}


def test_every_cell_is_measured_once_in_order(open_study: Callable[[], optuna.Study]) -> None:
    done: list[str] = []

    def measure(trial: Trial) -> list[float]:
        done.append(trial.params["name"])
        return [1.0, 2.0]

    finished: list[str] = []
    counts = work(open_study(), GRID, measure, silent, finished.append)
    assert done == finished == list(NAMES)
    assert (counts.done, counts.total) == (4, 4)
    assert work(open_study(), GRID, measure, silent) == counts
    assert done == list(NAMES)  # the second time there was nothing to do


def test_workers_side_by_side_never_run_a_cell_twice(open_study: Callable[[], optuna.Study]) -> None:
    cells = {f"cell{i}": {"name": "a"} for i in range(8)}
    plan, runs, lock = TrialPlan(cells, suggest), Counter[str](), threading.Lock()

    def measure(trial: Trial) -> list[float]:
        with lock:
            runs[trial.user_attrs["cell"]] += 1
        return [1.0, 2.0]

    open_study()
    workers = [threading.Thread(target=lambda: work(open_study(), plan, measure, silent, patience=30)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert runs == Counter(cells.keys())
    assert count(open_study(), plan).done == 8


def test_two_that_queue_the_same_cell_do_not_both_run_it(open_study: Callable[[], optuna.Study]) -> None:
    study = open_study()
    enqueue_missing(study, GRID)
    for name in NAMES:  # as a second process would that looked before the first one wrote
        study.enqueue_trial({"name": name}, user_attrs={"cell": name})
    claimed = [claim(open_study(), GRID) for _ in range(5)]
    assert [t.user_attrs["cell"] for t in claimed if t is not None] == list(NAMES)


def test_a_sampled_sweep_stops_at_its_number(open_study: Callable[[], optuna.Study]) -> None:
    counts = work(open_study(), SAMPLED, lambda trial: [1.0, 2.0], silent)
    assert (counts.done, counts.total) == (5, 5)
    assert list(by_cell(open_study().get_trials())) == [f"trial-{i:04d}" for i in range(5)]


@pytest.mark.parametrize("plan", [GRID, SAMPLED])
def test_a_dead_worker_s_trial_is_run_again(open_study: Callable[[], optuna.Study], plan: TrialPlan) -> None:
    abandoned = claim(open_study(), plan)  # and its process is gone
    assert abandoned is not None
    cell, params = abandoned.user_attrs["cell"], dict(abandoned.params)
    now, watch = [0.0], Watch(grace=60, clock=lambda: now[0])
    study = open_study()
    for now[0] in (0.0, 59.0):
        fail_dead(study, watch)
        assert states(study)[cell] == ["RUNNING"]
    now[0] = 60.0
    fail_dead(study, watch)
    assert states(study)[cell] == ["FAIL"]
    assert count(study, plan).waiting == count(study, plan).total  # it waits again; nothing failed
    again = claim(open_study(), plan)
    while again is not None and again.user_attrs["cell"] != cell:
        again = claim(open_study(), plan)
    assert again is not None
    assert again.params == params


def test_a_beating_trial_is_left_alone(open_study: Callable[[], optuna.Study]) -> None:
    trial = claim(open_study(), GRID)
    assert trial is not None
    study, watch = open_study(), Watch(grace=0.5)
    with beating(trial, 0.05):
        for _ in range(20):
            fail_dead(study, watch)
            threading.Event().wait(0.05)
    assert states(study)["a"] == ["RUNNING"]


def test_the_result_of_a_worker_that_was_thought_dead_is_dropped(open_study: Callable[[], optuna.Study]) -> None:
    study, said = open_study(), []

    def measure(trial: Trial) -> list[float]:
        if trial.user_attrs["cell"] == "a" and trial.number == 0:
            open_study().tell(0, state=TrialState.FAIL)  # another worker's verdict while this one hangs
            return [9.0, 9.0]
        return [1.0, 2.0]

    finished: list[str] = []
    work(study, GRID, measure, said.append, finished.append)
    assert states(study)["a"] == ["FAIL", "COMPLETE"]
    assert owner(by_cell(study.get_trials())["a"]).values == [1.0, 2.0]
    assert finished.count("a") == 1
    assert any("taken over" in line for line in said)


def test_an_error_fails_its_cell_only_and_can_be_tried_again(open_study: Callable[[], optuna.Study]) -> None:
    study, said, healed = open_study(), [], False

    def measure(trial: Trial) -> list[float]:
        if trial.params["name"] == "b" and not healed:
            raise TrainingError("The loss is not finite.")
        return [1.0, 2.0]

    counts = work(study, GRID, measure, said.append)
    assert (counts.done, counts.failed) == (3, 1)
    assert "Trial b failed: The loss is not finite." in said
    assert said[-1] != counts.line() or "1 failed" in counts.line()
    assert work(study, GRID, measure, silent) == counts  # not again by itself
    healed = True
    enqueue_missing(study, GRID, retry_failed=True)
    assert work(study, GRID, measure, silent).done == 4


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_objective_that_is_not_finite_fails_the_trial(open_study: Callable[[], optuna.Study], value: float) -> None:
    counts = work(open_study(), GRID, lambda trial: [1.0, value], silent)
    assert (counts.done, counts.failed) == (0, 4)


def test_ctrl_c_gives_the_trial_back_at_once(open_study: Callable[[], optuna.Study]) -> None:
    def interrupted(trial: Trial) -> list[float]:
        raise KeyboardInterrupt

    study = open_study()
    with pytest.raises(KeyboardInterrupt):
        work(study, GRID, interrupted, silent)
    assert count(study, GRID).waiting == 4
    assert work(study, GRID, lambda trial: [1.0, 2.0], silent).done == 4


def test_a_cell_that_kills_every_worker_is_given_up(open_study: Callable[[], optuna.Study]) -> None:
    study = open_study()
    plan = TrialPlan({"a": {"name": "a"}}, suggest)
    for _ in range(10):
        trial = claim(study, plan)
        assert trial is not None
        study.tell(trial.number, state=TrialState.FAIL)
    assert claim(study, plan) is None
    assert count(study, plan).failed == 1


def test_progress_counts_cells(open_study: Callable[[], optuna.Study]) -> None:
    study = open_study()
    assert count(study, GRID).line() == "Sweep: 0 of 4 trials done, 0 running, 4 waiting, 0 failed"
    claim(study, GRID)
    assert count(study, GRID).line() == "Sweep: 0 of 4 trials done, 1 running, 3 waiting, 0 failed"


@pytest.mark.parametrize("kind", [RunError, ModelError, KeyboardInterrupt])
def test_what_is_wrong_here_stops_this_worker_and_fails_no_cell(
    kind: type[BaseException], open_study: Callable[[], optuna.Study]
) -> None:
    study, plan = open_study(), TrialPlan({"a": {"name": "a"}}, suggest)

    def without_space(trial: Trial) -> list[float]:
        raise kind("No space left.")

    for _ in range(MOST_KILLS + 1):  # however often it is started
        with pytest.raises(kind):
            work(study, plan, without_space, silent)
    assert (count(study, plan).waiting, count(study, plan).failed) == (1, 0)
    assert work(open_study(), plan, lambda trial: [1.0, 2.0], silent).done == 1


def test_a_folder_that_a_live_process_holds_is_waited_for(
    open_study: Callable[[], optuna.Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "NAP", 0.0)
    said: list[str] = []

    def measure(trial: Trial) -> list[float]:
        if sum("Waiting" in line for line in said) == 0 or len(said) < 3:
            said.append("tried")
            raise LockedError("trials/a is in use by process 7")
        return [1.0, 2.0]

    plan = TrialPlan({"a": {"name": "a"}}, suggest)
    assert work(open_study(), plan, measure, said.append).done == 1
    assert states(open_study())["a"] == ["COMPLETE"]
    assert said.count("Waiting: trials/a is in use by process 7") == 1


def test_a_patient_worker_s_trial_is_alive_to_an_impatient_one(
    open_study: Callable[[], optuna.Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "BEAT", 0.05)
    study, plan, watch = open_study(), TrialPlan({"a": {"name": "a"}}, suggest), Watch(grace=1.0)

    def measure(trial: Trial) -> list[float]:
        for _ in range(15):
            fail_dead(study, watch)
            threading.Event().wait(0.1)
        return [1.0, 2.0]

    assert work(open_study(), plan, measure, silent, patience=10000).done == 1
    assert states(study)["a"] == ["COMPLETE"]


@pytest.mark.parametrize("seconds", [0, -1, 29.9, math.nan])
def test_a_patience_shorter_than_three_beats_is_refused(seconds: float, open_study: Callable[[], optuna.Study]) -> None:
    with pytest.raises(RunError, match="is too short: workers give a sign of life every 10 s; give 30 or more"):
        work(open_study(), GRID, lambda trial: [1.0, 2.0], silent, patience=seconds)
    check_patience(30)
