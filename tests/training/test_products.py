"""oneDNN's products: exact or not used, the settings left as they were."""

import pytest
import torch

from autoquant.training import products
from autoquant.training.products import fast_products, onednn_is_exact


def settings() -> tuple[str, bool]:
    return torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.flash_sdp_enabled()


def test_products_in_the_block_are_exact_to_float32_and_the_settings_come_back() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 50, 384), torch.randn(96, 384)
    exact, before = x.double() @ weight.double().T, settings()
    with fast_products("cpu", 64):
        found = torch.nn.functional.linear(x, weight)
        assert (settings() == ("bf16", False)) == onednn_is_exact()
    assert settings() == before
    assert (found - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_settings_come_back_after_an_error() -> None:
    before = settings()
    with pytest.raises(KeyError), fast_products("cpu", 64):
        raise KeyError
    assert settings() == before


@pytest.mark.parametrize(("device", "tokens"), [("cuda", 64), ("cpu", 129)])
def test_gpus_and_long_texts_are_left_alone(device: str, tokens: int) -> None:
    before = settings()
    with fast_products(device, tokens):
        assert settings() == before


def test_rounded_products_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with matrix units rounds to bfloat16: there, nothing changes."""
    onednn_is_exact.cache_clear()
    plain = torch.Tensor.__matmul__
    rounded = lambda a, b: plain(a.bfloat16(), b.bfloat16()).to(a.dtype) if a.dtype == torch.float32 else plain(a, b)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "__matmul__", rounded)
        assert not onednn_is_exact()
        before = settings()
        with fast_products("cpu", 64):
            assert settings() == before
    onednn_is_exact.cache_clear()
    assert products.EXACT < 1e-3
