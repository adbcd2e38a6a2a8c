"""A weight with learned scales, per row or per sub-group: all of its rows, or some."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoquant.core.subgroup import Matrix, Partition
from autoquant.quantizers import QUANTIZERS, Midrise
from autoquant.supernet.scaled import ScaledWeight

WIDTHS = (1, 2, 8)
BUCKETS = np.array([2, 0, 1, 1, 0, 2, 2, 1, 0, 2], dtype=np.uint8)  # ten rows in three interleaved groups
SIZES = (3, 3, 4)


def scaled_weight(per_row: bool, quantizer: str = "midrise") -> ScaledWeight:
    draw = torch.Generator().manual_seed(0)
    partition = Partition(Matrix("m.weight", 10, 6, "word_embedding"), (0, *WIDTHS), SIZES, BUCKETS)
    scale = 0.1 + torch.rand(10 if per_row else 3, len(WIDTHS), generator=draw)
    weight = nn.Parameter(torch.randn(10, 6, generator=draw))
    return ScaledWeight(weight, scale.log(), partition, WIDTHS, QUANTIZERS[quantizer], per_row)


def quantised_rows(mixed: ScaledWeight, bits: tuple[int, ...]) -> Tensor:
    """Row by row: the group's width, the row's (or the group's) scale; zeros where the group is pruned."""
    rows = []
    for row, group in enumerate(BUCKETS.tolist()):
        if not bits[group]:
            rows.append(torch.zeros(1, 6))
            continue
        scale = mixed.log_scale.detach().exp()[row if mixed.per_row else group, WIDTHS.index(bits[group])]
        rows.append(Midrise().fake_quantize(mixed.weight.detach()[[row]], scale[None], bits[group]))
    return torch.cat(rows)


@pytest.mark.parametrize("per_row", [True, False])
def test_a_choice_is_one_width_per_group(per_row: bool) -> None:
    mixed = scaled_weight(per_row)
    mixed.use_choice(torch.tensor([2, 0, 1]), torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(mixed(), quantised_rows(mixed, (8, 0, 2)))


@pytest.mark.parametrize("per_row", [True, False])
def test_a_one_hot_mixture_is_that_choice(per_row: bool) -> None:
    mixed = scaled_weight(per_row)
    mixed.use_mixture(torch.tensor([[0.0, 0, 1], [0, 0, 0], [0, 1, 0]]))
    torch.testing.assert_close(mixed(), quantised_rows(mixed, (8, 0, 2)))


@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("choice", [True, False])
def test_some_rows_are_those_of_all_rows(per_row: bool, choice: bool) -> None:
    mixed, rows = scaled_weight(per_row), torch.tensor([7, 0, 3])
    if choice:
        mixed.use_choice(torch.tensor([2, 0, 1]), torch.tensor([1.0, 0.0, 1.0]))
    else:
        mixed.use_mixture(torch.rand(3, 3))
    assert torch.equal(mixed(rows), mixed()[rows])


@pytest.mark.parametrize("per_row", [True, False])
def test_a_mixture_forgets_which_rows_were_ternary(per_row: bool) -> None:
    mixed, fresh = scaled_weight(per_row, "lsq"), scaled_weight(per_row, "lsq")
    mixed.use_choice(torch.tensor([1, 1, 0]), torch.ones(3))
    for weight in (mixed, fresh):
        weight.use_mixture(torch.tensor([[0.2, 0.0, 0.8]] * 3))
    assert torch.equal(mixed(), fresh())


def test_rows_of_removed_units_are_zeros_where_ternary_too() -> None:
    mixed, keep = scaled_weight(True, "lsq"), torch.tensor([1.0, 0, 1, 1, 1, 0, 1, 1, 1, 1])
    mixed.use_choice(torch.tensor([1, 1, 0]), torch.ones(3), keep)
    assert torch.equal((mixed() != 0).any(dim=1), keep > 0)


@pytest.mark.parametrize("per_row", [True, False])
def test_the_gradient_of_a_scale_is_over_the_root_of_its_weights_and_levels(per_row: bool) -> None:
    """Inside the grid the logarithm of a scale moves a value by value - weight; 6 weights a row, 127 levels."""
    mixed = scaled_weight(per_row, "lsq")
    mixed.use_choice(torch.tensor([2, 2, 2]), torch.ones(3))
    values, grad = mixed(), torch.randn(10, 6, generator=torch.Generator().manual_seed(1))
    values.backward(grad)
    plain, count = (grad * (values - mixed.weight)).detach().sum(dim=1), torch.full((10,), 6.0)
    if not per_row:
        plain, count = (torch.zeros(3).index_add_(0, mixed.group_of_row, part) for part in (plain, count))
    torch.testing.assert_close(mixed.log_scale.grad[:, 2], plain / (127 * count).sqrt())


def test_before_a_choice_there_is_no_weight() -> None:
    with pytest.raises(RuntimeError, match="use_mixture or use_choice"):
        scaled_weight(True)()


@pytest.mark.parametrize("per_row", [True, False])
def test_the_chosen_scale_is_what_float16_holds(per_row: bool) -> None:
    mixed = scaled_weight(per_row)
    with torch.no_grad():
        mixed.log_scale[0, 2], mixed.log_scale[1, 0] = -40.0, 40.0
    column = torch.tensor([2, 0, 1])
    scale = mixed.chosen_scale(column)
    where = BUCKETS.tolist() if per_row else [0, 1, 2]
    expected = mixed.log_scale.detach().exp()[range(len(where)), column[where]].clamp(2.0**-24, 65504.0).half()
    assert torch.equal(scale, expected.float())
    assert bool((scale > 0).all())
    assert bool(scale.isfinite().all())
