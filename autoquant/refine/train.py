"""The loop of every refiner that trains the network as a whole: AdamW, a loss a step, learning rates that fall linearly to 0."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoquant.core.schedule import warmup_linear
from autoquant.core.settings import DistillationSettings
from autoquant.refine.base import RefineProblem
from autoquant.training.batches import BatchOrder
from autoquant.training.distillation import TeacherBatch, distillation_loss, teach
from autoquant.training.exchange import Exchange
from autoquant.training.loop import Stateful, run_steps

Taught = Callable[[], TeacherBatch]
"""What the teacher says of a batch, computed or looked up when it is asked."""

Loss = Callable[[dict[str, Tensor], Taught, float], Tensor]
"""A batch, what the teacher says of it, and the share of the steps that is done -> what to minimise, a scalar."""

Anneal = Callable[[DistillationSettings, float], DistillationSettings]
"""The weights at the start, and the share of the steps that is done -> the weights there."""


def constant(terms: DistillationSettings, _: float) -> DistillationSettings:
    """The same weights throughout."""
    return terms


def terms_loss(problem: RefineProblem, terms: DistillationSettings, anneal: Anneal = constant) -> Loss:
    """The weighted terms; the teacher is only asked while one of them wants to know."""

    def loss(batch: dict[str, Tensor], taught: Taught, done: float) -> Tensor:
        now = anneal(terms, done)
        return distillation_loss(problem.supernet, batch, taught() if _asks_teacher(now) else None, now)

    return loss


def _asks_teacher(terms: DistillationSettings) -> bool:
    return max(terms.logits, terms.hidden) > 0


class TaughtTexts:
    """The texts, or texts with words exchanged, and what the teacher says of them."""

    def __init__(self, problem: RefineProblem, asks_teacher: bool) -> None:
        self.data, self.teacher, self.device = problem.data, problem.teacher, problem.context.device
        share = problem.settings.exchange
        self.exchange = Exchange.among(self.teacher, self.data, share) if share else None
        self.outputs = problem.outputs() if asks_teacher and self.exchange is None else None  # the same in every epoch

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        batch = self.data.collate(indices, self.device)
        return batch if self.exchange is None else self.exchange(batch)

    def taught(self, batch: dict[str, Tensor], indices: np.ndarray) -> TeacherBatch:
        return teach(self.teacher, batch) if self.outputs is None else self.outputs.batch(indices)


def everything(problem: RefineProblem) -> list[dict[str, Any]]:
    """Parameter groups of all weights and all scales, at the recipe's rates."""
    supernet, settings = problem.supernet, problem.settings
    scales = {"params": supernet.scale_parameters(), "lr": settings.scale_learning_rate, "weight_decay": 0.0}
    return [{"params": supernet.weight_parameters(), "lr": settings.learning_rate}, scales]


def learn(problem: RefineProblem, terms: DistillationSettings, groups: list[dict[str, Any]], anneal: Anneal = constant) -> None:
    """Train the parameter groups on the weighted terms, in place."""
    train(problem, terms_loss(problem, terms, anneal), groups, _asks_teacher(terms))


def train(problem: RefineProblem, loss: Loss, groups: list[dict[str, Any]], asks_teacher: bool = True) -> None:
    """Take the recipe's steps on the parameter groups, in place."""
    supernet, settings, context = problem.supernet, problem.settings, problem.context
    order, texts = BatchOrder(problem.data, settings.batch_size, context.seed), TaughtTexts(problem, asks_teacher)
    rates = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups, fused=True)

    def step(number: int) -> dict[str, float]:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * warmup_linear(number, settings.steps, warmup=0.05)
        indices = order.indices(number)
        batch = texts.batch(indices)
        with context.autocast():
            value = loss(batch, functools.partial(texts.taught, batch, indices), number / settings.steps)
        value.backward()
        optimizer.step()
        supernet.zero_grad()
        return {"loss": value.item()}

    supernet.eval()  # no dropout: the teacher's outputs are the target, not noise around them
    state: dict[str, Stateful] = {"model": supernet.model, "optimizer": optimizer}
    title = f"Recover {problem.stage.removeprefix(f'{settings.training}-')}"
    run_steps(context, problem.stage, title, settings.steps, step, state)
