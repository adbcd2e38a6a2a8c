"""What could a search reach, before any training? Sizes, the byte table per matrix, and a time estimate."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from autoquant.blueprint import Blueprint
from autoquant.core.cost import MIB, choice_table
from autoquant.core.progress import Progress, rounded
from autoquant.estimates import estimate_stages
from autoquant.pipeline import Budget, resolve_budget


def show_plan(blueprint: Blueprint, budget: Budget | None, count: str, progress: Progress) -> None:
    """Print full-precision bytes, smallest and largest reachable size and what fills them, bytes per matrix, and time."""
    model, table = blueprint.byte_model, choice_table(blueprint.byte_model, count)
    smallest = np.where(table.allowed, table.bytes, np.iinfo(np.int64).max).argmin(axis=1)
    largest = np.where(table.allowed, table.bytes, -1).argmax(axis=1)
    ends = [model.breakdown(table.to_allocation(choice), count) for choice in (smallest, largest)]
    full = blueprint.full_bytes(count)
    progress.say(f"Full precision: {full:,} bytes ({full / MIB:.2f} MiB), counting the {count}.")
    rows = [[part, f"{ends[0][part]:,}", f"{ends[1][part]:,}"] for part in ends[1]]
    rows.append(["total", f"{table.smallest():,}", f"{table.largest():,}"])
    progress.table(f"Reachable sizes ({blueprint.space.name} space), bytes", ["part", "smallest", "largest"], rows)
    columns = ["matrix", "sub-groups", *(f"{width} bit" for width in table.widths)]
    progress.table("Bytes per matrix and width", columns, _matrices(blueprint))
    stages = estimate_stages(blueprint, blueprint.recipe.search.strategy, ("uniform",))
    total = sum(seconds for _, seconds in stages)
    control = ", the uniform control included" if blueprint.only_allocation is None else ""
    progress.say(f"Time: about {rounded(total)} on 2 CPU cores{control} ({len(stages)} stages).")
    if budget is not None or blueprint.own_budget is not None:
        size = resolve_budget(budget, blueprint)
        blueprint.check_searchable(size)
        ratio = blueprint.full_bytes(size.count) / size.bytes
        progress.say(f"Budget {size.bytes:,} bytes ({size.bytes / MIB:.2f} MiB) can be met: {ratio:.1f}x smaller.")


def _matrices(blueprint: Blueprint) -> list[list[str]]:
    """One row per kind and shape of matrix; layers that are alike share a row."""
    model, table = blueprint.byte_model, choice_table(blueprint.byte_model)
    alike = defaultdict(list)
    for partition in model.partitions:
        matrix = partition.matrix
        alike[matrix.kind, matrix.rows, matrix.columns, partition.groups].append(partition)
    rows = []
    for (kind, height, width, groups), partitions in alike.items():
        times = f"{len(partitions)} x " if len(partitions) > 1 else ""
        first = partitions[0]
        sizes = [f"{int(model.choice_bytes(first, w).sum()):,}" if w in first.widths else "-" for w in table.widths]
        rows.append([f"{times}{kind} [{height}, {width}]", str(groups), *sizes])
    return rows
