"""How much faster is MREM-P than MREM-S? Two workers on two cores, equal steps and batch, one thread a process on both sides.

    python experiments/bench_mrem.py --json
    python experiments/bench_mrem.py --steps 300 --bits 4-4-8

`speedup_2` = seconds of MREM-S / seconds of MREM-P, both from the first step of any module to the last step of the last one,
input caching and warm-up included, and the teacher's states (the same for both) not; `speedup_2_wall` counts everything, the
start of the processes too. `ideal_2` is what the measured module times allow: T sum(t_n) / max over n of (t0 sum of the t before
n, + T t_n), the mean of times taken before and after. It leaves out what MREM-S caches between modules, so that the speed-up can
be a little above it. `predicted_speedup_4` is the same formula for four modules on four cores: a prediction from these times.
Processes on cores that are shared with other work measure that work too: `load_before` is the load when it began.
Measured: results/bench/mrem.json.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from autoquant import method, pipeline
from autoquant.assets import default_backbone
from autoquant.blueprint import Blueprint
from autoquant.core.allocation import BitAllocation
from autoquant.core.progress import SilentProgress
from autoquant.core.run import RunDirectory
from autoquant.core.settings import RECONSTRUCTION, load_preset
from autoquant.machine import Machine
from autoquant.refine import REFINERS, RefineProblem, mrem
from autoquant.refinement import UniformBits
from autoquant.tasks.data import TaskData
from autoquant.tasks.load import load_default, load_glue
from autoquant.training.batches import encode, longest
from autoquant.training.loop import Context
from autoquant.training.products import fast_products
from autoquant.workspace import Workspace


@dataclass(frozen=True)
class Options:
    """What to time."""

    steps: int = 500
    bits: str = "2-2-8"
    batch_size: int = 32
    samples: int = 4096
    fill: int = 32
    data_dir: Path | None = None
    """GLUE folder for SST-2 (5,000 sentences); without it the embedded reviews."""
    teacher: Path | None = None
    """A fine-tuned teacher; without it one is trained."""
    json: bool = False
    """Print JSON alone."""


def ideal_speedup(seconds: Sequence[float], steps: int, fill: int) -> float:
    """Sequential time over parallel time for measured seconds a step of every module, one core each."""
    begins = itertools.accumulate([0.0, *(fill * second for second in seconds[:-1])])
    return steps * sum(seconds) / max(begin + steps * second for begin, second in zip(begins, seconds, strict=True))


@dataclass
class Clock:
    """When the first and the last step of a refinement happened."""

    first: float = 0.0
    last: float = 0.0

    def tick(self) -> None:
        now = time.monotonic()
        self.first = self.first or now
        self.last = now

    @property
    def seconds(self) -> float:
        return self.last - self.first


class TickingProgress(SilentProgress):
    """Ticks when reconstruction begins (in mrem-p: when the first of its processes is ready) and at every step."""

    def __init__(self, clock: Clock, starts_processes: bool) -> None:
        self.clock, self.starts_processes, self.title = clock, starts_processes, ""

    def stage(self, title: str, total: int, start: int = 0) -> Any:
        self.title = title
        if title == "Reconstruct" and not self.starts_processes:
            self.clock.tick()
        return super().stage(title, total, start)

    def advance(self, steps: int = 1, note: str = "") -> None:
        if self.title == "Reconstruct":
            self.clock.tick()


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    data = load_default() if options.data_dir is None else load_glue("sst2", options.data_dir)
    data = dataclasses.replace(data, train=data.train.subsample(5000))
    with tempfile.TemporaryDirectory() as folder:
        result = bench(options, data, options.teacher or train_teacher(data), Path(folder))
    result |= {"load_before": load, "cores": os.cpu_count(), "options": json.loads(json.dumps(vars(options), default=str))}
    if options.json:
        print(json.dumps(result, indent=1, sort_keys=True))
        return
    for name, value in sorted(result.items()):
        print(f"{name}: {value}")


def train_teacher(data: TaskData) -> Path:
    """Kept between runs of this script."""
    runs, machine = Path("runs/bench-teacher"), Machine(threads=2)
    options: dict[str, Any] = {"recipe": load_preset("default"), "run_dir": runs, "max_length": 64, "machine": machine}
    return pipeline.finetune_teacher(default_backbone(), data, **options, resume=True)[0]


def bench(options: Options, data: TaskData, teacher: Path, folder: Path) -> dict[str, Any]:
    bits = UniformBits.parse(options.bits)
    recovery = dataclasses.replace(
        RECONSTRUCTION,
        mrem_steps=options.steps,
        mrem_samples=options.samples,
        batch_size=options.batch_size,
        parallel_fill=options.fill,
        parallel_queue=max(64, options.fill),
    )
    blueprint = Blueprint.draw(str(teacher), data, bits.recipe(recovery), 64, False)
    allocation = BitAllocation({p.matrix.name: p.widths * p.groups for p in blueprint.byte_model.partitions})
    result: dict[str, Any] = {}
    with RunDirectory.open(folder / "run", {}) as run:
        shared = Workspace(blueprint, run, SilentProgress(), Machine(threads=1), seed=0)
        torch.set_num_threads(1)
        before = {count: step_seconds(shared, allocation, count) for count in (2, 4)}
        clocks = {}
        encoded = encode(blueprint.source.tokenizer, data.evaluation, 64)
        for name in ("mrem-s", "mrem-p"):
            clock, begin = Clock(), time.monotonic()
            supernet = refined(shared, allocation, name, clock)
            clocks[name] = (clock.seconds, time.monotonic() - begin)
            plain, _ = dataclasses.replace(blueprint.source, path=str(run.teacher_dir)).load(0)
            result[f"metric_{name}"] = method.evaluate(shared, supernet.materialize(plain), encoded)[data.task.metric]
        after = {count: step_seconds(shared, allocation, count) for count in (2, 4)}
        times = {count: [(a + b) / 2 for a, b in zip(before[count], after[count], strict=True)] for count in (2, 4)}
        # what both do before the first step: the start of the processes is mrem-p's own
        result |= {f"seconds_{name}": clock for name, (clock, _) in clocks.items()}
        result |= {f"wall_{name}": wall for name, (_, wall) in clocks.items()}
        result["step_seconds_2"], result["step_seconds_4"] = times[2], times[4]
    result["speedup_2"] = clocks["mrem-s"][0] / clocks["mrem-p"][0]
    result["speedup_2_wall"] = clocks["mrem-s"][1] / clocks["mrem-p"][1]
    result["ideal_2"] = ideal_speedup(times[2], options.steps, options.fill)
    result["share_of_ideal_2"] = result["speedup_2"] / result["ideal_2"]
    result["predicted_speedup_4"] = ideal_speedup(times[4], options.steps, options.fill)
    result["metric"] = data.task.metric
    return result


def problem(shared: Workspace, allocation: BitAllocation, modules: int, context: Context, stage: str) -> RefineProblem:
    recipe = shared.blueprint.recipe
    settings = dataclasses.replace(recipe.recovery, mrem_modules=modules)
    supernet = shared.frozen_supernet(allocation)
    texts, outputs = shared.train_all, lambda: shared.outputs
    return RefineProblem(supernet, shared.teacher, texts, outputs, settings, recipe.distillation, context, stage)


def step_seconds(shared: Workspace, allocation: BitAllocation, modules: int, rounds: int = 12) -> list[float]:
    """Median seconds of a step of every module, all given the teacher's states; modules take turns."""
    task = problem(shared, allocation, modules, shared.context, "times")
    cut, lessons = mrem.prepare(task)
    works = [mrem.Reconstruction(m, lesson, task.settings, task.context) for m, lesson in zip(cut, lessons, strict=True)]
    order = mrem.BatchOrder(lessons[0].data, task.settings.batch_size, 0)
    seconds: list[list[float]] = [[] for _ in works]
    for number in range(rounds):
        indices = order.indices(number)
        for work, spent in zip(works, seconds, strict=True):
            student = None if work.lesson.start is None else work.lesson.start.batch(indices)
            begin = time.monotonic()
            with fast_products(task.context.device, longest(work.lesson.data)):
                work.step(number, indices, student)
            spent.append(time.monotonic() - begin)
    return [sorted(spent[2:])[len(spent[2:]) // 2] for spent in seconds]


def refined(shared: Workspace, allocation: BitAllocation, name: str, clock: Clock) -> Any:
    """The supernet after two modules of a variant; in mrem-p two processes of one thread each."""
    context = dataclasses.replace(shared.context, progress=TickingProgress(clock, name == "mrem-p"))
    task = problem(shared, allocation, 2, context, f"{name}-bench")
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if name == "mrem-p" else 1)  # shared out among the processes; this one only watches
    try:
        with fast_products(task.context.device, longest(task.data)):
            REFINERS[name].refine(task)
    finally:
        torch.set_num_threads(threads)
    return task.supernet


if __name__ == "__main__":
    main()
