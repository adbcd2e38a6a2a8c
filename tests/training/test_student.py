"""The student matches states with the teacher's, and comes closer to it."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
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


def test_the_student_comes_closer(tiny_classifier: Any, encoded: Encoded, open_context: Callable[..., Any]) -> None:
    teacher = copy.deepcopy(tiny_classifier)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(8.0 if parameter.dim() == 2 else 1.0)
    student = keep_layers(copy.deepcopy(teacher), BACKBONES["bert"], (0,))
    expected = predict_logits(teacher, encoded)
    before = np.square(predict_logits(student, encoded) - expected).mean()
    with open_context() as context:
        outputs = TeacherOutputs(teacher, encoded, context)
        distil(student, outputs, (0,), 2, StudentSettings(keep_every=2, steps=30, learning_rate=2e-3), context)
        losses = [line["loss"] for line in context.run.read_log()]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert np.square(predict_logits(student, encoded) - expected).mean() < before
    assert not student.training
