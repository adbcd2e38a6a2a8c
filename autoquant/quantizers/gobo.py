"""GOBO (Zadeh et al., MICRO 2020): a few outliers stay as they are, all other weights share 2^b centroids.

A Gaussian is fitted to the weights of a layer (here: of a sub-group), and the least probable ones are the outliers. The others
are cut into 2^b bins of equal population, whose means are the first centroids; then every weight goes to its nearest centroid and
every centroid to the mean of its weights, until the sum of |w - centroid| no longer falls.

The paper takes as outliers what has a log-probability below -4, typically one weight in a thousand. A file whose size is known
before its weights are cannot let the weights decide how many: here it is one in a thousand of every sub-group, the least probable
ones. The paper keeps them as 32-bit floats, here they are 16-bit ones like every other number of the file.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autoquant.core.storage import Storage
from autoquant.quantizers.codebook import CodebookQuantizer, to_half

MOST_ITERATIONS = 100  # it takes ten or so


class Gobo(CodebookQuantizer):
    """Nothing is trained and no text is looked at."""

    name = "gobo"
    storage = Storage(codebook=True, outlier_every=1000)

    def centroids(self, weight: Tensor, bits: int) -> Tensor:
        kept = weight[~self.outliers(weight, torch.zeros(len(weight), dtype=torch.int64, device=weight.device))]
        return to_half(l1_centroids(kept.double(), 2**bits)).to(weight.dtype)


def l1_centroids(values: Tensor, count: int) -> Tensor:
    """The `count` centroids of `values` [n] at the least sum of |value - centroid| that the iteration meets, [count] ascending.

    Bins that have no value (there may be fewer values than bins) keep their centroid.
    """
    ordered = values.sort().values
    total = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    n = len(ordered)
    ends = (torch.arange(count + 1, device=values.device) * n) // count
    found = _means(ordered, total, ends, ordered[ends[:-1].clamp_max(n - 1)])
    best, least = found, torch.inf
    for _ in range(MOST_ITERATIONS):
        inner = torch.searchsorted(ordered, (found[1:] + found[:-1]) / 2)
        ends = torch.cat([ends[:1], inner, ends[-1:]])
        error = _absolute_error(ordered, total, ends, found)
        if error >= least:
            return best
        best, least = found, error
        found = _means(ordered, total, ends, found)
    return best


def _means(ordered: Tensor, total: Tensor, ends: Tensor, otherwise: Tensor) -> Tensor:
    """Mean of every bin [count], whose values are ordered[ends[i]:ends[i + 1]]; `total`: sums of the first 0, 1, ... values."""
    counts = ends.diff()
    return torch.where(counts > 0, total[ends].diff() / counts.clamp_min(1), otherwise)


def _absolute_error(ordered: Tensor, total: Tensor, ends: Tensor, centroids: Tensor) -> float:
    """The sum of |value - centroid of its bin|: in every bin, what lies below the centroid and what lies above."""
    first, last = ends[:-1], ends[1:]
    split = torch.searchsorted(ordered, centroids).clamp(first, last)
    below = centroids * (split - first) - (total[split] - total[first])
    above = (total[last] - total[split]) - centroids * (last - split)
    return float((below + above).sum())
