"""Product quantisation by hand."""

import numpy as np
import torch

from autoquant.quantizers.pq import BLOCKS_A_CENTROID, Pq, k_means

PQ = Pq()
ONE = torch.zeros(2, dtype=torch.int64)


def test_a_block_of_eight_weights_is_one_code_at_one_bit() -> None:
    low, high = torch.arange(8.0), torch.arange(8.0) + 100
    codebook = torch.cat([low, high, torch.full((254 * 8,), 5000.0)])[None]
    weight = torch.stack([torch.cat([high + 1, low]), torch.cat([low, low - 1])])
    codes = PQ.encode(weight, codebook, ONE, 1)
    assert codes.tolist() == [[1, 0], [0, 0]]
    assert torch.equal(PQ.decode(codes, codebook, ONE, 1, 16), torch.stack([torch.cat([high, low]), torch.cat([low, low])]))


def test_of_the_last_block_of_a_row_only_what_is_in_the_row_counts() -> None:
    codebook = torch.full((1, 256 * 4), 50.0)
    codebook[0, :8] = torch.tensor([1.0, 2.0, 3.0, 4.0, 9.0, 70.0, 70.0, 70.0])
    codes = PQ.encode(torch.tensor([[1.0, 2.0, 3.0, 4.0, 8.0]]), codebook, ONE[:1], 2)
    assert codes.tolist() == [[0, 1]]
    assert PQ.decode(codes, codebook, ONE[:1], 2, 5).tolist() == [[1.0, 2.0, 3.0, 4.0, 9.0]]


def test_k_means_finds_clusters_whose_centres_are_their_means() -> None:
    points = np.array([[0.0, 0.0], [0.0, 2.0], [10.0, 10.0], [12.0, 10.0]])
    assert sorted(k_means(points, 2).tolist()) == [[0.0, 1.0], [11.0, 10.0]]


def test_a_few_different_blocks_are_kept_as_they_are() -> None:
    patterns = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).half().float()
    weight = patterns[torch.randint(20, (30, 16), generator=torch.Generator().manual_seed(1))].flatten(1)
    codebook = PQ.centroids(weight, 2)
    assert codebook.shape == (1024,)
    values = PQ.fake_quantize(weight, codebook[None], torch.zeros(30, dtype=torch.int64), 2)
    torch.testing.assert_close(values, weight, atol=1e-3, rtol=1e-3)


def test_many_blocks_are_sampled_the_same_every_time() -> None:
    points = np.random.default_rng(0).normal(size=(3 * BLOCKS_A_CENTROID, 2))
    assert np.array_equal(k_means(points, 2), k_means(points, 2))
