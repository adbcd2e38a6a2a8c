"""GOBO by hand: outliers, equal bins, and the iteration that stops on the L1 error."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoquant.quantizers import QUANTIZERS
from autoquant.quantizers.gobo import Gobo, l1_centroids

GOBO = Gobo()


def test_the_first_bins_are_of_equal_population() -> None:
    # bins 0 1 | 9 10: their means are where nothing moves any more
    assert l1_centroids(torch.tensor([9.0, 0.0, 10.0, 1.0]), 2).tolist() == [0.5, 9.5]


def test_an_iteration_by_hand() -> None:
    # bins 0 1 2 | 3 4 20 with means 1 and 9: sum |w - c| = 2 + 6 + 5 + 11 = 24; the middle is 5, so 3 and 4 change over:
    # 0 1 2 3 4 | 20 with means 2 and 20: sum 6; the middle is 11, nothing moves
    assert l1_centroids(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 20.0]), 2).tolist() == [2.0, 20.0]


def test_a_step_that_raises_the_error_is_not_taken() -> None:
    # bins 0 0 0 | 0 5 6 with means 0 and 11/3: the middle is 11/6, so the fourth 0 changes over: error 4/3 + 7/3 = 11/3 with
    # these means; then 0 and 5.5: error 1; then nothing moves
    assert l1_centroids(torch.tensor([0.0, 0.0, 0.0, 0.0, 5.0, 6.0]), 2).tolist() == [0.0, 5.5]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=60), st.sampled_from([2, 4, 8, 16]))
def test_never_worse_than_the_equal_bins_it_starts_from(values: list[float], count: int) -> None:
    ordered = torch.tensor(values, dtype=torch.float64).sort().values
    found = l1_centroids(ordered, count)
    assert found.shape == (count,)
    assert bool((found.diff() >= -1e-9).all())
    bins = [part for part in torch.tensor_split(ordered, [len(ordered) * i // count for i in range(1, count)]) if len(part)]
    start = torch.stack([part.mean() for part in bins])

    def error(centroids: torch.Tensor) -> float:
        return float((ordered[:, None] - centroids).abs().amin(1).sum())

    assert error(found) <= error(start) + 1e-6


def test_outliers_are_the_least_probable_of_their_own_sub_group() -> None:
    weight = torch.randn(8, 500, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    weight[1, 7], weight[2, 3], weight[5, 499], weight[6, 0] = 9.0, -8.0, 100.0, -90.0
    group = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    found = GOBO.outliers(weight, group).nonzero().tolist()  # two of 2,000 in each
    assert found == [[1, 7], [2, 3], [5, 499], [6, 0]]


def test_outliers_are_far_from_the_mean_not_from_zero() -> None:
    weight = torch.full((2, 500), 10.0)
    weight[0, 7], weight[1, 3] = 10.5, 8.0
    assert GOBO.outliers(weight, torch.zeros(2, dtype=torch.int64)).nonzero().tolist() == [[1, 3]]  # one of 1,000


def test_outliers_are_kept_and_do_not_move_centroids() -> None:
    weight = torch.tensor([-1.0, 1.0]).repeat(5, 200)
    weight[3, 5], weight[0, 0] = 1000.1, -77.0
    group = torch.zeros(5, dtype=torch.int64)
    codebook = GOBO.centroids(weight, 1)  # two of 2,000 weights are outliers
    assert codebook.tolist() == [-1.0, 1.0]
    values = GOBO.fake_quantize(weight, codebook[None], group, 1)
    assert values[3, 5] == torch.tensor(1000.1).half()
    weight[3, 5] = values[3, 5]
    assert torch.equal(values, weight)


def test_few_weights_have_no_outliers() -> None:
    assert not GOBO.outliers(torch.tensor([[1e6, 0.0, 0.0]]), torch.zeros(1, dtype=torch.int64)).any()
    assert QUANTIZERS["gobo"].storage.outliers(3) == 0
