"""What did a sweep find? Points with their allocations, folded over seeds, to and from pareto.json and pareto.parquet.

pareto.json      everything: objectives, points, each with its complete allocation.json, and what dominates what
pareto.parquet   one row a point, for tables: the same numbers, and the bits as one string of digits per matrix
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autoquant.core.cost import MIB
from autoquant.core.errors import CheckpointError
from autoquant.core.run import atomic_write_bytes, atomic_write_text
from autoquant.pareto.front import Folded, fold, hypervolume, non_dominated

TUNING_NOTE = "The metric is that on a fifth of the training file, which no trial saw: the evaluation file was not read."
FORMAT, VERSION = "autoquant-pareto", 1
JSON_NAME, PARQUET_NAME = "pareto.json", "pareto.parquet"


@dataclass(frozen=True)
class Objective:
    """What a point is judged by: `name` is a field of `Point`, `label` what people read."""

    name: str
    label: str
    maximise: bool


OBJECTIVES: dict[str, Objective] = {
    "size": Objective("file_bytes", "file bytes", False),
    "metric": Objective("metric", "metric", True),
    "latency": Objective("latency_ms", "latency in ms", False),
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

    @property
    def configuration(self) -> tuple[str, int, str]:
        """What its seeds have in common."""
        return self.strategy, self.budget_bytes, json.dumps(dict(self.settings), sort_keys=True)

    def value(self, objective: str) -> float:
        number = getattr(self, OBJECTIVES[objective].name)
        return math.nan if number is None else float(number)


@dataclass(frozen=True)
class Configuration:
    """A strategy under a budget, over its seeds. Means and spreads [objectives], in the sweep's order."""

    points: tuple[Point, ...]
    folded: Folded
    on_front: bool

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

    @property
    def maximise(self) -> tuple[bool, ...]:
        return tuple(OBJECTIVES[name].maximise for name in self.objectives)

    @cached_property
    def configurations(self) -> tuple[Configuration, ...]:
        """Seeds folded; dominance is that of the means. By strategy, then budget."""
        points = sorted(self.points, key=lambda p: (p.strategy, p.budget_bytes, p.configuration, p.seed))
        values = np.array([[p.value(name) for name in self.objectives] for p in points]).reshape(-1, len(self.objectives))
        folded = fold([p.configuration for p in points], values)
        front = non_dominated(np.array([f.mean for f in folded]), self.maximise)
        return tuple(
            Configuration(tuple(points[row] for row in f.rows), f, bool(on)) for f, on in zip(folded, front, strict=True)
        )

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
        means = {s: np.array([c.folded.mean for c in self.of_strategy(s)]) for s in self.strategies}
        return {s: hypervolume(values, reference, self.maximise) / box for s, values in means.items()}

    def frame(self) -> pd.DataFrame:
        """One row a point: everything but the allocation's reasons."""
        on_front = {p.cell for c in self.configurations if c.on_front for p in c.points}
        rows = []
        for point in sorted(self.points, key=lambda p: p.cell):
            row = {k: v for k, v in dataclasses.asdict(point).items() if k not in ("allocation", "settings")}
            row |= {"size_mib": point.file_bytes / MIB, "on_front": point.cell in on_front}
            row |= {"settings": json.dumps(dict(point.settings), sort_keys=True), "bits": json.dumps(bits_text(point.allocation))}
            rows.append(row)
        return pd.DataFrame(rows)

    def to_json(self) -> dict[str, Any]:
        front = [p.cell for c in self.configurations if c.on_front for p in c.points]
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("points", "objectives")}
        return {
            "format": FORMAT,
            "version": VERSION,
            **plain,
            "objectives": [{"name": name, "maximise": OBJECTIVES[name].maximise} for name in self.objectives],
            "front": sorted(front),
            "hypervolume": self.hypervolumes(),
            "points": [dataclasses.asdict(point) for point in sorted(self.points, key=lambda p: p.cell)],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sweep:
        points = tuple(Point(**point) for point in data["points"])
        plain = {f.name: data[f.name] for f in dataclasses.fields(cls) if f.name not in ("points", "objectives")}
        return cls(**plain, points=points, objectives=tuple(o["name"] for o in data["objectives"]))

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
                single = dataclasses.replace(self, points=(point,))
                atomic_write_text(file, json.dumps(single.to_json(), sort_keys=True) + "\n")

    @classmethod
    def read_cells(cls, folder: str | Path) -> Sweep | None:
        """The points that `write_cells` left in a folder; None if there are none. Raises CheckpointError if they do not belong
        together: another task, metric or full precision."""
        parts = [cls.read(file) for file in sorted(Path(folder).glob("*.json"))]
        if not parts:
            return None
        merged = dataclasses.replace(parts[0], points=tuple(point for part in parts for point in part.points))
        odd = [
            part
            for part in parts
            if dataclasses.replace(part, points=(), command="") != dataclasses.replace(merged, points=(), command="")
        ]
        if odd:
            raise CheckpointError(f"{folder}: {odd[0].points[0].cell} belongs to another sweep: move it elsewhere.")
        return merged

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


def bits_text(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Matrix name -> the bits of its sub-groups as digits, "8440"."""
    return {m["name"]: "".join(str(g["bits"]) for g in m["subgroups"]) for m in manifest.get("matrices", ())}
