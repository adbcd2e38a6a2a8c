import torch

from autoquant.quantizers import QUANTIZERS

MIDRISE = QUANTIZERS["midrise"]
WEIGHT = torch.tensor([[-9.0, -1.2, -0.1, 0.1, 0.9, 1.1, 9.0]])
ONE = torch.ones(1)


def test_one_bit_keeps_the_sign() -> None:
    assert MIDRISE.fake_quantize(WEIGHT, 2 * ONE, 1).tolist() == [[-1, -1, -1, 1, 1, 1, 1]]
    assert MIDRISE.encode(WEIGHT, 2 * ONE, 1).tolist() == [[0, 0, 0, 1, 1, 1, 1]]


def test_two_bits_by_hand() -> None:
    assert MIDRISE.fake_quantize(WEIGHT, ONE, 2).tolist() == [[-1.5, -1.5, -0.5, 0.5, 0.5, 1.5, 1.5]]
    assert MIDRISE.encode(WEIGHT, ONE, 2).tolist() == [[0, 0, 1, 2, 2, 3, 3]]


def test_three_and_four_bits_by_hand() -> None:
    assert MIDRISE.fake_quantize(WEIGHT, ONE, 3).tolist() == [[-3.5, -1.5, -0.5, 0.5, 0.5, 1.5, 3.5]]
    assert MIDRISE.encode(WEIGHT, ONE, 4).tolist() == [[0, 6, 7, 8, 8, 9, 15]]


def test_eight_bits_have_a_zero() -> None:
    weight = torch.tensor([[0.2, -0.6, 126.4, 500.0, -500.0]])
    assert MIDRISE.fake_quantize(weight, ONE, 8).tolist() == [[0, -1, 126, 127, -127]]
    assert MIDRISE.encode(weight, ONE, 8).tolist() == [[127, 126, 253, 254, 0]]


def test_every_row_has_its_own_scale() -> None:
    both = MIDRISE.fake_quantize(torch.tensor([[0.3], [0.3]]), torch.tensor([1.0, 0.5]), 2)
    assert both.tolist() == [[0.5], [0.25]]
