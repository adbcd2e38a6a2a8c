"""A min-max mixture against copies under autograd, and against the quantizer that packs."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoquant.core.subgroup import Matrix, Partition
from autoquant.quantizers import MinMax
from autoquant.supernet.ranged import RangedWeight

WIDTHS = (1, 2, 4, 8)
BUCKETS = np.array([2, 0, 1, 1, 0, 2, 2, 1, 0, 2], dtype=np.uint8)  # ten rows in three interleaved groups
both = pytest.mark.parametrize("per_row", [True, False])


def ranged(per_row: bool) -> RangedWeight:
    draw = torch.Generator().manual_seed(0)
    partition = Partition(Matrix("m.weight", 10, 6, "word_embedding"), (0, *WIDTHS), (3, 3, 4), BUCKETS)
    weight = nn.Parameter(torch.randn(10, 6, generator=draw) + 0.3)
    return RangedWeight(weight, partition, WIDTHS, MinMax(), per_row)


def quantised(mixed: RangedWeight, width: int) -> Tensor:
    """Every row at one width, by the range of its row or of all rows of its group."""
    weight, rows = mixed.weight.detach(), []
    for row, group in enumerate(BUCKETS.tolist()):
        sharing = weight[[row]] if mixed.per_row else weight[torch.from_numpy(BUCKETS) == group]
        scale = MinMax().initial_scale(sharing.reshape(1, -1), width)
        rows.append(MinMax().fake_quantize(weight[[row]], scale, width))
    return torch.cat(rows)


@both
def test_a_mixture_and_its_gradients_are_those_of_copies(per_row: bool) -> None:
    mixed, grad = ranged(per_row), torch.randn(10, 6)
    share = torch.rand(3, len(WIDTHS), requires_grad=True)
    mixed.use_mixture(share)
    output = mixed()
    output.backward(grad)
    of_row = share.detach()[torch.from_numpy(BUCKETS).long()]
    copies = torch.stack([quantised(mixed, width) for width in WIDTHS], dim=1)
    torch.testing.assert_close(output.detach(), (of_row[:, :, None] * copies).sum(1), atol=1e-5, rtol=1e-5)
    assert mixed.weight.grad is not None
    torch.testing.assert_close(mixed.weight.grad, of_row.sum(1)[:, None] * grad)  # straight-through (eq. 10)
    per_group = torch.zeros(3, len(WIDTHS)).index_add_(0, torch.from_numpy(BUCKETS).long(), (copies * grad[:, None]).sum(2))
    assert share.grad is not None
    torch.testing.assert_close(share.grad, per_group, atol=1e-4, rtol=1e-4)


@both
def test_a_choice_is_what_the_packer_writes_and_zero_where_pruned(per_row: bool) -> None:
    mixed, column = ranged(per_row), torch.tensor([2, 0, 1])
    mixed.use_choice(column, torch.tensor([1.0, 0.0, 1.0]))
    group, scale = torch.from_numpy(BUCKETS).long(), mixed.chosen_scale(column)
    assert scale.shape == ((10, 2) if per_row else (3, 2))
    row_scale = scale if per_row else scale[group]
    expected = torch.zeros(10, 6)
    for row in range(10):
        if group[row] != 1:
            width = WIDTHS[column[group[row]]]
            expected[row] = MinMax().fake_quantize(mixed.stored_weight()[[row]], row_scale[[row]], width)
    torch.testing.assert_close(mixed(), expected, atol=1e-6, rtol=1e-5)


@both
@pytest.mark.parametrize("choice", [True, False])
def test_some_rows_are_those_of_all_rows(per_row: bool, choice: bool) -> None:
    mixed, rows = ranged(per_row), torch.tensor([7, 0, 3])
    if choice:
        mixed.use_choice(torch.tensor([2, 0, 1]), torch.tensor([1.0, 0.0, 1.0]))
    else:
        mixed.use_mixture(torch.rand(3, len(WIDTHS)))
    assert torch.equal(mixed(rows), mixed()[rows])


def test_ranges_follow_the_weights() -> None:
    mixed = ranged(False)
    before = mixed.chosen_scale(torch.zeros(3, dtype=torch.int64))
    with torch.no_grad():
        mixed.weight.mul_(2.0)
    torch.testing.assert_close(mixed.chosen_scale(torch.zeros(3, dtype=torch.int64)), 2 * before, rtol=2e-3, atol=1e-3)


def test_before_a_choice_there_is_no_weight() -> None:
    with pytest.raises(RuntimeError, match="use_mixture or use_choice"):
        ranged(True)()
