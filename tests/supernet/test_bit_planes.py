"""Planes are the weight's binary digits; re-quantising drops the empty ones and makes the rest exact again."""

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


def test_means_are_over_the_rows_of_a_sub_group() -> None:
    planes = planes_of(torch.ones(3, 2), sizes=(1, 2))
    assert planes.mean_of_rows(torch.tensor([1.0, 2.0, 4.0])).tolist() == [1.0, 3.0]


def test_the_ends_that_round_to_zero_are_dropped_and_the_middle_stays() -> None:
    """7, 6, 1 with a shrunken lowest bit are 6, 6, 0: two bits; 7 and 5 without their highest bit are 3 and 1."""
    planes = planes_of(torch.tensor([[7.0, 6.0, 1.0], [7.0, 5.0, 7.0], [7.0, 0.0, 5.0]]), sizes=(1, 1, 1))
    planes.shrink(torch.tensor([[0.4, 1.0, 1.0], [1.0, 1.0, 0.2], [1.0, 0.4, 1.0]]))
    planes.requantise()
    assert planes.weight().tolist() == [[6.0, 6.0, 0.0], [3.0, 1.0, 3.0], [5.0, 0.0, 5.0]]
    assert planes.bits().tolist() == [2, 2, 3]
    assert planes.alive.T.tolist() == [[False, True, True], [True, True, False], [True, True, True]]


def test_a_plane_stays_while_one_of_its_bits_does() -> None:
    planes = planes_of(torch.tensor([[7.0, 7.0, 7.0]]))
    planes.planes[0] = torch.tensor([[0.1, 0.1, 0.6]])
    planes.requantise()
    assert planes.bits().tolist() == [3]
    assert planes.weight().tolist() == [[6.0, 6.0, 7.0]]


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
def test_requantising_keeps_exact_bits_and_rounds_the_others_to_the_lowest_plane_left(seed: int) -> None:
    torch.manual_seed(seed)
    sizes, widths = (5, 4, 3), (0, 4, 8)
    planes = planes_of(torch.randn(12, 9), sizes, widths)
    for _ in range(6):
        planes.move(0.3 * torch.randn(12, 9))
        planes.shrink(0.3 + 0.7 * torch.rand(8, 3))
        before, bits, highest = planes.weight(), planes.bits(), planes.alive.flip(0).int().argmax(dim=0)
        planes.requantise()
        after, lowest = planes.weight(), planes.alive.int().argmax(dim=0)
        assert (planes.bits() <= bits).all()
        unit = (planes.step * 2.0**lowest)[planes.group_of_row, None]
        uncut = (planes.alive.flip(0).int().argmax(dim=0) == highest)[planes.group_of_row]
        rounded = (after - before).abs() <= 1.01 * unit  # the nearest multiple, or for the widest the one below
        assert rounded[uncut].all()
        assert (after / unit - (after / unit).round()).abs().max() < 1e-3
        planes.requantise()
        assert torch.equal(planes.weight(), after)
        again = planes_of(torch.randn(12, 9), sizes, widths)
        again.step = planes.step
        again.load_state_dict(planes.state_dict())
        assert torch.equal(again.weight(), after)
