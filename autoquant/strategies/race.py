"""Several strategies' allocations, each recovered for a while: the one whose predictions then come closest to the teacher's wins.

What a search compares is the loss before recovery; which allocation is better after it, nothing says but recovery itself
(successive halving, Jamieson and Talwalkar 2016, with one rung). It learns from the training part and is judged on the held-out
one, on which the differentiable search chose its bits too, which may favour that; the evaluation data is not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

from autoquant.core.errors import TrainingError
from autoquant.strategies.base import Problem, SearchResult

CANDIDATES = ("dnas", "fisher", "lifted", "uniform")


@dataclass(frozen=True)
class Race:
    """The best after `search.race_steps` of recovery, as it was found. Raises the last TrainingError if all diverge."""

    def search(self, problem: Problem) -> SearchResult:
        found, losses = {name: problem.found(name) for name in CANDIDATES}, dict[str, float]()
        run, progress, refusal = problem.context.run, problem.context.progress, TrainingError("No candidate.")
        for name, result in found.items():
            twin = next((other for other in losses if found[other].allocation == result.allocation), None)
            if twin is not None:
                progress.say(f"{name}: the bits of {twin}")
                continue
            try:
                losses[name] = problem.recovered(problem, result, f"race-{name}")
            except TrainingError as error:
                refusal = error
                progress.say(f"{name} is out: {error}")
            else:
                progress.say(f"{name}: {losses[name]:.4f} nats a text from the teacher")
        if not losses:
            raise refusal
        run.record(race=losses)
        return found[min(losses, key=losses.__getitem__)]
