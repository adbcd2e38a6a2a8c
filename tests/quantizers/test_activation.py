import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from autoquant.quantizers.activation import StaticRange, fake_quantize_dynamic, fake_quantize_static


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


# A learned static range (LSQ+)


def test_static_by_hand() -> None:
    # levels -1, -0.5, ..., 6.5 at 4 bits
    x = torch.tensor([-3.0, -1.0, -0.3, 0.6, 6.6, 9.0])
    values = fake_quantize_static(x, torch.tensor(0.5), torch.tensor(-1.0), 4)
    torch.testing.assert_close(values, torch.tensor([-1.0, -1.0, -0.5, 0.5, 6.5, 6.5]))


def test_static_gradients_by_hand() -> None:
    # in steps from the offset: -4 (below), 1.4 (inside, 0.4 over its level), 20 (above, 15 levels)
    x = torch.tensor([-3.0, -0.3, 9.0], requires_grad=True)
    step, offset = torch.tensor(0.5, requires_grad=True), torch.tensor(-1.0, requires_grad=True)
    fake_quantize_static(x, step, offset, 4).backward(torch.tensor([1.0, 10.0, 100.0]))
    factor = (3 * 15) ** -0.5
    assert x.grad.tolist() == [0.0, 10.0, 0.0]
    assert step.grad.item() == pytest.approx((0 - 0.4 * 10 + 15 * 100) * factor, rel=1e-5)
    assert offset.grad.item() == pytest.approx((1 + 100) * factor, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_static_gradients_do_not_cancel(dtype: torch.dtype) -> None:
    """A gradient with a large mean, and few values beyond the range: what is summed is not a difference of large sums."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(32, 24, 384, generator=draw).to(dtype).requires_grad_()
    grad = (torch.rand(32, 24, 384, generator=draw) + 0.5).to(dtype)
    step, offset = (torch.tensor(value, dtype=dtype, requires_grad=True) for value in (0.03125, -4.0))
    fake_quantize_static(x, step, offset, 8).backward(grad)
    steps = (x.detach() - offset.detach()).div(step.detach()).double()
    inside = (steps >= 0) & (steps <= 255)
    assert 0 < int((~inside).sum()) < 100
    by_step = torch.where(inside, steps.round() - steps, steps.clamp(0, 255))
    factor = (x.numel() * 255) ** -0.5
    rtol = 1e-4 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(step.grad.double(), (grad.double() * by_step).sum() * factor, rtol=rtol, atol=0)
    torch.testing.assert_close(offset.grad.double(), (grad.double() * ~inside).sum() * factor, rtol=rtol, atol=0)


@pytest.mark.parametrize(("bits", "top"), [(8, 255), (4, 15)])
def test_a_static_range_starts_at_mean_and_minimum(bits: int, top: int) -> None:
    start = StaticRange.starting(0.75, -2.0, bits)
    assert start.log_step.exp().item() == pytest.approx(4 * 0.75 / top**0.5, rel=1e-5)
    assert start.offset.item() == -2.0


def test_what_is_stored_is_exact_in_float16() -> None:
    static = StaticRange(0.0123, -1.2345, 8)
    stored = static.stored()
    assert torch.equal(stored, stored.half().float())
    torch.testing.assert_close(stored, torch.tensor([0.0123, -1.2345]), rtol=1e-3, atol=0)


def test_what_is_stored_is_within_float16() -> None:
    assert StaticRange(0.0, 0.0, 8).stored()[0] > 0
    assert StaticRange(1e9, 1e9, 8).stored().tolist() == [65504.0, 65504.0]
    shrunk = StaticRange(1.0, -1e9, 8)
    nn.init.constant_(shrunk.log_step, -40.0)
    assert shrunk.stored().tolist() == [2.0**-24, -65504.0]


def test_a_static_range_quantises_with_what_is_stored_and_learns() -> None:
    static, x = StaticRange(0.0123, -1.2345, 8), torch.randn(50, generator=torch.Generator().manual_seed(0))
    values = static(x)
    torch.testing.assert_close(values, fake_quantize_static(x, *static.stored(), 8), rtol=0, atol=1e-6)
    values.square().sum().backward()
    assert static.log_step.grad != 0
    assert static.offset.grad != 0


@given(values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=60), bits=st.sampled_from([4, 8]))
def test_static_values_are_levels_and_the_nearest_ones(values: list[float], bits: int) -> None:
    x, step, offset = torch.tensor(values), torch.tensor(0.37), torch.tensor(-3.1)
    levels = torch.arange(2**bits) * step + offset
    found = fake_quantize_static(x, step, offset, bits)
    nearest = (x[:, None] - levels).abs().amin(dim=1)
    torch.testing.assert_close((found - x).abs(), nearest, atol=1e-4, rtol=1e-5)
