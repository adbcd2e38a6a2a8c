import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from autoquant.quantizers.activation import fake_quantize_dynamic


def onnx_dynamic_quantize_linear(x: np.ndarray) -> np.ndarray:
    """The operator's text, in numpy float32, then dequantised: x_scale = (max(x, 0) - min(x, 0)) / 255, round half to even."""
    low, high = np.minimum(x.min(), np.float32(0)), np.maximum(x.max(), np.float32(0))
    scale = (high - low) / np.float32(255)
    zero = np.clip(np.rint((0 - low) / scale), 0, 255)
    codes = np.clip(np.rint(x / scale) + zero, 0, 255)
    return ((codes - zero) * scale).astype(np.float32)


def test_by_hand() -> None:
    # the operator's documented example: scale 5 / 255, zero point 153
    x = torch.tensor([0.0, 2.0, -3.0, 1.34])
    codes = torch.tensor([153.0, 255.0, 0.0, 221.0])
    assert torch.allclose(fake_quantize_dynamic(x), (codes - 153) * (5 / 255), atol=1e-6)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ([0.0, 255.0, 100.4], [0.0, 255.0, 100.0]),  # scale 1, zero point 0
        ([10.0, 255.0], [10.0, 255.0]),  # the range always includes 0
        ([-255.0, -3.4], [-255.0, -3.0]),  # zero point 255
        ([-100.0, 155.0, 0.5, 1.5], [-100.0, 155.0, 0.0, 2.0]),  # zero point 100; ties go to even
    ],
)
def test_scale_one(x: list[float], expected: list[float]) -> None:
    assert fake_quantize_dynamic(torch.tensor(x)).tolist() == expected


@given(values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=60))
def test_is_the_onnx_operator(values: list[float]) -> None:
    x = np.array(values, dtype=np.float32)
    span = np.ptp(np.append(x, 0))
    assume(span > 1e-30)
    ours = fake_quantize_dynamic(torch.from_numpy(x)).numpy()
    assert np.allclose(ours, onnx_dynamic_quantize_linear(x), rtol=0, atol=1e-5 * span)


@given(values=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=60))
def test_error_is_at_most_a_step(values: list[float]) -> None:
    x = torch.tensor(values)
    step = float(x.max().clamp_min(0) - x.min().clamp_max(0)) / 255
    assert float((fake_quantize_dynamic(x) - x).abs().max()) <= step * 1.001 + 1e-6


def test_zeros_stay_zeros() -> None:
    assert fake_quantize_dynamic(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_one_range_for_the_whole_tensor() -> None:
    x = torch.tensor([[0.1, 0.2], [0.0, 255.0]])
    assert fake_quantize_dynamic(x)[0].tolist() == [0.0, 0.0]


def test_gradient_passes_straight_through() -> None:
    x = torch.randn(5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (fake_quantize_dynamic(x) * torch.arange(5.0)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
