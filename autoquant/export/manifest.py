"""allocation.json: which bits every sub-group got, why, and what it came to; enough to apply the allocation again.

The JSON Schema beside this file (allocation.schema.json) is checked on writing and on reading.
"""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
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

FORMAT, VERSION = "autoquant-allocation", 3
SCHEMA = Path(__file__).with_name("allocation.schema.json")
LINE = 130  # characters of a line, at most, where it can be broken


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
            _matrix(p, allocation.bits[p.matrix.name], _numbers(probability, piece), _numbers(sensitivity, piece))
            for p, piece in zip(partitions, pieces, strict=True)
        ],
    }


def _matrix(
    partition: Partition, bits: Sequence[int], probability: list[float] | None, sensitivity: list[float] | None
) -> dict[str, Any]:
    matrix = partition.matrix
    return {
        "name": matrix.name,
        "shape": [matrix.rows, matrix.columns],
        "kind": matrix.kind,
        "layer": matrix.layer,
        "buckets_sha256": buckets_sha256(partition),
        "rows": list(partition.sizes),
        "bits": list(bits),
        "probability": probability,
        "sensitivity": sensitivity,
    }


def space_content(space: SearchSpace) -> dict[str, Any]:
    """A search space as a manifest has it; `manifest_space` reads it."""
    rules = {kind: _rule(rule) for kind, rule in space.rules.items()}
    structure = {"heads": space.heads, "ffn_blocks": space.ffn_blocks}
    return {"name": space.name, "scale": space.scale, "rules": rules, "structure": structure}


def _rule(rule: Rule) -> dict[str, Any]:
    scale = {} if rule.scale is None else {"scale": rule.scale}
    return {"bits": list(rule.bits), "groups": rule.groups, **scale}


def _numbers(values: np.ndarray | None, piece: slice) -> list[float] | None:
    """Those of a matrix; four digits say enough of a reason."""
    return None if values is None else [float(f"{value:.4g}") for value in values[piece]]


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
    """JSON with sorted keys, on one line where it fits; long lists of numbers go on over several lines."""
    flat = json.dumps(value, sort_keys=True, allow_nan=False)
    if len(indent) + len(flat) <= LINE or not isinstance(value, Mapping | list | tuple):
        return flat
    deeper = indent + " "
    start, end = "{}" if isinstance(value, Mapping) else "[]"
    if isinstance(value, Mapping):
        inside = ",\n".join(f"{deeper}{json.dumps(key)}: {_render(value[key], deeper)}" for key in sorted(value))
    elif isinstance(value[0], int | float):
        inside = textwrap.fill(flat[1:-1], LINE, initial_indent=deeper, subsequent_indent=deeper)
    else:
        inside = ",\n".join(deeper + _render(item, deeper) for item in value)
    return f"{start}\n{inside}\n{indent}{end}"


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
    bits = {matrix["name"]: tuple(map(int, matrix["bits"])) for matrix in manifest["matrices"]}
    return BitAllocation(bits, tuple(manifest.get("removed", ())))


def manifest_space(manifest: Mapping[str, Any]) -> SearchSpace:
    """The search space in a manifest. Raises SpaceError for rules that are none."""
    space = manifest["space"]
    return parse_space({**space["rules"], "scale": space["scale"], "structure": space.get("structure", {})}, space["name"])


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(SCHEMA.read_text("utf-8")))


def _check(manifest: Any, where: str) -> None:
    """Raise CheckpointError unless a manifest obeys the schema, and its sub-groups have every row and as many entries each."""
    if isinstance(manifest, Mapping) and manifest.get("format") == FORMAT and manifest.get("version") != VERSION:
        found = manifest.get("version")
        remedy = "make it anew" if isinstance(found, int) and found < VERSION else "update autoquant"
        raise CheckpointError(f"{where} has version {found!r}, this autoquant reads {VERSION}: {remedy}.")
    error = best_match(_validator().iter_errors(manifest))
    if error is not None:
        message = error.message if len(error.message) < LINE else f"{error.message[:LINE]}..."
        raise CheckpointError(f"{where} is no allocation: {error.json_path} {' '.join(message.split())}.")
    names = [matrix["name"] for matrix in manifest["matrices"]]
    if len(set(names)) != len(names):
        raise CheckpointError(f"{where} is no allocation: a matrix is in it twice.")
    for matrix in manifest["matrices"]:
        name, rows = matrix["name"], matrix["rows"]
        if sum(rows) != matrix["shape"][0]:
            raise CheckpointError(f"{where} is no allocation: the sub-groups of {name} have not all of its rows.")
        lists = [matrix[key] for key in ("bits", "probability", "sensitivity") if matrix[key] is not None]
        if any(len(values) != len(rows) for values in lists):
            raise CheckpointError(f"{where} is no allocation: the lists of {name} differ in how many sub-groups they have.")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
