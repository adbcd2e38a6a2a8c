"""The protocol of a refiner: a problem in, the supernet in it improved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from autoquant.core.settings import DistillationSettings, RecoverySettings
from autoquant.supernet.build import Supernet
from autoquant.training.batches import Encoded
from autoquant.training.distillation import TeacherOutputs
from autoquant.training.loop import Context


@dataclass(frozen=True, eq=False)
class RefineProblem:
    """A frozen supernet, the teacher, the texts to learn from, and the teacher's outputs on all of them for who needs those."""

    supernet: Supernet
    teacher: nn.Module
    data: Encoded
    outputs: Callable[[], TeacherOutputs]
    settings: RecoverySettings
    distillation: DistillationSettings
    context: Context
    stage: str
    """Names the checkpoint and the log lines."""


class Refiner(Protocol):
    """Frozen, without state of its own."""

    def refine(self, problem: RefineProblem) -> None:
        """Improve the weights and scales of `problem.supernet` in place."""
        ...
