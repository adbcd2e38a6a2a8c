"""What was measured? A cell is one method under one budget with one seed; its file holds the table's row and its evidence."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autoquant.core.errors import CheckpointError
from autoquant.core.files import atomic_write_text

FORMAT, VERSION = "autoquant-comparison-cell", 1
COLUMNS = (
    "task",
    "method",
    "budget_bytes",
    "file_bytes",
    "metric",
    "seed",
    "seconds",
    "peak_mib",
    "recovery_steps",
    "teacher_hash",
)


@dataclass(frozen=True)
class Cell:
    """One row, COLUMNS first, and what it takes to check it."""

    task: str
    method: str
    budget_bytes: int
    """In bytes of what `budget_counts` says."""
    file_bytes: int
    """Of the packed model.safetensors."""
    metric: float
    """The task's primary metric (a share of 1) of the packed file, reloaded."""
    seed: int
    seconds: float
    """Of its search, recovery and packing, as if it had run alone: a search that serves several budgets counts in each.
    Teacher and calibration, which all methods share, are not in it."""
    peak_mib: float
    """The most memory that one of these stages took."""
    recovery_steps: int
    """Optimizer steps after the bits were fixed: of training, and of every module's or layer's reconstruction."""
    teacher_hash: str
    """sha256 of the full-precision model's weights."""
    metric_name: str
    predictions: tuple[float, ...] = field(repr=False)
    """Answers to the evaluation rows: classes, or values in a regression."""
    labels: tuple[float, ...] = field(repr=False)
    full_precision: float
    """The teacher's metric."""
    full_precision_bytes: int
    recipe: Mapping[str, Any] = field(repr=False, default_factory=dict)
    space: Mapping[str, Any] = field(repr=False, default_factory=dict)
    """What the recipe's space was, since a file by its name may change; empty in older cells."""
    data_sha256: Mapping[str, str] = field(repr=False, default_factory=dict)
    allocation: Mapping[str, Any] = field(repr=False, default_factory=dict)
    """Bits of every matrix's sub-groups."""
    versions: Mapping[str, str] = field(repr=False, default_factory=dict)
    device: str = "cpu"
    """What it was computed on: seconds of two devices do not compare."""
    own_size: bool = False
    """Whether its recipe fixes the size; the budget is then the recipe's, in what the recipe counts."""
    budget_counts: str = "file"
    """What the budget counts: file, encoder (codes and scales) or codes (of the encoder, alone)."""
    calibration_seconds: float = 0.0
    """Of scales and sensitivities, where another tool's time includes its own; cells that share them have the same."""
    precision: str = "fp32"
    """In which products were computed while training."""
    derived_bytes: int | None = None
    """Of the most probable choices, in what the budget counts, before anything made them fit; None where nothing is learned,
    or where one search serves all budgets."""

    @property
    def answers(self) -> np.ndarray:
        """[examples]"""
        return np.asarray(self.predictions)

    def row(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in COLUMNS}

    def write(self, file: str | Path) -> None:
        """Raises RunError when the disk refuses."""
        data = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        atomic_write_text(file, json.dumps(data, sort_keys=True) + "\n")

    @classmethod
    def read(cls, file: str | Path) -> Cell:
        """Raises CheckpointError in one line if the file is no cell."""
        try:
            data = json.loads(Path(file).read_text("utf-8"))
            if (data.pop("format"), data.pop("version")) != (FORMAT, VERSION):
                raise ValueError("another format or version")
            return cls(**{**data, "predictions": tuple(data["predictions"]), "labels": tuple(data["labels"])})
        except OSError as error:
            raise CheckpointError(f"Cannot read {file}: {error.strerror}.") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{file} is not the cell of a comparison ({str(error)[:80]}): move it elsewhere.") from error


def read_cells(folder: str | Path) -> list[Cell]:
    """The cells in a folder's *.json, by name. Raises CheckpointError for what is no cell, or for cells that do not compare."""
    cells = [Cell.read(file) for file in sorted(Path(folder).glob("*.json"))]
    check_comparable(cells)
    return cells


def check_comparable(cells: Sequence[Cell]) -> None:
    """Raise CheckpointError if two cells of a task have another teacher, other evaluation rows or another precision."""
    first: dict[str, Cell] = {}
    for cell in cells:
        known = first.setdefault(cell.task, cell)
        if cell.teacher_hash != known.teacher_hash:
            raise CheckpointError(f"{_name(cell)} and {_name(known)} have another teacher: measure the older one again.")
        if cell.labels != known.labels:
            raise CheckpointError(f"{_name(cell)} and {_name(known)} have other evaluation rows: measure the older one again.")
        if cell.precision != known.precision:
            names = f"{_name(cell)} and {_name(known)}"
            raise CheckpointError(f"{names} were trained in {cell.precision} and {known.precision}: measure one of them again.")


def _name(cell: Cell) -> str:
    return f"{cell.task} {cell.method} seed {cell.seed} at {cell.budget_bytes} bytes"


def frame(cells: Iterable[Cell]) -> pd.DataFrame:
    """One row a cell, in COLUMNS."""
    rows = pd.DataFrame([cell.row() for cell in cells], columns=list(COLUMNS))
    return rows.sort_values(["task", "budget_bytes", "method", "seed"], ignore_index=True)


def write_csv(cells: Iterable[Cell], file: str | Path) -> None:
    """The tidy table. Raises RunError when the disk refuses."""
    atomic_write_text(file, frame(cells).to_csv(index=False, float_format="%.6g", lineterminator="\n"))
