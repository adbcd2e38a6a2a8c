"""The weight quantisers of MREM by hand."""

import math

import pytest
import torch

from autoquant.quantizers.lsq import Lsq

WEIGHT = torch.tensor([[1.0, -2.0, 0.25, 0.75]])  # mean|w| = 1


@pytest.mark.parametrize(("bits", "top"), [(3, 3), (4, 7), (8, 127)])
def test_the_step_starts_at_twice_the_mean_over_the_root_of_the_largest_level(bits: int, top: int) -> None:
    assert Lsq().grid(bits).limit == top
    assert Lsq().initial_scale(WEIGHT, bits).item() == torch.tensor(2 / math.sqrt(top)).half().item()


def test_four_bits_by_hand() -> None:
    codes = Lsq().encode(WEIGHT, torch.tensor([0.25]), 4)
    assert codes.tolist() == [[4 + 7, 0, 1 + 7, 3 + 7]]  # -2 / 0.25 = -8 is clamped to -7
    assert Lsq().decode(codes, torch.tensor([0.25]), 4).tolist() == [[1.0, -1.75, 0.25, 0.75]]


def test_two_bits_are_ternary_and_start_at_the_mean_above_the_threshold() -> None:
    assert Lsq().grid(2).ternary
    assert not any(Lsq().grid(bits).ternary for bits in (1, 3, 4, 8))
    assert Lsq().initial_scale(WEIGHT, 2).tolist() == [1.25]
    assert Lsq().encode(WEIGHT, torch.tensor([1.25]), 2).tolist() == [[2, 0, 1, 2]]


def test_one_bit_is_the_sign_times_the_mean() -> None:
    scale = Lsq().initial_scale(WEIGHT, 1)
    assert Lsq().fake_quantize(WEIGHT, scale, 1).tolist() == [[1.0, -1.0, 1.0, 1.0]]


def test_the_gradient_of_a_step_is_scaled_by_the_weights_that_share_it() -> None:
    assert Lsq().scale_gradient(100, 4) == pytest.approx(1 / math.sqrt(700))
    assert Lsq().scale_gradient(16, 8) == pytest.approx(1 / math.sqrt(16 * 127))
