"""What the student learns from the teacher: logits and hidden states (TernaryBERT's terms without attention scores)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoquant.core.progress import Progress
from autoquant.core.settings import DistillationSettings
from autoquant.training.batches import Encoded
from autoquant.training.loop import Context

CACHE_LIMIT_BYTES = 3 * 1024**3


@dataclass(frozen=True, eq=False)
class TeacherBatch:
    """Teacher outputs of one batch: logits [batch, classes]; hidden [layers + 1, batch, tokens, width]."""

    logits: Tensor
    hidden: Tensor


@torch.no_grad()
def teach(teacher: nn.Module, batch: dict[str, Tensor]) -> TeacherBatch:
    """The outputs of a forward pass, of float32 products whatever the student's are; labels in the batch are not looked at."""
    with torch.autocast(batch["input_ids"].device.type, enabled=False):
        out = teacher(**_inputs(batch), output_hidden_states=True)
    return TeacherBatch(out.logits.float(), torch.stack(out.hidden_states).float())


def _inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}


class TeacherOutputs:
    """The teacher's outputs on one data set, computed once up front where they fit in memory, else batch by batch.

    Cached hidden states are float16. Which of the two applies depends only on the data, so a resumed run sees the same.
    """

    def __init__(self, teacher: nn.Module, data: Encoded, context: Context) -> None:
        self.teacher, self.data, self.device = teacher.eval(), data, context.device
        config: Any = teacher.config
        tokens = sum(len(ids) for ids in data.ids)
        size = tokens * (config.num_hidden_layers + 1) * config.hidden_size * 2
        self._hidden: list[Tensor] | None = None
        if size <= CACHE_LIMIT_BYTES:
            self._fill(context.progress)

    @torch.no_grad()
    def _fill(self, progress: Progress) -> None:
        hidden: list[Tensor] = [torch.empty(0)] * len(self.data)
        logits: list[Tensor] = [torch.empty(0)] * len(self.data)
        batches = list(self.data.by_length(64))
        with progress.stage("Teacher outputs", total=len(batches)) as bar:
            for indices in batches:
                batch = self._compute(indices)
                states, answers = batch.hidden.half().cpu(), batch.logits.cpu()
                for row, index in enumerate(indices):
                    hidden[index] = states[:, row, : len(self.data.ids[index])].clone()
                    logits[index] = answers[row]
                bar.advance()
        self._hidden, self._logits = hidden, torch.stack(logits)

    def _compute(self, indices: np.ndarray) -> TeacherBatch:
        return teach(self.teacher, self.data.collate(indices, self.device))

    def part(self, start: int, stop: int) -> TeacherOutputs:
        """The same outputs for the samples from `start` to `stop`, which keep nothing twice."""
        return self.select(np.arange(start, stop))

    def select(self, rows: np.ndarray) -> TeacherOutputs:
        """The same outputs for the samples at `rows`, in that order."""
        part = copy.copy(self)
        part.data = self.data.select(rows)
        if self._hidden is not None:
            part._hidden, part._logits = [self._hidden[i] for i in rows], self._logits[rows]
        return part

    def joined(self, other: TeacherOutputs) -> TeacherOutputs:
        """These outputs followed by `other`'s; computed batch by batch if either is."""
        both = copy.copy(self)
        both.data = self.data.joined(other.data)
        if self._hidden is None or other._hidden is None:
            both._hidden = None
        else:
            both._hidden, both._logits = self._hidden + other._hidden, torch.cat([self._logits, other._logits])
        return both

    def batch(self, indices: np.ndarray) -> TeacherBatch:
        """Outputs for the samples `indices`, padded to the longest with zeros."""
        if self._hidden is None:
            return self._compute(indices)
        longest = max(len(self.data.ids[i]) for i in indices)
        layers, _, width = self._hidden[indices[0]].shape
        hidden = torch.zeros(layers, len(indices), longest, width, dtype=torch.float16)
        for row, index in enumerate(indices):
            values = self._hidden[index]
            hidden[:, row, : values.shape[1]] = values
        return TeacherBatch(self._logits[indices].to(self.device), hidden.to(self.device).float())


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, or squared error when there is one output (regression)."""
    if logits.shape[-1] == 1:
        return functional.mse_loss(logits[:, 0], labels.to(logits.dtype))
    return functional.cross_entropy(logits, labels)


def logit_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Soft cross-entropy to the teacher's probabilities, or squared error for regression."""
    if student.shape[-1] == 1:
        return functional.mse_loss(student, teacher)
    return -(functional.softmax(teacher, dim=-1) * functional.log_softmax(student, dim=-1)).sum(dim=-1).mean()


def divergence(teacher: Tensor, student: Tensor) -> float:
    """KL of predictions by logits, nats summed over a batch; of regression (one output, unit Gaussian) half the squared
    difference."""
    if teacher.shape[-1] == 1:
        return (teacher - student).square().sum().item() / 2
    p, q = teacher.log_softmax(-1), student.log_softmax(-1)
    return functional.kl_div(q, p, log_target=True, reduction="sum").item()


@torch.no_grad()
def mean_divergence(student: nn.Module, outputs: TeacherOutputs) -> float:
    """Of a student's predictions from the teacher's on all texts, nats a text."""
    student.eval()
    total = 0.0
    for indices in outputs.data.by_length(32):
        found = student(**_inputs(outputs.data.collate(indices, outputs.device))).logits.float()
        total += divergence(outputs.batch(indices).logits, found)
    return total / len(outputs.data)


def hidden_loss(student: tuple[Tensor, ...], teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared error over real tokens, averaged over tokens and width, summed over embeddings and layers."""
    weight = mask[:, :, None].to(teacher.dtype)
    total = torch.zeros((), device=teacher.device)
    for layer, target in zip(student, teacher, strict=True):
        total = total + ((layer - target).square() * weight).sum()
    return total / (weight.sum() * teacher.shape[-1])


def distillation_loss(
    student: nn.Module, batch: dict[str, Tensor], teacher: TeacherBatch | None, weights: DistillationSettings
) -> Tensor:
    """The weighted sum of the terms that `weights` asks for; `teacher` may be None if only labels count."""
    out = student(**_inputs(batch), output_hidden_states=weights.hidden > 0)
    loss = torch.zeros((), device=out.logits.device)
    if weights.cross_entropy:
        loss = loss + weights.cross_entropy * label_loss(out.logits.float(), batch["labels"])
    if teacher is not None and weights.logits:
        loss = loss + weights.logits * logit_loss(out.logits.float(), teacher.logits)
    if teacher is not None and weights.hidden:
        loss = loss + weights.hidden * hidden_loss(out.hidden_states, teacher.hidden, batch["attention_mask"])
    return loss
