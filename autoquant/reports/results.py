"""What did a sweep find? Points with their allocations, folded over seeds, to and from pareto.json and pareto.parquet.

pareto.json      everything: objectives, points, each with its complete allocation.json, and what dominates what
pareto.parquet   one row a point, for tables: the same numbers, and the bits as one string of digits per matrix
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autoquant.core.cost import MIB
from autoquant.core.errors import CheckpointError
from autoquant.core.files import atomic_write_bytes, atomic_write_text
from autoquant.reports.front import Folded, fold, hypervolume, non_dominated

TUNING_NOTE = "The metric is that on a fifth of the training file, which no trial trained on: the evaluation file was not read."
TAUGHT_NOTE = (
    "Note: --model is fine-tuned already. If on the whole training file, it knows the fifth that trials are judged on, and they "
    "learn from it; a bare encoder is fine-tuned on the rest alone."
)
BUILT = ("points", "objectives", "missing")  # fields of a sweep that are no plain JSON values
NEWER = ("data_source", "machine")  # fields that older records lack
FORMAT, VERSION = "autoquant-pareto", 2
JSON_NAME, PARQUET_NAME = "pareto.json", "pareto.parquet"


@dataclass(frozen=True)
class Objective:
    """What a point is judged by: `name` is a field of `Point`."""

    name: str
    maximise: bool


OBJECTIVES: dict[str, Objective] = {
    "size": Objective("file_bytes", False),
    "metric": Objective("metric", True),
    "latency": Objective("latency_ms", False),
}


@dataclass(frozen=True)
class Point:
    """One measured model: a strategy under a budget, with a seed."""

    cell: str
    """Names it within the sweep, and its folder in trials/."""
    strategy: str
    seed: int
    budget_bytes: int
    file_bytes: int
    metric: float
    latency_ms: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Hyper-parameters that differ from the sweep's recipe; empty where only sizes were swept."""
    seconds: float = 0.0
    """Of its own stages: what all trials share is not in it."""
    allocation: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Its allocation.json."""
    recipe: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """All settings it was made with; empty in older records."""
    reuse_search: bool | None = None
    """Whether one search served its budget and others; None in older records."""

    @property
    def configuration(self) -> tuple[str, int, str]:
        """What its seeds have in common."""
        return self.strategy, self.budget_bytes, json.dumps(dict(self.settings), sort_keys=True)

    def value(self, objective: str) -> float:
        number = getattr(self, OBJECTIVES[objective].name)
        return math.nan if number is None else float(number)


@dataclass(frozen=True)
class Missing:
    """A point that a sweep should have and has not."""

    strategy: str
    seed: int
    budget_bytes: int
    reason: str


@dataclass(frozen=True)
class Configuration:
    """A strategy under a budget, over its seeds. Means and spreads [objectives], in the sweep's order."""

    points: tuple[Point, ...]
    folded: Folded
    on_front: bool
    missing: tuple[Missing, ...] = ()
    """Seeds that it should have and has not: it is then never on the front, since its mean is not what was asked for."""

    @property
    def strategy(self) -> str:
        return self.points[0].strategy

    @property
    def budget_bytes(self) -> int:
        return self.points[0].budget_bytes

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.points[0].settings


@dataclass(frozen=True)
class Sweep:
    """Every finished point of a sweep, and what to hold them against."""

    task: str
    metric: str
    full_precision_bytes: int
    full_precision_metric: float
    points: tuple[Point, ...]
    objectives: tuple[str, ...] = ("size", "metric")
    command: str = ""
    """The command that makes it again."""
    note: str = ""
    """What a reader must know of its numbers."""
    missing: tuple[Missing, ...] = ()
    """Points that failed."""
    data_source: Mapping[str, Any] | None = None
    """Command-line options that load its data, by field; None if it did not come from there."""
    machine: Mapping[str, Any] | None = None
    """Where and how its trials computed, by field of `Machine`; None in older records."""

    @property
    def maximise(self) -> tuple[bool, ...]:
        return tuple(OBJECTIVES[name].maximise for name in self.objectives)

    @cached_property
    def configurations(self) -> tuple[Configuration, ...]:
        """Seeds folded; dominance is that of the means, among those that lack no seed. By strategy, then budget."""
        points = sorted(self.points, key=lambda p: (p.strategy, p.budget_bytes, p.configuration, p.seed))
        values = np.array([[p.value(name) for name in self.objectives] for p in points]).reshape(-1, len(self.objectives))
        folded = fold([p.configuration for p in points], values)
        gaps = [self._gaps(points[f.rows[0]]) for f in folded]
        whole, front = np.array([not gap for gap in gaps], dtype=bool), np.zeros(len(folded), dtype=bool)
        front[whole] = non_dominated(np.array([f.mean for f in folded])[whole], self.maximise)
        return tuple(
            Configuration(tuple(points[row] for row in f.rows), f, bool(on), gap)
            for f, on, gap in zip(folded, front, gaps, strict=True)
        )

    def _gaps(self, point: Point) -> tuple[Missing, ...]:
        """What the configuration of a point lacks."""
        return tuple(m for m in self.missing if (m.strategy, m.budget_bytes) == (point.strategy, point.budget_bytes))

    def of_strategy(self, strategy: str) -> tuple[Configuration, ...]:
        return tuple(c for c in self.configurations if c.strategy == strategy)

    @property
    def strategies(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(c.strategy for c in self.configurations))

    def hypervolumes(self) -> dict[str, float]:
        """Strategy -> share (0 to 1) of the box between (0 bytes, the full-precision metric) and (full precision's bytes, 0)
        that its seeds' means dominate; only for size and metric, since nothing bounds the box elsewhere."""
        if self.objectives != ("size", "metric") or self.full_precision_metric <= 0:
            return {}
        reference = (self.full_precision_bytes, 0.0)
        box = self.full_precision_bytes * self.full_precision_metric
        means = {s: np.array([c.folded.mean for c in self.of_strategy(s) if not c.missing]) for s in self.strategies}
        return {s: hypervolume(values, reference, self.maximise) / box for s, values in means.items()}

    def frame(self) -> pd.DataFrame:
        """One row a point: everything but the allocation's reasons and the recipe."""
        on_front = {p.cell for c in self.configurations if c.on_front for p in c.points}
        rows = []
        for point in sorted(self.points, key=lambda p: p.cell):
            row = {k: v for k, v in dataclasses.asdict(point).items() if k not in ("allocation", "settings", "recipe")}
            row |= {"size_mib": point.file_bytes / MIB, "on_front": point.cell in on_front}
            row |= {"settings": json.dumps(dict(point.settings), sort_keys=True), "bits": json.dumps(bits_text(point.allocation))}
            row |= {"removed": json.dumps(list(point.allocation.get("removed", ())))}
            rows.append(row)
        return pd.DataFrame(rows)

    def to_json(self) -> dict[str, Any]:
        front = [p.cell for c in self.configurations if c.on_front for p in c.points]
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in BUILT}
        return {
            "format": FORMAT,
            "version": VERSION,
            **plain,
            "missing": [dataclasses.asdict(m) for m in self.missing],
            "configurations": [self._folded_json(c) for c in self.configurations],
            "objectives": [{"name": name, "maximise": OBJECTIVES[name].maximise} for name in self.objectives],
            "front": sorted(front),
            "hypervolume": self.hypervolumes(),
            "points": [dataclasses.asdict(point) for point in sorted(self.points, key=lambda p: p.cell)],
        }

    def _folded_json(self, configuration: Configuration) -> dict[str, Any]:
        """Mean and spread over seeds by objective; null for what one seed, or one without a metric, does not have."""
        folded, points = configuration.folded, configuration.points
        spread = {
            name: {o: None if math.isnan(v) else v for o, v in zip(self.objectives, getattr(folded, name), strict=True)}
            for name in ("mean", "smallest", "largest", "deviation")
        }
        return {
            "strategy": configuration.strategy,
            "budget_bytes": configuration.budget_bytes,
            "settings": dict(configuration.settings),
            "cells": [point.cell for point in points],
            "seeds": [point.seed for point in points],
            "missing_seeds": [m.seed for m in configuration.missing],
            "on_front": configuration.on_front,
            **spread,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sweep:
        """The sweep that `to_json` gave, or an older autoquant's, which lacks `missing` and the NEWER."""
        newer = {name: data[name] for name in NEWER if name in data}
        plain = {f.name: data[f.name] for f in dataclasses.fields(cls) if f.name not in (*BUILT, *NEWER)}
        return cls(
            **plain,
            **newer,
            points=tuple(Point(**point) for point in data["points"]),
            objectives=tuple(o["name"] for o in data["objectives"]),
            missing=tuple(Missing(**m) for m in data.get("missing", ())),
        )

    def write(self, folder: str | Path) -> None:
        """pareto.json and pareto.parquet. Raises RunError when the disk refuses."""
        atomic_write_text(Path(folder) / JSON_NAME, json.dumps(self.to_json(), sort_keys=True) + "\n")
        buffer = io.BytesIO()
        self.frame().to_parquet(buffer, index=False)
        atomic_write_bytes(Path(folder) / PARQUET_NAME, buffer.getvalue())

    def write_cells(self, folder: str | Path) -> None:
        """One file a point, each a pareto.json of its own, so that evidence can grow point by point; those there stay."""
        for point in self.points:
            file = Path(folder) / f"{point.cell}.json"
            if not file.exists():
                single = dataclasses.replace(self, points=(point,), missing=())
                atomic_write_text(file, json.dumps(single.to_json(), sort_keys=True) + "\n")

    @classmethod
    def read_cells(cls, folder: str | Path) -> Sweep | None:
        """The points that `write_cells` left in a folder; None if there are none. Raises CheckpointError if they do not belong
        together: another task, metric or full precision. A seed that one budget of a strategy has is missing from the others."""
        parts = [cls.read(file) for file in sorted(Path(folder).glob("*.json"))]
        if not parts:
            return None
        merged = dataclasses.replace(parts[0], points=tuple(point for part in parts for point in part.points))
        odd = [part for part in parts if part._judged_by() != merged._judged_by()]
        if odd:
            raise CheckpointError(f"{folder}: {odd[0].points[0].cell} belongs to another sweep: move it elsewhere.")
        return dataclasses.replace(merged, missing=_absent(merged.points))

    def _judged_by(self) -> tuple[Any, ...]:
        """What points must have in common to be compared."""
        return self.task, self.metric, self.full_precision_bytes, self.full_precision_metric, self.objectives, self.note

    @classmethod
    def read(cls, path: str | Path) -> Sweep:
        """From a sweep's folder or its pareto.json. Raises CheckpointError in one line if that is no sweep."""
        file = Path(path) / JSON_NAME if Path(path).is_dir() else Path(path)
        try:
            data = json.loads(file.read_text("utf-8"))
            if data.get("format") != FORMAT or data.get("version") != VERSION:
                raise ValueError(f"format {data.get('format')!r}, version {data.get('version')!r}")
            return cls.from_json(data)
        except OSError as error:
            raise CheckpointError(f"Cannot read {file}: {error.strerror}; give a sweep's folder or its {JSON_NAME}.") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{file} is not the {JSON_NAME} of a sweep ({str(error)[:80]}).") from error


def _absent(points: Sequence[Point]) -> tuple[Missing, ...]:
    """What would make every budget of a strategy have the same seeds."""
    present = {(p.strategy, p.budget_bytes, p.seed) for p in points}
    seeds: dict[str, set[int]] = {}
    for strategy, _, seed in present:
        seeds.setdefault(strategy, set()).add(seed)
    wanted = {(strategy, size, seed) for strategy, size, _ in present for seed in seeds[strategy]}
    return tuple(Missing(strategy, seed, size, "not measured") for strategy, size, seed in sorted(wanted - present))


def bits_text(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Matrix name -> the bits of its sub-groups as digits, "8440"."""
    return {m["name"]: "".join(map(str, m["bits"])) for m in manifest.get("matrices", ())}
