"""Training with frozen bits and distillation (quantisation-aware, straight-through)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from autoquant.core.schedule import warmup_linear
from autoquant.core.settings import DistillationSettings, RecoverySettings
from autoquant.supernet.build import Supernet
from autoquant.training.batches import BatchOrder, Encoded
from autoquant.training.distillation import TeacherOutputs, distillation_loss
from autoquant.training.loop import Context, Stateful, run_steps


@dataclass(frozen=True)
class Retrain:
    """AdamW on weights and log-scales, linear decay to 0."""

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
    ) -> None:
        order = BatchOrder(data, settings.batch_size, context.seed)
        rates = (settings.learning_rate, settings.scale_learning_rate)
        optimizer = torch.optim.AdamW(
            [
                {"params": supernet.weight_parameters(), "lr": rates[0]},
                {"params": supernet.scale_parameters(), "lr": rates[1], "weight_decay": 0.0},
            ],
            fused=True,
        )

        def step(number: int) -> dict[str, float]:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * warmup_linear(number, settings.steps, warmup=0.05)
            indices = order.indices(number)
            with context.autocast():
                loss = distillation_loss(supernet, data.collate(indices, context.device), outputs.batch(indices), distillation)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return {"loss": loss.item()}

        supernet.eval()  # no dropout: the teacher's outputs are the target, not noise around them
        state: dict[str, Stateful] = {"model": supernet.model, "optimizer": optimizer}
        run_steps(context, stage, f"Recover {stage.split('-')[-1]}", settings.steps, step, state)
