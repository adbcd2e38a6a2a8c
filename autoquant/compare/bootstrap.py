"""Is a difference more than luck? A paired bootstrap over examples and seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoquant.tasks.metrics import METRICS

RESAMPLES, LEVEL, SEED = 2000, 0.95, 0


@dataclass(frozen=True)
class Difference:
    """One method's metric minus another's, both means over the same seeds, and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def paired_difference(
    metric: str, ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED
) -> Difference:
    """Difference of a metric, with the percentile interval at 95 % of a paired bootstrap (Efron and Tibshirani 1993, ch. 13).

    `ours`, `theirs` [seeds, examples]: answers to the same examples, row by row of the same seed; `labels` [examples].
    A resample draws as many examples as there are, with replacement, and as many seeds, with replacement; each method is scored
    on what was drawn and their means over the drawn seeds are subtracted. Both methods always get the same draw: that is the
    pairing, by which what is hard for both cancels out. Seeds are drawn too since another run of the whole method gives other
    answers; with a single seed the interval knows nothing of that, and is too narrow. The draws are seeded: the same cells give
    the same interval.
    """
    rng, (seeds, examples) = np.random.default_rng(seed), ours.shape
    measure = METRICS[metric]

    def difference(rows: np.ndarray, columns: np.ndarray) -> float:
        drawn = labels[columns]
        return float(np.mean([measure(ours[row, columns], drawn) - measure(theirs[row, columns], drawn) for row in rows]))

    draws = [difference(rng.integers(seeds, size=(seeds,)), rng.integers(examples, size=(examples,))) for _ in range(resamples)]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Difference(difference(np.arange(seeds), np.arange(examples)), float(low), float(high))
