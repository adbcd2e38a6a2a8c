"""allocation.json: which bits every sub-group got, why, and what it came to; enough to apply the allocation again.

The JSON Schema beside this file (allocation.schema.json) is checked on writing and on reading.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import SizeBudget
from autoquant.core.errors import CheckpointError
from autoquant.core.files import atomic_write_text
from autoquant.core.space import Rule, SearchSpace, parse_space
from autoquant.core.subgroup import Partition

FORMAT, VERSION = "autoquant-allocation", 2
SCHEMA = Path(__file__).with_name("allocation.schema.json")
LINE = 130  # characters up to which an object stays on one line; a sub-group does


def build_manifest(
    *,
    space: SearchSpace,
    partitions: Sequence[Partition],
    allocation: BitAllocation,
    probability: np.ndarray | None,
    sensitivity: np.ndarray | None,
    quantizer: str,
    activation_bits: int,
    activations: str,
    max_length: int,
    trim_positions: bool,
    budget: SizeBudget,
    reached: Mapping[str, int],
    breakdown: Mapping[str, int],
    metrics: Mapping[str, Any],
    strategy: str,
    recovery: Mapping[str, Any],
    hashes: Mapping[str, str],
    versions: Mapping[str, str],
    seed: int,
) -> dict[str, Any]:
    """The content of allocation.json, plain JSON values.

    `probability` and `sensitivity` [N], over the sub-groups of all partitions in their order, None where a strategy has
    none; the partitions are those of the model without the units that the allocation removes; `reached`: bytes under `file`
    and `counted`. Raises CheckpointError when the allocation does not fit the partitions.
    """
    allocation.check_fits(partitions)
    ends = np.cumsum([p.groups for p in partitions])
    pieces = [slice(int(end) - p.groups, int(end)) for p, end in zip(partitions, ends, strict=True)]
    chances, losses = _numbers(probability, int(ends[-1])), _numbers(sensitivity, int(ends[-1]))
    return {
        "format": FORMAT,
        "version": VERSION,
        "space": space_content(space),
        "quantizer": quantizer,
        "activation_bits": activation_bits,
        "activations": activations,
        "max_length": max_length,
        "trim_positions": trim_positions,
        "strategy": strategy,
        "seed": seed,
        "budget": {"bytes": budget.bytes, "count": budget.count},
        "reached": {**reached, "breakdown": dict(breakdown)},
        "metrics": dict(metrics),
        "recovery": dict(recovery),
        "hashes": dict(hashes),
        "versions": dict(versions),
        "removed": list(allocation.removed),
        "matrices": [
            _matrix(p, allocation.bits[p.matrix.name], chances[piece], losses[piece])
            for p, piece in zip(partitions, pieces, strict=True)
        ],
    }


def _matrix(
    partition: Partition, bits: Sequence[int], chances: Sequence[float | None], losses: Sequence[float | None]
) -> dict[str, Any]:
    subgroups = []
    for group, width, chance, loss in zip(partition.subgroups(), bits, chances, losses, strict=True):
        where = {"bucket": group.index, "rows": group.count} if group.rows is None else {"rows": list(group.rows)}
        subgroups.append({**where, "bits": width, "why": {"probability": chance, "sensitivity": loss}})
    matrix = partition.matrix
    return {
        "name": matrix.name,
        "shape": [matrix.rows, matrix.columns],
        "kind": matrix.kind,
        "layer": matrix.layer,
        "buckets_sha256": buckets_sha256(partition),
        "subgroups": subgroups,
    }


def space_content(space: SearchSpace) -> dict[str, Any]:
    """A search space as a manifest has it; `manifest_space` reads it."""
    rules = {kind: _rule(rule) for kind, rule in space.rules.items()}
    structure = {"heads": space.heads, "ffn_blocks": space.ffn_blocks}
    return {"name": space.name, "scale": space.scale, "rules": rules, "structure": structure}


def _rule(rule: Rule) -> dict[str, Any]:
    scale = {} if rule.scale is None else {"scale": rule.scale}
    return {"bits": list(rule.bits), "groups": rule.groups, **scale}


def _numbers(values: np.ndarray | None, count: int) -> list[float | None]:
    """One number a sub-group; six digits say enough of a reason and keep a sub-group on its line."""
    return [None] * count if values is None else [float(f"{value:.6g}") for value in values]


def buckets_sha256(partition: Partition) -> str | None:
    """SHA-256 of the bucket of every row (one byte each), None for runs of rows: does a text give the same buckets again?"""
    return None if partition.buckets is None else hashlib.sha256(partition.buckets.tobytes()).hexdigest()


def write_manifest(path: str | Path, manifest: Mapping[str, Any]) -> Path:
    """Check and write; equal manifests give equal bytes. Raises CheckpointError, or RunError when the disk is full."""
    _check(manifest, str(path))
    try:
        text = _render(manifest)
    except ValueError as error:
        raise CheckpointError(f"{path}: a number in the allocation is not finite.") from error
    atomic_write_text(path, text + "\n")
    return Path(path)


def _render(value: Any, indent: str = "") -> str:
    """JSON with sorted keys, on one line where it fits: so a sub-group, the most frequent thing, takes one line."""
    flat = json.dumps(value, sort_keys=True, allow_nan=False)
    if len(indent) + len(flat) <= LINE or not isinstance(value, Mapping | list | tuple):
        return flat
    deeper = indent + " "
    if isinstance(value, Mapping):
        items = [f"{json.dumps(key)}: {_render(value[key], deeper)}" for key in sorted(value)]
    else:
        items = [_render(item, deeper) for item in value]
    start, end = "{}" if isinstance(value, Mapping) else "[]"
    return f"{start}\n" + ",\n".join(deeper + item for item in items) + f"\n{indent}{end}"


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Read and check an allocation.json. Raises CheckpointError, in one line, for anything malformed."""
    try:
        manifest = json.loads(Path(path).read_text("utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {str(error).splitlines()[0]}.") from error
    _check(manifest, str(path))
    return manifest


def manifest_allocation(manifest: Mapping[str, Any]) -> BitAllocation:
    """The allocation in a manifest."""
    bits = {m["name"]: tuple(int(g["bits"]) for g in m["subgroups"]) for m in manifest["matrices"]}
    return BitAllocation(bits, tuple(manifest.get("removed", ())))


def manifest_space(manifest: Mapping[str, Any]) -> SearchSpace:
    """The search space in a manifest. Raises SpaceError for rules that are none."""
    space = manifest["space"]
    return parse_space({**space["rules"], "scale": space["scale"], "structure": space.get("structure", {})}, space["name"])


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(SCHEMA.read_text("utf-8")))


def _check(manifest: Any, where: str) -> None:
    """Raise CheckpointError unless a manifest obeys the schema and its sub-groups cover every row once."""
    if isinstance(manifest, Mapping) and manifest.get("format") == FORMAT and manifest.get("version") != VERSION:
        raise CheckpointError(f"{where} has version {manifest.get('version')!r}, this autoquant reads {VERSION}: update it.")
    error = best_match(_validator().iter_errors(manifest))
    if error is not None:
        message = error.message if len(error.message) < LINE else f"{error.message[:LINE]}..."
        raise CheckpointError(f"{where} is no allocation: {error.json_path} {' '.join(message.split())}.")
    names = [matrix["name"] for matrix in manifest["matrices"]]
    if len(set(names)) != len(names):
        raise CheckpointError(f"{where} is no allocation: a matrix is in it twice.")
    for matrix in manifest["matrices"]:
        if not _covers(matrix):
            raise CheckpointError(f"{where} is no allocation: the sub-groups of {matrix['name']} do not cover its rows once.")


def _covers(matrix: Mapping[str, Any]) -> bool:
    """Whether sub-groups are all runs that join up, or all buckets in order, and hold `shape[0]` rows."""
    groups, rows = matrix["subgroups"], matrix["shape"][0]
    if matrix["buckets_sha256"] is not None:
        in_order = [group.get("bucket") for group in groups] == list(range(len(groups)))
        return in_order and sum(group["rows"] for group in groups) == rows
    if any("bucket" in group for group in groups):
        return False
    runs = [group["rows"] for group in groups]
    joined = all(before[1] == after[0] for before, after in pairwise(runs))
    return joined and runs[0][0] == 0 and runs[-1][1] == rows and all(start < stop for start, stop in runs)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
