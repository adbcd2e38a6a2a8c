"""A weight with learned scales, per row or per sub-group: all of its rows, or some."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoquant.core.subgroup import Matrix, Partition
from autoquant.quantizers import Midrise
from autoquant.supernet.scaled import ScaledWeight

WIDTHS = (1, 2, 8)
BUCKETS = np.array([2, 0, 1, 1, 0, 2, 2, 1, 0, 2], dtype=np.uint8)  # ten rows in three interleaved groups
SIZES = (3, 3, 4)


def scaled_weight(per_row: bool) -> ScaledWeight:
    draw = torch.Generator().manual_seed(0)
    partition = Partition(Matrix("m.weight", 10, 6, "word_embedding"), (0, *WIDTHS), SIZES, BUCKETS)
    scale = 0.1 + torch.rand(10 if per_row else 3, len(WIDTHS), generator=draw)
    weight = nn.Parameter(torch.randn(10, 6, generator=draw))
    return ScaledWeight(weight, scale.log(), partition, WIDTHS, Midrise(), per_row)


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
