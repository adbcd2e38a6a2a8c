"""Who computes float32 matrix products on a CPU? oneDNN on AMD's with AVX-512, which MKL leaves unused there.

torch asks oneDNN only where float32 products may be rounded to bfloat16. oneDNN does round where a CPU has matrix units (AMX);
elsewhere it computes in float32, on a Zen 5 core 2.2 times as fast as MKL. Which of the two it is, is tried out once. Fused
attention would call it for very small matrices, ten times slower than MKL, so attention takes its plain form meanwhile; texts
of which that would keep too much in memory stay with MKL.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

MOST_TOKENS = 128  # of a text: plain attention keeps [tokens, tokens] a head for the backward pass
# oneDNN keeps what it has prepared for a shape, megabytes each. Its own 1,024 of them took 2 GB where every batch has another
# number of tokens, and saved nothing.
KEPT_SHAPES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
EXACT = 1e-5  # largest relative error of a float32 product over some hundred numbers; bfloat16's is a hundred times that


@contextmanager
def fast_products(device: torch.device | str, tokens: int) -> Iterator[None]:
    """Within the block, products on this CPU are the faster ones, if its texts have at most so many `tokens`.

    Elsewhere, and on GPUs, nothing changes. Blocks may be nested and may overlap in threads: torch's settings are the process's,
    and come back when the last block ends. Inside, `torch.get_float32_matmul_precision` raises.
    """
    if torch.device(device).type != "cpu" or not _are_fast(tokens):
        yield
        return
    _SETTINGS.enter()
    try:
        yield
    finally:
        _SETTINGS.leave()


def operations_a_second(tokens: int) -> float:
    """Of training on two cores, as measured: with these products for texts of at most so many `tokens`, or with MKL's, on a CPU
    with AVX-512 or without."""
    return 2.1e11 if _are_fast(tokens) else 1.1e11 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 0.8e11


def _are_fast(tokens: int) -> bool:
    return tokens <= MOST_TOKENS and leaves_avx512_to_onednn() and onednn_is_exact()


@cache
def leaves_avx512_to_onednn() -> bool:
    """Whether this is a CPU on which MKL uses half of the registers' width: AMD's with AVX-512."""
    information = Path("/proc/cpuinfo")
    vendor = information.read_text("utf-8", errors="replace") if information.exists() else platform.processor()
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in vendor


@cache
def onednn_is_exact() -> bool:
    """Whether torch can ask oneDNN for float32 products, and gets them unrounded."""
    settings: Any = torch.backends.mkldnn
    if not (settings.is_available() and hasattr(getattr(settings, "matmul", None), "fp32_precision")):
        return False
    for name, value in KEPT_SHAPES.items():
        os.environ.setdefault(name, value)  # read at oneDNN's first product
    draw = torch.Generator("cpu").manual_seed(0)
    a, b = (torch.randn(128, 384, generator=draw, dtype=torch.float32, device="cpu") for _ in range(2))
    exact = a.double() @ b.double().T
    _SETTINGS.enter()
    try:
        with torch.autocast("cpu", enabled=False):
            found = a @ b.T
    finally:
        _SETTINGS.leave()
    return bool((found - exact).abs().max() <= EXACT * exact.abs().max())


class _Settings:
    """The two settings of the process, changed while anybody is inside."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, ExitStack()

    def enter(self) -> None:
        with self._lock:
            if not self._inside:
                self._before.enter_context(_onednn())
                self._before.enter_context(sdpa_kernel(SDPBackend.MATH))
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._before.close()


@contextmanager
def _onednn() -> Iterator[None]:
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


_SETTINGS = _Settings()
