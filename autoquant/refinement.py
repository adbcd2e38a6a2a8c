"""`autoquant refine`: reconstruct, pack and measure an allocation that is already there, found by a search or uniform."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from autoquant import method
from autoquant.blueprint import Blueprint
from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import SizeBudget
from autoquant.core.errors import ModelError, RunError, SpaceError
from autoquant.core.files import file_sha256
from autoquant.core.progress import Progress, SilentProgress
from autoquant.core.run import RunDirectory
from autoquant.core.settings import RECONSTRUCTION, Recipe, RecoverySettings
from autoquant.estimates import estimate_refinement
from autoquant.export.manifest import manifest_allocation, manifest_space, read_manifest
from autoquant.machine import Machine
from autoquant.pipeline import RunResult, check_applies, check_run, finish, recorded_recipe, resolve_budget, resolve_inputs
from autoquant.refine.mrem_parallel import first_rank_is_done, result_stage, torchrun_rank
from autoquant.strategies import SearchResult
from autoquant.tasks.data import TaskData
from autoquant.workspace import Workspace

WIDTHS, ACTIVATION_WIDTHS = (2, 3, 4, 8), (4, 8, 32)


@dataclasses.dataclass(frozen=True)
class UniformBits:
    """Bits of encoder weights, word embedding and activations: the W-E-A of the papers."""

    weights: int
    embedding: int
    activations: int

    @classmethod
    def parse(cls, text: str) -> UniformBits:
        """`4-4-8` and the like. Raises SpaceError for anything else."""
        found = re.fullmatch(r"(\d+)-(\d+)-(\d+)", text)
        bits = cls(*map(int, found.groups())) if found else None
        if bits is None or {bits.weights, bits.embedding} - set(WIDTHS) or bits.activations not in ACTIVATION_WIDTHS:
            raise SpaceError(
                f"--bits {text} is not weights-embedding-activations such as 2-2-8: weights and embedding take "
                f"{', '.join(map(str, WIDTHS))} bits, activations {', '.join(map(str, ACTIVATION_WIDTHS))} (32 = as they are)."
            )
        return bits

    def __str__(self) -> str:
        return f"{self.weights}-{self.embedding}-{self.activations}"

    def recipe(self, recovery: RecoverySettings) -> Recipe:
        """The paper's quantisers, on the space that has this allocation alone."""
        bits: Any = self.activations
        space = f"uniform-{self.weights}-{self.embedding}"
        return Recipe(space, quantizer="lsq", activation_bits=bits, activations="static", recovery=recovery)


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """What is to be refined: the allocation's name, its blueprint, and where its seed and budget come from."""

    name: str
    blueprint: Blueprint
    allocation: BitAllocation
    budget: SizeBudget
    seed: int
    identity: dict[str, Any]


def refine(
    source: str | Path | None = None,
    data: TaskData | None = None,
    *,
    bits: str | None = None,
    allocation: str | Path | None = None,
    recovery: RecoverySettings | None = None,
    activation_bits: int | None = None,
    activations: str | None = None,
    run_dir: str | Path = "runs/refined",
    seed: int = 0,
    max_length: int = 128,
    machine: Machine | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> RunResult | None:
    """Reconstruct a frozen allocation from the full-precision model, pack and measure it.

    `source`: a run directory (its allocation and its teacher, unless `bits` or `allocation` gives another allocation), or a
    model with `bits` such as `2-2-8`, or with `allocation`, an `allocation.json` of a model of this shape. `data`: the
    training text, the very rows that a recorded allocation was found with. Unless `recovery` trains on labels, nothing but the
    metric, at the end, looks at a label of a fine-tuned model's data. Returns None in all but the first process of a torchrun.
    Raises an AutoquantError for what cannot work.
    """
    machine, progress = machine or Machine(), progress or SilentProgress()
    check_run(machine, seed)
    recovery = recovery or RECONSTRUCTION
    if recovery.start == "search":
        raise RunError("There are no searched weights to start from: refine starts from the full-precision model.")
    changes = {"activation_bits": activation_bits, "activations": activations}
    changes = {name: value for name, value in changes.items() if value is not None}
    target = _target(source, data, bits, allocation, recovery, changes, seed, max_length)
    rank, run_path = torchrun_rank(), Path(run_dir)
    if rank:
        run_path = run_path / f"rank{rank}"
        if not target.blueprint.source.load(target.seed)[1]:
            raise ModelError("Under torchrun every process needs the same fine-tuned model: run `autoquant finetune` first.")
    settings = {
        "refine": {"source": str(source), "bits": bits, **target.identity, **changes},
        "recovery": dataclasses.asdict(recovery),
        "task": target.blueprint.data.task.name,
        "data": target.blueprint.data.hashes(),
        "seed": target.seed,
        "max_length": target.blueprint.max_length,
        "machine": machine.identity(),
    }
    defaults, expected = {"recovery": dataclasses.asdict(RECONSTRUCTION)}, 6 * target.blueprint.full_bytes()
    with RunDirectory.open(run_path, settings, resume, expected, defaults) as run:
        if allocation is not None:
            run.record(allocation=str(allocation))
        workspace = Workspace(target.blueprint, run, progress, machine, target.seed)
        progress.plan(estimate_refinement(target.blueprint, target.name))
        done = rank is not None and _parallel_is_done(run, recovery, target.name, rank)
        if rank:
            if not done:
                with workspace.timed(f"recover-{target.name}"):
                    method.recover(workspace, SearchResult(target.allocation), target.name)
            return None
        return finish(workspace, target.budget, target.name, {target.name: SearchResult(target.allocation)}, searched=False)


def _parallel_is_done(run: RunDirectory, recovery: RecoverySettings, name: str, rank: int) -> bool:
    """Whether torchrun's first process needs the others no more."""
    if recovery.reconstruction != "mrem-p" or not recovery.mrem_steps:
        return False
    recovered = run.finished(f"recover-{name}") or run.load_state(result_stage(f"mrem-p-{name}"))
    return first_rank_is_done(rank, recovered is not None)


def _target(
    source: str | Path | None,
    data: TaskData | None,
    bits: str | None,
    allocation: str | Path | None,
    recovery: RecoverySettings,
    changes: dict[str, Any],
    seed: int,
    max_length: int,
) -> Target:
    run = Path(source) if source is not None and (Path(source) / "run.json").is_file() else None
    teacher = source if run is None else run / "teacher"
    if run is not None and not (run / "teacher").is_dir():
        if RunDirectory(run).is_finished:  # a sweep or a comparison drops the copies of what its runs share
            record = run / "model" / "allocation.json"
            raise RunError(f"{run} keeps no teacher/: give that of its shared/ folder instead, with --allocation {record}.")
        raise RunError(f"{run} has no teacher/ yet: finish it first, or give a model.")
    model, task = resolve_inputs(teacher, data)
    if bits is not None:
        if allocation is not None:
            raise SpaceError("--bits and --allocation are two allocations: give one.")
        uniform = UniformBits.parse(bits)
        if changes:
            raise SpaceError("--bits says the activations' bits already: drop --activation-bits and --activations.")
        return _uniform(uniform, model, task, recovery, seed, max_length)
    if run is None and allocation is None:
        raise RunError(
            f"{source or 'The model'} comes without an allocation: add --bits, say --bits 2-2-8, or --allocation "
            "allocation.json, or give a run."
        )
    if run is not None and allocation is None and not ((run / "model").is_dir() and RunDirectory(run).is_finished):
        raise RunError(f"{run} holds no finished search: finish one there first, or give --bits or --allocation.")
    recorded = Path(allocation) if allocation is not None else Path(str(run)) / "model" / "allocation.json"
    return _recorded(recorded, model, task, recovery, changes)


def _uniform(bits: UniformBits, model: str, data: TaskData, recovery: RecoverySettings, seed: int, max_length: int) -> Target:
    blueprint = Blueprint.draw(model, data, bits.recipe(recovery), max_length, trim_positions=False)
    allocation = blueprint.only_allocation
    assert allocation is not None
    return Target(f"uniform-{bits}", blueprint, allocation, resolve_budget(None, blueprint), seed, {"model": model})


def _recorded(path: Path, model: str, data: TaskData, recovery: RecoverySettings, changes: dict[str, Any]) -> Target:
    manifest = read_manifest(path)
    data = data.as_recorded(manifest["hashes"])
    recipe = dataclasses.replace(recorded_recipe(manifest), recovery=recovery, **changes)
    space = manifest_space(manifest)
    blueprint = Blueprint.draw(model, data, recipe, manifest["max_length"], manifest["trim_positions"], space)
    allocation = manifest_allocation(manifest)
    check_applies(manifest, blueprint, allocation)
    # learned ranges weigh a little more than none: the allocation is what is kept, not the budget
    count = manifest["budget"]["count"]
    size = max(manifest["budget"]["bytes"], blueprint.byte_model.exact_bytes(allocation, count))
    identity = {"model": model, "allocation": file_sha256(path)}
    return Target(manifest["strategy"], blueprint, allocation, SizeBudget(size, count), manifest["seed"], identity)
