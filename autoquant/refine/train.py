"""The loop of every refiner that trains the network as a whole: AdamW, a loss a step, learning rates that fall linearly to 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoquant.core.schedule import warmup_linear
from autoquant.core.settings import DistillationSettings
from autoquant.refine.base import RefineProblem
from autoquant.training.batches import BatchOrder
from autoquant.training.distillation import distillation_loss
from autoquant.training.loop import Stateful, run_steps

Loss = Callable[[dict[str, Tensor], np.ndarray, float], Tensor]
"""A batch, the indices of its samples, and the share of the steps that is done -> what to minimise, a scalar."""


Anneal = Callable[[DistillationSettings, float], DistillationSettings]
"""The weights at the start, and the share of the steps that is done -> the weights there."""


def constant(terms: DistillationSettings, _: float) -> DistillationSettings:
    """The same weights throughout."""
    return terms


def terms_loss(problem: RefineProblem, terms: DistillationSettings, anneal: Anneal = constant) -> Loss:
    """The weighted terms; the teacher's outputs are only made if one of them wants any, and only looked at while it does."""
    outputs = problem.outputs() if _asks_the_teacher(terms) else None

    def loss(batch: dict[str, Tensor], indices: np.ndarray, done: float) -> Tensor:
        now = anneal(terms, done)
        taught = outputs.batch(indices) if outputs is not None and _asks_the_teacher(now) else None
        return distillation_loss(problem.supernet, batch, taught, now)

    return loss


def _asks_the_teacher(terms: DistillationSettings) -> bool:
    return max(terms.logits, terms.hidden) > 0


def everything(problem: RefineProblem) -> list[dict[str, Any]]:
    """Parameter groups of all weights and all scales, at the recipe's rates."""
    supernet, settings = problem.supernet, problem.settings
    scales = {"params": supernet.scale_parameters(), "lr": settings.scale_learning_rate, "weight_decay": 0.0}
    return [{"params": supernet.weight_parameters(), "lr": settings.learning_rate}, scales]


def train(problem: RefineProblem, loss: Loss, groups: list[dict[str, Any]]) -> None:
    """Take the recipe's steps on the parameter groups, in place."""
    supernet, settings, context = problem.supernet, problem.settings, problem.context
    order = BatchOrder(problem.data, settings.batch_size, context.seed)
    rates = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups, fused=True)

    def step(number: int) -> dict[str, float]:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * warmup_linear(number, settings.steps, warmup=0.05)
        indices = order.indices(number)
        with context.autocast():
            value = loss(problem.data.collate(indices, context.device), indices, number / settings.steps)
        value.backward()
        optimizer.step()
        supernet.zero_grad()
        return {"loss": value.item()}

    supernet.eval()  # no dropout: the teacher's outputs are the target, not noise around them
    state: dict[str, Stateful] = {"model": supernet.model, "optimizer": optimizer}
    title = f"Recover {problem.stage.removeprefix(f'{settings.training}-')}"
    run_steps(context, problem.stage, title, settings.steps, step, state)
