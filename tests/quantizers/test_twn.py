"""Ternary weight networks by hand (threshold and scale: test_ternary.py)."""

import torch

from autoquant.quantizers.twn import Twn

WEIGHT = torch.tensor([[1.0, -2.0, 0.25, 0.75], [0.0, 4.0, -0.5, 3.5]])


def test_two_bits_are_ternary() -> None:
    scale = Twn().initial_scale(WEIGHT, 2)
    assert scale.tolist() == [1.25, 3.75]
    assert Twn().grid(2).ternary
    assert Twn().fake_quantize(WEIGHT, scale, 2).tolist() == [[1.25, -1.25, 0.0, 1.25], [0.0, 3.75, 0.0, 3.75]]


def test_eight_bits_reach_the_largest_weight() -> None:
    scale = Twn().initial_scale(WEIGHT, 8)
    torch.testing.assert_close(scale, torch.tensor([2 / 127, 4 / 127]), rtol=1e-3, atol=0)
    assert Twn().encode(WEIGHT, scale, 8).tolist()[0] == [191, 0, 143, 175]  # 63.5, -127, 15.9 and 47.6 steps
    assert not Twn().grid(8).ternary
