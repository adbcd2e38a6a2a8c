"""Which trial does a worker run next? Claims, heartbeats and retries, so that nothing is lost and nothing is run twice.

A *cell* is one thing to measure; a trial is an attempt at it. Of the trials of a cell, the one with the lowest number that has
not failed owns it: every worker sees the same trials in the same order, so two never run the same cell, whatever the storage.
A running trial counts up a `beat`; one whose beat stands still is failed by whoever notices, and its cell is tried again.
Optuna's own heartbeat exists only for databases and forgets a trial whose retry was not queued in time.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from autoquant.core.errors import (
    AutoquantError,
    BudgetError,
    CheckpointError,
    DataError,
    LockedError,
    RunError,
    SpaceError,
    TrainingError,
)

ACTIVE = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)
CELL_ERRORS = (BudgetError, SpaceError, DataError, TrainingError, CheckpointError)
"""What another machine would meet too, as data and settings are the same there; any other error is this machine's own."""
NAP = 5.0
BEAT = 10.0  # seconds between two beats, the same for every worker: each judges the others by its own patience
PATIENCE = 90.0  # seconds without a beat after which a worker counts as dead
FEWEST_BEATS = 3  # that must be missed
MOST_KILLS = 10  # attempts at a cell whose worker dies every time, as one that exhausts the memory does


@dataclass(frozen=True)
class TrialPlan:
    """What a sweep is to measure: `cells` (name -> parameters, in order), or `sampled` trials of the sampler's choice."""

    cells: Mapping[str, Mapping[str, Any]]
    suggest: Callable[[Trial], None]
    """Gives a trial its parameters."""
    sampled: int = 0


@dataclass(frozen=True)
class Counts:
    """How far a sweep is, in cells."""

    done: int
    running: int
    waiting: int
    failed: int

    @property
    def total(self) -> int:
        return self.done + self.running + self.waiting + self.failed

    def line(self) -> str:
        states = f"{self.running} running, {self.waiting} waiting, {self.failed} failed"
        return f"Sweep: {self.done} of {self.total} trials done, {states}"


@dataclass
class Watch:
    """Notices running trials whose beat stands still for `grace` seconds of this process' own clock: no clocks to agree on."""

    grace: float
    clock: Callable[[], float] = time.monotonic
    _seen: dict[int, tuple[int, float]] = field(default_factory=dict)

    def dead(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """Those of `trials` that are running but have stood still for too long."""
        found = []
        for trial in trials:
            if trial.state != TrialState.RUNNING:
                continue
            beat, now = trial.user_attrs.get("beat", -1), self.clock()
            if self._seen.get(trial.number, (None, now))[0] != beat:
                self._seen[trial.number] = (beat, now)
            elif now - self._seen[trial.number][1] >= self.grace:
                found.append(trial)
        return found


@contextmanager
def beating(trial: Trial, seconds: float) -> Iterator[None]:
    """Count the trial's beat up every `seconds`, in a thread, until the block ends."""
    stop = threading.Event()

    def beat() -> None:
        count = 0
        while not stop.wait(seconds if count else 0):
            count += 1
            try:
                trial.set_user_attr("beat", count)
            except UpdateFinishedTrialError:  # taken for dead: the result will be dropped
                return
            except Exception:  # the storage is away; the next beat may find it again
                continue

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def by_cell(trials: list[FrozenTrial]) -> dict[str, list[FrozenTrial]]:
    """Cell -> its trials, in the order of their numbers; what never became a cell's trial is left out."""
    found: dict[str, list[FrozenTrial]] = defaultdict(list)
    for trial in sorted(trials, key=lambda t: t.number):
        if "cell" in trial.user_attrs and "discarded" not in trial.user_attrs:
            found[trial.user_attrs["cell"]].append(trial)
    return dict(found)


def owner(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """The trial that owns the cell of `trials`, if any."""
    return next((trial for trial in trials if trial.state in ACTIVE), None)


def completed(study: optuna.Study) -> dict[str, FrozenTrial]:
    """Finished cell -> the trial that owns it."""
    owners = {cell: owner(trials) for cell, trials in by_cell(study.get_trials(deepcopy=False)).items()}
    return {cell: trial for cell, trial in owners.items() if trial is not None and trial.state == TrialState.COMPLETE}


def is_lost(trials: list[FrozenTrial]) -> bool:
    """Whether nobody has the cell, the last attempt ended with its worker, not in an error, and there may be another one."""
    killed = sum("released" not in trial.user_attrs for trial in trials)
    return owner(trials) is None and "error" not in trials[-1].user_attrs and killed < MOST_KILLS


def count(study: optuna.Study, plan: TrialPlan) -> Counts:
    """Cells by state; a cell that waits to be tried again is waiting."""
    cells = by_cell(study.get_trials(deepcopy=False))
    states: Counter[str] = Counter()
    for trials in cells.values():
        owned = owner(trials)
        states[owned.state.name if owned else "WAITING" if is_lost(trials) else "FAIL"] += 1
    unseen = len(set(plan.cells) - set(cells)) + max(0, plan.sampled - len(cells))
    return Counts(states["COMPLETE"], states["RUNNING"], states["WAITING"] + unseen, states["FAIL"])


def enqueue_missing(study: optuna.Study, plan: TrialPlan, retry_failed: bool = False) -> None:
    """Queue every cell that nobody runs and nobody has finished; with `retry_failed` also those that ended in an error."""
    cells = by_cell(study.get_trials(deepcopy=False))
    for name, params in plan.cells.items():
        if name not in cells:
            study.enqueue_trial(dict(params), user_attrs={"cell": name})
    for name, trials in cells.items():
        if is_lost(trials) or (retry_failed and owner(trials) is None):
            study.enqueue_trial(trials[-1].params or dict(plan.cells.get(name, {})), user_attrs={"cell": name})


def fail_dead(study: optuna.Study, watch: Watch) -> None:
    """Fail the trials whose workers are gone, so that their cells are tried again."""
    for trial in watch.dead(study.get_trials(deepcopy=False)):
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def claim(study: optuna.Study, plan: TrialPlan) -> Trial | None:
    """A trial that this process may run, its parameters suggested and its cell in `user_attrs`; None if there is none now."""
    while True:
        enqueue_missing(study, plan)
        trials = study.get_trials(deepcopy=False)
        waiting = any(trial.state == TrialState.WAITING for trial in trials)
        if not waiting and len(by_cell(trials)) >= plan.sampled:
            return None
        trial = study.ask()
        if "cell" not in trial.user_attrs and plan.sampled:
            trial.set_user_attr("cell", f"trial-{trial.number:04d}")
        plan.suggest(trial)
        if _owns(study, trial, plan):
            return trial
        trial.set_user_attr("discarded", "another worker was first")
        study.tell(trial, state=TrialState.FAIL)


def _owns(study: optuna.Study, trial: Trial, plan: TrialPlan) -> bool:
    cells = by_cell(study.get_trials(deepcopy=False))
    cell = trial.user_attrs.get("cell")
    if cell is None:  # somebody took the last waiting one between the look and the ask
        return False
    owned = owner(cells[cell])
    surplus = plan.sampled and list(cells).index(cell) >= plan.sampled
    return owned is not None and owned.number == trial.number and not surplus


Measure = Callable[[Trial], list[float]]


def check_patience(seconds: float) -> None:
    """Raise RunError for a patience that would take live workers for dead."""
    if not seconds >= FEWEST_BEATS * BEAT:
        raise RunError(
            f"--patience-seconds {seconds:g} is too short: workers give a sign of life every {BEAT:g} s; "
            f"give {FEWEST_BEATS * BEAT:g} or more."
        )


def work(
    study: optuna.Study,
    plan: TrialPlan,
    measure: Measure,
    say: Callable[[str], None],
    finished: Callable[[str], None] = lambda cell: None,
    patience: float = PATIENCE,
) -> Counts:
    """Run trials until every cell is done or failed, waiting for those of other workers: theirs may have to be taken over.

    `finished` is called with each cell that this worker finishes; a trial that stands still for `patience` seconds is taken to
    be dead. One of CELL_ERRORS fails its cell, and the sweep goes on; anything else, such as a full disk, stops this worker,
    whose trial others then retry.
    """
    check_patience(patience)
    watch, said = Watch(patience), ""
    while True:
        fail_dead(study, watch)
        trial = claim(study, plan)
        counts = count(study, plan)
        if counts.line() != said:
            say(said := counts.line())
        if trial is not None:
            if _attempt(study, trial, measure, say):
                finished(trial.user_attrs["cell"])
        elif counts.running or counts.waiting:
            time.sleep(NAP)
        else:
            return counts


def _attempt(study: optuna.Study, trial: Trial, measure: Measure, say: Callable[[str], None]) -> bool:
    """Measure a trial and tell the study; whether that is the cell's result."""
    cell = trial.user_attrs["cell"]
    say(f"Trial {cell}")
    try:
        with beating(trial, BEAT):
            values = _finite(_patiently(measure, trial, say))
        if study.tell(trial, values, skip_if_finished=True).state == TrialState.COMPLETE:
            return True
    except CELL_ERRORS as error:
        if _fail(study, trial, "error", str(error)):
            say(f"Trial {cell} failed: {error}")
            return False
    except UpdateFinishedTrialError:
        pass
    except (AutoquantError, KeyboardInterrupt) as error:
        _fail(study, trial, "released", str(error) or "interrupted")  # not the cell's fault: it is tried again
        raise
    except BaseException:
        study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        raise
    say(f"Trial {cell} was taken over by another worker, which thought this one dead: this result is dropped.")
    return False


def _patiently(measure: Measure, trial: Trial, say: Callable[[str], None]) -> list[float]:
    """Measure, once nobody else holds the trial's folder: a live process that was thought dead may yet finish it."""
    said = ""
    while True:
        try:
            return measure(trial)
        except LockedError as error:
            if str(error) != said:
                say(f"Waiting: {(said := str(error))}")
            time.sleep(NAP)


def _finite(values: list[float]) -> list[float]:
    if not all(map(math.isfinite, values)):
        raise TrainingError(f"An objective is not finite ({', '.join(map(str, values))}): the trial counts as failed.")
    return values


def _fail(study: optuna.Study, trial: Trial, kind: str, reason: str) -> bool:
    """Give a trial up and record why, under `kind`; False if it is no longer this worker's."""
    try:
        trial.set_user_attr(kind, reason)
    except UpdateFinishedTrialError:
        return False
    study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
    return True
