"""What is a good answer? GLUE's metrics under GLUE's names, from logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

from autoquant.core.errors import TrainingError


def _correlation(measure: Callable[..., tuple[float, float]], values: np.ndarray, labels: np.ndarray) -> float:
    """A correlation that is 0 where it is not defined: constant predictions or labels."""
    if np.ptp(values) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(np.nan_to_num(measure(values, labels)[0]))


# name -> (answers [rows], labels [rows]) -> score; answers are classes, or values in a regression
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda classes, labels: float(np.mean(classes == labels)),
    "f1": lambda classes, labels: float(f1_score(labels, classes, zero_division=0)),
    "matthews_correlation": lambda classes, labels: float(matthews_corrcoef(labels, classes)),
    "pearson": lambda values, labels: _correlation(pearsonr, values, labels),
    "spearmanr": lambda values, labels: _correlation(spearmanr, values, labels),
}


def score(metrics: Sequence[str], logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics by name as shares of 1 (0.92, not 92); constant predictions score 0 in the correlations.

    `logits` [rows, classes], or [rows, 1] in a regression; `labels` [rows]. f1 is that of class 1. Raises TrainingError if a
    logit is not finite, since the largest of NaNs would pass for an answer.
    """
    broken = int((~np.isfinite(logits)).any(axis=1).sum())
    if broken:
        raise TrainingError(f"{broken} of {len(logits)} rows have logits that are not finite: lower the learning rate.")
    found = answers(logits)
    return {name: METRICS[name](found, labels) for name in metrics}


def answers(logits: np.ndarray) -> np.ndarray:
    """Classes [rows] int64 of logits [rows, classes], or values [rows] float64 of a regression's [rows, 1]."""
    return logits[:, 0].astype(np.float64) if logits.shape[1] == 1 else logits.argmax(axis=1)
