"""Packed matrices as modules: kept as they are stored, unpacked once or at every use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoquant.core.errors import ModelError
from autoquant.pack.matrix import Layout, PackedMatrix
from autoquant.quantizers.activation import fake_quantize_dynamic, fake_quantize_static
from autoquant.quantizers.base import Quantizer

MEMORY = ("unpacked", "packed")


def check_memory(memory: str) -> None:
    """Raise ModelError unless `memory` says what stays in memory: the `unpacked` weights too, or the `packed` ones alone."""
    if memory not in MEMORY:
        raise ModelError(f"memory is {memory!r}: give 'unpacked' (unpacked once, fast) or 'packed' (unpacked at every use).")


class Packed(nn.Module):
    """A matrix kept as it is stored, its buffers named as in the file; `weight` is unpacked on first use and kept.

    With `memory` set to `packed` nothing is kept and every use unpacks. `dtype` is that of the unpacked weight; it and the
    device follow `module.to(...)` as a parameter's do.
    """

    weight_codes: Tensor
    weight_scales: Tensor
    weight_layout: Tensor
    weight_buckets: Tensor | None
    weight_outliers: Tensor | None
    weight_positions: Tensor | None
    unpacked: Tensor

    def __init__(self, matrix: PackedMatrix, quantizer: Quantizer, memory: str = "unpacked", dtype: torch.dtype = torch.float32):
        super().__init__()
        self.quantizer, self.scale, self.memory = quantizer, matrix.layout.scale, memory
        for part in ("buckets", "outliers", "positions"):
            self.register_buffer(f"weight_{part}", None)
        for part, tensor in matrix.parts().items():
            self.register_buffer(f"weight_{part}", tensor)
        self.register_buffer("unpacked", torch.empty(0, dtype=dtype), persistent=False)  # empty: not yet
        self._matrix: PackedMatrix | None = None

    @property
    def weight(self) -> Tensor:
        """[rows, columns]."""
        if self.memory == "packed":
            return self.unpack()
        if self.unpacked.dim() == 1:
            self.unpacked = self.unpack()
        return self.unpacked

    @torch.inference_mode(False)  # a weight made in it could never take part in a gradient
    @torch.no_grad()
    def unpack(self, rows: Tensor | None = None) -> Tensor:
        """The weights of `rows` ([n] int64, None = all), [n, columns]."""
        if self._matrix is None or self._matrix.codes is not self.weight_codes:  # first use, or on another device since
            layout = Layout(self.weight_layout, self.weight_buckets, self.scale, self.quantizer.storage)
            rest = self.weight_outliers, self.weight_positions
            self._matrix = PackedMatrix(self.weight_codes, self.weight_scales, layout, *rest)
        return self._matrix.dequantise(self.quantizer, rows).to(self.unpacked.dtype)

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        """Other codes: what was unpacked from those before goes."""
        super()._load_from_state_dict(*arguments, **options)
        self.unpacked, self._matrix = self.unpacked.new_empty(0), None

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Packed:
        """Stored numbers keep their digits whatever the model is cast to."""
        stored = {name: buffer for name, buffer in self.named_buffers(recurse=False) if name != "unpacked"}
        super()._apply(fn, recurse)
        for name, buffer in stored.items():
            setattr(self, name, buffer.to(getattr(self, name).device))
        return self


class PackedLinear(Packed):
    """nn.Linear with a packed weight; with 8 `activation_bits` its input is quantised as fast runtimes do, 32 leaves it.

    With `static` the input is quantised to a stored range: `input_range` [2], step and offset (LSQ+). `options`: `Packed`'s.
    """

    input_range: Tensor | None

    def __init__(
        self,
        matrix: PackedMatrix,
        bias: nn.Parameter | None,
        quantizer: Quantizer,
        activation_bits: int,
        static: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(matrix, quantizer, **options)
        self.bias, self.activation_bits = bias, activation_bits
        self.register_buffer("input_range", torch.tensor([1.0, 0.0], dtype=torch.float32) if static else None)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self._quantised(x), self.weight, self.bias)

    def _quantised(self, x: Tensor) -> Tensor:
        """The input on its grid, which is computed in float32 whatever its dtype."""
        if self.activation_bits == 32:
            return x
        if self.input_range is None:
            return fake_quantize_dynamic(x.float()).to(x.dtype)
        step, offset = self.input_range
        return fake_quantize_static(x.float(), step, offset, self.activation_bits).to(x.dtype)


class PackedEmbedding(Packed):
    """nn.Embedding with a packed weight; where nothing is kept, only the rows that occur in the batch are unpacked."""

    def forward(self, ids: Tensor) -> Tensor:
        if self.memory == "packed":
            rows, inverse = torch.unique(ids, return_inverse=True)
            return functional.embedding(inverse, self.unpack(rows))
        return functional.embedding(ids, self.weight)
