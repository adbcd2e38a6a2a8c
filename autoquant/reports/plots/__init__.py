"""What does it look like? Plotly figures of sweeps, allocations and training logs; report and notebooks are made of these."""

from autoquant.reports.plots.allocations import (
    bucket_bits,
    bucketed,
    byte_breakdown,
    difference,
    heatmap,
    mean_bits,
    probability,
    sensitivity,
    width_shares,
)
from autoquant.reports.plots.sweeps import bits_by_budget, front, label_of
from autoquant.reports.plots.training import training_curves

__all__ = [
    "bits_by_budget",
    "bucket_bits",
    "bucketed",
    "byte_breakdown",
    "difference",
    "front",
    "heatmap",
    "label_of",
    "mean_bits",
    "probability",
    "sensitivity",
    "training_curves",
    "width_shares",
]
