"""Several strategies' allocations, each recovered for a while: the one whose predictions then come closest to the teacher's wins.

What a search compares is the loss before recovery; which allocation is better after it, nothing says but recovery itself
(successive halving, Jamieson and Talwalkar 2016, with one rung). It learns from the training part and is judged on the held-out
one, so the evaluation data is not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

from autoquant.core.errors import BudgetError
from autoquant.strategies.base import Problem, SearchResult

CANDIDATES = ("dnas", "fisher", "floor", "uniform")


@dataclass(frozen=True)
class Race:
    """The best after `search.race_steps` of recovery, as it was found. Raises the last BudgetError if no candidate fits."""

    def search(self, problem: Problem) -> SearchResult:
        found, losses, run = self._candidates(problem), {}, problem.context.run
        for name, result in found.items():
            losses[name] = problem.recovered(problem, result.allocation, f"race-{name}")
            problem.context.progress.say(f"{name}: {losses[name]:.4f} nats a text from the teacher")
        run.record(race=losses)
        run.discard_states("race")
        return found[min(losses, key=losses.__getitem__)]

    def _candidates(self, problem: Problem) -> dict[str, SearchResult]:
        found, refusal = {}, BudgetError("No candidate.")
        for name in CANDIDATES:
            try:
                found[name] = problem.found(name)
            except BudgetError as error:  # uniform bits need more than sub-groups that may be pruned
                refusal = error
        if not found:
            raise refusal
        return found
