"""Which sensitivities choose best? The knapsack's allocation under several budgets, quantised without any training, scored.

    python experiments/scores.py --data-dir glue --teacher runs/sst2/teacher --json

Budgets of the linear layers alone (MB of 1,000,000 bytes, activations in float) as other tools are compared at, and of whole
files (ratios, 8-bit activations). Scored on training sentences that are in no training file. `summed` is what the scores say an
allocation loses, a sub-group at a time, on texts that the teacher trained on, `loss_of_summed` what it loses there as a whole.
Writes `results/scores.json`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from pinned import PINNED

from autoquant.blueprint import Blueprint
from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import SizeBudget
from autoquant.core.files import atomic_write_text, file_sha256
from autoquant.core.progress import SilentProgress
from autoquant.core.run import RunDirectory
from autoquant.core.settings import Recipe, load_preset
from autoquant.core.versions import versions
from autoquant.machine import Machine
from autoquant.strategies.reuse import rederive
from autoquant.tasks.data import TaskData
from autoquant.tasks.load import load_glue
from autoquant.training.batches import encode
from autoquant.training.distillation import divergence
from autoquant.training.evaluate import predict_logits
from autoquant.workspace import Workspace

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options:
    """What is scored."""

    data_dir: Path
    teacher: Path
    """A fine-tuned SST-2 classifier."""
    kinds: tuple[str, ...] = ("diagonal", "coherent")
    measured: tuple[int, ...] = (0, 64, 128, 256)
    """Texts on which matrices are tried out (`measured`); 0: Fisher scores as they are (`fisher`)."""
    uniform: bool = True
    """Uniform bits, too."""
    linear_mb: tuple[float, ...] = (1.9, 2.8, 3.8, 4.8, 5.6)
    ratios: tuple[float, ...] = (15.0, 25.0, 40.0)
    seeds: tuple[int, ...] = (0,)
    train_rows: int = 5000
    scored_rows: int = 4000
    threads: int = 1
    json: bool = False
    """Write scores.json."""
    results: Path = RESULTS


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    data = load_glue("sst2", options.data_dir)
    train, more = data.train.subsample(options.train_rows), data.train.subsample(options.train_rows + 2 * options.scored_rows)
    known, hashes = set(train.text_hashes()), more.text_hashes()
    fresh = [row for row in range(len(train), len(more)) if hashes[row] not in known][: options.scored_rows]
    data = dataclasses.replace(data, train=train, evaluation=more.select(fresh))
    rows = []
    chosen = [("uniform", "", 0)] * options.uniform
    chosen += [("measured" if n else "fisher", kind, n) for kind in options.kinds for n in options.measured]
    for seed, choice in itertools.product(options.seeds, chosen):
        for row in measure(options, data, *choice, seed):
            rows.append(row)
            print(row, flush=True)
    if options.json:
        made = {"task": "sst2", "scored_rows": len(fresh), "versions": versions()}
        made |= {"teacher_sha256": file_sha256(options.teacher / "model.safetensors"), "rows": rows}
        atomic_write_text(options.results / "scores.json", json.dumps(made, indent=1) + "\n")


def measure(options: Options, data: TaskData, strategy: str, kind: str, samples: int, seed: int) -> Iterator[dict[str, Any]]:
    """Accuracy under every budget of the knapsack of one kind of scores."""
    recipe = load_preset(PINNED)
    search = {"sensitivity": kind or "diagonal", "strategy": strategy, "measured_samples": samples or 1}
    recipe = dataclasses.replace(recipe, search=dataclasses.replace(recipe.search, **search), activation_bits=32)
    budgets = [(f"{mb:g} MB", SizeBudget(int(1e6 * mb), "encoder")) for mb in options.linear_mb]
    yield from under(options, data, recipe, budgets, seed, samples)
    recipe = dataclasses.replace(recipe, activation_bits=8)
    full = Blueprint.draw(str(options.teacher), data, recipe, 64, False).full_bytes()
    yield from under(options, data, recipe, [(f"{r:g}x", SizeBudget.ratio(r, full)) for r in options.ratios], seed, samples)


def under(
    options: Options, data: TaskData, recipe: Recipe, budgets: list[tuple[str, SizeBudget]], seed: int, samples: int
) -> Iterator[dict[str, Any]]:
    """The same of one recipe's budgets."""
    blueprint = Blueprint.draw(str(options.teacher), data, recipe, 64, False)
    with tempfile.TemporaryDirectory() as folder, RunDirectory.open(Path(folder) / "run", {}, resume=False) as run:
        workspace = Workspace(blueprint, run, SilentProgress(), Machine(threads=options.threads), seed)
        scored, strategy = encode(blueprint.source.tokenizer, data.evaluation, 64), recipe.search.strategy
        seen = workspace.calibration_texts
        seen = seen.select(np.arange(min(len(seen), samples or len(seen))))
        teacher, teacher_seen = (torch.from_numpy(predict_logits(workspace.teacher, texts)) for texts in (scored, seen))
        for name, budget in budgets:
            allocation, summed = allocate(workspace, budget)
            student = workspace.frozen_supernet(allocation).eval()
            logits, logits_seen = (torch.from_numpy(predict_logits(student, texts)) for texts in (scored, seen))
            yield {
                "budget": name,
                "strategy": strategy,
                "sensitivity": "" if strategy == "uniform" else recipe.search.sensitivity,
                "measured": samples,
                "seed": seed,
                "accuracy": float((logits.argmax(1).numpy() == scored.labels).mean()),
                "loss": divergence(teacher, logits) / len(scored),
                "summed": summed,
                "loss_of_summed": divergence(teacher_seen, logits_seen) / len(seen),
                "seconds": round(run.seconds()[f"search-{strategy}"], 1),
            }


def allocate(workspace: Workspace, budget: SizeBudget) -> tuple[BitAllocation, float | None]:
    """The strategy's allocation, and what it costs by what was minimised; what it learned for the first budget serves all."""
    search, table = workspace.blueprint.recipe.search, workspace.blueprint.table(budget)
    found = workspace.search(search.strategy, budget)
    if found.values is None:
        workspace.run.discard_state(f"search-{search.strategy}-result")
        return found.allocation, None
    again = rederive(found, table, budget.bytes, search.prior_strength)
    assert again.values is not None
    return again.allocation, float(-again.values[np.arange(len(table)), table.to_choice(again.allocation)].sum())


if __name__ == "__main__":
    main()
