"""Teacher annealing (Clark et al. 2019, BAM!, section 3.2): the student starts from the teacher and ends with the labels.

In the paper labels take the place of the teacher's predictions, over all of the training; here of all the teacher's terms, and
within a share of the steps that is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from autoquant.core.settings import DistillationSettings
from autoquant.refine.base import RefineProblem
from autoquant.refine.train import everything, learn

HANDED_OVER = 0.25  # share of the steps after which labels alone count


def annealed(terms: DistillationSettings, done: float) -> DistillationSettings:
    """`terms` at the start, labels alone from HANDED_OVER on, in between in proportion; `done`: share of the steps (0 to 1)."""
    left = max(0.0, 1 - done / HANDED_OVER)
    labels = left * terms.cross_entropy + (1 - left)
    return DistillationSettings(logits=left * terms.logits, hidden=left * terms.hidden, cross_entropy=labels)


@dataclass(frozen=True)
class Annealed:
    """All weights and scales learn, at first from the terms that the recipe's `distillation` weighs, at last from labels."""

    def refine(self, problem: RefineProblem) -> None:
        learn(problem, problem.distillation, everything(problem), annealed)
