"""Layers whose weight is a mixture of its quantised versions, or, once frozen, one quantised version per sub-group."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoquant.quantizers.activation import StaticRange, fake_quantize_dynamic
from autoquant.supernet.mixed import MixedWeight


class MixedPrecisionLinear(nn.Module):
    """`nn.Linear` with a mixed weight.

    Its input is quantised to the learned range `static`, if there is one; else to 8 bits as the runtime does, if
    `activation_bits` is 8. `drop` is QDrop's probability (Wei et al. 2022) that an element of it stays as it is.
    """

    def __init__(self, source: nn.Linear, weight: MixedWeight, activation_bits: int, static: StaticRange | None = None) -> None:
        super().__init__()
        self.mixed, self.bias, self.activation_bits, self.static = weight, source.bias, activation_bits, static
        self.in_features, self.out_features = source.in_features, source.out_features
        self.drop = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self._quantised(x), self.mixed(), self.bias)

    def _quantised(self, x: Tensor) -> Tensor:
        if self.activation_bits == 32:
            return x
        quantised = fake_quantize_dynamic(x) if self.static is None else self.static(x)
        return torch.where(torch.rand_like(x) < self.drop, x, quantised) if self.drop else quantised


class MixedPrecisionEmbedding(nn.Module):
    """`nn.Embedding` with a mixed weight; only the rows that occur in the batch are quantised."""

    def __init__(self, source: nn.Embedding, weight: MixedWeight) -> None:
        super().__init__()
        self.mixed = weight
        self.num_embeddings, self.embedding_dim = source.num_embeddings, source.embedding_dim

    def forward(self, ids: Tensor) -> Tensor:
        rows, inverse = torch.unique(ids, return_inverse=True)
        return functional.embedding(inverse, self.mixed(rows))
