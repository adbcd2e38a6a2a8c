"""The protocol of a refiner."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from autoquant.core.settings import DistillationSettings, RecoverySettings
from autoquant.supernet.build import Supernet
from autoquant.training.batches import Encoded
from autoquant.training.distillation import TeacherOutputs
from autoquant.training.loop import Context


class Refiner(Protocol):
    """Improves the weights and scales of a frozen supernet in place; `stage` names its checkpoint and log lines."""

    def refine(
        self,
        supernet: Supernet,
        teacher: nn.Module,
        data: Encoded,
        outputs: TeacherOutputs,
        settings: RecoverySettings,
        distillation: DistillationSettings,
        context: Context,
        stage: str,
    ) -> None: ...
