"""What matters in the search? `dnas` minus each of its parts, and the choices beside them; one cell a row, ratio and seed.

    python experiments/ablation.py --data-dir glue                                    # every row on SST-2, 15x and 25x, seed 0
    python experiments/ablation.py --data-dir glue --task mrpc --rows dnas gates --seeds 0 1 2
    python experiments/ablation.py --data-dir glue --rows rank --ratios 25            # 20 random allocations of one size
    python experiments/ablation.py --data-dir glue --rows rank07 rank08 --ratios 25   # two of them

Scored on training rows that no cell has trained on, so that choosing among cells reads no dev set: a held-out tenth, of SST-2
those of the next 10,000 by hash after the 5,000 that share no three words in a row with these, since its training rows are
phrases cut out of the same sentences. `--score dev` is for what choosing led to. A given `--teacher` must not have
trained on them either: what was made from the 5,000 by this script or `autoquant finetune` has not. Each cell writes
`results/ablation/<start of the teacher's hash>/<cell>.json`, with its answers to every row (the teacher's lie beside it); cells
that are there are skipped. `python experiments/tables.py` makes the table.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from ablation_rows import ROWS
from pinned import PINNED

from autoquant import method, pipeline
from autoquant.assets import default_backbone
from autoquant.blueprint import Blueprint
from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import SizeBudget
from autoquant.core.derive import derive
from autoquant.core.files import atomic_file, atomic_write_text, file_sha256
from autoquant.core.progress import TerminalProgress
from autoquant.core.run import RunDirectory
from autoquant.core.settings import Recipe, load_preset
from autoquant.core.space import load_space
from autoquant.core.versions import device_name, versions
from autoquant.machine import Machine
from autoquant.pack.model import load_packed
from autoquant.strategies import STRATEGIES, Problem, SearchResult, search_stages
from autoquant.strategies.prior import prior_values, sensitivity_prior, trusting
from autoquant.supernet.build import Supernet
from autoquant.tasks.data import TaskData, TextData
from autoquant.tasks.load import load_glue
from autoquant.tasks.metrics import answers, score
from autoquant.training.batches import Encoded, encode
from autoquant.training.distillation import distillation_loss, divergence
from autoquant.training.evaluate import predict_logits
from autoquant.workspace import Workspace

RESULTS = Path(__file__).parent / "results" / "ablation"
SCORED_ROWS, SCORED_SHARE, RUN = 10_000, 0.1, 3
RANKED = tuple(f"rank{index:02d}" for index in range(20))
"""Random allocations of one size."""
FULL = "-full-precision.npy"


@dataclass(frozen=True)
class Options:
    """Cells to measure: every combination of rows, ratios and seeds."""

    data_dir: Path
    task: str = "sst2"
    rows: tuple[str, ...] = tuple(ROWS)
    """Names of ROWS; `rank`: 20 random allocations of one size, and what foretells how good they are; `rank07`: one of them."""
    ratios: tuple[float, ...] = (15, 25)
    seeds: tuple[int, ...] = (0,)
    score: Literal["train", "dev"] = "train"
    """What cells are scored on: held-out training rows, or the dev set (for what choosing led to, only)."""
    preset: str = PINNED
    train_rows: int = 5000
    max_length: int = 64
    runs: Path = Path("runs/ablation")
    threads: int = 2
    precision: Literal["fp32", "bf16"] = "fp32"
    model: str | None = None
    """Bare encoder instead of the embedded one."""
    teacher: Path | None = None
    """A fine-tuned teacher; without it one is trained in `runs`/<task>-teacher, or taken from there."""
    results: Path = RESULTS
    """Cells of every teacher lie in a folder of their own there, named after its hash."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    unknown = sorted(set(options.rows) - {*ROWS, *RANKED, "rank"})
    if unknown:
        raise SystemExit(f"No row '{unknown[0]}'; known are {', '.join(ROWS)}, rank, and {RANKED[0]} to {RANKED[-1]}.")
    data = task_data(options)
    teacher = options.teacher or train_teacher(options, data)
    check_teacher(options, data, teacher)
    options = dataclasses.replace(options, results=options.results / file_sha256(teacher / "model.safetensors")[:8])
    ranked = [name for name in RANKED if {name, "rank"} & {*options.rows}]
    for seed, ratio in itertools.product(options.seeds, options.ratios):
        rank(options, data, teacher, ranked, ratio, seed)
    rows = [name for name in options.rows if name in ROWS]
    for seed, ratio, name in itertools.product(options.seeds, options.ratios, rows):
        if not cell_file(options, name, ratio, seed).exists():
            measure(options, data, teacher, name, ratio, seed)


def task_data(options: Options) -> TaskData:
    """Training rows, and what cells are scored on: texts that are no training row's, of SST-2 `unshared` ones."""
    data = load_glue(options.task, options.data_dir)
    if options.task == "sst2":
        train = data.train.subsample(options.train_rows)
        more = data.train.subsample(options.train_rows + SCORED_ROWS)
        scored = more.select(range(len(train), len(more)))
    else:
        train, scored = data.train.split(SCORED_SHARE, salt="ablation")
    if options.score == "dev":
        return dataclasses.replace(data, train=train)
    if options.task == "sst2":
        fresh = unshared(train.first, scored.first)
    else:
        known = set(train.text_hashes())
        fresh = [row for row, text in enumerate(scored.text_hashes()) if text not in known]
    return dataclasses.replace(data, train=train, evaluation=scored.select(fresh))


def further_texts(options: Options, data: TaskData) -> TextData:
    """Training rows that are neither trained on nor scored, and share nothing with what is scored (as `unshared` has it)."""
    if options.task != "sst2":
        raise SystemExit(f"The training file of {options.task} has no further texts: leave out rows with them.")
    rows = load_glue(options.task, options.data_dir).train
    rows = rows.subsample(len(rows)).select(range(options.train_rows + SCORED_ROWS, len(rows)))
    return rows.select(unshared(data.evaluation.first, rows.first))


def unshared(known: Sequence[str], texts: Sequence[str]) -> list[int]:
    """Which texts have no run of RUN words, and no shorter one that is all of them, in common with those that are known."""
    runs = {run for text in known for length in range(1, RUN + 1) for run in runs_of(text, length)}
    return [row for row, text in enumerate(texts) if not any(run in runs for run in runs_of(text, RUN))]


def runs_of(text: str, length: int) -> Iterator[tuple[str, ...]]:
    """Words in a row: so many, or all where there are fewer."""
    words = text.split()
    length = min(length, len(words))
    return (tuple(words[start : start + length]) for start in range(len(words) - length + 1))


def train_teacher(options: Options, data: TaskData) -> Path:
    """One teacher for all cells of a task, trained to its plateau on the default seed."""
    folder, _ = pipeline.finetune_teacher(
        options.model or default_backbone(),
        data,
        recipe=load_preset(options.preset),
        run_dir=options.runs / f"{options.task}-teacher",
        max_length=options.max_length,
        machine=machine(options),
        resume=True,
        progress=TerminalProgress(),
    )
    return folder


def check_teacher(options: Options, data: TaskData, teacher: Path) -> None:
    """Raise SystemExit for a teacher that has trained on more than cells do, and so on what they are scored on."""
    run = teacher.parent / "run.json"
    if options.score == "dev" or not run.is_file():
        return
    hashes = json.loads(run.read_text("utf-8"))["settings"].get("data", {})
    if hashes.get("train") != data.train.sha256():
        raise SystemExit(f"{teacher} was made from other training rows: leave --teacher out, then one is trained.")


def machine(options: Options) -> Machine:
    return Machine(threads=options.threads, precision=options.precision)


def cell_name(options: Options, row: str, ratio: float, seed: int) -> str:
    scored = "" if options.score == "train" else "-dev"
    precision = "" if options.precision == "fp32" else f"-{options.precision}"
    return f"{options.task}-{ratio:g}x-{row}-seed{seed}{scored}{precision}"


def cell_file(options: Options, row: str, ratio: float, seed: int) -> Path:
    return options.results / f"{cell_name(options, row, ratio, seed)}.json"


@contextmanager
def workspace(options: Options, data: TaskData, teacher: Path, name: str, recipe: Recipe, seed: int) -> Iterator[Workspace]:
    """A run directory of one recipe."""
    row = ROWS[name.split("/")[-1]]
    space = load_space(recipe.space)
    space = dataclasses.replace(space, scale=row.scale) if row.scale else space
    blueprint = Blueprint.draw(str(teacher), data, recipe, options.max_length, trim_positions=False, space=space)
    settings = {
        "recipe": dataclasses.asdict(recipe),
        "scale": space.scale,
        "data": [data.train.sha256(), data.evaluation.sha256()],
        "teacher": file_sha256(teacher / "model.safetensors"),
        "max_length": options.max_length,
        "threads": options.threads,
        "precision": options.precision,
        "seed": seed,
    }
    with RunDirectory.open(options.runs / name, settings, resume=True, defaults={"recipe": dataclasses.asdict(Recipe())}) as run:
        found = Workspace(blueprint, run, TerminalProgress(), machine(options), seed)
        found.given_model = options.model or default_backbone()
        yield found


def measure(options: Options, data: TaskData, teacher: Path, name: str, ratio: float, seed: int) -> None:
    """Search, recover, pack and score one cell; its run directory goes then, but for those that other rows derive from."""
    row, recipe = ROWS[name], ROWS[name].recipe(options.preset)
    searcher = row.searched_by or name
    folder = options.runs / cell_name(options, searcher, ratio, seed)
    with workspace(options, data, teacher, f"{folder.name}/{searcher}", ROWS[searcher].recipe(options.preset), seed) as shared:
        shared.progress.say(f"Cell {cell_name(options, name, ratio, seed)}")
        budget = SizeBudget.ratio(ratio, shared.blueprint.full_bytes())
        result, label = shared.search(row.strategy, budget), row.strategy
        if row.searched_by or row.more_texts:
            if recipe.search.trust != shared.blueprint.recipe.search.trust:
                result = derived_again(shared, result, budget, recipe.search.trust)
            shared, label = recovering(shared, recipe), recovery_label(name, recipe)
        if row.more_texts:
            shared.unlabelled = encode(shared.blueprint.source.tokenizer, further_texts(options, data), options.max_length)
        more = {"race": shared.run.info()["race"]} if row.strategy == "race" else {}
        write_cell(options, shared, Candidate(name, ratio, recipe, row.strategy, label, budget, result), more)
    if searcher not in {"dnas", *(other.searched_by for other in ROWS.values())}:
        shutil.rmtree(folder)


def recovering(shared: Workspace, recipe: Recipe) -> Workspace:
    """The same run with another recovery: the teacher, what it says of every text, and the calibration are shared."""
    _ = shared.outputs  # so that they are
    other = copy.copy(shared)
    other.blueprint = dataclasses.replace(shared.blueprint, recipe=recipe)
    return other


def recovery_label(name: str, recipe: Recipe) -> str:
    """Names a recovery's stages in a run that several have, so that another state of the row is not taken for it."""
    return f"{name}-{hashlib.sha256(json.dumps(dataclasses.asdict(recipe.recovery)).encode()).hexdigest()[:8]}"


def derived_again(shared: Workspace, result: SearchResult, budget: SizeBudget, trust: float) -> SearchResult:
    """A finished search, derived with another trust than its own."""
    problem = shared.problem(budget, "derive")
    assert result.values is not None
    strength, table = problem.search.prior_strength, problem.table
    before = prior_values(sensitivity_prior(problem.sensitivity, table, budget.bytes, strength), table, strength)
    values, removal = trusting(result.values, result.removal, before, trust / problem.search.trust)
    allocation = derive(values, table, budget.bytes, removal).allocation
    return dataclasses.replace(result, allocation=allocation, values=values, removal=removal)


@dataclass(frozen=True, eq=False)
class Candidate:
    """What is to be recovered and scored; `label` names its stages in the run."""

    row: str
    ratio: float
    recipe: Recipe
    strategy: str
    label: str
    budget: SizeBudget
    result: SearchResult


def write_cell(options: Options, shared: Workspace, candidate: Candidate, more: Mapping[str, Any]) -> None:
    """Recover and score an allocation, and write everything a table needs."""
    blueprint, result, label = shared.blueprint, candidate.result, candidate.label
    task, cell = blueprint.data.task, cell_name(options, candidate.row, candidate.ratio, shared.seed)
    folder, seconds = shared.run.path / "cells" / cell, shared.run.seconds
    stages = search_stages(candidate.strategy)
    scored: Encoded = encode(blueprint.source.tokenizer, blueprint.data.evaluation, blueprint.max_length)
    built = method.build(shared, result, candidate.budget, label, folder)
    logits = predict_logits(load_packed(folder).to(shared.context.device), scored, device=shared.context.device)
    full = teacher_logits(options, shared, scored)
    content: dict[str, Any] = {
        "task": options.task,
        "row": candidate.row,
        "ratio": candidate.ratio,
        "seed": shared.seed,
        "scored": options.score,
        "budget_bytes": candidate.budget.bytes,
        "file_bytes": built["file_bytes"],
        "derived_bytes": result.derived_bytes,
        "metric": task.metric,
        "metrics": score(task.metrics, logits, scored.labels),
        "answers": answers(logits).tolist(),
        "labels": scored.labels.tolist(),
        "divergence": divergence(torch.from_numpy(full), torch.from_numpy(logits)) / len(scored),
        "full_precision": score(task.metrics, full, scored.labels),
        "seconds": {"search": sum(seconds().get(stage, 0.0) for stage in stages), "recover": seconds()[f"recover-{label}"]},
        "recipe": dataclasses.asdict(candidate.recipe),
        "scale": blueprint.space.scale,
        "further_texts": 0 if shared.unlabelled is None else len(shared.unlabelled),
        "precision": options.precision,
        "teacher_sha256": shared.teacher_hash,
        "data_sha256": shared.data_hashes(),
        "allocation": result.allocation.to_json(),
        "versions": versions(),
        "device": device_name(shared.context.device),
        **more,
    }
    atomic_write_text(options.results / f"{cell}.json", json.dumps(content, separators=(",", ":"), sort_keys=True) + "\n")


def teacher_logits(options: Options, shared: Workspace, scored: Encoded) -> np.ndarray:
    """The teacher's answers to what cells are scored on, [texts, classes], kept beside its cells."""
    file = options.results / f"{options.task}-{options.score}{FULL}"
    if not file.exists():
        with atomic_file(file) as opened:
            np.save(opened, predict_logits(shared.teacher, scored, device=shared.context.device))
    found: np.ndarray = np.load(file)
    return found


# What says before recovery which allocation is better? -----------------------------------------------------------------


def rank(options: Options, data: TaskData, teacher: Path, names: Sequence[str], ratio: float, seed: int) -> None:
    """Random allocations of one size: what is known of them before recovery, and what comes out of it, a cell each."""
    todo = [name for name in names if not cell_file(options, name, ratio, seed).exists()]
    if not todo:
        return
    run = f"{cell_name(options, 'dnas', ratio, seed)}/dnas"
    with workspace(options, data, teacher, run, ROWS["dnas"].recipe(options.preset), seed) as shared:
        budget = SizeBudget.ratio(ratio, shared.blueprint.full_bytes())
        searched = shared.search("dnas", budget)
        problem = shared.problem(budget, "rank")
        for name in todo:
            context = dataclasses.replace(problem.context, seed=1000 + RANKED.index(name))
            result = STRATEGIES["random"].search(dataclasses.replace(problem, context=context))
            more = predictions(shared, problem, result.allocation, searched)
            write_cell(options, shared, Candidate(name, ratio, shared.blueprint.recipe, "random", name, budget, result), more)


def predictions(shared: Workspace, problem: Problem, allocation: BitAllocation, searched: SearchResult) -> dict[str, float]:
    """What could say before recovery how good an allocation is, the less the better."""
    table = problem.table
    return {
        "supernet_loss": held_out_loss(shared, shared.frozen_supernet(allocation, searched.searched)),
        "untrained_loss": held_out_loss(shared, shared.frozen_supernet(allocation)),
        "summed": float(problem.sensitivity.choices[np.arange(len(table)), table.to_choice(allocation)].sum()),
    }


@torch.no_grad()
def held_out_loss(shared: Workspace, supernet: Supernet) -> float:
    """Distillation loss (logits) of frozen bits on the part of the training texts that only a search's bits saw."""
    supernet.eval()
    outputs = shared.outputs.part(len(shared.train), len(shared.train_all))
    terms = dataclasses.replace(shared.blueprint.recipe.distillation, hidden=0.0)
    losses = []
    for indices in outputs.data.by_length(32):
        batch = outputs.data.collate(indices, shared.context.device)
        losses.append((distillation_loss(supernet, batch, outputs.batch(indices), terms).item(), len(indices)))
    values, weights = zip(*losses, strict=True)
    return float(np.average(values, weights=weights))


if __name__ == "__main__":
    main()
