"""oneDNN's products: exact or not used, the settings left as they were."""

import subprocess
import sys

import pytest
import torch

from autoquant.training import products
from autoquant.training.products import fast_products, onednn_is_exact, operations_a_second

pytestmark = pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="this torch never asks oneDNN")


def settings() -> tuple[str, bool]:
    return torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.flash_sdp_enabled()


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The products are thought faster on any CPU."""
    monkeypatch.setattr(products, "leaves_avx512_to_onednn", lambda: True)
    monkeypatch.setattr(products, "onednn_is_exact", lambda: True)


def test_products_in_the_block_are_exact_to_float32_and_the_settings_come_back() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 50, 384), torch.randn(96, 384)
    exact, before = x.double() @ weight.double().T, settings()
    with fast_products("cpu", 64):
        found = torch.nn.functional.linear(x, weight)
    assert settings() == before
    assert (found - exact).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.usefixtures("everywhere")
def test_blocks_that_overlap_end_with_the_last() -> None:
    """As those of two threads may."""
    before, first, second = settings(), fast_products("cpu", 64), fast_products("cpu", 64)
    first.__enter__()
    second.__enter__()
    assert settings() == ("bf16", False)
    first.__exit__(None, None, None)
    assert settings() == ("bf16", False)
    second.__exit__(None, None, None)
    assert settings() == before


@pytest.mark.usefixtures("everywhere")
def test_settings_come_back_after_an_error() -> None:
    before = settings()
    with pytest.raises(KeyError), fast_products("cpu", 64), fast_products("cpu", 8):
        raise KeyError
    assert settings() == before


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize(("device", "tokens"), [("cuda", 64), ("cpu", 129)])
def test_gpus_and_long_texts_are_left_alone(device: str, tokens: int) -> None:
    before = settings()
    with fast_products(device, tokens):
        assert settings() == before


def test_cpus_that_gain_nothing_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "leaves_avx512_to_onednn", lambda: False)
    before, estimated = settings(), operations_a_second(64)
    with fast_products("cpu", 64):
        assert settings() == before
    monkeypatch.setattr(products, "leaves_avx512_to_onednn", lambda: True)
    monkeypatch.setattr(products, "onednn_is_exact", lambda: True)
    assert operations_a_second(64) > estimated == operations_a_second(129)


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_rounded_products_are_found_out(monkeypatch: pytest.MonkeyPatch, default: torch.dtype) -> None:
    """A CPU with matrix units rounds to bfloat16: there, nothing changes, whatever a caller's default type is."""
    plain = torch.Tensor.__matmul__

    def rounded(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return plain(a.bfloat16(), b.bfloat16()).to(a.dtype) if a.dtype == torch.float32 else plain(a, b)

    onednn_is_exact.cache_clear()
    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    torch.set_default_dtype(default)
    try:
        assert not onednn_is_exact()
    finally:
        torch.set_default_dtype(torch.float32)
        onednn_is_exact.cache_clear()


def test_prepared_shapes_do_not_pile_up() -> None:
    """In a process of its own, since oneDNN reads its limit once."""
    code = """
import os, torch
from autoquant.training.products import fast_products, onednn_is_exact
onednn_is_exact()
print(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "64"
