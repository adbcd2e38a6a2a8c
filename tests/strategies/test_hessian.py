"""Products, eigenvalues and traces against Hessians that are written down, and against gradients of a real model."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoquant.strategies import hessian
from autoquant.strategies.hessian import data_slices, hessian_product, label_losses, top_eigenvalue
from autoquant.training.distillation import label_loss

MATRIX = torch.tensor([[2.0, 1.0, 0.0], [1.0, -5.0, 0.0], [0.0, 0.0, 1.0]])


def quadratic(point: Tensor) -> Iterator[Tensor]:
    """x' A x / 2, in two halves."""
    for _ in range(2):
        yield point @ MATRIX @ point / 4


def test_a_product_by_hand() -> None:
    point = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    loss, (product,) = hessian_product(quadratic(point), [point], [torch.tensor([1.0, 0.0, 2.0])])
    assert product.tolist() == [2.0, 1.0, 2.0]
    assert loss == pytest.approx((2 + 4 - 20 + 9) / 2)


def test_the_top_eigenvalue_keeps_its_sign() -> None:
    point = nn.Parameter(torch.ones(3))
    torch.manual_seed(0)
    value, _ = top_eigenvalue(lambda v: hessian_product(quadratic(point), [point], v), [point], 50)
    assert value == pytest.approx(torch.linalg.eigvalsh(MATRIX)[0].item(), rel=0.01)
    assert value < 0


def test_a_flat_loss_has_no_curvature() -> None:
    point = nn.Parameter(torch.ones(3))
    assert top_eigenvalue(lambda v: (0.0, [torch.zeros(3)]), [point], 5) == (0.0, 0.0)


def test_a_product_of_a_real_model_is_the_change_of_its_gradient(make_problem: Callable[..., Any]) -> None:
    outputs = make_problem().train()
    model, data = outputs.teacher, outputs.data.select(np.arange(12))
    names = ["bert.encoder.layer.1.attention.self.query.weight", "bert.embeddings.word_embeddings.weight"]
    parameters = [model.get_parameter(name) for name in names]
    torch.manual_seed(1)
    vectors = [torch.randn_like(p) for p in parameters]

    def gradients() -> tuple[Tensor, ...]:
        batch = data.collate(np.arange(len(data)))
        labels = batch.pop("labels")
        return torch.autograd.grad(label_loss(model(**batch).logits, labels), parameters)

    _, product = hessian_product(label_losses(model, data, torch.device("cpu")), parameters, vectors)
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, v in zip(parameters, vectors, strict=True):
                p.add_(sign * 1e-3 * v)
        sides.append(gradients())
        with torch.no_grad():
            for p, v in zip(parameters, vectors, strict=True):
                p.sub_(sign * 1e-3 * v)
    for ours, above, below in zip(product, *sides, strict=True):
        expected = (above - below) / 2e-3
        assert ((ours - expected).norm() / expected.norm()).item() < 0.05
    assert all(p.grad is None for p in model.parameters())


def test_the_losses_of_all_batches_add_up_to_the_mean(make_problem: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = make_problem().train()
    few = outputs.teacher, outputs.data.select(np.arange(12)), torch.device("cpu")
    (whole,) = label_losses(*few)
    monkeypatch.setattr(hessian, "BATCH_SIZE", 5)
    parts = [loss.item() for loss in label_losses(*few)]
    assert len(parts) == 3
    assert sum(parts) == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize(("most", "size"), [(3, 3), (1000, 32)])
def test_slices_share_no_text_and_are_at_most_their_share(most: int, size: int, make_problem: Callable[..., Any]) -> None:
    data = make_problem().whole().data
    slices = data_slices(data, 10, most, seed=0)
    assert [len(part) for part in slices] == [size] * 10
    texts = [id(ids) for part in slices for ids in part.ids]
    assert len(set(texts)) == len(texts)


def test_the_seed_draws_the_slices(make_problem: Callable[..., Any]) -> None:
    data = make_problem().whole().data
    first, again, other = ([ids.tolist() for ids in data_slices(data, 2, 4, seed)[1].ids] for seed in (3, 3, 4))
    assert first == again != other
