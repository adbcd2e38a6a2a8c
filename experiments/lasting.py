"""What stays of a loss after recovery, by bits? Some sub-groups at few bits, all others at 8, before and after recovery.

    python experiments/lasting.py --data-dir glue --teacher runs/sst2/teacher

The loss is the divergence (nats a text) from the teacher's predictions on the fifth of the training file that recovery does not
see. Recovery moves these predictions even where nothing was lost, so what 8 bits everywhere lose beside it is subtracted, before
and after. Each case writes `results/lasting/<task>-<case>.json` and is not measured again; the table is printed, and put into the
README by `python experiments/tables.py`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from pinned import PINNED

from autoquant.blueprint import Blueprint
from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import choice_table
from autoquant.core.files import atomic_write_text, file_sha256
from autoquant.core.progress import TerminalProgress
from autoquant.core.run import RunDirectory
from autoquant.core.settings import load_preset
from autoquant.core.versions import versions
from autoquant.machine import Machine
from autoquant.strategies import SearchResult
from autoquant.strategies.uniform import nearest_columns
from autoquant.tasks.load import load_glue
from autoquant.workspace import Workspace

RESULTS = Path(__file__).parent / "results" / "lasting"
NOTHING = "8 bits everywhere"


@dataclass(frozen=True)
class Case:
    """`bits` for the words, or for a random `share` of the encoder's sub-groups."""

    bits: int
    share: float = 1.0
    words: bool = False


CASES = {
    NOTHING: Case(8),
    "encoder at 1 bit": Case(1),
    "encoder at 2 bits": Case(2),
    "encoder at 3 bits": Case(3),
    "half of the encoder at 1 bit": Case(1, 0.5),
    "an eighth of the encoder pruned": Case(0, 0.125),
    "a quarter of the encoder pruned": Case(0, 0.25),
    "words at 1 bit": Case(1, words=True),
    "words at 2 bits": Case(2, words=True),
}


@dataclass(frozen=True)
class Options:
    """What is lost, and how it is recovered."""

    data_dir: Path
    teacher: Path
    """A fine-tuned classifier."""
    task: str = "sst2"
    cases: tuple[str, ...] = tuple(CASES)
    steps: int = 100
    """Of recovery, at the recipe's rates, without reconstruction."""
    train_rows: int = 5000
    max_length: int = 64
    seed: int = 0
    threads: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    runs: Path = Path("runs/lasting")
    results: Path = RESULTS


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    todo = [name for name in options.cases if not file(options, name).exists()]
    if todo:
        data = load_glue(options.task, options.data_dir)
        data = dataclasses.replace(data, train=data.train.subsample(options.train_rows))
        blueprint = Blueprint.draw(str(options.teacher), data, load_preset(PINNED), options.max_length, trim_positions=False)
        machine = Machine(threads=options.threads, precision=options.precision)
        settings = {"data": data.train.sha256(), "teacher": file_sha256(options.teacher / "model.safetensors")}
        settings |= {name: getattr(options, name) for name in ("steps", "max_length", "seed", "threads", "precision")}
        with RunDirectory.open(options.runs / options.task, settings, resume=True) as run:
            workspace = Workspace(blueprint, run, TerminalProgress(), machine, options.seed)
            for name in todo:
                measure(options, workspace, name)
    print(lasting_table(options.results))


def file(options: Options, name: str) -> Path:
    return options.results / f"{options.task}-{name.replace(' ', '-')}.json"


def measure(options: Options, workspace: Workspace, name: str) -> None:
    """The loss of a case before and after recovery."""
    result, context = SearchResult(allocation(workspace, CASES[name])), workspace.context
    stage = f"lasting-{name.replace(' ', '-')}"
    before = workspace.loss_after(0, result, context, f"{stage}-before")
    with workspace.timed(stage):
        after = workspace.loss_after(options.steps, result, context, stage)
    content: dict[str, Any] = {
        "task": options.task,
        "case": name,
        "before": before,
        "after": after,
        "steps": options.steps,
        "seed": options.seed,
        "seconds": workspace.run.seconds()[stage],
        "teacher_sha256": workspace.teacher_hash,
        "versions": versions(),
    }
    atomic_write_text(file(options, name), json.dumps(content, sort_keys=True) + "\n")
    workspace.run.discard_states(stage)


def allocation(workspace: Workspace, case: Case) -> BitAllocation:
    table = choice_table(workspace.blueprint.byte_model)
    of_encoder = np.repeat([p.matrix.layer is not None for p in table.partitions], [p.groups for p in table.partitions])
    of_words = np.repeat([p.matrix.kind == "word_embedding" for p in table.partitions], [p.groups for p in table.partitions])
    drawn = np.random.default_rng(workspace.seed).random(len(table)) < case.share
    chosen = of_words if case.words else of_encoder & drawn
    return table.to_allocation(np.where(chosen, nearest_columns(table, case.bits), nearest_columns(table, 8)))


def lasting_table(folder: Path = RESULTS) -> str:
    """Case x loss before and after recovery, beyond that of 8 bits everywhere, and the share that stays."""
    cells = {(c["task"], c["case"]): c for c in (json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json")))}
    lines = ["| | lost before, nats | after recovery | stays |", "|---|---|---|---|"]
    for task in sorted({task for task, _ in cells}):
        nothing = cells.get((task, NOTHING))
        for name in CASES:
            cell = cells.get((task, name))
            if cell and nothing and name != NOTHING:
                before, after = (cell[key] - nothing[key] for key in ("before", "after"))
                lines.append(f"| {task}, {name} | {before:.3f} | {after:.3f} | {after / before:.0%} |")
        if nothing:
            lines.append(f"| {task}, {NOTHING}: subtracted | {nothing['before']:.3f} | {nothing['after']:.3f} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
