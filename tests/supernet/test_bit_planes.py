"""Planes are the weight's binary digits; re-quantising drops the empty ones and changes no weight."""

import numpy as np
import pytest
import torch
from torch import Tensor

from autoquant.core.subgroup import Matrix, Partition
from autoquant.supernet.bit_planes import BitPlanes


def planes_of(weight: Tensor, sizes: tuple[int, ...] = (1,), widths: tuple[int, ...] = (0, 2, 3)) -> BitPlanes:
    return BitPlanes(weight, Partition(Matrix("w", *weight.shape, "ffn_in"), widths, sizes))


def test_digits_by_hand() -> None:
    """Three bits, largest 7: the step is 1; -6 is -110, 3 is 011."""
    planes = planes_of(torch.tensor([[7.0, -6.0, 3.0, 0.4]]))
    assert planes.planes[:, 0].T.tolist() == [[1, 1, 1], [-0.0, -1, -1], [1, 1, 0], [0, 0, 0]]
    assert planes.weight().tolist() == [[7.0, -6.0, 3.0, 0.0]]
    assert planes.bits().tolist() == [3]
    assert planes.norms()[:, 0].tolist() == pytest.approx([2**0.5, 3**0.5, 2**0.5])


def test_every_sub_group_has_its_own_step() -> None:
    planes = planes_of(torch.tensor([[7.0], [0.07], [0.01]]), sizes=(1, 2))
    torch.testing.assert_close(planes.weight(), torch.tensor([[7.0], [0.07], [0.01]]))
    assert planes.place_values()[:, 1].tolist() == pytest.approx([0.01, 0.02, 0.04])


def test_ends_that_became_zero_are_dropped_and_the_middle_stays() -> None:
    planes = planes_of(torch.tensor([[4.0, 4.0], [7.0, 7.0], [7.0, 5.0]]), sizes=(1, 1, 1))
    planes.planes[0] *= 0.4
    planes.planes[2, 1] = 0.0
    before = planes.weight()
    planes.requantise()
    assert torch.equal(planes.weight(), before)
    assert before.tolist() == [[7.0, 7.0], [2.0, 2.0], [6.0, 4.0]] or before[1].tolist() == [2.0, 2.0]
    assert planes.bits().tolist()[1:] == [1, 2]
    assert planes.alive.T.tolist()[1] == [False, True, False]


def test_nothing_left_is_no_bits() -> None:
    planes = planes_of(torch.tensor([[7.0, 1.0]]))
    planes.shrink(torch.zeros(3, 1))
    planes.requantise()
    assert planes.bits().tolist() == [0]
    assert planes.weight().tolist() == [[0.0, 0.0]]
    planes.move(torch.ones(1, 2))
    assert planes.weight().tolist() == [[0.0, 0.0]]


def test_the_least_bits_cannot_be_dropped() -> None:
    planes = planes_of(torch.tensor([[7.0, 5.0]]))
    assert planes.droppable(0)[:, 0].tolist() == [True, True, True]
    assert planes.droppable(2)[:, 0].tolist() == [True, False, False]


def test_moving_goes_along_the_place_values_and_moves_the_sum() -> None:
    planes = planes_of(torch.tensor([[7.0, 2.0]]))
    start = planes.planes.clone()
    planes.move(torch.tensor([[-0.5, 0.7]]))
    moved = planes.planes - start
    np.testing.assert_allclose(moved[:, 0, 1], 0.7 * np.array([1, 2, 4]) / 21, rtol=1e-5)
    value = (planes.planes * torch.tensor([1.0, 2.0, 4.0])[:, None, None]).sum(0)
    torch.testing.assert_close(value, torch.tensor([[6.5, 2.7]]))
    assert planes.weight()[0, 1] == 3.0


@pytest.mark.parametrize("seed", range(5))
def test_requantising_never_changes_the_weight(seed: int) -> None:
    torch.manual_seed(seed)
    planes = planes_of(torch.randn(12, 9), sizes=(5, 4, 3), widths=(0, 4, 8))
    assert (planes.weight() - planes_of(planes.weight(), (5, 4, 3), (0, 4, 8)).weight()).abs().max() < 1e-6
    for _ in range(6):
        planes.move(0.3 * torch.randn(12, 9))
        planes.shrink(torch.rand(8, 3))
        before, bits = planes.weight(), planes.bits()
        planes.requantise()
        assert torch.equal(planes.weight(), before)
        assert (planes.bits() <= bits).all()
        assert len(before[:5].unique()) <= 2 ** (int(planes.bits()[0]) + 1) - 1
        again = planes_of(torch.randn(12, 9), (5, 4, 3), (0, 4, 8))
        again.step = planes.step
        again.load_state_dict(planes.state_dict())
        assert torch.equal(again.weight(), before)
