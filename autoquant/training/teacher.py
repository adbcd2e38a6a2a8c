"""Fine-tuning a bare encoder into the full-precision teacher, to its plateau on a held-out part of the training file."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from autoquant.core.schedule import warmup_linear
from autoquant.core.settings import TeacherSettings
from autoquant.tasks.metrics import score
from autoquant.tasks.task import Task
from autoquant.training.batches import BatchOrder, Encoded
from autoquant.training.distillation import label_loss
from autoquant.training.evaluate import predict_logits
from autoquant.training.loop import Context, Stateful, run_steps


class BestModel:
    """The state with the best validation metric so far, and how many evaluations ago that was."""

    def __init__(self) -> None:
        self.best, self.since, self.step = -float("inf"), 0, 0
        self.state: dict[str, torch.Tensor] = {}

    def offer(self, value: float, step: int, model: nn.Module) -> None:
        if value > self.best:
            self.best, self.since, self.step = value, 0, step
            self.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        else:
            self.since += 1

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "since": self.since, "step": self.step, "state": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.since, self.step, self.state = state["best"], state["since"], state["step"], state["state"]


def finetune(
    model: nn.Module, train: Encoded, held_out: Encoded, task: Task, settings: TeacherSettings, context: Context
) -> dict[str, float]:
    """Train `model` in place and leave it at its best validation state; returns that metric and the steps taken."""
    order = BatchOrder(train, settings.batch_size, context.seed)
    steps = settings.epochs * order.batches_per_epoch
    every = max(1, order.batches_per_epoch // 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, fused=True)
    best = BestModel()

    def step(number: int) -> dict[str, float]:
        model.train()
        optimizer.param_groups[0]["lr"] = settings.learning_rate * warmup_linear(number, steps)
        batch = train.collate(order.indices(number), context.device)
        labels = batch.pop("labels")
        with context.autocast():
            loss = label_loss(model(**batch).logits.float(), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        values = {"loss": loss.item()}
        if (number + 1) % every == 0:
            logits = predict_logits(model, held_out, device=context.device)
            values["validation"] = score(task.metrics, logits, held_out.labels)[task.metric]
            best.offer(values["validation"], number + 1, model)
        return values

    state: dict[str, Stateful] = {"model": model, "optimizer": optimizer, "best": best}
    done = run_steps(context, "teacher", "Teacher", steps, step, state, stop=lambda: best.since >= settings.patience)
    if best.state:
        model.load_state_dict(best.state)
    model.eval()
    return {"validation": best.best, "steps": done, "best_step": best.step}
