"""The student matches states with the teacher's, and comes closer to it."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from autoquant.backbones import BACKBONES
from autoquant.backbones.shorten import keep_layers
from autoquant.core.settings import StudentSettings
from autoquant.training.batches import Encoded
from autoquant.training.distillation import TeacherOutputs
from autoquant.training.evaluate import predict_logits
from autoquant.training.student import distil, matching_states


def test_a_kept_layer_should_be_given_what_it_was_given() -> None:
    assert matching_states((0, 2, 5), 6) == [0, 2, 5, 6]


@pytest.fixture
def teacher(tiny_classifier: Any) -> Any:
    model = copy.deepcopy(tiny_classifier)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0 if parameter.dim() == 2 else 1.0)
    return model


def cut(teacher: Any) -> Any:
    return keep_layers(copy.deepcopy(teacher), BACKBONES["bert"], (0,))


def test_the_student_comes_closer(teacher: Any, encoded: Encoded, open_context: Callable[..., Any]) -> None:
    student = cut(teacher)
    expected = predict_logits(teacher, encoded)
    before = np.square(predict_logits(student, encoded) - expected).mean()
    with open_context() as context:
        outputs = TeacherOutputs(teacher, encoded, context)
        distil(student, outputs, (0,), 2, StudentSettings(keep_every=2, steps=30, learning_rate=2e-3), context)
        losses = [line["loss"] for line in context.run.read_log()]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert np.square(predict_logits(student, encoded) - expected).mean() < before
    assert not student.training


def test_an_interrupted_student_is_the_same_student(
    teacher: Any, encoded: Encoded, open_context: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, students, batch = StudentSettings(keep_every=2, steps=6, batch_size=8), [cut(teacher) for _ in range(3)], []
    real = TeacherOutputs.batch

    def pressing(self: TeacherOutputs, indices: np.ndarray) -> Any:
        batch.append(indices)
        if len(batch) == 4:
            raise KeyboardInterrupt
        return real(self, indices)

    with open_context("whole") as context:
        distil(students[0], TeacherOutputs(teacher, encoded, context), (0,), 2, settings, context)
    with open_context(checkpoint_seconds=0.0) as context, monkeypatch.context() as patch:
        patch.setattr(TeacherOutputs, "batch", pressing)
        with pytest.raises(KeyboardInterrupt):
            distil(students[1], TeacherOutputs(teacher, encoded, context), (0,), 2, settings, context)
    with open_context() as context:
        distil(students[2], TeacherOutputs(teacher, encoded, context), (0,), 2, settings, context)
    ours, theirs = students[2].state_dict(), students[0].state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
