import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoquant.core.subgroup import Matrix, Partition, bucket_sizes, even_sizes, frequency_buckets


def partition(sizes: tuple[int, ...], buckets: np.ndarray | None = None) -> Partition:
    return Partition(Matrix("w", sum(sizes), 3, "query", 0), (2, 4), sizes, buckets)


@pytest.mark.parametrize(
    ("rows", "groups", "expected"),
    [(10, 4, (3, 3, 2, 2)), (12, 3, (4, 4, 4)), (3, 5, (1, 1, 1)), (7, 1, (7,)), (7, 0, (7,))],
)
def test_even_sizes(rows: int, groups: int, expected: tuple[int, ...]) -> None:
    assert even_sizes(rows, groups) == expected


@given(rows=st.integers(1, 5000), groups=st.integers(1, 300))
def test_every_row_is_in_exactly_one_run(rows: int, groups: int) -> None:
    sizes = even_sizes(rows, groups)
    assert sum(sizes) == rows
    assert len(sizes) == min(rows, groups)
    assert max(sizes) - min(sizes) <= 1
    assert partition(sizes).group_of_row.tolist() == [group for group, size in enumerate(sizes) for _ in range(size)]


@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=400), buckets=st.integers(1, 20))
def test_every_row_is_in_exactly_one_bucket_and_none_is_empty(counts: list[int], buckets: int) -> None:
    bucket_of_row, sizes = frequency_buckets(np.array(counts), buckets)
    assert np.bincount(bucket_of_row, minlength=len(sizes)).tolist() == list(sizes)
    assert min(sizes) > 0
    assert len(sizes) <= buckets
    least, most = [np.full(len(sizes), edge) for edge in (np.inf, -np.inf)]
    np.minimum.at(least, bucket_of_row, counts)
    np.maximum.at(most, bucket_of_row, counts)
    assert all(least[:-1] >= most[1:])  # an earlier bucket has no rarer token than a later one


def test_bucket_sizes_grow_geometrically() -> None:
    # edges 64, 64 r, 64 r^2, 4096 with r = 4
    assert bucket_sizes(4096, 4) == (64, 192, 768, 3072)
    assert bucket_sizes(64, 4) == (16, 16, 16, 16)
    assert bucket_sizes(100, 1) == (100,)


def test_ties_go_to_the_smaller_id() -> None:
    bucket_of_row, sizes = frequency_buckets(np.array([0, 5, 0, 9, 5]), 2)
    # most frequent first: 3, 1, 4, 0, 2
    assert sizes == (3, 2)
    assert bucket_of_row.tolist() == [1, 0, 1, 0, 0]


def test_groups_of_rows() -> None:
    assert partition((2, 1)).group_of_row.tolist() == [0, 0, 1]
    buckets = partition((2, 1), np.array([0, 1, 0], dtype=np.uint8))
    assert buckets.group_of_row.tolist() == [0, 1, 0]
