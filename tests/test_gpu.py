"""Whole runs on a GPU, where there is one: no tensor of any strategy, quantizer or recovery may stay behind on the CPU."""

from pathlib import Path

import pytest
import torch

from autoquant.strategies import STRATEGIES
from runs import search

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SHORT = ["--search.hessian-slices", "2", "--search.power-iterations", "2", "--search.trace-vectors", "2", "--search.trials", "4"]
QUANTIZERS = {
    "compiled mixing": ["--compile"],
    "lsq": ["--quantizer", "lsq"],
    "minmax": ["--quantizer", "minmax"],
    "twn": ["--quantizer", "twn", "--space", "ternary"],
    "gobo": ["--quantizer", "gobo", "--space", "codebook"],
    "pq": ["--quantizer", "pq", "--space", "codebook", "--budget-ratio", "4"],
    "static": ["--activations", "static"],
    "structured": ["--space", "structured"],
    "second-order": ["--search.unrolled", "1e-4"],
    "coherent": ["--search.sensitivity", "coherent", "--search.strategy", "fisher"],
}
RECONSTRUCTION = ["--recovery.steps", "0", "--recovery.mrem-steps", "3", "--recovery.mrem-modules", "2"]
RECONSTRUCTION += ["--recovery.parallel-fill", "2", "--recovery.reconstruction"]
TRAININGS = ("retrain", "annealed", "ternarybert", "quant-noise", "prequant", "finetune")
RECOVERIES = {
    **{name: ["--recovery.training", name] for name in TRAININGS},
    **{name: [*RECONSTRUCTION, name] for name in ("mrem-s", "mrem-p", "layer-wise")},
    "from the search": ["--recovery.start", "search"],
}
CASES = {
    **{f"strategy {name}": ["--search.strategy", name, *SHORT] for name in STRATEGIES},
    **{f"with {name}": arguments for name, arguments in QUANTIZERS.items()},
    **{f"recovery {name}": [*arguments, "--search.strategy", "fisher"] for name, arguments in RECOVERIES.items()},
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_on_the_gpu_packs_what_it_simulates(name: str, tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path) -> None:
    """A file that differs from its simulation ends the run with an error."""
    arguments = ["--device", "cuda", *CASES[name]]
    metrics = search(tiny_classifier_dir, tiny_data, tmp_path / "run", *arguments)
    assert metrics["bytes"]["file"] <= metrics["bytes"]["budget"]
