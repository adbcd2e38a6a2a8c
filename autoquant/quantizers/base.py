"""What is a quantizer? Uniform, with a grid per bit-width and a scale per row, or one with a codebook per sub-group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from autoquant.core.storage import Storage
from autoquant.quantizers.codebook import CodebookQuantizer


@dataclass(frozen=True)
class Grid:
    """Representable values in units of the scale: `offset` + integers, clamped to [-limit, limit].

    The stored code of a value v is v / scale + limit, an integer in [0, 2 limit].
    """

    limit: float
    offset: float
    ternary: bool = False
    """Whether threshold and scale follow from the weights (TWN) instead of being searched and learned."""


class UniformQuantizer(Protocol):
    """Uniform quantisation of weight rows, one positive scale per row.

    `scale` is [rows] everywhere, or [rows, 2] for an asymmetric quantizer: scale, and midpoint of the range.
    """

    name: str
    widths: tuple[int, ...]
    """The bit-widths above 0 that it has, ascending."""

    storage: Storage
    symmetric_int8: bool
    """Whether codes are symmetric integers within int8 with a scale per output row or coarser, as fast runtimes need."""

    asymmetric: bool
    """Whether a midpoint is stored beside every scale and both are taken from the weights, neither searched nor learned."""

    def grid(self, bits: int) -> Grid:
        """The grid of one of its widths. Raises ValueError for others."""
        ...

    def initial_scale(self, weight: Tensor, bits: int, moment: Tensor | None = None) -> Tensor:
        """Where the scale of every row starts, [rows], exact in float16.

        weight [rows, columns]; `moment` [columns, columns]: the mean of x x^T over the layer's inputs, None for an embedding.
        """
        ...

    def scale_gradient(self, weights: int, bits: int) -> float:
        """Factor on the gradient of a scale that `weights` weights share."""
        ...

    def fake_quantize(self, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
        """Nearest representable values: weight [rows, columns], scale [rows] -> [rows, columns]; no gradient."""
        ...

    def encode(self, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
        """Codes [rows, columns] uint8, each below 2**bits."""
        ...

    def decode(self, codes: Tensor, scale: Tensor, bits: int) -> Tensor:
        """Values of codes: `decode(encode(w, s, b), s, b)` equals `fake_quantize(w, s, b)` exactly."""
        ...


Quantizer = UniformQuantizer | CodebookQuantizer
