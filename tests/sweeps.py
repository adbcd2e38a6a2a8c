"""Sweeps made of plain values, small enough to work out by hand."""

from typing import Any

from autoquant.reports.results import Point, Sweep


def manifest(*bits: int) -> dict[str, Any]:
    """An allocation of two layers of one query matrix each, two sub-groups of 2 rows x 4 columns, and two buckets."""
    why = {"probability": None, "sensitivity": [1e-6, 1e-6]}
    layers = [
        {
            "name": f"layer.{layer}.query.weight",
            "shape": [4, 4],
            "kind": "query",
            "layer": layer,
            "buckets_sha256": None,
            "rows": [2, 2],
            "bits": list(bits[2 * layer : 2 * layer + 2]),
            **why,
        }
        for layer in range(2)
    ]
    words = {
        "name": "words.weight",
        "shape": [10, 4],
        "kind": "word_embedding",
        "layer": None,
        "buckets_sha256": "0" * 64,
        "rows": [2, 8],
        "bits": [8, 1],
        **why,
    }
    return {"matrices": [words, *layers], "reached": {"file": 100, "counted": 100, "breakdown": {"query": 60, "rest": 40}}}


def small_sweep() -> Sweep:
    """Two budgets and two seeds of the search, one seed of uniform, and a full precision of 1000 bytes at 0.9."""
    low, high = manifest(0, 2, 4, 8), manifest(4, 4, 8, 8)
    points = (
        Point("dnas-100-seed0", "dnas", 0, 100, 99, 0.80, allocation=low, seconds=1.5),
        Point("dnas-100-seed1", "dnas", 1, 100, 97, 0.84, allocation=low),
        Point("dnas-200-seed0", "dnas", 0, 200, 198, 0.88, allocation=high),
        Point("dnas-200-seed1", "dnas", 1, 200, 198, 0.90, allocation=high),
        Point("uniform-200-seed0", "uniform", 0, 200, 200, 0.87, allocation=high),
    )
    return Sweep("sst2", "accuracy", 1000, 0.9, points, command="autoquant pareto --budgets 1,2")
