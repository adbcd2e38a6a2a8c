"""How stable are the sensitivities? Agreement of the Fisher knapsack's allocations, and of the scores, between seeds.

    python experiments/sensitivity.py --data-dir glue --teacher runs/sst2/teacher --json

A seed draws the calibration texts and the signs of their gradients. Writes `results/sensitivity.json` with --json.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from pinned import PINNED

from autoquant.blueprint import Blueprint
from autoquant.core.cost import SizeBudget
from autoquant.core.files import atomic_write_text, file_sha256
from autoquant.core.progress import SilentProgress
from autoquant.core.run import RunDirectory
from autoquant.core.settings import load_preset
from autoquant.core.versions import versions
from autoquant.machine import Machine
from autoquant.tasks.load import load_glue
from autoquant.workspace import Workspace

RESULT = Path(__file__).parent / "results" / "sensitivity.json"


@dataclass(frozen=True)
class Options:
    """What is scored."""

    data_dir: Path
    teacher: Path
    """A fine-tuned classifier."""
    task: str = "sst2"
    samples: tuple[int, ...] = (512,)
    """Calibration texts."""
    ratio: float = 25.0
    temperatures: tuple[float, ...] = (1.0, 4.0)
    """At which the teacher's predictions are softened."""
    seeds: tuple[int, ...] = (0, 1, 2)
    train_rows: int = 5000
    threads: int = 1
    json: bool = False
    """Write results/sensitivity.json."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    data = load_glue(options.task, options.data_dir)
    data = dataclasses.replace(data, train=data.train.subsample(options.train_rows))
    rows = []
    for samples, temperature in itertools.product(options.samples, options.temperatures):
        recipe = load_preset(PINNED)
        search = dataclasses.replace(recipe.search, calibration_samples=samples, sensitivity_temperature=temperature)
        recipe = dataclasses.replace(recipe, search=search)
        blueprint = Blueprint.draw(str(options.teacher), data, recipe, 64, False)
        found = [scored(blueprint, options, seed) for seed in options.seeds]
        pairs = [agreement(one, other) for one, other in itertools.combinations(found, 2)]
        about = {"samples": samples, "temperature": temperature}
        rows.append({**about, **{name: [pair[name] for pair in pairs] for name in pairs[0]}})
        print(rows[-1])
    if options.json:
        made = {"task": options.task, "ratio": options.ratio, "seeds": options.seeds, "versions": versions()}
        teacher = file_sha256(options.teacher / "model.safetensors")
        atomic_write_text(RESULT, json.dumps({**made, "teacher_sha256": teacher, "rows": rows}, indent=1) + "\n")


def scored(blueprint: Blueprint, options: Options, seed: int) -> tuple[np.ndarray, list[int]]:
    """Scores of every choice [N, K], and the bits that the knapsack makes of them [N]."""
    with tempfile.TemporaryDirectory() as folder, RunDirectory.open(Path(folder) / "run", {}, resume=False) as run:
        workspace = Workspace(blueprint, run, SilentProgress(), Machine(threads=options.threads), seed)
        budget = SizeBudget.ratio(options.ratio, blueprint.full_bytes())
        bits = workspace.search("fisher", budget).allocation.bits
        return workspace.calibration.sensitivity.choices, [b for widths in bits.values() for b in widths]


def agreement(one: tuple[np.ndarray, list[int]], other: tuple[np.ndarray, list[int]]) -> dict[str, Any]:
    """Share of sub-groups with the same bits, correlation of log scores, and how far apart the two scales of scores are."""
    positive = (one[0] > 0) & (other[0] > 0)
    first, second = np.log(one[0][positive]), np.log(other[0][positive])
    return {
        "same_bits": float(np.mean(np.equal(one[1], other[1]))),
        "log_correlation": float(np.corrcoef(first, second)[0, 1]),
        "median_ratio": float(np.exp(abs(np.median(first - second)))),
    }


if __name__ == "__main__":
    main()
