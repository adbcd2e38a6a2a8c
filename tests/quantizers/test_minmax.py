"""AQ-BERT's quantiser by hand, and against the paper's own formulas."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoquant.quantizers import MinMax

WEIGHT = torch.tensor([[-1.0, 0.5, 2.0, 0.1], [0.25, 0.5, 1.0, 4.0]])


def test_two_bits_by_hand() -> None:
    """The rows span 3 and 3.75: steps 1 and 1.25 from -1 and 0.25."""
    scale = MinMax().initial_scale(WEIGHT, 2)
    assert scale.tolist() == [[1.0, 0.5], [1.25, 2.125]]
    assert MinMax().encode(WEIGHT, scale, 2).tolist() == [[0, 2, 3, 1], [0, 0, 1, 3]]
    assert MinMax().fake_quantize(WEIGHT, scale, 2).tolist() == [[-1.0, 1.0, 2.0, 0.0], [0.25, 0.25, 1.5, 4.0]]


def test_rows_of_a_group_share_their_range() -> None:
    measured = MinMax().measure(WEIGHT, (1, 2), torch.tensor([0, 0]))
    assert measured.tolist() == [[[5.0, 1.5], [torch.tensor(5 / 3).half().item(), 1.5]]]
    apart = MinMax().measure(WEIGHT, (2,), torch.tensor([1, 0]))
    assert apart[:, 0].tolist() == [[1.25, 2.125], [1.0, 0.5]]


@given(seed=st.integers(0, 2**31), bits=st.sampled_from([1, 2, 3, 4, 8]), shift=st.floats(-2, 2))
def test_the_formulas_of_the_paper(seed: int, bits: int, shift: float) -> None:
    """Eq. 7-10 in double precision: what float16 keeps of the range moves a value by a little, or to the next level."""
    weight = (torch.randn(3, 50, generator=torch.Generator().manual_seed(seed)) + shift).double()
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    q = (2**bits - 1) / (high - low)
    expected = torch.round(q * (weight - low)) / q + low
    scale = MinMax().initial_scale(weight.float(), bits)
    found = MinMax().fake_quantize(weight.float(), scale, bits).double()
    close = (found - expected).abs() < 4e-3 * (high - low)
    assert close.double().mean() > 0.9
    assert ((found - expected).abs() < 1.01 / q + 4e-3 * (high - low)).all()


def test_equal_weights_have_a_range_all_the_same() -> None:
    weight = torch.full((1, 4), 0.5)
    scale = MinMax().initial_scale(weight, 4)
    assert scale[0, 0] > 0
    torch.testing.assert_close(MinMax().fake_quantize(weight, scale, 4), weight, atol=1e-6, rtol=0)


@pytest.mark.parametrize("bits", [1, 8])
def test_what_is_stored_is_exact_in_float16(bits: int) -> None:
    scale = MinMax().initial_scale(torch.tensor([[1e-12, 3e-12], [1e9, -1e9]]), bits)
    assert torch.equal(scale, scale.half().float())
    assert bool((scale[:, 0] > 0).all())
    assert bool(scale.isfinite().all())
