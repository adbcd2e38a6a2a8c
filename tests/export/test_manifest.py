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
        "rows": [2, 3],
        "bits": [8, 1],
        "probability": [0.5, 0.25],
        "sensitivity": None,
    }
    assert {key: query[key] for key in ("rows", "bits", "probability")} == {
        "rows": [3, 2, 2],
        "bits": [0, 2, 4],
        "probability": [0.3333, 0.9, 0.75],
    }


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


def test_many_subgroups_take_few_lines_and_bytes(tmp_path: Path) -> None:
    partition = Partition(Matrix("query", 9000, 4, "query", 11), (2,), even_sizes(9000, 3000))
    numbers = np.linspace(-1.23456789e-11, -9.87654321e-12, 3000)
    many = manifest(
        partitions=[partition], allocation=BitAllocation({"query": (2,) * 3000}), probability=-numbers, sensitivity=numbers
    )
    path = write_manifest(tmp_path / "allocation.json", many)
    lines = path.read_text().splitlines()
    assert max(map(len, lines)) <= 130
    assert len(lines) < 800
    assert path.stat().st_size < 33 * 3000
    assert read_manifest(path) == many


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


def query(m: dict[str, Any]) -> dict[str, Any]:
    return m["matrices"][1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: m.pop("space"), "'space' is a required property"),
        (lambda m: m.update(extra=1), "Additional properties"),
        (lambda m: m.update(version=2), "has version 2, this autoquant reads 3: make it anew"),
        (lambda m: m.update(version=4), "has version 4, this autoquant reads 3: update autoquant"),
        (lambda m: m.update(format="foreign"), r"\$.format 'autoquant-allocation' was expected"),
        (lambda m: m.update(strategy="x/../../../elsewhere"), r"\$.strategy 'x/../../../elsewhere' does not match"),
        (lambda m: m.update(strategy=".."), r"\$.strategy '..' does not match"),
        (lambda m: m.update(seed=-1), r"\$.seed -1 is less than the minimum"),
        (lambda m: m["hashes"].update(train="xyz"), r"\$.hashes.train"),
        (lambda m: m["budget"].update(count="gpu"), r"\$.budget.count"),
        (lambda m: query(m).update(bits=[5, 2, 4]), r"\$.matrices\[1\].bits\[0\]"),
        (lambda m: query(m).update(rows=[3, 2, 3]), "sub-groups of query have not all of its rows"),
        (lambda m: query(m)["rows"].pop(), "sub-groups of query have not all of its rows"),
        (lambda m: query(m).update(rows=[3, 4]), "lists of query differ in how many sub-groups"),
        (lambda m: query(m)["bits"].append(2), "lists of query differ in how many sub-groups"),
        (lambda m: first_words(m)["probability"].pop(), "lists of words differ in how many sub-groups"),
        (lambda m: first_words(m).update(sensitivity=["much", 1]), r"\$.matrices\[0\].sensitivity"),
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
