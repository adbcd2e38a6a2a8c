"""A bare encoder learns the tiny task, and keeps its best state rather than its last."""

import copy
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from autoquant.core.settings import TeacherSettings
from autoquant.tasks.metrics import score
from autoquant.tasks.task import TASKS
from autoquant.training import teacher
from autoquant.training.batches import Encoded
from autoquant.training.evaluate import predict_logits
from autoquant.training.teacher import BestModel, finetune

ContextOpener = Callable[..., Any]
SETTINGS = TeacherSettings(epochs=8, patience=6, learning_rate=3e-3, batch_size=32)


def parts(encoded: Encoded) -> tuple[Encoded, Encoded]:
    return encoded.select(np.arange(256)), encoded.select(np.arange(256, 320))


def accuracy(model: BertForSequenceClassification, data: Encoded) -> float:
    return score(("accuracy",), predict_logits(model, data), data.labels)["accuracy"]


def test_it_learns_and_stops_on_the_plateau(
    tiny_classifier: BertForSequenceClassification, encoded: Encoded, open_context: ContextOpener
) -> None:
    model = copy.deepcopy(tiny_classifier)
    train, held_out = parts(encoded)
    assert accuracy(model, held_out) < 0.7
    with open_context() as context:
        result = finetune(model, train, held_out, TASKS["sst2"], SETTINGS, context)
        log = context.run.read_log()
    assert result["validation"] >= 0.9
    assert result["validation"] == accuracy(model, held_out)
    assert not model.training
    validations = {line["step"] + 1: line["validation"] for line in log if "validation" in line}
    assert list(validations) == list(range(4, int(result["steps"]) + 1, 4))  # two an epoch of eight steps
    best = max(validations, key=lambda step: (validations[step], -step))
    assert result["best_step"] == best
    assert result["steps"] == min(64, best + 6 * 4)


def test_the_best_state_is_kept_and_not_the_last(
    tiny_classifier: BertForSequenceClassification, encoded: Encoded, open_context: ContextOpener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation says 0.2, 0.9, 0.5, 0.4: the state after the second look counts, and the fourth is the last."""
    said, states = iter([0.2, 0.9, 0.5, 0.4, 1.0]), []
    model = copy.deepcopy(tiny_classifier)

    def validate(*_: object) -> dict[str, float]:
        states.append(model.classifier.weight.detach().clone())
        return {"accuracy": next(said)}

    monkeypatch.setattr(teacher, "score", validate)
    with open_context() as context:
        settings = TeacherSettings(epochs=8, patience=2, learning_rate=1e-3)
        result = finetune(model, *parts(encoded), TASKS["sst2"], settings, context)
    assert result == {"validation": 0.9, "steps": 16, "best_step": 8}
    assert torch.equal(model.classifier.weight, states[1])
    assert not torch.equal(model.classifier.weight, states[3])


def test_an_interrupted_teacher_is_the_same_teacher(
    tiny_classifier: BertForSequenceClassification, encoded: Encoded, open_context: ContextOpener, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TeacherSettings(epochs=1, learning_rate=1e-3)
    models, results = [copy.deepcopy(tiny_classifier) for _ in range(3)], []
    with open_context("whole") as context:
        results.append(finetune(models[0], *parts(encoded), TASKS["sst2"], settings, context))
    with open_context() as context, monkeypatch.context() as patch:
        real = teacher.label_loss
        calls: list[int] = []

        def interrupting(*arguments: Any) -> torch.Tensor:
            calls.append(1)
            if len(calls) == 6:  # after the first validation
                signal.raise_signal(signal.SIGINT)
            return real(*arguments)

        patch.setattr(teacher, "label_loss", interrupting)
        with pytest.raises(KeyboardInterrupt):
            finetune(models[1], *parts(encoded), TASKS["sst2"], settings, context)
    with open_context() as context:
        results.append(finetune(models[2], *parts(encoded), TASKS["sst2"], settings, context))
    assert results[0] == results[1]
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(models[2].state_dict()[name], tensor), name


def test_best_model_by_hand() -> None:
    best, model = BestModel(), torch.nn.Linear(1, 1)
    for step, value in enumerate([0.5, 0.7, 0.7, 0.6]):
        torch.nn.init.constant_(model.weight, float(step))
        best.offer(value, step, model)
    assert (best.best, best.step, best.since) == (0.7, 1, 2)
    assert best.state["weight"].item() == 1.0
    other = BestModel()
    other.load_state_dict(best.state_dict())
    assert other.state_dict() == best.state_dict()
