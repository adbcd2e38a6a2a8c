import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import SizeBudget
from autoquant.core.errors import CheckpointError
from autoquant.core.space import load_space
from autoquant.core.subgroup import Matrix, Partition, even_sizes
from autoquant.export.manifest import build_manifest, manifest_allocation, manifest_space, read_manifest, write_manifest

BUCKETS = np.array([1, 0, 1, 1, 0], dtype=np.uint8)
PARTITIONS = (
    Partition(Matrix("words", 5, 4, "word_embedding"), (1, 8), (2, 3), BUCKETS),
    Partition(Matrix("query", 7, 4, "query", 0), (0, 2, 4), even_sizes(7, 3)),
)
ALLOCATION = BitAllocation({"words": (8, 1), "query": (0, 2, 4)})
HASH = "0" * 64


def manifest(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "space": load_space("default"),
        "partitions": PARTITIONS,
        "allocation": ALLOCATION,
        "probability": np.array([0.5, 0.25, 1 / 3, 0.9, 0.75]),
        "sensitivity": None,
        "quantizer": "midrise",
        "activation_bits": 8,
        "activations": "dynamic",
        "max_length": 64,
        "trim_positions": True,
        "budget": SizeBudget(1000),
        "reached": {"file": 995, "counted": 995},
        "breakdown": {"query": 900, "header": 95},
        "metrics": {"name": "accuracy", "value": 0.875},
        "strategy": "dnas",
        "recovery": {"steps": 10},
        "hashes": {"train": HASH},
        "versions": {"torch": "2.13.0"},
        "seed": 3,
    }
    return build_manifest(**{**arguments, **changes})


def test_hand_written_matrices() -> None:
    words, query = manifest()["matrices"]
    assert words == {
        "name": "words",
        "shape": [5, 4],
        "kind": "word_embedding",
        "layer": None,
        "buckets_sha256": hashlib.sha256(bytes([1, 0, 1, 1, 0])).hexdigest(),
        "subgroups": [
            {"bucket": 0, "rows": 2, "bits": 8, "why": {"probability": 0.5, "sensitivity": None}},
            {"bucket": 1, "rows": 3, "bits": 1, "why": {"probability": 0.25, "sensitivity": None}},
        ],
    }
    assert query["subgroups"] == [
        {"rows": [0, 3], "bits": 0, "why": {"probability": 0.333333, "sensitivity": None}},
        {"rows": [3, 5], "bits": 2, "why": {"probability": 0.9, "sensitivity": None}},
        {"rows": [5, 7], "bits": 4, "why": {"probability": 0.75, "sensitivity": None}},
    ]


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "allocation.json", manifest())
    read = read_manifest(path)
    assert read == manifest()
    assert manifest_allocation(read) == ALLOCATION
    assert manifest_space(read) == load_space("default")


def test_same_content_same_bytes_whatever_the_order(tmp_path: Path) -> None:
    one = write_manifest(tmp_path / "a.json", manifest()).read_bytes()
    turned = dict(reversed(manifest().items()))
    assert write_manifest(tmp_path / "b.json", turned).read_bytes() == one


def test_a_subgroup_takes_one_line(tmp_path: Path) -> None:
    partition = Partition(Matrix("query", 9000, 4, "query", 11), (2,), even_sizes(9000, 3000))
    numbers = np.linspace(-1.23456789e-11, -9.87654321e-12, 3000)
    many = manifest(
        partitions=[partition], allocation=BitAllocation({"query": (2,) * 3000}), probability=-numbers, sensitivity=numbers
    )
    lines = write_manifest(tmp_path / "allocation.json", many).read_text().splitlines()
    assert sum('"bits": 2, "rows"' in line for line in lines) == 3000
    assert len(lines) < 3200


def test_does_not_write_what_it_would_not_read(tmp_path: Path) -> None:
    path = tmp_path / "allocation.json"
    with pytest.raises(CheckpointError, match="activation_bits"):
        write_manifest(path, manifest(activation_bits=7))
    with pytest.raises(CheckpointError, match="not finite"):
        write_manifest(path, manifest(metrics={"value": float("nan")}))
    with pytest.raises(CheckpointError, match="does not fit this model"):
        manifest(allocation=BitAllocation({"query": (0, 2, 4)}))
    assert not path.exists()


def first_words(m: dict[str, Any]) -> dict[str, Any]:
    return m["matrices"][0]


def query_runs(m: dict[str, Any]) -> list[dict[str, Any]]:
    return m["matrices"][1]["subgroups"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: m.pop("space"), "'space' is a required property"),
        (lambda m: m.update(extra=1), "Additional properties"),
        (lambda m: m.update(version=1), "has version 1, this autoquant reads 2"),
        (lambda m: m.update(format="foreign"), r"\$.format 'autoquant-allocation' was expected"),
        (lambda m: m["hashes"].update(train="xyz"), r"\$.hashes.train"),
        (lambda m: m["budget"].update(count="gpu"), r"\$.budget.count"),
        (lambda m: query_runs(m)[0].update(bits=5), r"\$.matrices\[1\].subgroups\[0\]"),
        (lambda m: query_runs(m)[0].update(rows=[0, 2]), "sub-groups of query do not cover"),
        (lambda m: query_runs(m)[2].update(rows=[5, 8]), "sub-groups of query do not cover"),
        (lambda m: query_runs(m).pop(1), "sub-groups of query do not cover"),
        (lambda m: query_runs(m).insert(1, {**query_runs(m)[0], "rows": [3, 3]}), "sub-groups of query do not cover"),
        (lambda m: first_words(m)["subgroups"][0].update(rows=3), "sub-groups of words do not cover"),
        (lambda m: first_words(m)["subgroups"].reverse(), "sub-groups of words do not cover"),
        (lambda m: first_words(m).update(buckets_sha256=None), "sub-groups of words do not cover"),
        (lambda m: m["matrices"].append(m["matrices"][0]), "in it twice"),
    ],
)
def test_refuses_malformed_manifests(damage: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    broken = copy.deepcopy(manifest())
    damage(broken)
    path = tmp_path / "allocation.json"
    path.write_text(json.dumps(broken))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_manifest(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"seed": NaN}', "[" * 100_000, "\xff"])
def test_refuses_text_that_is_no_manifest(text: str, tmp_path: Path) -> None:
    path = tmp_path / "allocation.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError) as caught:
        read_manifest(path)
    assert "\n" not in str(caught.value)


def test_missing_file() -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_manifest("nowhere/allocation.json")
