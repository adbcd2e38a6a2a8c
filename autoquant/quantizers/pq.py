"""Product quantisation (Jegou et al. 2011; of weights: Stock et al. 2020, iPQ): k-means over blocks of weights.

A code of 8 bits stands for a block of weights side by side in a row: 8 weights at 1 bit a weight (Quant-Noise's block 8 with 256
centroids; Fan et al. 2021), 4 at 2 bits, 2 at 4 bits, one at 8; at 3 bits a code of 6 bits stands for 2. The centroids are
k-means' over the blocks of a sub-group, of which it sees at most 256 a centroid, drawn at random.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from autoquant.core.storage import Storage
from autoquant.quantizers.codebook import CodebookQuantizer, to_half

BLOCKS_A_CENTROID = 256
ITERATIONS = 25


class Pq(CodebookQuantizer):
    """No text is looked at."""

    name = "pq"
    storage = Storage(codebook=True, vectors=True)

    def centroids(self, weight: Tensor, bits: int) -> Tensor:
        size = 2 ** self.storage.code_bits(bits)
        block = self.storage.block(bits)
        blocks = functional.pad(weight, (0, -weight.shape[1] % block)).view(-1, block).cpu().float().numpy()
        found = k_means(blocks, min(size, len(blocks)))
        # where there are fewer blocks than codes, those left over are never used
        padded = np.concatenate([found, np.repeat(found[:1], size - len(found), axis=0)])
        return to_half(torch.from_numpy(padded).flatten()).to(weight)


def k_means(points: np.ndarray, clusters: int) -> np.ndarray:
    """Centroids [clusters, size] of points [n, size]; the same every time."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    draw = np.random.default_rng(0)
    if len(points) > BLOCKS_A_CENTROID * clusters:
        points = points[draw.choice(len(points), BLOCKS_A_CENTROID * clusters, replace=False)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different points than clusters: harmless
        return KMeans(clusters, n_init=1, max_iter=ITERATIONS, random_state=0).fit(points).cluster_centers_
