"""The terms by hand: the teacher's give way to the labels; and no teacher is asked once they have."""

import functools
from typing import Any

import numpy as np
import pytest
import torch

from autoquant.core.settings import DistillationSettings
from autoquant.refine import annealed as module
from autoquant.refine.annealed import annealed
from autoquant.refine.train import terms_loss
from autoquant.training.distillation import TeacherOutputs, distillation_loss, label_loss

TERMS = DistillationSettings(logits=2.0, hidden=1.0, cross_entropy=0.5)


@pytest.mark.parametrize(
    ("done", "logits", "hidden", "labels"),
    [(0.0, 2.0, 1.0, 0.5), (0.125, 1.5, 0.75, 0.625), (0.25, 1.0, 0.5, 0.75), (0.5, 0.0, 0.0, 1.0), (0.75, 0.0, 0.0, 1.0)],
)
def test_terms_by_hand(done: float, logits: float, hidden: float, labels: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDED_OVER", 0.5)
    assert annealed(TERMS, done) == DistillationSettings(logits, hidden, labels)


def test_labels_are_learnt_once_they_alone_count(bench: Any) -> None:
    with bench.open_context() as context:
        losses = [line["loss"] for line in bench.refine("annealed", bench.supernet(), context, steps=120)]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[30:40])


def test_first_and_last_loss(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with bench.open_context() as context:
        problem = bench.problem("annealed", bench.supernet(), context)
        loss, outputs = terms_loss(problem, problem.distillation, annealed), problem.outputs()
    indices = np.arange(6)
    batch, taught = problem.data.collate(indices), functools.partial(outputs.batch, indices)
    plain = distillation_loss(problem.supernet, batch, outputs.batch(indices), problem.distillation)
    torch.testing.assert_close(loss(batch, taught, 0.0), plain)
    monkeypatch.delattr(TeacherOutputs, "batch")  # nobody asks any more
    logits = problem.supernet(**{name: value for name, value in batch.items() if name != "labels"}).logits
    torch.testing.assert_close(loss(batch, taught, 1.0), label_loss(logits, batch["labels"]))


def test_the_teacher_is_asked_until_labels_alone_count(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first quarter of the steps."""
    real, asked = TeacherOutputs.batch, []

    def asking(self: TeacherOutputs, indices: np.ndarray) -> Any:
        asked.append(indices)
        return real(self, indices)

    monkeypatch.setattr(TeacherOutputs, "batch", asking)
    with bench.open_context() as context:
        bench.refine("annealed", bench.supernet(), context, steps=8)
    assert len(asked) == 2
