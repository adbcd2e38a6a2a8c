"""Which cells are missing? As lines for experiments/parallel.py, in the order in which they are worth most.

    python experiments/missing.py --data-dir glue --tasks mrpc --teacher mrpc=DIR --precision bf16 > cells.txt
    python experiments/parallel.py cells.txt --workers 14

One line a process: a method and seed of the comparison (both sizes), or the rows of the ablation that share a search at a ratio
and seed. Cells of other teachers count as missing. The comparison has one teacher a task: where that one is no longer there, the
task is measured anew as a whole, so move its cells away first. But for sst2 the ablation is scored on a tenth of the training
file, so it has a teacher that has not seen that tenth, `--teacher mrpc-ablation=DIR`: ablation.py makes one in its `--runs`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import ablation
import tyro
from ablation_rows import ROWS

import compare
from autoquant.core.files import file_sha256

SEEDS = dict.fromkeys(("dnas", "uniform", "equal-compute", "search"), compare.MANY_SEEDS)
"""Rows of the ablation with more than one seed: the reference, and the ones closest to it."""


@dataclass(frozen=True)
class Options:
    """Whose cells, and what every line of them says."""

    data_dir: Path
    tasks: tuple[str, ...] = compare.TASKS
    what: tuple[Literal["compare", "ablation"], ...] = ("compare", "ablation")
    teacher: tuple[str, ...] = ()
    """Fine-tuned teachers as task=folder, or task-ablation=folder; without one every process would train its own."""
    ratios: tuple[float, ...] = compare.RATIOS
    precision: Literal["fp32", "bf16"] = "fp32"
    results: Path = compare.RESULTS


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    teachers = dict(entry.split("=", 1) for entry in options.teacher)
    needed = {(task, what): own(task, what) for task in options.tasks for what in options.what}
    lacking = sorted(set(needed.values()) - set(teachers))
    if lacking:
        raise SystemExit(f"No teacher for {', '.join(lacking)}: train it with `autoquant finetune`, give --teacher TASK=DIR.")
    for (task, what), name in needed.items():
        for line in {"compare": comparison, "ablation": rows}[what](options, task, teachers[name]):
            print(line)


def own(task: str, what: str) -> str:
    """The name of the teacher that a table of a task is measured with."""
    return f"{task}-ablation" if what == "ablation" and task != "sst2" else task


def common(options: Options, number: str) -> list[object]:
    """What both scripts are told; `{job}` is the line's number."""
    return ["--data-dir", options.data_dir, "--threads", 1, "--precision", options.precision, "--runs", f"runs/{number}"]


def comparison(options: Options, task: str, teacher: str) -> list[str]:
    """A line for every planned method and seed that lacks a cell."""
    folder, lines = options.results / compare.CELLS.name, []
    there = [cell for cell in read(folder, task) if cell["teacher_hash"] == hash_of(teacher)]
    for seed in compare.MANY_SEEDS:
        for name, seeds in compare.planned():
            own = [cell for cell in there if (cell["method"], cell["seed"]) == (name, seed)]
            wanted = 1 if any(cell["own_size"] for cell in own) else len(options.ratios)
            if seed in seeds and len(own) < wanted:
                which = ["--tasks", task, "--methods", name, "--seeds", seed, "--ratios", *map("{:g}".format, options.ratios)]
                how = ["--teacher", f"{task}={teacher}", "--results", options.results, *common(options, "{job}")]
                lines.append(shlex.join(map(str, ["compare.py", *which, *how])))
    return lines


def rows(options: Options, task: str, teacher: str) -> list[str]:
    """A line for the rows of a search, a ratio and a seed, where one lacks a cell."""
    folder, lines = options.results / ablation.RESULTS.name, []
    there = {
        (cell["row"], cell["ratio"], cell["seed"])
        for cell in read(folder / hash_of(teacher)[:8], task)
        if (cell["precision"], cell["scored"]) == (options.precision, "train")
    }
    for seed in compare.MANY_SEEDS:
        for ratio in options.ratios:
            for names in together():
                lacking = [name for name in names if seed in SEEDS.get(name, (0,)) and (name, ratio, seed) not in there]
                if lacking:
                    which = ["--task", task, "--rows", *lacking, "--ratios", f"{ratio:g}", "--seeds", seed]
                    how = ["--teacher", teacher, "--results", folder, *common(options, "{job}")]
                    lines.append(shlex.join(map(str, ["ablation.py", *which, *how])))
    return lines


def together() -> Iterator[list[str]]:
    """Rows that share a search, the one that searches first."""
    for name, row in ROWS.items():
        if not row.searched_by:
            yield [name, *(other for other, its in ROWS.items() if its.searched_by == name)]


def read(folder: Path, task: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob(f"{task}-*.json"))]


@cache
def hash_of(teacher: str) -> str:
    return file_sha256(Path(teacher) / "model.safetensors")


if __name__ == "__main__":
    main()
