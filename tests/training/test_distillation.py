"""What the student is told: losses by hand, and teacher outputs that are the same from memory as from the teacher."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autoquant.core.settings import DistillationSettings
from autoquant.training import distillation
from autoquant.training.batches import Encoded
from autoquant.training.distillation import (
    TeacherBatch,
    TeacherOutputs,
    distillation_loss,
    hidden_loss,
    label_loss,
    logit_loss,
)

ContextOpener = Callable[..., Any]
LN3 = math.log(3.0)


def test_label_loss_by_hand() -> None:
    logits, labels = torch.tensor([[LN3, 0.0], [0.0, 0.0]]), torch.tensor([1, 0])
    assert label_loss(logits, labels).item() == pytest.approx((math.log(4) + math.log(2)) / 2)


def test_label_loss_of_a_regression_is_the_squared_error() -> None:
    labels = torch.tensor([2.0, 5.0], dtype=torch.float64)
    loss = label_loss(torch.tensor([[1.0], [3.0]]), labels)
    assert loss.item() == pytest.approx((1 + 4) / 2)
    assert loss.dtype == torch.float32


def test_logit_loss_by_hand() -> None:
    student, teacher = torch.tensor([[LN3, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert logit_loss(student, teacher).item() == pytest.approx(-0.5 * math.log(0.75) - 0.5 * math.log(0.25))
    assert logit_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [5.0]])).item() == pytest.approx(2.5)


def test_logit_loss_is_least_at_the_teacher() -> None:
    teacher = torch.randn(4, 3)
    student = teacher.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(logit_loss(student, teacher), student)
    torch.testing.assert_close(gradient, torch.zeros(4, 3), atol=1e-7, rtol=0)


def test_hidden_loss_by_hand() -> None:
    """One real token of two values, two layers: (1 + 4 + 9) / 2; the padded token does not count."""
    student = (torch.tensor([[[1.0, 2.0], [50.0, 50.0]]]), torch.tensor([[[3.0, 0.0], [50.0, 50.0]]]))
    loss = hidden_loss(student, torch.zeros(2, 1, 2, 2), torch.tensor([[1, 0]]))
    assert loss.item() == pytest.approx(7.0)


def test_hidden_loss_refuses_another_number_of_layers() -> None:
    with pytest.raises(ValueError, match="argument"):
        hidden_loss((torch.zeros(1, 1, 2),), torch.zeros(2, 1, 1, 2), torch.ones(1, 1))


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 2.0, 0.0), (0.0, 0.0, 1.0), (0.5, 2.0, 3.0)])
def test_terms_are_weighted(
    weights: tuple[float, ...],
    tiny_classifier: nn.Module,
    encoded: Encoded,
    inputs: Callable[..., dict[str, torch.Tensor]],
) -> None:
    batch = encoded.collate(np.arange(4))
    with torch.no_grad():
        out = tiny_classifier(**inputs(np.arange(4)), output_hidden_states=True)
        noise = torch.randn(3, *out.hidden_states[0].shape)
        teacher = TeacherBatch(out.logits + 1.0 * torch.randn(4, 2), torch.stack(out.hidden_states) + noise)
        logits, hidden, labels = weights
        expected = (
            logits * logit_loss(out.logits, teacher.logits)
            + hidden * hidden_loss(out.hidden_states, teacher.hidden, batch["attention_mask"])
            + labels * label_loss(out.logits, batch["labels"])
        )
        loss = distillation_loss(tiny_classifier, batch, teacher, DistillationSettings(logits, hidden, labels))
    torch.testing.assert_close(loss, expected)


def test_labels_alone_need_no_teacher(tiny_classifier: nn.Module, encoded: Encoded) -> None:
    batch = encoded.collate(np.arange(4))
    loss = distillation_loss(tiny_classifier, batch, None, DistillationSettings(0.0, 0.0, 1.0))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), abs=0.1)
    tiny_classifier.zero_grad()


# Teacher outputs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def outputs(
    tiny_classifier: nn.Module, encoded: Encoded, open_context: ContextOpener, monkeypatch: pytest.MonkeyPatch
) -> tuple[TeacherOutputs, TeacherOutputs]:
    """From memory, and from the teacher."""
    some = encoded.select(np.arange(70))
    with open_context() as context:
        cached = TeacherOutputs(tiny_classifier, some, context)
        monkeypatch.setattr(distillation, "CACHE_LIMIT_BYTES", 0)
        live = TeacherOutputs(tiny_classifier, some, context)
    monkeypatch.setattr(cached, "_compute", lambda _: pytest.fail("computed again"))
    return cached, live


@pytest.mark.parametrize("indices", [np.array([3]), np.array([69, 0, 12, 12, 31])])
def test_memory_and_teacher_agree_on_real_tokens(outputs: tuple[TeacherOutputs, TeacherOutputs], indices: np.ndarray) -> None:
    cached, live = (each.batch(indices) for each in outputs)
    mask = outputs[0].data.collate(indices)["attention_mask"].bool()
    assert len(indices) == 1 or not mask.all()
    assert cached.hidden.shape == live.hidden.shape == (3, len(indices), mask.shape[1], 32)
    torch.testing.assert_close(cached.logits, live.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(cached.hidden[:, mask], live.hidden[:, mask], atol=1e-3, rtol=1e-3)
    assert not cached.hidden[:, ~mask].any()
    assert cached.hidden.dtype == cached.logits.dtype == torch.float32


def test_the_outputs_are_the_teachers(
    outputs: tuple[TeacherOutputs, TeacherOutputs], tiny_classifier: nn.Module, inputs: Callable[..., dict[str, torch.Tensor]]
) -> None:
    with torch.no_grad():
        out = tiny_classifier(**inputs([7]), output_hidden_states=True)
    for each in outputs:
        batch = each.batch(np.array([7]))
        torch.testing.assert_close(batch.logits, out.logits, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(batch.hidden, torch.stack(out.hidden_states), atol=1e-3, rtol=1e-3)


def test_outputs_are_joined_from_memory_only_where_both_are(outputs: tuple[TeacherOutputs, TeacherOutputs]) -> None:
    cached, live = outputs
    both, mixed = cached.part(0, 20).joined(cached.part(50, 70)), cached.part(0, 20).joined(live.part(50, 70))
    assert len(both.data) == len(mixed.data) == 40
    indices = np.array([3, 39, 20])
    ours, theirs = both.batch(indices), cached.batch(np.array([3, 69, 50]))
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.hidden, theirs.hidden)
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        mixed.batch(indices)


@pytest.mark.parametrize("kind", [0, 1])
def test_a_part_is_the_same_outputs_counted_from_its_start(outputs: tuple[TeacherOutputs, TeacherOutputs], kind: int) -> None:
    whole = outputs[kind]
    part = whole.part(20, 50)
    assert len(part.data) == 30
    assert len(whole.data) == 70
    indices = np.array([0, 29, 4])
    ours, theirs = part.batch(indices), whole.batch(indices + 20)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.hidden, theirs.hidden)
    assert part.data.collate(indices)["input_ids"].tolist() == whole.data.collate(indices + 20)["input_ids"].tolist()
