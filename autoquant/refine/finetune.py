"""Plain quantisation-aware fine-tuning: the labels and nothing else, as Q-BERT does after it has chosen its bits."""

from __future__ import annotations

from dataclasses import dataclass

from autoquant.core.settings import DistillationSettings
from autoquant.refine.base import RefineProblem
from autoquant.refine.train import everything, learn

LABELS = DistillationSettings(logits=0.0, hidden=0.0, cross_entropy=1.0)


@dataclass(frozen=True)
class Finetune:
    """All weights and scales learn, by cross-entropy to the labels (squared error for regression); there is no teacher."""

    def refine(self, problem: RefineProblem) -> None:
        learn(problem, LABELS, everything(problem))
