"""Who computes float32 matrix products on a CPU? oneDNN where it is exact: MKL leaves the wide registers of AMD's CPUs unused.

torch asks oneDNN only where float32 products may be rounded to bfloat16. oneDNN does round where a CPU has matrix units (AMX);
elsewhere it computes in float32, on a Zen 5 core 2.2 times as fast as MKL. Which of the two it is, is tried out once. Fused
attention would call it for very small matrices, ten times slower than MKL, so attention takes its plain form meanwhile; texts
of which that would keep too much in memory stay with MKL.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

MOST_TOKENS = 128  # of a text: plain attention keeps [tokens, tokens] a head for the backward pass
EXACT = 1e-5  # largest relative error of a float32 product over some hundred numbers; bfloat16's is a hundred times that


@contextmanager
def fast_products(device: torch.device | str, tokens: int) -> Iterator[None]:
    """Within the block, products on this CPU are oneDNN's where that is as exact and texts have at most so many `tokens`.

    Elsewhere, and on GPUs, nothing changes.
    """
    if torch.device(device).type != "cpu" or not _are_fast(tokens):
        yield
        return
    with _onednn(), sdpa_kernel(SDPBackend.MATH):
        yield


def operations_a_second(tokens: int) -> float:
    """Of training on two cores, as measured: with these products for texts of at most so many `tokens`, or with MKL's."""
    return 2.1e11 if _are_fast(tokens) else 1.1e11


def _are_fast(tokens: int) -> bool:
    return tokens <= MOST_TOKENS and onednn_is_exact()


@cache
def onednn_is_exact() -> bool:
    """Whether torch can ask oneDNN for float32 products, and gets them unrounded."""
    settings: Any = torch.backends.mkldnn
    if not (settings.is_available() and hasattr(getattr(settings, "matmul", None), "fp32_precision")):
        return False
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(128, 384, generator=draw) for _ in range(2))
    exact = a.double() @ b.double().T
    with _onednn():
        found = a @ b.T
    return bool((found - exact).abs().max() <= EXACT * exact.abs().max())


@contextmanager
def _onednn() -> Iterator[None]:
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
