"""A shallow student learns from the full-precision model it was cut out of, before it takes that model's place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from autoquant.core.schedule import warmup_linear
from autoquant.core.settings import StudentSettings
from autoquant.training.batches import BatchOrder
from autoquant.training.distillation import TeacherOutputs, hidden_loss, logit_loss
from autoquant.training.loop import Context, Stateful, run_steps


def matching_states(kept: Sequence[int], layers: int) -> list[int]:
    """The teacher's hidden state for each of the student's: what its next layer was given there, and the last one's output.

    State 0 are the embeddings, state i the output of layer i - 1.

    >>> matching_states((0, 2, 4, 7, 9, 11), 12)
    [0, 2, 4, 7, 9, 11, 12]
    """
    return [*kept, layers]


def distil(
    student: nn.Module, outputs: TeacherOutputs, kept: Sequence[int], layers: int, settings: StudentSettings, context: Context
) -> None:
    """Train `student`, which has the layers `kept` of the teacher's, in place, on the teacher's logits and hidden states."""
    order = BatchOrder(outputs.data, settings.batch_size, context.seed)
    optimizer = torch.optim.AdamW(student.parameters(), lr=settings.learning_rate, fused=True)
    states = matching_states(kept, layers)

    def step(number: int) -> dict[str, float]:
        optimizer.param_groups[0]["lr"] = settings.learning_rate * warmup_linear(number, settings.steps)
        indices = order.indices(number)
        batch = outputs.data.collate(indices, context.device)
        batch.pop("labels")
        target = outputs.batch(indices)
        with context.autocast():
            out = student(**batch, output_hidden_states=True)
        loss = logit_loss(out.logits.float(), target.logits)
        loss = loss + hidden_loss(out.hidden_states, target.hidden[states], batch["attention_mask"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": loss.item()}

    student.eval()  # no dropout: the teacher's outputs are the target, not noise around them
    state: dict[str, Stateful] = {"model": student, "optimizer": optimizer}
    run_steps(context, "student", "Student", settings.steps, step, state)
