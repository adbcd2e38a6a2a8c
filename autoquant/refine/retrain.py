"""Training with frozen bits and distillation (quantisation-aware, straight-through)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from autoquant.core.schedule import warmup_linear
from autoquant.refine.base import RefineProblem
from autoquant.training.batches import BatchOrder
from autoquant.training.distillation import distillation_loss
from autoquant.training.loop import Stateful, run_steps


@dataclass(frozen=True)
class Retrain:
    """AdamW on weights and log-scales, linear decay to 0."""

    def refine(self, problem: RefineProblem) -> None:
        supernet, settings, context = problem.supernet, problem.settings, problem.context
        data, outputs = problem.data, problem.outputs()
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
                batch, target = data.collate(indices, context.device), outputs.batch(indices)
                loss = distillation_loss(supernet, batch, target, problem.distillation)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return {"loss": loss.item()}

        supernet.eval()  # no dropout: the teacher's outputs are the target, not noise around them
        state: dict[str, Stateful] = {"model": supernet.model, "optimizer": optimizer}
        run_steps(context, problem.stage, f"Recover {problem.stage.split('-')[-1]}", settings.steps, step, state)
