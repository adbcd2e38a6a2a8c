"""Ternary weights by hand, and their straight-through gradient."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from autoquant.core.storage import FLOAT16_SMALLEST
from autoquant.quantizers.ternary import ternarise, ternary_parameters

WEIGHT = torch.tensor([[1.0, -2.0, 0.25, 0.75], [0.0, 4.0, -0.5, 3.5]])


def test_by_hand_per_row() -> None:
    # mean|w| is 1 and 2, so thresholds are 0.7 and 1.4; above them lie 1, 2, 0.75 and 4, 3.5
    threshold, scale = ternary_parameters(WEIGHT)
    torch.testing.assert_close(threshold, torch.tensor([0.7, 1.4]))
    torch.testing.assert_close(scale, torch.tensor([1.25, 3.75]))
    expected = [[1.25, -1.25, 0.0, 1.25], [0.0, 3.75, 0.0, 3.75]]
    torch.testing.assert_close(ternarise(WEIGHT, threshold, scale), torch.tensor(expected))


def test_by_hand_over_the_matrix() -> None:
    # mean|w| is 1.5, the threshold 1.05; above it lie 2, 4 and 3.5
    threshold, scale = ternary_parameters(WEIGHT, torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(threshold, torch.tensor([1.05, 1.05]))
    torch.testing.assert_close(scale, torch.full((2,), 9.5 / 3))


@given(st.integers(0, 2**31), st.integers(1, 5))
def test_a_group_alone_has_the_same_parameters(seed: int, groups: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight, group = torch.randn(9, 5, generator=draw), torch.randint(groups, (9,), generator=draw)
    threshold, scale = ternary_parameters(weight, group)
    for index in group.unique():
        rows = group == index
        alone = ternary_parameters(weight[rows].reshape(1, -1))
        torch.testing.assert_close((threshold[rows][:1], scale[rows][:1]), alone)


def test_zeros_stay_zeros() -> None:
    threshold, scale = ternary_parameters(torch.zeros(2, 3))
    assert scale.tolist() == [FLOAT16_SMALLEST] * 2
    assert not ternarise(torch.zeros(2, 3), threshold, scale).any()


def test_the_gradient_passes_straight_through() -> None:
    weight = WEIGHT.clone().requires_grad_()
    grad = torch.arange(8.0).view(2, 4)
    ternarise(weight, *ternary_parameters(weight)).backward(grad)
    assert torch.equal(weight.grad, grad)
