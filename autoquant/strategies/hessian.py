"""How curved is the training loss? Products of the teacher's Hessian with vectors, which Q-BERT is made of.

Gradients are differentiated once more (Pearlmutter 1994), so no Hessian is ever formed. Attention runs in its plain form: the
fused ones have no second derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from autoquant.training.batches import Encoded
from autoquant.training.distillation import label_loss

BATCH_SIZE = 32
TOLERANCE = 0.01  # relative change of an eigenvalue at which power iteration has converged

Vectors = Sequence[Tensor]


def label_losses(model: nn.Module, data: Encoded, device: torch.device) -> Iterator[Tensor]:
    """The loss to the labels (no dropout), batch by batch, each times its share of `data`: their sum is the mean, a scalar."""
    model.eval()
    for indices in data.by_length(BATCH_SIZE):
        batch = data.collate(indices, device)
        labels = batch.pop("labels")
        with sdpa_kernel(SDPBackend.MATH):
            logits = model(**batch).logits.float()
        yield label_loss(logits, labels) * (len(indices) / len(data))


def hessian_product(losses: Iterable[Tensor], parameters: Vectors, vectors: Vectors) -> tuple[float, list[Tensor]]:
    """The summed loss, and H v for the Hessian H of that sum over `parameters`, both v and H v shaped as these."""
    total, product = 0.0, [torch.zeros_like(p) for p in parameters]
    for loss in losses:
        gradient = torch.autograd.grad(loss, parameters, create_graph=True)
        for sum_, part in zip(product, torch.autograd.grad(_dot(gradient, vectors), parameters), strict=True):
            sum_ += part
        total += loss.item()
    return total, product


def top_eigenvalue(
    product: Callable[[Vectors], tuple[float, list[Tensor]]], parameters: Vectors, iterations: int
) -> tuple[float, float]:
    """The eigenvalue of largest modulus, with its sign, by power iteration from a random vector; and the loss.

    `product` is `hessian_product` of `parameters`. Stops early when the Rayleigh quotient v' H v settles.
    """
    vectors, value, loss = _unit([torch.randn_like(p) for p in parameters]), 0.0, 0.0
    for _ in range(iterations):
        loss, image = product(vectors)
        before, value = value, _dot(vectors, image).item()
        if abs(value - before) <= TOLERANCE * abs(value):
            break
        vectors = _unit(image)
    return value, loss


def data_slices(data: Encoded, count: int, most: int, seed: int) -> list[Encoded]:
    """`count` random slices of `data`, of at most `most` texts each; with fewer texts than slices they come again."""
    size = max(1, min(most, len(data) // count))
    order = np.random.default_rng((seed, 5)).permutation(len(data))
    return [data.select(np.take(order, range(i * size, (i + 1) * size), mode="wrap")) for i in range(count)]


def _dot(ones: Vectors, others: Vectors) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(ones, others, strict=True)]).sum()


def _unit(vectors: Vectors) -> list[Tensor]:
    length = _dot(vectors, vectors).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    return [v / length for v in vectors]
